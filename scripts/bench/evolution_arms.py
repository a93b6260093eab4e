"""The searches that are compared on simulated worlds: each is (world, budget, seed) → Outcome."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from evolution_blind import halving, random_search
from evolution_gepa import DEFAULT, TUNED, gepa
from evolution_meter import Meter, Outcome
from evolution_reflector import SimOracle
from evolution_worlds import World

from grpo_ray.optimize import BLIND, BLIND_PLAN, EVOLUTION, PLAN, optimize_prompts
from grpo_ray.recipe import Weighted
from grpo_ray.types import Task

REWRITES = (Weighted(name="rewrite", weight=3.0),)
Arm = Callable[[World, int, int], Outcome]


def ours(world: World, budget: int, seed: int, **settings: Any) -> Outcome:
    """`optimize_prompts` as anybody would call it; `settings` are its keyword arguments."""
    meter, oracle = Meter(world, budget), SimOracle(world, seed)
    numbers = {task.id: number for number, task in enumerate(world.tasks)}

    def evaluator(candidate: Mapping[str, str], task: Task) -> tuple[float, Mapping[str, str]]:
        score, said = meter.roll(candidate["text"], numbers[task.id])
        return score, {"feedback": said, "answer": "right" if score > 0.5 else "wrong"}

    found = asyncio.run(
        optimize_prompts(
            [world.seed_template()], world.tasks, evaluator, budget=budget, oracle=oracle, seed=seed, **settings
        )
    )
    return Outcome(found.text, meter.spent, oracle.reflector.replies)


ABLATIONS: dict[str, dict[str, Any]] = {
    "ours, no surrogate": {"evolution": replace(EVOLUTION, surrogate=False)},
    "ours, no reflection": {"evolution": BLIND, "plan": BLIND_PLAN},
    "ours, tasks not paired": {"plan": replace(PLAN, tasks=10, templates=1)},
    "ours, no race": {"final": 0.0, "finalists": 1},
    "ours, no draws": {"evolution": replace(EVOLUTION, heat=0.0)},
    "ours, recombining too": {"evolution": replace(EVOLUTION, mutations=(*REWRITES, Weighted(name="recombine")))},
    "ours, crossing too": {"evolution": replace(EVOLUTION, mutations=(*REWRITES, Weighted(name="crossover")))},
}
"""Name of an arm, which begins with "ours" → what it gives `optimize_prompts` beside what `ours` gives it."""
ARMS: dict[str, Arm] = {
    "random": random_search,
    "halving": halving,
    "gepa default": partial(gepa, **DEFAULT),
    "gepa tuned": partial(gepa, **TUNED),
    "ours": ours,
}
EXTRA: dict[str, Arm] = {
    "gepa default, overshooting": partial(gepa, **DEFAULT, overshoot=True),
    "gepa tuned, overshooting": partial(gepa, **TUNED, overshoot=True),
    **{name: partial(ours, **settings) for name, settings in ABLATIONS.items()},
}
"""Arms that run only when they are named."""


def chosen(names: Sequence[str]) -> dict[str, Arm]:
    """The arms of those names; all of ARMS for none."""
    return {name: (ARMS | EXTRA)[name] for name in names} if names else ARMS
