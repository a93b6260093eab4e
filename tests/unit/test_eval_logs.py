"""Judged groups as openai/evals and inspect-ai logs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import ADAPTER, CHILD, HOSTILE, SEED, lesson

from grpo_ray.errors import ConfigError
from grpo_ray.exporters import evals_log, inspect_log
from grpo_ray.types import Evaluation, Lesson, Message, Reward, Row

LESSONS = [lesson(1, CHILD, ADAPTER), lesson(0, SEED)]
ROWS = [Row("row-1", "train", (Message("user", "?"),), 1.0, "t-1", "any", "t-seed", "r-0-0", None, True)]
WHEN = "2026-01-31T12:00:00+01:00"
SPEC = {"completion_fns", "eval_name", "base_eval", "split", "run_config", "created_by", "run_id", "created_at"}
"""The fields of evals.base.RunSpec."""
EVENT = {"run_id", "event_id", "sample_id", "type", "data", "created_by", "created_at"}
"""The fields of evals.record.Event."""
INSPECT: dict[str, tuple[set[str], set[str]]] = {
    "log": ({"eval"}, {"version", "status", "plan", "results", "stats", "samples", "metadata", "error"}),
    "eval": (
        {"created", "task", "dataset", "model", "config"},
        {"eval_id", "run_id", "task_id", "task_version", "task_attribs", "task_args", "model_args"}
        | {"packages", "metadata"},
    ),
    "dataset": (set(), {"name", "location", "samples", "sample_ids", "shuffled"}),
    "score": ({"name", "scorer"}, {"reducer", "scored_samples", "unscored_samples", "params", "metrics", "metadata"}),
    "metric": ({"name", "value"}, {"params", "metadata"}),
    "sample": (
        {"id", "epoch", "input", "target"},
        {"messages", "output", "scores", "metadata", "store", "events", "model_usage"},
    ),
    "output": (set(), {"model", "choices", "completion", "usage"}),
    "said": ({"value"}, {"answer", "explanation", "metadata", "reason", "history"}),
}
"""Part → (fields that inspect-ai 0.3.285 requires, some it knows), recorded from its JSON schema."""


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").split("\n") if line]


def fits(part: str, found: dict[str, Any]) -> None:
    required, known = INSPECT[part]
    assert required <= found.keys() <= required | known, part


def silent(one: Lesson) -> Lesson:
    """The same lesson without evaluations or rewards."""
    rollouts = tuple(replace(r, evaluations=(), reward=Reward(None, ())) for r in one.group.rollouts)
    return replace(one, group=replace(one.group, rollouts=rollouts))


def test_the_evals_log_has_a_spec_events_and_a_report(tmp_path: Path) -> None:
    spec, *events, report = lines(evals_log.export(ROWS, tmp_path / "out", lessons=LESSONS, created=WHEN))
    assert spec["spec"].keys() == SPEC and spec["spec"]["completion_fns"] == ["nano"]
    assert spec["spec"]["created_at"] == "2026-01-31 11:00:00.000000+00:00"
    assert all(event.keys() == EVENT for event in events)
    assert [event["event_id"] for event in events] == list(range(16))
    assert [event["type"] for event in events[:4]] == ["sampling", "match", "metrics", "extra"]
    assert [event["sample_id"] for event in events[::4]] == ["r-0-0", "r-0-1", "r-1-0", "r-1-1"]
    assert report["final_report"] == {
        **{"accuracy": 0.5, "mean/reward": 0.5, "mean/verifier/verified": 0.5, "samples": 4, "stand_in": 4},
        **{"count/reward": 4, "count/verifier/verified": 4},
    }


def test_the_events_tell_what_was_said(tmp_path: Path) -> None:
    _, *events, _ = lines(evals_log.export(ROWS, tmp_path / "out", lessons=LESSONS))
    sampling, match, metrics, extra = (event["data"] for event in events[:4])
    assert sampling["prompt"] == [{"role": "user", "content": "What is it? What is 5 + 7?"}]
    assert sampling["row"] == "row-1" and sampling["adapter"] is None and sampling["template_id"] == "t-seed"
    assert match["correct"] is True and match["expected"] == "12" and match["picked"] == "12 (step 0)"
    assert metrics == {"reward": 1.0, "verifier/verified": 1.0, "stand_in": True}
    missing = extra["evaluations"][1]
    assert missing["score"] is None and missing["rationale"] == "the judge left this out"
    wrong = events[5]["data"]
    assert wrong["correct"] is False and wrong["picked"] is None and wrong["sampled"] == HOSTILE


def test_stand_ins_are_marked_and_audits_stay_out_of_the_means(tmp_path: Path) -> None:
    (one, other) = LESSONS[0].group.rollouts
    audit = Evaluation(one.rollout.id, "verifier", "verified", 0.0, "again", audit="repeat")
    real = replace(other, evaluations=other.evaluations[:1])
    group = replace(LESSONS[0].group, rollouts=(replace(one, evaluations=(audit, *one.evaluations)), real))
    _, *events, report = lines(evals_log.export([], tmp_path / "out", lessons=[replace(LESSONS[0], group=group)]))
    assert [event["data"]["stand_in"] for event in events] == [True] * 4 + [False] * 4
    assert report["final_report"]["stand_in"] == 1 and report["final_report"]["accuracy"] == 0.5
    assert events[2]["data"]["verifier/verified"] == 1.0


def test_what_nobody_scored_has_no_match_and_no_accuracy(tmp_path: Path) -> None:
    _, *events, report = lines(evals_log.export([], tmp_path / "out", lessons=[silent(LESSONS[0])]))
    assert {event["type"] for event in events} == {"sampling", "metrics", "extra"}
    assert report["final_report"] == {"samples": 2, "stand_in": 0}


def test_the_inspect_log_has_the_fields_that_inspect_reads(tmp_path: Path) -> None:
    out = inspect_log.export(ROWS, tmp_path / "out", lessons=LESSONS, created=WHEN)
    log = json.loads((out / "log.json").read_text("utf-8"))
    assert log["version"] == 2 and log["status"] == "success"
    assert log["eval"]["created"] == "2026-01-31T11:00:00+00:00" == log["stats"]["completed_at"]
    fits("log", log)
    fits("eval", log["eval"])
    fits("dataset", log["eval"]["dataset"])
    for score in log["results"]["scores"]:
        fits("score", score)
        fits("metric", score["metrics"]["mean"])
    for sample in log["samples"]:
        fits("sample", sample)
        fits("output", sample["output"])
        for said in sample["scores"].values():
            fits("said", said)


def test_a_group_is_a_sample_and_its_rollouts_are_epochs(tmp_path: Path) -> None:
    out = inspect_log.export(ROWS, tmp_path / "out", lessons=LESSONS)
    log = json.loads((out / "log.json").read_text("utf-8"))
    assert [(s["id"], s["epoch"]) for s in log["samples"]] == [("g-0", 1), ("g-0", 2), ("g-1", 1), ("g-1", 2)]
    assert log["eval"]["dataset"]["sample_ids"] == ["g-0", "g-1"] and log["eval"]["config"] == {"epochs": 2}
    first = log["samples"][0]
    assert first["target"] == "12" and first["messages"][-1]["role"] == "assistant"
    choice = first["output"]["choices"][0]
    assert choice["stop_reason"] == "stop" and choice["message"]["content"].startswith("5 + 7 = 12")
    assert (
        first["scores"]["verifier/verified"]["explanation"] == "compared" and "rubric/relevance" not in first["scores"]
    )
    assert first["metadata"]["missing"] == {"rubric/relevance": "the judge left this out"}
    assert first["metadata"]["stand_in"] is True and first["metadata"]["row"] == "row-1"
    assert log["eval"]["metadata"] == {"made_by": "grpo-ray", "stand_in": 4}
    assert log["samples"][2]["metadata"]["adapter"] == ADAPTER.hash


@pytest.mark.parametrize("exporter", [evals_log, inspect_log])
def test_the_same_lessons_at_the_same_time_make_the_same_bytes(tmp_path: Path, exporter: Any) -> None:
    one = exporter.export(ROWS, tmp_path / "one", lessons=LESSONS, created=WHEN)
    two = exporter.export(ROWS, tmp_path / "two", lessons=LESSONS[::-1], created=WHEN)
    assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in two.iterdir()}
    assert "manifest.json" in {f.name for f in one.iterdir()}


@pytest.mark.parametrize("exporter", [evals_log, inspect_log])
def test_what_can_t_be_written_is_said(tmp_path: Path, exporter: Any) -> None:
    with pytest.raises(ConfigError, match="no completion has been judged"):
        exporter.export([], tmp_path / "out", lessons=[])
    with pytest.raises(ConfigError, match="write a time such as"):
        exporter.export([], tmp_path / "out", lessons=LESSONS, created="yesterday")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exporter", [evals_log, inspect_log])
def test_half_a_character_is_no_fault(tmp_path: Path, exporter: Any) -> None:
    rollout = LESSONS[0].group.rollouts[0]
    hostile = replace(rollout, rollout=replace(rollout.rollout, text="half \ud800\u2028"))
    group = replace(LESSONS[0].group, rollouts=(hostile, LESSONS[0].group.rollouts[1]))
    out = exporter.export([], tmp_path / "out", lessons=[replace(LESSONS[0], group=group)])
    assert all("half \ufffd" in f.read_text("utf-8") for f in out.glob("log.*"))
