"""Everything that tells how far the judges of a run can be trusted, in numbers: from saved nouns to what JSON can hold.

What can't be told is None, with the reason beside it. Intervals are 95 % and resample whole groups; they are drawn by
the judge's and the dimension's name, so the same groups make the same report.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grpo_ray.canonical import digest, plain
from grpo_ray.judges.listwise import DIMENSION, first_place_wins
from grpo_ray.recipe import Recipe
from grpo_ray.trust.agreement import icc, krippendorff_alpha, repeat_noise, verifier_agreement
from grpo_ray.trust.alarms import ACCEPTED, ALARM, CANARY, HELD, open_alarms
from grpo_ray.trust.bias import Finding, alarms, biases, noisy_dimensions, phrase_columns, position_preference
from grpo_ray.trust.calibration import classical_mean, cross_fitted_gain, isotonic, powered_mean, share_interval
from grpo_ray.trust.canaries import RIGHT
from grpo_ray.trust.costs import costs
from grpo_ray.trust.effects import accuracy, over_steps, panels, reward_noise
from grpo_ray.trust.sheet import Array, Sheet, mean_of, places_in_request, sheet
from grpo_ray.trust.verdict import verdict, worth_of
from grpo_ray.types import Attempt, Evaluation, Lesson, ScoredGroup

PHRASES = ("Thought process:", "I am confident", "step by step", "as an expert", "score 5", "full marks", "\n#")
"""Openers, claims and decorations that have fooled judges (arXiv 2507.08794), looked for in any case."""
PHRASE_NAMES = {"\n#": "a Markdown heading"}
DRAWS = 500
"""Resamples behind an interval."""
LEVELS = 11
"""A dimension with more different marks than these is shown in ten equal bins."""
REASONS = 3
"""The commonest reasons of missing marks that are shown."""
Numbers = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Saved:
    """What of a run a report is made from."""

    run: str
    recipe: Recipe
    steps: Mapping[int, Sequence[ScoredGroup]]
    """Step → its scored groups."""
    lessons: Sequence[Lesson] = ()
    events: Sequence[Mapping[str, Any]] = ()
    attempts: Sequence[Attempt] = ()
    outcome: Mapping[str, Any] | None = None


def judge_report(saved: Saved) -> Numbers:
    """The report of a run, JSON-able; `verdict` says in words what it comes to, by what the words are about."""
    found = sheet(saved.steps)
    bars = {"alpha": saved.recipe.trust.min_alpha, "false_positives": saved.recipe.trust.max_false_positives}
    report: Numbers = {
        "run_id": saved.run,
        "name": saved.recipe.name,
        "steps": len(saved.steps),
        "groups": int(found.groups.max()) + 1 if len(found.groups) else 0,
        "rollouts": len(found.rollouts),
        "stand_in": sorted({e.judge for some in found.said.values() for _, e in some if e.stand_in}),
        "bars": bars,
        "judges": [_judge(found, judge, saved) for judge in found.model_judges],
        "others": [_other(found, judge) for judge in found.said if judge not in found.model_judges],
        "silent": [_silent(found, judge) for judge in found.silent_judges],
        "panels": panels(found),
        "accuracy": accuracy(found),
        "reward": reward_noise(saved.steps, saved.recipe),
        "costs": costs(saved.attempts, saved.lessons, saved.outcome),
        "over_steps": over_steps(found),
        "alarms": _told(saved.events, ALARM),
        "open_alarms": open_alarms(saved.events),
        "accepted": _told(saved.events, ACCEPTED),
    }
    return plain(report | {"verdict": verdict(report)})


def _rng(*names: str) -> np.random.Generator:
    return np.random.default_rng(int(digest(list(names))[:16], 16))


# ── one judge ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _judge(found: Sheet, judge: str, saved: Saved) -> Numbers:
    said = found.said[judge]
    versions = sorted({e.version for _, e in said})
    dimensions = [_dimension(found, judge, name, saved) for name in found.dimensions(judge)]
    return {
        "judge": judge,
        "member_of": panel if (panel := judge.rpartition("/")[0]) in found.said else None,
        "models": sorted({e.model for _, e in said if e.model}),
        "stand_in": any(e.stand_in for _, e in said),
        "versions": [_version(found, judge, version) for version in versions] if len(versions) > 1 else [],
        "version": versions[-1] if len(versions) == 1 else None,
        "failed": _missing([e for _, e in said if e.dimension == "all" and e.score is None and not _counts_not(e)]),
        "dimensions": dimensions,
        "mean": _against_verdicts(found.mean(judge), found, judge, "mean"),
        "calibration": _calibration(found.mean(judge), found.verified, found, judge, "verifiers"),
        "people": _calibration(found.mean(judge), found.labels, found, judge, "people"),
        "bias": _bias(found, judge, saved.recipe),
        "canaries": _canaries(saved.events, judge),
    }


def _counts_not(e: Evaluation) -> bool:
    """Whether it is an audit; held marks would count."""
    return e.audit not in ("", HELD)


def _dimension(found: Sheet, judge: str, name: str, saved: Saved) -> Numbers:
    marks = found.column(judge, name)
    said = [e for _, e in found.said[judge] if e.dimension == name and not _counts_not(e)]
    held = sorted({int(found.steps[row]) for row, e in found.said[judge] if e.dimension == name and e.audit == HELD})
    numbers = {
        "dimension": name,
        "marks": int(np.isfinite(marks).sum()),
        "missing": _missing([e for e in said if e.score is None]),
        "mean": _value(classical_mean(marks).value),
        "distribution": distribution(marks[np.isfinite(marks)]),
        "agreement": _agreement(found, judge, name),
        "verifier": _against_verdicts(marks, found, judge, name),
        "held_steps": held,
    }
    return numbers | worth_of(numbers, saved.recipe.trust.min_alpha)


def _version(found: Sheet, judge: str, version: str) -> Numbers:
    """What differs from version to version: how many marks, their means, and how they agree with audits."""
    some = {row for row, e in found.said[judge] if e.version == version}
    kept = np.array([row in some for row in range(len(found.rollouts))])
    return {
        "version": version,
        "models": sorted({e.model for _, e in found.said[judge] if e.version == version and e.model}),
        "steps": sorted({int(step) for step in found.steps[kept]}),
        "dimensions": [
            {
                "dimension": name,
                "marks": int(np.isfinite(found.column(judge, name)[kept]).sum()),
                "mean": _value(classical_mean(found.column(judge, name)[kept]).value),
                "alpha": krippendorff_alpha(_raters(found, judge, name)[:, kept]),
            }
            for name in found.dimensions(judge)
        ],
    }


def _missing(said: Sequence[Evaluation]) -> Numbers:
    """How many marks are missing, and the commonest reasons; numbers in reasons are not told apart."""
    reasons = Counter(" ".join(e.rationale.split())[:160] or "no reason given" for e in said)
    top = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))[:REASONS]
    return {"count": len(said), "reasons": [{"why": why, "count": count} for why, count in top]}


def distribution(marks: ArrayLike) -> list[Numbers]:
    """How often each mark was given; ten equal bins from 0 to 1 where more than LEVELS different ones were."""
    levels, counts = np.unique(np.asarray(marks, float), return_counts=True)
    if len(levels) <= LEVELS:
        return [{"low": float(a), "high": float(a), "count": int(n)} for a, n in zip(levels, counts, strict=True)]
    counts, edges = np.histogram(np.asarray(marks, float), bins=10, range=(0, 1))
    ends = zip(edges[:-1], edges[1:], counts, strict=True)
    return [{"low": round(float(a), 9), "high": round(float(b), 9), "count": int(n)} for a, b, n in ends]


def _raters(found: Sheet, judge: str, name: str) -> Array:
    return np.array([found.column(judge, name, audit) for audit in ("", *found.audits(judge, name))])


def _agreement(found: Sheet, judge: str, name: str) -> Numbers | None:
    """Of a dimension's marks with themselves when it was judged again; None where it never was."""
    audits = found.audits(judge, name)
    if not audits:
        return None
    table = _raters(found, judge, name)
    given: Numbers = {"groups": found.groups, "draws": DRAWS}
    repeats = table[[0, 1 + audits.index("repeat")]] if "repeat" in audits else np.full((2, table.shape[1]), np.nan)
    return {
        "audits": {audit: int(np.isfinite(found.column(judge, name, audit)).sum()) for audit in audits},
        "alpha": krippendorff_alpha(table, rng=_rng(judge, name, "alpha"), **given),
        "alpha_ordinal": krippendorff_alpha(table, "ordinal").value,
        "alpha_by_audit": {a: krippendorff_alpha(table[[0, 1 + i]]).value for i, a in enumerate(audits)},
        "icc": icc(table, rng=_rng(judge, name, "icc"), **given),
        "noise": repeat_noise(repeats, rng=_rng(judge, name, "noise"), **given),
    }


def _against_verdicts(marks: Array, found: Sheet, *names: str) -> Numbers | None:
    """Correlation and AUC; None where no verifier gave a verdict on a marked rollout."""
    if not (np.isfinite(marks) & np.isfinite(found.verified)).any():
        return None
    rng = _rng(*names, "verifier")
    return plain(verifier_agreement(marks, found.verified, groups=found.groups, rng=rng, draws=DRAWS))


# ── bias ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bias(found: Sheet, judge: str, recipe: Recipe) -> Numbers:
    """Findings on every dimension, and the alarms that stand after correction for all of them.

    `sure` is whether verifiers' verdicts hold the quality. Other judges miss some of it, and what they miss goes with
    length; then a judge without any bias can raise an alarm.
    """
    kind, truth = _truth(found, judge)
    columns = phrase_columns([f"\n{one.rollout.text}" for one in found.rollouts], PHRASES)
    features = {PHRASE_NAMES.get(phrase, phrase): column for phrase, column in columns.items() if column.any()}
    style, no_style = _style(found)
    found_all: list[Finding] = []
    for name in found.dimensions(judge):
        found_all += biases(
            found.column(judge, name),
            found.groups,
            truth=truth,
            length=found.lengths,
            position=places_in_request(found, judge, recipe),
            features=style | features,
            dimension=name,
        )
    found_all += [*_noise(found, judge), *_preference(found, judge, recipe)]
    return {
        "truth": kind,
        "sure": kind == "verifiers",
        "findings": [plain(one) for one in found_all if one.kind != "truth"],
        "alarms": [plain(one) for one in alarms([one for one in found_all if one.kind != "truth"])],
        "phrases_absent": sorted(PHRASE_NAMES.get(phrase, phrase) for phrase in PHRASES if not columns[phrase].any()),
        "left_out": [why for why in (no_style,) if why],
    }


def _truth(found: Sheet, judge: str) -> tuple[str, dict[str, Array]]:
    """What quality is held by: verifiers' verdicts where half of the rollouts have one, else the other model judges."""
    if len(found.rollouts) and np.isfinite(found.verified).mean() >= 0.5:
        return "verifiers", {"verifiers": found.verified}
    others = mean_of([found.mean(one) for one in found.model_judges if one != judge], len(found.rollouts))
    if np.isfinite(others).any():
        return "other judges", {"other judges": others}
    return "", {}


def _style(found: Sheet) -> tuple[dict[str, Array], str]:
    """The own-model style in standard deviations inside groups (arXiv 2410.21819), where nearly all have it."""
    known = np.isfinite(found.style)
    if not len(known) or known.mean() < 0.9:
        return {}, "own-model style: the rollouts' log-probabilities under the bare model were not kept"
    counts = np.maximum(1, np.bincount(found.groups[known]))
    inside = found.style - (np.bincount(found.groups[known], found.style[known]) / counts)[found.groups]
    spread = float(np.nanstd(inside))
    return {"own-model style": found.style / (spread or 1.0)}, ""


def _noise(found: Sheet, judge: str) -> Sequence[Finding]:
    repeated = [name for name in found.dimensions(judge) if "repeat" in found.audits(judge, name)]
    if len(repeated) < 2:
        return ()
    return noisy_dimensions(
        {name: np.array([found.column(judge, name), found.column(judge, name, "repeat")]) for name in repeated}
    )


def _preference(found: Sheet, judge: str, recipe: Recipe) -> Sequence[Finding]:
    """Whether a judge that compares answers prefers the first place."""
    specs = [spec for spec in recipe.judges if spec.name == "listwise"]
    if judge not in {spec.settings.get("name", "listwise") for spec in specs}:
        return ()
    wins = first_place_wins(e.rationale for _, e in found.said[judge] if not e.audit)
    return (position_preference(*wins, DIMENSION),)


# ── canaries, calibration ─────────────────────────────────────────────────────────────────────────────────────────


def _canaries(events: Sequence[Mapping[str, Any]], judge: str) -> Numbers:
    told = [one["detail"] for one in events if one["kind"] == CANARY and one["detail"]["judge"] == judge]
    details = [one for one in told if one["canary"] != RIGHT]
    kinds = sorted({str(one["canary"]) for one in details})
    by_kind = [{"kind": kind} | _share([bool(d["passed"]) for d in details if d["canary"] == kind]) for kind in kinds]
    right = _share([bool(one["passed"]) for one in told if one["canary"] == RIGHT])
    return _share([bool(one["passed"]) for one in details]) | {"kinds": by_kind, "right": right}


def _share(held: Sequence[bool]) -> Numbers:
    """How many of how many, with Wilson's interval."""
    passed, given = sum(held), len(held)
    if not given:
        return {"passed": 0, "given": 0, "share": None, "low": None, "high": None}
    low, high = share_interval(passed, given)
    return {"passed": passed, "given": given, "share": passed / given, "low": low, "high": high}


def _calibration(scores: Array, labels: Array, found: Sheet, judge: str, by: str) -> Numbers | None:
    """The judge's mean mark against labels: a rising map, what it would gain, and the labels in bins of marks."""
    both = np.isfinite(scores) & np.isfinite(labels)
    fitted = isotonic(scores, labels)
    if fitted is None or not both.any():
        return None
    groups, rng = found.groups, _rng(judge, by, "calibration")
    return {
        "labels": int(both.sum()),
        "map": [{"mark": x, "label": y} for x, y in zip(fitted.scores, fitted.values, strict=True)],
        "gain": cross_fitted_gain(scores, labels, rng, groups=groups),
        "bins": _bins(scores[both], labels[both], groups[both]),
        "mean": powered_mean(scores, labels, groups=groups),
    }


def _bins(scores: Array, labels: Array, groups: Array) -> list[Numbers]:
    """At most ten bins of equal width: the mean mark, the mean label with its interval by groups, and how many."""
    codes = np.minimum(9, (scores * 10).astype(int))
    return [
        {"mark": float(scores[codes == code].mean()), **_mean(labels[codes == code], groups[codes == code])}
        for code in np.unique(codes)
    ]


def _mean(values: Array, groups: Array) -> Numbers:
    found = classical_mean(values, groups=groups)
    return {"value": found.value, "low": found.low, "high": found.high, "count": found.labels}


def _value(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _other(found: Sheet, judge: str) -> Numbers:
    """A judge that asks no model, by rule or a person: what it gave, without a word on trust."""
    said = [e for _, e in found.said[judge]]
    return {
        "judge": judge,
        "dimensions": [
            {
                "dimension": name,
                "marks": sum(e.score is not None for e in said if e.dimension == name),
                "missing": _missing([e for e in said if e.dimension == name and e.score is None]),
                "mean": _value(classical_mean(_scores(said, name)).value),
            }
            for name in sorted({e.dimension for e in said})
        ],
    }


def _silent(found: Sheet, judge: str) -> Numbers:
    """A judge that failed on everything, and why."""
    return {"judge": judge, "missing": _missing([e for _, e in found.said[judge]])}


def _scores(said: Sequence[Evaluation], name: str) -> Array:
    return np.array([e.score for e in said if e.dimension == name and e.score is not None], float)


def _told(events: Sequence[Mapping[str, Any]], kind: str) -> list[Numbers]:
    return [{"step": one["step"], **one["detail"]} for one in events if one["kind"] == kind]
