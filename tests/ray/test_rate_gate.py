"""One gate for all processes: one limit, one purse; a dead one is begun again and knows from the store what was spent."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from little import stage

from actors import rate_gate
from grpo_ray.launch import open_archive
from grpo_ray.llm.gate import Outcome, Spent, door_of
from grpo_ray.recipe import Config, OracleSpec
from grpo_ray.types import Attempt

pytestmark = [pytest.mark.ray, pytest.mark.postgres]

SPEC = OracleSpec(base_url="http://127.0.0.1:9/v1", model="m", concurrency=4, max_usd=1.0, usd_per_million=(1.0, 1.0))
DOOR = door_of(SPEC, SPEC.base_url)
HALF = Outcome("ok", prompt_tokens=500_000)
Work = Callable[[rate_gate.Gate, Any], Awaitable[None]]


@ray.remote
class Neighbour:
    """Another process that goes through the same gate."""

    def __init__(self, gate: rate_gate.Gate) -> None:
        self._gate = gate

    async def enter(self) -> int:
        return await self._gate.enter(DOOR, 1, 60.0)

    async def leave(self, lease: int, outcome: Outcome) -> None:
        await self._gate.leave(DOOR, lease, outcome)


def gated(home: Path, run: str, work: Work, spent: float = 0.0) -> None:
    """Do `work` at the gate of a run that has spent so much; the actor comes with it."""

    async def main() -> None:
        plan = stage.recipe(oracle=SPEC)
        config = Config(recipe=plan, placement=stage.config(plan, home=str(home)).placement)
        archive = await open_archive(config.placement)
        try:
            await archive.create_run(stage.beginning(plan, run))
            store = await archive.open(run)
            await store.save_attempts([Attempt("r", DOOR, "s", 1, "ok", 0.0, 1.0, 1, 1, spent)])
            kind: Any = ray.remote(rate_gate.RateGate)
            actor = kind.options(name=run, max_restarts=-1, num_cpus=0, max_concurrency=rate_gate.CALLERS).remote(
                config, run
            )
            try:
                await actor.open.remote()
                await work(rate_gate.Gate(run), actor)
            finally:
                ray.kill(actor)
        finally:
            await archive.close()

    asyncio.run(main())


async def used(actor: Any) -> int:
    return await actor.__ray_call__.remote(lambda self: self._gate.doors[DOOR].slots.used)


async def until_used(actor: Any, count: int) -> None:
    async with asyncio.timeout(60):
        while await used(actor) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_two_processes_share_one_limit_and_one_purse(cluster_up: None, home: Path) -> None:
    async def work(gate: rate_gate.Gate, actor: Any) -> None:
        neighbour: Any = Neighbour.remote(gate)
        mine = await gate.enter(DOOR, 1, 60.0)
        theirs = await neighbour.enter.remote()  # a gate begins with half its slots: both are taken
        waiting = asyncio.create_task(gate.enter(DOOR, 1, 60.0))
        await until_waiting(actor, 1)
        assert await used(actor) == 2 and not waiting.done()
        await neighbour.leave.remote(theirs, HALF)
        await gate.leave(DOOR, await waiting, Outcome("failed"))
        await gate.leave(DOOR, mine, HALF)
        assert await used(actor) == 0
        with pytest.raises(Spent, match="is spent") as fault:
            await gate.enter(DOOR, 1, 60.0)
        assert (fault.value.door, fault.value.max_usd) == (DOOR, 1.0)
        await gate.allow(DOOR, 2.0)
        await gate.leave(DOOR, await neighbour.enter.remote(), HALF)
        ray.kill(neighbour)

    gated(home, "gate-shared", work)


async def until_waiting(actor: Any, count: int) -> None:
    async with asyncio.timeout(60):
        while count != await actor.__ray_call__.remote(lambda self: len(self._gate.doors[DOOR].slots._queue)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_a_gate_that_was_killed_knows_from_the_store_what_was_spent(cluster_up: None, home: Path) -> None:
    async def work(gate: rate_gate.Gate, actor: Any) -> None:
        lease = await gate.enter(DOOR, 1, 60.0)
        os.kill(await actor.__ray_call__.remote(lambda self: os.getpid()), signal.SIGKILL)
        await gate.leave(DOOR, lease, Outcome("ok", prompt_tokens=100_000))  # of the gate before
        assert await used(actor) == 0
        await gate.leave(DOOR, await gate.enter(DOOR, 1, 60.0), Outcome("ok", prompt_tokens=200_000))
        with pytest.raises(Spent, match=r"\$1\.00 of \$1"):  # 0.7 before, 0.1 and 0.2 since
            await gate.enter(DOOR, 1, 60.0)

    gated(home, "gate-killed", work, spent=0.7)


def test_a_caller_that_goes_away_leaves_no_slot_taken(cluster_up: None, home: Path) -> None:
    async def work(gate: rate_gate.Gate, actor: Any) -> None:
        held = [await gate.enter(DOOR, 1, 60.0) for _ in range(2)]
        waiting = asyncio.create_task(gate.enter(DOOR, 1, 60.0))
        await until_waiting(actor, 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        for lease in held:
            await gate.leave(DOOR, lease, Outcome("given_up"))
        await until_used(actor, 0)
        hasty = [asyncio.create_task(gate.enter(DOOR, 1, 60.0)) for _ in range(2)]
        await until_used(actor, 2)  # their turn has come, and they may not have heard of it
        for one in hasty:
            one.cancel()
        said = await asyncio.gather(*hasty, return_exceptions=True)
        for lease in (one for one in said if isinstance(one, int)):
            await gate.leave(DOOR, lease, Outcome("given_up"))
        await until_used(actor, 0)

    gated(home, "gate-left", work)


def test_a_crowd_in_the_line_does_not_keep_those_inside_from_leaving(cluster_up: None, home: Path) -> None:
    async def work(gate: rate_gate.Gate, actor: Any) -> None:
        held = [await gate.enter(DOOR, 1, 60.0) for _ in range(2)]
        crowd = [asyncio.create_task(gate.enter(DOOR, 1, 300.0)) for _ in range(1200)]
        await asyncio.sleep(0)
        for lease in held:
            await asyncio.wait_for(gate.leave(DOOR, lease, Outcome("failed")), 30)
        done, _ = await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        assert done
        for one in crowd:
            one.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)

    gated(home, "gate-crowd", work)
