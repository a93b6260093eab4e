"""Rewards made relative: inside a group for the weights, between templates on the same tasks for the population."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum
from statistics import fmean, stdev

import numpy as np

from grpo_ray.blending import counted
from grpo_ray.recipe import Recipe
from grpo_ray.types import Lesson, ScoredGroup

EPSILON = 1e-4
"""Added to the standard deviation, as TRL's GRPOTrainer does."""

Cell = tuple[str, str]
"""(template id, task id)"""


def with_advantages(groups: Sequence[ScoredGroup], recipe: Recipe) -> list[Lesson]:
    """One lesson a group of a step, in the groups' order; where nothing can be compared, every advantage is 0."""
    if recipe.aggregation == "normalize_then_sum":
        return _decoupled(groups, recipe)
    relative = KINDS[recipe.advantages]
    return [Lesson(group, relative([one.reward.value for one in group.rollouts])) for group in groups]


def _decoupled(groups: Sequence[ScoredGroup], recipe: Recipe) -> list[Lesson]:
    """GDPO (arXiv 2601.05242): each part compared inside the group, summed by weight, scaled over the step."""
    sums = [part_sums(group, part_advantages(group, recipe)) for group in groups]
    scale = step_scale([value for of in sums for value in of], recipe)
    return [
        Lesson(group, tuple(0.0 if value is None else value / scale for value in of))
        for group, of in zip(groups, sums, strict=True)
    ]


def part_advantages(group: ScoredGroup, recipe: Recipe) -> list[tuple[float, ...]]:
    """For each rollout, each of its parts compared by itself with the group's, by the recipe's `advantages`."""
    rows = counted([one.reward.parts for one in group.rollouts], recipe.rewards)
    columns = [KINDS[recipe.advantages](column) for column in zip(*rows, strict=True)]
    return list(zip(*columns, strict=True))


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


def template_relative(groups: Sequence[ScoredGroup]) -> dict[str, list[float]]:
    """Template id → one number for each task it met: its mean reward there minus the mean of the others'.

    So a task's difficulty cancels. Where one of the others did not meet the task, least squares on task + template
    says what it would have got; only templates that tasks connect are compared, and only within one task type.
    A task that one template alone met is no evidence. Rewards' unit; ordered by task id, whatever the groups' order.
    """
    kinds: dict[str, dict[Cell, float]] = defaultdict(dict)
    for (kind, template, task), mean in sorted(_means(groups).items()):
        kinds[kind][template, task] = mean
    found: dict[str, list[float]] = defaultdict(list)
    for cells in kinds.values():
        for component in _connected(_shared(cells)):
            for template, value in _compare(component):
                found[template].append(value)
    return dict(found)


def _means(groups: Iterable[ScoredGroup]) -> dict[tuple[str, str, str], float]:
    """(task type, template id, task id) → mean of the rewards that are there."""
    rewards: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for scored in groups:
        prompt = scored.group.prompt
        known = [one.reward.value for one in scored.rollouts if one.reward.value is not None]
        if known:
            rewards[prompt.task.task_type, prompt.template_id, prompt.task.id] += known
    return {key: fmean(values) for key, values in rewards.items()}


def _shared(cells: Mapping[Cell, float]) -> dict[Cell, float]:
    """The cells of tasks that at least two templates met."""
    met: dict[str, int] = defaultdict(int)
    for _, task in cells:
        met[task] += 1
    return {cell: mean for cell, mean in cells.items() if met[cell[1]] > 1}


def _connected(cells: Mapping[Cell, float]) -> list[dict[Cell, float]]:
    """The cells, cut into sets whose templates are linked by common tasks."""
    parts: list[tuple[set[str], set[str]]] = []
    for template, task in cells:
        touching = [part for part in parts if template in part[0] or task in part[1]]
        merged = ({template}.union(*(part[0] for part in touching)), {task}.union(*(part[1] for part in touching)))
        parts = [*(part for part in parts if part not in touching), merged]
    return [{cell: mean for cell, mean in cells.items() if cell[0] in part[0]} for part in parts]


def _compare(cells: Mapping[Cell, float]) -> list[tuple[str, float]]:
    """(template id, advantage) for each cell of one connected set, by task, then template."""
    templates = sorted({template for template, _ in cells})
    tasks = sorted({task for _, task in cells})
    expected = {} if len(cells) == len(templates) * len(tasks) else _expected(cells, templates, tasks)
    every = {**expected, **cells}
    totals = {task: sum(every[template, task] for template in templates) for task in tasks}
    others = len(templates) - 1
    cells_by_task = sorted(cells, key=lambda cell: cell[::-1])
    return [(cell[0], cells[cell] - (totals[cell[1]] - cells[cell]) / others) for cell in cells_by_task]


def _expected(cells: Mapping[Cell, float], templates: Sequence[str], tasks: Sequence[str]) -> dict[Cell, float]:
    """What each template would get on each task: the least-squares fit of task effect + template effect."""
    rows = list(cells)
    design = np.zeros((len(rows), len(templates) + len(tasks)))
    for row, (template, task) in enumerate(rows):
        design[row, templates.index(template)] = 1.0
        design[row, len(templates) + tasks.index(task)] = 1.0
    effects = np.linalg.lstsq(design, np.array([cells[cell] for cell in rows]), rcond=None)[0]
    ours, theirs = effects[: len(templates)], effects[len(templates) :]
    # Rounded, so that the last bits of a linear-algebra library do not reach the state of a run.
    return {
        (template, task): round(float(ours[i] + theirs[j]), 10)
        for i, template in enumerate(templates)
        for j, task in enumerate(tasks)
    }
