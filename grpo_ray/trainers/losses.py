"""What an update makes small, token by token. Arrays are named by their axes: G rollouts, T tokens, V vocabulary.

The formulas are those of TRL 1.16's GRPOTrainer: grpo (arXiv 2402.03300), bnpo, dr_grpo (2503.20783), dapo (2503.14476,
the default, with its higher upper bound), gspo (2507.18071), cispo (2506.13585); beside them `sft` on the rollouts that
were better and `dpo` (2305.18290) on a group's best against its worst. A loss is Σ weight × token loss, with the weights
of a whole batch known beforehand, so that summing the gradients of its groups one by one is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from grpo_ray.errors import ConfigError
from grpo_ray.mlx_core import mx
from grpo_ray.mlx_math import exp

Loss = Literal["dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo", "sft", "dpo"]
Mismatch = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
Chosen = Literal["positive", "best"]
FEW_WORDS = 1024
"""Below this many words the whole logits are small, and plain."""
STATS = ("clip_low", "clip_high", "ratio", "kl")
"""What `policy_loss` and `dpo_loss` measure, in order: sums over tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Which loss, and what bounds it: by default as TRL 1.16 does it. Raises ConfigError naming every wrong setting."""

    loss: Loss = "dapo"
    clip_low: float = 0.2
    """The ratio is held in [1 − clip_low, 1 + clip_high] where going further would pay (gspo's paper: 3e-4, 4e-4)."""
    clip_high: float = 0.2
    delta: float | None = None
    """The most the unclipped ratio may be (two-sided clipping, arXiv 2505.07291); None: no bound."""
    cispo_cap: float = 5.0
    kl: float = 0.0
    """Weight of the k3 penalty towards the model without its adapter."""
    kl_bias_correction: bool = True
    """Multiply the penalty by the ratio, which makes its gradient that of the KL (TRL's default)."""
    mismatch: Mismatch = "sequence_mask"
    """How tokens are weighed by trainer / sampler: not at all, held at `mismatch_cap`, or left out above it.

    A sequence's is the product of its tokens'. sft and dpo weigh nothing.
    """
    mismatch_cap: float = 3.0
    dpo_beta: float = 0.1
    sft_on: Chosen = "positive"
    """positive: every rollout with an advantage above 0, weighed by it. best: only those with the highest."""

    def __post_init__(self) -> None:
        choices: list[tuple[str, Any]] = [("loss", Loss), ("mismatch", Mismatch), ("sft_on", Chosen)]
        problems = [_not_among(key, getattr(self, key), get_args(kind)) for key, kind in choices]
        problems += [_below(key, getattr(self, key), 0.0) for key in ("clip_low", "clip_high", "kl")]
        problems += [_below(key, getattr(self, key), 1.0) for key in ("mismatch_cap", "cispo_cap")]
        if self.delta is not None and self.delta <= 1 + self.clip_high:
            problems.append(f"delta is {self.delta}: it must be above 1 + clip_high = {1 + self.clip_high}, or null")
        if self.dpo_beta <= 0:
            problems.append(f"dpo_beta is {self.dpo_beta}: it must be above 0")
        if any(problems):
            raise ConfigError("\n".join(problem for problem in problems if problem))

    @property
    def corrects(self) -> bool:
        """Whether the trainer's own log-probabilities before the update are needed."""
        return self.mismatch != "none" and self.loss not in ("sft", "dpo")

    @property
    def needs_reference(self) -> bool:
        return self.kl > 0 or self.loss == "dpo"


def _not_among(key: str, value: object, allowed: Sequence[str]) -> str:
    return "" if value in allowed else f"{key} is {value!r}: it must be one of {', '.join(allowed)}"


def _below(key: str, value: float, least: float) -> str:
    return f"{key} is {value}: it must be at least {least:g}" if not value >= least else ""


def token_logprobs(logits_G_T_V: mx.array, tokens_G_T: mx.array, temperature: float) -> tuple[mx.array, mx.array]:
    """Log-probability of each token in nats, and the entropy it was drawn at (without gradient); both (G, T), float32.

    Scored at the sampling temperature (more than 0), as the stored log-probabilities are.
    """
    scaled_G_T_V = logits_G_T_V.astype(mx.float32) / temperature
    if scaled_G_T_V.shape[-1] >= FEW_WORDS:
        return _in_little_memory(scaled_G_T_V, tokens_G_T)
    scaled_G_T_V = scaled_G_T_V - mx.stop_gradient(scaled_G_T_V.max(axis=-1, keepdims=True))
    powers_G_T_V = exp(scaled_G_T_V)
    total_G_T = powers_G_T_V.sum(axis=-1)
    chosen_G_T = mx.take_along_axis(scaled_G_T_V, tokens_G_T[..., None], axis=-1)[..., 0]
    entropy_G_T = mx.log(total_G_T) - (powers_G_T_V * scaled_G_T_V).sum(axis=-1) / total_G_T
    return chosen_G_T - mx.log(total_G_T), mx.stop_gradient(entropy_G_T)


def _in_little_memory(scaled_G_T_V: mx.array, tokens_G_T: mx.array) -> tuple[mx.array, mx.array]:
    """By MLX's own operations, which are slower on a CPU, and keep fewer arrays of that size for the way back."""
    total_G_T = mx.logsumexp(scaled_G_T_V, axis=-1)
    chosen_G_T = mx.take_along_axis(scaled_G_T_V, tokens_G_T[..., None], axis=-1)[..., 0]
    still_G_T_V = mx.stop_gradient(scaled_G_T_V)
    mean_G_T = (mx.softmax(still_G_T_V, axis=-1) * still_G_T_V).sum(axis=-1)
    return chosen_G_T - total_G_T, mx.stop_gradient(total_G_T) - mean_G_T


def k3(gap: mx.array) -> mx.array:
    """Schulman's estimate of KL(p ‖ q) from tokens drawn from p, where `gap` is log q − log p: never negative."""
    return mx.exp(gap) - gap - 1


def policy_loss(
    new_G_T: mx.array,
    old_G_T: mx.array,
    advantages_G: mx.array,
    weights_G_T: mx.array,
    objective: Objective,
    reference_G_T: mx.array | None = None,
    correction_G_T: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """The weighted sum of the token losses (0 weight: padding), and the sums over tokens named by STATS.

    Log-probabilities in nats; `weights_G_T` from `token_weights`, `correction_G_T` from `mismatch_weights`. Only
    `new_G_T` carries gradient. For every loss but dpo.
    """
    active_G_T = weights_G_T > 0
    gap_G_T = mx.where(active_G_T, new_G_T - old_G_T, 0.0)
    ratio_G_T = mx.exp(sequence_mean(gap_G_T, active_G_T) if objective.loss == "gspo" else gap_G_T)
    gain_G_1 = advantages_G[:, None]
    if objective.loss in ("cispo", "sft"):
        loss_G_T = -_pull(ratio_G_T, gain_G_1, objective) * mx.where(active_G_T, new_G_T, 0.0)
    else:
        loss_G_T = _clipped_loss(ratio_G_T, gain_G_1, objective)
    if correction_G_T is not None:
        loss_G_T = loss_G_T * correction_G_T
    if reference_G_T is not None:
        penalty_G_T = k3(mx.where(active_G_T, reference_G_T - new_G_T, 0.0))
        loss_G_T = loss_G_T + objective.kl * (penalty_G_T * ratio_G_T if objective.kl_bias_correction else penalty_G_T)
    return (weights_G_T * loss_G_T).sum(), _stats(gap_G_T, ratio_G_T, gain_G_1, active_G_T, objective)


def _clipped_loss(ratio_G_T: mx.array, gain_G_1: mx.array, objective: Objective) -> mx.array:
    held_G_T = mx.clip(ratio_G_T, 1 - objective.clip_low, 1 + objective.clip_high)
    free_G_T = ratio_G_T if objective.delta is None else mx.minimum(ratio_G_T, objective.delta)
    return -mx.minimum(free_G_T * gain_G_1, held_G_T * gain_G_1)


def _pull(ratio_G_T: mx.array, gain_G_1: mx.array, objective: Objective) -> mx.array:
    """How hard each log-probability is raised, without gradient."""
    if objective.loss == "sft":
        return mx.broadcast_to(gain_G_1, ratio_G_T.shape)
    return mx.stop_gradient(mx.minimum(ratio_G_T, objective.cispo_cap)) * gain_G_1


def dpo_loss(
    new_G_T: mx.array, old_G_T: mx.array, reference_G_T: mx.array, weights_G_T: mx.array, objective: Objective
) -> tuple[mx.array, mx.array]:
    """−log σ(β × (what the first row gained on the reference − what the second did)), times their weight; and STATS.

    Two rows: the better rollout, then the worse one.
    """
    active_G_T = weights_G_T > 0
    gained_G = mx.where(active_G_T, new_G_T - reference_G_T, 0.0).sum(axis=1)
    margin = objective.dpo_beta * (gained_G[0] - gained_G[1])
    gap_G_T = mx.where(active_G_T, new_G_T - old_G_T, 0.0)
    stats = _stats(gap_G_T, mx.exp(gap_G_T), mx.zeros((2, 1)), active_G_T, objective)
    return weights_G_T.max() * mx.logaddexp(mx.array(0.0), -margin), stats


def _stats(
    gap_G_T: mx.array, ratio_G_T: mx.array, gain_G_1: mx.array, active_G_T: mx.array, objective: Objective
) -> mx.array:
    nothing_G_T = mx.zeros_like(active_G_T)
    low_G_T = (gain_G_1 < 0) & (ratio_G_T < 1 - objective.clip_low)
    high_G_T = (gain_G_1 > 0) & (ratio_G_T > 1 + objective.clip_high)
    if objective.loss in ("sft", "dpo", "cispo"):
        low_G_T = nothing_G_T
        high_G_T = ratio_G_T > objective.cispo_cap if objective.loss == "cispo" else nothing_G_T
    shares = [(active_G_T & part).astype(mx.float32).sum() for part in (low_G_T, high_G_T)]
    stats = mx.stack([*shares, mx.where(active_G_T, ratio_G_T, 0.0).sum(), k3(gap_G_T).sum()])
    return mx.stop_gradient(stats)


def sequence_mean(values_G_T: mx.array, active_G_T: mx.array) -> mx.array:
    """Each row's mean over its active tokens, at every token of it: (G, T)."""
    counts_G_1 = mx.maximum(active_G_T.sum(axis=1, keepdims=True), 1)
    sums_G_1 = mx.where(active_G_T, values_G_T, 0.0).sum(axis=1, keepdims=True)
    return mx.broadcast_to(sums_G_1 / counts_G_1, values_G_T.shape)


def mismatch_weights(old_G_T: mx.array, sampler_G_T: mx.array, active_G_T: mx.array, objective: Objective) -> mx.array:
    """ρ = trainer's / sampler's probability, of a token or (the product) of its whole rollout: (G, T), no gradient.

    Truncated importance sampling holds ρ at the cap, masked importance sampling leaves out what is above it.
    """
    gap_G_T = mx.where(active_G_T, old_G_T - sampler_G_T, 0.0)
    if objective.mismatch.startswith("sequence"):
        gap_G_T = mx.broadcast_to(gap_G_T.sum(axis=1, keepdims=True), gap_G_T.shape)
    rho_G_T = mx.exp(gap_G_T)
    if objective.mismatch.endswith("truncate"):
        return mx.stop_gradient(mx.minimum(rho_G_T, objective.mismatch_cap))
    return mx.stop_gradient(mx.where(rho_G_T <= objective.mismatch_cap, rho_G_T, 0.0))


def token_weights(lengths: Sequence[Sequence[int]], loss: Loss, limit: int = 1) -> list[list[float]]:
    """What one token of each rollout weighs, given the completions' lengths (0: left out) of all groups of a batch.

    dapo, cispo, sft: 1 / tokens of the batch. grpo, gspo: 1 / (rollouts of the batch × its own tokens). bnpo: 1 / (tokens
    of its group × groups). dr_grpo: 1 / (rollouts of the batch × `limit`, the longest a completion may be). dpo: 1 /
    groups, for the pair. Those of dapo, cispo, sft, grpo, gspo and bnpo sum to 1 over all tokens where none is left out.
    """
    groups, rollouts = len(lengths), sum(len(group) for group in lengths)
    tokens = sum(sum(group) for group in lengths)

    def weight(length: int, group: Sequence[int]) -> float:
        if not length:
            return 0.0
        if loss in ("grpo", "gspo"):
            return 1 / (rollouts * length)
        shared = {"bnpo": groups * sum(group), "dr_grpo": rollouts * limit, "dpo": groups}
        return 1 / shared.get(loss, tokens)

    return [[weight(length, group) for length in group] for group in lengths]


def overlong_penalty(length: int, limit: int, cache: int) -> float:
    """DAPO's soft punishment for length: 0 up to `limit` − `cache` tokens, then linear, −1 from `limit` on."""
    if cache <= 0:
        return 0.0
    return -min(1.0, max(0.0, (length - (limit - cache)) / cache))


def chosen_rows(advantages: Sequence[float], objective: Objective) -> list[int]:
    """The rollouts a loss learns from: all of them; sft: the better ones; dpo: the best and the worst, in that order.

    Empty where nothing was better than anything else. The first of equals is taken.
    """
    rows = range(len(advantages))
    best, worst = max(rows, key=lambda row: advantages[row]), min(rows, key=lambda row: advantages[row])
    if objective.loss == "dpo":
        return [best, worst] if advantages[best] > advantages[worst] else []
    if objective.loss != "sft":
        return list(rows)
    least = advantages[best] if objective.sft_on == "best" else 0.0
    return [row for row in rows if advantages[row] > 0 and advantages[row] >= least]
