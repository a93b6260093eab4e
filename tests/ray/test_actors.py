"""The same recipe in this process and on Ray, with actors killed on the way: one RunState."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from little import stage
from ray.exceptions import RayActorError

from actors import cluster
from actors.coordinator import conduct
from actors.driver import finished, preflight
from grpo_ray.crew import local_crew
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.launch import open_archive
from grpo_ray.operations import state_hash
from grpo_ray.protocols import Archive
from grpo_ray.recipe import Config, JudgeSpec, Named, Recipe, RunState

pytestmark = [pytest.mark.ray, pytest.mark.postgres]
NOWHERE = "http://127.0.0.1:9/v1"
"""No endpoint: nothing in these runs asks one."""
Meddle = Callable[[cluster.Cast, Archive, str], Awaitable[None]]


def recipe(**changes: Any) -> Recipe:
    slow = {
        "generator": Named(name="canned", settings={"seconds": 0.3}),
        "trainer": Named(name="canned", settings={"seconds": 0.3}),
    }
    return stage.recipe(**(slow | changes))


async def in_process(plan: Recipe) -> RunState:
    """The state that the recipe comes to without Ray."""
    state = stage.beginning(plan)
    archive = await stage.archive_with(state)
    config = Config(recipe=plan, placement=replace(stage.config(plan).placement, generators=2))
    async with local_crew(config, archive, state.run, stage.TASKS, NOWHERE) as crew:
        await conduct(archive, state.run, crew)
        end = await crew.store.load_state()
    assert end is not None
    return end


async def on_ray(plan: Recipe, run: str, home: Path, meddle: Meddle | None = None) -> tuple[RunState, dict[str, Any]]:
    """The state that the recipe comes to over actors, and what the coordinator said at the end."""
    config = stage.config(plan, home=str(home), generators=2, judges=2, control_port=0)
    archive = await open_archive(config.placement)
    try:
        await archive.create_run(stage.beginning(plan, run))
        async with cluster.on_stage(config, run, NOWHERE) as cast:
            meddling = asyncio.create_task(meddle(cast, archive, run)) if meddle else None
            summary = await finished(cast.coordinator, stage.TASKS)
            if meddling:
                await meddling
        end = await (await archive.open(run)).load_state()
        assert end is not None
        return end, summary
    finally:
        await archive.close()


def killing(role: str) -> Meddle:
    """Kill the process of the first actor of a role as soon as the second step has begun."""

    async def kill(cast: cluster.Cast, archive: Archive, run: str) -> None:
        found = getattr(cast, role)
        victim = ray.get_actor(found if isinstance(found, str) else found[0])
        before = await process(victim)
        await until(lambda: stepped(archive, run))
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await until(lambda: reborn(victim, before))

    return kill


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def stepped(archive: Archive, run: str) -> bool:
    return (await archive.progress(run))["step"] >= 1


async def reborn(actor: Any, before: int) -> bool:
    return await process(actor) not in (None, before)


async def process(actor: Any) -> int | None:
    """The actor's process; None while it has none."""
    try:
        return await actor.__ray_call__.remote(lambda self: os.getpid())
    except RayActorError:
        return None


@pytest.fixture(scope="module")
def expected() -> RunState:
    return asyncio.run(in_process(recipe()))


def test_ray_and_one_process_come_to_an_equal_state(cluster_up: None, home: Path, expected: RunState) -> None:
    end, summary = asyncio.run(on_ray(recipe(), "whole", home))
    assert replace(end, run=expected.run) == expected
    assert summary["finished"]
    assert summary["state_hash"] == state_hash(expected)


@pytest.mark.parametrize("role", ["generators", "judges", "trainers", "gate", "control", "coordinator"])
def test_killing_an_actor_in_the_middle_changes_nothing(
    role: str, cluster_up: None, home: Path, expected: RunState
) -> None:
    end, summary = asyncio.run(on_ray(recipe(), f"without-{role}", home, killing(role)))
    assert replace(end, run=expected.run) == expected
    assert summary["finished"]


def test_killing_one_of_two_trainers_begins_their_update_again(
    cluster_up: None, home: Path, expected: RunState
) -> None:
    end, summary = asyncio.run(on_ray(recipe(trainers=2), "without-one-of-two", home, killing("trainers")))
    assert replace(end, run=expected.run, recipe=expected.recipe) == expected
    assert summary["finished"]


def test_a_person_s_fault_in_an_actor_comes_out_bare(cluster_up: None, home: Path) -> None:
    wrong = recipe(judges=(JudgeSpec(name="verifyer"),))
    with pytest.raises(MissingError, match="did you mean 'verifier'"):
        asyncio.run(on_ray(wrong, "wrong", home))


def test_a_cluster_without_mlx_is_refused_before_anything_waits(cluster_up: None) -> None:
    needed = cluster.needs(stage.config(stage.recipe(generator=Named(name="mlx")), generators=9))
    with pytest.raises(ConfigError, match=r"mlx: 5\.4 needed, 4 there"):
        preflight(needed)
