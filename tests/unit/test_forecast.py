"""Forecasts: right where nothing varies, wide where little is known, and honest over many simulated runs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from grpo_ray.forecasts.forecast import Forecast, fit, forecast, guess
from grpo_ray.forecasts.futures import Calls, Door, GroupCost, Measured, Planned, futures
from grpo_ray.forecasts.hindsight import Right, Rightness, judged

PLANNED = Planned(steps=10, prompts=8, templates=4, group_size=8, train_tasks=100)
DOOR = "host judge"


def cost(task: str = "t", tokens: int = 800, *, calls: int = 1, usd: float = 0.01, seconds: float = 2.0) -> GroupCost:
    made = ((DOOR, Calls(calls, 500 * calls, 100 * calls, usd, seconds)),) if calls else ()
    return GroupCost(task, 8, 2, True, tokens, made, sample_s=1.0, judge_s=0.5)


def groups(*tokens: int) -> Measured:
    """A group a task, each with so many tokens and money in proportion."""
    return Measured(tuple(cost(f"t-{i}", one, usd=one / 1e5) for i, one in enumerate(tokens)))


def central(found: Forecast) -> dict[str, float]:
    return {name: one.mean for name, one in found.quantities.items()}


def width(found: Forecast, name: str) -> float:
    one = found.quantities[name]
    assert one.low95 <= one.low80 <= one.mean <= one.high80 <= one.high95
    return one.high80 - one.low80


def test_what_never_varies_is_counted_exactly() -> None:
    said = central(forecast(groups(800, 800, 800, 800), PLANNED))
    assert said["rollouts"] == 10 * 8 * 8
    assert said["judge_calls"] == 10 * 8
    assert said["tokens_in"] == pytest.approx(80 * 500)
    assert said["tokens_out"] == pytest.approx(80 * 100)
    assert said["sampled_tokens"] == pytest.approx(80 * 800)
    assert said["usd"] == pytest.approx(80 * 0.008)
    assert said["rewrite_calls"] == said["seconds_exam"] == 0


def test_the_same_seed_says_the_same() -> None:
    assert forecast(groups(500, 900), PLANNED, seed=3) == forecast(groups(500, 900), PLANNED, seed=3)
    assert forecast(groups(500, 900), PLANNED, seed=3) != forecast(groups(500, 900), PLANNED, seed=4)


def test_more_groups_narrow_the_interval_and_unlike_ones_widen_it() -> None:
    few, many = forecast(groups(500, 900), PLANNED), forecast(groups(*(500, 900) * 8), PLANNED)
    assert width(many, "sampled_tokens") < width(few, "sampled_tokens") / 3
    alike = forecast(groups(*(690, 710) * 8), PLANNED)
    assert width(alike, "sampled_tokens") < width(many, "sampled_tokens")


def test_groups_of_one_task_count_as_one() -> None:
    four = forecast(Measured(tuple(cost(f"t-{i}", 500 + 400 * (i % 2)) for i in range(4))), PLANNED)
    two = forecast(Measured(tuple(cost(f"t-{i % 2}", 500 + 400 * (i % 2)) for i in range(4))), PLANNED)
    assert width(two, "sampled_tokens") > width(four, "sampled_tokens")
    assert any("one task alone" in line for line in forecast(Measured((cost(), cost())), PLANNED).assumed)


def test_lost_groups_cost_rollouts_and_calls() -> None:
    some = Measured((*groups(800, 800, 800).groups, GroupCost("t-9", 0, lost=True)))
    said = central(forecast(some, PLANNED))
    assert said["rollouts"] == pytest.approx(10 * 8 * 8 * 0.75)
    assert said["judge_calls"] == pytest.approx(10 * 8 * 0.75)
    with pytest.raises(ValueError, match="nothing can be forecast"):
        forecast(Measured((GroupCost("t", 0, lost=True),)), PLANNED)


def test_a_refill_samples_again_for_what_taught_nothing() -> None:
    half = Measured(tuple(replace(cost(f"t-{i}"), useful=i % 2 == 0) for i in range(4)))
    assert central(forecast(half, replace(PLANNED, refill=2)))["rollouts"] == pytest.approx(640 * (1 + 0.5 + 0.25))
    assert central(forecast(groups(800, 800), replace(PLANNED, refill=2)))["rollouts"] == 640


def test_a_task_gives_no_more_rows_than_it_may() -> None:
    rich = Measured(tuple(replace(cost(f"t-{i}"), accepted=8) for i in range(4)))
    assert central(forecast(rich, PLANNED))["rows"] == pytest.approx(20 * 4)
    assert central(forecast(rich, replace(PLANNED, train_tasks=5)))["rows"] == pytest.approx(5 * 4)
    none = Measured(tuple(replace(cost(f"t-{i}"), accepted=0) for i in range(4)))
    assert central(forecast(none, PLANNED))["rows"] == 0


@pytest.mark.parametrize(("lag", "step"), [(0, 2.5), (1, 1.25), (2, 1.0)])
def test_a_lag_lets_sampling_judging_and_training_overlap(lag: int, step: float) -> None:
    """One group a step: 1 s of sampling, a call of 0.5 s after it, 1 s of training."""
    measured = Measured((cost(seconds=0.5),), train_s=1.0)
    plan = Planned(steps=100, prompts=1, templates=1, group_size=8, train_tasks=9, lag=lag, trains=True)
    said = central(forecast(measured, plan))
    assert said["seconds_steps"] == pytest.approx(100 * step + 2.5 - step)


def test_slow_judges_set_the_pace_as_their_door_lets_through() -> None:
    plan = replace(PLANNED, steps=1, doors={DOOR: Door(2)})
    slow = Measured((cost("a", seconds=60.0), cost("b", seconds=60.0)))
    assert central(forecast(slow, plan))["seconds"] == pytest.approx(8 * 60 / 2 + 60)
    limited = replace(plan, doors={DOOR: Door(1000, requests_per_minute=2)})
    assert central(forecast(slow, limited))["seconds"] == pytest.approx(8 * 60 / 2 + 60)
    read = replace(plan, doors={DOOR: Door(1000, tokens_per_minute=600)})
    assert central(forecast(slow, read))["seconds"] == pytest.approx(8 * 60 + 60)


@pytest.mark.parametrize(("waves", "generators", "share"), [(4, 2, 0.5), (3, 2, 2 / 3), (1, 4, 1.0), (0, 4, 0.25)])
def test_generators_share_a_step_in_whole_waves(waves: int, generators: int, share: float) -> None:
    silent = Measured(tuple(cost(f"t-{i}", calls=0) for i in range(3)))
    plan = replace(PLANNED, waves=waves, generators=generators)
    judged = replace(silent, groups=tuple(replace(one, judge_s=0.0) for one in silent.groups))
    assert central(forecast(judged, plan))["seconds"] == pytest.approx(80 * share)


def test_exams_and_rewriting_are_forecast_though_nobody_measured_them() -> None:
    plan = replace(PLANNED, exam_answers=(100, 300), exam_judged=1.0, rewrites=2.0, rewrite_usd_per_million=(1.0, 10.0))
    plan = replace(plan, doors={DOOR: Door(16)})
    found, without = forecast(groups(700, 900, 800), plan), forecast(groups(700, 900, 800), PLANNED)
    assert central(found)["seconds_exam"] == pytest.approx(200 / 8)
    assert central(found)["rewrite_calls"] == 20
    assert central(found)["judge_calls"] == pytest.approx(80 + 200 * (1 / 8 + 1) / 2)
    assert width(found, "usd") > width(without, "usd")
    assert {line.split(" ")[0] for line in found.assumed} >= {"exams", "rewriting"}
    known = forecast(Measured(groups(700, 900, 800).groups, rewrites=Calls(10, 1000, 500, 0.5, 10.0)), plan)
    assert not any(line.startswith("rewriting") for line in known.assumed)
    assert central(known)["tokens_out"] - central(found)["tokens_out"] == pytest.approx(20 * (50 - 800))


def test_without_a_measured_group_bounds_stand_and_say_so() -> None:
    said = guess(4, {"rollouts": 64.0, "usd": 2.0})
    assert said.guess and not said.groups
    assert said.quantities["usd"].high80 == said.quantities["usd"].mean == 2.0
    assert said.quantities["usd"].low80 == 0.0


def test_money_or_time_end_the_steps_that_fit() -> None:
    measured = groups(700, 900, 800, 1000)  # about 0.068 USD and 18 s a step
    poor = fit(measured, PLANNED, money=5.0, seconds=1e6)
    assert poor.limit == "money" and 45 < poor.steps < 73
    short = fit(measured, PLANNED, money=1e6, seconds=120.0)
    assert short.limit == "time" and 4 < short.steps < 7
    assert fit(measured, PLANNED, money=5.0, seconds=120.0).steps <= short.steps
    free = fit(measured, PLANNED, money=1e9, seconds=1e9, most=50)
    assert (free.steps, free.limit) == (50, "")


def test_what_fits_holds_with_the_probability_asked_for() -> None:
    measured = groups(300, 900, 1500)
    for chance in (0.5, 0.9):
        found = fit(measured, PLANNED, money=5.0, chance=chance)
        held = [(futures(measured, replace(PLANNED, steps=found.steps + more))["usd"][1:] <= 5.0) for more in (0, 1)]
        assert held[0].mean() >= chance > held[1].mean()


def test_an_exam_that_is_too_dear_leaves_no_step() -> None:
    plan = replace(PLANNED, exam_answers=(1000, 1000), exam_judged=1.0)
    found = fit(groups(700, 900), plan, money=0.01)
    assert (found.steps, found.affordable, found.limit) == (0, False, "money")


def simulated(seed: int, *, steps: int = 6, tasks: int = 8, templates: int = 4, size: int = 8) -> list[GroupCost]:
    """A run: lognormal completion lengths, tasks and templates that differ, a drift after the first step, lost groups."""
    chance = np.random.default_rng(seed)
    of_template = np.exp(chance.normal(0, 0.15, 12))
    of_task = np.exp(chance.normal(0, 0.4, (steps, tasks, 1)))
    drift = np.where(np.arange(steps) > 0, np.exp(chance.normal(0, 0.1)), 1.0)[:, None, None]
    taken = np.array([[chance.permutation(12)[:templates] for _ in range(tasks)] for _ in range(steps)])
    scale = 100 * np.exp(chance.normal(0, 0.3)) * of_task * of_template[taken] * drift
    drawn = scale[..., None] * np.exp(chance.normal(0, 0.9, (*scale.shape, size)))
    lengths = np.minimum(2000, drawn).astype(int).sum(-1)
    tries = 1 + (chance.random(lengths.shape) < 0.04)
    lost = chance.random(lengths.shape) < 0.01
    asked, said = (
        (400 + lengths) * tries,
        (size * 60 * np.exp(chance.normal(0, 0.3, lengths.shape)) * tries).astype(int),
    )
    made = [
        GroupCost(f"t-{step}-{task}", 0, lost=True)
        if lost[at]
        else _group(f"t-{step}-{task}", size, int(lengths[at]), int(tries[at]), int(asked[at]), int(said[at]))
        for at in np.ndindex(*lengths.shape)
        for step, task, _ in [at]
    ]
    first = tasks * templates  # ids are hashes: a step's groups come in any order
    return [made[i] for i in chance.permutation(first)] + made[first:]


def _group(task: str, size: int, tokens: int, tries: int, asked: int, said: int) -> GroupCost:
    calls = Calls(tries, asked, said, (asked + 4 * said) / 1e6, 2.0 * tries)
    return GroupCost(task, size, 2, True, tokens, ((DOOR, calls),))


def looked_back(groups: Sequence[GroupCost], planned: Planned, first: int, *, seed: int, draws: int) -> Rightness:
    """A forecast from a run's `first` groups against all of them: what groups alone make up, without exams.

    Over many runs, `coverage` of these says whether intervals keep what they promise.
    """
    alone = replace(planned, exam_answers=(0, 0), gate_answers=0, rewrites=0.0, rejudged=0.0, trains=False)
    said = forecast(Measured(tuple(groups[:first])), alone, seed=seed, draws=draws)
    every = [calls for group in groups for _, calls in group.calls]
    took = {
        "rollouts": float(sum(group.rollouts for group in groups)),
        "sampled_tokens": float(sum(group.tokens for group in groups)),
        "judge_calls": float(sum(calls.count for calls in every)),
        "tokens_in": float(sum(calls.tokens_in for calls in every)),
        "tokens_out": float(sum(calls.tokens_out for calls in every)),
        "usd": sum(calls.usd for calls in every),
    }
    return judged(said, took)


def coverage(found: Sequence[Rightness]) -> dict[str, tuple[float, float]]:
    """Quantity → the share of forecasts whose 80 %, and whose 95 %, interval held."""
    named: dict[str, list[Right]] = defaultdict(list)
    for one in (one for rightness in found for one in rightness.quantities):
        named[one.quantity].append(one)
    return {
        name: (sum(one.inside80 for one in some) / len(some), sum(one.inside95 for one in some) / len(some))
        for name, some in named.items()
    }


@pytest.mark.parametrize("first", [4, 8])
def test_intervals_hold_as_often_as_they_say(first: int) -> None:
    """300 runs, each forecast from its first groups: an 80 % interval holds in 70 to 90 % of them."""
    plan = Planned(steps=6, prompts=32, templates=4, group_size=8, train_tasks=500)
    held = coverage([looked_back(simulated(seed), plan, first, seed=seed, draws=800) for seed in range(300)])
    for name in ("sampled_tokens", "tokens_in", "tokens_out", "usd"):
        inside80, inside95 = held[name]
        assert 0.7 <= inside80 <= 0.9, (name, inside80)
        assert inside95 >= 0.9, (name, inside95)
    for name in ("rollouts", "judge_calls"):  # nearly certain counts: their intervals may only be too wide
        assert held[name][0] >= 0.7, (name, held[name])


def test_intervals_that_are_too_narrow_would_be_found() -> None:
    """The check above has teeth: the same runs, as if their tasks were all alike."""
    plan = Planned(steps=6, prompts=32, templates=4, group_size=8, train_tasks=500)
    flat = [
        [replace(one, tokens=900) if i < 4 and not one.lost else one for i, one in enumerate(simulated(seed))]
        for seed in range(60)
    ]
    held = coverage([looked_back(run, plan, 4, seed=seed, draws=300) for seed, run in enumerate(flat)])
    assert held["sampled_tokens"][0] < 0.5
