"""Completions from a model in this process, through mlx-lm: continuous batching over a wave.

A group's prompt is read once and its cache handed to all rollouts; `slots` sequences are decoded at once, and places
that fall free are filled with the next rollouts of the wave, in order. When that happens depends on tokens alone,
never on time, and nothing outlives the wave: same wave, same adapter, same hardware, same bytes.

All that touches mlx-lm's caches (its version is pinned for them) is in this file.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

from grpo_ray import mlx_model
from grpo_ray.canonical import digest, short
from grpo_ray.mlx_model import mx, numbers
from grpo_ray.protocols import Generator
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, Message, Prompt, Rollout, Sampling, Wave

from mlx_lm.models.cache import KVCache, make_prompt_cache  # isort: skip  (mlx_model puts the BLAS in place first)

WORTH_SHARING = 16
"""Tokens that two prompts must begin with alike before the second takes over the first's cache."""


def make_generator(*, model: str, prefill: int = 512) -> Generator:
    """Load `model` on this thread; `prefill` prompt tokens are read at a time."""
    return MlxGenerator(mlx_model.load(model), prefill)


@dataclass(slots=True)
class _Job:
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


@dataclass(slots=True)
class _Row:
    """One sequence being decoded."""

    job: _Job
    index: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    primed: bool = False
    """False until the prompt's last token, which is fed like a sampled one, has gone by."""
    done: bool = False


class MlxGenerator:
    """The model, the adapter in place, and `sample`."""

    def __init__(self, model: mlx_model.Model, prefill: int) -> None:
        self.model = model
        self.prefill = prefill
        self.adapter: str | None = None

    def sample(self, wave: Wave, adapter: Adapter | None, content: AdapterBytes | None) -> Iterator[Group | LostGroup]:
        self._place(adapter, content)
        jobs: list[_Job] = []
        for prompt in wave.prompts:
            job = self._job(prompt, wave.sampling)
            if isinstance(job, LostGroup):
                yield job
            else:
                jobs.append(job)
        decoder = _Decoder(self.model, wave.sampling, self.prefill)
        for job in decoder.run(jobs):
            yield self._group(job, wave.sampling)

    def close(self) -> None:
        mlx_model.release()

    def _place(self, adapter: Adapter | None, content: AdapterBytes | None) -> None:
        wanted = adapter.hash if adapter else None
        if wanted == self.adapter:
            return
        if adapter and content is None:
            raise ValueError(f"the adapter {adapter.hash} came without its weights")
        self.adapter = ""  # neither, should the swap fail
        mlx_model.swap(self.model, content.weights if content else None)
        self.adapter = wanted

    def _job(self, prompt: Prompt, sampling: Sampling) -> _Job | LostGroup:
        """The prompt's tokens, or why it has none that can be answered."""
        try:
            tokens = encode(self.model, prompt.messages)
        except Exception as fault:  # the boundary: a chat template is the model's own program and may raise anything
            return _lost(prompt, f"the chat template of {self.model.name!r} failed: {type(fault).__name__}: {fault}")
        room = self.model.context - len(tokens)
        if not tokens:
            return _lost(prompt, "the prompt is empty")
        if room < 1:
            return _lost(prompt, f"the prompt has {len(tokens)} tokens, the model's context {self.model.context}")
        return _Job(prompt, tokens, min(sampling.max_tokens, room), sampling.group_size)

    def _group(self, job: _Job, sampling: Sampling) -> Group | LostGroup:
        if not all(isfinite(logprob) for rollout in job.rollouts.values() for logprob in rollout.logprobs):
            return _lost(
                job.prompt, f"{self.model.name!r} with adapter {self.adapter} gives numbers that aren't finite"
            )
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


class _Decoder:
    """One wave: rows decode in step, a finished job leaves at once, free places are filled in order."""

    def __init__(self, model: mlx_model.Model, sampling: Sampling, prefill: int) -> None:
        self.model = model
        self.sampling = sampling
        self.prefill = prefill
        self.stops = set(model.tokenizer.eos_token_ids)
        self.rows: list[_Row] = []
        self.waiting: deque[_Row] = deque()
        self.caches: list[Any] = []
        self.fed = mx.zeros((0,), mx.uint32)
        """(rows,): the token each row was given last: sampled, or the end of its prompt."""
        self.scored = mx.zeros((0,), mx.float32)
        self.keys = mx.zeros((0, 2), mx.uint32)
        self.last: tuple[list[int], list[Any]] = ([], [])
        """The prompt read last and its caches: prompts of one template begin alike."""

    def run(self, jobs: Sequence[_Job]) -> Iterator[_Job]:
        """Yield each job when its last rollout is whole."""
        self.waiting.extend(
            _Row(job, index, rollout_seed(self.sampling.seed, job.prompt.id, index))
            for job in jobs
            for index in range(self.sampling.group_size)
        )
        while self.waiting or any(not row.done for row in self.rows):
            self._refill()
            fed, scored = self.fed, self.scored
            self._step()  # the next tokens are under way while these are looked at
            yield from self._read(numbers(fed), numbers(scored))

    def _refill(self) -> None:
        """Drop finished rows and start waiting ones, a quarter of the slots at a time: each change copies caches."""
        keep = [place for place, row in enumerate(self.rows) if not row.done]
        share = max(1, self.sampling.slots // 4)
        free = self.sampling.slots - len(keep)
        fresh = min(free, len(self.waiting))
        if keep and (free < share or (not fresh and len(self.rows) - len(keep) < share)):
            return
        if len(keep) < len(self.rows):
            self._keep(keep)
        if fresh:
            self._start([self.waiting.popleft() for _ in range(fresh)])

    def _keep(self, places: list[int]) -> None:
        self.rows = [self.rows[place] for place in places]
        if not places:
            self.caches = []
        for cache in self.caches:
            cache.filter(places)
        index = mx.array(places, mx.uint32)
        self.fed, self.scored, self.keys = self.fed[index], self.scored[index], self.keys[index]

    def _start(self, rows: list[_Row]) -> None:
        fresh = _batched([self._read_prompt(row.job) for row in rows])
        for row in rows:
            if row.index == self.sampling.group_size - 1:
                row.job.caches = None
        for old, new in zip(self.caches, fresh, strict=bool(self.caches)):
            old.extend(new)
        self.caches = self.caches or fresh
        self.rows += rows
        self.fed = mx.concatenate([self.fed, mx.array([row.job.tokens[-1] for row in rows], mx.uint32)])
        self.scored = mx.concatenate([self.scored, mx.zeros((len(rows),))])
        self.keys = mx.concatenate([self.keys, mx.stack([mx.random.key(row.seed) for row in rows])])

    def _read_prompt(self, job: _Job) -> list[Any]:
        """The caches of the prompt without its last token; read once for all rollouts of the job."""
        if job.caches is None:
            job.started = time.monotonic()
            job.caches, known = self._begun(job.tokens[:-1])
            for start in range(known, len(job.tokens) - 1, self.prefill):
                chunk = job.tokens[start : min(start + self.prefill, len(job.tokens) - 1)]
                self.model.network(mx.array(chunk)[None], cache=job.caches)
                mx.eval([cache.state for cache in job.caches])
            self.last = (job.tokens[:-1], job.caches)
        return job.caches

    def _begun(self, tokens: list[int]) -> tuple[list[Any], int]:
        """Caches that hold as many of the tokens as the prompt before began with too, and how many those are."""
        caches = make_prompt_cache(self.model.network)
        before, old = self.last
        alike = [ours == theirs for ours, theirs in zip(tokens, before, strict=False)]
        known = alike.index(False) if False in alike else len(alike)
        if known < WORTH_SHARING or any(type(cache) is not KVCache for cache in caches):
            return caches, 0
        for new, held in zip(caches, old, strict=True):
            new.state = (held.keys[..., :known, :], held.values[..., :known, :], known)
        return caches, known

    def _step(self) -> None:
        """Feed every row its last token and sample the next, without waiting for the outcome."""
        logits = self.model.network(self.fed[:, None], cache=self.caches)[:, -1, :]
        self.keys = self.keys + mx.array([0, 1], mx.uint32)
        self.fed, self.scored = draw(logits, self.keys, self.sampling)
        mx.async_eval(self.fed, self.scored, self.keys)

    def _read(self, fed: list[int], scored: list[float]) -> Iterator[_Job]:
        for row, token, logprob in zip(self.rows, fed, scored, strict=True):
            if row.done:
                continue
            if not row.primed:
                row.primed = True
                continue
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if token in self.stops:
                yield from self._finish(row, "stop")
            elif len(row.tokens) >= row.job.limit:
                yield from self._finish(row, "length")

    def _finish(self, row: _Row, reason: Literal["stop", "length"]) -> Iterator[_Job]:
        row.done = True
        job = row.job
        spoken = row.tokens[:-1] if reason == "stop" else row.tokens
        job.rollouts[row.index] = Rollout(
            id=short("r", job.prompt.id, row.index),
            index=row.index,
            text=self.model.tokenizer.decode(spoken, skip_special_tokens=True),
            token_ids=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            finish_reason=reason,
            seed=row.seed,
        )
        job.left -= 1
        if not job.left:
            yield job


def encode(model: mlx_model.Model, messages: Sequence[Message]) -> list[int]:
    """A conversation's token ids, up to where the answer begins; without a chat template its contents, joined."""
    tokenizer = model.tokenizer
    if not tokenizer.has_chat_template:
        return list(tokenizer.encode("\n\n".join(message.content for message in messages)))
    said = [{"role": message.role, "content": message.content} for message in messages]
    return list(tokenizer.apply_chat_template(said, add_generation_prompt=True))


def draw(logits: mx.array, keys: mx.array, sampling: Sampling) -> tuple[mx.array, mx.array]:
    """One token a row, and its log-probability under what it was drawn from.

    logits (rows, vocabulary); keys (rows, 2), one a row, so that what shares a batch doesn't matter. Temperature
    first, then top-k, then top-p, as Hugging Face and vLLM do. Temperature 0 takes the likeliest: log-probability 0.
    """
    logits = logits.astype(mx.float32)
    if sampling.temperature == 0:
        return mx.argmax(logits, axis=-1).astype(mx.uint32), mx.zeros((logits.shape[0],))
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _only_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = _only_top_p(logits, sampling.top_p)
    noise = mx.vmap(lambda row, key: mx.random.gumbel(row.shape, key=key))(logits, keys)
    tokens = mx.argmax(logits + noise, axis=-1).astype(mx.uint32)
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - mx.logsumexp(logits, axis=-1)


def _only_top_k(logits: mx.array, k: int) -> mx.array:
    least = mx.min(mx.topk(logits, k, axis=-1), axis=-1, keepdims=True)
    return mx.where(logits >= least, logits, -mx.inf)


def _only_top_p(logits: mx.array, p: float) -> mx.array:
    """Keep the likeliest tokens up to and with the one that brings them to `p`."""
    order = mx.argsort(-logits, axis=-1)
    shares = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
    before = mx.cumsum(shares, axis=-1) - shares
    kept = mx.where(before < p, mx.take_along_axis(logits, order, axis=-1), -mx.inf)
    return mx.put_along_axis(logits, order, kept, axis=-1)


def rollout_seed(seed: int, prompt_id: str, index: int) -> int:
    """The seed of one rollout: 63 bits of the digest of where it stands."""
    return int(digest([seed, prompt_id, index])[:16], 16) >> 1


def _batched(caches: list[list[Any]]) -> list[Any]:
    """One batch cache a layer from one list of layers a row."""
    return [layer[0].merge(list(layer)) for layer in zip(*caches, strict=True)]


def _lost(prompt: Prompt, reason: str) -> LostGroup:
    return LostGroup(short("g", prompt.id), prompt, reason)
