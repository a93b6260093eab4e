import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.trust.calibration import (
    Calibration,
    Mean,
    classical_mean,
    cross_fitted_gain,
    f_above,
    f_quantile,
    isotonic,
    powered_mean,
    student_p,
    student_quantile,
)

X = np.nan
labelled = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1)), min_size=1, max_size=30
)
Labelled = list[tuple[float, float]]


def fitted(pairs: Labelled) -> tuple[np.ndarray, np.ndarray, Calibration]:
    scores, labels = np.array(pairs).T
    found = isotonic(scores, labels)
    assert found is not None
    return scores, labels, found


@given(labelled)
def test_a_calibration_rises_within_the_labels(pairs: Labelled) -> None:
    _, labels, found = fitted(pairs)
    line = found.apply(np.linspace(-0.5, 1.5, 201))
    assert (np.diff(line) >= -1e-12).all()
    assert labels.min() - 1e-12 <= line.min() and line.max() <= labels.max() + 1e-12
    assert found.labels == len(pairs)
    assert list(found.scores) == sorted(set(found.scores))


@given(labelled)
def test_calibrating_twice_changes_nothing(pairs: Labelled) -> None:
    scores, _, found = fitted(pairs)
    again = isotonic(scores, found.apply(scores))
    assert again is not None
    assert again.apply(scores) == pytest.approx(found.apply(scores), abs=1e-9)


@given(labelled)
def test_a_calibration_keeps_the_mean_and_is_the_best_rising_fit(pairs: Labelled) -> None:
    scores, labels, found = fitted(pairs)
    fit = found.apply(scores)
    assert fit.mean() == pytest.approx(labels.mean(), abs=1e-9)
    # Least squares over a cone: the residual is orthogonal to the fit and points away from every rising map.
    assert (labels - fit) @ fit == pytest.approx(0, abs=1e-9)
    assert all((labels - fit) @ (scores > level) <= 1e-9 for level in scores)


def test_pooled_blocks_by_hand() -> None:
    found = isotonic([0.1, 0.2, 0.3, 0.4, 0.4, X, 0.9], [0, 1, 0, 1, 0, 1, X])
    assert found is not None
    assert found == Calibration((0.1, 0.2, 0.4), (0.0, 0.5, 0.5), 5)
    assert found.apply([0.0, 0.15, 0.3, 2.0]) == pytest.approx([0, 0.25, 0.5, 0.5])
    assert np.isnan(found.apply(X))
    assert isotonic([], []) is None and isotonic([X], [1.0]) is None


def test_calibration_gains_on_a_bent_judge_and_overfitting_shows() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(600)
    groups = np.arange(600) // 8
    bent = cross_fitted_gain(score, rng.random(600) < score**3, rng, groups=groups)
    assert bent.gain is not None and bent.low is not None and bent.low > 0
    assert bent.before == pytest.approx((bent.after or 0) + bent.gain)
    assert bent.groups == 75 and bent.labels == 600
    straight = [cross_fitted_gain(s := rng.random(40), rng.random(40) < s, rng).gain or 0 for _ in range(30)]
    assert np.mean(straight) < 0, "nothing to gain and few labels: calibrating must look like a loss"


def test_no_gain_can_be_told_from_few_groups() -> None:
    rng = np.random.default_rng(0)
    assert cross_fitted_gain([], [], rng).gain is None
    assert cross_fitted_gain([0.5] * 80, [1.0] * 80, rng, groups=[0] * 80).gain is None


def world(seed: int, labels: int = 50, others: int = 500, skill: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """A judge that is 0.3 too kind, and labels with mean 0.5 for some rows."""
    rng = np.random.default_rng([11, seed])
    quality = rng.normal(size=labels + others)
    score = 0.3 + skill * quality + np.sqrt(1 - skill**2) * rng.normal(size=len(quality))
    return score, np.where(np.arange(len(quality)) < labels, quality > 0, X)


def covers(mean: Mean, truth: float) -> bool:
    assert mean.low is not None and mean.high is not None
    return mean.low <= truth <= mean.high


def test_a_powered_mean_is_unbiased_covers_and_is_narrower() -> None:
    found = [powered_mean(*world(seed)) for seed in range(500)]
    plain = [classical_mean(world(seed)[1]) for seed in range(500)]
    values = np.array([mean.value for mean in found], float)
    assert abs(values.mean() - 0.5) < 3 * values.std() / np.sqrt(500)
    assert 0.92 <= np.mean([covers(mean, 0.5) for mean in found]) <= 0.98
    assert np.mean([width(mean) for mean in found]) < 0.8 * np.mean([width(mean) for mean in plain])
    assert (found[0].labels, found[0].judged, plain[0].labels, plain[0].judged) == (50, 500, 50, 0)


def test_a_judge_who_tells_nothing_costs_nothing() -> None:
    found = [powered_mean(*world(seed, skill=0.0)) for seed in range(200)]
    plain = [classical_mean(world(seed, skill=0.0)[1]) for seed in range(200)]
    assert np.mean([width(mean) for mean in found]) < 1.01 * np.mean([width(mean) for mean in plain])
    assert np.mean([mean.power or 0.0 for mean in found]) < 0.15


def test_the_power_is_that_of_the_paper() -> None:
    """arXiv 2311.01453: Cov(Y, f) / ((1 + n/N) Var f), each variance from its own rows."""
    score, label = world(3)
    y, f, g = label[:50], score[:50], score[50:]
    power = np.cov(y, f)[0, 1] / (np.var(f, ddof=1) + 50 / 500 * np.var(g, ddof=1))
    found = powered_mean(score, label)
    assert found.power == pytest.approx(power)
    assert found.value == pytest.approx(power * g.mean() + (y - power * f).mean())
    error = np.sqrt(np.var(y - power * f, ddof=1) / 50 + power**2 * np.var(g, ddof=1) / 500)
    assert width(found) == pytest.approx(2 * student_quantile(0.975, 49) * error)


def test_repeated_rows_say_no_more_than_once() -> None:
    score, label = world(5)
    once, often = powered_mean(score, label), powered_mean(np.repeat(score, 3), np.repeat(label, 3))
    named = powered_mean(np.repeat(score, 3), np.repeat(label, 3), groups=np.repeat(np.arange(550), 3))
    assert width(named) == pytest.approx(width(once))
    assert width(often) < 0.7 * width(once)
    assert (named.labels, named.judged) == (150, 1500)


def test_means_without_enough_labels() -> None:
    assert powered_mean([0.1, 0.2, 0.3], [X, X, X]) == Mean(None, None, None, 0, 0)
    assert powered_mean([0.1, 0.2, 0.3], [1.0, X, X]) == Mean(1.0, None, None, 1, 0)
    assert powered_mean([0.1, 0.2], [1.0, 0.0]) == classical_mean([1.0, 0.0])
    assert classical_mean([1.0, 1.0, 1.0]) == Mean(1.0, None, None, 3, 0)
    assert powered_mean([0.5] * 6, [1.0, 0.0, 1.0, X, X, X]).power == 0.0
    json.dumps(asdict(powered_mean(*world(0))), allow_nan=False)


@pytest.mark.parametrize(
    ("found", "table"),
    [
        (student_quantile(0.975, 1), 12.706205),
        (student_quantile(0.975, 10), 2.228139),
        (student_quantile(0.975, 1e6), 1.959966),
        (student_p(2.228139, 10), 0.05),
        (f_quantile(0.95, 5, 10), 3.325835),
        (f_quantile(0.975, 3, 7), 5.889819),
        (f_quantile(0.025, 3, 7), 1 / 14.624395),
        (f_above(1.0, 40, 40), 0.5),
    ],
)
def test_quantiles_are_those_of_the_tables(found: float, table: float) -> None:
    assert found == pytest.approx(table, rel=1e-5)


def width(mean: Mean) -> float:
    assert mean.low is not None and mean.high is not None
    return mean.high - mean.low
