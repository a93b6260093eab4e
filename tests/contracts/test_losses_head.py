"""Log-probabilities from hidden states agree with whole logits, gradient included, and hold far less memory."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import make_tiny_model

from grpo_ray import mlx_model
from grpo_ray.mlx_core import mx
from grpo_ray.trainers import _head
from grpo_ray.trainers._head import Head, find_head, head_logprobs
from grpo_ray.trainers.losses import token_logprobs

from mlx import nn  # isort: skip

pytestmark = pytest.mark.mlx


def case(words: int, rows: int = 3, width: int = 5, size: int = 8) -> tuple[Head, mx.array, mx.array]:
    mx.random.seed(1)
    layer = nn.Linear(size, words)
    hidden, tokens = mx.random.normal((rows, width, size)), mx.random.randint(0, words, (rows, width))
    return Head(SimpleNamespace(layers=[]), layer, words), hidden, tokens


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("lengths", [(5, 5, 5), (1, 0, 4)])
def test_a_head_in_chunks_is_whole_logits(temperature, lengths):
    head, hidden, tokens = case(_head.BUDGET // _head.ROWS // 8, rows=3)
    active = mx.arange(5)[None] < mx.array(lengths)[:, None]
    pull = mx.where(active, mx.random.normal((3, 5)), 0.0)

    def value(hidden: mx.array, whole: bool) -> tuple[mx.array, mx.array]:
        if whole:
            logps, entropy = token_logprobs(head.logits(hidden), tokens, temperature)
        else:
            logps, entropy = head_logprobs(head, hidden, tokens, lengths, temperature, learning=True)
        return (pull * logps).sum(), mx.stack([mx.where(active, logps, 0.0), mx.where(active, entropy, 0.0)])

    (_, ours), slope = mx.value_and_grad(lambda x: value(x, whole=False))(hidden)
    (_, theirs), expected = mx.value_and_grad(lambda x: value(x, whole=True))(hidden)
    assert np.allclose(np.array(ours), np.array(theirs), atol=1e-5)
    assert mx.abs(slope - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


def test_several_chunks_are_one():
    head, hidden, tokens = case(40, rows=30, width=20)
    lengths = tuple(1 + row % 20 for row in range(30))
    assert sum(lengths) > 2 * _head.ROWS
    small = Head(head.body, head.logits, _head.BUDGET)
    one, many = (head_logprobs(h, hidden, tokens, lengths, 1.0, learning=False) for h in (head, small))
    assert all(mx.allclose(a, b, atol=1e-6).item() for a, b in zip(one, many, strict=True))


def test_without_gradient_nothing_is_learnt():
    head, hidden, tokens = case(40)
    slope = mx.grad(lambda x: head_logprobs(head, x, tokens, (5, 5, 5), 1.0, learning=False)[0].sum())(hidden)
    assert mx.abs(slope).max().item() == 0


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"model_type": "llama"}])
def test_the_usual_heads_are_found(tmp_path, changes):
    network = mlx_model.load(make_tiny_model(tmp_path / "m", **changes)).network
    head = find_head(network)
    assert head is not None and head.vocabulary == 100
    ids = mx.array([[5, 9, 4]])
    assert mx.allclose(head.logits(head.body(ids)), network(ids), atol=1e-5).item()


def test_a_head_that_does_more_is_left_whole(tmp_path):
    network = mlx_model.load(make_tiny_model(tmp_path / "m")).network

    class Scaled(type(network)):
        def __call__(self, *args, **kwargs):
            return 0.5 * super().__call__(*args, **kwargs)

    network.__class__ = Scaled
    assert find_head(network) is None
    assert find_head(SimpleNamespace(model=SimpleNamespace(layers=[]))) is None


def test_a_large_vocabulary_is_never_held_whole():
    head, hidden, tokens = case(30_000, rows=8, width=128, size=16)
    lengths = (128,) * 8
    mx.eval(head.logits.parameters(), hidden, tokens)

    def peak(value) -> int:
        mx.clear_cache()
        start = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.grad(value)(hidden))
        return mx.get_peak_memory() - start

    plain = peak(lambda x: token_logprobs(head.logits(x), tokens, 1.0)[0].sum())
    ours = peak(lambda x: head_logprobs(head, x, tokens, lengths, 1.0, learning=True)[0].sum())
    assert plain > 2 * 4 * 1024 * 30_000
    assert ours < 0.4 * plain
