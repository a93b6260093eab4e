"""Mathematical equality, by math-verify: 1/2 is 0.5 is \\frac{1}{2}, and {1,2} is {2,1}. An extra: `grpo-ray[math]`."""

import logging
from importlib import import_module
from importlib.util import find_spec

from grpo_ray.answers import marked_answer, spoken
from grpo_ray.errors import ConfigError
from grpo_ray.types import Task

INSTALL = "the verifier 'math' needs math-verify; install it here and on every node: pip install 'grpo-ray[math]'"
_MATH = import_module("math_verify") if find_spec("math_verify") else None
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at every call that its time limits are off


def verify(answer: str, task: Task, *, digits: int = 6, strict: bool = True) -> float:
    """1 where math-verify finds the answer equal to the reference; else 0, also for what it can't read.

    `digits` is how far decimals are compared; `strict` keeps variables and sets apart (math-verify's meaning of it).
    Its own time limits are signals, which need a main thread; here they are off, for the process can be killed.
    Raises ValueError where the reference can't be read, ConfigError without math-verify.
    """
    if _MATH is None:
        raise ConfigError(INSTALL)
    reference = _MATH.parse(_delimited(task.answer or ""), parsing_timeout=None)
    if not reference:
        raise ValueError(f"math-verify can't read the reference answer of task {task.id}")
    said = _MATH.parse(_looked_at(answer), parsing_timeout=None)
    return float(
        bool(said) and _MATH.verify(reference, said, float_rounding=digits, strict=strict, timeout_seconds=None)
    )


def check_settings(*, digits: int = 6, **others: object) -> None:
    """Raise ConfigError without math-verify, or for digits below 0."""
    if _MATH is None:
        raise ConfigError(INSTALL)
    if digits < 0:
        raise ConfigError(f"digits is {digits}; 0 or more are needed")


def _looked_at(answer: str) -> str:
    """The marked answer as a formula, unless something is boxed; else all that is said."""
    marked, said = marked_answer(answer), spoken(answer)
    return _delimited(marked) if marked is not None and "\\boxed" not in said else said


def _delimited(text: str) -> str:
    """As LaTeX that math-verify looks at: it reads formulas only between delimiters, and plain numbers anywhere."""
    return text if "$" in text or "\\(" in text or "\\boxed" in text or "\\[" in text else f"${text}$"
