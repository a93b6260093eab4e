"""Every judged rollout as an inspect-ai log: `log.json`, schema version 2, for `inspect_ai.log.read_eval_log`.

A group is a sample and its rollouts are the sample's epochs; every judge's dimension is a scorer, and so is the
reward. A missing score is left out of `scores` and stands with its reason in the sample's metadata.
https://inspect.aisi.org.uk/eval-logs.html
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_ray.answers import final_answer
from grpo_ray.canonical import plain, short
from grpo_ray.exporters._eval_rows import Judged, judged, means, messages, models, moment, named
from grpo_ray.exporters._folder import MADE_BY, encoded, write
from grpo_ray.types import Lesson, Row

FILE = "log.json"
STOPS = {"stop": "stop", "length": "max_tokens"}
"""Why a completion ended, in inspect-ai's words."""


def export(
    rows: Sequence[Row],
    path: Path,
    *,
    lessons: Sequence[Lesson],
    task: str = "grpo-ray",
    created: str | None = None,
) -> Path:
    """Write `path`/log.json and manifest.json. The same lessons and the same `created` (None: now): the same bytes.

    `rows` only mark which rollouts became dataset rows. Raises ConfigError when nothing was judged, or when `path`
    holds what no export wrote.
    """
    found = judged(lessons, rows)
    time = moment(created).isoformat(timespec="seconds")
    content = encoded(log(found, task, time)) + b"\n"
    return write(Path(path), {FILE: content}, {"format": "inspect_log", "samples": len(found)})


def log(found: Sequence[Judged], task: str, time: str) -> dict[str, Any]:
    """The whole log, as `inspect_ai.log.EvalLog` has it."""
    marks = {"made_by": MADE_BY, "stand_in": sum(one.stand_in for one in found)}
    return {
        "version": 2,
        "status": "success",
        "eval": _eval(found, task, time) | {"metadata": marks},
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": results(found),
        "stats": {"started_at": time, "completed_at": time, "model_usage": {}},
        "samples": [sample(one) for one in found],
    }


def results(found: Sequence[Judged]) -> dict[str, Any]:
    """The mean of each score over the rollouts that have it."""
    scores = [
        {
            "name": name,
            "scorer": name,
            "scored_samples": count,
            "unscored_samples": len(found) - count,
            "params": {},
            "metrics": {"mean": {"name": "mean", "value": mean, "params": {}}},
        }
        for name, (mean, count) in means(found).items()
    ]
    return {"total_samples": len(found), "completed_samples": len(found), "scores": scores}


def sample(one: Judged) -> dict[str, Any]:
    """One rollout, as `inspect_ai.log.EvalSample` has it."""
    rollout, task = one.scored.rollout, one.group.prompt.task
    asked, answer = list(messages(one)), {"role": "assistant", "content": rollout.text, "source": "generate"}
    return {
        "id": one.group.id,
        "epoch": rollout.index + 1,
        "input": asked,
        "target": task.answer or "",
        "messages": [*asked, answer],
        "output": {
            "model": one.group.model,
            "choices": [{"message": answer, "stop_reason": STOPS[rollout.finish_reason]}],
            "usage": _usage(one),
        },
        "scores": _scores(one),
        "metadata": {**one.about, "missing": one.missing, "reward": plain(one.scored.reward)},
        "store": {},
        "events": [],
        "model_usage": {},
    }


def _eval(found: Sequence[Judged], task: str, time: str) -> dict[str, Any]:
    groups = list(dict.fromkeys(one.group.id for one in found))
    most = max(one.scored.rollout.index for one in found) + 1
    return {
        "eval_id": short("e", [plain(one.scored) for one in found]),
        "run_id": short("e", groups),
        "created": time,
        "task": task,
        "task_id": short("t", task),
        "task_version": 0,
        "task_attribs": {},
        "task_args": {},
        "dataset": {"name": task, "samples": len(groups), "sample_ids": groups, "shuffled": False},
        "model": ", ".join(models(found)),
        "model_args": {},
        "config": {"epochs": most},
        "packages": {},
    }


def _scores(one: Judged) -> dict[str, Any]:
    said = {named(e): e for e in one.heard}
    answer = final_answer(one.scored.rollout.text)
    found: dict[str, Any] = {}
    for name, value in one.scores.items():
        about = {"answer": answer, "metadata": {"stand_in": one.stand_in}}
        if (evaluation := said.get(name)) is not None:
            about["explanation"] = evaluation.rationale
            about["metadata"] = {"judge": evaluation.judge, "model": evaluation.model, "stand_in": evaluation.stand_in}
        found[name] = {"value": value, **about}
    return found


def _usage(one: Judged) -> dict[str, int]:
    asked, said = len(one.group.prompt_token_ids), len(one.scored.rollout.token_ids)
    return {"input_tokens": asked, "output_tokens": said, "total_tokens": asked + said}
