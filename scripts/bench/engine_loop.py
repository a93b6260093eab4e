"""What the loop and Ray add to work that takes a known time: canned backends on real actors, over a real database."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

from actors import cluster, pools
from actors.driver import connected, finished

# isort: split
import ray
from rows import row

from actors.generator import Generator
from grpo_ray.backends import make_generator
from grpo_ray.crew import Contents
from grpo_ray.launch import open_archive
from grpo_ray.population import begin
from grpo_ray.protocols import Archive
from grpo_ray.recipe import Config, EvolutionSpec, JudgeSpec, Named, Placement, PlanSpec, Recipe, RunState, SamplingSpec
from grpo_ray.storage.embedded import remove
from grpo_ray.types import Adapter, AdapterBytes, Message, Policy, Prompt, Sampling, Task, TaskSet, Template, Wave

SAMPLE_S, JUDGE_S, TRAIN_S = 1.0, 0.5, 1.0
SHORT, LONG = 4, 20
"""Steps; the difference of two runs is free of what a run's beginning and end cost."""
TASKS = tuple(Task(f"t{i}", f"What is {i} + {i}?", str(2 * i), "sum", "jsonl") for i in range(60))
SPLIT = TaskSet(TASKS[:52], TASKS[52:54], TASKS[54:56])
TEMPLATES = tuple(Template(f"seed-{i}", f"{word} {{{{ question }}}}") for i, word in enumerate(("Add:", "Sum:")))
SMALL, LARGE = 1_000, 5_000_000
WAVES = 20


def recipe(steps: int, lag: int) -> Recipe:
    """Two waves a step, one for each generator: a step samples for SAMPLE_S."""
    return Recipe(
        name="bound",
        steps=steps,
        lag=lag,
        model="none",
        tasks=(Named(name="jsonl", settings={"path": "none"}),),
        sampling=SamplingSpec(group_size=4, max_tokens=16),
        plan=PlanSpec(tasks=8, templates=2, wave=8),
        generator=Named(name="canned", settings={"seconds": SAMPLE_S}),
        judges=(JudgeSpec(name="slow.judge", settings={"seconds": JUDGE_S}),),
        trainer=Named(name="canned", settings={"seconds": TRAIN_S}),
        evolution=EvolutionSpec(children=0),
    )


async def seconds_of(plan: Recipe, home: str) -> float:
    """What the steps of a run on two generators and one trainer took."""
    config = Config(recipe=plan, placement=Placement(home=home, generators=2, control_port=0))
    run = f"bound-{plan.lag}-{plan.steps}"
    archive: Archive = await open_archive(config.placement)
    try:
        population = begin(TEMPLATES, plan)
        await archive.create_run(RunState(run, 0, plan, population, None, (Policy(population, None),)))
        async with cluster.on_stage(config, run, "http://127.0.0.1:9/v1") as cast:
            await finished(cast.coordinator, SPLIT)
        outcome = await (await archive.open(run)).load_outcome()
        assert outcome is not None
        return outcome["seconds"]["steps"]
    finally:
        await archive.close()


def period(lag: int, home: str) -> float:
    """Seconds a step once the run is under way."""
    short, long = (asyncio.run(seconds_of(recipe(steps, lag), home)) for steps in (SHORT, LONG))
    return (long - short) / (LONG - SHORT)


def loop_rows() -> list[dict[str, Any]]:
    """How near the loop comes to what its own times allow."""
    round_trip = SAMPLE_S + JUDGE_S + TRAIN_S
    with tempfile.TemporaryDirectory() as home, connected(Placement(generators=2)):
        one, two = period(1, home), period(2, home)
        remove(home)
    how = f"{SAMPLE_S:g} s sampling, {JUDGE_S:g} s judging, {TRAIN_S:g} s training"
    bound = max(SAMPLE_S, round_trip / 2)
    return [
        row("lag 1, of its own bound", bound / one, "×", bar=0.98, better="higher", how=f"{how}: {one:.3f} s a step"),
        row("lag 2, generators busy", SAMPLE_S / two, "×", bar=0.95, better="higher", how=f"{how}: {two:.3f} s a step"),
    ]


class Shelf:
    """A store that holds one adapter's bytes under every name."""

    def __init__(self, size: int) -> None:
        self.content = AdapterBytes(b"\0" * size, b"")

    async def load_adapter(self, hash: str) -> AdapterBytes:
        return self.content


def wave(name: str) -> Wave:
    prompts = tuple(Prompt(f"{name}-{task.id}", "t", task, (Message("user", task.question),)) for task in TASKS[:16])
    return Wave(name, prompts, Sampling(group_size=4, max_tokens=16))


@asynccontextmanager
async def pool(size: int, plan: Recipe) -> AsyncIterator[pools.Generators]:
    """One canned generator behind Ray, and a shelf of adapters."""
    kind: Any = ray.remote(Generator)
    name = f"bench-{size}"
    handle = kind.options(name=name, num_cpus=0).remote(plan)
    await handle.open.remote()
    yield pools.Generators([name], pools.Parcels(Contents(Shelf(size))))  # pyright: ignore[reportArgumentType]
    ray.kill(handle)


async def milliseconds(size: int) -> float:
    """What a group costs more through Ray than in this process; every wave comes with an adapter of its own."""
    plan = recipe(1, 0)
    quick = Recipe(tasks=plan.tasks, model="none", generator=Named(name="canned"))
    backend, content = make_generator(quick), AdapterBytes(b"\0" * size, b"")
    async with pool(size, quick) as generators:
        times: list[float] = []
        for number in range(WAVES):
            adapter, of = Adapter(f"a{number}", number, None, 0), wave(f"w{number}")
            began = time.perf_counter()
            here = len(list(backend.sample(of, adapter, content)))
            middle = time.perf_counter()
            there = len([group async for group in generators.sample(of, adapter)])
            assert here == there
            times.append((time.perf_counter() - middle - (middle - began)) / there * 1e3)
    return median(times)


def ray_rows() -> list[dict[str, Any]]:
    """What Ray adds to a group, with small and with large adapters."""
    with connected(Placement(generators=1)):
        return [
            row(
                f"Ray adds to a group, adapter of {size / 1e3:g} KB",
                asyncio.run(milliseconds(size)),
                "ms",
                how="16 groups a wave, a new adapter each",
            )
            for size in (SMALL, LARGE)
        ]
