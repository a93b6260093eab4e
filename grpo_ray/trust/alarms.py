"""How far the judges can be trusted, from what was saved: agreement of their marks when they judge again, canaries that
fooled them, and scores that rise while right answers become fewer. Pure: the same groups, the same word.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from grpo_ray.recipe import TrustSpec
from grpo_ray.trust.agreement import Estimate, krippendorff_alpha
from grpo_ray.trust.canaries import RIGHT
from grpo_ray.types import Evaluation, ScoredGroup

ITEMS = 20
"""Rollouts judged again before a dimension may lose its weight."""
SURE = 1.645
"""Standard errors: one-sided 95 %."""
STEPS = 10
"""The newest steps that are looked at."""
VERIFIED = "verified"
HELD = "held"
"""The `audit` of an evaluation whose dimension is not trusted."""
ALARM, ACCEPTED, CANARY = "judges_alarm", "judges_accepted", "canary"
"""Events: doubts about a judge, a person's word that they may be passed over, and a canary that was judged."""
Dimension = tuple[str, str]
"""(judge, dimension)"""


@dataclass(frozen=True, slots=True)
class Marks:
    """What one judge said of one dimension, first and again: raters × items, NaN where a mark is missing."""

    raters: tuple[str, ...]
    """"" for the mark that counts, then the kinds of audit."""
    table: np.ndarray
    items: tuple[str, ...]
    """Rollout ids."""
    groups: tuple[str, ...]
    """The group of each item."""


@dataclass(frozen=True, slots=True)
class Review:
    """The dimensions that do not count from here on, and what people should look at first."""

    held: tuple[Dimension, ...] = ()
    alarms: "tuple[Alarm, ...]" = ()


@dataclass(frozen=True, slots=True)
class Alarm:
    """A reason for people to look before the run goes on changing prompts or exporting."""

    kind: str
    judge: str
    words: str


def marks(groups: Iterable[ScoredGroup]) -> dict[Dimension, Marks]:
    """Every dimension that was judged again, with the marks of the rollouts concerned."""
    said: dict[Dimension, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    home: dict[str, str] = {}
    for scored in groups:
        for one in scored.rollouts:
            home[one.rollout.id] = scored.group.id
            for e in one.evaluations:
                if e.score is not None:
                    said[e.judge, e.dimension][one.rollout.id]["" if e.audit == HELD else e.audit] = e.score
    return {
        key: _table({item: heard for item, heard in rollouts.items() if len(heard) > 1}, home)
        for key, rollouts in sorted(said.items())
        if any(len(heard) > 1 for heard in rollouts.values())
    }


def _table(heard: Mapping[str, Mapping[str, float]], home: Mapping[str, str]) -> Marks:
    items = tuple(sorted(heard))
    raters = tuple(sorted({rater for marks in heard.values() for rater in marks}))
    table = np.array([[heard[item].get(rater, math.nan) for item in items] for rater in raters])
    return Marks(raters, table, items, tuple(home[item] for item in items))


def agreement(groups: Iterable[ScoredGroup]) -> dict[Dimension, Estimate]:
    """Krippendorff's alpha of each dimension that was judged again (interval metric)."""
    return {key: krippendorff_alpha(some.table) for key, some in marks(groups).items()}


def distrusted(groups: Iterable[ScoredGroup], spec: TrustSpec) -> tuple[Dimension, ...]:
    """The dimensions whose alpha over at least ITEMS rollouts is below the bar; they stop counting in rewards."""
    found = agreement(groups)
    return tuple(
        key for key, one in found.items() if one.items >= ITEMS and one.value is not None and one.value < spec.min_alpha
    )


def held_back(evaluations: Iterable[Evaluation], held: Sequence[Dimension]) -> tuple[Evaluation, ...]:
    """The evaluations, those of dimensions that are not trusted marked so that they do not count."""
    return tuple(replace(e, audit=HELD) if not e.audit and (e.judge, e.dimension) in held else e for e in evaluations)


def reviewed(steps: Sequence[Sequence[ScoredGroup]], events: Iterable[Mapping[str, Any]], spec: TrustSpec) -> Review:
    """What is known of the judges from the groups of some steps, oldest first, and from all of the run's events.

    What a person accepted (the event ACCEPTED names the alarm) is no alarm any more.
    """
    told = list(events)
    accepted = {(one["detail"]["kind"], one["detail"]["judge"]) for one in told if one["kind"] == ACCEPTED}
    canaries = [one["detail"] for one in told if one["kind"] == CANARY]
    alarms = [one for one in (*_fooled(canaries, spec), *_inflated(steps)) if (one.kind, one.judge) not in accepted]
    return Review(distrusted([scored for step in steps for scored in step], spec), tuple(alarms))


def open_alarms(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The newest word of each alarm of a run's events that no person has accepted."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        detail = event["detail"]
        if event["kind"] == ALARM:
            found[detail["kind"], detail["judge"]] = dict(detail)
        elif event["kind"] == ACCEPTED:
            found.pop((detail["kind"], detail["judge"]), None)
    return list(found.values())


def fooled(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Judge → (bad canaries it took for good, bad canaries it was given)."""
    found: dict[str, tuple[int, int]] = {}
    for event in (one for one in events if one.get("canary") != RIGHT):
        passed, given = found.get(event["judge"], (0, 0))
        found[event["judge"]] = (passed + bool(event["passed"]), given + 1)
    return found


def _fooled(events: Iterable[Mapping[str, Any]], spec: TrustSpec) -> Iterable[Alarm]:
    for judge, (passed, given) in sorted(fooled(events).items()):
        if wilson_low(passed, given) > spec.max_false_positives:
            words = (
                f"{judge} took {passed} of {given} canaries for good answers; {spec.max_false_positives:.0%} may pass"
            )
            yield Alarm("canaries", judge, words)


def wilson_low(passed: int, given: int, z: float = SURE) -> float:
    """The lower end of Wilson's 1927 interval of a share."""
    share, more = passed / given, z * z / given
    spread = z * math.sqrt(share * (1 - share) / given + more / (4 * given))
    return max(0.0, (share + more / 2 - spread) / (1 + more))


def _inflated(groups: Sequence[Sequence[ScoredGroup]]) -> Iterable[Alarm]:
    """Judges whose scores rose from the older half of the steps to the newer one while verified answers became fewer."""
    half = len(groups) // 2
    old, new = _means(groups[:half]), _means(groups[half:])
    right = _shift(old.get((VERIFIED, VERIFIED), []), new.get((VERIFIED, VERIFIED), []))
    if right is None or right[0] + SURE * right[1] >= 0:
        return
    for judge, _ in sorted(key for key in old if key[1] == "" and key[0] != VERIFIED):
        kinder = _shift(old[judge, ""], new.get((judge, ""), []))
        if kinder and kinder[0] - SURE * kinder[1] > 0:
            words = f"{judge}'s scores rose by {kinder[0]:.2f} while {-right[0]:.2f} fewer of the answers are right"
            yield Alarm("inflation", judge, words)


def _means(groups: Sequence[Sequence[ScoredGroup]]) -> dict[Dimension, list[float]]:
    """(judge, "") → its mean score in each group; (verified, verified) → the share of right answers."""
    found: dict[Dimension, list[float]] = defaultdict(list)
    for scored in (scored for step in groups for scored in step):
        said: dict[Dimension, list[float]] = defaultdict(list)
        for e in (
            e for one in scored.rollouts for e in one.evaluations if e.audit in ("", HELD) and e.score is not None
        ):
            key = (VERIFIED, VERIFIED) if e.dimension == VERIFIED else (e.judge, "")
            said[key].append(e.score if e.score is not None else 0.0)
        for key, scores in said.items():
            found[key].append(fmean(scores))
    return found


def _shift(old: Sequence[float], new: Sequence[float]) -> tuple[float, float] | None:
    """By how much the mean moved, and the standard error of that (Welch); None from fewer than 8 groups a side."""
    if min(len(old), len(new)) < 8:
        return None
    error = math.sqrt(float(np.var(old, ddof=1)) / len(old) + float(np.var(new, ddof=1)) / len(new))
    return fmean(new) - fmean(old), error
