"""What judging cost: calls, tokens, money and time by door, status and purpose, and what a dollar of it bought."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from grpo_ray import curation
from grpo_ray.forecasts.hindsight import REJUDGED, gain, is_rejudged, is_rewrite, share, summed, worth
from grpo_ray.types import Attempt, Lesson

Numbers = dict[str, Any]
EDGES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""Seconds between which the calls that succeeded are counted; the last bin has no end."""
AUDITS = ("repeat", "permuted", "second", "rejudged")


def costs(attempts: Sequence[Attempt], lessons: Sequence[Lesson], outcome: Mapping[str, Any] | None) -> Numbers:
    """Of the judges' calls alone; rewriting is not judging. Seconds are those of calls that succeeded, each try alone.

    `retries` is the share of tries after the first, `failed` that of tries that ended otherwise than well. Rejudging,
    which may wait for batches, counts in neither seconds nor `worth`.
    """
    paid = [one for one in attempts if not is_rewrite(one)]
    own = [one for one in paid if not is_rejudged(one)]
    every = summed(own)
    rows = len(curation.rows(lessons))
    tokens = every.tokens_in + every.tokens_out
    seconds = [one.seconds for one in own if one.status == "ok"]
    return {
        **_sums(paid),
        "retries": share(one.number > 1 for one in paid),
        "failed": share(one.status != "ok" for one in paid),
        "p50": _quantile(seconds, 0.5),
        "p95": _quantile(seconds, 0.95),
        "latency": latency(seconds),
        "doors": _by(paid, lambda one: one.door),
        "statuses": _by(paid, lambda one: one.status),
        "purposes": _by(paid, purpose),
        "judges": _by(paid, judge_of),
        "rows": rows,
        "worth": worth(rows=rows, gain=gain(outcome), usd=every.usd, calls=every.count, tokens=tokens),
    }


def purpose(attempt: Attempt) -> str:
    """What a call was for: reward, audit, canary, exam or rejudge, told by its scope, step/group/place-judge(-audit)."""
    if is_rejudged(attempt):
        return REJUDGED
    step, group, seat = (*attempt.scope.split("/", 2), "", "")[:3]
    if group.startswith("canary-"):
        return "canary"
    if step == "-1":
        return "exam"
    return "audit" if _audit(seat) else "reward"


def judge_of(attempt: Attempt) -> str:
    """The judge that a call was made for, as the recipe names its file; "" where the scope doesn't tell."""
    seat = (*attempt.scope.removeprefix(f"{REJUDGED}/").split("/", 2), "", "")[2]
    name, audit = seat.partition("-")[2], _audit(seat)
    return name.removesuffix(f"-{audit}") if audit else name


def _audit(seat: str) -> str:
    return next((kind for kind in AUDITS if seat.endswith(f"-{kind}")), "")


def latency(seconds: Iterable[float]) -> list[Numbers]:
    """How many calls took how long, in bins that widen; `high` is None for the last."""
    counts, _ = np.histogram(list(seconds), bins=[*EDGES, np.inf])
    highs = [*EDGES[1:], None]
    return [{"low": a, "high": b, "count": int(n)} for a, b, n in zip(EDGES, highs, counts, strict=True)]


def _by(attempts: Sequence[Attempt], key: Callable[[Attempt], str]) -> list[Numbers]:
    """What `key` says of calls → their sums, by name."""
    found: dict[str, list[Attempt]] = defaultdict(list)
    for one in attempts:
        found[key(one)].append(one)
    return [{"name": name} | _sums(some) for name, some in sorted(found.items())]


def _sums(attempts: Sequence[Attempt]) -> Numbers:
    some = summed(attempts)
    return {
        "calls": some.count,
        "tokens_in": some.tokens_in,
        "tokens_out": some.tokens_out,
        "usd": some.usd,
        "seconds": some.seconds,
    }


def _quantile(seconds: Sequence[float], share: float) -> float | None:
    return float(np.quantile(seconds, share)) if seconds else None
