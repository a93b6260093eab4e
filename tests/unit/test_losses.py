"""The GRPO loss against a plain float64 reading of the papers, and its gradient against finite differences."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ray.trainers.losses import Clip, grpo_loss, k3, mx, token_logprobs, token_weights

CLIP = Clip(low=0.2, high=0.28, kl=0.1)


def draw_case(seed: int) -> tuple[np.ndarray, ...]:
    """new, old, reference (G, T), advantages (G,), lengths (G,), random."""
    rng = np.random.default_rng(seed)
    rows, width = int(rng.integers(1, 5)), int(rng.integers(1, 7))
    old = rng.normal(-1.5, 0.7, (rows, width))
    new, reference = old + rng.normal(0, 0.3, old.shape), old + rng.normal(0, 0.3, old.shape)
    return new, old, reference, rng.normal(0, 1, rows), rng.integers(1, width + 1, rows)


def loss_by_hand(new, old, reference, advantages, lengths, weighting: str) -> float:
    """Token by token, in float64."""
    total = 0.0
    for row, length in enumerate(lengths):
        for t in range(length):
            ratio, gain = np.exp(new[row, t] - old[row, t]), advantages[row]
            token = -min(ratio * gain, np.clip(ratio, 1 - CLIP.low, 1 + CLIP.high) * gain)
            gap = reference[row, t] - new[row, t]
            token += CLIP.kl * (np.exp(gap) - gap - 1)
            total += token / sum(lengths) if weighting == "dapo" else token / (len(lengths) * length)
    return total


def run_loss(new, old, reference, advantages, lengths, weighting) -> tuple[mx.array, mx.array]:
    active = np.arange(new.shape[1])[None] < lengths[:, None]
    weights = np.array(token_weights([list(lengths)], weighting)[0])[:, None] * active
    arrays = [mx.array(np.asarray(part, np.float32)) for part in (old, advantages, weights, reference)]
    new = new if isinstance(new, mx.array) else mx.array(np.asarray(new, np.float32))
    return grpo_loss(new, arrays[0], arrays[1], arrays[2], CLIP, arrays[3])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), weighting=st.sampled_from(["dapo", "grpo"]))
def test_loss_is_the_papers(seed, weighting):
    case = draw_case(seed)
    loss, _ = run_loss(*case, weighting)
    assert abs(loss.item() - loss_by_hand(*case, weighting)) < 1e-5


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), weighting=st.sampled_from(["dapo", "grpo"]))
def test_gradient_is_the_finite_difference(seed, weighting):
    new, *rest = draw_case(seed)
    slope = np.array(mx.grad(lambda x: run_loss(x, *rest, weighting)[0])(mx.array(new.astype(np.float32))))
    expected = np.zeros_like(new)
    for place in np.ndindex(*new.shape):
        step = np.zeros_like(new)
        step[place] = 1e-6
        rise = loss_by_hand(new + step, *rest, weighting) - loss_by_hand(new - step, *rest, weighting)
        expected[place] = rise / 2e-6
    assert np.abs(slope - expected).max() < 1e-4


def test_stats_count_what_was_clipped_and_ignore_padding():
    new = np.log([[1.5, 0.5, 9.0], [1.5, 0.5, 1.0]])
    old = np.zeros_like(new)
    lengths = np.array([2, 3])
    _, stats = run_loss(new, old, new, np.array([1.0, -1.0]), lengths, "dapo")
    clipped, ratio, kl = stats.tolist()
    assert clipped == 2  # 1.5 where more is better, 0.5 where less is
    assert abs(ratio - 5.0) < 1e-5
    assert abs(kl - sum(r - np.log(r) - 1 for r in (1.5, 0.5, 1.5, 0.5, 1.0))) < 1e-5


def test_padding_with_nonsense_changes_nothing():
    new, old, reference, advantages, _ = draw_case(3)
    lengths = np.full(len(new), 1)
    far = new.copy()
    far[:, 1:] = 500.0
    assert run_loss(new, old, reference, advantages, lengths, "dapo")[0].item() == (
        run_loss(far, old, reference, advantages, lengths, "dapo")[0].item()
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_weights_of_a_batch_sum_to_one(lengths):
    for weighting in ("dapo", "grpo"):
        weights = token_weights(lengths, weighting)
        rows = [pair for ours, theirs in zip(weights, lengths, strict=True) for pair in zip(ours, theirs, strict=True)]
        assert abs(sum(weight * length for weight, length in rows) - 1) < 1e-9


def test_dapo_weighs_tokens_alike_and_grpo_rollouts():
    assert token_weights([[1, 3]], "dapo") == [[0.25, 0.25]]
    assert token_weights([[1, 3]], "grpo") == [[0.5, 1 / 6]]


def test_logprobs_and_entropy_at_a_temperature():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(0, 2, (2, 3, 5)), rng.integers(0, 5, (2, 3))
    logps, entropy = token_logprobs(mx.array(logits.astype(np.float32)), mx.array(tokens), 0.5)
    full = logits / 0.5 - np.log(np.exp(logits / 0.5).sum(-1, keepdims=True))
    assert np.allclose(np.array(logps), np.take_along_axis(full, tokens[..., None], -1)[..., 0], atol=1e-5)
    assert np.allclose(np.array(entropy), -(np.exp(full) * full).sum(-1), atol=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(-3, 3))
def test_k3_is_never_negative(gap):
    assert k3(mx.array(gap)).item() >= -1e-6
