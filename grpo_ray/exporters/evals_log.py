"""Every judged rollout as an openai/evals record log: `log.jsonl`, with the events that `evals.record` writes.

One sample a rollout: `sampling`, `match` where a verifier spoke, `metrics` (a number a judge and dimension, and the
reward), `extra` (the rationales, and why a score is missing). The last line is the final report.
https://github.com/openai/evals/blob/main/evals/record.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grpo_ray.answers import final_answer
from grpo_ray.canonical import plain, short
from grpo_ray.exporters._eval_rows import Judged, accuracy, judged, means, messages, models, moment
from grpo_ray.exporters._folder import MADE_BY, encoded, write
from grpo_ray.types import Lesson, Row

FILE = "log.jsonl"


def export(
    rows: Sequence[Row],
    path: Path,
    *,
    lessons: Sequence[Lesson],
    eval_name: str = "grpo-ray.train",
    created: str | None = None,
) -> Path:
    """Write `path`/log.jsonl and manifest.json. The same lessons and the same `created` (None: now): the same bytes.

    `rows` only mark which rollouts became dataset rows. Raises ConfigError when nothing was judged, or when `path`
    holds what no export wrote.
    """
    found = judged(lessons, rows)
    time = moment(created).strftime("%Y-%m-%d %H:%M:%S.%f+00:00")
    spec = _spec(found, eval_name, time)
    lines = [{"spec": spec}, *_stamped(found, spec), {"final_report": report(found)}]
    content = b"".join(encoded(line) + b"\n" for line in lines)
    return write(Path(path), {FILE: content}, {"format": "evals_log", "samples": len(found)})


def report(found: Sequence[Judged]) -> dict[str, Any]:
    """accuracy (of those with a verdict), the mean of each score, how many have it, and how many a stand-in judged."""
    scores = means(found)
    right = accuracy(found)
    return {
        **({} if right is None else {"accuracy": right}),
        **{f"mean/{name}": mean for name, (mean, _) in scores.items()},
        **{f"count/{name}": count for name, (_, count) in scores.items()},
        "samples": len(found),
        "stand_in": sum(one.stand_in for one in found),
    }


def events(one: Judged) -> Iterator[tuple[str, dict[str, Any]]]:
    """(type, data) of what is recorded of a rollout."""
    task, said = one.group.prompt.task, one.scored.rollout.text
    mark = {"stand_in": one.stand_in}
    yield "sampling", {"prompt": list(messages(one)), "sampled": [said], **one.about}
    if one.verdict is not None:
        right = one.verdict >= 1
        picked = final_answer(said) if right else None
        data = {"correct": right, "expected": task.answer, "picked": picked, "sampled": said}
        yield "match", {**data, "options": [task.answer], **mark}
    yield "metrics", {**one.scores, **mark}
    yield "extra", {"evaluations": plain(one.scored.evaluations), "reward": plain(one.scored.reward), **mark}


def _stamped(found: Sequence[Judged], spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    told = ((one.scored.rollout.id, kind, data) for one in found for kind, data in events(one))
    for number, (sample, kind, data) in enumerate(told):
        about = {"run_id": spec["run_id"], "event_id": number, "sample_id": sample, "type": kind, "data": data}
        yield {**about, "created_by": MADE_BY, "created_at": spec["created_at"]}


def _spec(found: Sequence[Judged], eval_name: str, time: str) -> dict[str, Any]:
    """The fields of `evals.base.RunSpec`. The run's id hashes what is logged, and never names the run."""
    return {
        "completion_fns": models(found),
        "eval_name": eval_name,
        "base_eval": eval_name.partition(".")[0],
        "split": "train",
        "run_config": {"made_by": MADE_BY, "stand_in": any(one.stand_in for one in found)},
        "created_by": MADE_BY,
        "run_id": short("e", [plain(one.scored) for one in found]),
        "created_at": time,
    }
