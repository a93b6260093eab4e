"""What speaks for and against the judges, from groups that were saved."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from serving import group

from grpo_ray.recipe import TrustSpec
from grpo_ray.trust.alarms import (
    ACCEPTED,
    CANARY,
    HELD,
    ITEMS,
    agreement,
    fooled,
    held_back,
    marks,
    reviewed,
    wilson_low,
)
from grpo_ray.trust.canaries import RIGHT
from grpo_ray.types import Evaluation, Reward, ScoredGroup, ScoredRollout

SPEC = TrustSpec(audit=0.1, canaries=0.01)
KIND = ("rubric", "clarity")


def scored(place: int, *said: dict[str, float | None]) -> ScoredGroup:
    """A group whose rollouts were marked on clarity: {audit or "": score}; `verified` and `other` are dimensions."""
    base = replace(group(*(f"text {i}" for i in range(len(said)))), id=f"g-{place}")
    base = replace(base, rollouts=tuple(replace(one, id=f"{base.id}-{one.index}") for one in base.rollouts))
    return ScoredGroup(
        base,
        tuple(
            ScoredRollout(one, tuple(_evaluation(one.id, *pair) for pair in heard.items()), Reward(None, ()))
            for one, heard in zip(base.rollouts, said, strict=True)
        ),
    )


def _evaluation(rollout: str, audit: str, score: float | None) -> Evaluation:
    if audit == "verified":
        return Evaluation(rollout, "verifier", "verified", score, "")
    return Evaluation(rollout, *KIND, score, "", "m", audit=audit)


def canary(passed: bool, judge: str = "rubric") -> dict[str, object]:
    return {"kind": CANARY, "step": 0, "detail": {"judge": judge, "passed": passed}}


def test_only_what_was_judged_again_is_compared() -> None:
    groups = [scored(1, {"": 1.0, "repeat": 0.5}, {"": 0.0}), scored(2, {"": 0.25, "second": 0.25})]
    found = marks(groups)[KIND]
    assert found.raters == ("", "repeat", "second")
    assert found.items == ("g-1-0", "g-2-0") and found.groups == ("g-1", "g-2")
    assert str(found.table.tolist()) == "[[1.0, 0.25], [0.5, nan], [nan, 0.25]]"


def test_a_dimension_that_disagrees_with_itself_is_held_and_one_that_agrees_is_not() -> None:
    same = [scored(i, {"": i % 2, "repeat": i % 2}) for i in range(ITEMS)]
    noisy = [scored(i, {"": i % 2, "repeat": i // 2 % 2}) for i in range(ITEMS)]
    assert reviewed([same], [], SPEC).held == ()
    assert reviewed([noisy], [], SPEC).held == (KIND,)
    assert reviewed([noisy[:-1]], [], SPEC).held == ()  # too few to tell
    assert agreement(same)[KIND].value == 1.0


def test_marks_that_are_all_the_same_say_nothing() -> None:
    assert reviewed([[scored(i, {"": 1.0, "repeat": 1.0}) for i in range(30)]], [], SPEC).held == ()


def test_held_marks_stay_but_do_not_count_and_are_still_compared() -> None:
    plain, audit = _evaluation("r", "", 0.5), _evaluation("r", "repeat", 0.5)
    other = replace(plain, dimension="depth")
    assert held_back([plain, audit, other], [KIND]) == (replace(plain, audit=HELD), audit, other)
    groups = [scored(1, {HELD: 1.0, "repeat": 0.0})]
    assert marks(groups)[KIND].raters == ("", "repeat")


def test_a_judge_that_canaries_fool_raises_an_alarm_until_a_person_accepts_it() -> None:
    events = [canary(True)] * 3 + [canary(False)] * 20 + [canary(False, "other")] * 20
    (alarm,) = reviewed([], events, SPEC).alarms
    assert (alarm.kind, alarm.judge) == ("canaries", "rubric") and "3 of 23" in alarm.words
    right = {"judge": "rubric", "passed": True, "canary": RIGHT}
    assert fooled([right, *(one["detail"] for one in events)]) == {"rubric": (3, 23), "other": (0, 20)}  # pyright: ignore
    accepted = {"kind": ACCEPTED, "step": 3, "detail": {"kind": "canaries", "judge": "rubric"}}
    assert reviewed([], [*events, accepted], SPEC).alarms == ()


def test_one_fooled_canary_of_many_is_no_alarm() -> None:
    assert reviewed([], [canary(True)] + [canary(False)] * 40, SPEC).alarms == ()


@given(st.integers(0, 50), st.integers(1, 500))
def test_the_low_end_of_a_share_is_below_it(passed: int, more: int) -> None:
    assert 0 <= wilson_low(passed, passed + more) <= passed / (passed + more)


def steps(kind: list[float], right: list[float]) -> list[list[ScoredGroup]]:
    """Ten groups a step, whose marks and verdicts spread a little around a mean."""
    return [
        [
            scored(10 * step + i, *({"": mark + 0.02 * (i % 3), "verified": verdict + 0.02 * (i % 2)} for _ in "ab"))
            for i in range(10)
        ]
        for step, (mark, verdict) in enumerate(zip(kind, right, strict=True))
    ]


def test_kinder_marks_for_fewer_right_answers_raise_an_alarm() -> None:
    (alarm,) = reviewed(steps([0.3, 0.3, 0.5, 0.6], [0.5, 0.5, 0.3, 0.2]), [], SPEC).alarms
    assert (alarm.kind, alarm.judge) == ("inflation", "rubric")


def test_kinder_marks_for_better_answers_are_as_it_should_be() -> None:
    assert reviewed(steps([0.3, 0.3, 0.5, 0.6], [0.2, 0.3, 0.5, 0.5]), [], SPEC).alarms == ()
    assert reviewed(steps([0.6, 0.5, 0.3, 0.3], [0.5, 0.5, 0.3, 0.2]), [], SPEC).alarms == ()
