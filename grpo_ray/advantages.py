"""Rewards made relative to others on the same task, for the weights. Templates are compared by `evolution/surrogate.py`."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from math import fsum
from statistics import fmean, stdev

from grpo_ray.blending import counted
from grpo_ray.recipe import Recipe
from grpo_ray.types import Lesson, ScoredGroup

EPSILON = 1e-4
"""Added to the standard deviation, as TRL's GRPOTrainer does."""


def with_advantages(groups: Sequence[ScoredGroup], recipe: Recipe) -> list[Lesson]:
    """One lesson a group of a step, in the groups' order; where nothing can be compared, every advantage is 0."""
    if recipe.aggregation == "normalize_then_sum":
        return _decoupled(groups, recipe)
    values = [[one.reward.value for one in group.rollouts] for group in groups]
    return [Lesson(*pair) for pair in zip(groups, _compared(values, groups, recipe), strict=True)]


def rivals(groups: Sequence[ScoredGroup], recipe: Recipe) -> list[list[int]]:
    """The places of the groups whose rollouts are compared together, by the recipe's `baseline`.

    Each group alone, or all groups of a task: a task's groups are those of several templates, and give one mean and one
    deviation for all of them, where each group keeps its own prompt (as in Fast-Slow Training, arXiv 2605.12484).
    """
    if recipe.baseline == "group":
        return [[place] for place in range(len(groups))]
    found: dict[str, list[int]] = defaultdict(list)
    for place, scored in enumerate(groups):
        found[scored.group.prompt.task.id].append(place)
    return list(found.values())


def _compared(
    values: Sequence[Sequence[float | None]], groups: Sequence[ScoredGroup], recipe: Recipe
) -> list[tuple[float, ...]]:
    """The values of each group's rollouts compared with their rivals'."""
    found: dict[int, tuple[float, ...]] = {}
    for places in rivals(groups, recipe):
        relative = iter(KINDS[recipe.advantages]([value for place in places for value in values[place]]))
        found |= {place: tuple(islice(relative, len(values[place]))) for place in places}
    return [found[place] for place in range(len(groups))]


def _decoupled(groups: Sequence[ScoredGroup], recipe: Recipe) -> list[Lesson]:
    """GDPO (arXiv 2601.05242): each part compared by itself, summed by weight, scaled over the step."""
    sums = [part_sums(*pair) for pair in zip(groups, part_advantages(groups, recipe), strict=True)]
    scale = step_scale([value for of in sums for value in of], recipe)
    return [
        Lesson(group, tuple(0.0 if value is None else value / scale for value in of))
        for group, of in zip(groups, sums, strict=True)
    ]


def part_advantages(groups: Sequence[ScoredGroup], recipe: Recipe) -> list[list[tuple[float, ...]]]:
    """For each rollout of each group, each of its parts compared by itself with its rivals', by the recipe's `advantages`."""
    tables = [counted([one.reward.parts for one in group.rollouts], recipe.rewards) for group in groups]
    columns = [
        _compared([[row[part] for row in rows] for rows in tables], groups, recipe)
        for part in range(len(recipe.rewards))
    ]
    return [list(zip(*parts, strict=True)) for parts in zip(*columns, strict=True)]


def part_sums(group: ScoredGroup, compared: Sequence[Sequence[float]]) -> list[float | None]:
    """S_i = Σ w·A_ik / Σ w over all parts, so that a missing part counts as average; None where the reward is missing."""
    return [
        None
        if one.reward.value is None
        else fsum(part.weight * value for part, value in zip(one.reward.parts, values, strict=True))
        / fsum(part.weight for part in one.reward.parts)
        for one, values in zip(group.rollouts, compared, strict=True)
    ]


def step_scale(sums: Sequence[float | None], recipe: Recipe) -> float:
    """What the sums of a step are divided by: std + 1e-4 for `standardized` (their mean is 0 already), else 1."""
    known = [value for value in sums if value is not None]
    return stdev(known) + EPSILON if recipe.advantages == "standardized" and len(known) > 1 else 1.0


def group_relative(rewards: Sequence[float | None]) -> tuple[float, ...]:
    """A_i = (r_i − mean) / (std + 1e-4), std with ddof 1 (DeepSeekMath, arXiv 2402.03300; TRL's GRPOTrainer).

    A missing reward takes no part in mean and std, and its advantage is 0. Fewer than two rewards, or all of them
    equal: zeros.
    """
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2:
        return (0.0,) * len(rewards)
    scale = stdev(known) + EPSILON
    return tuple(advantage / scale for advantage in centred(rewards))


def centred(rewards: Sequence[float | None]) -> tuple[float, ...]:
    """A_i = r_i − mean (Dr. GRPO, arXiv 2503.20783); missing, lone and equal rewards as `group_relative`."""
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2 or min(known) == max(known):
        return (0.0,) * len(rewards)
    mean = fmean(known)
    return tuple(0.0 if reward is None else reward - mean for reward in rewards)


def leave_one_out(rewards: Sequence[float | None]) -> tuple[float, ...]:
    """A_i = r_i − mean of the others' rewards (RLOO, arXiv 2402.14740); the rest as `group_relative`."""
    known = sum(reward is not None for reward in rewards)
    return tuple(known / max(1, known - 1) * advantage for advantage in centred(rewards))


KINDS: Mapping[str, Callable[[Sequence[float | None]], tuple[float, ...]]] = {
    "standardized": group_relative,
    "centred": centred,
    "leave_one_out": leave_one_out,
}
"""A recipe's `advantages`."""
