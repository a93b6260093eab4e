"""What a run took, counted from what was saved, beside what was forecast."""

from dataclasses import replace

import pytest
from small_run import CHILD, OUTCOME, SEED, lesson

from grpo_ray.canonical import plain
from grpo_ray.forecasts.forecast import Expected, Forecast, guess
from grpo_ray.forecasts.hindsight import (
    EVENT,
    actual,
    by_group,
    costs,
    gain,
    is_rewrite,
    judged,
    review,
    worth,
)
from grpo_ray.types import Attempt

LESSONS = [lesson(0, SEED), lesson(1, CHILD)]


def call(scope: str, door: str = "host judge", *, status: str = "ok", usd: float = 0.5) -> Attempt:
    return Attempt("hash", door, scope, 1, status, 0.0, 2.0, 100, 10, usd)


CALLS = [
    call("0/g-0/0-rubric"),
    call("0/g-0/0-rubric", status="500", usd=0.0),
    call("0/g-0/1-second", "other judge"),
    call("0/evolve/child/0"),
    call("1/g-1/0-rubric"),
    call("-1/g-exam/0-rubric"),
]


def test_calls_are_told_apart_by_group_and_door() -> None:
    found = by_group(CALLS)
    assert {door: calls.count for door, calls in found["g-0"].items()} == {"host judge": 2, "other judge": 1}
    assert found["g-0"]["host judge"].tokens_in == 200 and found["g-0"]["host judge"].usd == 0.5
    assert [is_rewrite(one) for one in CALLS] == [False, False, False, True, False, False]
    assert by_group([call("odd")])[""]["host judge"].count == 1


def test_stages_are_shared_out_over_their_groups() -> None:
    first, second = costs(LESSONS, CALLS, sample_s=6.0, judge_s=4.0)
    assert (first.task, first.rollouts, first.tokens, first.useful) == ("t-1", 2, 6, True)
    assert (first.sample_s, second.sample_s, second.judge_s) == (3.0, 3.0, 2.0)
    assert first.accepted == 1
    assert [door for door, _ in first.calls] == ["host judge", "other judge"]


def test_what_a_run_took_has_the_names_of_a_forecast() -> None:
    took = actual(CALLS, LESSONS, OUTCOME)
    assert (took["rollouts"], took["sampled_tokens"], took["judge_calls"], took["rewrite_calls"]) == (4, 12, 5, 1)
    assert (took["tokens_in"], took["tokens_out"], took["usd"]) == (600, 60, 2.5)
    assert (took["seconds_steps"], took["seconds_exam"], took["seconds"]) == (10, 5, 15)
    assert "seconds" not in actual(CALLS, LESSONS, None)


def test_what_a_rejudging_took_is_no_part_of_the_run() -> None:
    late = [call("rejudge/0/g-0/0-rubric-repeat"), call("0/g-0/0-rubric-rejudged")]
    assert actual([*CALLS, *late], LESSONS, OUTCOME) == actual(CALLS, LESSONS, OUTCOME)
    assert by_group([*CALLS, *late]) == by_group(CALLS)
    assert review([], [*CALLS, *late], LESSONS, OUTCOME) == review([], CALLS, LESSONS, OUTCOME)


def test_a_forecast_is_judged_quantity_by_quantity() -> None:
    said = Forecast(2, 4, False, {"usd": Expected(2.0, 1.5, 2.4, 1.2, 2.6), "rewrite_calls": Expected(0, 0, 0, 0, 0)})
    found = judged(said, {"usd": 2.5, "rewrite_calls": 1.0, "rows": 3.0})
    usd, rewrites = found.quantities
    assert (usd.ratio, usd.inside80, usd.inside95) == (1.25, False, True)
    assert (rewrites.ratio, rewrites.inside95) == (None, False)
    assert (found.inside80, found.inside95) == (0.0, 0.5)
    assert judged(said, {}).inside80 is None


def test_worth_is_told_by_the_dollar_and_where_nothing_is_paid_by_calls_and_tokens() -> None:
    paid = worth(rows=10, gain=0.2, usd=4.0, calls=500, tokens=2e6)
    assert paid["rows_per_usd"] == 2.5 and paid["gain_per_usd"] == pytest.approx(0.05)
    assert paid["rows_per_1000_calls"] == 20 and paid["rows_per_1M_tokens"] == 5
    free = worth(rows=10, gain=None, usd=0.0, calls=500, tokens=0)
    assert free["rows_per_usd"] is None and free["rows_per_1000_calls"] == 20
    assert free["rows_per_1M_tokens"] is None and free["gain_per_1000_calls"] is None


def test_a_review_sets_a_finished_run_beside_its_forecast() -> None:
    kept = plain(guess(2, {"usd": 5.0, "rollouts": 3.0}))
    late = {"step": 1, "kind": EVENT, "detail": plain(guess(2, {"usd": 0.1}))}
    events = [{"step": 0, "kind": EVENT, "detail": kept}, late, {"step": 0, "kind": "forked", "detail": {}}]
    found = review(events, CALLS, LESSONS, OUTCOME)
    assert [(one["quantity"], one["inside80"]) for one in found["rightness"]["quantities"]] == [
        ("usd", True),
        ("rollouts", False),
    ]
    assert found["worth"]["gain_per_usd"] == pytest.approx(0.3 / 2.0)  # judges' calls alone: a rewrite cost 0.5
    assert review([], CALLS, LESSONS, OUTCOME)["rightness"] is None
    assert review(events, CALLS, LESSONS, None)["rightness"] is None
    assert gain(OUTCOME) == 0.3 and gain(None) is None


def test_rollouts_without_token_ids_weigh_the_same() -> None:
    first, second = LESSONS
    bare = tuple(replace(one, rollout=replace(one.rollout, token_ids=())) for one in first.group.rollouts)
    silent = replace(first, group=replace(first.group, rollouts=bare))
    assert [one.sample_s for one in costs([silent, second], [], sample_s=8.0)] == [2.0, 6.0]
