"""The real loop and exams over canned backends: what comes out depends on the recipe, and on nothing else."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from little import stage

from actors.coordinator import conduct
from grpo_ray import exam, loop
from grpo_ray.canonical import digest
from grpo_ray.crew import StoreControl
from grpo_ray.errors import ConfigError, UnreachableError
from grpo_ray.protocols import Archive, Generators
from grpo_ray.recipe import GateSpec, JudgeSpec, Named, Recipe, RunState
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, Score, ScoredGroup, Task, Wave

LAGS = pytest.mark.parametrize("lag", [0, 1, 2])


async def taken(state: RunState, archive: Archive | None = None, generators: int = 1) -> RunState:
    """The state that a run comes to, from where `state` is."""
    archive = archive or await stage.archive_with(state)
    async with stage.crew_over(archive, state, generators) as crew:
        return await loop.run(state, crew, StoreControl(archive, state.run))


class Edge:
    """A control that lets a number of steps through."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    async def proceed(self, state: RunState) -> bool:
        self.left -= 1
        return self.left >= 0

    async def approve(self, state: RunState) -> RunState:
        return state


@LAGS
def test_a_run_is_the_same_however_many_generators_take_its_waves(lag: int) -> None:
    first = asyncio.run(taken(stage.beginning(stage.recipe(lag=lag))))
    second = asyncio.run(taken(stage.beginning(stage.recipe(lag=lag)), generators=3))
    assert first == second
    assert first.step == 4
    assert len(first.policies) == min(lag + 1, 5)


def test_canned_runs_are_the_same_in_waves_and_continuous() -> None:
    """Nothing of a canned rollout depends on its batch, so that the two ways must agree."""
    waves = stage.recipe(lag=1)
    continuous = replace(waves, plan=replace(waves.plan, batching="continuous"))
    for generators in (1, 3):
        end = asyncio.run(taken(stage.beginning(continuous), generators=generators))
        assert replace(end, recipe=waves) == asyncio.run(taken(stage.beginning(waves)))


def test_trainers_share_every_update() -> None:
    alone, three = stage.recipe(), stage.recipe(trainers=3)
    end = asyncio.run(taken(stage.beginning(three)))
    assert end.adapter is not None
    assert replace(end, recipe=alone) == asyncio.run(taken(stage.beginning(alone)))


def test_the_lag_changes_what_is_explored() -> None:
    ends = [asyncio.run(taken(stage.beginning(stage.recipe(lag=lag)))) for lag in (0, 1, 2)]
    assert len({digest(replace(end, recipe=stage.recipe(), policies=())) for end in ends}) == 3


def test_both_halves_learn() -> None:
    end = asyncio.run(taken(stage.beginning(stage.recipe(gate=replace(stage.recipe().gate, tasks=0)))))
    assert end.adapter is not None and end.adapter.version >= 2
    assert any(member.trials for member in end.population.members)
    assert any(template.mutation == "random_edit" for template in end.population.templates)


@LAGS
@pytest.mark.parametrize("broken", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on_to_an_equal_state(lag: int, broken: int) -> None:
    async def twice() -> RunState:
        state = stage.beginning(stage.recipe(lag=lag))
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state) as crew:
            await loop.run(state, crew, Edge(broken))
        saved = await (await archive.open(state.run)).load_state()
        assert saved is not None and saved.step == broken
        return await taken(saved, archive)

    assert asyncio.run(twice()) == asyncio.run(taken(stage.beginning(stage.recipe(lag=lag))))


@LAGS
def test_every_step_explores_with_the_policy_of_lag_steps_before(lag: int) -> None:
    async def adapters() -> tuple[list[RunState], dict[int, set[str | None]]]:
        state = stage.beginning(stage.recipe(lag=lag))
        archive = await stage.archive_with(state)
        await taken(state, archive)
        store = await archive.open(state.run)
        used = {step: {one.group.adapter for one in await store.scored_groups(step, step)} for step in range(4)}
        return await store.states(), used

    states, used = asyncio.run(adapters())
    made = [state.adapter.hash if state.adapter else None for state in states]
    assert used == {step: {made[max(0, step - lag)]} for step in range(4)}


def dull(refill: int, **changes: int) -> Recipe:
    """Half of what is sampled is lost or rewarded all alike."""
    settings = {"lost": 0.1, "rate": 0.1, "spread": 0.1}
    plan = replace(stage.recipe().plan, refill=refill)
    return stage.recipe(generator=Named(name="canned", settings=settings), plan=plan, steps=2, **changes)


async def explored(recipe: Recipe, generators: int = 1) -> dict[int, list[ScoredGroup]]:
    state = stage.beginning(recipe)
    archive = await stage.archive_with(state)
    await taken(state, archive, generators)
    store = await archive.open(state.run)
    return {step: await store.scored_groups(step, step) for step in range(recipe.steps)}


def teaching(groups: Sequence[ScoredGroup]) -> int:
    return sum(len({one.reward.value for one in scored.rollouts}) > 1 for scored in groups)


@LAGS
def test_groups_that_teach_nothing_are_made_up_for(lag: int) -> None:
    """With more tasks, each under as many templates; what the step would have sampled anyway is not touched."""
    plain, refilled = (asyncio.run(explored(dull(refill, lag=lag)))[0] for refill in (0, 9))
    assert teaching(plain) < 12 <= teaching(refilled)
    assert {scored.group.id for scored in plain} < {scored.group.id for scored in refilled}
    more = Counter(scored.group.prompt.task.id for scored in refilled)
    assert max(more.values()) <= 3


def test_a_refill_is_the_same_however_many_generators_there_are() -> None:
    assert asyncio.run(explored(dull(2, lag=1))) == asyncio.run(explored(dull(2, lag=1), generators=3))


def test_tasks_that_run_out_end_the_refill() -> None:
    wide = replace(dull(9), plan=replace(dull(9).plan, tasks=20))
    found = asyncio.run(explored(wide))[0]
    assert {scored.group.prompt.task.id for scored in found} <= {task.id for task in stage.TASKS.train}
    assert max(Counter(scored.group.prompt.task.id for scored in found).values()) <= 3


def worse(gain: float) -> Named:
    """Every version answers worse than the one before."""
    return Named(name="canned", settings={"rate": 0.95, "gain": gain, "spread": 0.0})


def test_a_first_adapter_that_is_clearly_worse_is_refused_and_the_base_model_stays() -> None:
    async def refused() -> tuple[RunState, list[dict[str, Any]]]:
        state = stage.beginning(stage.recipe(generator=worse(-0.9), gate=GateSpec(tasks=6), steps=2))
        archive = await stage.archive_with(state)
        return await taken(state, archive), await archive.events(state.run)

    end, events = asyncio.run(refused())
    said = [event["detail"] for event in events if event["kind"] == "adapter_refused"]
    assert end.adapter is None and len(said) == 2
    assert all(one["kept"] is None and one["adapter"] for one in said)


def test_a_later_adapter_that_is_clearly_worse_leaves_the_last_good_one_at_half_its_rate() -> None:
    old, new = Adapter("a1", 1, None, 0), Adapter("a3", 3, "a1", 1)

    async def promoted(gate: GateSpec) -> Adapter | None:
        state = stage.beginning(stage.recipe(generator=worse(-0.4), gate=gate))
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state) as crew:
            for adapter in (old, new):
                await crew.store.save_adapter(adapter, AdapterBytes(b"w", b"o"), ())
            return await loop.promote(old, new, state, crew)

    assert asyncio.run(promoted(GateSpec(tasks=6))) == replace(old, rate_scale=0.5)
    assert asyncio.run(promoted(GateSpec(tasks=0))) == new
    assert asyncio.run(promoted(GateSpec(tasks=6, z=1e9))) == new


def test_lost_groups_leave_the_run_going() -> None:
    lossy = stage.recipe(generator=Named(name="canned", settings={"lost": 0.3}))

    async def groups() -> tuple[RunState, list[ScoredGroup]]:
        state = stage.beginning(lossy)
        archive = await stage.archive_with(state)
        end = await taken(state, archive)
        return end, await (await archive.open(state.run)).scored_groups()

    end, found = asyncio.run(groups())
    assert end.step == 4
    assert 0 < len(found) < 4 * 4 * 3


def test_a_judge_that_fails_leaves_missing_scores_with_its_reason() -> None:
    judges = tuple(JudgeSpec(name=name) for name in ("verifier", "little.failing", "little.raving"))

    async def groups() -> list[ScoredGroup]:
        state = stage.beginning(stage.recipe(judges=judges, steps=1))
        archive = await stage.archive_with(state)
        await taken(state, archive)
        return await (await archive.open(state.run)).scored_groups()

    found = asyncio.run(groups())
    heard = [one for group in found for rollout in group.rollouts for one in rollout.evaluations]
    failed = [one for one in heard if one.judge == "little.failing"]
    assert {one.rationale for one in failed} == {"RuntimeError: this judge fell over"}
    assert all(one.score is None for one in failed)
    assert any(one.judge == "failing" and one.score == 1.0 for one in heard)
    assert {one.score for one in heard if one.judge == "little.raving"} == {None}
    assert all(rollout.reward.value is not None for group in found for rollout in group.rollouts)


@pytest.mark.parametrize(("bug", "kind"), [("type", TypeError), ("attribute", AttributeError), ("name", NameError)])
def test_a_judge_with_a_bug_stops_the_run_and_is_named(bug: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        asyncio.run(judged(JudgeSpec(name="little.buggy", settings={"bug": bug})))
    assert any("in the judge 'little.buggy' (judges.1)" in note for note in caught.value.__notes__)


def test_a_judge_that_refuses_its_settings_stops_the_run_and_is_named() -> None:
    with pytest.raises(ConfigError, match=r"judges\.1 \(little\.buggy\): no such bug"):
        asyncio.run(judged(JudgeSpec(name="little.buggy", settings={"bug": "settings"})))


async def judged(judge: JudgeSpec) -> None:
    """One step with the verifier and `judge`."""
    state = stage.beginning(stage.recipe(judges=(JudgeSpec(name="verifier"), judge), steps=1))
    archive = await stage.archive_with(state)
    async with stage.crew_over(archive, state) as crew:
        await conduct(archive, state.run, crew)


def test_stop_is_heard_at_the_edge_and_a_resume_goes_on() -> None:
    async def stopped() -> tuple[RunState, RunState]:
        state = stage.beginning(stage.recipe())
        archive = await stage.archive_with(state)
        await archive.want(state.run, "stop", "a test")
        before = await taken(state, archive)
        await archive.want(state.run, "run", "a test")
        return before, await taken(before, archive)

    before, after = asyncio.run(stopped())
    assert before.step == 0
    assert after == asyncio.run(taken(stage.beginning(stage.recipe())))


def test_a_paused_run_waits_until_it_may_go_on() -> None:
    async def paused() -> tuple[bool, RunState]:
        state = stage.beginning(stage.recipe(steps=1))
        archive = await stage.archive_with(state)
        await archive.want(state.run, "pause", "a test")
        work = asyncio.create_task(taken(state, archive))
        await asyncio.wait([work], timeout=0.2)
        waiting = not work.done()
        await archive.want(state.run, "run", "a test")
        return waiting, await work

    waiting, end = asyncio.run(paused())
    assert waiting
    assert end.step == 1


def test_a_finished_run_has_an_outcome_on_held_out_tasks() -> None:
    async def outcome() -> tuple[dict, dict | None, dict]:
        state = stage.beginning(stage.recipe())
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state, generators=2) as crew:
            first = await conduct(archive, state.run, crew)
            kept = await crew.store.load_outcome()
            return first, kept, await conduct(archive, state.run, crew)

    first, kept, again = asyncio.run(outcome())
    assert kept is not None
    assert first == again
    assert first["finished"] and first["step"] == 4
    assert kept["both"]["tasks"] == len(stage.TASKS.heldout)
    assert 0 <= kept["start_best"]["accuracy"] <= 1
    assert set(kept["seconds"]) == {"sample", "judge", "train", "steps", "outcome"}
    assert all(kept["seconds"][stage] <= kept["seconds"]["steps"] for stage in ("sample", "judge", "train"))


SILENT = stage.TASKS.heldout[:2]


class Tonguetied(stage.CheckingOracle):
    """Has no verdict on some tasks."""

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        return [None] * len(answers) if task in SILENT else await super().check(task, answers)


def test_an_exam_leaves_out_what_nobody_could_judge() -> None:
    async def scores() -> tuple[list[Score], list[Score]]:
        state = stage.beginning(stage.recipe())
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state) as whole:
            crew = replace(whole, oracle=Tonguetied())
            pairs = [(stage.TEMPLATES[0], task) for task in stage.TASKS.heldout]
            first = await exam.examine("heldout", pairs, None, state.recipe, crew)
            return first, await exam.examine("heldout", pairs, None, state.recipe, crew)

    first, again = asyncio.run(scores())
    found = exam.accuracy(first)
    assert again == first
    assert (found.tasks, found.missing) == (len(stage.TASKS.heldout) - 2, 2)
    assert {one.task_id for one in first if one.correct is None} == {task.id for task in SILENT}
    assert set(exam.by_task(first)) == {task.id for task in stage.TASKS.heldout[2:]}


def test_what_was_chosen_before_stands_for_election_again() -> None:
    async def choices() -> list[dict]:
        state = stage.beginning(stage.recipe())
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state) as crew:
            given = (state.population, None, state.recipe, crew)
            best = await exam.choose(*given, finalists=None)
            return [best, await exam.choose(*given, finalists=1), await exam.choose(*given, finalists=1, also=(best,))]

    best, narrow, widened = asyncio.run(choices())
    assert narrow != best
    assert widened == best


class Faltering:
    """Generators that fail for good after a number of groups."""

    def __init__(self, generators: Generators, groups: int) -> None:
        self.generators, self.left = generators, groups

    async def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        async for group in self.generators.sample(wave, adapter):
            self.left -= 1
            if self.left < 0:
                raise UnreachableError("the last generator is gone")
            yield group


@LAGS
@pytest.mark.parametrize("refill", [0, 2])
@pytest.mark.parametrize("groups", [5, 17, 31])
def test_a_run_that_broke_in_the_middle_of_a_step_goes_on_to_an_equal_state(lag: int, groups: int, refill: int) -> None:
    recipe = stage.recipe(lag=lag, plan=replace(stage.recipe().plan, refill=refill))

    async def twice() -> RunState:
        state = stage.beginning(recipe)
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state) as crew:
            with pytest.raises(UnreachableError, match="the last generator is gone"):
                await conduct(archive, state.run, replace(crew, generators=Faltering(crew.generators, groups)))
        saved = await (await archive.open(state.run)).load_state()
        assert saved is not None and saved.step < 4
        return await taken(saved, archive)

    assert asyncio.run(twice()) == asyncio.run(taken(stage.beginning(recipe)))


class Broken:
    """Generators that have a bug."""

    async def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        yield LostGroup("g-0", wave.prompts[0], "to have begun")
        raise RuntimeError("a bug in the pool")


def test_a_bug_stops_the_run_and_comes_out_bare() -> None:
    async def broken() -> None:
        state = stage.beginning(stage.recipe(lag=1))
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state) as crew:
            await conduct(archive, state.run, replace(crew, generators=Broken()))

    with pytest.raises(RuntimeError, match="a bug in the pool"):
        asyncio.run(broken())
