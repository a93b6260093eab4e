"""What a judge's scores are worth in labels: isotonic calibration, what it gains, and means with honest intervals.

Labels come from people or verifiers (0/1, or any number), scores from a judge; NaN is missing. Rollouts of one group
are alike, so folds keep groups whole and errors are summed by group, when `groups` names each row's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
NORMAL_95 = NormalDist().inv_cdf(0.975)
"""Standard errors to each side of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A rising map from a judge's score to the label that is to be expected.

    Straight lines between the knots, flat beyond them: constant inside each pooled block, linear from block to block.
    """

    scores: tuple[float, ...]
    """The knots, rising."""
    values: tuple[float, ...]
    """The label at each knot, never falling."""
    labels: int
    """How many labels stand behind it."""

    def apply(self, scores: ArrayLike) -> Array:
        """The expected label for each score, same shape; NaN stays NaN."""
        return np.interp(np.asarray(scores, float), self.scores, self.values)


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean squared distance to the labels (the Brier score, if they are 0/1) of raw and of calibrated scores.

    Calibrated scores are cross-fitted: each comes from labels of other folds, so fitting noise shows as a loss.
    `gain` is before − after, with its 95 % interval: below 0, calibration makes it worse.
    """

    before: float | None
    after: float | None
    gain: float | None
    low: float | None
    high: float | None
    labels: int
    groups: int
    folds: int


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its 95 % interval, and what stands behind it."""

    value: float | None
    low: float | None
    high: float | None
    labels: int
    """n: rows with a label."""
    judged: int
    """N: rows with the judge's score only, which were used; 0 for a classical mean."""
    power: float | None = None
    """Weight of the judge's scores, 0 (they tell nothing, classical mean) to 1; None for a classical mean."""


# ── calibration ───────────────────────────────────────────────────────────────────────────────────────────────────


def isotonic(scores: ArrayLike, labels: ArrayLike) -> Calibration | None:
    """Least-squares rising fit of labels (rows,) on scores (rows,); None without a labelled score.

    Source: pool adjacent violators, Barlow et al. 1972; for calibration Zadrozny & Elkan 2002. Ties are pooled first.
    """
    score, label = np.asarray(scores, float), np.asarray(labels, float)
    known = np.isfinite(score) & np.isfinite(label)
    if not known.any():
        return None
    levels, codes = np.unique(score[known], return_inverse=True)
    counts = np.bincount(codes).astype(float)
    blocks = _pool(np.bincount(codes, label[known]) / counts, counts)
    knots = [(float(levels[edge]), value) for first, last, value in blocks for edge in dict.fromkeys((first, last))]
    return Calibration(tuple(x for x, _ in knots), tuple(value for _, value in knots), int(known.sum()))


def cross_fitted_gain(
    scores: ArrayLike,
    labels: ArrayLike,
    rng: np.random.Generator,
    *,
    groups: ArrayLike | None = None,
    folds: int = 5,
) -> Gain:
    """What isotonic calibration would gain on new groups; all None with fewer groups than two a fold."""
    score, label = np.asarray(scores, float), np.asarray(labels, float)
    known = np.isfinite(score) & np.isfinite(label)
    score, label, codes = score[known], label[known], group_codes(groups, known)
    count = int(codes.max()) + 1 if len(codes) else 0
    if count < 2 * folds:
        return Gain(None, None, None, None, None, len(score), count, folds)
    fold = rng.permutation(np.arange(count) % folds)[codes]
    after = np.empty(len(score))
    for k in range(folds):
        fitted = isotonic(score[fold != k], label[fold != k])
        assert fitted is not None, "other folds hold groups with labels"
        after[fold == k] = fitted.apply(score[fold == k])
    raw, fitted_squares = (score - label) ** 2, (after - label) ** 2
    gain = raw - fitted_squares
    error = math.sqrt(_squared_sums((gain - gain.mean()) / len(gain), codes))
    low, high = _interval(float(gain.mean()), error, count - 1)
    return Gain(float(raw.mean()), float(fitted_squares.mean()), float(gain.mean()), low, high, len(gain), count, folds)


def _pool(values: Array, weights: Array) -> list[tuple[int, int, float]]:
    """(first, last, value) of each block once neighbours that fall are merged, as often as it takes."""
    blocks: list[tuple[int, int, float, float]] = []
    for i in range(len(values)):
        first, value, weight = i, float(values[i]), float(weights[i])
        while blocks and blocks[-1][2] >= value:
            first, _, other, heavy = blocks.pop()
            value, weight = other + (value - other) * weight / (weight + heavy), weight + heavy
        blocks.append((first, i, value, weight))
    return [(first, last, value) for first, last, value, _ in blocks]


# ── means ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def powered_mean(scores: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = None) -> Mean:
    """The mean label over all rows, of which only some are labelled (labels: NaN elsewhere), helped by the scores.

    Source: prediction-powered inference with power tuning, Angelopoulos, Duchi & Zrnic 2023 (PPI++, arXiv 2311.01453),
    with errors by groups. Labelled rows must be a random draw of all; then it is right however bad the judge
    is. Without two labelled and two other rows (or groups) it falls back to `classical_mean`.
    """
    score, label = np.asarray(scores, float), np.asarray(labels, float)
    known = np.isfinite(score)
    score, label, codes = score[known], label[known], group_codes(groups, known)
    has = np.isfinite(label)
    n, others, count = int(has.sum()), int((~has).sum()), len(np.unique(codes[has]))
    if min(count, len(np.unique(codes[~has]))) < 2:
        return classical_mean(labels, groups=groups)
    ours = np.where(has, (np.where(has, label, 0.0) - label[has].mean()) / n, 0.0) * _spare(codes[has])
    theirs = np.where(has, (score - score[has].mean()) / n * _spare(codes[has]), 0.0)
    theirs -= np.where(has, 0.0, (score - score[~has].mean()) / others * _spare(codes[~has]))
    a, b = np.bincount(codes, ours), np.bincount(codes, theirs)
    power = min(1.0, max(0.0, float(a @ b / (b @ b)))) if b @ b > 0 else 0.0
    value = float(label[has].mean() + power * (score[~has].mean() - score[has].mean()))
    low, high = _interval(value, math.sqrt(float(((a - power * b) ** 2).sum())), count - 1)
    return Mean(value, low, high, n, others, power)


def classical_mean(labels: ArrayLike, *, groups: ArrayLike | None = None) -> Mean:
    """The mean of the labels alone, with Student's interval; no interval from fewer than two rows (or groups)."""
    label = np.asarray(labels, float)
    known = np.isfinite(label)
    label, codes = label[known], group_codes(groups, known)
    if not len(label):
        return Mean(None, None, None, 0, 0)
    value, count = float(label.mean()), int(codes.max()) + 1
    if count < 2:
        return Mean(value, None, None, len(label), 0)
    low, high = _interval(value, math.sqrt(_squared_sums((label - value) / len(label), codes)), count - 1)
    return Mean(value, low, high, len(label), 0)


def _squared_sums(moves: Array, codes: Array) -> float:
    """The variance of a mean: what each group moves it by, squared and summed, with G / (G − 1)."""
    return float((np.bincount(codes, moves) ** 2).sum()) * _spare(codes) ** 2


def _spare(codes: Array) -> float:
    """√(G / (G − 1)) for the G groups there are."""
    count = len(np.unique(codes))
    return math.sqrt(count / (count - 1))


def _interval(value: float, error: float, freedom: int) -> tuple[float | None, float | None]:
    """Student's 95 % interval; unknown where nothing varies."""
    if error <= 1e-15:
        return None, None
    reach = student_quantile(0.975, freedom) * error
    return value - reach, value + reach


def group_codes(groups: ArrayLike | None, kept: Array) -> Array:
    """The number of each kept item's group, from 0; without groups each item (row) is one."""
    if groups is None:
        return np.arange(int(kept.sum()))
    named = np.asarray(groups)
    if named.shape != kept.shape:
        raise ValueError(f"groups names {named.shape} groups for {kept.shape} items; give one for each item")
    return np.unique(named[kept], return_inverse=True)[1]


def share_interval(held: int, of: int) -> tuple[float, float]:
    """Wilson's 1927 95 % interval of a share, which holds the share itself; `of` is at least 1."""
    share, more = held / of, NORMAL_95**2 / of
    reach = NORMAL_95 * math.sqrt(share * (1 - share) / of + more / (4 * of))
    low, high = ((share + more / 2 + side) / (1 + more) for side in (-reach, reach))
    return min(share, max(0.0, low)), max(share, min(1.0, high))


# ── distributions ─────────────────────────────────────────────────────────────────────────────────────────────────


def student_p(t: float, freedom: float) -> float:
    """Two-sided p of Student's t."""
    return _beta_share(freedom / 2, 0.5, freedom / (freedom + t * t))


@lru_cache(maxsize=1024)
def student_quantile(q: float, freedom: float) -> float:
    """The t that a share q ≥ 0.5 lies below."""
    return _falls_to(lambda t: student_p(t, freedom), 2 * (1 - q))


def f_above(ratio: float, above: float, below: float) -> float:
    """The chance of an F (degrees of freedom above and below the line) larger than `ratio`."""
    return _beta_share(below / 2, above / 2, below / (below + above * ratio))


@lru_cache(maxsize=1024)
def f_quantile(q: float, above: float, below: float) -> float:
    """The F that a share q lies below."""
    return _falls_to(lambda ratio: f_above(ratio, above, below), 1 - q)


def _falls_to(falling: Callable[[float], float], target: float) -> float:
    """Where a falling function of x ≥ 0 reaches `target`, by bisection to twelve digits."""
    low, high = 0.0, 1.0
    while falling(high) > target and high < 1e12:
        low, high = high, high * 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > target else (low, middle)
    return (low + high) / 2


def _beta_share(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function, by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    total, c, d = 1.0, 1.0, 0.0
    for m in range(1, 10_000):
        step = _fraction_step(a, b, x, m)
        d, c = 1 / (1 + step * d), 1 + step / c
        total *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front / total


def _fraction_step(a: float, b: float, x: float, m: int) -> float:
    half = m // 2
    if m % 2:
        return -(a + half) * (a + b + half) * x / ((a + m - 1) * (a + m))
    return half * (b - half) * x / ((a + m - 1) * (a + m))
