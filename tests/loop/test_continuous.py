"""Waves sampled together: every wave gets its own groups, once each, and what breaks on the way reaches all of them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from little import stage

from grpo_ray.backends import make_generator
from grpo_ray.continuous import Continuous
from grpo_ray.population import plan_waves
from grpo_ray.recipe import SamplingSpec
from grpo_ray.types import Adapter, Group, LostGroup, Policy, Wave

RECIPE = stage.recipe(sampling=SamplingSpec(group_size=2, max_tokens=8), plan=replace(stage.recipe().plan, wave=2))
FIRST = Adapter("first", 1, None, 0)


def waves() -> list[Wave]:
    """Six waves of two prompts."""
    return plan_waves(0, Policy(stage.beginning(RECIPE).population, None), stage.TASKS.train, RECIPE)


class Recording:
    """Canned generators that keep what they were asked for, and break after a number of groups."""

    def __init__(self, groups: int | None = None, fault: BaseException | None = None) -> None:
        self.asked: list[tuple[int, Adapter | None]] = []
        self.left, self.fault, self.closed = groups, fault, 0
        self.backend = make_generator(RECIPE)
        self.begun = asyncio.Event()

    async def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        self.asked.append((len(wave.prompts), adapter))
        self.begun.set()
        try:
            for group in self.backend.sample(wave, None, None):
                if self.left is not None:
                    self.left -= 1
                if self.left is not None and self.left < 0:
                    if self.fault:
                        raise self.fault
                    return
                await asyncio.sleep(0)
                yield group
        finally:
            self.closed += 1


async def taken(generators: Continuous, wave: Wave, adapter: Adapter | None = None) -> list[Group | LostGroup]:
    return [group async for group in generators.sample(wave, adapter)]


async def all_taken(inner: Recording, count: int) -> list[list[Group | LostGroup]]:
    generators = Continuous(inner, count)
    return await asyncio.gather(*(taken(generators, wave) for wave in waves()))


@pytest.mark.parametrize(("count", "sizes"), [(1, [12]), (2, [6, 6]), (4, [4, 4, 2, 2]), (9, [2] * 6)])
def test_every_free_generator_takes_its_share_and_every_wave_gets_its_groups(count: int, sizes: list[int]) -> None:
    inner = Recording()
    found = asyncio.run(all_taken(inner, count))
    assert sorted((size for size, _ in inner.asked), reverse=True) == sizes
    for wave, groups in zip(waves(), found, strict=True):
        assert sorted(group.prompt.id for group in groups) == sorted(prompt.id for prompt in wave.prompts)
        assert groups == list(make_generator(RECIPE).sample(wave, None, None))


def test_waves_of_different_adapters_do_not_mix() -> None:
    async def both() -> None:
        generators = Continuous(inner, 1)
        pairs = zip(waves(), [None, FIRST] * 3, strict=True)
        await asyncio.gather(*(taken(generators, wave, adapter) for wave, adapter in pairs))

    inner = Recording()
    asyncio.run(both())
    assert inner.asked == [(6, None), (6, FIRST)]


def test_a_prompt_of_two_waves_is_sampled_once_for_both() -> None:
    async def twice() -> list[list[Group | LostGroup]]:
        generators = Continuous(inner, 1)
        return await asyncio.gather(*(taken(generators, wave) for wave in (waves()[0], waves()[0], waves()[1])))

    inner = Recording()
    first, same, other = asyncio.run(twice())
    assert inner.asked == [(4, None)]
    assert first == same and len(first) == len(other) == 2


def test_a_fault_reaches_every_wave_on_board_and_the_generator_is_free_again() -> None:
    async def broken() -> None:
        generators = Continuous(inner, 1)
        ends = await asyncio.gather(*(taken(generators, wave) for wave in waves()), return_exceptions=True)
        assert [isinstance(end, OSError) for end in ends] == [False] * 2 + [True] * 4
        inner.left = None
        assert len(await taken(generators, waves()[0])) == 2

    inner = Recording(5, OSError("gone"))
    asyncio.run(broken())


def test_generators_that_end_too_early_are_a_bug() -> None:
    with pytest.raises(RuntimeError, match="without all of its groups"):
        asyncio.run(all_taken(Recording(5), 1))


def test_a_flight_that_nobody_waits_for_is_given_up() -> None:
    async def leave() -> None:
        generators = Continuous(inner, 1)
        tasks = [asyncio.create_task(taken(generators, wave)) for wave in waves()[:2]]
        await inner.begun.wait()
        late = asyncio.create_task(taken(generators, waves()[2]))
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(await late) == 2 and inner.closed == 2

    inner = Recording()
    asyncio.run(leave())
    assert [size for size, _ in inner.asked] == [4, 2]
