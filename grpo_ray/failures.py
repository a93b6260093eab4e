"""Why an answer did not pass, as far as that can be seen without a model: from its text, its end, and the verifiers."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from grpo_ray.answers import marked_answer, spoken
from grpo_ray.judges.heuristics import refusal, repetition
from grpo_ray.reports import VERIFIED
from grpo_ray.types import ScoredRollout, Task
from grpo_ray.verifiers.numeric import readings, stated

KINDS = (
    *("empty", "refusal", "repetition", "cut off", "no answer marked"),
    *("wrong number, near", "wrong number, far", "wrong answer", "low marks"),
)
"""The first that fits is told: a text that repeats itself is cut off too, but for that reason."""
REPEATING = 0.5
"""Below this score of `repetition` a text repeats itself."""
NGRAM = 4
NEAR = Fraction(1, 10)
"""A number is near where it is off by at most this share of the reference."""
EXCERPT = 300
"""Characters of an answer that an example shows."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One kind of failure among a number of rollouts, with the first answer that failed so."""

    kind: str
    count: int
    share: float
    """Of all rollouts that have a mark."""
    task: str
    example: str


def failures(failed: Sequence[tuple[Task, ScoredRollout]], rollouts: int, *, marks: bool) -> list[Failure]:
    """The kinds of failure among rollouts that did not pass, the most frequent first; `rollouts`: all that were marked.

    `marks`: whether answers are marked by `Answer:` here at all.
    """
    found: dict[str, list[tuple[Task, ScoredRollout]]] = {}
    for task, one in failed:
        found.setdefault(kind_of(one, task, marks=marks), []).append((task, one))
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), KINDS.index(item[0])))
    return [
        Failure(kind, len(some), len(some) / rollouts, some[0][0].id, some[0][1].rollout.text[:EXCERPT])
        for kind, some in ranked
    ]


def kind_of(one: ScoredRollout, task: Task, *, marks: bool = True) -> str:
    """One of KINDS, for an answer that did not pass."""
    text = one.rollout.text
    seen = {
        "empty": not spoken(text).strip(),
        "refusal": _score(one, "refusal", refusal(text)[0]) < 1,
        "repetition": _score(one, "repetition", repetition(text, NGRAM)[0]) < REPEATING,
        "cut off": one.rollout.finish_reason == "length",
        "no answer marked": marks and _score(one, "format", float(bool(marked_answer(text)))) == 0,
    }
    if (kind := next((kind for kind, is_so in seen.items() if is_so), None)) is not None:
        return kind
    return _wrong(text, task) if _said(one, VERIFIED) else "low marks"


def _score(one: ScoredRollout, dimension: str, own: float | None) -> float:
    """What a judge without a model said on the dimension, by the settings that people chose; else what is seen here."""
    return next((score for score in [*_said(one, dimension), own] if score is not None), 1.0)


def _said(one: ScoredRollout, dimension: str) -> list[float]:
    """The scores that judges without a model gave."""
    said = [e.score for e in one.evaluations if e.dimension == dimension and not e.model and not e.audit]
    return [score for score in said if score is not None]


def _wrong(text: str, task: Task) -> str:
    """How wrong an answer is, where the reference is a number and the answer holds one."""
    reference = _number(task.answer or "")
    said = readings(stated(text), "either", False)
    if reference is None or not said:
        return "wrong answer"
    off = min(abs(one - reference) for one in said)
    return "wrong number, near" if off <= NEAR * abs(reference) else "wrong number, far"


def _number(answer: str) -> Fraction | None:
    """The reference where it is a number and nothing else; words that hold a digit are none."""
    found = [] if any(letter.isalpha() for letter in answer) else readings(answer, "ignored", False)
    return found[0] if found else None
