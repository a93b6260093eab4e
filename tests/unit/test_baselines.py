"""A rollout compared with its group, or with all rollouts of its task: what the recipe's `baseline` changes."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.advantages import EPSILON, with_advantages
from grpo_ray.blending import blend, counted
from grpo_ray.explain import Explanation, explain
from grpo_ray.recipe import Named, Recipe, RewardSpec
from grpo_ray.types import (
    Group,
    Lesson,
    Prompt,
    Reward,
    RewardPart,
    Rollout,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
)

SPECS = (RewardSpec(name="own.right", weight=1.0), RewardSpec(name="own.brief", weight=0.5))
RECIPE = Recipe(tasks=(Named(name="jsonl"),), rewards=SPECS)
ACROSS = replace(RECIPE, baseline="task")
Row = tuple[float | None, float | None]
Cell = tuple[str, str, Sequence[Row]]
"""(template, task, the parts of each rollout)"""

KINDS = ("standardized", "centred", "leave_one_out")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
kinds = st.sampled_from(KINDS)
aggregations = st.sampled_from(AGGREGATIONS)
part = st.none() | st.sampled_from([0.0, 0.25, 0.1, 1.0]) | st.floats(0, 1)
rows = st.lists(st.tuples(part, part), max_size=5)
alone = st.lists(rows, max_size=5).map(lambda some: [(f"t{i % 2}", f"q{i}", of) for i, of in enumerate(some)])
crossed = st.lists(st.tuples(st.integers(0, 3), rows), max_size=8).map(
    lambda some: [(f"t{i}", f"q{task}", of) for i, (task, of) in enumerate(some)]
)


def scored(template: str, task: str, parts: Sequence[Row]) -> ScoredGroup:
    prompt = Prompt(f"p-{template}-{task}", template, Task(task, "?"), ())
    rollouts = tuple(Rollout(f"{prompt.id}-{i}", i, "", (1,), (0.0,), "stop", i) for i in range(len(parts)))
    said = [tuple(RewardPart(s.name, v, s.weight) for s, v in zip(SPECS, row, strict=True)) for row in parts]
    values = [blend(row, [spec.weight for spec in SPECS]) for row in counted(said, SPECS)]
    of = zip(rollouts, values, said, strict=True)
    group = Group(f"g-{prompt.id}", prompt, rollouts, (1,), Sampling(), "canned", None)
    return ScoredGroup(group, tuple(ScoredRollout(rollout, (), Reward(value, row)) for rollout, value, row in of))


def learnt(step: Sequence[Cell], recipe: Recipe) -> list[Lesson]:
    return with_advantages([scored(*cell) for cell in step], recipe)


def advantages(step: Sequence[Cell], recipe: Recipe) -> list[tuple[float, ...]]:
    return [lesson.advantages for lesson in learnt(step, recipe)]


@given(alone, kinds, aggregations)
def test_with_one_template_a_task_both_baselines_are_the_same(step: list[Cell], kind: str, aggregation: str) -> None:
    recipe = replace(RECIPE, advantages=kind, aggregation=aggregation)
    assert advantages(step, recipe) == advantages(step, replace(recipe, baseline="task"))


def reference(step: Sequence[Cell], kind: str) -> list[list[float]]:
    """The formulas of docs/rewards.md, over each task's rewards."""
    values = [[one.reward.value for one in scored(*cell).rollouts] for cell in step]
    of_task: dict[str, list[float]] = defaultdict(list)
    for (_, task, _), some in zip(step, values, strict=True):
        of_task[task] += [value for value in some if value is not None]

    def relative(value: float | None, known: Sequence[float]) -> float:
        if value is None or len(known) < 2 or min(known) == max(known):
            return 0.0
        if kind == "leave_one_out":
            return value - (sum(known) - value) / (len(known) - 1)
        return (value - fmean(known)) / (stdev(known) + EPSILON if kind == "standardized" else 1.0)

    return [[relative(v, of_task[task]) for v in some] for (_, task, _), some in zip(step, values, strict=True)]


@given(crossed, kinds)
def test_a_task_s_rollouts_are_compared_across_templates(step: list[Cell], kind: str) -> None:
    for found, expected in zip(advantages(step, replace(ACROSS, advantages=kind)), reference(step, kind), strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(crossed, kinds, aggregations, st.randoms(use_true_random=False))
def test_the_order_of_groups_does_not_matter(
    step: list[Cell], kind: str, aggregation: str, chance: random.Random
) -> None:
    recipe = replace(ACROSS, advantages=kind, aggregation=aggregation)
    order = chance.sample(range(len(step)), len(step))
    moved = advantages([step[place] for place in order], recipe)
    assert [moved[order.index(place)] for place in range(len(step))] == advantages(step, recipe)


@given(crossed, kinds, aggregations)
def test_a_task_s_advantages_come_to_zero(step: list[Cell], kind: str, aggregation: str) -> None:
    sums: dict[str, float] = defaultdict(float)
    recipe = replace(ACROSS, advantages=kind, aggregation=aggregation)
    for (_, task, _), found in zip(step, advantages(step, recipe), strict=True):
        sums[task] += sum(found)
    assert all(abs(total) < 1e-6 for total in sums.values())


RIGHT, WRONG = (1.0, None), (0.0, None)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_groups_that_are_all_alike_teach_beside_another_template_s(aggregation: str) -> None:
    step: list[Cell] = [("good", "q", [RIGHT, RIGHT]), ("bad", "q", [WRONG, WRONG]), ("good", "other", [RIGHT, RIGHT])]
    recipe = replace(RECIPE, aggregation=aggregation)
    assert not any(map(any, advantages(step, recipe)))
    good, bad, other = advantages(step, replace(recipe, baseline="task"))
    assert min(good) > 0 > max(bad) and other == (0.0, 0.0)


def told(recipe: Recipe) -> Explanation:
    step: list[Cell] = [
        ("other", "else", [RIGHT, WRONG]),
        ("a", "q", [(1.0, 1.0), (0.0, 0.0)]),
        ("b", "q", [(1.0, 0.0), (None, None)]),
    ]
    return explain(learnt(step, recipe), "p-b-q-0", recipe)


LINES = {
    "standardized": "(0.666667 − 0.555556) / (0.509175 + 0.0001) = 0.218175 (mean and std of 3 of the task)",
    "centred": "0.666667 − 0.555556 (mean of 3 of the task) = 0.111111",
    "leave_one_out": "0.666667 − 0.5 (mean of the 2 others of the task) = 0.166667",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_explanation_is_over_the_task(kind: str) -> None:
    found = told(replace(ACROSS, advantages=kind))
    assert (found.baseline, found.disagreements) == ("task", ())
    assert found.lines[-1] == f"advantage = {LINES[kind]}"
    assert found.advantage == pytest.approx(float(LINES[kind].split(" = ")[1].split(" (")[0]), abs=1e-6)
    alone = told(replace(RECIPE, advantages=kind))
    assert alone.lines[-1] == "advantage = 0, for there is nothing to compare it with"


def test_the_explanation_of_parts_is_over_the_task() -> None:
    found = told(replace(ACROSS, advantages="centred", aggregation="normalize_then_sum"))
    assert found.disagreements == ()
    assert found.lines[1:] == (
        "own.right: 1 − 0.666667 (mean of 3 of the task) = 0.333333",
        "own.brief: 0 − 0.333333 (mean of 3 of the task) = -0.333333",
        "sum = (1·0.333333 + 0.5·-0.333333) / 1.5 = 0.111111",
        "advantage = sum = 0.111111",
    )


@given(crossed.filter(lambda step: any(of for *_, of in step)), kinds, aggregations, st.data())
def test_what_was_taught_comes_out_again(step: list[Cell], kind: str, aggregation: str, data: st.DataObject) -> None:
    recipe = replace(ACROSS, advantages=kind, aggregation=aggregation)
    lessons = learnt(step, recipe)
    ids = [one.rollout.id for lesson in lessons for one in lesson.group.rollouts]
    found = explain(lessons, data.draw(st.sampled_from(ids)), recipe)
    assert found.disagreements == ()
    line = found.lines[-1].partition(", for ")[0].partition(" (mean and")[0]
    assert float(line.rpartition("= ")[2]) == pytest.approx(found.advantage, rel=1e-5, abs=1e-5)
