"""The nano model's gradients, a batch shared by several processes: MLX runs one CPU stream on one core only."""

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.qwen3 import Model, ModelArgs

from .fast_forward import logits_of
from .tokenizer import PAD, TURN_END, VOCABULARY

Parameters = dict[str, Any]
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


def make_loss_and_gradients() -> Any:
    """Return a compiled (parameters, tokens, weights) -> (summed loss in nats, its gradients)."""
    shell = Model(ModelArgs.from_dict(CONFIG))

    def loss_of(parameters: Parameters, tokens: mx.array, weights: mx.array) -> mx.array:
        shell.update(parameters)
        losses = nn.losses.cross_entropy(logits_of(shell, tokens[:, :-1]), tokens[:, 1:])
        return (losses * weights[:, 1:]).sum()

    return mx.compile(mx.value_and_grad(loss_of))


def serve(pipe: Connection) -> None:
    """Answer (parameters, tokens, weights) with (loss, gradients), until the other end closes."""
    loss_and_gradients = make_loss_and_gradients()
    while True:
        try:
            parameters, tokens, weights = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        tree = tree_unflatten([(name, mx.array(value)) for name, value in parameters])
        loss, gradients = loss_and_gradients(tree, mx.array(tokens), mx.array(weights))
        pipe.send((loss.item(), [(name, np.array(value)) for name, value in tree_flatten(gradients)]))


class Gradients:
    """Summed loss and gradients of batches; this process takes a share like the others."""

    def __init__(self, workers: int) -> None:
        self._own = make_loss_and_gradients()
        self._pipes: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        for _ in range(workers - 1):
            here, there = context.Pipe()
            context.Process(target=serve, args=(there,), daemon=True).start()
            there.close()
            self._pipes.append(here)

    def __call__(self, parameters: Parameters, tokens: np.ndarray, weights: np.ndarray) -> tuple[float, Parameters]:
        """Return the loss (nats) and gradients, summed over all weighted tokens of a batch."""
        shares = len(self._pipes) + 1
        plain = [(name, np.array(value)) for name, value in tree_flatten(parameters)] if self._pipes else []
        for index, pipe in enumerate(self._pipes, start=1):
            pipe.send((plain, tokens[index::shares], weights[index::shares]))
        loss, gradients = self._own(parameters, mx.array(tokens[::shares]), mx.array(weights[::shares]))
        sums = dict(tree_flatten(gradients))
        mx.eval(loss, sums)
        total = loss.item()
        for pipe in self._pipes:
            other, theirs = pipe.recv()
            total += other
            sums = {name: sums[name] + mx.array(value) for name, value in theirs}
        return total, tree_unflatten(list(sums.items()))
