"""Text vectors from any mlx-lm model: the mean of its last hidden states, made to length 1.

Plain, but local: nothing leaves the machine and no second model is needed.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpo_ray import mlx_model
from grpo_ray.errors import ConfigError
from grpo_ray.mlx_core import mx, numbers


def make_embedder(*, model: str, batch: int = 16) -> "MlxEmbedder":
    """Load `model` on a thread of its own; `batch` texts are read at a time."""
    return MlxEmbedder(model, batch)


class MlxEmbedder:
    """The model and the one thread that may touch it."""

    def __init__(self, model: str, batch: int) -> None:
        self.batch = batch
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="mlx-embedder")
        self.model = self.thread.submit(mlx_model.load, model).result()
        outer = getattr(self.model.network, "language_model", self.model.network)
        self.body: Any = getattr(outer, "model", None)
        if self.body is None:
            raise ConfigError(f"the model {model!r} does not show its hidden states; choose another to embed with")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector a text, as wide as the model; longer texts than its context are cut."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._embed, list(texts))

    def close(self) -> None:
        self.thread.submit(mlx_model.release).result()
        self.thread.shutdown()

    def _embed(self, texts: list[str]) -> list[list[float]]:
        rows = [self._tokens(text) for text in texts]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # alike in length: little padding
        vectors: dict[int, list[float]] = {}
        for start in range(0, len(order), self.batch):
            part = order[start : start + self.batch]
            vectors |= zip(part, self._pooled([rows[index] for index in part]), strict=True)
        return [vectors[index] for index in range(len(rows))]

    def _tokens(self, text: str) -> list[int]:
        tokens = list(self.model.tokenizer.encode(text))[: self.model.context]
        return tokens or [min(self.model.tokenizer.eos_token_ids, default=0)]  # nothing said is a text too

    def _pooled(self, rows: list[list[int]]) -> list[list[float]]:
        """Padded on the right, where a causal model does not look."""
        width = max(map(len, rows))
        states_N_T_D = self.body(mx.array([row + [0] * (width - len(row)) for row in rows])).astype(mx.float32)
        said_N_T = mx.arange(width)[None] < mx.array([len(row) for row in rows])[:, None]
        sums_N_D = mx.where(said_N_T[..., None], states_N_T_D, 0.0).sum(axis=1)
        return numbers(sums_N_D / mx.linalg.norm(sums_N_D, axis=-1, keepdims=True))
