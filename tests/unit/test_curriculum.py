"""Which tasks are drawn: rather the mixed ones, the types in proportion, and none never."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.curriculum import FLOOR, Belief, beliefs, interleaved, pass_rates, prefer, weights
from grpo_ray.trials import Trial
from grpo_ray.types import Task

G = 8


def tasks(count: int, kind: str = "sum") -> list[Task]:
    return [Task(f"{kind}-{i:03}", f"What is {i} + {i}?", task_type=kind) for i in range(count)]


def trial(task: str, value: float, step: int = 0, count: int = G, template: str = "t", kind: str = "sum") -> Trial:
    return Trial(template, task, kind, step, value, count)


def settled(steps: int = 3) -> list[Trial]:
    """sum-000 is always solved, sum-001 never, sum-002 every second time."""
    values = {"sum-000": 1.0, "sum-001": 0.0, "sum-002": 0.5}
    return [trial(task, value, step) for step in range(steps) for task, value in values.items()]


# ── weights ──


def test_a_task_always_solved_or_never_weighs_less_than_a_mixed_one_and_no_less_than_the_floor() -> None:
    found = weights(settled(), tasks(3), G)
    assert found["sum-002"] > 0.9
    assert FLOOR <= found["sum-000"] < found["sum-002"] / 2 and FLOOR <= found["sum-001"] < found["sum-002"] / 2
    assert weights(settled(9), tasks(3), G, floor=0.3)["sum-001"] == 0.3


def test_the_weight_is_the_chance_of_a_mixed_group() -> None:
    """Beta(1, 1): E[1 − p^G − (1 − p)^G] = 1 − 2/(G + 1)."""
    assert Belief(1.0, 1.0).mixed(G) == pytest.approx(1 - 2 / (G + 1))
    draws, belief = random.Random(3), Belief(2.5, 0.7)
    rates = [draws.betavariate(2.5, 0.7) for _ in range(20_000)]
    assert belief.mixed(4) == pytest.approx(sum(1 - p**4 - (1 - p) ** 4 for p in rates) / len(rates), abs=0.01)
    assert belief.mean == pytest.approx(sum(rates) / len(rates), abs=0.01)
    assert belief.deviation == pytest.approx((sum((p - belief.mean) ** 2 for p in rates) / len(rates)) ** 0.5, abs=0.01)
    assert Belief(1.0, 1.0).mixed(1) == 0.0


def test_untouched_tasks_are_taken_for_such_as_their_type_s_are() -> None:
    found = [trial(f"sum-{i:03}", 0.5) for i in range(6)] + [trial(f"word-{i:03}", 0.0, kind="word") for i in range(6)]
    known = beliefs(found, [*tasks(8), *tasks(8, "word")])
    assert known["sum-007"].mean == pytest.approx(0.5) and known["word-007"].mean < 0.15
    assert known["sum-007"].mixed(G) > known["word-007"].mixed(G)
    never = beliefs([], tasks(2))
    assert never["sum-000"] == never["sum-001"] and never["sum-000"].mean == 0.5


def test_the_more_alike_a_type_s_tasks_are_the_more_it_says_of_a_new_one() -> None:
    alike = beliefs([trial(f"sum-{i:03}", 0.5) for i in range(20)], tasks(21))["sum-020"]
    apart = beliefs([trial(f"sum-{i:03}", float(i % 2)) for i in range(20)], tasks(21))["sum-020"]
    assert alike.mean == pytest.approx(apart.mean) == 0.5
    assert alike.deviation < 0.2 < apart.deviation
    assert alike.mixed(G) > 0.9 and apart.mixed(G) < 0.5
    fixed = beliefs([trial("sum-000", 1.0)], tasks(2), prior=10.0)["sum-001"]
    assert fixed.right + fixed.wrong == pytest.approx(10.0)


def test_newer_steps_count_more() -> None:
    risen = [trial("sum-000", 0.0, step=0), trial("sum-000", 1.0, step=20)]
    assert beliefs(risen, tasks(1))["sum-000"].mean > 0.75
    assert beliefs(risen, tasks(1), discount=1.0, prior=1e-6)["sum-000"].mean == pytest.approx(0.5)


def test_rewards_that_are_no_pass_rates_are_stretched_by_type() -> None:
    beyond = [trial("sum-000", -3.0), trial("sum-001", 1.0), trial("sum-002", 5.0), trial("w", 0.25, kind="word")]
    assert pass_rates(beyond) == pytest.approx([0.0, 0.5, 1.0, 0.25])
    assert pass_rates([trial("sum-000", 7.0), trial("sum-001", 7.0)]) == [0.5, 0.5]


def test_what_a_wrong_answer_earns_for_its_form_makes_no_task_look_half_solved() -> None:
    """0.7 for the right answer, 0.3 for the form: all wrong is 0.28 here, all right 0.97."""
    blends = [trial("sum-000", 0.281), trial("sum-001", 0.97), trial("sum-002", 0.62)]
    assert pass_rates(blends) == pytest.approx([0.0, 1.0, 0.492], abs=0.001)
    found = weights(blends, tasks(3), G)
    assert found["sum-002"] > 1.5 * max(found["sum-000"], found["sum-001"])


def test_rewards_of_nothing_or_one_are_left_alone_and_so_are_blends_close_together() -> None:
    right = [trial("sum-000", 0.125), trial("sum-001", 0.75)]
    assert pass_rates(right) == [0.125, 0.75]
    close = [trial("sum-000", 0.31), trial("sum-001", 0.33)]
    assert pass_rates(close) == [0.31, 0.33]


# ── the draw ──


values = st.floats(0, 1) | st.floats(-5, 5)
many_trials = st.lists(
    st.builds(
        Trial,
        st.sampled_from("ab"),
        st.integers(0, 9).map(lambda i: f"sum-{i:03}"),
        st.just("sum"),
        st.integers(0, 30),
        values,
        st.integers(1, 16),
    ),
    max_size=30,
)


@given(many_trials, st.integers(1, 16), st.floats(0.01, 0.9))
def test_weights_are_chances_and_never_below_the_floor(found: list[Trial], size: int, floor: float) -> None:
    assert all(floor <= weight <= 1 for weight in weights(found, tasks(12), size, floor=floor).values())


@given(many_trials, st.integers(0, 40), st.integers(0, 2**32))
def test_no_task_is_drawn_twice_and_the_stream_alone_decides(found: list[Trial], count: int, seed: int) -> None:
    some = [*tasks(20), *tasks(7, "word")]
    known = weights(found, some, G)
    drawn = prefer(some, known, count, random.Random(seed))
    assert len({task.id for task in drawn}) == len(drawn) == min(count, len(some))
    assert drawn == prefer(some[::-1], known, count, random.Random(seed))


def test_a_settled_task_is_drawn_less_than_a_mixed_one_but_comes() -> None:
    known, drawn = weights(settled(9), tasks(3), G), Counter[str]()
    for seed in range(600):
        drawn.update(task.id for task in prefer(tasks(3), known, 1, random.Random(seed)))
    assert drawn["sum-002"] > 2 * max(drawn["sum-000"], drawn["sum-001"])
    assert min(drawn["sum-000"], drawn["sum-001"]) > 40


def test_first_places_go_by_weight() -> None:
    """Efraimidis & Spirakis: the first drawn is task i with probability w_i / Σ w."""
    known = {"sum-000": 1.0, "sum-001": 2.0, "sum-002": 5.0}
    first = Counter(prefer(tasks(3), known, 1, random.Random(seed))[0].id for seed in range(4000))
    assert [first[id] / 4000 for id in known] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.025)


def test_a_task_without_weight_comes_last() -> None:
    known = {"sum-000": 0.0, "sum-001": 0.001}
    assert [task.id for task in prefer(tasks(2), known, 2, random.Random(1))] == ["sum-001", "sum-000"]


@given(st.integers(1, 60), st.integers(0, 2**32))
def test_every_stretch_holds_the_types_in_proportion(count: int, seed: int) -> None:
    some = [*tasks(45), *tasks(15, "word")]
    drawn = prefer(some, dict.fromkeys([task.id for task in some], 1.0), count, random.Random(seed))
    assert abs(sum(task.task_type == "word" for task in drawn) - count / 4) <= 1


def test_even_the_rarest_type_comes_as_often_as_it_should() -> None:
    some = [*tasks(196), *tasks(4, "word")]
    known = dict.fromkeys([task.id for task in some], 1.0)
    drawn = [task.task_type for seed in range(500) for task in prefer(some, known, 8, random.Random(seed))]
    assert drawn.count("word") / len(drawn) == pytest.approx(4 / 200, abs=0.008)


def test_interleaved_kinds_keep_their_own_order() -> None:
    kinds = {"sum": tasks(9), "word": tasks(3, "word")}
    found = interleaved(kinds, random.Random(5))
    assert [task for task in found if task.task_type == "sum"] == kinds["sum"]
    assert [task for task in found if task.task_type == "word"] == kinds["word"]
