"""A judge's systematic biases, as residuals: what moves its marks when the truth is held. Arrays in, findings out.

`biases` fits, by least squares inside groups (so task difficulty and template cancel),

    score ~ truth + length + position + features,

with CR2 cluster-robust errors by group and Satterthwaite degrees of freedom (Bell & McCaffrey 2002; Pustejovsky &
Tipton 2018, "Small-sample methods for cluster-robust variance estimation"). What it can't do: if the
truth is only a stand-in (other judges), what that misses of the quality stays in the residual, and a length that goes
with quality looks like a bias; a bias that all judges share stays hidden.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grpo_ray.trust.calibration import f_above, f_quantile, share_interval, student_p, student_quantile

Array = NDArray[Any]
Kind = Literal["truth", "length", "position", "feature", "preference", "noise"]
FEWEST_FREEDOM = 5.0
"""Fewer effective degrees of freedom (a phrase in few groups) than these make no test (Tipton 2015 warns below 4)."""
RATE = 0.01
"""How often a judge without any bias may raise an alarm: low, since people look at each, and biases that matter are
far from the edge where there are rows enough (`rows_needed`)."""
NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Finding:
    """One tested bias of one judge, with its 95 % interval. None: can't be told, and `reason` says why.

    The unit of `effect` goes by `kind`; σ is the judge's residual standard deviation inside groups:
    truth, feature: σ for 1 more. length: σ for one standard deviation (inside groups) longer. position: σ from the
    first to the last place. preference: the share that the first place wins, 0.5 being none. noise: the variance of
    the dimension's repeats over that of the others', 1 being the same.
    """

    kind: Kind
    name: str
    dimension: str
    effect: float | None
    low: float | None
    high: float | None
    p: float | None
    """Of no bias, for this test alone; None too for truth, which is no bias."""
    rows: int
    groups: int
    reason: str = ""
    points: float | None = None
    """The effect in marks (0 to 1) instead of σ, with its interval, where σ is its unit."""
    points_low: float | None = None
    points_high: float | None = None


@dataclass(frozen=True, slots=True)
class Alarm:
    """A finding that stands after correction for all the tests of one judge."""

    finding: Finding
    p_adjusted: float


@dataclass(frozen=True, slots=True)
class _Column:
    kind: Kind
    name: str
    values: Array


@dataclass(frozen=True, slots=True)
class _Data:
    """Complete rows in groups of two and more; values less their group's means, in units of `scales`."""

    columns: tuple[_Column, ...]
    x: Array
    y: Array
    codes: Array
    scales: Array

    @property
    def groups(self) -> int:
        return int(self.codes.max()) + 1 if len(self.codes) else 0


def biases(
    score: ArrayLike,
    groups: ArrayLike,
    *,
    truth: Mapping[str, ArrayLike] | None = None,
    length: ArrayLike | None = None,
    position: ArrayLike | None = None,
    features: Mapping[str, ArrayLike] | None = None,
    dimension: str = "",
) -> tuple[Finding, ...]:
    """What moves a judge's scores (rows,) on one dimension when the truth is held; NaN is missing.

    `groups` names each row's group. `truth` holds best stand-ins by name (a verifier's verdict, the mean of other
    judges); one known for less than half of the rows is left out and reported so, and rows without the others are
    not used. `length` is log characters, `position` the place in the request (0 … n − 1, or 0/1 for a preferred
    slot), `features` a 0/1 column for each phrase or mark of style.
    """
    y = np.asarray(score, float)
    columns = _columns(truth or {}, length, position, features or {})
    for column in columns:
        if column.values.shape != y.shape:
            raise ValueError(f"{column.kind} {column.name!r} has {column.values.shape} values for {y.shape} scores")
    sparse = [c for c in columns if c.kind == "truth" and np.isfinite(c.values).sum() * 2 < len(y)]
    data = _data(y, np.asarray(groups), [c for c in columns if all(c is not s for s in sparse)])
    found = _findings(data, dimension)
    return (*(_unknown(c, dimension, data, "known for less than half of the rows") for c in sparse), *found)


def phrase_columns(texts: Sequence[str], phrases: Sequence[str]) -> dict[str, Array]:
    """Phrase → whether each text has it, in any case."""
    folded = [text.casefold() for text in texts]
    return {phrase: np.array([phrase.casefold() in text for text in folded], float) for phrase in phrases}


def position_preference(wins_first: int, n: int, dimension: str = "") -> Finding:
    """How often the first place wins in n decided comparisons, each pair asked in both orders (ties left out).

    Wilson's 1927 score interval; exact binomial p. A judge that tells a pair apart gives the first place one win of
    two, which varies less than a coin does: then both are on the safe side.
    """
    if not 0 <= wins_first <= n:
        raise ValueError(f"{wins_first} wins of {n} comparisons")
    if n == 0:
        return Finding("preference", "first place", dimension, None, None, None, None, 0, 0, "no comparisons")
    interval, p = share_interval(wins_first, n), _coin(max(wins_first, n - wins_first), n)
    return Finding("preference", "first place", dimension, wins_first / n, *interval, p, n, n)


def noisy_dimensions(repeats: Mapping[str, ArrayLike]) -> tuple[Finding, ...]:
    """For each dimension, the variance of repeated marks (repeats × items, NaN missing) over that of all the others.

    F interval, one-sided p (noisier than the others). Marks are no normal numbers: degrees of freedom are divided by
    the kurtosis of the repeats, pooled over dimensions (as Bonett 2006 does for a ratio of two variances).
    """
    parts = {name: _noise_parts(np.asarray(marks, float)) for name, marks in repeats.items()}
    stretch = _kurtosis(list(parts.values()))
    return tuple(_noise(name, parts, stretch) for name in parts)


def alarms(findings: Sequence[Finding], rate: float = RATE) -> tuple[Alarm, ...]:
    """The findings that stand after Holm's 1979 correction over all tests of one judge, surest first.

    A judge without any bias raises an alarm in at most `rate` of runs, however the tests hang together. Give it every
    finding of the judge: all dimensions, preferences and noise.
    """
    tested = sorted(((f.p, i) for i, f in enumerate(findings) if f.p is not None), key=lambda pair: pair[0])
    raised: list[Alarm] = []
    adjusted = 0.0
    for place, (p, index) in enumerate(tested):
        adjusted = max(adjusted, min(1.0, p * (len(tested) - place)))
        raised += [Alarm(findings[index], adjusted)] if adjusted <= rate else []
    return tuple(raised)


def rows_needed(effect: float, *, spread: float = 1.0, tests: int = 12, power: float = 0.9, rate: float = RATE) -> int:
    """How many rows (not counting one a group) find a bias of `effect` σ with this power, under so many tests.

    `spread` is the standard deviation inside groups of what may move the score: 1 for length, √(s(1 − s)) for a
    phrase in a share s of the rows. For a preference, comparisons: the effect of a share 0.6 is (0.6 − 0.5) / 0.5.
    """
    z = NORMAL.inv_cdf(1 - rate / (2 * tests)) + NORMAL.inv_cdf(power)
    return math.ceil((z / (effect * spread)) ** 2)


# ── the regression ────────────────────────────────────────────────────────────────────────────────────────────────


def _columns(
    truth: Mapping[str, ArrayLike],
    length: ArrayLike | None,
    position: ArrayLike | None,
    features: Mapping[str, ArrayLike],
) -> list[_Column]:
    plain: list[tuple[Kind, str, ArrayLike | None]] = [
        *(("truth", name, values) for name, values in truth.items()),
        ("length", "length", length),
        ("position", "position", position),
        *(("feature", name, values) for name, values in features.items()),
    ]
    return [_Column(kind, name, np.asarray(values, float)) for kind, name, values in plain if values is not None]


def _data(y: Array, groups: Array, columns: Sequence[_Column]) -> _Data:
    used = np.all(np.isfinite([y, *(c.values for c in columns)]), axis=0)
    _, codes, sizes = np.unique(groups[used], return_inverse=True, return_counts=True)
    used[used] = sizes[codes] > 1
    codes = np.unique(groups[used], return_inverse=True)[1]
    x = np.array([c.values[used] for c in columns]).reshape(len(columns), len(codes)).T
    inside = _less_means(x, codes)
    scales = np.array([_scale(c.kind, x[:, j], inside[:, j], codes) for j, c in enumerate(columns)])
    return _Data(tuple(columns), inside / scales, _less_means(y[used][:, None], codes)[:, 0], codes, scales)


def _less_means(x: Array, codes: Array) -> Array:
    if not len(codes):
        return x
    sums = np.zeros((codes.max() + 1, x.shape[1]))
    np.add.at(sums, codes, x)
    inside = x - (sums / np.bincount(codes)[:, None])[codes]
    # What is constant inside groups must be exactly that: rounding would be scaled up to look like variation.
    return np.where(np.abs(inside).max(axis=0) > 1e-9 * np.abs(x).max(axis=0), inside, 0.0)


def _scale(kind: Kind, values: Array, inside: Array, codes: Array) -> float:
    """What counts as 1 more; see Finding."""
    if kind == "length" and len(codes):
        return math.sqrt((inside**2).sum() / (len(codes) - codes.max() - 1)) or 1.0
    return float(np.ptp(values)) or 1.0 if kind == "position" and len(values) else 1.0


def _findings(data: _Data, dimension: str) -> list[Finding]:
    kept = _independent(data.x)
    fit = _fit(data, kept)
    found = []
    for j, column in enumerate(data.columns):
        if j not in kept:
            still = "does not vary inside groups, or only together with the columns before it"
            found.append(_unknown(column, dimension, data, still))
        elif fit is None:
            found.append(_unknown(column, dimension, data, "too few rows, or scores without a residual"))
        else:
            found.append(_finding(column, dimension, data, fit, kept.index(j), j))
    return found


def _independent(x: Array) -> list[int]:
    """The columns that vary inside groups and are no sum of the ones before them."""
    kept: list[int] = []
    for j in range(x.shape[1]):
        before, size = x[:, kept], float((x[:, j] ** 2).sum())
        left = x[:, j] - before @ np.linalg.lstsq(before, x[:, j], rcond=None)[0] if kept else x[:, j]
        if len(x) and (left**2).sum() > 1e-8 * max(size, 1e-4):
            kept.append(j)
    return kept


@dataclass(frozen=True, slots=True)
class _Fit:
    beta: Array
    sigma: float
    moves: Array
    """groups × columns: what each group adds to the error of beta (CR2)."""
    sigma_moves: Array
    """(groups,): what each adds to the error of log sigma."""
    freedom: Array


def _fit(data: _Data, kept: list[int]) -> _Fit | None:
    """Least squares with CR2 errors; all k × k algebra, by (I − ZZ′)^−½ Z = Z (I − Z′Z)^−½ in every group."""
    x, y, codes, groups = data.x[:, kept], data.y, data.codes, data.groups
    free = len(y) - groups - len(kept)
    if groups < 2 or free < 1 or not kept:
        return None
    root = np.linalg.inv(np.linalg.cholesky(x.T @ x)).T
    z = x @ root
    beta = root @ (z.T @ y)
    left = y - x @ beta
    sigma = math.sqrt((left**2).sum() / free)
    if sigma <= 1e-9 * float(np.abs(y).max()):
        return None
    inner, pulls = np.zeros((groups, len(kept), len(kept))), np.zeros((groups, len(kept)))
    np.add.at(inner, codes, z[:, :, None] * z[:, None, :])
    np.add.at(pulls, codes, z * left[:, None])
    values, vectors = np.linalg.eigh(np.eye(len(kept)) - inner)
    stretched = np.where(values > 1e-8, np.maximum(values, 1e-8) ** -0.5, 0.0)
    bend = (vectors * stretched[:, None, :]) @ vectors.swapaxes(1, 2)
    moves = np.einsum("jk,gkl,gl->gj", root, bend, pulls)
    sigma_moves = _sigma_moves(left, codes, sigma, free)
    freedom = np.array([_freedom(inner, bend, root[j]) for j in range(len(kept))])
    return _Fit(beta, sigma, moves, sigma_moves, freedom)


def _sigma_moves(left: Array, codes: Array, sigma: float, free: int) -> Array:
    sizes = np.bincount(codes) - 1
    squares = np.bincount(codes, left**2) - sizes * sigma**2 * free / sizes.sum()
    return squares / (2 * sigma**2 * free) * math.sqrt(len(sizes) / (len(sizes) - 1))


def _freedom(inner: Array, bend: Array, row: Array) -> float:
    """Satterthwaite's: 2 E[V]² / Var[V] of the CR2 variance for equal, independent residuals."""
    bent = bend @ row
    pulled = np.einsum("gkl,gl->gk", inner, bent)
    own, shared = (bent * pulled).sum(axis=1), (pulled**2).sum(axis=1)
    spread = (own**2 - 2 * own * shared).sum() + ((pulled.T @ pulled) ** 2).sum()
    return float((own - shared).sum() ** 2 / spread) if spread > 0 else 0.0


def _finding(column: _Column, dimension: str, data: _Data, fit: _Fit, place: int, j: int) -> Finding:
    freedom = float(fit.freedom[place])
    if freedom < FEWEST_FREEDOM:
        return _unknown(column, dimension, data, f"varies in too few groups ({freedom:.1f} degrees of freedom)")
    points, error = float(fit.beta[place]), math.sqrt((fit.moves[:, place] ** 2).sum())
    effect, p = points / fit.sigma, None if column.kind == "truth" else student_p(points / error, freedom)
    # The units are estimated, too: sigma, and for length its own deviation.
    moves = fit.moves[:, place] / fit.sigma - effect * fit.sigma_moves
    if column.kind == "length":
        moves = moves + effect * _sigma_moves(data.x[:, j], data.codes, 1.0, len(data.y) - data.groups)
    wide = student_quantile(0.975, freedom)
    reach, points_reach = wide * math.sqrt((moves**2).sum()), wide * error
    interval, size = (effect - reach, effect + reach), (len(data.y), data.groups)
    in_points = (points, points - points_reach, points + points_reach)
    return Finding(column.kind, column.name, dimension, effect, *interval, p, *size, "", *in_points)


def _unknown(column: _Column, dimension: str, data: _Data, reason: str) -> Finding:
    size = (len(data.y), data.groups)
    return Finding(column.kind, column.name, dimension, None, None, None, None, *size, reason)


# ── noise ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _noise_parts(marks: Array) -> tuple[Array, Array]:
    """(squares, degrees of freedom) inside each item that was marked at least twice."""
    if marks.ndim != 2:
        raise ValueError(f"repeats have shape {marks.shape}; expected repeats × items")
    marks = np.where(np.isfinite(marks), marks, np.nan)[:, np.isfinite(marks).sum(axis=0) >= 2]
    if not marks.size:
        return np.zeros(0), np.zeros(0)
    squares = np.nansum((marks - np.nanmean(marks, axis=0)) ** 2, axis=0)
    return np.where(squares < 1e-20, 0.0, squares), np.isfinite(marks).sum(axis=0) - 1.0


def _kurtosis(parts: Sequence[tuple[Array, Array]]) -> float:
    """How much more the squares vary than a normal's would, at least 1; the mean over dimensions."""
    found = []
    for squares, free in parts:
        if len(squares) > 1 and squares.sum() > 0:
            variance = squares.sum() / free.sum()
            spread = ((squares - free * variance) ** 2).sum() * len(squares) / (len(squares) - 1)
            found.append(float(spread / (2 * variance**2 * free.sum())))
    return max(1.0, sum(found) / len(found)) if found else 1.0


def _noise(name: str, parts: Mapping[str, tuple[Array, Array]], stretch: float) -> Finding:
    squares, free = parts[name]
    others = [part for other, part in parts.items() if other != name]
    rest, rest_free = sum(float(s.sum()) for s, _ in others), sum(float(f.sum()) for _, f in others)
    smallest = min((float(s[s > 0].min()) for s, _ in parts.values() if (s > 0).any()), default=0.0)
    if min(free.sum(), rest_free) / stretch < FEWEST_FREEDOM or not smallest:
        reason = "no repeat differs" if not smallest else "too few repeated marks, here or on the other dimensions"
        return Finding("noise", name, name, None, None, None, None, len(squares), len(squares), reason)
    # Where the others never differ, they count as if one item had differed by the least that any did.
    ratio = float(squares.sum() / free.sum()) / (max(rest, smallest) / rest_free)
    above, below = float(free.sum()) / stretch, rest_free / stretch
    low, high = ratio / f_quantile(0.975, above, below), ratio / f_quantile(0.025, above, below)
    p = f_above(ratio, above, below)
    return Finding("noise", name, name, ratio, low, high, p, len(squares), len(squares))


def _coin(most: int, n: int) -> float:
    """The two-sided exact p of `most` or more (most ≥ n/2) of n fair tosses on one side."""
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(most, n + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value - n * math.log(2)) for value in logs))
