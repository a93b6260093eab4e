"""How much better than what a run began with each of its templates is, by all that is known now: one scale for all times.

A member's fitness is against those it lives beside, and they get better too.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from grpo_ray.evolution.knowledge import able, each_kind, gather
from grpo_ray.recipe import Recipe
from grpo_ray.trials import Trial
from grpo_ray.types import Member, Population, Template


def gains(
    templates: Sequence[Template], first: Collection[str], trials: Sequence[Trial], step: int, recipe: Recipe
) -> dict[str, tuple[float, float]]:
    """Template id → mean and standard deviation of its gain on the mean of the `first`, in the reward's unit.

    Every trial counts alike, however old. A template that fits several task types gets the mean over them; one that fits
    none with trials is not there.
    """
    ever = replace(recipe, evolution=replace(recipe.evolution, discount=1.0))
    known = gather(templates, trials, step, ever)
    population = Population(tuple(Member(template) for template in templates))
    levels: dict[str, list[np.ndarray]] = defaultdict(list)
    for kind, values in each_kind(population, known).items():
        names = [member.template.id for member in able(population, kind)]
        start = [place for place, name in enumerate(names) if name in first] or list(range(len(names)))
        above = values - values[:, start].mean(axis=1, keepdims=True)
        for name, column in zip(names, above.T, strict=True):
            levels[name].append(column)
    together = {name: np.mean(some, axis=0) for name, some in levels.items()}
    return {name: (round(float(one.mean()), 6), round(float(one.std()), 6)) for name, one in together.items()}
