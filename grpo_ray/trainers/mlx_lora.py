"""GRPO and its kin on LoRA weights with MLX: one update from a step's lessons, the same bytes for the same arguments.

A group is trained, not its sequences (see _pupil.py). Everything an update starts from comes in with it (weights, Adam's
moments and step count), so a restarted trainer, or a repeated update, does the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature
from math import inf
from typing import Any

from grpo_ray import mlx_model
from grpo_ray.canonical import rng
from grpo_ray.errors import ConfigError
from grpo_ray.mlx_core import mx, numbers
from grpo_ray.mlx_model import Kind, Lora
from grpo_ray.protocols import Trainer
from grpo_ray.trainers._checkpoint import checkpoint_layers
from grpo_ray.trainers._head import find_head
from grpo_ray.trainers._pupil import Pupil, Reader, can_share, pupil_of, read_plain, read_shared
from grpo_ray.trainers._schedule import Schedule, Shape
from grpo_ray.trainers._tally import Batch, Bounds, Tally
from grpo_ray.trainers.losses import (
    FEW_WORDS,
    Chosen,
    Loss,
    Mismatch,
    Objective,
    dpo_loss,
    mismatch_weights,
    policy_loss,
    token_weights,
)
from grpo_ray.types import Adapter, AdapterBytes, Lesson, Slope, Update

from mlx.nn.utils import value_and_grad  # isort: skip  (mlx_core puts the BLAS in place first)
import mlx.optimizers as optim  # isort: skip
from mlx.utils import tree_flatten, tree_map, tree_unflatten  # isort: skip

NOTHING = "no lesson had anything to learn from: none at a temperature above 0 with completions that take part"


def make_trainer(
    *,
    model: str,
    kind: Kind = "lora",
    rank: int = 16,
    scale: float = 2.0,
    keys: Sequence[str] | None = None,
    num_layers: int = -1,
    learning_rate: float = 4e-4,
    schedule: Shape = "constant",
    warmup_steps: int = 0,
    schedule_steps: int = 0,
    weight_decay: float = 0.0,
    epochs: int = 2,
    groups_per_batch: int = 8,
    max_grad_norm: float = 1.0,
    loss: Loss = "dapo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float | None = None,
    cispo_cap: float = 5.0,
    kl: float = 0.0,
    kl_bias_correction: bool = True,
    mismatch: Mismatch = "sequence_mask",
    mismatch_cap: float = 3.0,
    dpo_beta: float = 0.1,
    sft_on: Chosen = "positive",
    mask_truncated: bool = False,
    overlong: int = 0,
    stop_kl: float | None = 1e3,
    stop_ratio: float | None = 1e3,
    stop_entropy: float | None = None,
    stop_grad_norm: float | None = None,
    share_prompts: bool = True,
    gradient_checkpointing: bool = False,
) -> Trainer:
    """Load `model` on this thread; what it learns is LoRA (or DoRA) of `rank`, multiplied by `scale`.

    The loss's settings are Objective's, `schedule…` and `warmup_steps` Schedule's, `stop_…` Bounds'. `mask_truncated`
    leaves out completions that were cut off; `overlong` punishes length over that many last tokens.
    `share_prompts: false` trains whole sequences, slower. Raises ConfigError for settings that can't be.
    """
    objective = Objective(
        loss=loss, clip_low=clip_low, clip_high=clip_high, delta=delta, cispo_cap=cispo_cap, kl=kl,
        kl_bias_correction=kl_bias_correction, mismatch=mismatch, mismatch_cap=mismatch_cap, dpo_beta=dpo_beta,
        sft_on=sft_on,
    )  # fmt: skip
    steps = Schedule(schedule, warmup_steps, schedule_steps)
    bounds = Bounds(stop_kl, stop_ratio, stop_entropy, stop_grad_norm)
    plan = Plan(
        objective, steps, bounds, learning_rate, weight_decay, epochs, groups_per_batch, max_grad_norm,
        mask_truncated, overlong,
    )  # fmt: skip
    paths = tuple(keys) if keys is not None else None
    lora = Lora(rank=rank, scale=scale, keys=paths, num_layers=num_layers, kind=kind)
    return MlxLoraTrainer(mlx_model.load(model), lora, plan, share_prompts, gradient_checkpointing)


def check_settings(**settings: Any) -> None:
    """Raise ConfigError listing every value of make_trainer's settings that can't be; nothing is loaded for it."""
    usual = {p.name: p.default for p in signature(make_trainer).parameters.values()}
    chosen = usual | settings
    whole = {"objective": Objective(), "schedule": Schedule(), "bounds": Bounds()}
    plan: dict[str, Any] = {field.name: chosen.get(field.name) for field in fields(Plan)} | whole
    parts: Sequence[Callable[[], object]] = [
        lambda: Lora(rank=chosen["rank"], scale=chosen["scale"], num_layers=chosen["num_layers"], kind=chosen["kind"]),
        lambda: Objective(**{field.name: chosen[field.name] for field in fields(Objective)}),
        lambda: Schedule(chosen["schedule"], chosen["warmup_steps"], chosen["schedule_steps"]),
        lambda: Bounds(**{field.name: chosen[f"stop_{field.name}"] for field in fields(Bounds)}),
        lambda: Plan(**plan),
    ]
    problems: list[str] = []
    for part in parts:
        try:
            part()
        except ConfigError as fault:
            problems += str(fault).splitlines()
    if problems:
        raise ConfigError("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Plan:
    """How an update goes through its lessons. Raises ConfigError naming every number that can't be."""

    objective: Objective
    schedule: Schedule
    bounds: Bounds
    learning_rate: float
    weight_decay: float
    epochs: int
    groups_per_batch: int
    max_grad_norm: float
    mask_truncated: bool
    overlong: int

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        above = [(key, "above 0", 0 < given[key] < inf) for key in ("learning_rate", "max_grad_norm")]
        least = [(key, "at least 0", 0 <= given[key] < inf) for key in ("weight_decay", "overlong")]
        counts = [(key, "at least 1", given[key] >= 1) for key in ("epochs", "groups_per_batch")]
        wrong = [
            f"{key} is {given[key]}: it must be {words}" for key, words, good in above + least + counts if not good
        ]
        if wrong:
            raise ConfigError("\n".join(wrong))


@dataclass(slots=True)
class Work:
    """An update under way, as trainer `rank` of `of` has it."""

    adapter: Adapter | None
    content: AdapterBytes | None
    pupils: list[Pupil]
    batches: list[list[int]]
    """The places of each optimizer step's pupils; a trainer takes every `of`-th of them."""
    optimizer: optim.Adam
    tally: Tally
    rank: int
    of: int
    fault: str = ""


class MlxLoraTrainer:
    """The model and its plan; every update begins from the bytes it is given."""

    def __init__(
        self, model: mlx_model.Model, lora: Lora, plan: Plan, share_prompts: bool, gradient_checkpointing: bool
    ) -> None:
        self.model = model
        self.lora = lora
        self.plan = plan
        found = find_head(model.network)
        self.head = found if found and found.vocabulary >= FEW_WORDS else None
        self.read = read_shared if share_prompts and can_share(model.network, self.head) else read_plain
        self.work: Work | None = None
        if gradient_checkpointing:
            checkpoint_layers(model.network)
        model.network.train()

    def update(
        self, adapter: Adapter | None, content: AdapterBytes | None, lessons: Sequence[Lesson], seed: int
    ) -> Update:
        for step in range(self.begin(adapter, content, lessons, seed)):
            if self._step(*self._slope(step)):
                break
        return self.end()

    def begin(
        self,
        adapter: Adapter | None,
        content: AdapterBytes | None,
        lessons: Sequence[Lesson],
        seed: int,
        rank: int = 0,
        of: int = 1,
    ) -> int:
        tally = tally_of(lessons)
        mx.random.seed(seed)
        pupils = self._pupils(lessons)
        batches = list(self._batches(len(pupils), seed))
        optimizer = self._begin(adapter, content)
        if self.plan.objective.corrects:
            mine = {index for batch in batches for index in batch[rank::of]}
            pupils = [self._with_correction(one) if index in mine else one for index, one in enumerate(pupils)]
        self.work = Work(adapter, content, pupils, batches, optimizer, tally, rank, of)
        return len(batches)

    def slope(self, step: int) -> Slope:
        gradient, seen = self._slope(step)
        flat: Any = tree_flatten(gradient) if gradient else []
        return Slope(mlx_model.pack(dict(flat), {}) if flat else b"", seen.loss, tuple(seen.sums), seen.tokens)

    def apply(self, slopes: Sequence[Slope]) -> str:
        gradient: Any = None
        seen = Batch()
        for part in slopes:
            seen.add(part.loss, list(part.sums), part.tokens)
            if part.gradient:
                tree = tree_unflatten(list(mlx_model.unpack(part.gradient)[0].items()))
                gradient = tree if gradient is None else tree_map(mx.add, gradient, tree)
        return self._step(gradient, seen)

    def end(self) -> Update:
        work = self._under_way()
        self.work = None
        if work.fault:
            return Update(work.content or self._content(self._begin(work.adapter, None)), (), work.fault)
        if not work.tally.batches:
            return Update(work.content or self._content(work.optimizer), (), NOTHING)
        return Update(self._content(work.optimizer), work.tally.metrics())

    def close(self) -> None:
        mlx_model.release()

    def reader(self) -> Reader:
        """How the network, as it is wrapped now, is read; a head that is trained itself needs its whole logits."""
        leaves: Any = tree_flatten(self.model.network.trainable_parameters())
        inside = all(".layers." in name for name, _ in leaves)
        return Reader(self.model.network, self.read, self.head if inside else None)

    def _pupils(self, lessons: Sequence[Lesson]) -> list[Pupil]:
        """Lessons by group id, as arrays; those drawn greedily teach nothing and are left out."""
        plan = self.plan
        ordered = sorted(lessons, key=lambda lesson: lesson.group.group.id)
        warm = [lesson for lesson in ordered if lesson.group.group.sampling.temperature > 0]
        found = [pupil_of(lesson, plan.objective, plan.mask_truncated, plan.overlong) for lesson in warm]
        pupils = [pupil for pupil in found if pupil]
        if not plan.objective.needs_reference:
            return pupils
        mlx_model.unwrap(self.model)
        self.model.network.freeze()
        return [self._with_reference(pupil) for pupil in pupils]

    def _with_reference(self, pupil: Pupil) -> Pupil:
        """The base model's log-probabilities; only while nothing is wrapped."""
        reference, _ = self.reader()(pupil, learning=False)
        mx.eval(reference)
        return replace(pupil, reference_G_T=reference)

    def _with_correction(self, pupil: Pupil) -> Pupil:
        """The trainer's own log-probabilities before the update, and what the sampler's difference to them weighs."""
        old, _ = self.reader()(pupil, learning=False)
        correction = mismatch_weights(old, pupil.sampler_G_T, pupil.active_G_T, self.plan.objective)
        mx.eval(old, correction)
        return replace(pupil, old_G_T=old, correction_G_T=correction)

    def _begin(self, adapter: Adapter | None, content: AdapterBytes | None) -> optim.Adam:
        """Put weights and optimizer state in place: those given, or fresh ones from MLX's random state."""
        network = self.model.network
        if content is None:
            mlx_model.wrap(self.model, self.lora)
        else:
            mlx_model.swap(self.model, content.weights)
        network.freeze()
        network.apply_to_modules(lambda _, module: mlx_model.unfreeze(module))
        rate = self._rate(adapter)
        if self.plan.weight_decay:
            optimizer = optim.AdamW(learning_rate=rate, weight_decay=self.plan.weight_decay, bias_correction=True)
        else:
            optimizer = optim.Adam(learning_rate=rate, bias_correction=True)
        optimizer.init(network.trainable_parameters())
        if content is not None and content.optimizer:
            moments, config = mlx_model.unpack(content.optimizer)
            optimizer.state = tree_unflatten(list(moments.items()))
            optimizer.state["step"] = mx.array(config["step"], mx.uint64)
            optimizer.learning_rate = rate
        return optimizer

    def _rate(self, adapter: Adapter | None) -> float:
        return self.plan.learning_rate * (adapter.rate_scale if adapter else 1.0)

    def _content(self, optimizer: optim.Adam) -> AdapterBytes:
        state = dict(tree_flatten(optimizer.state))
        moments = {name: array for name, array in state.items() if name.endswith((".m", ".v"))}
        config = {"optimizer": "adam", "step": numbers(state["step"])}
        return AdapterBytes(mlx_model.adapter_bytes(self.model), mlx_model.pack(moments, config))

    def _batches(self, count: int, seed: int) -> Iterator[list[int]]:
        """The places of each optimizer step's pupils."""
        for epoch in range(self.plan.epochs):
            order = list(range(count))
            rng(seed, "lessons", epoch).shuffle(order)
            for start in range(0, count, self.plan.groups_per_batch):
                yield order[start : start + self.plan.groups_per_batch]

    def _under_way(self) -> "Work":
        if self.work is None:
            raise ValueError("no update has begun")
        return self.work

    def _slope(self, step: int) -> tuple[Any, Batch]:
        """The summed gradient of this trainer's groups of a step (None: it has none), and sums over their tokens."""
        work, objective, reader = self._under_way(), self.plan.objective, self.reader()
        batch = [work.pupils[index] for index in work.batches[step]]
        limit = max(pupil.limit for pupil in batch)
        weights = token_weights([pupil.lengths for pupil in batch], objective.loss, limit)
        gradient: Any = None
        seen = Batch()
        for pupil, row_weights in list(zip(batch, weights, strict=True))[work.rank :: work.of]:
            (part, sums), slope = gradient_of(reader, pupil, mx.array(row_weights), objective)
            gradient = slope if gradient is None else tree_map(mx.add, gradient, slope)
            mx.eval(part, sums, gradient)
            seen.add(numbers(part), numbers(sums), sum(pupil.lengths))
        return gradient, seen

    def _step(self, gradient: Any, seen: Batch) -> str:
        """One optimizer step from the whole batch's gradient; returns why not, if it was not taken."""
        work, plan, network = self._under_way(), self.plan, self.model.network
        gradient, total = optim.clip_grad_norm(gradient, plan.max_grad_norm)
        norm = numbers(mx.array(total))
        work.fault = plan.bounds.fault(seen.loss, norm, seen.means())
        if work.fault:
            return work.fault
        work.tally.step(seen, norm)
        if not plan.schedule.flat:
            done = numbers(work.optimizer.state["step"])
            work.optimizer.learning_rate = self._rate(work.adapter) * plan.schedule.factor(done)
        work.optimizer.update(network, gradient)
        mx.eval(network.trainable_parameters(), work.optimizer.state)
        return ""


def gradient_of(
    reader: Reader, pupil: Pupil, weights_G: mx.array, objective: Objective
) -> tuple[tuple[mx.array, mx.array], Any]:
    """((loss, sums over tokens named by SUMS), gradient by trainable parameter) of one group."""
    active = pupil.active_G_T
    weights = weights_G[:, None] * active

    def loss_of(pupil: Pupil) -> tuple[mx.array, mx.array]:
        new, entropy = reader(pupil)
        old, reference = pupil.old_G_T, pupil.reference_G_T
        if objective.loss == "dpo":
            assert reference is not None
            loss, stats = dpo_loss(new, old, reference, weights, objective)
        else:
            penalty = reference if objective.kl else None
            loss, stats = policy_loss(new, old, pupil.advantages_G, weights, objective, penalty, pupil.correction_G_T)
        off = mx.where(active, mx.abs(mx.stop_gradient(new) - pupil.sampler_G_T), 0.0).sum()
        return loss, mx.concatenate([stats, mx.stack([mx.where(active, entropy, 0.0).sum(), off])])

    return value_and_grad(reader.network, loss_of)(pupil)


def tally_of(lessons: Sequence[Lesson]) -> Tally:
    lengths = [len(rollout.token_ids) for lesson in lessons for rollout in lesson.group.group.rollouts]
    return Tally(sum(lengths) / max(1, len(lengths)))
