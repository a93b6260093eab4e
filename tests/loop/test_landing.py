"""A fault in one attempt, while other waves still bring groups: it comes out alone, and nothing is left lying."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from little import stage

from grpo_ray.loop import survey
from grpo_ray.population import plan_waves
from grpo_ray.protocols import Crew
from grpo_ray.types import Adapter, Group, LostGroup, Policy, Wave


class Ready:
    """Generators that have a group whenever they are asked for one."""

    async def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        for number, prompt in enumerate(wave.prompts):
            await asyncio.sleep(0)
            yield LostGroup(f"g-{number}", prompt, "to have something")


class Full:
    """A store that nothing fits into."""

    async def save_group(self, step: int, group: Group | LostGroup) -> Group | LostGroup:
        raise OSError("no space left")


def leaves(fault: BaseException) -> list[BaseException]:
    parts = fault.exceptions if isinstance(fault, BaseExceptionGroup) else ()
    return [leaf for part in parts for leaf in leaves(part)] or [fault]


def test_a_fault_in_an_attempt_comes_out_alone() -> None:
    async def surveyed() -> None:
        state = stage.beginning(stage.recipe())
        policy = Policy(state.population, None)
        waves = plan_waves(0, policy, stage.TASKS.train, state.recipe)
        assert len(waves) > 1
        async with stage.crew_over(await stage.archive_with(state), state) as crew:
            full: Any = Full()
            broken: Crew = replace(crew, generators=Ready(), store=full)
            await survey(waves, 0, policy, state.recipe, broken, asyncio.Lock())

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(ExceptionGroup) as caught:
            asyncio.run(surveyed())
        kinds = {type(leaf) for leaf in leaves(caught.value)}
        del caught
        gc.collect()
    assert kinds == {OSError}
    assert [str(one.message) for one in heard if "never awaited" in str(one.message)] == []
