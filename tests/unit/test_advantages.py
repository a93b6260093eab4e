import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.advantages import centred, group_relative, leave_one_out, with_advantages
from grpo_ray.blending import blend, counted
from grpo_ray.recipe import Named, Recipe, RewardSpec
from grpo_ray.types import Group, Prompt, Reward, RewardPart, Rollout, Sampling, ScoredGroup, ScoredRollout, Task

RECIPE = Recipe(tasks=(Named(name="jsonl"),))
Rewards = Sequence[float | None]


def scored(template: str, task: str, rewards: Rewards, kind: str = "any") -> ScoredGroup:
    prompt = Prompt(f"p-{template}-{task}", template, Task(task, "?", task_type=kind), ())
    rollouts = tuple(Rollout(f"{prompt.id}-{i}", i, "", (1,), (0.0,), "stop", i) for i in range(len(rewards)))
    group = Group(f"g-{prompt.id}", prompt, rollouts, (1,), Sampling(), "canned", None)
    pairs = zip(rollouts, rewards, strict=True)
    return ScoredGroup(group, tuple(ScoredRollout(rollout, (), Reward(reward, ())) for rollout, reward in pairs))


rewards = st.lists(st.none() | st.floats(0, 1), max_size=12)


@given(rewards)
def test_advantages_of_a_group_sum_to_zero_and_missing_ones_are_zero(values: list[float | None]) -> None:
    found = group_relative(values)
    assert len(found) == len(values)
    assert abs(sum(found)) < 1e-6
    assert all(advantage == 0 for advantage, value in zip(found, values, strict=True) if value is None)


@given(rewards)
def test_leave_one_out_compares_with_the_others(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    for place, advantage in enumerate(leave_one_out(values)):
        others = [value for i, value in enumerate(values) if value is not None and i != place]
        value = values[place]
        expected = 0.0 if value is None or len(known) < 2 else value - fmean(others)
        assert abs(advantage - expected) < 1e-9


@given(rewards)
def test_centred_advantages_are_unscaled(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    scale = stdev(known) + 1e-4 if len(known) > 1 else 1.0
    scaled = [advantage * scale for advantage in group_relative(values)]
    assert centred(values) == pytest.approx(scaled, abs=1e-9)


@pytest.mark.parametrize(("kind", "expected"), [("centred", (0.25, -0.25)), ("leave_one_out", (0.5, -0.5))])
def test_the_recipe_says_which_advantages(kind: str, expected: tuple[float, ...]) -> None:
    (lesson,) = with_advantages([scored("t", "a", [1.0, 0.5])], replace(RECIPE, advantages=kind))
    assert lesson.advantages == expected


@given(rewards)
def test_advantages_keep_the_order_of_rewards(values: list[float | None]) -> None:
    known = sorted((v, a) for v, a in zip(values, group_relative(values), strict=True) if v is not None)
    assert [a for _, a in known] == sorted(a for _, a in known)


def test_advantages_follow_the_formula() -> None:
    values = [0.0, 1.0, 0.25, 1.0]
    expected = [(value - fmean(values)) / (stdev(values) + 1e-4) for value in values]
    assert group_relative(values) == pytest.approx(expected)


def test_equal_rewards_teach_exactly_nothing() -> None:
    assert group_relative([0.1] * 7) == (0.0,) * 7
    assert group_relative([0.3, None, None]) == (0.0, 0.0, 0.0)
    assert group_relative([None, None]) == (0.0, 0.0)


def test_lessons_come_in_the_groups_order() -> None:
    groups = [scored("a", "t1", [0, 1]), scored("b", "t1", [None, None]), scored("a", "t2", [1, 1])]
    lessons = with_advantages(groups, RECIPE)
    assert [lesson.group for lesson in lessons] == groups
    assert lessons[0].advantages[0] < 0 < lessons[0].advantages[1]
    assert lessons[1].advantages == lessons[2].advantages == (0.0, 0.0)


# ── each part by itself, then the sum ─────────────────────────────────────────────────────────────────────────────

WEIGHTS = (2.0, 1.0, 0.5)
SPECS = tuple(RewardSpec(name=f"own.{i}", weight=weight) for i, weight in enumerate(WEIGHTS))
GDPO = replace(RECIPE, rewards=SPECS, aggregation="normalize_then_sum")
Row = tuple[float | None, ...]


def parted(rows: Sequence[Row], specs: Sequence[RewardSpec] = SPECS, name: str = "g") -> ScoredGroup:
    """A group with these parts, blended as `score` does it."""
    parts = [tuple(RewardPart(s.name, v, s.weight) for s, v in zip(specs, row, strict=True)) for row in rows]
    values = [blend(found, [spec.weight for spec in specs]) for found in counted(parts, specs)]
    bare = scored("a", name, values)
    rewards = [Reward(value, part) for value, part in zip(values, parts, strict=True)]
    pairs = zip(bare.rollouts, rewards, strict=True)
    return replace(bare, rollouts=tuple(replace(one, reward=reward) for one, reward in pairs))


def advantages(groups: Sequence[Sequence[Row]], recipe: Recipe = GDPO) -> list[tuple[float, ...]]:
    made = [parted(rows, recipe.rewards, f"g{i}") for i, rows in enumerate(groups)]
    return [lesson.advantages for lesson in with_advantages(made, recipe)]


def flat(found: Sequence[Sequence[float]]) -> list[float]:
    return [value for of in found for value in of]


def reference(groups: Sequence[Sequence[Row]]) -> list[float]:
    """The same in float64 NumPy, with the step's mean subtracted as GDPO writes it."""
    sums: list[float] = []
    for rows in groups:
        table = np.array(rows, dtype=float)
        total = np.zeros(len(rows))
        for column, weight in zip(table.T, WEIGHTS, strict=True):
            there = ~np.isnan(column)
            if there.sum() > 1:
                known = column[there]
                total[there] += weight * (known - known.mean()) / (known.std(ddof=1) + 1e-4)
        total[np.isnan(table).all(axis=1)] = np.nan
        sums += list(total / sum(WEIGHTS))
    every = np.array(sums)
    if (~np.isnan(every)).sum() < 2:
        return [0.0] * len(sums)
    return list(np.nan_to_num((every - np.nanmean(every)) / (np.nanstd(every, ddof=1) + 1e-4)))


part = st.none() | st.floats(0, 1)
rows_of_parts = st.lists(st.tuples(part, part, part), min_size=2, max_size=6)
steps_of_parts = st.lists(rows_of_parts, min_size=1, max_size=4)
coarse = st.sampled_from([0.0, 0.5, 1.0])
coarse_steps = st.lists(st.lists(st.tuples(coarse, coarse, coarse), min_size=2, max_size=6), min_size=1, max_size=4)


@given(steps_of_parts)
def test_parts_compared_by_themselves_agree_with_numpy(groups: list[list[Row]]) -> None:
    assert flat(advantages(groups)) == pytest.approx(reference(groups), abs=1e-8)


@given(steps_of_parts, st.randoms(use_true_random=False))
def test_the_order_of_rollouts_and_of_groups_does_not_matter(groups: list[list[Row]], chance: random.Random) -> None:
    found = advantages(groups)
    places = [(g, i) for g, rows in enumerate(groups) for i in range(len(rows))]
    order = chance.sample(range(len(groups)), len(groups))
    inner = [chance.sample(range(len(groups[g])), len(groups[g])) for g in order]
    moved = advantages([[groups[g][i] for i in places] for g, places in zip(order, inner, strict=True)])
    back = {(g, i): moved[at][to] for at, g in enumerate(order) for to, i in enumerate(inner[at])}
    assert [back[place] for place in places] == flat(found)


@given(coarse_steps, st.floats(0.5, 20), st.integers(-3, 3), st.integers(0, 2))
def test_one_parts_unit_does_not_matter(groups: list[list[Row]], scale: float, shift: int, which: int) -> None:
    def changed(row: Row) -> Row:
        return tuple(None if v is None else v * scale + shift if i == which else v for i, v in enumerate(row))

    other = advantages([[changed(row) for row in rows] for rows in groups])
    assert flat(other) == pytest.approx(flat(advantages(groups)), abs=0.01)  # not exactly, for 1e-4 has a unit


def test_two_rewards_won_are_worth_more_than_one() -> None:
    """What GDPO is for: standardised blends can't tell these groups apart."""
    one_won: list[Row] = [(0.0, 0.0), (0.0, 1.0)]
    both_won: list[Row] = [(0.0, 0.0), (1.0, 1.0)]
    gdpo = replace(GDPO, rewards=(RewardSpec(name="own.0"), RewardSpec(name="own.1")))
    blended = advantages([one_won, both_won], replace(gdpo, aggregation="sum_then_normalize"))
    assert blended[0] == pytest.approx(blended[1], abs=1e-3)
    first, second = advantages([one_won, both_won], gdpo)
    assert second == pytest.approx([2 * value for value in first])


@given(steps_of_parts, st.integers(0, 3))
def test_a_missing_reward_gets_nothing_and_changes_nothing(groups: list[list[Row]], where: int) -> None:
    where = min(where, len(groups) - 1)
    more = [[*rows, (None, None, None)] if i == where else rows for i, rows in enumerate(groups)]
    found = advantages(more)
    assert found[where][-1] == 0.0
    assert [of[:-1] if i == where else of for i, of in enumerate(found)] == advantages(groups)


@given(rows_of_parts, st.tuples(part, part, part), st.integers(2, 5))
def test_equal_groups_teach_exactly_nothing_beside_others(rows: list[Row], row: Row, count: int) -> None:
    assert advantages([[row] * count, rows])[0] == (0.0,) * count


@given(steps_of_parts)
def test_the_sums_of_a_step_need_no_centring(groups: list[list[Row]]) -> None:
    assert all(abs(sum(of)) < 1e-6 for of in advantages(groups))


@given(coarse_steps, st.sampled_from(["centred", "leave_one_out"]))
def test_unscaled_advantages_are_the_same_in_both_orders(groups: list[list[Row]], kind: str) -> None:
    one = replace(GDPO, advantages=kind)
    other = replace(one, aggregation="sum_then_normalize")
    assert flat(advantages(groups, one)) == pytest.approx(flat(advantages(groups, other)), abs=1e-9)


def test_caps_and_gates_come_before_the_comparison() -> None:
    specs = (RewardSpec(name="own.gate", gate=1.0, weight=0.0), RewardSpec(name="own.capped", cap=0.5))
    recipe = replace(GDPO, rewards=specs, advantages="centred")
    assert advantages([[(1.0, 0.9), (1.0, 0.5), (0.0, 0.9)]], recipe)[0] == pytest.approx((1 / 6, 1 / 6, -1 / 3))
    assert advantages([[(1.0, 0.9), (1.0, 0.1), (None, 0.9)]], recipe)[0] == pytest.approx((0.2, -0.2, 0.0))
    assert advantages([[(None, 0.4), (None, 0.2)]], recipe)[0] == pytest.approx((0.1, -0.1))
