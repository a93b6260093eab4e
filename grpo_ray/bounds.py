"""What the numbers of a config may be, and which of them go together."""

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Any

from grpo_ray.recipe import Config, OracleSpec, Recipe
from grpo_ray.registry import hint

Bound = tuple[Callable[[Any], bool], str]


def _at_least(low: float) -> Bound:
    return lambda value: low <= value < float("inf"), f"{low} or more"


_POSITIVE: Bound = (lambda value: 0 < value < float("inf"), "above 0")
_SHARE: Bound = (lambda value: 0 < value <= 1, "above 0, at most 1")
_PART: Bound = (lambda value: 0 <= value <= 1, "0 or more, at most 1")

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
    "evolution.discount": _SHARE,
    "evolution.heat": _at_least(0),
    "trainers": _at_least(1),
    "train_every": _at_least(1),
    "gate.tasks": _at_least(0),
    "gate.z": _at_least(0),
    "trust.audit": _PART,
    "trust.canaries": _PART,
    "trust.max_false_positives": _PART,
    "trust.min_alpha": (lambda value: -1 <= value <= 1, "between -1 and 1"),
    "placement.generators": _at_least(1),
    "placement.judges": _at_least(1),
    "placement.control_port": (lambda value: 0 <= value <= 65535, "a port, 0 … 65535"),
}
"""Dotted path → (what makes a value good, in words); a value of None is always good."""
OF_AN_ORACLE: Mapping[str, Bound] = {
    "concurrency": _at_least(1),
    "timeout_s": _POSITIVE,
    "deadline_s": _POSITIVE,
    "max_tokens": _at_least(1),
    "temperature": (lambda value: 0 <= value <= 5, "between 0 and 5"),
    "max_usd": _POSITIVE,
    "requests_per_minute": _POSITIVE,
    "tokens_per_minute": _POSITIVE,
    "hedge": (lambda value: value == 0 or 1 < value < float("inf"), "0 (never), or above 1"),
    "usd_per_million": (lambda prices: all(0 <= price < float("inf") for price in prices), "prices of 0 or more"),
    "base_url": (
        lambda url: url == "bundled" or url.startswith(("http://", "https://")),
        "bundled or http(s)://HOST…/v1",
    ),
}
"""The same for the keys of `oracle`, and of each of `oracles`."""


def out_of_bounds(config: Config) -> Iterator[str]:
    """Every value that is out of its bounds, or does not go with the others, with its dotted path."""
    for path, (good, words) in BOUNDS.items():
        yield from _outside(path, _value(config, path), good, words)
    for name, oracle in [("oracle", config.recipe.oracle), *_further(config.recipe)]:
        for key, (good, words) in OF_AN_ORACLE.items():
            yield from _outside(f"{name}.{key}", getattr(oracle, key), good, words)
    yield from _inconsistent(config.recipe)


def _outside(path: str, value: Any, good: Callable[[Any], bool], words: str) -> Iterator[str]:
    if value is not None and not good(value):
        yield f"{path}: {value} is out of bounds; it must be {words}"


def _further(recipe: Recipe) -> list[tuple[str, OracleSpec]]:
    return [(f"oracles.{name}", oracle) for name, oracle in recipe.oracles.items()]


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
    for place, reward in enumerate(recipe.rewards):
        for key, value in (("cap", reward.cap), ("gate", reward.gate)):
            yield from _outside(f"rewards.{place}.{key}", value, isfinite, "a finite number")
    if recipe.evolution.children and recipe.plan.templates < 2:
        yield "plan.templates: templates are told apart on common tasks; it must be 2 or more, or evolution.children 0"
    yield from _alike(recipe)
    asked = {f"judges.{place}.oracle": judge.oracle for place, judge in enumerate(recipe.judges)}
    for path, name in {**asked, "trust.second": recipe.trust.second}.items():
        if name and name not in recipe.oracles:
            yield f"{path}: there is no {name!r} among oracles{hint(name, list(recipe.oracles))}"


def _alike(recipe: Recipe) -> Iterator[str]:
    """Oracles that would share their replies: these are known by the model and how it is asked, never by URL."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, one in [("oracle", recipe.oracle), *_further(recipe)]:
        key = (one.model, one.temperature, one.reasoning_effort, one.max_tokens)
        if key in seen:
            yield f"{name}: asks {one.model!r} as {seen[key]} does, so they would be one; another model, or temperature"
        seen.setdefault(key, name)
