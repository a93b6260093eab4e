"""The numbers that tell how far judges can be trusted, on runs whose judges have known faults."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from judged import OPENER, RECIPE, canaries, faulty, scored

from grpo_ray.recipe import JudgeSpec, RewardSpec
from grpo_ray.trust.report import PHRASES, Saved, distribution, judge_report
from grpo_ray.trust.sheet import places_in_request, sheet
from grpo_ray.types import Evaluation, ScoredRollout

NAMES = ("depth", "reasoning", "relevance")


def rubric(report: dict[str, Any]) -> dict[str, Any]:
    (judge,) = [one for one in report["judges"] if one["judge"] == "rubric"]
    return judge


def dimension(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in rubric(report)["dimensions"] if one["dimension"] == name]
    return found


def few(*groups: Any, **more: Any) -> Saved:
    return Saved("run-1", RECIPE, {0: list(groups)}, **more)


def test_a_report_is_plain_json_and_the_same_every_time() -> None:
    report = judge_report(faulty(groups=20))
    assert report == judge_report(faulty(groups=20))
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_each_dimension_is_told_for_what_it_is() -> None:
    report = judge_report(faulty())
    assert [one["dimension"] for one in rubric(report)["dimensions"]] == list(NAMES)
    assert dimension(report, "reasoning")["worth"] == "trusted"
    depth = dimension(report, "depth")
    assert depth["worth"] == "not trusted" and depth["why"].endswith("under 0.67")
    relevance = dimension(report, "relevance")
    assert (relevance["worth"], relevance["why"]) == ("says nothing", "all 480 marks are 1")
    words = " ".join(next(one["words"] for one in report["verdict"] if one["about"] == "rubric"))
    assert "trusted on reasoning;" in words and "relevance says nothing: all 480 marks are 1" in words


def test_agreement_and_noise_are_those_that_were_planted() -> None:
    found = dimension(judge_report(faulty(noise=0.05)), "reasoning")
    noise, alpha = found["agreement"]["noise"], found["agreement"]["alpha"]
    assert noise["low"] < 0.05 < noise["high"] and noise["items"] == 480
    # Marks differ by the verdict, 0.2² in variance, and by noise, 0.05²: what they share is alpha.
    assert alpha["value"] == pytest.approx(0.04 / 0.0425, abs=0.02)
    assert found["agreement"]["audits"] == {"repeat": 480}


def test_a_judge_that_follows_the_verifier_tells_right_from_wrong_and_one_by_chance_does_not() -> None:
    report = judge_report(faulty())
    assert dimension(report, "reasoning")["verifier"]["auc"]["value"] > 0.99
    auc = dimension(report, "depth")["verifier"]["auc"]
    assert auc["low"] < 0.5 < auc["high"]


def test_an_opener_that_pays_raises_an_alarm_and_one_that_does_not_raises_none() -> None:
    biased, clean = (rubric(judge_report(faulty(opener=size)))["bias"] for size in (0.1, 0.0))
    names = [(one["finding"]["name"], one["finding"]["dimension"]) for one in biased["alarms"]]
    assert (OPENER.strip(), "reasoning") in names and biased["sure"] and biased["truth"] == "verifiers"
    (found,) = [one for one in biased["findings"] if (one["name"], one["dimension"]) == (OPENER.strip(), "reasoning")]
    assert found["points_low"] < 0.1 < found["points_high"]
    assert [one for one in clean["alarms"] if one["finding"]["kind"] != "noise"] == []


def test_phrases_that_no_answer_has_are_said_to_be_absent_and_style_that_nobody_kept_left_out() -> None:
    bias = rubric(judge_report(faulty(groups=10)))["bias"]
    assert len(bias["phrases_absent"]) == len(PHRASES) - 1 and "a Markdown heading" in bias["phrases_absent"]
    assert "log-probabilities" in bias["left_out"][0]


def test_own_model_style_is_told_where_log_probabilities_were_kept() -> None:
    saved = faulty(groups=12)
    steps = {step: [_with_logprobs(one) for one in groups] for step, groups in saved.steps.items()}
    bias = rubric(judge_report(replace(saved, steps=steps)))["bias"]
    assert bias["left_out"] == [] and "own-model style" in {one["name"] for one in bias["findings"]}


def _with_logprobs(scored_group: Any) -> Any:
    def kept(one: ScoredRollout, i: int) -> ScoredRollout:
        return replace(one, rollout=replace(one.rollout, model_logprobs=(-0.1 * i, -0.2)))

    return replace(scored_group, rollouts=tuple(kept(one, i) for i, one in enumerate(scored_group.rollouts)))


def test_places_in_the_request_are_told_only_where_answers_shared_one() -> None:
    saved = faulty(groups=12)
    shared = JudgeSpec(name="rubric", settings={"answers_per_call": 4})
    kinds = {one["kind"] for one in rubric(judge_report(saved))["bias"]["findings"]}
    assert "position" not in kinds
    both = replace(saved, recipe=replace(RECIPE, judges=(shared,)))
    assert "position" in {one["kind"] for one in rubric(judge_report(both))["bias"]["findings"]}


def test_places_go_by_the_different_texts_of_a_group() -> None:
    mark = {("rubric", "x", ""): 0.5}
    one, other = scored("g-1", dict.fromkeys("abcde", mark)), scored("g-2", dict.fromkeys("ab", mark))
    again = replace(one.rollouts[4], rollout=replace(one.rollouts[4].rollout, text="b"))
    found = sheet({0: [replace(one, rollouts=(*one.rollouts[:4], again)), other]})
    shared = replace(RECIPE, judges=(JudgeSpec(name="rubric", settings={"answers_per_call": 3}),))
    places = places_in_request(found, "rubric", shared)
    assert places is not None and places.tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert places_in_request(found, "rubric", RECIPE) is None and places_in_request(found, "other", shared) is None


def test_without_a_verifier_nothing_sure_is_said_of_bias() -> None:
    said = {("rubric", "reasoning", ""): 0.5, ("strict", "reasoning", ""): 0.25}
    one = scored("g-1", {f"text {i}": said for i in range(4)})
    assert rubric(judge_report(few(one)))["bias"]["truth"] == "other judges"
    alone = scored("g-1", {f"text {i}": {("rubric", "reasoning", ""): 0.5} for i in range(4)})
    bias = rubric(judge_report(few(alone)))["bias"]
    assert (bias["truth"], bias["sure"], bias["alarms"]) == ("", False, [])


def test_missing_marks_are_counted_with_their_reasons() -> None:
    key = ("rubric", "reasoning", "")
    report = judge_report(few(scored("g-1", {"a": {key: None}, "b": {key: 0.5}, "c": {key: None}})))
    found = dimension(report, "reasoning")
    assert found["missing"] == {"count": 2, "reasons": [{"why": "timeout", "count": 2}]}
    assert (found["worth"], found["why"]) == ("unknown", "no rollout was judged again")


def test_a_judge_that_gave_up_on_whole_groups_is_told_apart_from_a_dimension() -> None:
    base = scored("g-1", {"a": {("rubric", "reasoning", ""): 0.5}})
    given_up = Evaluation(base.rollouts[0].rollout.id, "rubric", "all", None, "TimeoutError")
    group = replace(base, rollouts=(replace(base.rollouts[0], evaluations=(*base.rollouts[0].evaluations, given_up)),))
    found = rubric(judge_report(few(group)))
    assert found["failed"] == {"count": 1, "reasons": [{"why": "TimeoutError", "count": 1}]}
    assert [one["dimension"] for one in found["dimensions"]] == ["reasoning"]


def test_a_dimension_without_any_mark_is_still_told_of() -> None:
    key, other = ("rubric", "reasoning", ""), ("rubric", "depth", "")
    found = dimension(judge_report(few(scored("g-1", {"a": {key: None, other: 1.0}}))), "reasoning")
    assert (found["marks"], found["missing"]["count"], found["why"]) == (0, 1, "no mark was given")


def test_versions_are_told_apart_where_there_are_several() -> None:
    saved = faulty(groups=8)
    assert rubric(judge_report(saved))["versions"] == [] and rubric(judge_report(saved))["version"] == "j-1"
    newer = [_in_version(one, "j-2") for one in saved.steps[3]]
    versions = rubric(judge_report(replace(saved, steps={**saved.steps, 3: newer})))["versions"]
    assert [(one["version"], one["steps"]) for one in versions] == [("j-1", [0, 1, 2]), ("j-2", [3])]
    assert [one["marks"] for one in versions[1]["dimensions"]] == [16, 16, 16]


def _in_version(group: Any, version: str) -> Any:
    rollouts = (
        replace(one, evaluations=tuple(replace(e, version=version) for e in one.evaluations)) for one in group.rollouts
    )
    return replace(group, rollouts=tuple(rollouts))


def test_canaries_are_told_by_kind_with_intervals() -> None:
    found = rubric(judge_report(few(scored("g", {"a": {("rubric", "x", ""): 1.0}}), events=canaries())))["canaries"]
    assert (found["passed"], found["given"], found["share"]) == (10, 20, 0.5)
    assert [(one["kind"], one["passed"], one["given"]) for one in found["kinds"]] == [
        ("empty", 0, 10),
        ("opener", 10, 10),
    ]
    # Wilson's interval of 10 of 20: (0.5 + z²/40 ± z √(1/80 + z²/1600)) / (1 + z²/20), z = 1.96
    assert (found["low"], found["high"]) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))


def test_a_panels_members_are_ranked_by_how_they_go_with_the_others() -> None:
    marks = [0.0, 0.25, 0.5, 0.75, 1.0, 0.5]
    odd = [1.0, 0.0, 0.75, 0.0, 0.25, 0.5]
    answers = {
        f"text {i}": {
            ("panel", "x", ""): mark,
            ("panel/a", "x", ""): mark,
            ("panel/b", "x", ""): mark,
            ("panel/odd", "x", ""): odd[i],
        }
        for i, mark in enumerate(marks)
    }
    report = judge_report(few(scored("g-1", answers)))
    (panel,) = report["panels"]
    assert [one["member"] for one in panel["members"]] == ["panel/a", "panel/b", "panel/odd"]
    assert panel["members"][2]["alpha_without"] == 1.0 > panel["alpha"]
    assert {one["judge"]: one["member_of"] for one in report["judges"]} == {
        "panel": None,
        **dict.fromkeys(("panel/a", "panel/b", "panel/odd"), "panel"),
    }


def test_calibration_maps_marks_to_verdicts_and_says_by_how_many_labels() -> None:
    found = rubric(judge_report(faulty()))["calibration"]
    assert found["labels"] == 480 and found["gain"]["gain"] > 0 and found["gain"]["low"] > 0
    assert [one["label"] for one in found["map"]] == sorted(one["label"] for one in found["map"])
    assert sum(one["count"] for one in found["bins"]) == 480
    assert rubric(judge_report(faulty(groups=4)))["people"] is None


def test_peoples_labels_are_calibrated_on_too() -> None:
    keys = ("rubric", "x", ""), ("person:ada", "x", "")
    answers = {f"text {i}": {keys[0]: i / 4, keys[1]: float(i > 2)} for i in range(5)}
    report = judge_report(few(*(scored(f"g-{i}", answers) for i in range(12))))
    assert rubric(report)["people"]["labels"] == 60 and rubric(report)["calibration"] is None
    assert [one["judge"] for one in report["others"]] == ["person:ada"]
    assert report["accuracy"]["people"]["value"] == pytest.approx(0.4)


def test_reward_noise_is_what_repeats_would_move_a_reward_by() -> None:
    first, again = ("rubric", "x", ""), ("rubric", "x", "repeat")
    group = scored("g-1", {"a": {first: 0.5, again: 0.7}, "b": {first: 0.2, again: 0.2}})
    found = judge_report(few(group))["reward"]
    # One pair differs by 0.2, one not at all: s² = (0.02 + 0) / 2, and c4 of two degrees of freedom is √(π/4).
    assert found["noise"]["value"] == pytest.approx(0.1 / math.sqrt(math.pi / 4))
    assert found["inside_groups"] == pytest.approx(0.3 / math.sqrt(2))


def test_reward_noise_sees_gates_and_marks_that_are_held() -> None:
    first, again, verdict = ("rubric", "x", ""), ("rubric", "x", "repeat"), ("verifier", "verified", "")
    group = scored("g-1", {"a": {first: 0.5, again: 0.7, verdict: 0.0}, "b": {first: 0.5, again: 0.5, verdict: 1.0}})
    gated = replace(RECIPE, rewards=(RewardSpec(name="judge_score"), RewardSpec(name="verified", gate=1.0, weight=0.0)))
    shut = replace(group.rollouts[0], reward=replace(group.rollouts[0].reward, value=0.0))
    saved = Saved("run-1", gated, {0: [replace(group, rollouts=(shut, group.rollouts[1]))]})
    assert judge_report(saved)["reward"]["noise"]["value"] == 0.0
    held = scored("g-1", {"a": {("rubric", "x", "held"): 0.5, again: 0.7, ("rubric", "y", ""): 0.5}})
    assert judge_report(few(held))["reward"]["noise"]["value"] is None


def test_costs_are_told_by_purpose_and_leave_rewriting_out() -> None:
    costs = judge_report(faulty(groups=4))["costs"]
    assert costs["calls"] == 8 and costs["usd"] == 4.0
    assert {one["name"]: one["calls"] for one in costs["purposes"]} == {"audit": 2, "canary": 1, "exam": 1, "reward": 4}
    assert [one["name"] for one in costs["judges"]] == ["rubric"]
    assert {one["name"]: one["calls"] for one in costs["statuses"]} == {"429": 1, "ok": 7}
    assert (costs["retries"], costs["failed"]) == (0.125, 0.125)
    assert costs["p50"] == pytest.approx(0.5) and sum(one["count"] for one in costs["latency"]) == 7
    assert costs["worth"]["rows_per_usd"] == costs["rows"] / 4


def test_steps_held_dimensions_and_alarms_are_told_over_steps() -> None:
    words = {"kind": "inflation", "judge": "rubric", "words": "rubric's scores rose"}
    alarm = {"kind": "judges_alarm", "step": 1, "detail": words}
    held = scored("g-2", {"a": {("rubric", "x", "held"): 1.0, ("verifier", "verified", ""): 0.0}})
    steps = {0: [scored("g-1", {"a": {("rubric", "x", ""): 0.5, ("verifier", "verified", ""): 1.0}})], 1: [held]}
    report = judge_report(Saved("run-1", RECIPE, steps, events=[alarm]))
    assert [(one["step"], one["verified"], one["judges"]["rubric"]) for one in report["over_steps"]] == [
        (0, 1.0, 0.5),
        (1, 0.0, 1.0),
    ]
    assert dimension(report, "x")["held_steps"] == [1] and report["alarms"] == [{"step": 1, **words}]
    assert any("rubric's scores rose" in " ".join(one["words"]) for one in report["verdict"])
    accepted = {"kind": "judges_accepted", "step": 2, "detail": {"kind": "inflation", "judge": "rubric"}}
    later = judge_report(Saved("run-1", RECIPE, steps, events=[alarm, accepted]))
    assert not any("rubric's scores rose" in " ".join(one["words"]) for one in later["verdict"])


def test_a_stand_in_is_named_first() -> None:
    report = judge_report(faulty(groups=4, stand_in=True))
    assert "rubric" in report["stand_in"] and "stand-in" in report["verdict"][0]["words"][0]


def test_a_run_without_anything_says_so() -> None:
    report = judge_report(Saved("run-1", RECIPE, {}))
    assert report["judges"] == [] and report["rollouts"] == 0 and report["costs"]["calls"] == 0
    assert "No judge of this run asked a model" in report["verdict"][0]["words"][0]


def test_a_judge_that_failed_on_everything_is_named_with_its_reason() -> None:
    base = scored("g-1", {"a": {("verifier", "verified", ""): 1.0}, "b": {("verifier", "verified", ""): None}})
    words = "OracleError: 401 Unauthorized"
    rollouts = tuple(
        replace(one, evaluations=(*one.evaluations, Evaluation(one.rollout.id, "rubric", "all", None, words)))
        for one in base.rollouts
    )
    report = judge_report(few(replace(base, rollouts=rollouts)))
    (silent,) = report["silent"]
    assert silent == {"judge": "rubric", "missing": {"count": 2, "reasons": [{"why": words, "count": 2}]}}
    assert [one["about"] for one in report["verdict"]] == ["rubric"] and words in report["verdict"][0]["words"][0]
    assert judge_report(few(base))["silent"] == []


def test_rejudging_is_told_as_such_and_counts_in_neither_seconds_nor_worth() -> None:
    saved = faulty(groups=4)
    late = replace(saved.attempts[0], scope="rejudge/0/g-1/0-rubric-repeat", seconds=40000.0)
    before, after = (judge_report(replace(saved, attempts=(*saved.attempts, *some)))["costs"] for some in ((), (late,)))
    assert [after[name] == before[name] for name in ("p50", "p95", "latency", "worth")] == [True] * 4
    assert after["calls"] == before["calls"] + 1 and [one["name"] for one in after["judges"]] == ["rubric"]
    assert {one["name"]: one["calls"] for one in after["purposes"]}["rejudge"] == 1


def test_many_different_marks_are_counted_in_bins() -> None:
    few_levels = distribution([0.0, 0.5, 0.5, 1.0])
    assert [(one["low"], one["count"]) for one in few_levels] == [(0.0, 1), (0.5, 2), (1.0, 1)]
    many = distribution([i / 100 for i in range(101)])
    assert len(many) == 10 and sum(one["count"] for one in many) == 101 and many[-1]["count"] == 11
