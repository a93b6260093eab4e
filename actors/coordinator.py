"""Hosts the loop: takes a run's steps, holds the exam at the end, and passes on what people want of it."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from time import monotonic, perf_counter
from typing import Any

from grpo_ray import exam, loop
from grpo_ray.canonical import plain
from grpo_ray.crew import StoreControl
from grpo_ray.errors import MissingError, RunLocked
from grpo_ray.launch import open_archive
from grpo_ray.operations import state_hash
from grpo_ray.protocols import Archive, Crew
from grpo_ray.recipe import Config
from grpo_ray.secrets_file import read_secrets
from grpo_ray.stopwatch import timed
from grpo_ray.types import TaskSet

MakeCrew = Callable[[Archive, TaskSet], AbstractAsyncContextManager[Crew]]
LOCK_S = 30.0
"""How long a run's last holder, perhaps just killed, may take to let go of it."""


class Coordinator:
    """Keeps nothing that the store doesn't have: begun again, it goes on from the newest saved state."""

    def __init__(self, config: Config, run: str, make_crew: MakeCrew) -> None:
        self._config, self._run, self._make_crew = config, run, make_crew
        self._archive: Archive | None = None
        self._held, self._turn = AsyncExitStack(), asyncio.Lock()

    async def open(self) -> None:
        """Open the store and hold the run. Raises UnreachableError, RunLocked, MissingError."""
        async with self._turn:
            if self._archive is None:
                read_secrets(self._config.placement.home)
                archive = await open_archive(self._config.placement)
                self._held.push_async_callback(archive.close)
                await hold(archive, self._run)
                self._archive = archive

    async def conduct(self, tasks: TaskSet) -> dict[str, Any]:
        """The run from where it is to its end, or to where someone says stop."""
        await self.open()
        assert self._archive is not None
        async with self._make_crew(self._archive, tasks) as crew:
            return await conduct(self._archive, self._run, crew)

    async def close(self) -> None:
        await self._held.aclose()

    def __repr__(self) -> str:
        return f"Coordinator[{self._run}]"


async def conduct(archive: Archive, run: str, crew: Crew) -> dict[str, Any]:
    """Take the run's steps and, once all are taken, hold the exam and keep its outcome.

    Returns run, step, steps, finished, state_hash. A person's fault comes out bare, not in an ExceptionGroup.
    """
    try:
        return await _conduct(archive, run, crew)
    except BaseExceptionGroup as faults:
        raise _first(faults) from None


async def hold(archive: Archive, run: str) -> None:
    """Lock the run; its last holder gets LOCK_S to let go. Raises RunLocked."""
    deadline = monotonic() + LOCK_S
    while True:
        try:
            return await archive.lock(run)
        except RunLocked:
            if monotonic() > deadline:
                raise
        await asyncio.sleep(0.5)


async def _conduct(archive: Archive, run: str, crew: Crew) -> dict[str, Any]:
    states = await crew.store.states()
    if not states:
        raise MissingError(f"run {run} has no saved state; begin a new one")
    began = perf_counter()
    watched, watch = timed(crew)
    state = await loop.run(states[-1], watched, StoreControl(archive, run))
    seconds = {**watch.seconds, "steps": perf_counter() - began}
    finished = state.step >= state.recipe.steps
    if finished and not await crew.store.load_outcome():
        outcome = plain(await exam.outcome(states[0].population, state, crew))
        seconds["outcome"] = perf_counter() - began - seconds["steps"]
        await crew.store.save_outcome({**outcome, "seconds": seconds})
    return {
        "run": run,
        "step": state.step,
        "steps": state.recipe.steps,
        "finished": finished,
        "state_hash": state_hash(state),
    }


def _first(faults: BaseExceptionGroup) -> BaseException:
    """The first fault of a tree of groups; the others follow from it."""
    first = faults.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
