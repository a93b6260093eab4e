"""A little run for tests: sums, four templates, canned backends, and an oracle that has no endpoint."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from grpo_ray.backends import make_generator, make_trainer
from grpo_ray.continuous import batched
from grpo_ray.crew import Contents, Desk, LocalGenerators, LocalTrainers
from grpo_ray.errors import OracleError
from grpo_ray.judging import LocalJudges
from grpo_ray.population import begin
from grpo_ray.protocols import Archive, Crew
from grpo_ray.recipe import (
    Config,
    EvolutionSpec,
    GateSpec,
    Named,
    Placement,
    PlanSpec,
    Recipe,
    RunState,
    SamplingSpec,
    Weighted,
)
from grpo_ray.storage.memory import make_storage
from grpo_ray.tasks.jsonl import verify
from grpo_ray.types import Choice, Message, Parameter, Policy, Reply, Task, TaskSet, Template

MANNER = Parameter("manner", (Choice("plain", "Answer."), Choice("careful", "Work it out with care.")))
TEMPLATES = tuple(
    Template(
        id=f"seed-{number}",
        text=f"{opening} {{{{ manner }}}} {{{{ question }}}}",
        parameters=(MANNER,),
        settings=(("manner", "plain"),),
    )
    for number, opening in enumerate(["Sum up:", "Count on your fingers:", "As a teacher:", "Quickly:"])
)
SUMS = tuple(
    Task(f"sum-{a}-{b}", f"What is {a} + {b}?", str(a + b), "sum", "jsonl") for a in range(10, 60, 7) for b in range(5)
)
TASKS = TaskSet(train=SUMS[:24], validation=SUMS[24:30], heldout=SUMS[30:])


def recipe(**changes: Any) -> Recipe:
    """Four steps with evolution, training and the gate, over canned backends."""
    little = Recipe(
        name="little",
        steps=4,
        model="none",
        tasks=(Named(name="jsonl", settings={"path": "sums.jsonl"}),),
        sampling=SamplingSpec(group_size=4, max_tokens=40),
        plan=PlanSpec(tasks=4, templates=3, wave=3),
        generator=Named(name="canned"),
        trainer=Named(name="canned"),
        evolution=EvolutionSpec(size=6, children=2, mutations=(Weighted(name="random_edit"),)),
        gate=GateSpec(tasks=4),
    )
    return replace(little, **changes)


def beginning(recipe: Recipe, run: str = "run") -> RunState:
    population = begin(TEMPLATES, recipe)
    return RunState(run, 0, recipe, population, None, (Policy(population, None),))


class CheckingOracle:
    """Checks answers, and has no endpoint to ask."""

    def within(self, scope: str) -> "CheckingOracle":
        return self

    def at(self, name: str) -> "CheckingOracle":
        return self

    def again(self, times: int) -> "CheckingOracle":
        return self

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        raise OracleError("no endpoint here")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise OracleError("no endpoint here")

    async def nearest(self, text: str, *, limit: int = 10) -> list[tuple[str, float]]:
        return []

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        return [verify(answer, task) for answer in answers]


async def archive_with(state: RunState) -> Archive:
    archive = await make_storage()
    await archive.create_run(state)
    return archive


@asynccontextmanager
async def crew_over(archive: Archive, state: RunState, generators: int = 1) -> AsyncIterator[Crew]:
    """A crew of canned backends on threads of their own."""
    plan, store = state.recipe, await archive.open(state.run)
    contents = Contents(store)
    desks = [Desk(lambda: make_generator(plan)) for _ in range(generators)]
    named = plan.trainer
    benches = [Desk(lambda: make_trainer(plan.model, named)) for _ in range(plan.trainers)] if named else []
    judges = LocalJudges(plan, CheckingOracle())
    trainers = LocalTrainers(benches, contents) if benches else None
    samplers = batched(LocalGenerators(desks, contents), generators, plan)
    try:
        yield Crew(samplers, judges, trainers, store, CheckingOracle(), TASKS)
    finally:
        for desk in [*desks, *benches]:
            await desk.close()


def config(recipe: Recipe, **placement: Any) -> Config:
    return Config(recipe=recipe, placement=Placement(**placement))
