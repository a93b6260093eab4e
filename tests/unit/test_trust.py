"""What speaks for and against the judges, from groups that were saved."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import group

from grpo_ray.recipe import TrustSpec
from grpo_ray.trust.alarms import (
    ACCEPTED,
    ALARM,
    CANARY,
    HELD,
    ITEMS,
    STEPS,
    agreement,
    asks_models,
    beyond,
    fooled,
    held_back,
    marks,
    open_alarms,
    reviewed,
    tail,
)
from grpo_ray.trust.calibration import share_interval
from grpo_ray.trust.canaries import RIGHT
from grpo_ray.types import Evaluation, Reward, ScoredGroup, ScoredRollout

SPEC = TrustSpec(audit=0.1, canaries=0.01)
KIND = ("rubric", "clarity")


def scored(place: int, *said: Mapping[str, float | None]) -> ScoredGroup:
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


def canary(passed: bool, judge: str = "rubric", step: int = 0) -> dict[str, Any]:
    return {"kind": CANARY, "step": step, "detail": {"judge": judge, "passed": passed}}


def acceptance(kind: str, step: int, judge: str = "rubric") -> dict[str, Any]:
    return {"kind": ACCEPTED, "step": step, "detail": {"kind": kind, "judge": judge}}


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
    events = [canary(True)] * 4 + [canary(False)] * 20 + [canary(False, "other")] * 20
    (alarm,) = reviewed([], events, SPEC).alarms
    assert (alarm.kind, alarm.judge) == ("canaries", "rubric") and "4 of 24" in alarm.words
    right = {"judge": "rubric", "passed": True, "canary": RIGHT}
    assert fooled([right, *(one["detail"] for one in events)]) == {"rubric": (4, 24), "other": (0, 20)}
    assert reviewed([], [*events, acceptance("canaries", 3)], SPEC).alarms == ()
    assert reviewed([], [*events, acceptance("inflation", 3)], SPEC).alarms == (alarm,)


def test_one_fooled_canary_is_no_alarm_of_however_few() -> None:
    for others in (0, 1, 40):
        assert reviewed([], [canary(True)] + [canary(False)] * others, SPEC).alarms == ()


def test_canaries_after_an_acceptance_count_anew() -> None:
    events = [*[canary(True)] * 3, acceptance("canaries", 3), canary(True, step=3), canary(True, step=4)]
    assert reviewed([], events, SPEC).alarms == ()  # one of one since
    (alarm,) = reviewed([], [*events, canary(True, step=5)], SPEC).alarms
    assert "2 of 2" in alarm.words


def test_an_alarm_is_open_until_it_is_accepted_at_its_step_or_later() -> None:
    old, new = ({"kind": "canaries", "judge": "rubric", "words": words} for words in ("old", "new"))
    raised = {"kind": ALARM, "step": 2, "detail": old}
    assert open_alarms([raised]) == [old]
    assert open_alarms([raised, acceptance("canaries", 2)]) == [] == open_alarms([acceptance("canaries", 2), raised])
    again = {"kind": ALARM, "step": 3, "detail": new}
    assert open_alarms([raised, again]) == [new] == open_alarms([raised, acceptance("canaries", 2), again])
    assert open_alarms([raised, acceptance("inflation", 2)]) == [old]


def test_the_tail_of_a_binomial_is_exact() -> None:
    assert tail(2, 3, 0.5) == pytest.approx(0.5) and tail(3, 3, 0.1) == pytest.approx(0.001)
    assert tail(0, 9, 0.02) == pytest.approx(1.0) and tail(1, 9, 0.0) == 0.0 and tail(9, 9, 1.0) == 1.0
    assert not beyond(2, 2, 1.0) and not beyond(1, 1, 0.0) and beyond(2, 50, 0.0)


@pytest.mark.parametrize(("bar", "share"), [(0.02, 0.022), (0.05, 0.029), (0.2, 0.037)])
def test_a_judge_exactly_at_the_bar_seldom_raises_an_alarm_in_a_whole_run(bar: float, share: float) -> None:
    alive, alarmed = [1.0], 0.0  # the chance of so many passed without an alarm until now
    for given_now in range(1, 201):
        longer = [*(chance * (1 - bar) for chance in alive), 0.0]
        for passed, chance in enumerate(alive):
            longer[passed + 1] += chance * bar
        for passed in range(len(longer)):
            if longer[passed] and beyond(passed, given_now, bar):
                alarmed, longer[passed] = alarmed + longer[passed], 0.0
        alive = longer
    assert alarmed == pytest.approx(share, abs=0.0006)


@given(st.integers(0, 50), st.integers(1, 500))
def test_the_low_end_of_a_share_is_below_it(passed: int, more: int) -> None:
    assert 0 <= share_interval(passed, passed + more)[0] <= passed / (passed + more)


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


KINDER = steps([0.3, 0.3, 0.5, 0.6], [0.5, 0.5, 0.3, 0.2])


def test_rules_and_people_that_grow_kinder_raise_no_alarm_for_they_ask_no_model() -> None:
    by_rule = [[heard(one, lambda e: replace(e, model="")) for one in step] for step in KINDER]
    assert reviewed(by_rule, [], SPEC).alarms == ()
    assert asks_models(KINDER[0]) and not asks_models(by_rule[0])


def test_inflation_up_to_an_acceptance_is_no_alarm_and_what_comes_after_is() -> None:
    assert reviewed(KINDER, [acceptance("inflation", 3)], SPEC).alarms == ()
    assert [one.kind for one in reviewed(KINDER, [acceptance("inflation", 3)], SPEC, first=4).alarms] == ["inflation"]
    twice = [*steps([0.3] * STEPS, [0.5] * STEPS), *KINDER]
    assert [one.kind for one in reviewed(twice, [acceptance("inflation", STEPS - 1)], SPEC).alarms] == ["inflation"]


def heard(whole: ScoredGroup, change: Any) -> ScoredGroup:
    """The group with every evaluation but verifiers' changed."""
    return replace(
        whole,
        rollouts=tuple(
            replace(one, evaluations=tuple(e if e.judge == "verifier" else change(e) for e in one.evaluations))
            for one in whole.rollouts
        ),
    )


def mute(words: str, **more: Any) -> Any:
    return lambda e: replace(e, score=None, rationale=words, **more)


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("OracleError: 401 Unauthorized", {"dimension": "all", "model": ""}),
        ("no verdict: 401 Unauthorized", {"model": ""}),
        ("the same answer as r-1: no verdict: 401 Unauthorized", {"model": ""}),
        ("the judge left this out", {}),
    ],
)
def test_a_judge_that_falls_silent_raises_an_alarm_with_the_commonest_reason(words: str, more: dict[str, Any]) -> None:
    step = [scored(i, {"": 0.5, "verified": 1.0}) for i in range(4)]
    silent = [heard(one, mute(words, **more)) for one in step]
    (alarm,) = reviewed([step, [*silent[:3], step[3]]], [], SPEC).alarms
    assert (alarm.kind, alarm.judge) == ("silent", "rubric") and words in alarm.words and "75%" in alarm.words
    assert asks_models(silent)
    assert reviewed([step, [*silent[:2], *step[2:]]], [], SPEC).alarms == ()  # half of them
    assert reviewed([silent, step], [], SPEC).alarms == ()  # it speaks again
    assert reviewed([step, silent], [acceptance("silent", 1)], SPEC).alarms == ()
    assert len(reviewed([step, silent], [acceptance("silent", 1)], SPEC, first=1).alarms) == 1


@pytest.mark.parametrize(
    "words",
    [
        "this task names no verifier",
        "the check gave no verdict: it failed or took too long",
        "no letters to tell a language by",
        "no completion of another group is stored yet",
    ],
)
def test_what_can_t_be_checked_is_no_silence(words: str) -> None:
    step = [heard(scored(i, {"": 0.5}), mute(words, model="")) for i in range(4)]
    assert reviewed([step], [], SPEC).alarms == () and not asks_models(step)


def test_a_panel_that_leaves_its_marks_to_people_is_not_silent() -> None:
    def disputed(e: Evaluation) -> Evaluation:
        return replace(e, judge="panel", score=None, rationale="in dispute: a 0, b 1")

    base = scored(1, {"": 0.5})
    one = base.rollouts[0]
    said = (disputed(one.evaluations[0]), replace(one.evaluations[0], judge="panel/a"))
    assert reviewed([[replace(base, rollouts=(replace(one, evaluations=said),))]], [], SPEC).alarms == ()
