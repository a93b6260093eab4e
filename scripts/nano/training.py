"""The training loop of the nano model: batches by length, a compiled step, checkpoints that survive kill -9."""

import ctypes
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

for library in ("libopenblas.so.0",):  # mlx on Linux links the slow reference BLAS; one loaded before it wins
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        pass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.qwen3 import Model, ModelArgs
from tqdm import tqdm

from .prompts import draw_sample
from .tokenizer import PAD, TURN_END, VOCABULARY, encode, encode_chat

CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "eos_token_id": TURN_END,
    "pad_token_id": PAD,
    "hidden_act": "silu",
    "attention_bias": False,
}
BATCH = 32
POOL = 16
"""Batches are cut from pools of this many, sorted by length, so that little is padded."""
LONGEST = 512
ROUND = 32
"""Lengths are rounded up to a multiple of this, so that few shapes are compiled."""

Batch = tuple[np.ndarray, np.ndarray]
"""Token ids and loss weights, both (sequences, tokens)."""


def make_model(seed: int) -> Model:
    """Build the untrained model, small enough at the start that the loss is that of guessing."""
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(CONFIG))
    model.update(
        tree_unflatten(
            [
                (name, mx.random.normal(weight.shape) * (0.02 if "embed" in name else weight.shape[-1] ** -0.5))
                for name, weight in tree_flatten(model.parameters())
                if weight.ndim == 2
            ]
        )
    )
    mx.eval(model.parameters())
    return model


def tokens_of(rng: random.Random, share: float) -> tuple[list[int], int]:
    """Draw one training sequence; returns its ids and where the completion begins."""
    while True:
        sample = draw_sample(rng, few_shot=0.28 * share, long_context=0.30 * share)
        prompt = encode_chat(sample.messages)
        ids = [*prompt, *encode(sample.completion), TURN_END]
        if len(ids) <= LONGEST:
            return ids, len(prompt)


def draw_pool(seed: int, index: int, share: float) -> list[Batch]:
    """Draw POOL batches; `share` (0 to 1) says how much of the long prompts (examples, context) is in them yet."""
    rng = random.Random(f"{seed} {index}")
    sequences = sorted((tokens_of(rng, share) for _ in range(BATCH * POOL)), key=lambda item: len(item[0]))
    batches = [to_arrays(sequences[start : start + BATCH]) for start in range(0, len(sequences), BATCH)]
    rng.shuffle(batches)
    return batches


def to_arrays(sequences: list[tuple[list[int], int]]) -> Batch:
    """Pad sequences on the right; only the completions' tokens weigh in the loss."""
    length = -(-max(len(ids) for ids, _ in sequences) // ROUND) * ROUND
    tokens = np.full((len(sequences), length), PAD, dtype=np.int32)
    weights = np.zeros((len(sequences), length), dtype=np.float32)
    for row, (ids, start) in enumerate(sequences):
        tokens[row, : len(ids)] = ids
        weights[row, start : len(ids)] = 1.0
    return tokens, weights


def batches_from(step: int, steps: int, seed: int) -> Iterator[Batch]:
    """Yield the batches of steps `step`, `step + 1`, ...: the same ones after a restart."""
    while True:
        index, offset = divmod(step, POOL)
        pool = draw_pool(seed, index, min(1.0, max(0.1, 2.0 * index * POOL / steps - 0.2)))
        yield from pool[offset:]
        step += len(pool) - offset


def loss_of(model: Model, tokens: mx.array, weights: mx.array) -> mx.array:
    """Return the mean cross-entropy (nats) of the weighted tokens."""
    losses = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def rate_at(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: a short warm-up, flat, then straight down to a tenth over the last 40 %."""
    return peak * min(1.0, (step + 1) / 40, 0.1 + 0.9 * (steps - step) / (0.4 * steps))


class Trainer:
    """A model, its optimizers and the step it stands at; everything of it is in one checkpoint file."""

    def __init__(self, steps: int, seed: int, peak: float = 1.0) -> None:
        self.steps, self.seed, self.peak, self.step, self.seconds = steps, seed, peak, 0, 0.0
        self.model = make_model(seed)
        self.muon = optim.Muon(learning_rate=0.02, momentum=0.95, weight_decay=0.01)
        self.adam = optim.AdamW(learning_rate=3e-3, betas=[0.9, 0.98], weight_decay=0.0, bias_correction=True)
        self.optimizer = optim.MultiOptimizer([self.muon, self.adam], [lambda name, w: w.ndim == 2 and "embed" not in name])
        self.optimizer.init(self.model.trainable_parameters())
        self._state = [self.model.state, self.optimizer.state]
        self._update = mx.compile(self._plain_update, inputs=self._state, outputs=self._state)

    def _plain_update(self, tokens: mx.array, weights: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(self.model, loss_of)(self.model, tokens, weights)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        self.optimizer.update(self.model, gradients)
        return loss

    def train(self, checkpoint: Path, save_seconds: float = 60.0) -> None:
        """Take the steps that are left, saving a checkpoint every `save_seconds`."""
        saved = time.monotonic()
        with tqdm(total=self.steps, initial=self.step, unit="step", smoothing=0.1) as bar:
            for tokens, weights in batches_from(self.step, self.steps, self.seed):
                if self.step >= self.steps:
                    break
                began = time.monotonic()
                rate = rate_at(self.step, self.steps, self.peak)
                self.muon.learning_rate, self.adam.learning_rate = mx.array(0.02 * rate), mx.array(3e-3 * rate)
                loss = self._update(mx.array(tokens), mx.array(weights))
                mx.eval(self._state, loss)
                self.step += 1
                self.seconds += time.monotonic() - began
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
                if time.monotonic() - saved > save_seconds:
                    self.save(checkpoint)
                    saved = time.monotonic()
        self.save(checkpoint)

    def save(self, checkpoint: Path) -> None:
        """Write the checkpoint beside its place and move it there, so that it is always whole."""
        arrays = dict(tree_flatten({"model": self.model.parameters(), "optimizer": self.optimizer.state}))
        facts = {"step": self.step, "steps": self.steps, "seed": self.seed, "seconds": self.seconds}
        beside = checkpoint.with_name(checkpoint.stem + ".partial.safetensors")
        mx.save_safetensors(str(beside), arrays, metadata={"facts": json.dumps(facts)})
        os.replace(beside, checkpoint)

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of the same seed and number of steps; any other is refused."""
        arrays, metadata = mx.load(str(checkpoint), return_metadata=True)
        facts = json.loads(metadata["facts"])
        if (facts["steps"], facts["seed"]) != (self.steps, self.seed):
            raise SystemExit(f"{checkpoint} belongs to --steps {facts['steps']} --seed {facts['seed']}; remove it to begin anew")
        tree = tree_unflatten(list(arrays.items()))
        self.model.update(tree["model"])
        self.optimizer.state = tree["optimizer"]
        self._state[1] = self.optimizer.state
        self.step, self.seconds = facts["step"], facts["seconds"]
