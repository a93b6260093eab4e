"""The number an answer comes to, against the reference's, exactly or within a tolerance."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from grpo_ray.answers import marked_answer, spoken
from grpo_ray.errors import ConfigError
from grpo_ray.types import Task

Percent = Literal["either", "hundredths", "ignored"]
LONGEST = 400
"""Characters of a number."""
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_POWER = re.compile(r"\s*(?:×|·|\*|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?([+-]?\d{1,3})\}?")
_NUMBER = re.compile(
    r"(?<![\w.])([+-]?)(\d+(?:\.\d+)?|\.\d+)(e[+-]?\d{1,3}(?!\d))?(?:\s*/\s*(\d+(?:\.\d+)?))?(?:\s*\\?(%))?"
)
_APART = re.compile(r"(?<![\d.])\d{1,3}(?:[, \u00a0\u202f'’_]\d{3})+(?!\d)")
_APART_COMMA = re.compile(r"(?<![\d,])\d{1,3}(?:[. \u00a0\u202f'’_]\d{3})+(?!\d)")
_UNIT = re.compile(r"\s*([^\W\d_]+|°[^\W\d_]?)")


def verify(
    answer: str,
    task: Task,
    *,
    absolute: float = 0.0,
    relative: float = 0.0,
    percent: Percent = "either",
    decimal_comma: bool = False,
    units: Sequence[str] | None = None,
) -> float:
    """1 where the number of the marked answer (after `Answer:`, in `\\boxed{}`; else the text's last) is right; else 0.

    Right is |said - reference| <= max(absolute, relative * |reference|), in exact arithmetic. Thousands may be apart
    (1,234 1 234 1'234), fractions are read (3/4, \\frac{3}{4}), and so is 1.5e3 or 1.5 × 10^3; `decimal_comma` reads
    1.234,5 as continental Europe does. `percent`: 45% is 0.45 (hundredths), 45 (ignored), or either. With `units`,
    a word that follows the number must be one of them; without, it is ignored. Raises ValueError where the reference
    holds no number.
    """
    reference = readings(task.answer or "", percent, decimal_comma)
    if not reference:
        raise ValueError(f"the reference answer of task {task.id} holds no number")
    said = stated(answer)
    if units is not None and unit_after(said, decimal_comma) not in (None, *units):
        return 0.0
    pairs = [(one, other) for one in readings(said, percent, decimal_comma) for other in reference]
    return float(any(_near(one, other, absolute, relative) for one, other in pairs))


def check_settings(*, absolute: float = 0.0, relative: float = 0.0, **others: object) -> None:
    """Raise ConfigError for a tolerance below 0."""
    for name, value in (("absolute", absolute), ("relative", relative)):
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name} is {value}; a tolerance is 0 or more")


def stated(answer: str) -> str:
    """Where the number is looked for: the marked answer, the last `\\boxed{}`, or all that is said."""
    marked = marked_answer(answer)
    text = spoken(answer) if marked is None else marked
    boxed = _BOXED.findall(text) or _BOXED.findall(spoken(answer))
    return boxed[-1] if boxed else text


def readings(text: str, percent: Percent, decimal_comma: bool) -> list[Fraction]:
    """What the last number in the text may mean: none, one, or two where a percent sign can be read both ways."""
    found = _last(text, decimal_comma)
    if found is None:
        return []
    value = _value(found)
    if value is None or not found[5] or percent == "ignored":
        return [] if value is None else [value]
    return [value / 100] if percent == "hundredths" else [value / 100, value]


def unit_after(text: str, decimal_comma: bool) -> str | None:
    """The word right after the last number, if any."""
    text = plainly(text, decimal_comma)
    numbers = list(_NUMBER.finditer(text))
    following = _UNIT.match(text[numbers[-1].end() :]) if numbers else None
    return following[1] if following else None


def plainly(text: str, decimal_comma: bool) -> str:
    """The text with its numbers written the plain way: a point, no thousands apart, fractions with a slash, 1e3."""
    text = text.replace("−", "-").replace("\\,", " ").replace("{,}", ",")
    text = _POWER.sub(r"e\1", _FRACTION.sub(r"\1/\2", text))
    text = (_APART_COMMA if decimal_comma else _APART).sub(lambda found: re.sub(r"\D", "", found[0]), text)
    return re.sub(r"(?<=\d),(?=\d)", ".", text) if decimal_comma else text


def _last(text: str, decimal_comma: bool) -> re.Match[str] | None:
    return next(iter(reversed(list(_NUMBER.finditer(plainly(text, decimal_comma))))), None)


def _value(found: re.Match[str]) -> Fraction | None:
    sign, digits, exponent, below = found[1], found[2], found[3] or "", found[4]
    if len(found[0]) > LONGEST or (below and not Fraction(below)):
        return None
    value = Fraction(sign + digits + exponent)
    return value / Fraction(below) if below else value


def _near(said: Fraction, reference: Fraction, absolute: float, relative: float) -> bool:
    return abs(said - reference) <= max(Fraction(absolute), Fraction(relative) * abs(reference))
