"""Completions from a model in this process, through mlx-lm: continuous batching over a wave.

A group's prompt is read once and its cache handed to all rollouts; `slots` sequences are decoded at once, and places
that fall free are filled with the next rollouts of the wave, in order (`_decoder.py`). Every row is drawn by one
vectorised sampler (`_sampler.py`). What can't be sampled is a LostGroup with the reason, and the next wave goes on.
"""

import time
from collections.abc import Iterator
from math import isfinite
from typing import Any

from grpo_ray import mlx_model
from grpo_ray.canonical import short
from grpo_ray.errors import ConfigError, GrpoRayError
from grpo_ray.generators._decoder import Decoder, Job
from grpo_ray.generators._names import lost
from grpo_ray.generators._speech import encode
from grpo_ray.mlx_core import mx
from grpo_ray.protocols import Generator
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, Prompt, Sampling, Wave


def make_generator(*, model: str, prefill: int = 512) -> Generator:
    """Load `model` on this thread; `prefill` prompt tokens are read at a time. Raises ConfigError."""
    check_settings(model=model, prefill=prefill)
    return MlxGenerator(mlx_model.load(model), prefill)


def check_settings(*, model: str, prefill: int = 512) -> None:
    """Raise ConfigError for a `prefill` that can't be."""
    if prefill < 1:
        raise ConfigError(f"prefill is {prefill}: it must be at least 1")


class MlxGenerator:
    """The model, the adapter in place, and `sample`."""

    def __init__(self, model: mlx_model.Model, prefill: int) -> None:
        self.model = model
        self.prefill = prefill
        self.adapter: str | None = None
        self.side = side_stream()
        keep_wired()

    def sample(self, wave: Wave, adapter: Adapter | None, content: AdapterBytes | None) -> Iterator[Group | LostGroup]:
        if reason := self._place(adapter, content):
            yield from (lost(prompt, reason) for prompt in wave.prompts)
            return
        jobs: list[Job] = []
        for prompt in wave.prompts:
            job = self._job(prompt, wave.sampling)
            if isinstance(job, LostGroup):
                yield job
            else:
                jobs.append(job)
        for job in Decoder(self.model, wave.sampling, self.prefill, self.side).run(jobs):
            yield self._group(job, wave.sampling)

    def close(self) -> None:
        mlx_model.release()

    def _place(self, adapter: Adapter | None, content: AdapterBytes | None) -> str:
        """Put the adapter in place; returns why that can't be, or nothing."""
        wanted = adapter.hash if adapter else None
        if wanted == self.adapter:
            return ""
        if adapter and content is None:
            return f"the adapter {adapter.hash} came without its weights"
        self.adapter = ""  # neither, should the swap fail
        try:
            mlx_model.swap(self.model, content.weights if content else None)
        except GrpoRayError as fault:
            return f"the adapter {wanted} can't be used: {fault}"
        except (
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as fault:  # what MLX says of broken bytes
            return f"the adapter {wanted} can't be read: {type(fault).__name__}: {fault}"
        self.adapter = wanted
        return ""

    def _job(self, prompt: Prompt, sampling: Sampling) -> Job | LostGroup:
        """The prompt's tokens, or why it has none that can be answered."""
        try:
            tokens = encode(self.model, prompt.messages)
        except Exception as fault:  # the boundary: a chat template is the model's own program and may raise anything
            return lost(prompt, f"the chat template of {self.model.name!r} failed: {type(fault).__name__}: {fault}")
        room = self.model.context - len(tokens)
        if not tokens:
            return lost(prompt, "the prompt is empty")
        if room < 1:
            return lost(prompt, f"the prompt has {len(tokens)} tokens, the model's context {self.model.context}")
        return Job(prompt, tokens, min(sampling.max_tokens, room), sampling.group_size)

    def _group(self, job: Job, sampling: Sampling) -> Group | LostGroup:
        if not all(isfinite(logprob) for rollout in job.rollouts.values() for logprob in rollout.logprobs):
            return lost(job.prompt, f"{self.model.name!r} with adapter {self.adapter} gives numbers that aren't finite")
        return Group(
            id=short("g", job.prompt.id),
            prompt=job.prompt,
            rollouts=tuple(job.rollouts[index] for index in range(sampling.group_size)),
            prompt_token_ids=tuple(job.tokens),
            sampling=sampling,
            model=self.model.name,
            adapter=self.adapter,
            seconds=time.monotonic() - job.started,
        )


def side_stream() -> Any:
    """A second stream on a CPU, where another core takes it up; a GPU's own stream, which is fastest alone."""
    device = mx.default_device()
    return mx.new_stream(device) if device == mx.Device(mx.cpu) else mx.default_stream(device)


def keep_wired() -> None:
    """On a Mac, let MLX keep as much memory wired as the system recommends, so that weights are not paged out."""
    if mx.metal.is_available():
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
