"""How far a judge agrees with itself, with other judges and with a verifier. Arrays in, plain numbers out.

Marks are arrays of raters × items (for one judge's repeats: repeats × items), NaN where a mark is missing; an item is
what was marked, a rollout on one dimension. Rollouts of one group are alike, so intervals resample whole groups
(percentile bootstrap) when `groups` names each item's; without `groups` each item is a group of its own, and without
`rng` there is no interval. What can't be told is None: never NaN, never an exception.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grpo_ray.trust.calibration import group_codes

Array = NDArray[Any]
Metric = Literal["nominal", "ordinal", "interval"]
FEWEST_GROUPS = 8
"""Fewer than these say too little of their own spread to be resampled: no interval."""
CHUNK = 2_000_000
"""Weights held at once while resampling, so that memory doesn't grow with the number of draws."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval. None: can't be told, as from marks that are all the same."""

    value: float | None
    low: float | None
    high: float | None
    """None, too, where no resample differs (perfect agreement): then the data don't say how wide it is."""
    items: int
    """The items that were used."""
    groups: int


@dataclass(frozen=True, slots=True)
class Icc:
    """Intraclass correlations: of a single rater, ICC(2,1), and of the mean of all k, ICC(2,k)."""

    single: Estimate
    average: Estimate
    raters: int
    left_out: int
    """Items that some rater did not mark; they are not used."""


@dataclass(frozen=True, slots=True)
class VerifierAgreement:
    """A judge's scores against right and wrong: point-biserial correlation, −1 to 1, and AUC, 0.5 being chance."""

    correlation: Estimate
    auc: Estimate


def krippendorff_alpha(
    marks: ArrayLike,
    metric: Metric = "interval",
    *,
    groups: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    draws: int = 1000,
) -> Estimate:
    """Krippendorff's alpha of marks (raters × items): 1 is agreement, 0 is chance.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability". Items with one mark
    can't be paired and are left out. The ordinal distance is that of interval marks between mid-ranks, the nominal
    one that between indicators of each level; so one formula serves all three.
    """
    table = _table(marks)
    pairable = np.isfinite(table).sum(axis=0) >= 2
    table, codes = table[:, pairable], group_codes(groups, pairable)
    of = {"interval": _interval_alpha, "nominal": _nominal_alpha, "ordinal": _ordinal_alpha}[metric]
    return _estimate(lambda weights: of(table, weights), codes, rng, draws)


def icc(
    marks: ArrayLike, *, groups: ArrayLike | None = None, rng: np.random.Generator | None = None, draws: int = 1000
) -> Icc:
    """ICC(2,1) and ICC(2,k) of marks (raters × items): two-way random effects, absolute agreement.

    Source: Shrout & Fleiss 1979, "Intraclass correlations", their case 2. Complete items only.
    """
    table = _table(marks)
    complete = np.asarray(np.isfinite(table).all(axis=0) & (len(table) > 0))
    used, codes = table[:, complete], group_codes(groups, complete)
    single = _estimate(lambda weights: _icc(used, weights, 1), codes, rng, draws)
    average = _estimate(lambda weights: _icc(used, weights, len(used)), codes, rng, draws)
    return Icc(single, average, len(table), int((~complete).sum()))


def verifier_agreement(
    scores: ArrayLike,
    verdicts: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    draws: int = 1000,
) -> VerifierAgreement:
    """How a judge's scores (items,) go with a verifier's verdicts (items,): 1 is right, anything else is wrong.

    Source of the AUC: Hanley & McNeil 1982, the chance that a right answer scores above a wrong one, ties half.
    """
    score, verdict = np.asarray(scores, float), np.asarray(verdicts, float)
    known = np.isfinite(score) & np.isfinite(verdict)
    codes = group_codes(groups, known)
    order = np.argsort(score[known], kind="stable")
    score, right, codes = score[known][order], (verdict[known][order] == 1.0).astype(float), codes[order]
    return VerifierAgreement(
        _estimate(lambda weights: _correlation(score, right, weights), codes, rng, draws),
        _estimate(lambda weights: _auc(score, right, weights), codes, rng, draws),
    )


def repeat_noise(
    marks: ArrayLike, *, groups: ArrayLike | None = None, rng: np.random.Generator | None = None, draws: int = 1000
) -> Estimate:
    """The standard deviation of a judge's repeated marks (repeats × items) of the same thing, in marks.

    Pooled within items over those with two marks or more, with n − 1 each; divided by c4 of all degrees of freedom,
    which makes it unbiased for normal noise (the variance is unbiased for any).
    """
    table = _table(marks)
    counts = np.isfinite(table).sum(axis=0)
    repeated = counts >= 2
    free, squares = (counts - 1.0)[repeated], within_squares(table[:, repeated])

    def deviation(weights: Array) -> Array:
        freedom = weights @ free
        return _ratio(np.sqrt(_ratio(weights @ squares, freedom)), np.array([_c4(f) for f in freedom]))

    return _estimate(deviation, group_codes(groups, repeated), rng, draws)


def within_squares(table: Array) -> Array:
    """Each item's (column's) sum of squared deviations from its own mean, NaN left out; needs a mark in each."""
    if not table.size:
        return np.zeros(table.shape[1])
    return np.nansum((table - np.nanmean(table, axis=0)) ** 2, axis=0)


# ── statistics: each takes weights (draws × items), how often an item counts, and gives (draws,), NaN if undefined ──


def _interval_alpha(table: Array, weights: Array) -> Array:
    return _alpha(table[None], weights)


def _nominal_alpha(table: Array, weights: Array) -> Array:
    levels = np.unique(table[np.isfinite(table)])
    return _alpha(np.where(np.isnan(table), np.nan, table == levels[:, None, None]), weights)


def _ordinal_alpha(table: Array, weights: Array) -> Array:
    """Mid-ranks depend on how often each level occurs, so they are made anew for each draw."""
    known = np.isfinite(table)
    levels, codes = np.unique(table[known], return_inverse=True)
    found = []
    for row in weights:
        counts = np.bincount(codes, np.broadcast_to(row, table.shape)[known], len(levels))
        ranks = np.full(table.shape, np.nan)
        ranks[known] = (np.cumsum(counts) - counts / 2)[codes]
        found.append(_alpha(ranks[None], row[None])[0])
    return np.array(found)


def _alpha(coordinates: Array, weights: Array) -> Array:
    """1 − observed / expected squared distance; coordinates × raters × items, summed over the coordinates."""
    if not coordinates.size:
        return np.full(len(weights), np.nan)
    shifted = coordinates - np.nanmean(coordinates, axis=(1, 2), keepdims=True)
    counts = np.isfinite(shifted[0]).sum(axis=0)
    sums, squares = np.nansum(shifted, axis=1), np.nansum(shifted**2, axis=1)
    within = ((counts * squares - sums**2) / (counts - 1)).sum(axis=0)
    n = weights @ counts
    observed = weights @ within / n
    between = (n * (squares @ weights.T) - (sums @ weights.T) ** 2).sum(axis=0)
    # Against rounding: marks that are all the same must be undefined, not 0 / 1e-17.
    varied = between > 1e-9 * n**2 * max(np.nanmax(shifted**2), 1e-300)
    return 1 - _ratio(observed, np.where(varied, between / (n * (n - 1)), 0.0))


def _icc(table: Array, weights: Array, of: int) -> Array:
    """ICC(2,1) with `of` = 1, ICC(2,k) with `of` = k, from the mean squares of items, raters and rest."""
    k = len(table)
    if k < 2 or table.shape[1] < 2:
        return np.full(len(weights), np.nan)
    n = weights.sum(axis=1)
    shifted = table - table.mean()
    items, raters = shifted.mean(axis=0), weights @ shifted.T / n[:, None]
    grand = raters.mean(axis=1)
    total = weights @ (shifted**2).sum(axis=0) - n * k * grand**2
    by_item = k * (weights @ items**2 - n * grand**2)
    by_rater = n * ((raters - grand[:, None]) ** 2).sum(axis=1)
    rest = np.maximum(total - by_item - by_rater, 0.0) / ((n - 1) * (k - 1))
    by_item, by_rater = by_item / (n - 1), by_rater / (k - 1)
    spread = by_item + (of == 1) * (k - 1) * rest + (k / of) * (by_rater - rest) / n
    varied = total > 1e-9 * n * k * max((shifted**2).max(), 1e-300)
    return _ratio(by_item - rest, np.where(varied, spread, 0.0))


def _correlation(score: Array, right: Array, weights: Array) -> Array:
    if not len(score):
        return np.full(len(weights), np.nan)
    x, y, n = score - score.mean(), right - right.mean(), weights.sum(axis=1)
    x_mean, y_mean = weights @ x / n, weights @ y / n
    x_spread, y_spread = weights @ x**2 / n - x_mean**2, weights @ y**2 / n - y_mean**2
    floor = 1e-9 * max((x**2).max(), 1e-300)
    varied = (x_spread > floor) & (y_spread > 1e-12)
    below = np.sqrt(np.where(varied, x_spread * y_spread, 0.0))
    return np.clip(_ratio(weights @ (x * y) / n - x_mean * y_mean, below), -1.0, 1.0)


def _auc(score: Array, right: Array, weights: Array) -> Array:
    """Scores in ascending order; one pass over the levels, with what is wrong below each."""
    if not len(score):
        return np.full(len(weights), np.nan)
    starts = np.flatnonzero(np.diff(score, prepend=-np.inf))
    rights = np.add.reduceat(weights * right, starts, axis=1)
    wrongs = np.add.reduceat(weights * (1 - right), starts, axis=1)
    below = np.cumsum(wrongs, axis=1) - wrongs / 2
    varied = len(starts) > 1
    return _ratio((rights * below).sum(axis=1), varied * rights.sum(axis=1) * wrongs.sum(axis=1))


# ── resampling ────────────────────────────────────────────────────────────────────────────────────────────────────


def _estimate(
    statistic: Callable[[Array], Array], codes: Array, rng: np.random.Generator | None, draws: int
) -> Estimate:
    """The statistic of the items as they are, and its percentiles over resampled groups."""
    groups = len(np.unique(codes))
    value = _plain(statistic(np.ones((1, len(codes))))[0]) if len(codes) else None
    if value is None or rng is None or groups < FEWEST_GROUPS:
        return Estimate(value, None, None, len(codes), groups)
    size = max(1, CHUNK // len(codes))
    parts = [min(size, draws - start) for start in range(0, draws, size)]
    found = np.concatenate([statistic(_resampled(codes, groups, part, rng)) for part in parts])
    found = found[np.isfinite(found)]
    if len(found) < 0.9 * draws or np.ptp(found) < 1e-12:
        return Estimate(value, None, None, len(codes), groups)
    low, high = np.percentile(found, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(codes), groups)


def _resampled(codes: Array, groups: int, draws: int, rng: np.random.Generator) -> Array:
    """How often each item counts (draws × items) when as many groups are drawn as there are, with replacement."""
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)[:, codes].astype(float)


def _table(marks: ArrayLike) -> Array:
    table = np.asarray(marks, float)
    if table.ndim != 2:
        raise ValueError(f"marks have shape {table.shape}; expected raters × items")
    return np.where(np.isfinite(table), table, np.nan)


def _ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where below is not positive."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _c4(freedom: float) -> float:
    """The mean of a sample's standard deviation over the true one, for normal noise."""
    if freedom <= 0:
        return math.nan
    return math.sqrt(2 / freedom) * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
