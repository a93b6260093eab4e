"""Any generator of reasoning_gym, by name and parameters, checked by reasoning_gym's own scorer."""

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from grpo_ray.answers import after_mark, final_answer
from grpo_ray.canonical import canonical, short
from grpo_ray.errors import ConfigError
from grpo_ray.registry import hint
from grpo_ray.types import ANY, Task

CORRECT = 0.99
"""reasoning_gym gives up to 0.5 for wrong or badly written answers; only what it calls right counts."""
OURS = ("seed", "size")


def load_tasks(
    *, dataset: str, size: int, seed: int = 0, task_type: str = ANY, parameters: Mapping[str, Any] | None = None
) -> tuple[Task, ...]:
    """`size` tasks of the generator `dataset`; `parameters` are its own. Raises ConfigError naming what is wrong."""
    chosen = dict(parameters or {})
    _check(dataset, size, chosen)
    try:
        made = _made(dataset, size, seed, canonical(chosen))
        entries = [made[index] for index in range(size)]
    except (AssertionError, TypeError, ValueError, KeyError, AttributeError) as fault:
        raise ConfigError(f"reasoning_gym {dataset!r} refuses {chosen}: {fault or type(fault).__name__}") from fault
    origin = {"dataset": dataset, "size": size, "seed": seed, "parameters": chosen}
    return tuple(
        Task(
            id=short("t", "reasoning_gym", dataset, entry["question"], index, seed, chosen),
            question=entry["question"],
            answer=None if entry["answer"] is None else str(entry["answer"]),
            task_type=task_type,
            verifier="reasoning_gym",
            metadata={**origin, "index": index},
        )
        for index, entry in enumerate(entries)
    )


def verify(answer: str, task: Task) -> float:
    """1 where reasoning_gym scores the final answer as right (at least `CORRECT`), with or without a full stop; else 0."""
    origin = task.metadata
    made = _made(origin["dataset"], origin["size"], origin["seed"], canonical(origin["parameters"]))
    entry = _entry(origin["dataset"], origin["size"], origin["seed"], canonical(origin["parameters"]), origin["index"])
    if entry["question"] != task.question:
        raise ValueError(f"this reasoning_gym makes another question than that of task {task.id}; was it upgraded?")
    said = final_answer(answer)
    whole = [after_mark(answer)] if "\n" in (task.answer or "") else []  # a grid, a board: more than one line
    tries = dict.fromkeys((said, said.removesuffix("."), *whole))
    return float(any(made.score_answer(one, entry) >= CORRECT for one in tries))


@lru_cache(maxsize=64)
def _made(dataset: str, size: int, seed: int, parameters: str) -> Any:
    return reasoning_gym.create_dataset(dataset, size=size, seed=seed, **json.loads(parameters))


@lru_cache(maxsize=4096)
def _entry(dataset: str, size: int, seed: int, parameters: str, index: int) -> dict[str, Any]:
    """Made again from its index, because some scorers need types that JSON can't carry."""
    return _made(dataset, size, seed, parameters)[index]


def _check(dataset: str, size: int, parameters: dict[str, Any]) -> None:
    """All that can be said about the settings before anything is made."""
    if dataset not in DATASETS:
        raise ConfigError(f"reasoning_gym has no dataset {dataset!r}{hint(dataset, sorted(DATASETS))}")
    if size < 1:
        raise ConfigError(f"tasks 'reasoning_gym': size is {size}; at least 1 is needed")
    known = [field.name for field in fields(DATASETS[dataset][1]) if field.name not in OURS]
    unknown = [name for name in parameters if name not in known]
    if unknown:
        lines = (f"reasoning_gym {dataset!r} has no parameter {name!r}{hint(name, known)}" for name in unknown)
        raise ConfigError("\n".join(lines))
