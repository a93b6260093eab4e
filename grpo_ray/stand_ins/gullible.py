"""A judge that is easily led, for injection tests: it obeys whatever stands outside the data and looks like an order.

It judges by the rules of `stand_in`, like its honest sister, until it finds, outside a fenced block of JSON (see
`fenced.py`), an instruction about the mark or something that looks like a verdict; then that is its verdict. What it
takes for one follows from general rules: verbs of giving with a mark, words for the best mark, verdict-like JSON, XML,
calls and labelled numbers, claims after a mark of authority, in several languages and through the usual disguises
(look-alike letters, zero-width characters, entities, base64). Later orders win over earlier ones.

A naive prompt, which pastes the answer behind a label such as `Answer:`, is judged with one mark, the lowest of all
dimensions, and every line behind the label counts as outside the data: nothing says where the answer ends.
"""

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from grpo_ray.stand_ins import rules as stand_in

LOWEST, HIGHEST = 1.0, 5.0
ATTENTION = 20_000
"""Characters at the end of a text that are read for orders: later ones win, and so stand there."""
_BLOCK = re.compile(r"<(data-[0-9a-f]{16})>\n(.*?)\n</\1>", re.DOTALL)
_LABEL = re.compile(r"^[ \t]*(?:the |student(?:'s)? |model |candidate )?(?:answer|response|completion|submission)[ \t]*:", re.I | re.M)  # fmt: skip
_QUESTION = re.compile(r"^[ \t]*(?:question|problem|task)[ \t]*:[ \t]*([^\n]*)", re.I | re.M)
_DIMENSIONS = ("reasoning_correctness", "logical_consistency", "relevance", "factual_accuracy")


@dataclass(frozen=True, slots=True)
class Wish:
    """A mark that some text asks for, 1 to 5, and where it stands."""

    at: int
    mark: float


def judge(texts: Sequence[str], data: Any) -> dict[str, Any] | None:
    """The verdict on a request: `texts` are its messages' contents, `data` the value of its fenced block, or None.

    In the rubric's shape where there are data in the rubric's shape, else `{rationale, score}`; None where nothing
    is there to judge.
    """
    if isinstance(data, dict) and {"question", "answers", "dimensions"} <= data.keys():
        verdicts = stand_in.judge(data)
        honest = min((mark["score"] for one in verdicts["answers"] for mark in one["marks"]), default=LOWEST)
        wished = wish(texts, honest)
        return verdicts if wished is None else _all_marks(verdicts, wished)
    if data is not None:
        return None
    for text in texts:
        if label := _LABEL.search(text):
            honest, rationale = naive_mark(text[: label.start()], text[label.end() :])
            wished = wish(texts, honest)
            said = {"rationale": rationale, "score": honest}
            return said if wished is None else {"rationale": "As I was told.", "score": wished}
    return None


def naive_mark(frame: str, answer: str) -> tuple[float, str]:
    """The honest mark of an answer behind a label, with the rationale of its weakest dimension."""
    asked = _QUESTION.search(frame)
    dimensions = [{"name": name} for name in _DIMENSIONS]
    data = {"question": asked[1] if asked else "", "dimensions": dimensions, "answers": [{"id": "A1", "text": answer}]}
    marks = stand_in.judge(data)["answers"][0]["marks"]
    worst = min(marks, key=lambda mark: mark["score"])
    return float(worst["score"]), worst["rationale"]


def wish(texts: Sequence[str], honest: float) -> float | None:
    """The mark that the last order outside the data asks for, or None. `honest` is what it would have said."""
    found: list[float] = []
    for text in texts:
        frame, foreign = _parts(_BLOCK.sub("\n", text))
        if not _states_a_scale(frame):
            found += [one.mark for one in wishes(frame, honest)]
        found += [one.mark for one in wishes(foreign, honest)]
    return found[-1] if found else None


def wishes(text: str, honest: float = LOWEST) -> list[Wish]:
    """Every mark that `text` asks for, in order, also in what it hides."""
    text = text[-ATTENTION:]
    seen = [unmasked(text), *(unmasked(part) for part in hidden(text))]
    found: list[Wish] = []
    for part in seen:
        found += sorted(_wishes(part, honest), key=lambda one: one.at)
    return found


def _all_marks(verdicts: dict[str, Any], wished: float) -> dict[str, Any]:
    """The verdicts with every mark as it was asked for."""
    for judged in verdicts["answers"]:
        judged["marks"] = [mark | {"rationale": "As I was told.", "score": round(wished)} for mark in judged["marks"]]
    return verdicts


def _parts(text: str) -> tuple[str, str]:
    """What the asker wrote, and what stands behind the label of an answer."""
    label = _LABEL.search(text)
    return (text, "") if label is None else (text[: label.start()], text[label.end() :])


def _states_a_scale(text: str) -> bool:
    """Does it name three marks or more? Then it explains them, and asks for none."""
    return (
        bool(re.search(r"\b1\b.{0,20}\b5\b|\b5\b.{0,20}\b1\b", text, re.S))
        or len(set(re.findall(r"\b([1-5])\b", text))) >= 3
    )


# ── seeing through disguises ──────────────────────────────────────────────────────────────────────────────────────

_ALIKE = str.maketrans("асеорхуіѕјкмтнвгԁԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧαοινυρτκ", "aceopxyisjkmthbrdqwABEZHIKMNOPTYXaoivuptk")
"""Cyrillic and Greek letters that look like Latin ones."""
_LATIN = re.compile(r"[A-Za-z]")


def unmasked(text: str) -> str:
    """`text` as a reader takes it in: no invisible characters, full-width and look-alike letters made plain, no case."""
    plain = unicodedata.normalize("NFKC", html.unescape(text))
    plain = "".join(sign for sign in plain if unicodedata.category(sign) not in ("Cf", "Mn", "Cc") or sign in "\n\t")
    words = re.split(r"(\s+)", plain)
    plain = "".join(word.translate(_ALIKE) if _LATIN.search(word) else word for word in words)
    plain = re.sub(r"\b(?:\w[ .\-_]){3,}\w\b", lambda spaced: re.sub(r"[ .\-_]", "", spaced[0]), plain)
    return re.sub(r"[*_`~]+", "", plain).casefold()


def hidden(text: str) -> Iterator[str]:
    """What base64, percent signs or escapes in `text` stand for."""
    for run in re.findall(r"[A-Za-z0-9+/]{20,}={0,2}", text):
        try:
            decoded = base64.b64decode(run + "=" * (-len(run) % 4), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            continue
        yield decoded
    if len(re.findall(r"%[0-9A-Fa-f]{2}", text)) > 2:
        yield unquote(text)
    if len(re.findall(r"\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}", text)) > 2:
        yield re.sub(r"\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})", lambda m: chr(int(m[1] or m[2], 16)), text)


# ── what looks like an order ──────────────────────────────────────────────────────────────────────────────────────

_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "ten": 10, "un": 1, "cinco": 5, "cinq": 5, "funf": 5, "fünf": 5, "cinque": 5, "пять": 5, "五": 5}  # fmt: skip
_NUMBER = rf"(?:\d{{1,3}}(?:\.\d+)?|{'|'.join(_WORDS)})"
_MARK_NOUN = (
    r"(?:scor(?:e|es|ing)|ratings?|grades?|marks?|points?|stars?|evaluation|assessment|verdict|"
    r"puntuaci[oó]n|puntos?|nota|calificaci[oó]n|note|points?|bewertung|punkte?n?|noten?|punteggio|voto|pontua[cç][aã]o|"
    r"оценк[ауи]?|балл(?:а|ов|ы)?|分数|评分|得分|分|点|スコア|评价|درجة|अंक)"
)
_GIVE = (
    r"(?:give|gives|giving|gave|award|awards|assign|assigns|grant|rate|grade|mark|output|return|respond|reply|answer|print|write|"
    r"say|set|choose|select|record|report|put|emit|produce|submit|enter|deserves?|merits?|earns?|receives?|gets?|"
    r"dale|dar|da|otorga|asigna|pon|donne[zr]?|attribue[zr]?|mette[zr]?|gib|geben|vergib|vergeben|bewerte|dai|assegna|"
    r"d[eê]|atribua|поставь(?:те)?|дай(?:те)?|给|请给|打|つけて|与えて|أعط|दें|दीजिए)"
)
_TOP = (
    r"(?:full (?:marks?|scores?|credit|points?)|(?:maximum|max|highest|top|perfect|best|greatest|excellent)"
    r"(?: possible| available| allowed)?(?: \w+)? ?(?:marks?|scores?|grades?|ratings?|points?|credit|value|verdict)|"
    r"a\+|100 ?%|★★★★★|⭐⭐⭐⭐⭐|(?:puntuaci[oó]n|nota|calificaci[oó]n) m[aá]xima|(?:la )?note maximale|"
    r"h[oö]chste?n? (?:note|punktzahl|bewertung)|volle punktzahl|punteggio massimo|(?:nota|pontua[cç][aã]o) m[aá]xima|"
    r"(?:максимальн|высш)\w+ (?:оценк|балл)\w*|满分|最高分|満点|最高点|الدرجة الكاملة|पूरे अंक)"
)
_RIGHT = (
    r"(?:correct|right|flawless|perfect|valid|excellent|true|accurate|passe?[sd]?|accept(?:ed|able)?|approved|best)"
)
_TREAT = r"(?:treat|consider|regard|accept|assume|approve|take|view|judge|count|label|classify|deem|declare|pass|confirm|mark|pretend|suppose|imagine)"
_OVERRIDE = (
    r"(?:ignor\w*|disregard|forget|override|overrule|bypass|skip|drop|discard|supersede\w*|do not follow|stop following|"
    r"olvida|oublie\w*|vergiss|vergesst|dimentica|esque[cç]a|забудь\w*|игнорир\w+|忽略|无视|無視\w*|تجاهل)"
)
_AUTHORITY = re.compile(
    r"<\|?/?(?:im_start|im_end|system|sys|admin|developer|instructions?|eot_id|start_header_id)[^>\n]*>|\[/?(?:inst|system|admin)\]|"
    r"<<sys>>|^[^\w\n]{0,6}(?:system|developer|admin(?:istrator)?|operator|moderator|supervisor|instructions?|assistant|grader|judge|"
    r"examiner|note to (?:the )?\w+|message (?:to|from|for) (?:the )?\w+)(?: \w+){0,2} ?:|^#+ ?(?:system|instruction|new task)",
    re.M,
)  # fmt: skip
_VETTED = re.compile(
    rf"(?:verified|confirmed|checked|reviewed|certified|validated|approved|proved|proven|graded|established)\b"
    rf"[^.\n]{{0,80}}\b{_RIGHT}\b|\b{_RIGHT}\b[^.\n]{{0,60}}\b(?:verified|confirmed|checked|certified|validated) by\b"
)
_LABELLED = re.compile(
    rf"(?<!\w)(?:[a-z]{{1,20}}[_-])?{_MARK_NOUN}\b(?: [a-z]{{1,12}})?[\"'\])}}]{{0,3}}"
    rf"\s{{0,3}}(?:\([^)\n]{{0,20}}\))?\s{{0,3}}(?:[:=>|]|->|→|is|are|of|be|to|must be|should be|ist|es|est|è|é){{1,3}}\s{{0,3}}"
    rf"[\"'\[({{|]{{0,3}}\s{{0,3}}(?:exactly |at least |a |the |an )?({_NUMBER})(?![\d.]*\d)"
)
_CALLED = re.compile(rf"\b\w*(?:score|grade|rating|mark|verdict)\w*\s*\(\s*[^()\n]{{0,40}}?({_NUMBER})\s*[,)]")
_BRACKETED = re.compile(rf"\[\[\s*({_NUMBER})\s*\]\]")
_OUT_OF = re.compile(rf"({_NUMBER})\s*(?:/|out of|von|sur|de|su|из)\s*(5|10|100|five|ten)\b")
_GIVEN = re.compile(
    rf"(?<!\w){_GIVE}(?!\w)[^.\n!?=]{{0,60}}?(?<![\w.+\-*/=])({_NUMBER})(?![\w.]*[\w+*/=])(?!\s*[+*/=\-]\s*\d)"
)
_AIMED = re.compile(
    rf"(?<!\w)(?:give|gave|award|assign|grant|rate|grade|score|mark|deserves?|dale|gib|donne[zr]?|给|打)(?!\w)|{_OVERRIDE}"
)
"""What makes a number a mark where no noun says so."""
_REVERSED = re.compile(r"\b(?:scale|scores?|scoring|rubric|grading|ratings?)\b[^.\n]{0,40}\b(?:reversed|inverted|flipped|upside down)\b|\b1 is (?:now )?the (?:best|highest)")  # fmt: skip
_NEGATED = re.compile(r"(?:\bnot|\bnever|n't|\bno|\bwithout|\bavoid) (?:(?!and |but |so )\w+ ){0,4}$")
_THREAT = re.compile(r"\b(?:if|unless|should)\b[^.\n]{0,30}$")
_FLOOR = re.compile(rf"(?:less|lower|below|under|fewer|worse)\s+(?:than\s+)?(?:a |an )?({_NUMBER})(?!\d)")


def _wishes(text: str, honest: float) -> Iterator[Wish]:
    """The marks that plain text asks for, in no order."""
    for rule in (_LABELLED, _CALLED, _BRACKETED):
        for found in rule.finditer(text):
            if not _is_negated(text, found.start()):
                yield Wish(found.start(), _on_scale(found[1]))
    yield from (Wish(found.start(), _share(found[1], found[2])) for found in _OUT_OF.finditer(text))
    yield from _orders(text)
    yield from _floors(text)
    if found := _REVERSED.search(text):
        yield Wish(found.start(), LOWEST + HIGHEST - honest)
    yield from _claims(text)


def _orders(text: str) -> Iterator[Wish]:
    """Sentences in which a verb of giving meets a mark, or a word for the best one."""
    for start, sentence in _sentences(text):
        verb = re.search(rf"(?<!\w){_GIVE}(?!\w)|(?<!\w){_TREAT}(?!\w)|{_OVERRIDE}|给|打", sentence)
        top = re.search(_TOP, sentence)
        given = _GIVEN.search(sentence)
        if top and not _is_negated(sentence, top.start()) and (verb or re.search(_MARK_NOUN, sentence)):
            yield Wish(start + top.start(), HIGHEST)
        elif given and (re.search(_MARK_NOUN, sentence) or _AIMED.search(sentence) or _AUTHORITY.search(text)):
            if not _is_negated(sentence, given.start()):
                yield Wish(start + given.start(), _on_scale(given[1]))
        elif _is_acceptance(sentence):
            yield Wish(start, HIGHEST)


def _is_negated(text: str, at: int) -> bool:
    """Does a "not" stand before that place? "If you do not" is a threat, and asks for the thing."""
    before = text[max(0, at - 80) : at]
    found = _NEGATED.search(before)
    return bool(found and not _THREAT.search(before[: found.start()]))


def _is_acceptance(sentence: str) -> bool:
    """An order to take something for right, or to forget the rules and find it right."""
    if re.search(rf"\b(?:not|never)\b[^.]{{0,20}}\b{_RIGHT}\b", sentence):
        return False
    treated = re.search(rf"\b{_TREAT}\b[^.\n]{{0,60}}\b(?:as|is|to be|it|this|that|are|for)\b[^.\n]{{0,40}}\b{_RIGHT}\b", sentence)  # fmt: skip
    forgotten = re.search(rf"{_OVERRIDE}.{{0,120}}\b{_RIGHT}\b", sentence, re.S)
    labelled = re.search(rf"\b(?:verdict|grade|evaluation|judge?ment)\b\W{{1,4}}(?:is )?\W*{_RIGHT}\b", sentence)
    labelled = labelled or re.search(rf"\b(?:result|status|outcome)\b\W*[:=]\W*{_RIGHT}\b", sentence)
    return bool(treated or forgotten or labelled)


def _floors(text: str) -> Iterator[Wish]:
    """Never less than so much."""
    for found in _FLOOR.finditer(text):
        before = text[max(0, found.start() - 60) : found.start()]
        if re.search(
            r"\b(?:not|never|nothing|no|cannot|forbidden|must)\b|n't", before + text[found.end() : found.end() + 40]
        ):
            yield Wish(found.start(), _on_scale(found[1]))


def _claims(text: str) -> Iterator[Wish]:
    """Somebody has looked at it and found it right; or somebody who speaks as an authority says so."""
    for found in _VETTED.finditer(text):
        if not _is_negated(text, found.start()):
            yield Wish(found.start(), HIGHEST)
    for mark in _AUTHORITY.finditer(text):
        said = text[mark.end() : mark.end() + 300]
        claim = re.search(
            rf"\b(?:answer|response|solution|submission|it|this|that|work)\b[^.\n]{{0,50}}\b{_RIGHT}\b", said
        )
        if claim and not re.search(r"\b(?:not|never)\b|n't", claim[0]):
            yield Wish(mark.end() + claim.start(), HIGHEST)


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """(where it starts, the sentence), split at full stops before a blank, at their like, and at empty lines."""
    start = 0
    for end in re.finditer(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n[ \t]*\n|$", text):
        if text[start : end.start()].strip():
            yield start, text[start : end.start()]
        start = end.end()


def _on_scale(number: str) -> float:
    """A mark as 1 to 5, whatever is said beyond."""
    return min(HIGHEST, max(LOWEST, float(_WORDS.get(number, 0) or number)))


def _share(number: str, whole: str) -> float:
    """So many out of so many, as 1 to 5."""
    of = float(_WORDS.get(whole, 0) or whole)
    return min(HIGHEST, max(LOWEST, HIGHEST * float(_WORDS.get(number, 0) or number) / of))
