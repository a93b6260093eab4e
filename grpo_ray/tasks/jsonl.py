"""Tasks of your own: one JSON object a line, with a question, perhaps an answer, and any further fields."""

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from grpo_ray.answers import final_answer
from grpo_ray.canonical import short
from grpo_ray.errors import ConfigError
from grpo_ray.types import ANY, Task

SHOWN = 20
OWN = "jsonl"
"""The verifier of this file, which needs an answer to compare with."""
"""Problems listed before the rest is only counted."""
LONGEST = 400
"""Characters of a number."""
_NUMBER = re.compile(r"[+-]?\d+/0*[1-9]\d*|[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?")


def load_tasks(
    *,
    path: str,
    question: str = "question",
    answer: str = "answer",
    task_type: str = ANY,
    verifier: str = OWN,
) -> tuple[Task, ...]:
    """The tasks of the file `path`; `question` and `answer` name the fields, all others become metadata.

    A task without an answer has no verifier. Raises ConfigError that lists every broken line.
    """
    tasks: list[Task] = []
    problems: dict[str, list[int]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            tasks.append(_task(line, question, answer, task_type, verifier))
        except ValueError as fault:
            problems.setdefault(str(fault), []).append(number)
    if problems:
        raise ConfigError("\n".join(_report(path, problems)))
    if not tasks:
        example = json.dumps({question: "What is 2 + 2?", answer: "4"}, ensure_ascii=False)
        raise ConfigError(f"{path} holds no tasks; write one JSON object a line, such as {example}")
    return tuple(tasks)


def verify(answer: str, task: Task) -> float:
    """1 where the final answer is the reference answer, as a number or letter by letter after `normal`; else 0."""
    if task.answer is None:
        raise ValueError(f"task {task.id} has no reference answer")
    said, right = normal(final_answer(answer)), normal(task.answer)
    one, other = number(said), number(right)
    return float(said == right if one is None or other is None else one == other)


def normal(text: str) -> str:
    """Without case, outer and repeated blanks, commas and a closing full stop."""
    return " ".join(text.casefold().replace(",", " ").split()).removesuffix(".").strip()


def number(text: str) -> Fraction | None:
    """The number that `text` is, exactly, with thousands apart or not, or as a fraction; None if it is none."""
    joined = re.sub(r"(?<=\d)\s(?=\d{3}(\D|$))", "", text).removeprefix("$").removesuffix("%").strip()
    joined = re.sub(r"\s*/\s*", "/", joined)
    if len(joined) > LONGEST or not _NUMBER.fullmatch(joined):
        return None
    return Fraction(joined)


def _report(path: str, problems: dict[str, list[int]]) -> list[str]:
    """One line a problem, with the first line it is found in; as many as SHOWN."""
    told = [
        f"{path}:{numbers[0]}: {fault}" + (f" (and {len(numbers) - 1} more such lines)" if numbers[1:] else "")
        for fault, numbers in problems.items()
    ]
    return told[:SHOWN] + ([f"… and {len(told) - SHOWN} more"] if len(told) > SHOWN else [])


def _lines(path: str) -> list[str]:
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as fault:
        raise ConfigError(f"can't read the task file {path}: {fault.strerror}") from fault
    try:
        return content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as fault:
        line = content[: fault.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 (byte {content[fault.start]:#04x}); save it as UTF-8") from fault


def _task(line: str, question: str, answer: str, task_type: str, verifier: str) -> Task:
    """Raises ValueError that says what is wrong with the line."""
    entry = _object(line)
    if question not in entry:
        raise ValueError(f"no field {question!r}; it has {', '.join(map(repr, entry)) or 'no fields'}")
    asked = entry.pop(question)
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError(f"{question!r} must be a text that is not empty, not {json.dumps(asked)[:60]}")
    right = entry.pop(answer, None)
    if isinstance(right, bool | dict | list):
        raise ValueError(f"{answer!r} must be a text or a number, not {json.dumps(right)[:60]}")
    reference = None if right is None else str(right)
    return Task(
        id=short("t", "jsonl", asked, entry),
        question=asked,
        answer=reference,
        task_type=task_type,
        verifier=verifier if reference is not None or verifier != OWN else None,
        metadata=entry,
    )


def _object(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError as fault:
        raise ValueError(f"not JSON: {fault.msg} at column {fault.colno}") from fault
    except RecursionError as fault:
        raise ValueError("nested too deeply") from fault
    if not isinstance(entry, dict):
        raise ValueError(f"a JSON object is needed, not {line.strip()[:60]}")
    return entry


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
