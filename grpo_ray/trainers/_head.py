"""Log-probabilities straight from hidden states, some tokens at a time: no (G, T, V) array is ever held.

The slope of a token's log-probability along its hidden state is computed with it, while its chunk's logits are there
(as in Cut Cross-Entropy, arXiv 2411.09009, and Liger's kernels); one exp a logit serves value, entropy and slope.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_ray.mlx_core import mx, numbers
from grpo_ray.mlx_math import ON_CPU, exp

BUDGET = 1 << 20
"""Logits a chunk holds, 4 MiB of float32 …"""
ROWS = 32 if ON_CPU else 64
"""… but at least this many tokens', so that a large head is not read too often. (On a CPU exp takes more arrays.)"""


@dataclass(frozen=True, slots=True)
class Head:
    """A network in two: tokens → hidden states (…, D), and hidden states → logits (…, V)."""

    body: Any
    logits: Callable[[mx.array], mx.array]
    vocabulary: int


def find_head(network: Any) -> Head | None:
    """The network's two halves, where mlx-lm's usual names hold and do compute what the network does."""
    body: Any = getattr(network, "model", None)
    words = getattr(body, "embed_tokens", None)
    if words is None or not hasattr(body, "layers"):
        return None
    logits: Any = getattr(network, "lm_head", None) or getattr(words, "as_linear", None)
    if logits is None:
        return None
    probe = mx.array([[1, 2, 3, 2]])
    try:
        hidden = body(probe)
    except TypeError:  # bodies such as phi's and stablelm's can't do without a cache
        return None
    whole, halves = network(probe), logits(hidden)
    if whole.shape != halves.shape or not numbers(mx.allclose(whole, halves, rtol=1e-4, atol=1e-4)):
        return None
    return Head(body, logits, whole.shape[-1])


def head_logprobs(
    head: Head,
    hidden_G_T_D: mx.array,
    tokens_G_T: mx.array,
    lengths: Sequence[int],
    temperature: float,
    learning: bool,
) -> tuple[mx.array, mx.array]:
    """Log-probability in nats of each token and the entropy it was drawn at, (G, T) float32; 0 beyond `lengths`.

    Entropies are without gradient, and so are the log-probabilities unless `learning`.
    """
    rows, width = tokens_G_T.shape
    active = [row * width + t for row, length in enumerate(lengths) for t in range(length)]
    places_N = mx.array(active, mx.int32)
    hidden_N_D = hidden_G_T_D.reshape(rows * width, -1)[places_N]
    tokens_N = tokens_G_T.reshape(-1)[places_N]
    size = max(ROWS, BUDGET // head.vocabulary)
    parts: list[tuple[mx.array, mx.array]] = []
    for start in range(0, len(active), size):
        here = slice(start, start + size)
        still_N_D = mx.stop_gradient(hidden_N_D[here])
        if parts:  # one chunk after the other: all at once they would hold the whole logits after all
            still_N_D = mx.depends(still_N_D, [mx.stop_gradient(part) for part in parts[-1]])
        parts.append(_chunk(head, hidden_N_D[here], still_N_D, tokens_N[here], temperature, learning))
    back = [rows * width] * (rows * width)
    for order, place in enumerate(active):
        back[place] = order
    places_back = mx.minimum(mx.array(back, mx.int32), len(active))
    logps, entropies = (
        mx.concatenate([*(part[i] for part in parts), mx.zeros(1)])[places_back].reshape(rows, width) for i in (0, 1)
    )
    return logps, entropies


def _chunk(
    head: Head, hidden_N_D: mx.array, still_N_D: mx.array, tokens_N: mx.array, temperature: float, learning: bool
) -> tuple[mx.array, mx.array]:
    """`still_N_D` are the same hidden states without gradient."""
    logits_N_V = head.logits(still_N_D)
    scaled_N_V = logits_N_V.astype(mx.float32)
    scaled_N_V = scaled_N_V if temperature == 1 else scaled_N_V / temperature
    scaled_N_V = scaled_N_V - scaled_N_V.max(axis=-1, keepdims=True)
    powers_N_V = exp(scaled_N_V)
    total_N_1 = powers_N_V.sum(axis=-1, keepdims=True)
    places_N_1 = tokens_N[:, None]
    logps_N_1 = mx.take_along_axis(scaled_N_V, places_N_1, axis=-1) - mx.log(total_N_1)
    entropy_N_1 = mx.log(total_N_1) - (powers_N_V * scaled_N_V).sum(axis=-1, keepdims=True) / total_N_1
    logps_N, entropy_N = mx.stop_gradient(logps_N_1[:, 0]), mx.stop_gradient(entropy_N_1[:, 0])
    if not learning:
        return logps_N, entropy_N
    # d log p(token) / d logits = (one at the token − powers / total) / temperature; scaled afterwards, on D and not V
    at_token_N_1 = mx.take_along_axis(powers_N_V, places_N_1, axis=-1) - total_N_1
    down_N_V = mx.put_along_axis(powers_N_V, places_N_1, at_token_N_1, axis=-1).astype(logits_N_V.dtype)
    slope_N_D = mx.vjp(head.logits, [still_N_D], [down_N_V])[1][0].astype(mx.float32) / (-temperature * total_N_1)
    # A term that is 0 and has the slope: values stay those computed above, to the last bit.
    linear_N = (hidden_N_D.astype(mx.float32) * mx.stop_gradient(slope_N_D)).sum(axis=-1)
    return logps_N + (linear_N - mx.stop_gradient(linear_N)), entropy_N
