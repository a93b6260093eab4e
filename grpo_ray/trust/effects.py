"""What judges do to a run: the noise they put into rewards, the accuracy they help to tell, their scores over steps,
and what each member is to its panel. From saved nouns to plain numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from grpo_ray.blending import blend, counted
from grpo_ray.recipe import Recipe, RewardSpec
from grpo_ray.scoring import find_reward, finite, is_trl
from grpo_ray.trust.agreement import krippendorff_alpha, repeat_noise, verifier_agreement
from grpo_ray.trust.calibration import classical_mean, powered_mean
from grpo_ray.trust.sheet import Array, Sheet, mean_of
from grpo_ray.types import Evaluation, RewardPart, ScoredGroup, ScoredRollout

Numbers = dict[str, Any]


# ── rewards ───────────────────────────────────────────────────────────────────────────────────────────────────────


def reward_noise(steps: Mapping[int, Sequence[ScoredGroup]], recipe: Recipe) -> Numbers:
    """The standard deviation of rewards if judges were asked again, beside that of rewards inside groups.

    Groups that were repeated are rewarded a second time from the repeats; parts by TRL-style functions, which may ask
    anything, stay as they are. `share` is the part of the variance inside groups that is noise. None without repeats.
    """
    groups = [group for step in sorted(steps) for group in steps[step]]
    pairs, codes = [], []
    for code, group in enumerate(groups):
        found = _again(group, recipe)
        pairs += found
        codes += [code] * len(found)
    table = np.array(pairs, float).reshape(len(pairs), 2).T
    noise = repeat_noise(table, groups=codes, rng=np.random.default_rng(17))
    inside = _spread_inside(groups)
    share = noise.value**2 / inside**2 if noise.value is not None and inside else None
    return {"noise": noise, "inside_groups": inside, "share": None if share is None else min(1.0, share)}


def _again(group: ScoredGroup, recipe: Recipe) -> list[tuple[float, float]]:
    """(reward, reward from the repeats) of each rollout of a group that was repeated."""
    swapped = [_repeated(one.evaluations) for one in group.rollouts]
    if all(some is None for some in swapped):
        return []
    heard = [tuple(e for e in one.evaluations if not e.audit) for one in group.rollouts]
    rows = [
        tuple(_part(one, new or old, group, i, spec) for i, spec in enumerate(recipe.rewards))
        for one, new, old in zip(group.rollouts, swapped, heard, strict=True)
    ]
    weights = [spec.weight for spec in recipe.rewards]
    values = [blend(row, weights) for row in counted(rows, recipe.rewards)]
    return [
        (one.reward.value, value)
        for one, value, new in zip(group.rollouts, values, swapped, strict=True)
        if new is not None and value is not None and one.reward.value is not None
    ]


def _repeated(said: Sequence[Evaluation]) -> tuple[Evaluation, ...] | None:
    """What counts, with repeats in the place of the marks they repeat; None where nothing was repeated."""
    counts = {(e.judge, e.dimension) for e in said if not e.audit}
    new = {
        (e.judge, e.dimension): replace(e, audit="")
        for e in said
        if e.audit == "repeat" and e.score is not None and (e.judge, e.dimension) in counts
    }
    if not new:
        return None
    return tuple(new.get((e.judge, e.dimension), e) for e in said if not e.audit)


def _part(
    one: ScoredRollout, heard: tuple[Evaluation, ...], group: ScoredGroup, place: int, spec: RewardSpec
) -> RewardPart:
    reward = find_reward(spec.name)
    if is_trl(reward):
        kept = one.reward.parts[place].value if place < len(one.reward.parts) else None
        return RewardPart(spec.name, kept, spec.weight)
    return RewardPart(spec.name, finite(reward(one.rollout, heard, group.group, **spec.settings)), spec.weight)


def _spread_inside(groups: Sequence[ScoredGroup]) -> float | None:
    """The standard deviation of rewards inside their groups, pooled; None without two rewards in one."""
    values = [[one.reward.value for one in group.rollouts if one.reward.value is not None] for group in groups]
    freedom = sum(len(some) - 1 for some in values if some)
    return (
        float(np.sqrt(sum(float(np.var(some)) * len(some) for some in values if some) / freedom)) if freedom else None
    )


# ── accuracy, steps ───────────────────────────────────────────────────────────────────────────────────────────────


def accuracy(found: Sheet) -> Numbers:
    """The share of right answers among all rollouts, by verifiers alone and helped by the judges' mean marks.

    The verifiers' own mean is about the rollouts they checked; the helped one (prediction-powered inference) is
    about all that the judges marked, if those checked are like the others.
    """
    marks = mean_of([found.mean(judge) for judge in found.model_judges], len(found.rollouts))
    right = np.where(np.isfinite(found.verified), (found.verified == 1.0).astype(float), np.nan)
    people = np.isfinite(found.labels)
    return {
        "verified": classical_mean(right, groups=found.groups),
        "powered": powered_mean(marks, right, groups=found.groups) if np.isfinite(marks).any() else None,
        "people": powered_mean(marks, found.labels, groups=found.groups) if people.any() else None,
        "reward": classical_mean(found.rewards, groups=found.groups),
    }


def over_steps(found: Sheet) -> list[Numbers]:
    """For each step the verified accuracy and each model judge's mean mark, means over what is there."""
    right = np.where(np.isfinite(found.verified), (found.verified == 1.0).astype(float), np.nan)
    columns = {judge: found.mean(judge) for judge in found.model_judges}
    return [
        {
            "step": int(step),
            "verified": _mean(right[found.steps == step]),
            "reward": _mean(found.rewards[found.steps == step]),
            "judges": {judge: _mean(marks[found.steps == step]) for judge, marks in columns.items()},
        }
        for step in np.unique(found.steps)
    ]


def _mean(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


# ── panels ────────────────────────────────────────────────────────────────────────────────────────────────────────


def panels(found: Sheet) -> list[Numbers]:
    """Judges called panel/member, ranked by how each goes with the mean of the others (leave one out), best first.

    `alpha` is the panel's over its members' mean marks, `alpha_without` the one that the others reach alone.
    """
    names = sorted({judge.rpartition("/")[0] for judge in found.model_judges if "/" in judge})
    return [panel for name in names if (panel := _panel(found, name)) is not None]


def _panel(found: Sheet, name: str) -> Numbers | None:
    members = [judge for judge in found.model_judges if judge.rpartition("/")[0] == name]
    if len(members) < 2:
        return None
    table = np.array([found.mean(member) for member in members])
    ranked = [
        {
            "member": member,
            "marked": int(np.isfinite(table[i]).sum()),
            "with_others": _correlation(table[i], mean_of(list(np.delete(table, i, 0)), table.shape[1])),
            "alpha_without": krippendorff_alpha(np.delete(table, i, 0)).value if len(members) > 2 else None,
            "auc": verifier_agreement(table[i], found.verified).auc.value,
            "lean": _mean(table[i] - mean_of(list(np.delete(table, i, 0)), table.shape[1])),
        }
        for i, member in enumerate(members)
    ]
    ranked.sort(key=lambda one: (-(one["with_others"] if one["with_others"] is not None else -2.0), one["member"]))
    return {"panel": name, "alpha": krippendorff_alpha(table).value, "members": ranked}


def _correlation(x: Array, y: Array) -> float | None:
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return None
    return float(np.corrcoef(x[known], y[known])[0, 1])
