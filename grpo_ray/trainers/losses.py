"""The GRPO loss, token by token. Arrays are named by their axes: G rollouts, T tokens, V vocabulary.

Clipped as in PPO with DAPO's higher upper bound (arXiv 2503.14476); `dapo` weighs every token of a batch alike, `grpo`
(arXiv 2402.03300) every rollout. The old log-probabilities are the sampler's own, so the first ratio also corrects for
what a sampler and a trainer compute differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grpo_ray.mlx_model import mx

Weighting = Literal["dapo", "grpo"]
STATS = ("clip_share", "ratio", "kl", "entropy")
"""What `grpo_loss` measures, in order: sums over tokens."""


@dataclass(frozen=True, slots=True)
class Clip:
    """The ratio is held in [1 − low, 1 + high] where going further would pay; `kl` weighs the reference penalty."""

    low: float = 0.2
    high: float = 0.28
    kl: float = 0.0


def token_logprobs(logits_G_T_V: mx.array, tokens_G_T: mx.array, temperature: float) -> tuple[mx.array, mx.array]:
    """Log-probability of each token in nats, and the entropy it was drawn at (without gradient); both (G, T), float32.

    Scored at the sampling temperature (more than 0), as the stored log-probabilities are.
    """
    scaled_G_T_V = logits_G_T_V.astype(mx.float32) / temperature
    total_G_T = mx.logsumexp(scaled_G_T_V, axis=-1)
    chosen_G_T = mx.take_along_axis(scaled_G_T_V, tokens_G_T[..., None], axis=-1)[..., 0]
    still_G_T_V = mx.stop_gradient(scaled_G_T_V)
    mean_G_T = (mx.softmax(still_G_T_V, axis=-1) * still_G_T_V).sum(axis=-1)
    return chosen_G_T - total_G_T, mx.stop_gradient(total_G_T) - mean_G_T


def k3(gap: mx.array) -> mx.array:
    """Schulman's estimate of KL(p ‖ q) from tokens drawn from p, where `gap` is log q − log p: never negative."""
    return mx.exp(gap) - gap - 1


def grpo_loss(
    new_G_T: mx.array,
    old_G_T: mx.array,
    advantages_G: mx.array,
    weights_G_T: mx.array,
    clip: Clip,
    reference_G_T: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """The weighted sum of the clipped token losses (0 weight: padding), and the sums over tokens named by STATS but entropy.

    Log-probabilities in nats; `weights_G_T` from `token_weights`. Only `new_G_T` carries gradient.
    """
    active_G_T = weights_G_T > 0
    gap_G_T = mx.where(active_G_T, new_G_T - old_G_T, 0.0)
    ratio_G_T = mx.exp(gap_G_T)
    held_G_T = mx.clip(ratio_G_T, 1 - clip.low, 1 + clip.high)
    gain_G_1 = advantages_G[:, None]
    loss_G_T = -mx.minimum(ratio_G_T * gain_G_1, held_G_T * gain_G_1)
    if reference_G_T is not None:
        loss_G_T = loss_G_T + clip.kl * k3(mx.where(active_G_T, reference_G_T - new_G_T, 0.0))
    clipped_G_T = mx.where(gain_G_1 > 0, ratio_G_T > 1 + clip.high, (gain_G_1 < 0) & (ratio_G_T < 1 - clip.low))
    stats = mx.stack(
        [
            (active_G_T & clipped_G_T).astype(mx.float32).sum(),
            mx.where(active_G_T, ratio_G_T, 0.0).sum(),
            k3(gap_G_T).sum(),
        ]
    )
    return (weights_G_T * loss_G_T).sum(), mx.stop_gradient(stats)


def token_weights(lengths: Sequence[Sequence[int]], weighting: Weighting) -> list[list[float]]:
    """What one token of each rollout weighs, given the completions' lengths of all groups of a batch.

    dapo: 1 / tokens of the batch. grpo: 1 / (rollouts of the batch × its own tokens). The weights of all tokens sum to 1.
    """
    tokens = sum(sum(group) for group in lengths)
    rollouts = sum(len(group) for group in lengths)
    if weighting == "dapo":
        return [[1 / tokens] * len(group) for group in lengths]
    return [[1 / (rollouts * length) for length in group] for group in lengths]
