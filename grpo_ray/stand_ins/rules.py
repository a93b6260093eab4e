"""What the bundled server says in place of a model: answers judged, and templates rewritten, by rule.

It sees the text alone. It never sees a reference answer and never works out a task: it checks the small statements that
an answer makes, whether they are enough, and whether its end follows from them; and it puts the need that its own words
name most often into a new instruction, from phrases of its own.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal

from grpo_ray.answers import marked_answer

PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands", "millions")
_SIDE = r"-?\d+(?:\s*[-+*/×]\s*(?:\d+|\?))*"
_ARITHMETIC = re.compile(rf"(?<![\d.]){_SIDE}(?:\s*=\s*{_SIDE})+(?![.\d])")
_TURNED = re.compile(r"\b([a-z]+)\s*(?:->|→|>)\s*([a-z]+)\b", re.IGNORECASE)
_ANSWER_LINE = re.compile(r"answer\s*:", re.IGNORECASE)
Mark = tuple[int, str]


# ── what an answer shows ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Step:
    """One small statement of a working: where it stands, what it says, what it comes to, and whether that is so."""

    line: int
    text: str
    numbers: tuple[str, ...]
    """What it starts from: the numbers or letters left of the first sign."""
    result: str
    right: bool


@dataclass(frozen=True, slots=True)
class Look:
    """An answer as this judge sees it."""

    question: str
    steps: tuple[Step, ...]
    answer: str | None
    """What stands after `Answer:`."""


def look(question: str, text: str) -> Look:
    """Find the statements that stand before the answer line; one that only repeats the question is no working."""
    turning = _is_turning(question)
    asked = Counter(_numbers(question))
    found: list[Step] = []
    for number, line in enumerate(text.splitlines(), 1):
        if _ANSWER_LINE.search(line):
            continue
        steps = _turned(line, number) if turning else _arithmetic(line, number)
        found += [step for step in steps if turning or Counter(step.numbers) != asked]
    return Look(question, tuple(found), marked_answer(text))


def _arithmetic(line: str, number: int) -> Iterator[Step]:
    for match in _ARITHMETIC.finditer(line):
        sides = match[0].split("=")
        values = {_value(side) for side in sides if "?" not in side}
        yield Step(number, match[0], tuple(_numbers(sides[0])), sides[-1].strip(), len(values) == 1)


def _turned(line: str, number: int) -> Iterator[Step]:
    for match in _TURNED.finditer(line):
        yield Step(number, match[0], (match[1],), match[2], match[1].lower() == match[2].lower()[::-1])


def _value(side: str) -> float | None:
    """What a side of a statement comes to: products first, then sums; None where something is divided by 0."""
    total = 0.0
    for sign, term in re.findall(r"([-+]?)\s*(\d+(?:\s*[*/×]\s*\d+)*)", side):
        value = 1.0
        for operation, number in re.findall(r"([*/×]?)\s*(\d+)", term):
            if operation == "/" and not int(number):
                return None
            value = value / int(number) if operation == "/" else value * int(number)
        total += -value if sign == "-" else value
    return round(total, 9)


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def _is_turning(question: str) -> bool:
    return bool(re.search(r"backward|revers", question, re.IGNORECASE))


# ── judging ───────────────────────────────────────────────────────────────────────────────────────────────────────


def judge(data: dict[str, Any]) -> dict[str, Any]:
    """Marks for every answer and dimension of a rubric request, in the shape that it asks for."""
    names = [dimension["name"] for dimension in data["dimensions"]]
    judged = []
    for answer in data["answers"]:
        seen = look(data["question"], answer["text"])
        marks = [
            dict(zip(("dimension", "rationale", "score"), (name, *_mark(name, seen)), strict=True)) for name in names
        ]
        judged.append({"answer": answer["id"], "marks": marks})
    return {"answers": judged}


def _mark(dimension: str, seen: Look) -> tuple[str, int]:
    rules = {
        "reasoning_correctness": reasoning,
        "logical_consistency": consistency,
        "relevance": relevance,
        "factual_accuracy": accuracy,
    }
    if dimension not in rules:
        return "The stand-in has no rule for this dimension.", 3
    score, rationale = rules[dimension](seen)
    return rationale, score


def reasoning(seen: Look) -> Mark:
    """Is working shown, is it right, does it begin where carries are known, is it whole?"""
    if not seen.steps:
        return 1, "No working is shown before the answer, so nothing can be checked."
    if wrong := next((step for step in seen.steps if not step.right), None):
        return 2, f"Line {wrong.line} says {wrong.text}, which is wrong."
    if _starts_at_front(seen):
        return 2, "The working starts from the front, where nothing is known yet of what comes over from the back."
    if forgotten := _forgotten_carry(seen):
        return 2, f"Line {forgotten.line} says {forgotten.text}, but forgets what line {forgotten.line - 1} carries."
    if missing := _missing(seen):
        return 3, missing
    return 5, "Every step is shown, and each one is right."


def consistency(seen: Look) -> Mark:
    """Does the answer follow from the last step?"""
    if seen.answer is None:
        return 2, "No final answer is given that could follow from the working."
    if not seen.steps:
        return 2, "The answer stands alone: nothing leads up to it."
    if _missing(seen):
        return 3, "The answer follows only in part: steps are missing between the working and it."
    if not _agrees(seen):
        return 2, f"The answer {seen.answer[:40]} does not follow from the last step, {seen.steps[-1].text}."
    return 5, "The answer follows from the steps."


def relevance(seen: Look) -> Mark:
    """Is there an answer, where one looks for it?"""
    if seen.answer is None:
        return 1, "There is no line that gives the final answer after 'Answer:'."
    if not seen.answer:
        return 1, "Nothing stands after 'Answer:'."
    return 5, "The final answer stands where one looks for it."


def accuracy(seen: Look) -> Mark:
    """Are the figures that are stated true?"""
    if not seen.steps:
        return 3, "No figures are stated beside the answer, so there is little to check."
    wrong = sum(not step.right for step in seen.steps)
    if wrong:
        return (3 if wrong * 4 <= len(seen.steps) else 2), f"{wrong} of {len(seen.steps)} stated figures are wrong."
    return 5, "Every stated figure is true."


def _missing(seen: Look) -> str:
    """What the working leaves out, in words, or ""."""
    if _is_turning(seen.question):
        word, covered = _word(seen.question), sum(len(step.numbers[0]) for step in seen.steps)
        return f"The working covers {covered} of {len(word)} letters; steps are missing." if covered < len(word) else ""
    sizes = [len(number) for number in _numbers(seen.question)]
    done = len(seen.steps)
    if len(sizes) < 2 or done >= _needed(seen.question, sizes):
        return ""
    if re.search(r"[*×]", seen.question):
        return f"Only {done} of the single products are worked out; steps are missing."
    return f"The working stops before the {PLACES[min(done, len(PLACES) - 1)]}; steps are missing."


def _needed(question: str, sizes: Sequence[int]) -> int:
    """Steps that written working takes: a line a column, or one a pair of digits in a product."""
    return sizes[0] * sizes[1] if re.search(r"[*×]", question) else max(sizes)


def _starts_at_front(seen: Look) -> bool:
    first = seen.steps[0].numbers
    if _is_turning(seen.question):
        word = _word(seen.question)
        return len(first[0]) < len(word) and word.startswith(first[0].lower()) and not word.endswith(first[0].lower())
    if any("?" in step.text for step in seen.steps):
        return True
    asked = _numbers(seen.question)
    if len(first) != len(asked) or any(len(part) >= len(whole) for part, whole in zip(first, asked, strict=True)):
        return False
    ends = Counter(number[-1] for number in asked), Counter(number[0] for number in asked)
    return Counter(first) == ends[1] != ends[0]


def _forgotten_carry(seen: Look) -> Step | None:
    """In written sums: a column that does not take what the column before it hands on."""
    if _is_turning(seen.question) or re.search(r"[*×]", seen.question):
        return None
    return next((step for before, step in pairwise(seen.steps) if _is_column(before) and _drops(before, step)), None)


def _is_column(step: Step) -> bool:
    """One digit from each number, the upper one perhaps with a borrowed ten, and perhaps what came over."""
    return len(step.numbers) in (2, 3) and int(step.numbers[0]) < 20 and all(len(n) == 1 for n in step.numbers[1:])


def _drops(before: Step, step: Step) -> bool:
    if not _is_column(step):
        return False
    handed = int(int(before.numbers[0]) > 9) if "-" in before.text else int(before.result) // 10
    return handed != (int(step.numbers[2]) if len(step.numbers) == 3 else 0)


def _agrees(seen: Look) -> bool:
    """Written working ends with the answer, or with its first digits; turned letters make the answer up, in order."""
    answer = re.sub(r"[\s,.\-]", "", seen.answer or "").lower()
    if _is_turning(seen.question):
        return answer == "".join(step.result for step in seen.steps).lower()
    last = seen.steps[-1].result.lstrip("-0")
    return answer == last or (answer.startswith(last) and answer.endswith(seen.steps[0].result[-1]))


def _word(question: str) -> str:
    return (re.findall(r"[A-Za-z]+", question) or [""])[-1].lower()


# ── rewriting ─────────────────────────────────────────────────────────────────────────────────────────────────────

Need = Literal["working", "whole", "order", "check", "answer"]
SIGNS: dict[Need, str] = {
    "working": r"no working|stands alone|nothing leads",
    "whole": r"steps are missing",
    "order": r"from the front",
    "check": r"is wrong|are wrong|forgets|does not follow",
    "answer": r"after 'Answer:'|no final answer",
}
"""By which words of a rationale each need is known."""
DIAGNOSES: dict[Need, str] = {
    "working": "The instruction lets the answer come without any working; it should ask for written steps.",
    "whole": "The working breaks off early; the instruction should ask for all of it.",
    "order": "The working starts at the wrong end; the instruction should say where to begin.",
    "check": "Single steps go wrong; the instruction should ask for small steps and a look back at each.",
    "answer": "The final answer is hard to find; the instruction should say where it belongs.",
}
VERBS = ("Write out", "Work through", "Go through", "Set down", "Put down", "Take down")
OBJECTS = ("the calculation", "the whole problem", "the problem", "every part of it", "the way to the answer")
MANNERS = ("step after step", "one line per step", "a line at a time", "line after line", "in small written steps")
ENDINGS: dict[Need, tuple[str, ...]] = {
    "working": ("", " before giving the answer", ", then close with the answer", ", and answer at the very end"),
    "whole": (", up to the very last one", " until nothing is left", ", leaving no step out", ", down to the end"),
    "order": (", beginning at the back", ", beginning with the last digit or letter", ", from the back to the front"),
    "check": (", looking back at each line", ", and make sure of every line", ", checking each one as it is written"),
    "answer": (", and close with a line 'Answer:'", ", and write the result after 'Answer:'"),
}
_WORKING = re.compile(r"\b(steps?|working|rough work|notes?|pieces?|stages?)\b", re.IGNORECASE)
_ALL, _SEVERAL = (
    re.compile(rf"\b({words})\b", re.IGNORECASE) for words in ("every|each|all|whole", "two|three|four|some")
)
_JINJA = re.compile(r"(\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\})", re.DOTALL)


def rewrite(data: dict[str, Any], seed: str, *, again: bool = False) -> dict[str, Any]:
    """A template's text with a new instruction for what its worst answers need most; one `seed`, one reply.

    Where working is what they lack and `data` names choices, a setting moves to words that ask for more of it; then every
    third time the text stays as it is, but not where it is asked for `again`.
    """
    chance = random.Random(seed)
    need = _need(data.get("worst", []), chance)
    old = data["template"]
    choices = [sentence for sentence in instructions(need) if sentence not in old]
    said = {"diagnosis": DIAGNOSES[need], "text": with_instruction(old, chance.choice(choices))}
    if "choices" not in data:
        return said
    moves = more_working(data, chance) if need in ("working", "whole") else []
    stays = moves and not again and chance.randrange(3) == 0
    return said | {"settings": moves, "text": old if stays else said["text"]}


def more_working(data: dict[str, Any], chance: random.Random) -> list[dict[str, str]]:
    """The one setting that asks for more working than now by the most, as [{"name", "label"}]; [] where none does."""
    found: list[tuple[int, str, str]] = []
    for name, old in data["settings"]:
        texts = data.get("choice_texts", {}).get(name, {})
        asks = {label: _working_asked(texts.get(label, label)) for label in data["choices"].get(name, ())}
        most = max(asks.values(), default=0)
        found += [(most - asks.get(old, 0), name, label) for label, much in asks.items() if much == most]
    gain = max((gain for gain, *_ in found), default=0)
    best = [{"name": name, "label": label} for more, name, label in found if more == gain > 0]
    return [chance.choice(best)] if best else []


def _working_asked(words: str) -> int:
    """How much working a setting's words ask for: none, a piece of it, more than one, all."""
    if not _WORKING.search(words):
        return 0
    return 3 if _ALL.search(words) else 2 if _SEVERAL.search(words) else 1


def instructions(need: Need) -> list[str]:
    """Every instruction that the stand-in can write for a need."""
    parts = product(VERBS, OBJECTS, MANNERS, ENDINGS[need])
    return [f"{verb} {thing} {manner}{ending}." for verb, thing, manner, ending in parts]


def with_instruction(text: str, instruction: str) -> str:
    """`text` with its sentences of plain words replaced by `instruction`; placeholders, blocks and labels stay.

    A sentence that says where the answer goes stays too.
    """
    pieces, depth, placed = _JINJA.split(text), 0, False
    for place, piece in enumerate(pieces):
        if piece.startswith("{%"):
            depth += _opens(piece)
        if depth or _JINJA.fullmatch(piece):
            continue
        pieces[place], placed = _replaced(piece, instruction, placed)
    new = "".join(pieces)
    head = new.split("\n", 1)[0]
    gap = " " if "{{" in head and not re.search(r"\b(question|examples)\b", head) else "\n\n"
    return new if placed else f"{instruction}{gap}{new}"


def _replaced(piece: str, instruction: str, placed: bool) -> tuple[str, bool]:
    """The first sentence becomes the instruction, unless one is in place already; further ones go."""
    kept: list[str] = []
    for part in re.split(r"(?<=[.!?])(?=\s)|(?<=\n)", piece):
        if not _is_sentence(part):
            kept.append(part)
        elif not placed:
            blank = part[: len(part) - len(part.lstrip())]
            kept.append(blank + instruction + part[len(part.rstrip()) :])
            placed = True
        elif part.endswith("\n"):
            kept.append("\n")
    return "".join(kept), placed


def _is_sentence(part: str) -> bool:
    """Three words or more, or words with a full stop; `Question:` is a label, and half a sentence before a placeholder
    belongs to it."""
    words, end = part.split(), part.rstrip()[-1:]
    if not words or "answer:" in part.lower():
        return False
    return end in ".!?" or (len(words) > 2 and (end == ":" or part.endswith("\n")))


def _opens(statement: str) -> int:
    word = statement.strip("{}%-+ \n").split(" ")[0]
    return -1 if word.startswith("end") else int(word in ("if", "for", "filter", "with", "macro", "call", "block"))


def _need(worst: Sequence[dict[str, Any]], chance: random.Random) -> Need:
    """The need that the worst answers' rationales name most often; at a tie, or where none is named, by chance."""
    words = [e["rationale"] for one in worst for e in one["feedback"] if e["score"] is not None and e["score"] < 1]
    counts: dict[Need, int] = {n: sum(bool(re.search(sign, said, re.I)) for said in words) for n, sign in SIGNS.items()}
    most = max(counts.values())
    return chance.choice([need for need, count in counts.items() if count == most])
