"""Curriculum, slow weights and a baseline across templates, in whole runs over canned backends."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from little import stage

from grpo_ray import loop, oversight
from grpo_ray.crew import StoreControl
from grpo_ray.population import plan_refill, plan_waves
from grpo_ray.protocols import Archive, Generators, Store, Trainers
from grpo_ray.recipe import Named, Recipe, RunState
from grpo_ray.types import Adapter, Group, Lesson, LostGroup, Policy, Rollout, Update, Wave

LAGS = pytest.mark.parametrize("lag", [0, 1, 2])


async def taken(state: RunState, archive: Archive, steps: int | None = None, generators: int = 1) -> RunState:
    """The state that a run comes to, from where `state` is; or at most so many steps on."""
    async with stage.crew_over(archive, state, generators) as crew:
        control = StoreControl(archive, state.run) if steps is None else Edge(steps)
        return await loop.run(state, crew, control)


class Edge:
    """A control that lets a number of steps through."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    async def proceed(self, state: RunState) -> bool:
        self.left -= 1
        return self.left >= 0

    async def approve(self, state: RunState) -> RunState:
        return state


async def whole(recipe: Recipe, generators: int = 1) -> tuple[RunState, Store]:
    state = stage.beginning(recipe)
    archive = await stage.archive_with(state)
    return await taken(state, archive, generators=generators), await archive.open(state.run)


async def prompts(store: Store, step: int) -> set[str]:
    return {scored.group.prompt.id for scored in await store.scored_groups(step, step)}


# ── curriculum ────────────────────────────────────────────────────────────────────────────────────────────────────


def curriculum(lag: int, refill: int = 0) -> Recipe:
    """Answers are seldom right, so that tasks come to differ in what is known of them."""
    plan = replace(stage.recipe().plan, tasks=8, curriculum=True, refill=refill)
    return stage.recipe(lag=lag, plan=plan, generator=Named(name="canned", settings={"rate": 0.1, "spread": 0.1}))


def tasks_of(waves: Sequence[Wave]) -> set[str]:
    return {prompt.task.id for wave in waves for prompt in wave.prompts}


@LAGS
def test_a_step_s_tasks_are_drawn_from_the_trials_of_steps_that_are_whole(lag: int) -> None:
    async def main() -> None:
        recipe = curriculum(lag)
        end, store = await whole(recipe)
        for step in range(4):
            seen = await store.trials(0, step - lag - 1)
            policy = Policy(end.population, None)
            planned = tasks_of(plan_waves(step, policy, stage.TASKS.train, recipe, seen))
            assert planned == {scored.group.prompt.task.id for scored in await store.scored_groups(step, step)}
            assert bool(seen) == (step > lag)

    asyncio.run(main())


@LAGS
@pytest.mark.parametrize("refill", [0, 1])
@pytest.mark.parametrize("broken", [1, 3])
def test_a_run_with_a_curriculum_that_was_stopped_goes_on_to_an_equal_state(lag: int, refill: int, broken: int) -> None:
    """Steps that were explored ahead are left half done, and planned once more."""

    async def twice() -> tuple[RunState, list[set[str]]]:
        state = stage.beginning(curriculum(lag, refill))
        archive = await stage.archive_with(state)
        await taken(state, archive, broken)
        store = await archive.open(state.run)
        saved = await store.load_state()
        assert saved is not None and saved.step == broken
        return await taken(saved, archive), [await prompts(store, step) for step in range(4)]

    async def once() -> tuple[RunState, list[set[str]]]:
        end, store = await whole(curriculum(lag, refill), generators=3)
        return end, [await prompts(store, step) for step in range(4)]

    assert asyncio.run(twice()) == asyncio.run(once())


def test_a_curriculum_changes_what_is_met() -> None:
    async def main() -> list[list[set[str]]]:
        stores = [(await whole(recipe))[1] for recipe in (curriculum(0), stage.recipe())]
        return [[await prompts(store, step) for step in range(4)] for store in stores]

    chosen, plain = asyncio.run(main())
    assert all(one != other for one, other in zip(chosen, plain, strict=True))


class Stumped:
    """Generators whose every answer is wrong on all tasks but eight."""

    def __init__(self, generators: Generators) -> None:
        self.generators = generators

    async def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        async for group in self.generators.sample(wave, adapter):
            hard = group.prompt.task not in stage.TASKS.train[:8]
            yield replace(group, rollouts=_wrong(group.rollouts)) if hard and isinstance(group, Group) else group


def _wrong(rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    return tuple(replace(rollout, text="Answer: none") for rollout in rollouts)


def test_a_refill_goes_by_the_same_trials() -> None:
    async def main() -> list[bool]:
        recipe = curriculum(0, refill=1)
        recipe = replace(recipe, steps=6, plan=replace(recipe.plan, tasks=4))
        state = stage.beginning(recipe)
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state) as crew:
            stumped = replace(crew, generators=Stumped(crew.generators))
            await loop.run(state, stumped, StoreControl(archive, state.run))
        store = await archive.open(state.run)
        return [await by_trials(state, store) for state in (await store.states())[1:-1]]

    async def by_trials(state: RunState, store: Store) -> bool:
        """Whether what a step refilled with depends on the trials before it; it is what they lead to."""
        given = (state.step, state.policies[-1])
        seen, found = await store.trials(0, state.step - 1), await store.scored_groups(state.step, state.step)
        first = plan_waves(*given, stage.TASKS.train, state.recipe, seen)
        begun = [one for one in found if one.group.prompt.task.id in tasks_of(first)]
        with_them, without = (
            tasks_of(plan_refill(*given, [first], begun, stage.TASKS.train, state.recipe, some)) for some in (seen, [])
        )
        assert with_them == {one.group.prompt.task.id for one in found} - tasks_of(first)
        return with_them != without

    assert any(asyncio.run(main()))


# ── fast prompts, slow weights ────────────────────────────────────────────────────────────────────────────────────


@LAGS
@pytest.mark.parametrize("every", [1, 2, 3])
def test_only_every_nth_step_updates_the_adapter_and_each_the_prompts(every: int, lag: int) -> None:
    recipe = stage.recipe(train_every=every, lag=lag, steps=6, gate=replace(stage.recipe().gate, tasks=0))
    end, store = asyncio.run(whole(recipe))
    states = asyncio.run(store.states())
    hashes = [state.adapter.hash if state.adapter else None for state in states]
    changed = [step for step in range(6) if hashes[step + 1] != hashes[step]]
    assert changed == list(range(every - 1, 6, every))
    assert end.adapter is not None and end.adapter.version == 6 // every and end.adapter.step == changed[-1]
    assert [state.population.generation for state in states] == list(range(7))


class Listening:
    """Trainers that note what they are given."""

    def __init__(self, trainers: Trainers) -> None:
        self.trainers, self.heard = trainers, list[set[str]]()

    async def update(self, adapter: Adapter | None, lessons: Sequence[Lesson], seed: int) -> Update:
        self.heard.append({lesson.group.group.id for lesson in lessons})
        return await self.trainers.update(adapter, lessons, seed)


def test_an_update_learns_from_its_own_step_s_groups_alone() -> None:
    async def main() -> tuple[list[set[str]], list[set[str]]]:
        state = stage.beginning(stage.recipe(train_every=2))
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state) as crew:
            assert crew.trainers is not None
            trainers = Listening(crew.trainers)
            await loop.run(state, replace(crew, trainers=trainers), StoreControl(archive, state.run))
        store = await archive.open(state.run)
        return trainers.heard, [useful(await store.lessons(step, step)) for step in (1, 3)]

    heard, expected = asyncio.run(main())
    assert heard == expected and all(heard)


def useful(lessons: Sequence[Lesson]) -> set[str]:
    return {lesson.group.group.id for lesson in lessons if any(lesson.advantages)}


# ── a baseline across templates ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("advantages", ["standardized", "leave_one_out"])
def test_what_a_run_taught_across_templates_comes_out_again(aggregation: str, advantages: str) -> None:
    async def main() -> tuple[list[Lesson], list[dict[str, Any]]]:
        state = stage.beginning(
            stage.recipe(steps=2, lag=1, baseline="task", aggregation=aggregation, advantages=advantages)
        )
        archive = await stage.archive_with(state)
        await taken(state, archive)
        lessons = await (await archive.open(state.run)).lessons(0, 0)
        ids = [one.rollout.id for lesson in lessons for one in lesson.group.rollouts]
        return lessons, [await oversight.explain(archive, id, state.run) for id in ids]

    lessons, found = asyncio.run(main())
    assert not [line for one in found for line in one["disagreements"]]
    assert any(abs(sum(lesson.advantages)) > 0.1 for lesson in lessons)  # not compared inside the group
    by_task: dict[str, float] = defaultdict(float)
    for lesson in lessons:
        by_task[lesson.group.group.prompt.task.id] += sum(lesson.advantages)
    assert len(by_task) == 4 and all(abs(total) < 1e-6 for total in by_task.values())
    assert all(one["baseline"] == "task" for one in found)
