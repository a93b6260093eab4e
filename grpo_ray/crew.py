"""The crew in one process: each synchronous backend on a thread of its own, asynchronous pools over them, no Ray.

What is here and says nothing of threads (the judges' boundary, the oracle, the control) is what actors use too.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from threading import Event
from typing import Any, Generic, Protocol, TypeVar

from grpo_ray.backends import make_generator, make_trainer
from grpo_ray.checker import Checker
from grpo_ray.continuous import batched
from grpo_ray.judging import LocalJudges
from grpo_ray.llm.gate import Gate, RateGate, specs_of, spent
from grpo_ray.oracle import make_oracle
from grpo_ray.protocols import Archive, Crew, Generator, Oracle, Store, Trainer, Tunable
from grpo_ray.recipe import Config, Recipe, RunState
from grpo_ray.types import (
    Adapter,
    AdapterBytes,
    Group,
    Lesson,
    LostGroup,
    SlotsFound,
    TaskSet,
    Update,
    Wave,
)

POLL_S = 0.5
"""How often a paused run looks whether it may go on."""
CONTENTS = 3
"""Adapters whose bytes are kept in memory; a lag of n needs n + 1."""


class Closable(Protocol):
    def close(self) -> None: ...


B = TypeVar("B", bound=Closable)
T = TypeVar("T")


class Desk(Generic[B]):
    """One thread on which a backend is made, used and closed: MLX's streams and caches belong to their thread."""

    def __init__(self, make: Callable[[], B]) -> None:
        self._make = make
        self._backend: B | None = None
        self._thread = ThreadPoolExecutor(1)

    async def use(self, work: Callable[[B], T]) -> T:
        """What `work` returns of the backend, which is made at the first use."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._mine()))

    async def stream(self, work: Callable[[B], Iterator[T]]) -> AsyncIterator[T]:
        """What `work` yields, item by item. Left early, the thread stops after the item it is at."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[T] | None] = asyncio.Queue()
        left = Event()

        def pump() -> None:
            for item in work(self._mine()):
                if left.is_set():
                    return
                loop.call_soon_threadsafe(arrived.put_nowait, (item,))

        flow = loop.run_in_executor(self._thread, pump)
        flow.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while boxed := await arrived.get():
                yield boxed[0]
            await flow
        finally:
            left.set()

    async def close(self) -> None:
        """Close the backend, when one was made, and end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._finish)
        self._thread.shutdown(wait=False)

    def _mine(self) -> B:
        if self._backend is None:
            self._backend = self._make()
        return self._backend

    def _finish(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None


class Contents:
    """Adapter bytes by hash, from the store, the last few kept in memory."""

    def __init__(self, store: Store, keep: int = CONTENTS) -> None:
        self._store, self._keep = store, keep
        self._known: dict[str, AdapterBytes] = {}
        self._turn = asyncio.Lock()

    async def of(self, adapter: Adapter | None) -> AdapterBytes | None:
        """The bytes of `adapter`; None for the base model."""
        if adapter is None:
            return None
        async with self._turn:
            content = self._known.pop(adapter.hash, None) or await self._store.load_adapter(adapter.hash)
            self._known[adapter.hash] = content
            while len(self._known) > self._keep:
                del self._known[next(iter(self._known))]
            return content


class LocalGenerators:
    """Waves go to whichever generator is free, in the order they were asked for."""

    def __init__(self, desks: Sequence[Desk[Generator]], contents: Contents) -> None:
        self._contents = contents
        self._free: asyncio.Queue[Desk[Generator]] = asyncio.Queue()
        for desk in desks:
            self._free.put_nowait(desk)

    async def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        content = await self._contents.of(adapter)
        desk = await self._free.get()
        try:
            async for group in desk.stream(lambda backend: backend.sample(wave, adapter, content)):
                yield group
        finally:
            self._free.put_nowait(desk)


Ask = Callable[..., Awaitable[Any]]
"""One trainer of several: `await ask(verb, *arguments)`, the verbs being those of the Trainer protocol."""


async def share_update(
    trainers: Sequence[Ask], adapter: Adapter | None, content: AdapterBytes | None, lessons: Sequence[Lesson], seed: int
) -> Update:
    """One update by several trainers: each takes a share of every step's groups, all add up the same slopes."""

    async def all_of(verb: str, *given: Any) -> list[Any]:
        return await asyncio.gather(*(ask(verb, *given) for ask in trainers))

    begun = [ask("begin", adapter, content, lessons, seed, rank, len(trainers)) for rank, ask in enumerate(trainers)]
    for step in range((await asyncio.gather(*begun))[0]):
        slopes = await all_of("slope", step)
        if any(await all_of("apply", slopes)):
            break
    return (await all_of("end"))[0]


class LocalTrainers:
    """One trainer takes an update as a whole; several share it."""

    def __init__(self, desks: Sequence[Desk[Trainer]], contents: Contents) -> None:
        self._desks, self._contents = desks, contents

    async def update(self, adapter: Adapter | None, lessons: Sequence[Lesson], seed: int) -> Update:
        content = await self._contents.of(adapter)
        if len(self._desks) == 1:
            return await self._desks[0].use(lambda backend: backend.update(adapter, content, lessons, seed))
        return await share_update([_asking(desk) for desk in self._desks], adapter, content, lessons, seed)


def _asking(desk: Desk[Trainer]) -> Ask:
    return lambda verb, *given: desk.use(lambda backend: getattr(backend, verb)(*given))


class StoreControl:
    """People's hands on the loop, through what the archive says they want."""

    def __init__(self, archive: Archive, run: str) -> None:
        self._archive, self._run = archive, run

    async def proceed(self, state: RunState) -> bool:
        """Whether to take another step, as the archive has it at this moment; a pause is looked at every POLL_S."""
        while (wanted := await self._archive.wanted(self._run)) == "pause":  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return wanted == "run"

    async def approve(self, state: RunState) -> RunState:
        """Nobody has asked to see a state before it counts, so it counts as it is."""
        return state


@asynccontextmanager
async def open_oracle(config: Config, archive: Archive, run: str, base_url: str, gate: Gate) -> AsyncIterator[Oracle]:
    """The oracle of one process: its own client and its own killable checker, recording in the run's store.

    Nobody outside this process can allow a run in memory more money, so such a run waits for none.
    """
    recipe, store = config.recipe, await archive.open(run)
    since = max((event["id"] for event in await archive.events(run)), default=0)
    money = {"since": since, "wait": config.placement.storage != "memory"}
    places = {"base_url": base_url, "archive": archive, "run": run, "further": recipe.oracles}
    oracle = make_oracle(recipe.oracle, store, gate=gate, checker=Checker(), **places, **money)
    try:
        yield oracle
    finally:
        await oracle.close()


@asynccontextmanager
async def local_crew(config: Config, archive: Archive, run: str, tasks: TaskSet, base_url: str) -> AsyncIterator[Crew]:
    """The crew in this process. Its models are loaded when it is handed over, and freed when it is given back."""
    recipe, store = config.recipe, await archive.open(run)
    contents = Contents(store, max(CONTENTS, recipe.lag + 2))
    async with AsyncExitStack() as stack:
        gate = RateGate.of(specs_of(recipe), spent(await store.attempts()))
        oracle = await stack.enter_async_context(open_oracle(config, archive, run, base_url, gate))
        desks = [await _manned(stack, lambda: make_generator(recipe)) for _ in range(config.placement.generators)]
        trainers = None
        if (named := recipe.trainer) is not None:
            make = partial(make_trainer, recipe.model, named)
            benches = [await _manned(stack, make) for _ in range(recipe.trainers)]
            trainers = LocalTrainers(benches, contents)
        generators = batched(LocalGenerators(desks, contents), len(desks), recipe)
        yield Crew(generators, LocalJudges(recipe, oracle, store), trainers, store, oracle, tasks)


async def find_slots(recipe: Recipe, wave: Wave) -> SlotsFound:
    """The slots that suit this machine, by a generator made for this alone; the wave's own where it can't measure."""

    def found(backend: Generator) -> SlotsFound:
        return backend.find_slots(wave) if isinstance(backend, Tunable) else SlotsFound(wave.sampling.slots)

    desk: Desk[Generator] = Desk(lambda: make_generator(recipe))
    try:
        return await desk.use(found)
    finally:
        await desk.close()


async def _manned(stack: AsyncExitStack, make: Callable[[], B]) -> Desk[B]:
    """A desk whose backend is made already, so that a wrong model is found before the run starts."""
    desk = Desk(make)
    stack.push_async_callback(desk.close)
    await desk.use(lambda backend: backend)
    return desk
