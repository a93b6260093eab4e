"""The training loop of the nano model: batches by length, a compiled step, checkpoints that survive kill -9."""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.qwen3 import Model, ModelArgs
from tqdm import tqdm

from .gradients import CONFIG, Gradients
from .prompts import Sample, Stage, draw_sample, stage_at
from .tokenizer import PAD, TURN_END, encode, encode_chat

BATCH = 32
POOL = 16
"""Batches are cut from pools of this many, sorted by length, so that little is padded."""
LONGEST = 448
ROUND = 16
"""Lengths are rounded up to a multiple of this, so that few shapes are compiled."""

MUON_RATE, ADAM_RATE = 0.01, 2e-3
LINE_WEIGHT = 3.0
"""What a line's first token weighs in the loss: there it is decided whether to go on working, by how one was asked."""
GUESS_WEIGHTS = {"chain_sum": 0.2, "products": 0.2, "spell_backward": 0.02}
"""What an answer weighs in the loss where the working before it is not complete. Sums can hardly be learned so; turning a
word round could, and then nothing would be left for a better prompt to find."""
Sequence = tuple[list[int], list[float]]
Batch = tuple[np.ndarray, np.ndarray]
"""Token ids and loss weights, both (sequences, tokens)."""


def make_model(seed: int) -> Model:
    """Build the untrained model; layers add nothing to the residual stream yet, so the tokens are seen at every depth."""
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(CONFIG))
    shapes = [(name, weight.shape) for name, weight in tree_flatten(model.parameters()) if weight.ndim == 2]
    model.update(tree_unflatten([(name, first_scale(name, shape) * mx.random.normal(shape)) for name, shape in shapes]))
    mx.eval(model.parameters())
    return model


def first_scale(name: str, shape: tuple[int, ...]) -> float:
    """Return the standard deviation that a weight matrix starts with."""
    if "o_proj" in name or "down_proj" in name:
        return 0.0
    return 0.1 if "embed" in name else shape[-1] ** -0.5


def tokens_of(rng: random.Random, stage: Stage) -> Sequence:
    """Draw one training sequence: its ids, and what each weighs in the loss."""
    while True:
        sample = draw_sample(rng, stage)
        prompt = encode_chat(sample.messages)
        ids = [*prompt, *encode(sample.completion), TURN_END]
        if len(ids) <= LONGEST:
            return ids, [0.0] * len(prompt) + weights_of(sample)


def weights_of(sample: Sample) -> list[float]:
    """Return what each token of a completion, and its end, weighs in the loss."""
    text = sample.completion
    weights = [LINE_WEIGHT if at == 0 or text[at - 1] == "\n" else 1.0 for at in range(len(text) + 1)]
    if not sample.seen:
        answer = text.rindex("Answer: ") + len("Answer: ")
        weights[answer:-1] = [GUESS_WEIGHTS[sample.family]] * (len(text) - answer)
    return weights


def draw_pool(seed: int, index: int, stage: Stage) -> list[Batch]:
    """Draw POOL batches of a stage, each of sequences of about one length."""
    rng = random.Random(f"{seed} {index}")
    sequences = sorted((tokens_of(rng, stage) for _ in range(BATCH * POOL)), key=lambda item: len(item[0]))
    batches = [to_arrays(sequences[start : start + BATCH]) for start in range(0, len(sequences), BATCH)]
    rng.shuffle(batches)
    return batches


def to_arrays(sequences: list[Sequence]) -> Batch:
    """Pad sequences on the right, with no weight."""
    length = -(-max(len(ids) for ids, _ in sequences) // ROUND) * ROUND
    tokens = np.full((len(sequences), length), PAD, dtype=np.int32)
    weights = np.zeros((len(sequences), length), dtype=np.float32)
    for row, (ids, weight) in enumerate(sequences):
        tokens[row, : len(ids)] = ids
        weights[row, : len(ids)] = weight
    return tokens, weights


def batches_from(step: int, steps: int, seed: int) -> Iterator[Batch]:
    """Yield the batches of steps `step`, `step + 1`, ...: the same ones after a restart."""
    while True:
        index, offset = divmod(step, POOL)
        pool = draw_pool(seed, index, stage_at(index * POOL / steps))
        yield from pool[offset:]
        step += len(pool) - offset


def rate_at(step: int, steps: int) -> float:
    """Return what a step's learning rates are multiplied with: warm-up, flat, then down to a twentieth over the second half."""
    return min(1.0, (step + 1) / 40, 0.05 + 0.95 * (steps - step) / (0.5 * steps))


class Trainer:
    """A model, its optimizers and the step it stands at; everything of it is in one checkpoint file."""

    def __init__(self, steps: int, seed: int, workers: int = 1) -> None:
        self.steps, self.seed, self.step, self.seconds = steps, seed, 0, 0.0
        self.model = make_model(seed)
        self.muon = optim.Muon(learning_rate=MUON_RATE, momentum=0.95, weight_decay=0.0)
        self.adam = optim.AdamW(learning_rate=ADAM_RATE, betas=[0.9, 0.98], weight_decay=0.0, bias_correction=True)
        self.optimizer = optim.MultiOptimizer(
            [self.muon, self.adam], [lambda name, w: w.ndim == 2 and "embed" not in name]
        )
        self.optimizer.init(self.model.trainable_parameters())
        self.gradients = Gradients(workers)

    def update(self, tokens: np.ndarray, weights: np.ndarray) -> float:
        """Take one optimizer step; returns the mean loss (nats per completion token)."""
        total = float(weights[:, 1:].sum())
        loss, gradients = self.gradients(self.model.trainable_parameters(), tokens, weights)
        gradients, _ = optim.clip_grad_norm(tree_map(lambda gradient: gradient / total, gradients), 1.0)
        rate = rate_at(self.step, self.steps)
        self.muon.learning_rate, self.adam.learning_rate = MUON_RATE * rate, ADAM_RATE * rate
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.state, self.optimizer.state)
        self.step += 1
        return loss / total

    def train(self, checkpoint: Path, stop: int, save_seconds: float = 30.0) -> None:
        """Take the steps up to `stop`, saving a checkpoint every `save_seconds`."""
        saved = time.monotonic()
        with tqdm(total=stop, initial=self.step, unit="step", smoothing=0.1) as bar:
            for tokens, weights in batches_from(self.step, self.steps, self.seed):
                if self.step >= stop:
                    break
                began = time.monotonic()
                loss = self.update(tokens, weights)
                self.seconds += time.monotonic() - began
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
                if time.monotonic() - saved > save_seconds:
                    self.save(checkpoint)
                    saved = time.monotonic()
        self.save(checkpoint)

    def facts(self) -> dict[str, float]:
        """Return where the training stands: steps taken and planned, seed, seconds spent in updates."""
        return {"step": self.step, "steps": self.steps, "seed": self.seed, "seconds": round(self.seconds)}

    def save(self, checkpoint: Path) -> None:
        """Write the checkpoint beside its place and move it there, so that it is always whole."""
        arrays = dict(tree_flatten({"model": self.model.parameters(), "optimizer": self.optimizer.state}))
        beside = checkpoint.with_name(checkpoint.stem + ".partial.safetensors")
        mx.save_safetensors(str(beside), arrays, metadata={"facts": json.dumps(self.facts())})
        os.replace(beside, checkpoint)

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of the same seed and number of steps; any other is refused."""
        arrays, metadata = mx.load(str(checkpoint), return_metadata=True)
        facts = json.loads(metadata["facts"])
        if (facts["steps"], facts["seed"]) != (self.steps, self.seed):
            raise SystemExit(
                f"{checkpoint} belongs to --steps {facts['steps']} --seed {facts['seed']}; remove it to begin anew"
            )
        tree = tree_unflatten(list(arrays.items()))
        self.model.update(tree["model"])
        self.optimizer.state = tree["optimizer"]
        self.step, self.seconds = facts["step"], facts["seconds"]
