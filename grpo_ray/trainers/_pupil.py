"""A lesson as arrays, and reading it: the log-probability of every token a group sampled.

The prompt's keys and values are computed once, with gradient, and shared by the group's completions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grpo_ray.errors import ConfigError
from grpo_ray.mlx_attention import attends, prompt_cache
from grpo_ray.mlx_core import BREAKDOWNS, alike, mx
from grpo_ray.trainers._head import Head, head_logprobs
from grpo_ray.trainers.losses import Objective, chosen_rows, overlong_penalty, token_logprobs
from grpo_ray.types import Group, Lesson, Rollout

from mlx_lm.models.cache import ConcatenateKVCache, KVCache, make_prompt_cache  # isort: skip


@dataclass(frozen=True, slots=True)
class Pupil:
    """One lesson as arrays: (1, P) prompt, and per rollout its padded tokens, log-probabilities and advantage."""

    prompt_1_P: mx.array
    tokens_G_T: mx.array
    sampler_G_T: mx.array
    """The sampler's stored log-probabilities, in nats."""
    old_G_T: mx.array
    """Those the ratio is taken to: the sampler's, or the trainer's own before the update."""
    advantages_G: mx.array
    lengths: tuple[int, ...]
    """Tokens of each rollout that take part; 0 for one that is left out."""
    temperature: float
    limit: int
    """Tokens a completion may have."""
    reference_G_T: mx.array | None = None
    correction_G_T: mx.array | None = None

    @property
    def active_G_T(self) -> mx.array:
        return mx.arange(self.tokens_G_T.shape[1])[None] < mx.array(self.lengths)[:, None]


def pupil_of(
    lesson: Lesson, objective: Objective = Objective(), mask_truncated: bool = False, overlong: int = 0
) -> Pupil | None:
    """A lesson's token ids as they were sampled, never tokenized again; None where there is nothing to learn from.

    `overlong` adds DAPO's length penalty over that many last tokens to the advantages, centred on the group.
    """
    group: Group = lesson.group.group
    advantages = _with_penalty(lesson, overlong)
    open_ended = [row for row, one in enumerate(group.rollouts) if _takes_part(one, mask_truncated)]
    if not open_ended:
        return None
    if objective.loss in ("sft", "dpo"):
        rows = [open_ended[i] for i in chosen_rows([advantages[row] for row in open_ended], objective)]
    else:
        rows = list(range(len(group.rollouts)))
    if not rows:
        return None
    alike = objective.loss == "sft" and objective.sft_on == "best"
    gains = [1.0 if alike else advantages[row] for row in rows]
    lengths = [len(group.rollouts[row].token_ids) if row in open_ended else 0 for row in rows]
    return _padded(group, rows, gains, lengths)


def _padded(group: Group, rows: list[int], gains: list[float], lengths: list[int]) -> Pupil:
    rollouts = [group.rollouts[row] for row in rows]
    width = max(len(rollout.token_ids) for rollout in rollouts)
    sampler = mx.array([[*r.logprobs, *[0.0] * (width - len(r.logprobs))] for r in rollouts])
    return Pupil(
        prompt_1_P=mx.array([group.prompt_token_ids]),
        tokens_G_T=mx.array([[*r.token_ids, *[0] * (width - len(r.token_ids))] for r in rollouts]),
        sampler_G_T=sampler,
        old_G_T=sampler,
        advantages_G=mx.array(gains),
        lengths=tuple(lengths),
        temperature=group.sampling.temperature,
        limit=group.sampling.max_tokens,
    )


def _takes_part(rollout: Rollout, mask_truncated: bool) -> bool:
    return bool(rollout.token_ids) and not (mask_truncated and rollout.finish_reason == "length")


def _with_penalty(lesson: Lesson, overlong: int) -> list[float]:
    if not overlong:
        return list(lesson.advantages)
    group = lesson.group.group
    parts = [overlong_penalty(len(r.token_ids), group.sampling.max_tokens, overlong) for r in group.rollouts]
    mean = sum(parts) / len(parts)
    return [advantage + part - mean for advantage, part in zip(lesson.advantages, parts, strict=True)]


Read = Callable[[Any, Pupil], mx.array]
"""(network or its body, pupil) → what that makes of every completion position: logits or hidden states, (G, T, …)."""


def read_shared(network: Any, pupil: Pupil) -> mx.array:
    """The completions after a prompt that is read once; only for models that `can_share`."""
    prefix, last = pupil.prompt_1_P[:, :-1], pupil.prompt_1_P[:, -1:]
    caches: list[Any] = [ConcatenateKVCache() for _ in network.layers]
    if prefix.shape[1]:
        network(prefix, cache=caches)
        caches = [prompt_cache(cache) for cache in caches]
    rows = pupil.tokens_G_T.shape[0]
    inputs = mx.concatenate([mx.broadcast_to(last, (rows, 1)), pupil.tokens_G_T[:, :-1]], axis=1)
    return network(inputs, cache=caches)


def read_plain(network: Any, pupil: Pupil) -> mx.array:
    """The same the plain way: every rollout as a whole sequence."""
    rows, length = pupil.tokens_G_T.shape
    prompt = mx.broadcast_to(pupil.prompt_1_P, (rows, pupil.prompt_1_P.shape[1]))
    whole = mx.concatenate([prompt, pupil.tokens_G_T[:, :-1]], axis=1)
    return network(whole)[:, -length:]


def can_share(network: Any, head: Head | None = None) -> bool:
    """Whether a group is read after a shared prompt as it is in whole sequences, which is tried on a few tokens."""
    if not attends(network) or any(type(cache) is not KVCache for cache in make_prompt_cache(network)):
        return False
    prompt, tokens, nothing = mx.array([[1, 2, 3, 4]]), mx.array([[5, 6, 7], [7, 6, 5]]), mx.zeros((2, 3))
    trial = Pupil(prompt, tokens, nothing, nothing, mx.zeros(2), (3, 3), 1.0, 3)
    try:
        shared, plain = (read(head.body if head else network, trial) for read in (read_shared, read_plain))
        return shared.shape == plain.shape and alike(shared, plain)
    except (ConfigError, *BREAKDOWNS):
        return False


@dataclass(frozen=True, slots=True)
class Reader:
    """How log-probabilities are computed: with shared prompts or not, and through a chunked head or whole logits."""

    network: Any
    read: Read
    head: Head | None = None

    def __call__(self, pupil: Pupil, learning: bool = True) -> tuple[mx.array, mx.array]:
        """Log-probabilities in nats and entropies, both (G, T) float32; gradient only where `learning`."""
        if self.head is None:
            return token_logprobs(self.read(self.network, pupil), pupil.tokens_G_T, pupil.temperature)
        hidden = self.read(self.head.body, pupil)
        return head_logprobs(self.head, hidden, pupil.tokens_G_T, pupil.lengths, pupil.temperature, learning)
