"""What a run took, counted from what was saved: group by group, and in all; how right its forecast was, and what a
judge's dollar bought. Pure: saved nouns in, plain numbers out.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_ray import curation
from grpo_ray.canonical import plain, typed
from grpo_ray.forecasts.forecast import Forecast
from grpo_ray.forecasts.futures import Calls, GroupCost
from grpo_ray.types import Attempt, Lesson, LostGroup

EVENT = "forecast"
"""The kind of event that a run's forecast is kept as."""
REJUDGED = "rejudge"
"""What the scopes of a rejudging's calls begin with."""


@dataclass(frozen=True, slots=True)
class Right:
    """One quantity: what was forecast, what it came to, `ratio` (actual over forecast; None: 0 was forecast)."""

    quantity: str
    forecast: float
    actual: float
    ratio: float | None
    inside80: bool
    inside95: bool


@dataclass(frozen=True, slots=True)
class Rightness:
    """How right a forecast was, by quantity, and which share of them lay inside the intervals."""

    quantities: tuple[Right, ...]
    inside80: float | None
    inside95: float | None


def costs(
    lessons: Sequence[Lesson], attempts: Sequence[Attempt], *, sample_s: float = 0.0, judge_s: float = 0.0
) -> tuple[GroupCost, ...]:
    """What each lesson's group took, in the lessons' order.

    The stages' wall times `sample_s` and `judge_s` are shared out: sampling by tokens, judging by rollouts.
    """
    calls = by_group(attempts)
    tokens = [sum(_length(one.rollout.token_ids) for one in lesson.group.rollouts) for lesson in lessons]
    rollouts = [len(lesson.group.rollouts) for lesson in lessons]
    every, all_rollouts = max(1, sum(tokens)), max(1, sum(rollouts))
    return tuple(
        GroupCost(
            task=lesson.group.group.prompt.task.id,
            rollouts=count,
            accepted=len(curation.rows([lesson], per_task=max(1, count))),
            useful=any(lesson.advantages),
            tokens=length,
            calls=tuple(sorted(calls.get(lesson.group.group.id, {}).items())),
            sample_s=sample_s * length / every,
            judge_s=judge_s * count / all_rollouts,
        )
        for lesson, length, count in zip(lessons, tokens, rollouts, strict=True)
    )


def _length(token_ids: Sequence[int]) -> int:
    """An endpoint that tells no tokens leaves every rollout the same weight."""
    return len(token_ids) or 1


def cost_of_lost(group: LostGroup) -> GroupCost:
    return GroupCost(group.prompt.task.id, 0, lost=True)


def by_group(attempts: Iterable[Attempt]) -> dict[str, dict[str, Calls]]:
    """Group id → door → the calls on its behalf; scopes are step/group/…, and step/evolve/… for mutations."""
    found: dict[str, dict[str, list[Attempt]]] = defaultdict(lambda: defaultdict(list))
    for attempt in (one for one in attempts if not is_rejudged(one)):
        group = attempt.scope.partition("/")[2].partition("/")[0]
        found[group][attempt.door].append(attempt)
    return {group: {door: summed(some) for door, some in doors.items()} for group, doors in found.items()}


def is_rewrite(attempt: Attempt) -> bool:
    """Whether a mutation asked, not a judge."""
    return attempt.scope.split("/")[1:2] == ["evolve"]


def is_rejudged(attempt: Attempt) -> bool:
    """Whether a rejudging asked, after the run: its calls are no part of what the run took."""
    return attempt.scope.startswith(f"{REJUDGED}/") or attempt.scope.endswith("-rejudged")


def summed(attempts: Sequence[Attempt]) -> Calls:
    return Calls(
        len(attempts),
        sum(one.prompt_tokens for one in attempts),
        sum(one.completion_tokens for one in attempts),
        sum(one.usd for one in attempts),
        sum(one.seconds for one in attempts),
    )


def actual(
    attempts: Sequence[Attempt], lessons: Sequence[Lesson], outcome: Mapping[str, Any] | None
) -> dict[str, float]:
    """What a run took, under a forecast's names; times only where the run has its outcome. Rejudging is left out."""
    own = [one for one in attempts if not is_rejudged(one)]
    rewrites = [one for one in own if is_rewrite(one)]
    every = summed(own)
    tokens = sum(_length(one.rollout.token_ids) for lesson in lessons for one in lesson.group.rollouts)
    found: dict[str, float] = {
        "rollouts": sum(len(lesson.group.rollouts) for lesson in lessons),
        "rows": len(curation.rows(lessons)),
        "judge_calls": len(own) - len(rewrites),
        "rewrite_calls": len(rewrites),
        "tokens_in": every.tokens_in,
        "tokens_out": every.tokens_out,
        "usd": every.usd,
        "sampled_tokens": tokens,
    }
    seconds = (outcome or {}).get("seconds", {})
    if "steps" in seconds and "outcome" in seconds:
        found |= {"seconds_steps": seconds["steps"], "seconds_exam": seconds["outcome"]}
        found["seconds"] = seconds["steps"] + seconds["outcome"]
    return {name: float(value) for name, value in found.items()}


def judged(said: Forecast, took: Mapping[str, float]) -> Rightness:
    """The forecast against what a run took, for every quantity that both know."""
    found = tuple(
        Right(
            name,
            one.mean,
            took[name],
            took[name] / one.mean if one.mean else None,
            one.low80 - _SLACK <= took[name] <= one.high80 + _SLACK,
            one.low95 - _SLACK <= took[name] <= one.high95 + _SLACK,
        )
        for name, one in said.quantities.items()
        if name in took
    )
    return Rightness(found, share(one.inside80 for one in found), share(one.inside95 for one in found))


_SLACK = 1e-9
"""Sums of floats in another order."""


def share(held: Iterable[bool]) -> float | None:
    """How many of them hold; None of none."""
    known = list(held)
    return sum(known) / len(known) if known else None


def worth(*, rows: float, gain: float | None, usd: float, calls: float, tokens: float) -> dict[str, float | None]:
    """Accepted rows, and held-out gain, a USD that judging took; None where nothing was paid.

    So that judges at home can be compared, also for 1000 calls and for a million tokens; None where there were none.
    """
    units = {"usd": usd, "1000_calls": calls / 1000, "1M_tokens": tokens / 1e6}
    return {
        f"{what}_per_{unit}": value / amount if value is not None and amount > 0 else None
        for what, value in (("rows", rows), ("gain", gain))
        for unit, amount in units.items()
    }


def gain(outcome: Mapping[str, Any] | None) -> float | None:
    """What the run gained on held-out tasks: evolved templates and last adapter against the best starting template."""
    paired = {row[0]: row[1] for row in (outcome or {}).get("paired", ())}
    return paired.get("both - start_best")


def review(
    events: Sequence[Mapping[str, Any]],
    attempts: Sequence[Attempt],
    lessons: Sequence[Lesson],
    outcome: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A run beside its forecast: `took`, `worth`, and, where it has a forecast and is finished, `rightness`.

    Of several forecasts the last one made before the first step counts.
    """
    took = actual(attempts, lessons, outcome)
    made = summed([one for one in attempts if not is_rewrite(one) and not is_rejudged(one)])
    bought = worth(
        rows=took["rows"],
        gain=gain(outcome),
        usd=made.usd,
        calls=made.count,
        tokens=made.tokens_in + made.tokens_out,
    )
    kept = [event["detail"] for event in events if event["kind"] == EVENT and event["step"] == 0]
    right = plain(judged(typed(Forecast, kept[-1]), took)) if kept and outcome else None
    return {"took": took, "worth": bought, "rightness": right}
