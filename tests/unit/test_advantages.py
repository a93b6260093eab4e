import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.advantages import centred, group_relative, leave_one_out, template_relative, with_advantages
from grpo_ray.recipe import Named, Recipe
from grpo_ray.types import Group, Prompt, Reward, Rollout, Sampling, ScoredGroup, ScoredRollout, Task

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


def test_where_every_template_meets_every_task_differences_are_per_task() -> None:
    table = {"a": (0.5, 0.9), "b": (0.1, 0.5), "c": (0.3, 0.1)}
    found = template_relative([scored(t, f"t{i}", [v]) for t, values in table.items() for i, v in enumerate(values)])
    assert found["a"] == pytest.approx([0.5 - 0.2, 0.9 - 0.3])
    assert found["c"] == pytest.approx([0.3 - 0.3, 0.1 - 0.7])


effects = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1), min_size=2)


@given(effects, st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_tasks_difficulty_cancels_even_when_groups_are_missing(
    good: dict[str, float], tasks: list[float], chance: random.Random
) -> None:
    """With rewards that are template + task exactly, every number is the template's lead over the others."""
    full = [(t, i) for t in sorted(good) for i in range(len(tasks))]
    anchor = {(t, 0) for t in good}  # one task that all met keeps them connected
    cells = [cell for cell in full if cell in anchor or chance.random() < 0.6]
    found = template_relative([scored(t, f"t{i}", [good[t] + tasks[i]]) for t, i in cells])
    for template, values in found.items():
        lead = good[template] - fmean(value for other, value in good.items() if other != template)
        assert all(abs(value - lead) < 1e-6 for value in values)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.floats(0, 1)), max_size=12, unique_by=lambda c: c[:2]
    )
)
def test_the_order_of_groups_does_not_matter(cells: list[tuple[str, int, float]]) -> None:
    groups = [scored(t, f"t{i}", [v]) for t, i, v in cells]
    assert template_relative(groups) == template_relative(groups[::-1])


def test_fewer_than_two_templates_on_a_task_are_no_evidence() -> None:
    lone = [scored("a", "t1", [1, 1]), scored("b", "t2", [0, 0]), scored("b", "t1", [None, None])]
    assert template_relative(lone) == {}
    assert template_relative([]) == {}


def test_templates_are_compared_within_a_task_type_only() -> None:
    words = [scored("w", "t1", [1], "words"), scored("any", "t1", [0], "words")]
    sums = [scored("s", "t2", [0], "sums"), scored("any", "t2", [1], "sums")]
    found = template_relative([*words, *sums])
    assert found == {"w": [1.0], "any": [1.0, -1.0], "s": [-1.0]}


def test_sets_of_templates_without_a_common_task_are_not_compared() -> None:
    left = [scored("a", "t1", [1]), scored("b", "t1", [0])]
    right = [scored("c", "t2", [0.2]), scored("d", "t2", [0.1])]
    found = template_relative([*left, *right])
    assert (found["a"], found["b"]) == ([1.0], [-1.0])
    assert found["c"] == pytest.approx([0.1])
