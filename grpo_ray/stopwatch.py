"""How long a crew was at each kind of work: wall time during which at least one piece of it was under way."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

from grpo_ray.protocols import Crew, Generators, Judges, Trainers
from grpo_ray.types import Adapter, Evaluation, Group, Lesson, LostGroup, Update, Wave


class Stopwatch:
    """Seconds by stage; pieces of one stage that overlap are counted once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: dict[str, int] = {}
        self._since: dict[str, float] = {}

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Inside, one more piece of `stage` is under way."""
        if not self._running.get(stage):
            self._since[stage] = perf_counter()
        self._running[stage] = self._running.get(stage, 0) + 1
        try:
            yield
        finally:
            self._running[stage] -= 1
            if not self._running[stage]:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - self._since[stage]


def timed(crew: Crew) -> tuple[Crew, Stopwatch]:
    """The same crew, and a watch that says how long it sampled, judged and trained."""
    watch = Stopwatch()
    trainers = _Trainers(crew.trainers, watch) if crew.trainers else None
    return replace(
        crew, generators=_Generators(crew.generators, watch), judges=_Judges(crew.judges, watch), trainers=trainers
    ), watch


class _Generators:
    def __init__(self, inner: Generators, watch: Stopwatch) -> None:
        self._inner, self._watch = inner, watch

    async def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        with self._watch.on("sample"):
            async for group in self._inner.sample(wave, adapter):
                yield group


class _Judges:
    def __init__(self, inner: Judges, watch: Stopwatch) -> None:
        self._inner, self._watch = inner, watch

    async def evaluate(self, step: int, group: Group) -> tuple[Evaluation, ...]:
        with self._watch.on("judge"):
            return await self._inner.evaluate(step, group)


class _Trainers:
    def __init__(self, inner: Trainers, watch: Stopwatch) -> None:
        self._inner, self._watch = inner, watch

    async def update(self, adapter: Adapter | None, lessons: Sequence[Lesson], seed: int) -> Update:
        with self._watch.on("train"):
            return await self._inner.update(adapter, lessons, seed)
