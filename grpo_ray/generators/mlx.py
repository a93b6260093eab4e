"""Completions from a model in this process, through mlx-lm: continuous batching over a wave.

A group's prompt is read once and its cache handed to all rollouts; `slots` sequences are decoded at once, and places
that fall free are filled with the next rollouts of the wave, in order (`_decoder.py`). Every row is drawn by one
vectorised sampler (`_sampler.py`). What can't be sampled is a LostGroup with the reason, and the next wave goes on.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any

from grpo_ray import mlx_model
from grpo_ray.canonical import short
from grpo_ray.errors import ConfigError, GrpoRayError
from grpo_ray.generators._decoder import Decoder, Job, decodes_in_batches, growing
from grpo_ray.generators._memory import SHARE, Room, free_bytes, kv_bytes, machine_bytes, rounded
from grpo_ray.generators._names import lost
from grpo_ray.generators._slots import choose, sizes
from grpo_ray.generators._speech import encode
from grpo_ray.mlx_core import BREAKDOWNS, mx
from grpo_ray.protocols import Generator
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, Prompt, Sampling, SlotsFound, Wave

from mlx.utils import tree_flatten  # isort: skip  (mlx_core comes first)

GIB = 1 << 30
WARMING, TIMED, BLOCKS = 3, 4, 4
"""Tokens a row that are decoded before the clock runs, then in each block on the clock, for every size that is tried."""


def make_generator(*, model: str, prefill: int = 512, kv_gb: float | None = None) -> Generator:
    """Load `model` on this thread; `prefill` prompt tokens are read at a time. Raises ConfigError.

    A wave's caches take `kv_gb` GiB at most; None: half of what the weights leave of the machine's memory.
    """
    check_settings(model=model, prefill=prefill, kv_gb=kv_gb)
    loaded = mlx_model.load(model)
    return MlxGenerator(loaded, prefill, make_room(loaded, kv_gb))


def check_settings(*, model: str, prefill: int = 512, kv_gb: float | None = None) -> None:
    """Raise ConfigError for a `prefill` or `kv_gb` that can't be."""
    wrong = [] if prefill >= 1 else [f"prefill is {prefill}: it must be at least 1"]
    if kv_gb is not None and not 0 < kv_gb < 1e6:
        wrong.append(f"kv_gb is {kv_gb}: it must be above 0; leave it out to take half of what the weights leave")
    if wrong:
        raise ConfigError("\n".join(wrong))


def make_room(model: mlx_model.Model, kv_gb: float | None) -> Room:
    """What a wave's caches may take here, and what a token takes: see `make_generator`."""
    leaves: Any = tree_flatten(model.network.parameters())
    arrays = [array for _, array in leaves]
    floats = Counter[int]()
    for array in arrays:
        if mx.issubdtype(array.dtype, mx.floating):
            floats[array.dtype.size] += array.size  # most of them tell what the model computes in, and so caches
    a_token = kv_bytes(model.config, growing(model.network), floats.most_common(1)[0][0])
    left = machine_bytes() - sum(array.nbytes for array in arrays)
    return Room(int(kv_gb * GIB if kv_gb is not None else SHARE * left), a_token)


class MlxGenerator:
    """The model, the adapter in place, and `sample`."""

    def __init__(self, model: mlx_model.Model, prefill: int, room: Room) -> None:
        self.model = model
        self.prefill = prefill
        self.room = room
        self.batches = decodes_in_batches(model.network)
        """Some of mlx-lm's models answer otherwise beside others, or not at all: those decode row by row."""
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
        yield from self._decoded(jobs, wave.sampling)

    def _decoded(self, jobs: list[Job], sampling: Sampling) -> Iterator[Group | LostGroup]:
        """The jobs' groups as they finish; where the model fails, or memory, those that are left are lost with the reason."""
        how = sampling if self.batches else replace(sampling, slots=1)
        left = {job.prompt.id: job for job in jobs}
        try:
            for job in Decoder(self.model, how, self.prefill, self.side, self.room).run(jobs):
                yield self._group(left.pop(job.prompt.id), sampling)
        except BREAKDOWNS as fault:
            reason = f"{self.model.name!r} failed in the middle of a wave: {type(fault).__name__}: {fault}"
            yield from (lost(job.prompt, f"{reason}; a smaller sampling.slots may help") for job in left.values())

    def find_slots(self, wave: Wave) -> SlotsFound:
        """The slots that fit, up to the wave's rollouts, and still pay, over its longest prompt and the adapter in place.

        A wave that has no prompt which can be sampled keeps the slots that it came with.
        """
        made = [self._job(prompt, wave.sampling) for prompt in wave.prompts]
        jobs = [job for job in made if isinstance(job, Job)]
        if not jobs or not self.batches:
            return SlotsFound(wave.sampling.slots if self.batches else 1)
        longest = max(jobs, key=lambda job: len(job.tokens))
        most = min(len(jobs) * wave.sampling.group_size, self._fitting(longest))
        try:
            return choose(sizes(most), partial(self._pace, longest, wave.sampling))
        finally:
            mx.synchronize()
            mx.clear_cache()

    def _fitting(self, job: Job) -> int:
        """How many rollouts of groups like the job memory holds at once; one at least."""
        free = free_bytes()
        budget = self.room.budget if free is None else min(self.room.budget, free)
        group = self.room.takes(job.left, len(job.tokens), job.limit, rounded(len(job.begin)))
        return max(1, budget * job.left // group) if group else sys.maxsize

    def _pace(self, job: Job, sampling: Sampling, slots: int) -> float:
        """Tokens a second with so many rollouts of one prompt, none of which ends, in the fastest of a few blocks.

        What else a machine does only ever makes a block slower. (A single token is too short for a measure: the next
        one is under way while it is read.)
        """
        tokens = job.tokens[-max(1, self.model.context - WARMING - TIMED * BLOCKS - 1) :]
        drawn = replace(sampling, group_size=slots, slots=slots, stop=())
        decoder = Decoder(self.model, drawn, self.prefill, self.side)
        decoder.stops = set()
        decoder.take([Job(job.prompt, tokens, self.model.context, slots)])
        _advance(decoder, WARMING)
        return slots * TIMED / min(_advance(decoder, TIMED) for _ in range(BLOCKS))

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
        job = Job(prompt, tokens, min(sampling.max_tokens, room), sampling.group_size)
        return job if self._fits(job) else lost(prompt, self._too_large(job))

    def _fits(self, job: Job) -> bool:
        return self.room.holds(1, len(job.tokens), job.limit, rounded(len(job.begin)))

    def _too_large(self, job: Job) -> str:
        needed = self.room.takes(1, len(job.tokens), job.limit, rounded(len(job.begin))) / GIB
        there = max(0, self.room.budget) / GIB
        return (
            f"one completion of up to {job.limit} tokens after a prompt of {len(job.tokens)} needs {needed:.3g} GiB for "
            f"its caches, and {there:.3g} GiB are left for them beside {self.model.name!r}: lower sampling.max_tokens, "
            "take a smaller model, or, where the memory is there, raise generator.settings.kv_gb"
        )

    def _group(self, job: Job, sampling: Sampling) -> Group | LostGroup:
        # the model's own, too: those that greedy rows are drawn by are 0 whatever it says
        told = (number for one in job.rollouts.values() for number in (*one.logprobs, *one.model_logprobs))
        if not all(map(isfinite, told)):
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


def _advance(decoder: Decoder, tokens: int) -> float:
    """Seconds that so many tokens a row take."""
    began = time.perf_counter()
    for _ in range(tokens):
        list(decoder.advance())
    return time.perf_counter() - began


def side_stream() -> Any:
    """A second stream on a CPU, where another core takes it up; a GPU's own stream, which is fastest alone."""
    device = mx.default_device()
    return mx.new_stream(device) if device == mx.Device(mx.cpu) else mx.default_stream(device)


def keep_wired() -> None:
    """On a Mac, let MLX keep as much memory wired as the system recommends, so that weights are not paged out."""
    if mx.metal.is_available():
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
