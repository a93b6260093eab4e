"""A step's plan under a curriculum: rather tasks that are sometimes solved, and the same whenever it is made."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from generations import answered, recipe, tasks, template

from grpo_ray.population import begin, plan_refill, plan_waves
from grpo_ray.recipe import PlanSpec, Recipe
from grpo_ray.trials import Trial
from grpo_ray.types import Policy, Task, Wave

PLAIN = recipe(plan=PlanSpec(tasks=4, templates=2, refill=1))
CHOSEN = replace(PLAIN, plan=replace(PLAIN.plan, curriculum=True))
POLICY = Policy(begin([template("a"), template("b")], CHOSEN), None)
SOME = tasks(24)
MIXED = {task.id for task in SOME[:6]}
TRIALS = [
    Trial("a", task.id, task.task_type, step, 0.5 if task.id in MIXED else float(place % 2), 8)
    for step in range(4)
    for place, task in enumerate(SOME)
]


def met(waves: Sequence[Wave]) -> Counter[str]:
    return Counter(prompt.task.id for wave in waves for prompt in wave.prompts)


def drawn(steps: int, chosen: Recipe, trials: Sequence[Trial], some: Sequence[Task] = SOME) -> Counter[str]:
    plans = [met(plan_waves(step, POLICY, some, chosen, trials)) for step in range(steps)]
    assert all(len(plan) == 4 and set(plan.values()) == {2} for plan in plans)
    return sum((Counter(list(plan)) for plan in plans), Counter())


def test_tasks_that_are_sometimes_solved_are_preferred_and_none_is_never_met() -> None:
    found = drawn(100, CHOSEN, TRIALS)
    often = [found[task.id] for task in SOME if task.id in MIXED]
    seldom = [found[task.id] for task in SOME if task.id not in MIXED]
    assert min(often) > max(seldom) and min(seldom) > 0
    assert sum(often) / 6 > 2 * sum(seldom) / 18


def test_where_nothing_is_known_all_are_drawn_alike() -> None:
    found = drawn(200, CHOSEN, [])
    assert set(found) == {task.id for task in SOME} and max(found.values()) < 3 * min(found.values())


def test_the_same_trials_make_the_same_plan_whatever_the_order_of_tasks() -> None:
    first = plan_waves(3, POLICY, SOME, CHOSEN, TRIALS)
    assert first == plan_waves(3, POLICY, SOME[::-1], CHOSEN, TRIALS)
    assert met(first) != met(plan_waves(4, POLICY, SOME, CHOSEN, TRIALS))
    assert met(first) != met(plan_waves(3, POLICY, SOME, replace(CHOSEN, seed=CHOSEN.seed + 1), TRIALS))


def test_without_the_flag_trials_change_nothing() -> None:
    waves = plan_waves(3, POLICY, SOME, PLAIN)
    assert plan_waves(3, POLICY, SOME, PLAIN, TRIALS) == waves
    alike = answered(waves, {})
    assert plan_refill(3, POLICY, [waves], alike, SOME, PLAIN, TRIALS) == plan_refill(
        3, POLICY, [waves], alike, SOME, PLAIN
    )


def test_a_refill_prefers_too_and_meets_other_tasks() -> None:
    found: Counter[str] = Counter()
    for step in range(60):
        first = plan_waves(step, POLICY, SOME, CHOSEN, TRIALS)
        second = plan_refill(step, POLICY, [first], answered(first, {}), SOME, CHOSEN, TRIALS)
        assert len(met(second)) == 4 and not met(first).keys() & met(second).keys()
        assert second == plan_refill(step, POLICY, [first], answered(first, {}), SOME[::-1], CHOSEN, TRIALS)
        found += Counter("mixed" if task in MIXED else "settled" for task in met(second))
    assert found["mixed"] / 6 > found["settled"] / 18


def test_a_refill_ends_where_tasks_do() -> None:
    few = tasks(6)
    first = plan_waves(0, POLICY, few, CHOSEN)
    second = plan_refill(0, POLICY, [first], answered(first, {}), few, CHOSEN)
    assert len(met(second)) == 2
    assert plan_refill(0, POLICY, [first, second], answered(first, {}), few, CHOSEN) == []
