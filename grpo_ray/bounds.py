"""What the numbers of a config may be, and which of them go together."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from grpo_ray.recipe import Config, Recipe

Bound = tuple[Callable[[Any], bool], str]


def _at_least(low: float) -> Bound:
    return lambda value: low <= value < float("inf"), f"{low} or more"


_POSITIVE: Bound = (lambda value: 0 < value < float("inf"), "above 0")
_SHARE: Bound = (lambda value: 0 < value <= 1, "above 0, at most 1")

BOUNDS: Mapping[str, Bound] = {
    "seed": _at_least(0),
    "steps": _at_least(0),
    "lag": _at_least(0),
    "splits.train": _at_least(1),
    "splits.validation": _at_least(1),
    "splits.heldout": _at_least(1),
    "sampling.group_size": (lambda value: value >= 2, "2 or more, for rollouts are compared within their group"),
    "sampling.temperature": (lambda value: 0 < value <= 5, "above 0, at most 5; at 0 a group's rollouts are all alike"),
    "sampling.top_p": _SHARE,
    "sampling.top_k": _at_least(0),
    "sampling.min_p": (lambda value: 0 <= value < 1, "0 (off) or more, below 1"),
    "sampling.repetition_penalty": (lambda value: 0 < value <= 10, "above 0, at most 10; 1 is off"),
    "sampling.stop": (all, "a list of texts, none of them empty"),
    "sampling.max_tokens": _at_least(1),
    "sampling.slots": (lambda value: value == "auto" or value >= 1, "1 or more, or auto"),
    "plan.tasks": _at_least(1),
    "plan.templates": _at_least(1),
    "plan.wave": _at_least(1),
    "plan.refill": _at_least(0),
    "evolution.size": _at_least(1),
    "evolution.children": _at_least(0),
    "evolution.min_trials": _at_least(1),
    "evolution.discount": _SHARE,
    "trainers": _at_least(1),
    "gate.tasks": _at_least(0),
    "gate.z": _at_least(0),
    "oracle.concurrency": _at_least(1),
    "oracle.timeout_s": _POSITIVE,
    "oracle.max_tokens": _at_least(1),
    "oracle.temperature": (lambda value: 0 <= value <= 5, "between 0 and 5"),
    "oracle.max_usd": _POSITIVE,
    "placement.generators": _at_least(1),
    "placement.judges": _at_least(1),
    "placement.control_port": (lambda value: 0 <= value <= 65535, "a port, 0 … 65535"),
}
"""Dotted path → (what makes a value good, in words); a value of None is always good."""


def out_of_bounds(config: Config) -> Iterator[str]:
    """Every value that is out of its bounds, or does not go with the others, with its dotted path."""
    for path, (good, words) in BOUNDS.items():
        value = _value(config, path)
        if value is not None and not good(value):
            yield f"{path}: {value} is out of bounds; it must be {words}"
    yield from _inconsistent(config.recipe)


def _value(config: Config, path: str) -> Any:
    value: Any = config if path.startswith("placement.") else config.recipe
    for key in path.split("."):
        value = getattr(value, key)
    return value


def _inconsistent(recipe: Recipe) -> Iterator[str]:
    if not recipe.tasks:
        yield "tasks: is empty; add at least one source of tasks"
    shares = {"rewards": recipe.rewards, "evolution.mutations": recipe.evolution.mutations}
    for path, parts in shares.items():
        wrong = [index for index, part in enumerate(parts) if not 0 <= part.weight < float("inf")]
        yield from (f"{path}.{index}.weight: {parts[index].weight} is out of bounds; 0 or more" for index in wrong)
        needed = path == "rewards" or recipe.evolution.children
        if needed and not wrong and not sum(part.weight for part in parts):
            yield f"{path}: needs at least one entry with a weight above 0"
    if recipe.evolution.children and recipe.plan.templates < 2:
        yield "plan.templates: templates are told apart on common tasks; it must be 2 or more, or evolution.children 0"
    if not all(0 <= price < float("inf") for price in recipe.oracle.usd_per_million):
        yield "oracle.usd_per_million: a price must be 0 or more"
    if not recipe.oracle.base_url.startswith(("http://", "https://")) and recipe.oracle.base_url != "bundled":
        yield f"oracle.base_url: expected bundled or http(s)://HOST…/v1, got {recipe.oracle.base_url!r}"
