"""How far the judges can be trusted, from what was saved: agreement of their marks when they judge again, canaries that
fooled them, scores that rise while right answers become fewer, and judges that fall silent. Pure: the same groups, the
same word.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from grpo_ray.answers import VERIFIED
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
LOOK = 0.005
"""How rare so many passed canaries must be at the bar, at one look, for an alarm (see `beyond`)."""
FEWEST = 2
"""Passed canaries below which there is no alarm."""
SILENT = 0.5
"""The share of a step's marks that may be missing."""
HELD = "held"
"""The `audit` of an evaluation whose dimension is not trusted."""
ALARM, ACCEPTED, CANARY = "judges_alarm", "judges_accepted", "canary"
"""Events: doubts about a judge, a person's word that they may be passed over, and a canary that was judged."""
Dimension = tuple[str, str]
"""(judge, dimension)"""
_FAILED = re.compile(r"(the same answer as \S+: )?no verdict\b")
_FAULT = re.compile(r"[A-Z]\w*: ")
"""What a judge that failed as a whole is missing for: the error's class and words (`judging.missing`)."""


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


def reviewed(
    steps: Sequence[Sequence[ScoredGroup]], events: Iterable[Mapping[str, Any]], spec: TrustSpec, first: int = 0
) -> Review:
    """What is known of the judges from the groups of some steps, oldest first, and from all of the run's events.

    `first` is the oldest of the steps. What a person accepted (the event ACCEPTED names the alarm) speaks against the
    judge no more: canaries and groups up to the acceptance's step. Those of later steps count anew.
    """
    told = list(events)
    until = accepted(told)
    alarms = (*_fooled(told, spec, until), *_inflated(steps, first, until), *_silent(steps, first, until))
    return Review(distrusted([scored for step in steps for scored in step], spec), alarms)


def accepted(events: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    """(kind of alarm, judge) → the last step that a person's acceptance covers."""
    until: dict[tuple[str, str], int] = {}
    for event in events:
        if event["kind"] == ACCEPTED:
            key = event["detail"]["kind"], event["detail"]["judge"]
            until[key] = max(event["step"], until.get(key, event["step"]))
    return until


def open_alarms(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The newest word of each alarm of a run's events that no person has accepted at its step or later."""
    told = list(events)
    until = accepted(told)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for event in (one for one in told if one["kind"] == ALARM):
        key = event["detail"]["kind"], event["detail"]["judge"]
        if event["step"] > until.get(key, -1):
            found[key] = dict(event["detail"])
    return list(found.values())


def asks_models(groups: Iterable[ScoredGroup]) -> bool:
    """Whether a model spoke, or failed to, in any evaluation: else there is nothing to review."""
    return any(e.model or failed(e) for scored in groups for one in scored.rollouts for e in one.evaluations)


def failed(e: Evaluation) -> bool:
    """Whether a mark is missing for a fault, not because there is nothing to check; told by the judges' words."""
    if e.score is not None:
        return False
    return bool(_FAILED.match(e.rationale) or (e.dimension == "all" and not e.model and _FAULT.match(e.rationale)))


def fooled(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Judge → (bad canaries it took for good, bad canaries it was given)."""
    found: dict[str, tuple[int, int]] = {}
    for event in (one for one in events if one.get("canary") != RIGHT):
        passed, given = found.get(event["judge"], (0, 0))
        found[event["judge"]] = (passed + bool(event["passed"]), given + 1)
    return found


def _fooled(
    events: Iterable[Mapping[str, Any]], spec: TrustSpec, until: Mapping[tuple[str, str], int]
) -> Iterable[Alarm]:
    canaries = [
        one["detail"]
        for one in events
        if one["kind"] == CANARY and one["step"] > until.get(("canaries", one["detail"]["judge"]), -1)
    ]
    for judge, (passed, given) in sorted(fooled(canaries).items()):
        if beyond(passed, given, spec.max_false_positives):
            words = (
                f"{judge} took {passed} of {given} canaries for good answers; {spec.max_false_positives:.0%} may pass"
            )
            yield Alarm("canaries", judge, words)


def beyond(passed: int, given: int, bar: float) -> bool:
    """Whether more canaries passed than the bar explains: at least FEWEST, and P(X ≥ passed) < LOOK, X ~ Bin(given, bar).

    LOOK makes up for looking again after every canary: of judges exactly at the bar, 2.2 % raise an alarm within 200
    canaries where the bar is 2 %, 2.9 % at 5 %, 3.7 % at 20 % (computed exactly, step by step).
    """
    return passed >= FEWEST and tail(passed, given, bar) < LOOK


def tail(passed: int, given: int, bar: float) -> float:
    """P(X ≥ passed) for X ~ Binomial(given, bar)."""
    if bar <= 0 or bar >= 1:
        return float(passed <= (given if bar >= 1 else 0))
    logs = (
        math.lgamma(given + 1) - math.lgamma(k + 1) - math.lgamma(given - k + 1)
        + k * math.log(bar) + (given - k) * math.log1p(-bar)
        for k in range(passed, given + 1)
    )  # fmt: skip
    return min(1.0, math.fsum(math.exp(one) for one in logs))


def _silent(
    steps: Sequence[Sequence[ScoredGroup]], first: int, until: Mapping[tuple[str, str], int]
) -> Iterable[Alarm]:
    """Judges that gave too few of the marks of the newest step, for faults or in replies without a mark.

    A panel's mark may be missing because people have to decide; its members are looked at instead.
    """
    heard: dict[str, list[Evaluation]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    for one in (one for scored in (steps[-1] if steps else ()) for one in scored.rollouts):
        said: dict[str, list[Evaluation]] = defaultdict(list)
        for e in (e for e in one.evaluations if e.audit in ("", HELD)):
            said[e.judge].append(e)
        for judge, some in said.items():
            lost = [e for e in some if failed(e) or (e.score is None and e.model)]
            heard[judge] += lost
            shares[judge].append(len(lost) / len(some))
    for judge, found in sorted(shares.items()):
        known = first + len(steps) - 1 <= until.get(("silent", judge), -1)
        if fmean(found) <= SILENT or known or any(other.startswith(f"{judge}/") for other in shares):
            continue
        yield Alarm(
            "silent", judge, f"{judge} gave no mark to {fmean(found):.0%} of the answers: {reason(heard[judge])}"
        )


def reason(missing: Iterable[Evaluation]) -> str:
    """The commonest reason that marks are missing for, cut to 160 characters."""
    counts = Counter(" ".join(e.rationale.split())[:160] or "no reason given" for e in missing)
    return min(counts, key=lambda why: (-counts[why], why))


def _inflated(
    steps: Sequence[Sequence[ScoredGroup]], first: int, until: Mapping[tuple[str, str], int]
) -> Iterable[Alarm]:
    """Judges that ask a model and whose scores rose from the older half of the steps to the newer one while verified
    answers became fewer."""
    every = [scored for step in steps for scored in step]
    for judge in sorted({e.judge for scored in every for one in scored.rollouts for e in one.evaluations if e.model}):
        anew = steps[max(0, until.get(("inflation", judge), -1) + 1 - first) :]
        half = len(anew) // 2
        right = _shift(_means(anew[:half], None), _means(anew[half:], None))
        kinder = _shift(_means(anew[:half], judge), _means(anew[half:], judge))
        if right and kinder and right[0] + SURE * right[1] < 0 < kinder[0] - SURE * kinder[1]:
            words = f"{judge}'s scores rose by {kinder[0]:.2f} while {-right[0]:.2f} fewer of the answers are right"
            yield Alarm("inflation", judge, words)


def _means(steps: Sequence[Sequence[ScoredGroup]], judge: str | None) -> list[float]:
    """A judge's mean score in each group; for None the share of answers that verifiers found right."""
    found = []
    for scored in (scored for step in steps for scored in step):
        said = [e for one in scored.rollouts for e in one.evaluations if e.audit in ("", HELD)]
        mine = [e for e in said if (e.judge == judge if judge else e.dimension == VERIFIED and not e.model)]
        if scores := [e.score for e in mine if e.score is not None]:
            found.append(fmean(scores))
    return found


def _shift(old: Sequence[float], new: Sequence[float]) -> tuple[float, float] | None:
    """By how much the mean moved, and the standard error of that (Welch); None from fewer than 8 groups a side."""
    if min(len(old), len(new)) < 8:
        return None
    error = math.sqrt(float(np.var(old, ddof=1)) / len(old) + float(np.var(new, ddof=1)) / len(new))
    return fmean(new) - fmean(old), error
