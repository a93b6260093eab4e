"""exp and SwiGLU against float64, with their gradients; attention of ours against mlx-lm's."""

import numpy as np
import pytest
from mlx_lm import load as load_with_mlx_lm
from tiny_model import make_tiny_model

from grpo_ray import mlx_attention, mlx_math, mlx_model
from grpo_ray.errors import ConfigError
from grpo_ray.mlx_core import mx

from mlx import nn  # isort: skip
from mlx_lm.models import base  # isort: skip
from mlx_lm.models.cache import BatchKVCache  # isort: skip

pytestmark = pytest.mark.mlx


def test_exp_is_exact_to_the_last_bits_over_its_whole_range():
    x = np.concatenate([np.linspace(-86.9, 80, 20001), np.linspace(-1e-3, 1e-3, 101)]).astype(np.float32)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(np.array(mlx_math.exp(mx.array(x))) / expected - 1).max() < 2.5e-7


def test_exp_holds_what_is_too_low_and_passes_on_what_is_no_number():
    low = mlx_math.exp(mx.array([-88.0, -1e4, -3.4e38, -mx.inf]))
    assert (np.array(low) == 0).all()
    assert np.isnan(mlx_math.exp(mx.array([mx.nan])).item())
    assert mlx_math.exp(mx.array([0.0])).item() == 1.0


def test_exp_is_its_own_slope():
    x = mx.array([-3.0, 0.0, 2.5])
    assert np.allclose(mx.grad(lambda x: mlx_math.exp(x).sum())(x), np.exp([-3.0, 0.0, 2.5]), rtol=1e-6)


def test_swiglu_and_its_slopes_are_those_of_mlx():
    gate = mx.array([[-200.0, -90.0, -3.0, -0.0, 0.5, 4.0, 90.0, 200.0]])
    x = mx.array([[1.5, -2.0, 0.3, 1.0, -1.0, 2.0, 0.1, -0.7]])

    def plain(gate: mx.array, x: mx.array) -> mx.array:
        return nn.silu(gate) * x

    assert np.allclose(mlx_math.swiglu(gate, x), plain(gate, x), rtol=1e-6, atol=1e-30)
    for argument in (0, 1):
        ours, theirs = (
            mx.grad(lambda g, y, f=f: f(g, y).sum(), argnums=argument)(gate, x) for f in (mlx_math.swiglu, plain)
        )
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [(2, 2), (4, 1), (6, 3)])
@pytest.mark.parametrize("mask", [None, "causal", "padded", "added"])
def test_attention_is_that_of_mlx_lm(heads, mask):
    many, few = heads
    rows, length, whole = 3, 5, 9
    keys = (mx.random.key(one) for one in range(3))
    queries, ks, vs = (
        mx.random.normal((rows, count, steps, 8), key=next(keys))
        for count, steps in ((many, length), (few, whole), (few, whole))
    )
    hidden = mx.arange(whole)[None, None, None] >= mx.array([0, 1, 4])[:, None, None, None]
    given = {"padded": hidden, "added": mx.where(hidden, 0.0, -1e9)}.get(mask, mask)
    ours = mlx_attention.attend(queries, ks, vs, None, 0.3, given)
    theirs = base.scaled_dot_product_attention(queries, ks, vs, None, 0.3, given)
    assert np.allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("kind", [{}, {"num_key_value_heads": 2}, {"model_type": "llama", "attention_bias": False}])
def test_a_hastened_network_says_what_mlx_lms_own_says(tmp_path, kind):
    folder = make_tiny_model(tmp_path / "tiny", sharpness=1.0, **kind)
    ours, theirs = mlx_model.load(folder).network, load_with_mlx_lm(folder)[0]
    assert mlx_attention.attends(ours) and not mlx_attention.attends(theirs)
    tokens = mx.array([[5, 9, 20, 33, 7, 61], [8, 8, 41, 90, 3, 14]])
    assert np.allclose(ours(tokens), theirs(tokens), atol=1e-5)
    caches = [[BatchKVCache([0, 2]) for _ in net.layers] for net in (ours, theirs)]
    for start, end in ((0, 4), (4, 5), (5, 6)):
        said = [net(tokens[:, start:end], cache=cache) for net, cache in zip((ours, theirs), caches, strict=True)]
        assert np.allclose(said[0], said[1], atol=1e-5)


def test_hastening_again_changes_nothing(tmp_path):
    network = mlx_model.load(make_tiny_model(tmp_path / "tiny")).network
    kinds = [type(module) for module in network.modules()]
    mlx_attention.hasten(network)
    assert [type(module) for module in network.modules()] == kinds


@pytest.mark.parametrize("wish", [{"window_size": 16}, {"return_array": True}])
def test_a_mask_of_the_models_own_is_refused_with_the_way_out(wish):
    with pytest.raises(ConfigError, match="share_prompts: false"):
        mlx_attention.PromptCache().make_mask(4, **wish)
