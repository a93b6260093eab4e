"""Cheap things that can be seen without a model: form, length, language, repetition, refusals. Deterministic.

Each score is 0 to 1, and each rationale says what was counted.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Literal

from grpo_ray.answers import marked_answer, spoken
from grpo_ray.errors import ConfigError
from grpo_ray.protocols import Oracle
from grpo_ray.registry import hint
from grpo_ray.types import Evaluation, Group

Finding = tuple[float | None, str]
"""A score, or None, and why."""
DIMENSIONS = ("format", "length", "language", "repetition", "refusal")
SCRIPTS = {
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "vi", "id"), ("LATIN",)),
    **dict.fromkeys(("ru", "uk", "bg"), ("CYRILLIC",)),
    "zh": ("CJK",), "ja": ("HIRAGANA", "KATAKANA", "CJK"), "ko": ("HANGUL",), "el": ("GREEK",), "he": ("HEBREW",),
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)), "hi": ("DEVANAGARI",), "th": ("THAI",),
}  # fmt: skip
"""Language (ISO 639-1) → the scripts it is written in, as the names of Unicode's characters begin."""
STOP_WORDS = {
    "en": "the of and to in is that it was for with as on are this be by not which from",
    "de": "der die das und ist nicht ein eine zu den mit von dem sich auf für auch wir als aus",
    "fr": "le les des et est une que pas pour dans qui sur du au avec ce sont nous donc aux",
    "es": "el los las que y es una por con para del se lo como más pero son al esta hay",
    "it": "il che di è un per non una sono con del della gli le si quindi anche ha nel dei",
    "pt": "o os que e é um uma não para com do da em por mais se dos como são ao",
    "nl": "de het een en van is dat niet op te zijn voor met die aan er wij ook maar dus",
}
"""Some of each language's most frequent words; a few belong to more than one."""
TELLING = 3
"""Stop words that a text must hold before they say anything."""
OPENING = 240
"""Characters in which a refusal is looked for: answers that decline do so at once."""
REFUSALS = re.compile(
    r"\b(?:"
    r"i(?:'m| am) (?:sorry|afraid),? (?:but )?(?:i |that )?(?:can't|cannot|can not|won't|am unable|'m unable|am not able)"
    r"|i(?:'m| am) (?:unable|not able) to (?:help|assist|answer|provide|comply|fulfill|do that|discuss|create|write)"
    r"|i (?:can't|cannot|can not|won't|will not) (?:help|assist|answer (?:that|this)|provide|comply|fulfill|do that"
    r"|discuss|engage|create|write)"
    r"|i must (?:decline|refuse)|i (?:respectfully )?decline to"
    r"|as an ai(?: language model| assistant)?,? i (?:can't|cannot|am unable|'m unable|am not able|do not|don't)"
    r"|(?:es )?tut mir leid,? (?:aber )?(?:ich kann|das kann ich|dabei kann ich|ich darf)\b.{0,80}?\bnicht"
    r"|ich kann (?:ihnen |dir )?(?:dabei |damit |hierbei )?(?:leider )?nicht (?:helfen|weiterhelfen|beantworten)"
    r"|(?:je suis )?désolée?,? (?:mais )?je ne (?:peux|suis)|je ne peux pas (?:vous |t')?(?:aider|répondre|fournir)"
    r"|lo siento,? (?:pero )?no puedo|no puedo (?:ayudar|responder|proporcionar)"
    r"|mi dispiace,? (?:ma )?non posso|non posso (?:aiutar|rispondere|fornire)"
    r"|(?:desculpe|sinto muito|lamento),? (?:mas )?não posso|não posso (?:ajudar|responder|fornecer)"
    r")|(?:抱歉|对不起|對不起).{0,12}?(?:不能|无法|無法)|申し訳.{0,40}?(?:できません|できかねます)",
    re.IGNORECASE,
)


async def judge(
    group: Group,
    oracle: Oracle,
    *,
    dimensions: Sequence[str] = DIMENSIONS,
    pattern: str | None = None,
    shortest: int = 1,
    longest: int = 400,
    unit: Literal["words", "characters"] = "words",
    language: str = "en",
    ngram: int = 4,
    name: str = "heuristics",
) -> list[Evaluation]:
    """One evaluation a rollout and chosen dimension, of what is said after a thinking model's thoughts.

    `format`: an answer marked as such, or `pattern` (looked for in the process that can be killed). `length`: 1 from
    `shortest` to `longest` (inclusive), falling off in a straight line to 0 at nothing and at twice `longest`. `language`: the
    share of letters in its script, less where another language's stop words prevail. `repetition`: the share of
    different n-grams and of what is no run, whichever is less; 1 is none. `refusal`: 1 unless it declines.
    """

    looks = _looks(shortest, longest, unit, language, ngram)
    found = {dimension: [looks[dimension](rollout.text) for rollout in group.rollouts] for dimension in dimensions}
    if pattern is not None and "format" in found:
        found["format"] = await _matching(group, oracle, pattern)
    return [
        Evaluation(rollout.id, name, dimension, *found[dimension][at])
        for at, rollout in enumerate(group.rollouts)
        for dimension in dimensions
    ]


def check_settings(
    *,
    dimensions: Sequence[str] = DIMENSIONS,
    pattern: str | None = None,
    shortest: int = 1,
    longest: int = 400,
    language: str = "en",
    ngram: int = 4,
    **others: object,
) -> None:
    """Raise ConfigError for unknown dimensions or languages, bounds that cross, or a pattern that is none."""
    unknown = [one for one in dimensions if one not in DIMENSIONS]
    problems = [f"there is no heuristic {one!r}{hint(one, list(DIMENSIONS))}" for one in unknown]
    if not dimensions:
        problems.append(f"dimensions is empty; choose of {', '.join(DIMENSIONS)}")
    if language not in SCRIPTS:
        problems.append(f"language {language!r} is not known{hint(language, sorted(SCRIPTS))}")
    if not 0 <= shortest <= longest or not longest:
        problems.append(f"shortest is {shortest} and longest {longest}; 0 <= shortest <= longest and 1 <= longest")
    if ngram < 1:
        problems.append(f"ngram is {ngram}; at least 1 is needed")
    try:
        re.compile(pattern or "")
    except re.error as fault:
        problems.append(f"the pattern {pattern!r} is not a regular expression: {fault}")
    if problems:
        raise ConfigError("\n".join(problems))


def _looks(shortest: int, longest: int, unit: str, language: str, ngram: int) -> dict[str, Callable[[str], Finding]]:
    return {
        "format": marked,
        "length": lambda text: length(text, shortest, longest, unit),
        "language": lambda text: in_language(text, language),
        "repetition": lambda text: repetition(text, ngram),
        "refusal": refusal,
    }


async def _matching(group: Group, oracle: Oracle, pattern: str) -> list[Finding]:
    """By the verifier `regex`: some patterns take for ever on some texts, and only the checker's process can be killed."""
    texts = [rollout.text for rollout in group.rollouts]
    verdicts = await oracle.check(group.prompt.task, texts, verifier="regex", settings={"pattern": pattern})
    words = {None: "the pattern gave no verdict in time", 0.0: "does not match the pattern that is asked for"}
    return [(verdict, words.get(verdict, "matches the pattern that is asked for")) for verdict in verdicts]


def marked(text: str) -> Finding:
    """Whether an answer is marked by `Answer:`."""
    return (1.0, "an answer is marked as such") if marked_answer(text) else (0.0, "no line says `Answer:` and one")


def length(text: str, shortest: int, longest: int, unit: str) -> Finding:
    """1 within the bounds (inclusive); n/shortest below them, 1 - (n - longest)/longest above, at least 0."""
    said = spoken(text).strip()
    count = len(said.split()) if unit == "words" else len(said)
    if count < shortest:
        return count / shortest, f"{count} {unit}, at least {shortest} wanted"
    if count > longest:
        return max(0.0, 1 - (count - longest) / longest), f"{count} {unit}, at most {longest} wanted"
    return 1.0, f"{count} {unit}, from {shortest} to {longest} wanted"


def in_language(text: str, language: str) -> Finding:
    """The share of letters in the language's script; times ours/theirs where another's stop words outnumber ours.

    Missing for a text without letters: a number is in every language.
    """
    said = spoken(text)
    scripts = [_script(letter) for letter in said if letter.isalpha()]
    if not scripts:
        return None, "no letters to tell a language by"
    share = sum(script in SCRIPTS[language] for script in scripts) / len(scripts)
    words = f"{share:.0%} of {len(scripts)} letters are in the script of {language!r}"
    hits = stop_words(said) if language in STOP_WORDS else {}
    best = max(hits, key=lambda one: (hits[one], one == language), default=language)
    if best == language or hits[best] < TELLING:
        return share, words
    return share * hits[language] / hits[
        best
    ], f"{words}; stop words: {hits[language]} of {language!r}, {hits[best]} of {best!r}"


def stop_words(text: str) -> dict[str, int]:
    """Language → how many words of the text are among its stop words."""
    said = re.findall(r"[^\W\d_]+", text.casefold())
    return {language: sum(word in words for word in said) for language, words in _stop_words().items()}


def repetition(text: str, ngram: int) -> Finding:
    """min(different n-grams / n-grams, 1 - longest run / length): n-grams of words, runs of one word or character.

    A text without blanks in it (Chinese, one endless word) is cut into characters. A word said twice or a run of up to
    eight characters (a dash, a sum of zeros) is no repetition.
    """
    said = spoken(text).casefold()
    words = said.split()
    units = words if len(words) > len(said) / 20 else [letter for letter in said if not letter.isspace()]
    if not units:
        return 1.0, "nothing is said, so nothing twice"
    grams = [tuple(units[at : at + ngram]) for at in range(len(units) - ngram + 1)]
    distinct = len(set(grams)) / len(grams) if grams else 1.0
    run, long = _longest_run(units), _longest_run(said)
    still = min(1 - (run / len(units) if run > 2 else 0), 1 - (long / len(said) if long > 8 else 0))
    return min(
        distinct, still
    ), f"{distinct:.0%} of {len(grams)} {ngram}-grams differ; the longest run is {max(run, 1)} long"


def refusal(text: str) -> Finding:
    """0 where the opening declines, in some languages' usual words, and no answer is marked; else 1."""
    opening = spoken(text).strip()[:OPENING].replace("’", "'")
    found = REFUSALS.search(opening)
    if found is None or marked_answer(text):
        return 1.0, "it does not decline"
    return 0.0, f"it declines: {found[0]!r}"


def _longest_run(units: Sequence[str]) -> int:
    return max((sum(1 for _ in same) for _, same in groupby(units)), default=0)


@lru_cache(maxsize=8192)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").partition(" ")[0]


@lru_cache(maxsize=1)
def _stop_words() -> dict[str, frozenset[str]]:
    return {language: frozenset(words.split()) for language, words in STOP_WORDS.items()}
