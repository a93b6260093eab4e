"""The batch's sampler against a float64 NumPy reference, filter by filter and all together."""

from dataclasses import replace

import numpy as np
import pytest

from grpo_ray.generators._sampler import controls_of, draw, least_kept, model_logprobs, pick, uniforms
from grpo_ray.mlx_core import mx
from grpo_ray.types import Sampling

pytestmark = pytest.mark.mlx
PLAIN = Sampling()
SETTINGS = {
    "plain": PLAIN,
    "warm": Sampling(temperature=1.7),
    "cool": Sampling(temperature=0.3),
    "top-k": Sampling(top_k=4),
    "top-p": Sampling(top_p=0.6),
    "min-p": Sampling(min_p=0.2),
    "penalty": Sampling(repetition_penalty=1.8),
    "one": Sampling(top_k=1),
    "more than there are": Sampling(top_k=1000),
    "all": Sampling(temperature=0.8, top_k=9, top_p=0.8, min_p=0.1, repetition_penalty=1.3),
    "all but top-k": Sampling(temperature=1.2, top_p=0.9, min_p=0.05, repetition_penalty=0.9),
    "greedy": Sampling(temperature=0.0),
    "greedy with a penalty": Sampling(temperature=0.0, repetition_penalty=3.0, top_k=2),
}
ROWS, WORDS = 40, 50


def reference(logits: np.ndarray, seen: np.ndarray, how: Sampling) -> np.ndarray:
    """Log-probabilities (words,) of one row in float64: penalty, temperature, top-k, top-p, min-p, one after another."""
    found = np.array(logits, np.float64)
    found = np.where(seen, np.where(found > 0, found / how.repetition_penalty, found * how.repetition_penalty), found)
    if how.temperature == 0:
        return np.where(np.arange(len(found)) == found.argmax(), 0.0, -np.inf)
    found = found / how.temperature
    if how.top_k:
        found = np.where(found >= np.sort(found)[-min(how.top_k, len(found))], found, -np.inf)
    if how.top_p < 1:
        shares = np.exp(normal(found))
        order = np.argsort(-shares, kind="stable")
        before = np.cumsum(shares[order]) - shares[order]
        found[order[before >= how.top_p]] = -np.inf
    found = np.where(found >= found.max() + np.log(how.min_p), found, -np.inf) if how.min_p else found
    return normal(found)


def normal(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def inputs(rows: int = ROWS) -> tuple[mx.array, mx.array, mx.array]:
    """Logits, keys, and what has been seen."""
    logits = 2.5 * mx.random.normal((rows, WORDS), key=mx.random.key(1))
    return (
        logits,
        mx.random.split(mx.random.key(2), rows),
        mx.random.uniform(shape=logits.shape, key=mx.random.key(3)) < 0.3,
    )


def drawn(logits: mx.array, keys: mx.array, seen: mx.array, how: list[Sampling]) -> tuple[np.ndarray, ...]:
    """Tokens, log-probabilities of what was drawn from, log-probabilities of the model."""
    controls = controls_of(how)
    tokens, logprobs = draw(logits, uniforms(keys), controls, seen)
    return tuple(np.array(found) for found in (tokens, logprobs, model_logprobs(logits, tokens)))


@pytest.mark.parametrize("name", SETTINGS)
def test_each_filter_agrees_with_numpy(name):
    how, (logits, keys, seen) = SETTINGS[name], inputs()
    tokens, logprobs, bare = drawn(logits, keys, seen, [how] * ROWS)
    for row, token in enumerate(tokens):
        expected = reference(np.array(logits[row]), np.array(seen[row]), how)
        assert np.isfinite(expected[token])
        assert np.isclose(logprobs[row], expected[token], atol=1e-5)
        assert np.isclose(bare[row], normal(np.array(logits[row], np.float64))[token], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SETTINGS if "greedy" not in name])
def test_what_is_kept_is_what_numpy_keeps(name):
    how, (logits, _, _) = replace(SETTINGS[name], repetition_penalty=1.0), inputs()
    scaled = logits / how.temperature
    kept = np.array(scaled >= least_kept(scaled, controls_of([how] * ROWS)))
    nothing = np.zeros(WORDS, bool)
    expected = [np.isfinite(reference(np.array(row), nothing, how)) for row in logits]
    assert (kept == np.array(expected)).all()


def test_the_token_is_where_the_running_probability_passes_the_chances():
    """With fixed keys every token follows from the reference alone: first its block of eight, then its place there."""
    logits, keys, seen = inputs()
    chances = np.array(uniforms(keys), np.float64)
    for how in (one for one in SETTINGS.values() if one.temperature):
        tokens, _, _ = drawn(logits, keys, seen, [how] * ROWS)
        for row, token in enumerate(tokens):
            shares = np.exp(reference(np.array(logits[row]), np.array(seen[row]), how))
            block = np.searchsorted(np.add.reduceat(shares, range(0, WORDS, 8)).cumsum(), chances[row, 0], "right")
            inside = shares[8 * block :][:8].cumsum()
            assert token == 8 * block + np.searchsorted(inside, chances[row, 1] * inside[-1], "right")


@pytest.mark.parametrize("words", [1, 2, 7, 64, 100, 5000])
def test_words_are_picked_as_often_as_they_weigh(words):
    """Over a grid of chances, one picked row for each of its points."""
    side = 96
    weights = np.random.default_rng(words).random(words) ** 3 * (np.arange(words) % 3 != 1)
    weights[-1] = 0 if words > 1 else 1.0
    grid = (np.arange(side) + 0.5) / side
    chances = np.stack([one.ravel() for one in np.meshgrid(grid, grid)], axis=1)
    rows = mx.broadcast_to(mx.array(weights.astype(np.float32)), (side * side, words))
    found, total = pick(rows, mx.array(chances.astype(np.float32)))
    counts = np.bincount(np.array(found), minlength=words)
    assert counts[weights == 0].sum() == 0
    assert np.isclose(np.array(total), weights.sum(), rtol=1e-5).all()
    assert np.abs(counts / side**2 - weights / weights.sum()).max() < 2.5 / side


def test_the_last_chance_there_is_picks_a_word_that_weighs():
    edge = mx.array([[1 - 2**-24, 1 - 2**-24], [0.0, 0.0]])
    found, _ = pick(mx.array([[0.0, 1e-30, 0.3, 0.0, 0.0]] * 2), edge)
    assert found.tolist() == [2, 1]


def test_rows_of_every_kind_in_one_batch_are_as_if_alone():
    how = list(SETTINGS.values())
    logits, keys, seen = inputs(len(how))
    together = drawn(logits, keys, seen, how)
    for row, one in enumerate(how):
        here = mx.array([row])
        for many, single in zip(together, drawn(logits[here], keys[here], seen[here], [one]), strict=True):
            assert np.allclose(many[row], single[0], atol=1e-6)


def test_the_same_keys_are_the_same_tokens_in_any_order():
    logits, keys, seen = inputs()
    first = drawn(logits, keys, seen, [SETTINGS["all"]] * ROWS)
    back = mx.arange(ROWS - 1, -1, -1)
    second = drawn(logits[back], keys[back], seen[back], [SETTINGS["all"]] * ROWS)
    for one, other in zip(first, second, strict=True):
        assert (one[::-1] == other).all()


def test_tokens_that_tie_at_the_edge_are_all_kept():
    scaled = mx.array([[3.0, 1.0, 1.0, 0.0, -mx.inf]])
    for how in (Sampling(top_k=2), Sampling(top_p=0.8), Sampling(min_p=0.13)):
        assert least_kept(scaled, controls_of([how])).item() <= 1.0
    assert np.array(scaled >= least_kept(scaled, controls_of([Sampling(top_k=2)]))).sum() == 3


def test_a_plain_batch_asks_for_no_work():
    controls = controls_of([PLAIN] * 3)
    assert controls.plain and controls.widest == 0
    assert controls_of([PLAIN, Sampling(top_k=3)]).widest == 3
    assert controls_of([Sampling(top_p=0.9), Sampling(top_k=3)]).widest is None
    assert controls_of([Sampling(min_p=0.1)]).widest == 0


def test_low_precision_logits_are_scored_in_single():
    logits, keys, seen = inputs()
    half = logits.astype(mx.bfloat16)
    _, logprobs, bare = drawn(half, keys, seen, [PLAIN] * ROWS)
    assert logprobs.dtype == bare.dtype == np.float32
