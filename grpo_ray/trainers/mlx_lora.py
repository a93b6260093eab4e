"""GRPO on LoRA weights with MLX: one update from a step's lessons, the same bytes for the same arguments.

A group is trained, not its sequences: the prompt's keys and values are computed once, with gradient, and shared by the
group's completions. Everything an update starts from comes in with it (weights, Adam's moments and step count), so
a restarted trainer, or a repeated update, does the same.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo_ray import mlx_model
from grpo_ray.canonical import rng
from grpo_ray.mlx_model import Lora, mx, numbers
from grpo_ray.protocols import Trainer
from grpo_ray.trainers.losses import STATS, Clip, Weighting, grpo_loss, token_logprobs, token_weights
from grpo_ray.types import Adapter, AdapterBytes, Group, Lesson, Update

from mlx import nn  # isort: skip  (mlx_model puts the BLAS in place first)
import mlx.optimizers as optim  # isort: skip
from mlx.utils import tree_flatten, tree_map, tree_unflatten  # isort: skip
from mlx_lm.models.cache import ConcatenateKVCache, KVCache, make_prompt_cache  # isort: skip


def make_trainer(
    *,
    model: str,
    rank: int = 16,
    scale: float = 2.0,
    keys: Sequence[str] | None = None,
    num_layers: int = -1,
    learning_rate: float = 4e-4,
    epochs: int = 2,
    groups_per_batch: int = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    kl: float = 0.0,
    max_grad_norm: float = 1.0,
    loss: Weighting = "dapo",
    share_prompts: bool = True,
) -> Trainer:
    """Load `model` on this thread; what it learns is LoRA of `rank`, multiplied by `scale`.

    `kl` weighs the k3 penalty towards the base model. `share_prompts: false` trains whole sequences, slower.
    """
    lora = Lora(rank=rank, scale=scale, keys=tuple(keys) if keys is not None else None, num_layers=num_layers)
    plan = Plan(learning_rate, epochs, groups_per_batch, max_grad_norm, loss, Clip(clip_low, clip_high, kl))
    return MlxLoraTrainer(mlx_model.load(model), lora, plan, share_prompts)


@dataclass(frozen=True, slots=True)
class Plan:
    """How an update goes through its lessons."""

    learning_rate: float
    epochs: int
    groups_per_batch: int
    max_grad_norm: float
    weighting: Weighting
    clip: Clip


@dataclass(frozen=True, slots=True)
class Pupil:
    """One lesson as arrays: (1, P) prompt, and per rollout its padded tokens, old log-probabilities and advantage."""

    prompt_1_P: mx.array
    tokens_G_T: mx.array
    old_G_T: mx.array
    advantages_G: mx.array
    lengths: tuple[int, ...]
    temperature: float
    reference_G_T: mx.array | None = None

    @property
    def active_G_T(self) -> mx.array:
        return mx.arange(self.tokens_G_T.shape[1])[None] < mx.array(self.lengths)[:, None]


class MlxLoraTrainer:
    """The model and its plan; every update begins from the bytes it is given."""

    def __init__(self, model: mlx_model.Model, lora: Lora, plan: Plan, share_prompts: bool) -> None:
        self.model = model
        self.lora = lora
        self.plan = plan
        plain = all(type(cache) is KVCache for cache in make_prompt_cache(model.network))
        self.score = score_shared if share_prompts and plain else score_plain
        model.network.train()

    def update(
        self, adapter: Adapter | None, content: AdapterBytes | None, lessons: Sequence[Lesson], seed: int
    ) -> Update:
        began = time.monotonic()
        mx.random.seed(seed)
        pupils = self._pupils(lessons)
        optimizer = self._begin(adapter, content)
        if not pupils:
            return Update(content or self._content(optimizer), (), "no lesson was sampled at a temperature above 0")
        tally = Tally()
        for batch in self._batches(pupils, seed):
            fault = self._learn(batch, optimizer, tally)
            if fault:
                return Update(content or self._content(self._begin(adapter, None)), (), fault)
        return Update(self._content(optimizer), tally.metrics(began))

    def close(self) -> None:
        mlx_model.release()

    def _pupils(self, lessons: Sequence[Lesson]) -> list[Pupil]:
        """Lessons by group id, as arrays; those drawn greedily teach nothing and are left out."""
        ordered = sorted(lessons, key=lambda lesson: lesson.group.group.id)
        pupils = [pupil_of(lesson) for lesson in ordered if lesson.group.group.sampling.temperature > 0]
        if not self.plan.clip.kl:
            return pupils
        mlx_model.unwrap(self.model)
        return [self._with_reference(pupil) for pupil in pupils]

    def _with_reference(self, pupil: Pupil) -> Pupil:
        """The base model's log-probabilities; only while nothing is wrapped."""
        logits = self.score(self.model.network, pupil)
        reference, _ = token_logprobs(logits, pupil.tokens_G_T, pupil.temperature)
        mx.eval(reference)
        return replace(pupil, reference_G_T=reference)

    def _begin(self, adapter: Adapter | None, content: AdapterBytes | None) -> optim.Adam:
        """Put weights and optimizer state in place: those given, or fresh ones from MLX's random state."""
        network = self.model.network
        if content is None:
            mlx_model.wrap(self.model, self.lora)
        else:
            mlx_model.swap(self.model, content.weights)
        network.freeze()
        network.apply_to_modules(lambda _, module: _unfreeze(module))
        rate = self.plan.learning_rate * (adapter.rate_scale if adapter else 1.0)
        optimizer = optim.Adam(learning_rate=rate, bias_correction=True)
        optimizer.init(network.trainable_parameters())
        if content is not None and content.optimizer:
            moments, config = mlx_model.unpack(content.optimizer)
            optimizer.state = tree_unflatten(list(moments.items()))
            optimizer.state["step"] = mx.array(config["step"], mx.uint64)
            optimizer.learning_rate = rate
        return optimizer

    def _content(self, optimizer: optim.Adam) -> AdapterBytes:
        state = dict(tree_flatten(optimizer.state))
        moments = {name: array for name, array in state.items() if name.endswith((".m", ".v"))}
        config = {"optimizer": "adam", "step": numbers(state["step"])}
        return AdapterBytes(mlx_model.adapter_bytes(self.model), mlx_model.pack(moments, config))

    def _batches(self, pupils: list[Pupil], seed: int) -> Iterator[list[Pupil]]:
        for epoch in range(self.plan.epochs):
            order = list(pupils)
            rng(seed, "lessons", epoch).shuffle(order)
            for start in range(0, len(order), self.plan.groups_per_batch):
                yield order[start : start + self.plan.groups_per_batch]

    def _learn(self, batch: list[Pupil], optimizer: optim.Adam, tally: "Tally") -> str:
        """One optimizer step from the summed gradient of the batch's groups; returns why not, if it was not taken."""
        network = self.model.network
        weights = token_weights([pupil.lengths for pupil in batch], self.plan.weighting)
        gradient: Any = None
        loss = 0.0
        for pupil, row_weights in zip(batch, weights, strict=True):
            (part, stats), slope = gradient_of(network, pupil, mx.array(row_weights), self.plan.clip, self.score)
            gradient = slope if gradient is None else tree_map(mx.add, gradient, slope)
            mx.eval(part, stats, gradient)
            loss += numbers(part)
            tally.add(numbers(stats), sum(pupil.lengths))
        gradient, total = optim.clip_grad_norm(gradient, self.plan.max_grad_norm)
        norm = numbers(mx.array(total))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the update diverged: loss {loss}, gradient norm {norm}"
        tally.step(loss, norm)
        optimizer.update(network, gradient)
        mx.eval(network.trainable_parameters(), optimizer.state)
        return ""


Score = Callable[[Any, Pupil], mx.array]


def score_shared(network: Any, pupil: Pupil) -> mx.array:
    """Logits (G, T, V) of the completions, the prompt read once; only for models whose caches are plain KV caches."""
    prefix, last = pupil.prompt_1_P[:, :-1], pupil.prompt_1_P[:, -1:]
    rows = pupil.tokens_G_T.shape[0]
    caches: list[Any] = [ConcatenateKVCache() for _ in network.layers]
    if prefix.shape[1]:
        network(prefix, cache=caches)
        for cache in caches:
            cache.state = tuple(mx.broadcast_to(part, (rows, *part.shape[1:])) for part in cache.state)
    inputs = mx.concatenate([mx.broadcast_to(last, (rows, 1)), pupil.tokens_G_T[:, :-1]], axis=1)
    return network(inputs, cache=caches)


def score_plain(network: Any, pupil: Pupil) -> mx.array:
    """The same logits the plain way: every rollout as a whole sequence."""
    rows, length = pupil.tokens_G_T.shape
    prompt = mx.broadcast_to(pupil.prompt_1_P, (rows, pupil.prompt_1_P.shape[1]))
    whole = mx.concatenate([prompt, pupil.tokens_G_T[:, :-1]], axis=1)
    return network(whole)[:, -length:]


def gradient_of(
    network: Any, pupil: Pupil, weights_G: mx.array, clip: Clip, score: Score
) -> tuple[tuple[mx.array, mx.array], Any]:
    """((loss, sums over tokens named by STATS), gradient by trainable parameter) of one group."""
    active = pupil.active_G_T
    weights = weights_G[:, None] * active

    def loss_of(pupil: Pupil) -> tuple[mx.array, mx.array]:
        new, entropy = token_logprobs(score(network, pupil), pupil.tokens_G_T, pupil.temperature)
        loss, stats = grpo_loss(new, pupil.old_G_T, pupil.advantages_G, weights, clip, pupil.reference_G_T)
        return loss, mx.concatenate([stats, (entropy * active).sum()[None]])

    return nn.value_and_grad(network, loss_of)(pupil)


def pupil_of(lesson: Lesson) -> Pupil:
    """A lesson's token ids as they were sampled, never tokenized again."""
    group: Group = lesson.group.group
    rollouts = group.rollouts
    lengths = tuple(len(rollout.token_ids) for rollout in rollouts)
    width = max(lengths)
    return Pupil(
        prompt_1_P=mx.array([group.prompt_token_ids]),
        tokens_G_T=mx.array([[*r.token_ids, *[0] * (width - len(r.token_ids))] for r in rollouts]),
        old_G_T=mx.array([[*r.logprobs, *[0.0] * (width - len(r.logprobs))] for r in rollouts]),
        advantages_G=mx.array(lesson.advantages),
        lengths=lengths,
        temperature=group.sampling.temperature,
    )


class Tally:
    """Sums over tokens and optimizer steps, and the means they come to."""

    def __init__(self) -> None:
        self.sums = [0.0] * len(STATS)
        self.tokens = 0
        self.losses: list[float] = []
        self.norms: list[float] = []

    def add(self, stats: list[float], tokens: int) -> None:
        self.sums = [a + b for a, b in zip(self.sums, stats, strict=True)]
        self.tokens += tokens

    def step(self, loss: float, norm: float) -> None:
        self.losses.append(loss)
        self.norms.append(norm)

    def metrics(self, began: float) -> tuple[tuple[str, float], ...]:
        """Means over tokens and steps, the tokens gone through, and the seconds since `began`."""
        steps = max(1, len(self.losses))
        means = [(name, total / self.tokens) for name, total in zip(STATS, self.sums, strict=True)]
        ends = [("loss", sum(self.losses) / steps), ("grad_norm", sum(self.norms) / steps)]
        return (*ends, *means, ("tokens", float(self.tokens)), ("seconds", time.monotonic() - began))


def _unfreeze(module: nn.Module) -> None:
    if "lora_a" in module:
        module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
