"""A regular expression that the answer must match. It runs in a process that can be killed, for some never end."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from grpo_ray.answers import final_answer, spoken
from grpo_ray.errors import ConfigError
from grpo_ray.types import Task


def verify(
    answer: str,
    task: Task,
    *,
    pattern: str | None = None,
    match: Literal["anywhere", "whole"] = "anywhere",
    text: Literal["said", "final"] = "said",
    ignore_case: bool = False,
) -> float:
    """1 where the pattern (the setting's, else the task's `metadata["pattern"]`) is found; else 0.

    It is looked for in all that is `said` (after a thinking model's thoughts) or in the `final` answer alone, anywhere
    or as the whole of it. Python's `re`, `.` matching line ends too. Raises ValueError where there is no pattern.
    """
    wanted = pattern if pattern is not None else task.metadata.get("pattern")
    if not isinstance(wanted, str):
        raise ValueError(f"task {task.id} has no metadata 'pattern', and the settings have none")
    compiled = re.compile(wanted, re.DOTALL | re.MULTILINE | (re.IGNORECASE if ignore_case else 0))
    looked_at = final_answer(answer) if text == "final" else spoken(answer).strip()
    return float(bool(compiled.fullmatch(looked_at) if match == "whole" else compiled.search(looked_at)))


def rationale(score: float, task: Task, settings: Mapping[str, Any]) -> str:
    """In words; there is no reference answer to speak of."""
    return "matches the pattern that is asked for" if score else "does not match the pattern that is asked for"


def check_settings(*, pattern: str | None = None, **others: object) -> None:
    """Raise ConfigError for a pattern that Python's `re` can't read."""
    try:
        re.compile(pattern or "")
    except re.error as fault:
        raise ConfigError(f"the pattern {pattern!r} is not a regular expression: {fault}") from fault
