"""One wave: rows decode in step, a finished group leaves at once, free places are filled in order.

When that happens depends on tokens alone, never on time, and nothing outlives the wave: same wave, same adapter, same
hardware, same bytes. All that touches mlx-lm's caches (its version is pinned for them) is in this file.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from grpo_ray.canonical import short
from grpo_ray.generators import _sampler as sampler
from grpo_ray.generators._memory import NO_LIMIT, Room, rounded
from grpo_ray.generators._names import rollout_seed
from grpo_ray.generators._speech import Speech
from grpo_ray.mlx_core import BREAKDOWNS, alike, mx, numbers
from grpo_ray.mlx_model import Model
from grpo_ray.types import Prompt, Rollout, Sampling

from mlx_lm.models.cache import ArraysCache, BatchKVCache, KVCache, make_prompt_cache  # isort: skip  (after mlx_core)

WORTH_SHARING = 16
"""Tokens that two prompts must begin with alike before the second takes over the first's cache."""


class RowsCache(BatchKVCache):
    """mlx-lm's batch cache, which asks for no mask for a single token where no row is padded: that hides nothing."""

    padded = True

    def make_mask(self, N: int, *args: Any, **kwargs: Any) -> Any:
        needed = N > 1 or self.padded or kwargs.get("window_size")
        return super().make_mask(N, *args, **kwargs) if needed else None


@dataclass(slots=True, eq=False)
class Job:
    """A group on its way: its tokens and, from the first rollout's start to the last one's, the prompt's caches."""

    prompt: Prompt
    tokens: list[int]
    limit: int
    """Tokens a completion may have."""
    left: int
    """Rollouts that are not finished yet."""
    rollouts: dict[int, Rollout] = field(default_factory=dict)
    caches: list[Any] | None = None
    started: float = 0.0

    @property
    def begin(self) -> list[int]:
        """The prompt without its last token, which is fed like a sampled one."""
        return self.tokens[:-1]


@dataclass(slots=True, eq=False)
class Row:
    """One sequence being decoded."""

    job: Job
    index: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    model_logprobs: list[float] = field(default_factory=list)
    primed: bool = False
    """False until the prompt's last token has gone by."""
    done: bool = False

    @property
    def long(self) -> int:
        """Tokens that its cache holds, at most."""
        return len(self.job.tokens) + len(self.tokens)

    @property
    def to_come(self) -> int:
        return self.job.limit - len(self.tokens)


class Decoder:
    """`run` takes a wave's jobs, in `room`. `side` is a stream for what the model's next pass needn't wait for."""

    def __init__(self, model: Model, sampling: Sampling, prefill: int, side: Any, room: Room = NO_LIMIT) -> None:
        self.model = model
        self.sampling = sampling
        self.speech = Speech(model, sampling.stop)
        self.prefill = prefill
        self.side = side
        self.room = room
        self.stops = set(model.tokenizer.eos_token_ids)
        self.rows: list[Row] = []
        self.waiting: deque[Row] = deque()
        self.caches: list[Any] = []
        self.fed = mx.zeros((0,), mx.uint32)
        """(rows,): the token each row was given last: sampled, or the end of its prompt."""
        self.scored = mx.zeros((2, 0), mx.float32)
        """(2, rows): its log-probability under what it was drawn from, and under the bare model."""
        self.keys = mx.zeros((0, 2), mx.uint32)
        self.controls = sampler.controls_of([])
        self.seen: mx.array | None = None
        """(rows, vocabulary): the tokens each row holds, where a repetition penalty asks; None: to be made."""
        self.last: tuple[list[int], list[Any]] = ([], [])
        """The prompt read last and its caches: prompts of one template begin alike."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield each job when its last rollout is whole."""
        self.take(jobs)
        while self.waiting or any(not row.done for row in self.rows):
            yield from self.advance()

    def take(self, jobs: Sequence[Job]) -> None:
        """Let the jobs' rollouts wait for places, in their order."""
        self.waiting.extend(
            Row(job, index, rollout_seed(self.sampling.seed, job.prompt.id, index))
            for job in jobs
            for index in range(self.sampling.group_size)
        )

    def advance(self) -> Iterator[Job]:
        """One token a row; yields the jobs that are whole by it."""
        self._refill()
        fed, scored = self.fed, self.scored
        self._step()  # the next tokens are under way while these are looked at
        yield from self._read(numbers(fed), *numbers(scored))

    # ── rows come and go ──────────────────────────────────────────────────────────────────────────────────────────

    def _refill(self) -> None:
        """Drop finished rows and start waiting ones, a quarter of the slots at a time: each change copies caches.

        Where memory holds fewer rows than there are slots, that many are the slots.
        """
        keep = [place for place, row in enumerate(self.rows) if not row.done]
        wanted = min(self.sampling.slots - len(keep), len(self.waiting))
        fresh = self._fitting([self.rows[place] for place in keep], wanted)
        slots = self.sampling.slots if fresh == wanted else len(keep) + fresh
        free = slots - len(keep) if fresh else 0
        if keep and max(free, len(self.rows) - len(keep)) < max(1, slots // 4):
            return
        if len(keep) < len(self.rows):
            self._keep(keep)
        if fresh:
            self._start([self.waiting.popleft() for _ in range(fresh)])
        self.controls = sampler.controls_of([self.sampling] * len(self.rows))
        self.seen = None
        for cache in self.caches:
            if isinstance(cache, RowsCache):
                cache.padded = any(numbers(cache.left_padding))

    def _fitting(self, running: Sequence[Row], wanted: int) -> int:
        """How many of the `wanted` next rows memory holds beside the running ones, all at their full length.

        One at least, when none is running: whoever made the jobs has seen to it that each fits alone.
        """
        long = max((row.long for row in running), default=0)
        left = max((row.to_come for row in running), default=0)
        jobs = {row.job for row in running if row.job.caches is not None}
        prompts = sum(rounded(len(job.begin)) for job in jobs)
        for count, row in enumerate(islice(self.waiting, wanted), 1):
            long, left = max(long, row.long), max(left, row.to_come)
            prompts += 0 if row.job in jobs else rounded(len(row.job.begin))
            jobs.add(row.job)
            if not self.room.holds(len(running) + count, long, left, prompts):
                return max(count - 1, not running)
        return wanted

    def _keep(self, places: list[int]) -> None:
        self.rows = [self.rows[place] for place in places]
        if not places:
            self.caches = []
        for cache in self.caches:
            cache.filter(places)
        index = mx.array(places, mx.uint32)
        self.fed, self.scored, self.keys = self.fed[index], self.scored[:, index], self.keys[index]

    def _start(self, rows: list[Row]) -> None:
        fresh = _batched(self._read_prompts([row.job for row in rows]))
        for row in rows:
            if row.index == self.sampling.group_size - 1:
                row.job.caches = None
        for old, new in zip(self.caches, fresh, strict=bool(self.caches)):
            old.extend(new)
        self.caches = self.caches or fresh
        self.rows += rows
        self.fed = mx.concatenate([self.fed, mx.array([row.job.tokens[-1] for row in rows], mx.uint32)])
        self.scored = mx.concatenate([self.scored, mx.zeros((2, len(rows)))], axis=1)
        self.keys = mx.concatenate([self.keys, mx.stack([mx.random.key(row.seed) for row in rows])])

    # ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _read_prompts(self, jobs: Sequence[Job]) -> list[list[Any]]:
        """Each job's caches of its prompt without the last token, read once for all rollouts of the job.

        Short prompts of single rollouts are read together, `prefill` tokens or less with their padding. One that
        begins like the prompt before it takes that one's cache over; one that several rollouts share is read alone,
        which costs little beside them, and so its numbers don't depend on what else is begun.
        """
        most = self.prefill if self.sampling.group_size == 1 else 0
        together: list[Job] = []
        for job in dict.fromkeys(job for job in jobs if job.caches is None):
            job.started = time.monotonic()
            before = together[-1].begin if together else self.last[0]
            longest = max(len(one.begin) for one in [*together, job])
            if together and (_alike(before, job.begin) or longest * (len(together) + 1) > most):
                self._read_together(together)
                together = []
            if _alike(before, job.begin):
                self._read_alone(job)
            else:
                together.append(job)
        self._read_together(together)
        return [job.caches or [] for job in jobs]

    def _read_together(self, jobs: Sequence[Job]) -> None:
        """Several prompts in one batch, padded on the right, so that each is read as if alone."""
        lengths = [len(job.begin) for job in jobs]
        caches = make_prompt_cache(self.model.network)
        if len(jobs) < 2 or not min(lengths) or any(type(cache) is not KVCache for cache in caches):
            for job in jobs:
                self._read_alone(job)
            return
        padding = [max(lengths) - length for length in lengths]
        batch = [BatchKVCache([0] * len(jobs)) for _ in caches]
        tokens = mx.array([job.begin + [0] * pad for job, pad in zip(jobs, padding, strict=True)])
        self.model.network(tokens, cache=batch)
        for row, job in enumerate(jobs):
            job.caches = [_single(cache, row, lengths[row]) for cache in batch]
        mx.eval([[cache.state for cache in job.caches or []] for job in jobs])
        self.last = (jobs[-1].begin, jobs[-1].caches or [])

    def _read_alone(self, job: Job) -> None:
        job.caches, known = self._begun(job.begin)
        for start in range(known, len(job.begin), self.prefill):
            chunk = job.begin[start : start + self.prefill]
            self.model.network(mx.array(chunk)[None], cache=job.caches)
            mx.eval([cache.state for cache in job.caches])
        self.last = (job.begin, job.caches)

    def _begun(self, tokens: list[int]) -> tuple[list[Any], int]:
        """Caches that hold as many of the tokens as the prompt before began with too, and how many those are."""
        caches = make_prompt_cache(self.model.network)
        before, old = self.last
        if not _alike(before, tokens) or any(type(cache) is not KVCache for cache in caches):
            return caches, 0
        known = _common(before, tokens)
        for new, held in zip(caches, old, strict=True):
            new.state = (held.keys[..., :known, :], held.values[..., :known, :], known)
        return caches, known

    # ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self) -> None:
        """Feed every row its last token and sample the next, without waiting for the outcome.

        What the model's next pass needn't wait for is left to the side stream.
        """
        logits = self.model.network(self.fed[:, None], cache=self.caches)[:, -1, :]
        self.keys = self.keys + mx.array([0, 1], mx.uint32)
        with mx.stream(self.side):
            chances = None if self.controls.all_greedy else sampler.uniforms(self.keys)
        self.seen = self._held(logits.shape[-1]) if self.controls.penalised else None
        self.fed, drawn = sampler.draw(logits, chances, self.controls, self.seen)
        with mx.stream(self.side):
            model = drawn if self.controls.plain else sampler.model_logprobs(logits, self.fed)
            self.scored = mx.stack([drawn, model])
        mx.async_eval(self.fed, self.scored, self.keys)

    def _held(self, vocabulary: int) -> mx.array:
        """(rows, vocabulary): true for tokens of the row's prompt and completion, as far as it has been fed."""
        if self.seen is None:
            held = np.zeros((len(self.rows), vocabulary), np.bool_)
            for place, row in enumerate(self.rows):
                held[place, row.job.tokens + row.tokens] = True
            self.seen = mx.array(held)  # pyright: ignore[reportArgumentType] (NumPy's arrays are taken)
        return mx.put_along_axis(self.seen, self.fed[:, None], mx.array(True), axis=-1)

    def _read(self, fed: list[int], drawn: list[float], model: list[float]) -> Iterator[Job]:
        for row, token, logprob, model_logprob in zip(self.rows, fed, drawn, model, strict=True):
            if row.done:
                continue
            if not row.primed:
                row.primed = True
                continue
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.model_logprobs.append(model_logprob)
            if token in self.stops or self.speech.stopped(row.tokens):
                yield from self._finish(row, "stop")
            elif len(row.tokens) >= row.job.limit:
                yield from self._finish(row, "length")

    def _finish(self, row: Row, reason: Literal["stop", "length"]) -> Iterator[Job]:
        row.done = True
        job = row.job
        spoken = row.tokens[:-1] if row.tokens[-1] in self.stops else row.tokens
        job.rollouts[row.index] = Rollout(
            id=short("r", job.prompt.id, row.index),
            index=row.index,
            text=self.speech.text(spoken),
            token_ids=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            finish_reason=reason,
            seed=row.seed,
            model_logprobs=tuple(row.model_logprobs),
        )
        job.left -= 1
        if not job.left:
            yield job


def growing(network: Any) -> int:
    """How many of a model's caches grow with the text; those of linear attention hold a state of one size."""
    return sum(not isinstance(cache, ArraysCache) for cache in make_prompt_cache(network))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[:WORTH_SHARING] == other[:WORTH_SHARING] and min(len(one), len(other)) >= WORTH_SHARING


def _single(batch: Any, row: int, length: int) -> KVCache:
    """The cache of one row of a batch that was padded on the right."""
    cache = KVCache()
    keys, values = (mx.contiguous(part[row : row + 1, :, :length]) for part in (batch.keys, batch.values))
    cache.state = (keys, values, length)
    return cache


def decodes_in_batches(network: Any) -> bool:
    """Whether two rows of different lengths get the same logits together as each alone, but for rounding: it is tried."""
    tokens = [[1, 2, 3, 4, 5], [7, 6, 5]]
    alone = mx.concatenate([network(mx.array([row]))[:, -1] for row in tokens])
    read = [make_prompt_cache(network) for _ in tokens]
    try:
        for row, caches in zip(tokens, read, strict=True):
            network(mx.array([row[:-1]]), cache=caches)
        together = network(mx.array([[row[-1]] for row in tokens]), cache=_batched(read))[:, -1]
        return alike(together, alone)
    except BREAKDOWNS:
        return False


def _batched(caches: list[list[Any]]) -> list[Any]:
    """One batch cache a layer from one list of layers a row."""
    merged = [layer[0].merge(list(layer)) for layer in zip(*caches, strict=True)]
    for cache in merged:
        if type(cache) is BatchKVCache:
            cache.__class__ = RowsCache
    return merged
