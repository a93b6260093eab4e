"""What the bundled server says when it is asked to put answers in order: by the marks that it would give each."""

from itertools import groupby
from statistics import fmean
from typing import Any

from grpo_ray.stand_ins.rules import Look, accuracy, consistency, look, reasoning, relevance

RULES = (reasoning, consistency, relevance, accuracy)


def rank(data: dict[str, Any]) -> dict[str, Any]:
    """A note on every answer of {"question", "answers": [{"id", "text"}], "rank_by"}, then their ids from the best to
    the worst, those with equal mean marks tied. Where an answer stands means nothing to it, nor does `rank_by`."""
    judged = [(one["id"], *_mark(look(data["question"], one["text"]))) for one in data["answers"]]
    notes = [{"answer": id, "rationale": words} for id, _, words in judged]
    best_first = sorted(judged, key=lambda one: -one[1])
    ranking = [[id for id, _, _ in tied] for _, tied in groupby(best_first, key=lambda one: one[1])]
    return {"notes": notes, "ranking": ranking}


def _mark(seen: Look) -> tuple[float, str]:
    """The mean of its marks, 1 to 5, and the words of the lowest."""
    marks = [rule(seen) for rule in RULES]
    return fmean(score for score, _ in marks), min(marks, key=lambda mark: mark[0])[1]
