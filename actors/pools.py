"""The crew over actor handles. An actor that dies costs time, never the run's outcome:

a wave is sampled again elsewhere and what has come already is dropped; a group is judged again, and the recorded
replies say the same words; an update is made again, from the same bytes. With cluster.py the only `.remote`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from actors.calls import ATTEMPTS, Down, answer, insist, log, revived, watched
from grpo_ray.canonical import short
from grpo_ray.crew import Ask, Contents, share_update
from grpo_ray.errors import GrpoRayError, UnreachableError
from grpo_ray.judging import missing
from grpo_ray.recipe import Recipe
from grpo_ray.types import Adapter, AdapterBytes, Evaluation, Group, Lesson, LostGroup, SlotsFound, Update, Wave

GROUP_S, UPDATE_S = 1800.0, 3600.0
"""How long the next group of a wave, and an update, may take."""


class Parcels:
    """Adapter weights in Ray's object store, one reference a hash, owned by the coordinator's process."""

    def __init__(self, contents: Contents, keep: int = 3) -> None:
        self._contents, self._keep = contents, keep
        self._refs: dict[str, ray.ObjectRef] = {}

    async def of(self, adapter: Adapter | None) -> ray.ObjectRef | None:
        """The weights alone, which is all that a generator needs; None for the base model."""
        content = await self._contents.of(adapter)
        if adapter is None or content is None:
            return None
        if adapter.hash not in self._refs:
            self._refs[adapter.hash] = ray.put(AdapterBytes(content.weights, b""))
        while len(self._refs) > self._keep:
            del self._refs[next(iter(self._refs))]
        return self._refs[adapter.hash]


class Generators:
    """Waves go to whichever generator is free; one that died gets none until it answers again."""

    def __init__(self, names: Sequence[str], parcels: Parcels) -> None:
        self._parcels = parcels
        self._free: asyncio.Queue[ActorHandle | Exception] = asyncio.Queue()
        self._nursing: set[asyncio.Task[None]] = set()
        self._count = len(names)
        for name in names:
            self._free.put_nowait(ray.get_actor(name))

    async def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        parcel, seen, reason = await self._parcels.of(adapter), set[str](), ""
        for _ in range(ATTEMPTS):
            try:
                async with self._lent() as handle:
                    async for group in _unseen(_flow(handle, wave, adapter, parcel), seen):
                        yield group
                return
            except Down as fault:
                reason = str(fault)
                log.warning("%s; sampling wave %s again", reason, wave.id)
        for prompt in wave.prompts:
            if prompt.id not in seen:
                yield LostGroup(short("g", prompt.id), prompt, f"{ATTEMPTS} generators died over it; last: {reason}")

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[ActorHandle]:
        handle = await self._free.get()
        if isinstance(handle, Exception):
            self._free.put_nowait(handle)  # for the others who wait
            raise handle
        try:
            yield handle
        except Down:
            self._nurse(handle)
            raise
        except BaseException:
            self._free.put_nowait(handle)
            raise
        self._free.put_nowait(handle)

    def _nurse(self, handle: ActorHandle) -> None:
        task = asyncio.create_task(self._recover(handle))
        self._nursing.add(task)
        task.add_done_callback(self._nursing.discard)

    async def _recover(self, handle: ActorHandle) -> None:
        """Back to the free ones when it answers; while others work, it may take as long as it takes."""
        while True:
            try:
                await revived("a generator", handle)
                return self._free.put_nowait(handle)
            except (GrpoRayError, RayTaskError) as fault:
                if len(self._nursing) == self._count or not isinstance(fault, UnreachableError):
                    return self._free.put_nowait(fault)
                log.warning("%s; the others go on without it", fault)


async def find_slots(handles: Sequence[ActorHandle], wave: Wave) -> SlotsFound:
    """What the generator with the least room finds, so that every one of them can hold it."""

    async def ask(handle: ActorHandle) -> SlotsFound:
        call = partial(handle.find_slots.remote, wave)
        return await insist("a generator", [handle], lambda: answer("a generator", handle, call(), GROUP_S))

    return min(await asyncio.gather(*map(ask, handles)), key=lambda found: found.slots)


async def _flow(
    handle: ActorHandle, wave: Wave, adapter: Adapter | None, parcel: ray.ObjectRef | None
) -> AsyncIterator[Group | LostGroup]:
    """One streaming call a wave; each group's own deadline begins when the one before has come."""
    flow = handle.sample.options(num_returns="streaming").remote(wave, adapter, parcel)
    while (ref := await answer("a generator", handle, anext(flow, None), GROUP_S)) is not None:
        yield await answer("a generator", handle, ref, GROUP_S)


async def _unseen(groups: AsyncIterator[Group | LostGroup], seen: set[str]) -> AsyncIterator[Group | LostGroup]:
    """The groups whose prompt's id is not in `seen`, which they enter."""
    async for group in groups:
        if group.prompt.id not in seen:
            seen.add(group.prompt.id)
            yield group


class Judges:
    """Groups go round the judges; one that died is asked again when it answers."""

    def __init__(self, names: Sequence[str], recipe: Recipe) -> None:
        self._turns, self._recipe = cycle([ray.get_actor(name) for name in names]), recipe

    async def evaluate(self, step: int, group: Group) -> tuple[Evaluation, ...]:
        handle = next(self._turns)
        try:
            return await insist(
                "a judge", [handle], lambda: watched("a judge", handle, handle.evaluate.remote(step, group))
            )
        except UnreachableError as fault:
            return tuple(one for judge in self._recipe.judges for one in missing(group, judge.name, str(fault)))


class Trainers:
    """One trainer, or several that share each update; one that died with trainers is begun again, and so is the update."""

    def __init__(self, names: Sequence[str], contents: Contents) -> None:
        self._handles, self._contents = [ray.get_actor(name) for name in names], contents

    async def update(self, adapter: Adapter | None, lessons: Sequence[Lesson], seed: int) -> Update:
        content = await self._contents.of(adapter)
        if len(self._handles) == 1:
            (ask,) = self._asking()
            return await insist("the trainer", self._handles, lambda: ask("update", adapter, content, lessons, seed))
        return await insist(
            "a trainer", self._handles, lambda: share_update(self._asking(), adapter, content, lessons, seed)
        )

    def _asking(self) -> list[Ask]:
        return [partial(_ask_trainer, handle) for handle in self._handles]


async def _ask_trainer(handle: ActorHandle, verb: str, *given: Any) -> Any:
    return await answer("the trainer", handle, getattr(handle, verb).remote(*given), UPDATE_S)
