import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from grpo_ray.trust.agreement import Estimate, Metric, icc, krippendorff_alpha, repeat_noise, verifier_agreement

X = np.nan
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, X, X, X],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, X, 3],
    [X, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, X],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, X],
]
"""Krippendorff 2011: four coders, twelve units, the last with one mark."""
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]).T
"""Shrout & Fleiss 1979: six targets, four judges; here raters × items."""
METRICS: list[Metric] = ["nominal", "ordinal", "interval"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def marks(seed: int, items: int, noise: float = 0.7, raters: int = 3) -> np.ndarray:
    """Marks from 1 to 5 of items that differ, by raters with noise."""
    made = rng(seed)
    return np.round(3 + made.normal(size=items) + noise * made.normal(size=(raters, items))).clip(1, 5)


@pytest.mark.parametrize(("metric", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_example(metric: Metric, published: float) -> None:
    found = krippendorff_alpha(KRIPPENDORFF, metric, rng=rng())
    assert found.value == pytest.approx(published, abs=5e-4)
    assert found.items == 11
    assert found.value is not None and found.low is not None and found.high is not None
    assert found.low < found.value < found.high <= 1 + 1e-12


def test_icc_of_shrout_and_fleiss() -> None:
    found = icc(SHROUT_FLEISS)
    assert found.single.value == pytest.approx(0.29, abs=5e-3)
    assert found.average.value == pytest.approx(0.62, abs=5e-3)
    assert (found.raters, found.left_out, found.single.items) == (4, 0, 6)


def test_icc_uses_complete_items_and_says_so() -> None:
    holed = np.column_stack([SHROUT_FLEISS, [1, X, 3, 4], [X, X, X, X]])
    found = icc(holed)
    assert found.left_out == 2
    assert found.single == icc(SHROUT_FLEISS).single


def alpha_by_pairs(table: np.ndarray, metric: Metric) -> float:
    """The definition, pair by pair: 1 − mean squared distance inside items / over all pairs."""
    values = [column[np.isfinite(column)] for column in table.T]
    values = [column for column in values if len(column) > 1]
    every = np.concatenate(values)

    def distance(a: float, b: float) -> float:
        if metric == "interval":
            return (a - b) ** 2
        low, high = min(a, b), max(a, b)
        between = ((every >= low) & (every <= high)).sum() - ((every == a).sum() + (every == b).sum()) / 2
        return between**2 if metric == "ordinal" else float(a != b)

    inside = sum(distance(a, b) / (len(column) - 1) for column in values for a in column for b in column)
    over = sum(distance(a, b) for a in every for b in every) / (len(every) - 1)
    return 1 - inside / over


@pytest.mark.parametrize("metric", METRICS)
def test_alpha_is_its_definition(metric: Metric) -> None:
    table = marks(3, 15, raters=4)
    table[rng(4).random(table.shape) < 0.3] = X
    assert krippendorff_alpha(table, metric).value == pytest.approx(alpha_by_pairs(table, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_agreement_is_one_without_a_false_interval(metric: Metric) -> None:
    found = krippendorff_alpha(np.tile(np.arange(20.0), (3, 1)), metric, rng=rng())
    assert found.value == pytest.approx(1)
    assert (found.low, found.high) == (None, None)


DEGENERATE = [
    np.zeros((0, 0)),
    np.zeros((3, 0)),
    np.zeros((0, 4)),
    np.full((3, 10), 0.1),
    np.full((2, 4), X),
    [[1.0, X], [X, 2.0]],
]


@pytest.mark.parametrize("table", DEGENERATE)
def test_what_cannot_be_told_is_none(table: np.ndarray) -> None:
    for metric in METRICS:
        found = krippendorff_alpha(table, metric, rng=rng())
        assert (found.value, found.low, found.high) == (None, None, None)
    both = icc(table, rng=rng())
    assert both.single.value is None and both.average.value is None


def test_noise_needs_a_repeat() -> None:
    assert repeat_noise([[1.0, X], [X, 2.0]], rng=rng()).value is None
    assert repeat_noise(np.zeros((0, 0)), rng=rng()).value is None
    steady = repeat_noise(np.full((3, 9), 0.1), rng=rng())
    assert steady.value == pytest.approx(0) and steady.low is None


@given(arrays(float, st.tuples(st.integers(0, 4), st.integers(0, 9)), elements=st.sampled_from([0.0, 0.25, 1.0, X])))
def test_any_table_gives_numbers_or_none_that_go_to_json(table: np.ndarray) -> None:
    found = [krippendorff_alpha(table, metric, rng=rng(), draws=20) for metric in METRICS]
    both = icc(table, rng=rng(), draws=20)
    for estimate in [*found, both.single, both.average, repeat_noise(table, rng=rng(), draws=20)]:
        json.dumps(asdict(estimate), allow_nan=False)
        assert (estimate.low is None) == (estimate.high is None)


def test_auc_and_correlation_are_their_definitions() -> None:
    made = rng(5)
    right = made.random(60) < 0.4
    score = np.round(right + made.normal(size=60), 0)
    found = verifier_agreement(score, right, rng=made)
    pairs = [(a > b) + (a == b) / 2 for a in score[right] for b in score[~right]]
    assert found.auc.value == pytest.approx(np.mean(pairs))
    assert found.correlation.value == pytest.approx(np.corrcoef(score, right)[0, 1])
    assert found.auc.low is not None and found.auc.low > 0.5


def test_agreement_with_a_verifier_leaves_out_what_is_missing() -> None:
    full = verifier_agreement([0.1, 0.9, 0.8, 0.2], [0, 1, 1, 0])
    holed = verifier_agreement([0.1, X, 0.9, 0.8, 0.2, 0.5], [0, 1, 1, 1, 0, X])
    assert full == holed
    assert full.auc.value == 1
    for scores, verdicts in [([], []), ([0.1] * 9, [0, 1, 1] * 3), ([0.1, 0.2], [1, 1])]:
        found = verifier_agreement(scores, verdicts, rng=rng())
        assert found.auc.value is None and found.correlation.value is None


def test_noise_is_pooled_inside_items_and_unbiased() -> None:
    found = [repeat_noise(rng(seed).normal(size=(2, 6)) + 10 * rng(seed + 1000).normal(size=6)) for seed in range(400)]
    assert np.mean([one.value or 0.0 for one in found]) == pytest.approx(1, abs=0.05)
    holed = [[1.0, 5.0, 7.0], [2.0, X, 7.0], [X, X, 7.0]]
    assert repeat_noise(holed).items == 2
    assert repeat_noise(holed).value == pytest.approx(np.sqrt(0.5 / 3) / 0.921318, rel=1e-5)


def test_rollouts_of_a_group_are_not_independent() -> None:
    """The same marks four times over say no more than once; who doesn't name the groups gets too narrow an interval."""
    once = marks(6, 40)
    often, groups = np.repeat(once, 4, axis=1), np.repeat(np.arange(40), 4)
    single, named, careless = (
        krippendorff_alpha(once, rng=rng()),
        krippendorff_alpha(often, groups=groups, rng=rng()),
        krippendorff_alpha(often, rng=rng()),
    )
    assert named.groups == 40 and named.items == 160
    assert width(named) == pytest.approx(width(single), rel=0.05)
    assert width(careless) < 0.7 * width(named)


def test_intervals_cover() -> None:
    truth = krippendorff_alpha(marks(999, 100_000)).value
    assert truth is not None
    found = [krippendorff_alpha(marks(seed, 50), rng=rng(seed), draws=200) for seed in range(100)]
    assert np.mean([one.low is not None and one.low <= truth <= (one.high or 0) for one in found]) >= 0.9


def test_the_same_generator_gives_the_same_interval() -> None:
    table = marks(8, 30)
    assert icc(table, rng=rng(1)) == icc(table, rng=rng(1))
    assert krippendorff_alpha(table).low is None
    assert krippendorff_alpha(table[:, :7], rng=rng()).low is None, "too few items to resample"


def test_a_wrong_shape_is_a_bug() -> None:
    with pytest.raises(ValueError, match="raters × items"):
        krippendorff_alpha([1.0, 2.0])
    with pytest.raises(ValueError, match="one for each item"):
        krippendorff_alpha(KRIPPENDORFF, groups=[1, 2])


def width(estimate: Estimate) -> float:
    assert estimate.low is not None and estimate.high is not None
    return estimate.high - estimate.low
