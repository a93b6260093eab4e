"""From what was said of a rollout to its advantage: the arithmetic, line by line, and whether it is what is stored."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from statistics import fmean, stdev
from typing import Any

from grpo_ray.advantages import EPSILON, part_advantages, part_sums, rivals, step_scale, with_advantages
from grpo_ray.blending import blend, capped, counted, is_shut
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.recipe import Recipe, RewardSpec
from grpo_ray.registry import find, names
from grpo_ray.types import Evaluation, Lesson, RewardPart, ScoredGroup

SAME = 1e-12
"""How far what is computed again may lie from what is stored."""


@dataclass(frozen=True, slots=True)
class PartWorking:
    """One part of a reward: its raw value, what that counts as, and why."""

    name: str
    settings: Mapping[str, Any]
    weight: float
    raw: float | None
    working: str
    """How the raw value comes from the evaluations, where the reward can tell."""
    counts: float | None
    why: str
    """Why it counts as something else than its raw value, or ""."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that stands behind one advantage; `lines` are the sums, `disagreements` what is stored otherwise."""

    rollout: str
    group: str
    task: str
    template: str
    aggregation: str
    advantages: str
    baseline: str
    evaluations: tuple[Evaluation, ...]
    audits: tuple[Evaluation, ...]
    """Judged again, or on a dimension that is not trusted: counting nothing."""
    parts: tuple[PartWorking, ...]
    reward: float | None
    mean: float | None
    """Of the group's rewards that are there; None without any."""
    deviation: float | None
    """Their standard deviation (n − 1); None of fewer than two."""
    advantage: float
    lines: tuple[str, ...]
    disagreements: tuple[str, ...]


def explain(lessons: Sequence[Lesson], rollout_id: str, recipe: Recipe) -> Explanation:
    """The arithmetic behind one rollout's advantage; `lessons` are all of its step, `recipe` is the step's.

    Reward, mean, deviation and advantage are the stored ones; whatever comes out otherwise when it is computed again is
    a disagreement. Raises MissingError for a rollout of no lesson, ConfigError for another recipe than the step's.
    """
    which, place = _found(lessons, rollout_id)
    lesson, group = lessons[which], lessons[which].group
    one = group.rollouts[place]
    if [part.name for part in one.reward.parts] != [spec.name for spec in recipe.rewards]:
        raise ConfigError(
            f"rollout {rollout_id} was scored under another recipe: its parts are not the recipe's rewards"
        )
    known = [other.reward.value for other in group.rollouts if other.reward.value is not None]
    parts = _parts(group, place, recipe)
    return Explanation(
        rollout=one.rollout.id,
        group=group.group.id,
        task=group.group.prompt.task.id,
        template=group.group.prompt.template_id,
        aggregation=recipe.aggregation,
        advantages=recipe.advantages,
        baseline=recipe.baseline,
        evaluations=tuple(e for e in one.evaluations if not e.audit),
        audits=tuple(e for e in one.evaluations if e.audit),
        parts=parts,
        reward=one.reward.value,
        mean=fmean(known) if known else None,
        deviation=stdev(known) if len(known) > 1 else None,
        advantage=lesson.advantages[place],
        lines=(_blended(parts), *_compared(lessons, which, place, recipe)),
        disagreements=tuple(_disagreements(lessons, which, place, parts, recipe)),
    )


def _found(lessons: Sequence[Lesson], id: str) -> tuple[int, int]:
    """The places of its lesson among the lessons, and of itself in its group."""
    for which, lesson in enumerate(lessons):
        for place, one in enumerate(lesson.group.rollouts):
            if one.rollout.id == id:
                return which, place
    raise MissingError(f"no lesson of the step holds the rollout {id!r}: it has no advantage")


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parts(group: ScoredGroup, place: int, recipe: Recipe) -> tuple[PartWorking, ...]:
    row = group.rollouts[place].reward.parts
    counts = counted([one.reward.parts for one in group.rollouts], recipe.rewards)[place]
    return tuple(
        PartWorking(
            spec.name,
            spec.settings,
            part.weight,
            part.value,
            _working(group, place, spec),
            value,
            _why(row, recipe.rewards, index, value),
        )
        for index, (spec, part, value) in enumerate(zip(recipe.rewards, row, counts, strict=True))
    )


def _why(row: Sequence[RewardPart], specs: Sequence[RewardSpec], index: int, counts: float | None) -> str:
    raw, spec = row[index].value, specs[index]
    shut = [other.name for i, other in enumerate(specs) if i != index and is_shut(row[i].value, other)]
    if counts is None:
        return "missing" if raw is None else "a gate has no verdict"
    if shut and counts != capped(raw, spec.cap):
        return f"the gate of {', '.join(shut)} is closed"
    return f"capped at {_digits(spec.cap)}" if counts != raw else ""


def _working(group: ScoredGroup, place: int, spec: RewardSpec) -> str:
    """What the reward's own file says of how its value comes about; one from outside has no say here."""
    if spec.name not in names("rewards"):
        return ""
    tell = getattr(sys.modules[find("rewards", spec.name, "reward").__module__], "working", None)
    return tell(*_heard(group, place), **spec.settings) if tell else ""


def _again(group: ScoredGroup, place: int, spec: RewardSpec) -> float | None:
    return find("rewards", spec.name, "reward")(*_heard(group, place), **spec.settings)


def _heard(group: ScoredGroup, place: int) -> tuple[Any, ...]:
    one = group.rollouts[place]
    return one.rollout, tuple(e for e in one.evaluations if not e.audit), group.group


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _blended(parts: Sequence[PartWorking]) -> str:
    present = [(part.counts, part.weight) for part in parts if part.counts is not None]
    value = blend([part.counts for part in parts], [part.weight for part in parts])
    if value is None:
        return "reward: missing, for no part with a weight counts"
    terms = " + ".join(f"{_digits(weight)}·{_digits(counts)}" for counts, weight in present)
    return f"reward = ({terms}) / {_digits(sum(weight for _, weight in present))} = {_digits(value)}"


def _compared(lessons: Sequence[Lesson], which: int, place: int, recipe: Recipe) -> list[str]:
    """From rewards, or from parts, to the advantage."""
    groups = [lesson.group for lesson in lessons]
    mates = next(places for places in rivals(groups, recipe) if which in places)
    at = place + sum(len(groups[mate].rollouts) for mate in mates[: mates.index(which)])
    if recipe.aggregation == "sum_then_normalize":
        values = [one.reward.value for mate in mates for one in groups[mate].rollouts]
        advantage = with_advantages(groups, recipe)[which].advantages[place]
        return [f"advantage = {_relative(values, at, advantage, recipe)}"]
    rows = [
        row for mate in mates for row in counted([one.reward.parts for one in groups[mate].rollouts], recipe.rewards)
    ]
    compared = part_advantages(groups, recipe)
    lines = [
        f"{label}: {_relative([row[i] for row in rows], at, compared[which][place][i], recipe)}"
        for i, label in enumerate(_labels(recipe.rewards))
    ]
    return [*lines, *_summed(groups, compared, which, place, recipe)]


def _summed(
    groups: Sequence[ScoredGroup],
    compared: Sequence[Sequence[tuple[float, ...]]],
    which: int,
    place: int,
    recipe: Recipe,
) -> list[str]:
    """From compared parts to the advantage; `compared` are those of the whole step."""
    sums = [part_sums(*pair) for pair in zip(groups, compared, strict=True)]
    total = sums[which][place]
    if total is None:
        return ["advantage = 0, for the reward is missing"]
    weights = [part.weight for part in groups[which].rollouts[place].reward.parts]
    parts = zip(weights, compared[which][place], strict=True)
    terms = " + ".join(f"{_digits(weight)}·{_digits(value)}" for weight, value in parts)
    line = f"sum = ({terms}) / {_digits(sum(weights))} = {_digits(total)}"
    if recipe.advantages != "standardized":
        return [line, f"advantage = sum = {_digits(total)}"]
    every = [value for of in sums for value in of]
    scale, count = step_scale(every, recipe), sum(value is not None for value in every)
    scaled = f"{_digits(total)} / ({_digits(scale - EPSILON)} + {EPSILON}) = {_digits(total / scale)}"
    return [line, f"advantage = sum / (std of the step's {count} sums + {EPSILON}) = {scaled}"]


def _relative(values: Sequence[float | None], place: int, advantage: float, recipe: Recipe) -> str:
    """One value compared with its rivals', as a sum."""
    kind, whose = recipe.advantages, " of the task" if recipe.baseline == "task" else ""
    value, known = values[place], [other for other in values if other is not None]
    if value is None:
        return "0, for it is missing"
    if len(known) < 2:
        return "0, for there is nothing to compare it with"
    if min(known) == max(known):
        return f"0, for all {len(known)}{whose} are {_digits(value)}"
    if kind == "leave_one_out":
        others = fmean(other for i, other in enumerate(values) if other is not None and i != place)
        return (
            f"{_digits(value)} − {_digits(others)} (mean of the {len(known) - 1} others{whose}) = {_digits(advantage)}"
        )
    centred, mean = f"{_digits(value)} − {_digits(fmean(known))}", f"(mean of {len(known)}{whose})"
    if kind == "centred":
        return f"{centred} {mean} = {_digits(advantage)}"
    spread = f"{_digits(stdev(known))} + {EPSILON}"
    return f"({centred}) / ({spread}) = {_digits(advantage)} (mean and std of {len(known)}{whose})"


def _labels(specs: Sequence[RewardSpec]) -> list[str]:
    """The rewards' names; where one is there several times, with its settings."""
    several = {spec.name for spec in specs if sum(other.name == spec.name for other in specs) > 1}
    return [f"{spec.name} {json.dumps(dict(spec.settings))}" if spec.name in several else spec.name for spec in specs]


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


# ── disagreements ─────────────────────────────────────────────────────────────────────────────────────────────────


def _disagreements(
    lessons: Sequence[Lesson], which: int, place: int, parts: Sequence[PartWorking], recipe: Recipe
) -> list[str]:
    """What comes out otherwise than it is stored: raw values of bundled rewards, the reward, the advantage."""
    lesson, one = lessons[which], lessons[which].group.rollouts[place]
    ours = [(spec, part) for spec, part in zip(recipe.rewards, parts, strict=True) if spec.name in names("rewards")]
    pairs = [(f"part {spec.name}", part.raw, _again(lesson.group, place, spec)) for spec, part in ours]
    pairs.append(("reward", one.reward.value, blend([part.counts for part in parts], [part.weight for part in parts])))
    now = with_advantages([other.group for other in lessons], recipe)[which]
    pairs.append(("advantage", lesson.advantages[place], now.advantages[place]))
    return [
        f"{what}: stored is {_exact(stored)}, computed again it is {_exact(again)}"
        for what, stored, again in pairs
        if not _same(stored, again)
    ]


def _same(one: float | None, other: float | None) -> bool:
    return one is other if one is None or other is None else isclose(one, other, rel_tol=SAME, abs_tol=SAME)


def _exact(value: float | None) -> str:
    return "missing" if value is None else repr(value)
