"""Measuring a few groups, and what a plan says of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime

import pytest
from rich.console import Console
from serving import Canned, stand_in

from grpo_ray import launch, planning
from grpo_ray.backends import make_generator, make_trainer
from grpo_ray.canonical import typed
from grpo_ray.crew import Contents, Desk, LocalGenerators, LocalTrainers, local_crew
from grpo_ray.errors import ConfigError, OutOfMoney, UnreachableError
from grpo_ray.forecasts import hindsight
from grpo_ray.forecasts.forecast import Forecast
from grpo_ray.forecasts.futures import Calls, GroupCost, Measured
from grpo_ray.launch import Inputs
from grpo_ray.population import begin
from grpo_ray.protocols import Crew, Store
from grpo_ray.recipe import (
    Config,
    EvolutionSpec,
    JudgeSpec,
    Named,
    OracleSpec,
    PlanSpec,
    Recipe,
    RunState,
    SamplingSpec,
    TrustSpec,
    Weighted,
)
from grpo_ray.storage.memory import make_storage
from grpo_ray.types import Attempt, Evaluation, Group, Message, Policy, Task, TaskSet, Template

NOW = datetime(2026, 11, 22, 20, 30)
SUMS = tuple(Task(f"sum-{i}", f"What is {i} + {i}?", str(2 * i), "sum", "jsonl") for i in range(30))
TASKS = TaskSet(SUMS[:20], SUMS[20:24], SUMS[24:])
TEMPLATES = tuple(Template(f"seed-{i}", f"Way {i}. {{{{ question }}}}") for i in range(4))
DOOR = "judge.example judge"
RECIPE = Recipe(
    name="little",
    steps=3,
    model="none",
    tasks=(Named(name="jsonl", settings={"path": "sums.jsonl"}),),
    sampling=SamplingSpec(group_size=4, max_tokens=40, slots=16),
    plan=PlanSpec(tasks=6, templates=2, wave=4),
    generator=Named(name="canned"),
    trainer=Named(name="canned"),
    judges=(JudgeSpec(name="rubric"),),
    evolution=EvolutionSpec(children=2, mutations=(Weighted(name="set_parameter"), Weighted(name="rewrite"))),
    oracle=OracleSpec(base_url="https://judge.example/v1", model="judge", usd_per_million=(1.0, 4.0), max_usd=0.001),
)
CONFIG = Config(recipe=RECIPE)
INPUTS = Inputs(TEMPLATES, TASKS)


class PaidJudges:
    """Right answers are good; each group costs one call, which the store is told of."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def evaluate(self, step: int, group: Group) -> tuple[Evaluation, ...]:
        read = sum(len(one.text) for one in group.rollouts)
        made = Attempt("hash", DOOR, f"{step}/{group.id}/0-rubric", 1, "ok", 0.0, 0.5, read, 20, (read + 80) / 1e6)
        await self.store.save_attempts([made])
        right = f"Answer: {group.prompt.task.answer}"
        return tuple(Evaluation(one.id, "verifier", "verified", float(one.text == right), "") for one in group.rollouts)


@asynccontextmanager
async def crew_of(recipe: Recipe) -> AsyncIterator[Crew]:
    """Canned backends and judges over memory."""
    archive, population = await make_storage(), begin(TEMPLATES, recipe)
    await archive.create_run(RunState("run", 0, recipe, population, None, (Policy(population, None),)))
    store = await archive.open("run")
    contents, named = Contents(store), recipe.trainer
    desk = Desk(lambda: make_generator(recipe))
    bench = Desk(lambda: make_trainer(recipe.model, named)) if named else None
    trainers = LocalTrainers([bench], contents) if bench else None
    try:
        yield Crew(LocalGenerators([desk], contents), PaidJudges(store), trainers, store, Canned(), TASKS)
    finally:
        for one in [desk, *([bench] if bench else [])]:
            await one.close()


def measured(recipe: Recipe = RECIPE, groups: int | None = None) -> Measured:
    async def found() -> Measured:
        async with crew_of(recipe) as crew:
            return await planning.measured_by(crew, recipe, TEMPLATES, groups)

    return asyncio.run(found())


def test_a_few_groups_are_measured_with_all_that_they_took() -> None:
    found = measured()
    assert len({one.task for one in found.groups}) == len(found.groups) == planning.GROUPS
    for one in found.groups:
        assert one.rollouts == 4 and one.tokens > 4 and one.sample_s > 0 and not one.lost
        assert [(door, calls.count) for door, calls in one.calls] == [(DOOR, 1)]
    assert any(one.useful for one in found.groups) and any(one.accepted for one in found.groups)
    assert found.train_s is not None and found.train_s > 0
    assert measured(replace(RECIPE, trainer=None), 6).train_s is None


@pytest.mark.process
def test_a_crew_of_the_config_s_own_is_measured_in_memory() -> None:
    """Its judge is a verifier, in a process that can be killed; no endpoint is asked."""
    oracle = OracleSpec(base_url="http://127.0.0.1:9/v1")
    recipe = replace(RECIPE, judges=(JudgeSpec(name="verifier"),), oracle=oracle)
    found = asyncio.run(planning.plan(replace(CONFIG, recipe=recipe), INPUTS, seconds=3600.0, groups=5))
    assert found["measured"]["groups"] == 5 and found["measured"]["usd"] == 0
    assert found["forecast"]["quantities"]["judge_calls"]["mean"] == 0
    assert found["forecast"]["quantities"]["rows"]["mean"] > 0
    assert found["fits"]["affordable"]


def test_groups_fill_the_slots_and_take_templates_by_turns() -> None:
    wave = planning.first_wave(RECIPE, TEMPLATES, TASKS.train, None)
    assert sorted(prompt.template_id for prompt in wave.prompts) == [one.id for one in TEMPLATES]
    wide = replace(RECIPE, sampling=replace(RECIPE.sampling, slots=32))
    assert len(planning.first_wave(wide, TEMPLATES, TASKS.train, None).prompts) == 8
    assert len(planning.first_wave(wide, TEMPLATES, TASKS.train, 3).prompts) == 3
    vast = replace(RECIPE, sampling=replace(RECIPE.sampling, slots=4000))
    assert len(planning.first_wave(vast, TEMPLATES, TASKS.train, None).prompts) == planning.MOST_GROUPS


def test_lost_groups_are_measured_too_and_nothing_but_lost_ones_is_a_fault() -> None:
    some = replace(RECIPE, generator=Named(name="canned", settings={"lost": 0.4}))
    assert {one.lost for one in measured(some, 12).groups} == {True, False}
    with pytest.raises(UnreachableError, match="lost on purpose"):
        measured(replace(RECIPE, generator=Named(name="canned", settings={"lost": 1.0})))


def test_looking_leaves_storage_and_trust_alone_and_the_trainer_where_asked() -> None:
    config = replace(CONFIG, recipe=replace(RECIPE, trust=TrustSpec(audit=0.2)))
    looking = planning.looking(config, train=True)
    assert looking.placement.storage == "memory" and looking.placement.ray == "off"
    assert looking.recipe.trainer == RECIPE.trainer and not looking.recipe.trust.audit
    assert planning.looking(config, train=False).recipe.trainer is None


def test_the_recipe_is_planned_in_numbers() -> None:
    found = planning.planned(CONFIG, INPUTS)
    assert (found.steps, found.prompts, found.templates, found.waves) == (3, 12, 2, 3)
    assert found.exam_answers == (4 * 4 + 4 * 6 + 4 * 4 + 6, 4 * 4 + 4 * 6 + 4 * 4 + 6 + 4 * 4 + 6 + 2 * 4 + 6)
    assert found.exam_judged == 0.0  # their verifier speaks
    assert found.rewrites == 1.0
    assert found.doors[DOOR].concurrency == RECIPE.oracle.concurrency
    trust = TrustSpec(audit=0.1, second="other", canaries=0.01)
    assert planning.planned(replace(CONFIG, recipe=replace(RECIPE, trust=trust)), INPUTS).rejudged == pytest.approx(
        0.31
    )
    few = Inputs(TEMPLATES[:1], replace(TASKS, train=SUMS[:2]))
    alone = replace(RECIPE, evolution=EvolutionSpec(children=0), trainer=None)
    assert planning.planned(replace(CONFIG, recipe=alone), few).prompts == 2


def test_a_plan_says_what_it_takes_and_what_fits() -> None:
    found = planning.described(CONFIG, INPUTS, measured(), money=0.05, seconds=1e6)
    json.dumps(found, allow_nan=False)
    assert found["fits"]["limit"] == "money" and found["fits"]["affordable"]
    assert found["forecast"]["quantities"]["rollouts"]["mean"] == 3 * 12 * 4
    assert found["measured"]["groups"] == 4 and found["measured"]["usd"] > 0
    assert "oracle.max_usd" in found["warnings"][0]
    drawn = shown(found)
    assert "judge calls" in drawn and "money limits" in drawn and f"--set steps={found['fits']['steps']}" in drawn


def test_without_measuring_bounds_are_marked_as_a_guess() -> None:
    found = asyncio.run(planning.plan(CONFIG, INPUTS, money=5.0, groups=0))
    assert found["forecast"]["guess"] and found["fits"] is None and found["measured"] is None
    assert found["forecast"]["quantities"]["rollouts"]["high80"] == launch.plan(CONFIG, INPUTS)["rollouts"]
    assert any("without measuring" in line for line in found["warnings"])
    assert "upper bounds" in shown(found)
    with pytest.raises(ConfigError, match="--money"):
        asyncio.run(planning.plan(CONFIG, INPUTS, money=-1.0, groups=0))


def test_what_not_even_an_exam_fits_into_is_said() -> None:
    dear = GroupCost("t-1", 4, 1, True, 40, ((DOOR, Calls(1, 100, 100, 1.0, 1.0)),), sample_s=1.0)
    unchecked = tuple(replace(task, verifier=None) for task in TASKS.heldout)
    inputs = Inputs(TEMPLATES, replace(TASKS, heldout=unchecked))
    found = planning.described(CONFIG, inputs, Measured((dear, replace(dear, task="t-2"))), money=0.5)
    assert not found["fits"]["affordable"] and "fits: nothing" in shown(found)


def test_a_forecast_is_kept_with_its_run_and_read_back() -> None:
    found = planning.described(CONFIG, INPUTS, measured())

    async def events() -> list[dict]:
        archive, population = await make_storage(), begin(TEMPLATES, RECIPE)
        await archive.create_run(RunState("run", 0, RECIPE, population, None, (Policy(population, None),)))
        await planning.keep(await archive.open("run"), found)
        return await archive.events("run")

    (event,) = asyncio.run(events())
    assert event["kind"] == hindsight.EVENT
    assert typed(Forecast, json.loads(json.dumps(event["detail"]))).steps == 3


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("08:00", 11.5),
        ("8:00", 11.5),
        ("20:31", 1 / 60),
        ("20:30", 24.0),
        ("in 6h", 6.0),
        ("In 1h 30m", 1.5),
        ("1h30m", 1.5),
        ("90 min", 1.5),
        ("45m", 0.75),
        ("2026-11-23T08:00", 11.5),
        ("2026-11-22 21:00:00", 0.5),
    ],
)
def test_times_are_read_as_people_say_them(text: str, hours: float) -> None:
    assert planning.parse_until(text, NOW) == pytest.approx(hours * 3600)


@pytest.mark.parametrize("text", ["", "soon", "25:00", "in", "6", "in 0h", "8:60", "2026-11-22T20:00", "in h", "h"])
def test_a_time_that_is_none_or_past_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--until"):
        planning.parse_until(text, NOW)


def test_a_time_with_a_zone_counts_from_the_same_moment() -> None:
    zoned = datetime.fromtimestamp(NOW.timestamp() + 7200).astimezone().isoformat()
    assert planning.parse_until(zoned, NOW) == pytest.approx(7200)


@pytest.mark.parametrize(
    ("seconds", "said"), [(9.84, "9.8 s"), (125.0, "2 min 05 s"), (5999.0, "99 min 59 s"), (7260.0, "2 h 01 min")]
)
def test_long_times_are_told_in_minutes_and_hours(seconds: float, said: str) -> None:
    lasting = GroupCost("t-1", 4, 1, True, 40, sample_s=seconds)
    one = replace(RECIPE, steps=1, plan=PlanSpec(tasks=1, templates=1, wave=1), trainer=None, lag=0)
    inputs = Inputs(TEMPLATES[:1], replace(TASKS, validation=(), heldout=()))
    found = planning.described(replace(CONFIG, recipe=one), inputs, Measured((lasting,)))
    assert f" {said} " in shown(found)


def shown(found: dict) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as caught:
        console.print(planning.look(found))
    return caught.get()


@pytest.mark.process
def test_measuring_waits_for_no_money() -> None:
    spec = OracleSpec(usd_per_million=(1e6, 1e6), max_usd=0.5)
    config = planning.looking(replace(CONFIG, recipe=replace(RECIPE, oracle=spec)), train=False)

    async def main(url: str) -> None:
        archive = await launch.open_archive(config.placement)
        state = await launch.start(archive, config, INPUTS)
        async with local_crew(config, archive, state.run, TASKS, url) as crew:
            await crew.oracle.complete([Message("user", "Are you there?")])
            with pytest.raises(OutOfMoney, match=r"\$0\.5 for bundled stand-in is spent; set a larger max_usd"):
                await crew.oracle.complete([Message("user", "Are you there?")])

    with stand_in() as url:
        asyncio.run(main(url))
