"""Judge made-up rollouts as a run does, in a process of its own: `judging.py` starts it, measures it, and kills it.

Prints one JSON line: seconds of the judging itself, scores, reasons of what is missing.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from typing import Any

from grpo_ray.checker import Checker
from grpo_ray.judging import LocalJudges
from grpo_ray.launch import open_archive
from grpo_ray.llm.gate import RateGate, specs_of, spent
from grpo_ray.loop import attempt
from grpo_ray.oracle import make_oracle
from grpo_ray.population import begin
from grpo_ray.protocols import Crew, Store
from grpo_ray.recipe import JudgeSpec, Named, OracleSpec, Placement, Recipe, RewardSpec, RunState, SamplingSpec
from grpo_ray.types import (
    Group,
    Message,
    Policy,
    Prompt,
    Rollout,
    Sampling,
    ScoredGroup,
    Task,
    TaskSet,
    Template,
)

RUN = "judged"
SIZE = 8
TEMPLATES = (Template("seed-0", "Add: {{ question }}"), Template("seed-1", "Sum: {{ question }}"))


def recipe(url: str, given: argparse.Namespace) -> Recipe:
    """A rubric over one endpoint, each answer by itself."""
    spec = OracleSpec(
        base_url=url,
        concurrency=given.concurrency,
        timeout_s=given.timeout,
        deadline_s=given.deadline,
        hedge=given.hedge,
        requests_per_minute=given.rpm,
    )
    return Recipe(
        name=RUN,
        tasks=(Named(name="jsonl", settings={"path": "none"}),),
        sampling=SamplingSpec(group_size=SIZE),
        judges=(JudgeSpec(name="rubric"),),
        rewards=(RewardSpec(name="judge_score"),),
        oracle=spec,
    )


def group(number: int) -> Group:
    """A sum with eight different workings, of which some are wrong."""
    a, b = 100 + number % 900, 100 + 7 * number % 900
    task = Task(f"t-{number}", f"What is {a} + {b}? (No. {number})", str(a + b), "sum")
    prompt = Prompt(f"p-{number}", TEMPLATES[0].id, task, (Message("user", task.question),))
    texts = [f"{a} + {b} = {a + b + i * (i % 3)}\nAnswer: {a + b + i}" for i in range(SIZE)]
    rollouts = tuple(Rollout(f"r-{number}-{i}", i, t, (1,), (-0.1,), "stop", i) for i, t in enumerate(texts))
    return Group(f"g-{number}", prompt, rollouts, (1,), Sampling(group_size=SIZE), "none", None)


async def judged(given: argparse.Namespace) -> dict[str, Any]:
    """Open the store, take up the run or begin it, judge every group, and say what came of it."""
    plan = recipe(given.url, given)
    archive = await open_archive(Placement(home=given.home, storage=given.storage))
    try:
        if not any(row["run"] == RUN for row in await archive.runs()):
            population = begin(TEMPLATES, plan)
            await archive.create_run(RunState(RUN, 0, plan, population, None, (Policy(population, None),)))
        store = await archive.open(RUN)
        gate = RateGate.of(specs_of(plan), spent(await store.attempts()))
        oracle = make_oracle(plan.oracle, store, base_url=given.url, gate=gate, checker=Checker(), run=RUN)
        crew = Crew(None, LocalJudges(plan, oracle, store), None, store, oracle, TaskSet((), (), ()))  # pyright: ignore
        print(json.dumps({"ready": True}), flush=True)
        try:
            return await timed(given.rows // SIZE, plan, crew, store)
        finally:
            await oracle.close()
    finally:
        await archive.close()


async def timed(groups: int, plan: Recipe, crew: Crew, store: Store) -> dict[str, Any]:
    """Each group as the loop takes it: saved, judged, scored, saved."""
    policy = Policy((await store.states())[0].population, None)
    began = time.perf_counter()
    scored = await asyncio.gather(*(attempt(group(number), 0, policy, plan, crew) for number in range(groups)))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, **counted([one for one in scored if one]), "attempts": len(await store.attempts())}


def counted(scored: list[ScoredGroup]) -> dict[str, Any]:
    """Rollouts by what became of their evaluations; `ended`: evaluations with a score, or missing with a reason."""
    said = [one.evaluations for group in scored for one in group.rollouts]
    missing = Counter(e.rationale for some in said for e in some if e.score is None)
    ended = sum(e.score is not None or bool(e.rationale) for some in said for e in some)
    whole = sum(bool(some) and all(e.score is not None for e in some) for some in said)
    return {"rollouts": len(said), "ended": ended, "scored": whole, "missing": dict(missing)}


def options() -> argparse.ArgumentParser:
    """The command line of this file, and of `judging_ray.py`."""
    asks = argparse.ArgumentParser(description=__doc__)
    asks.add_argument("--url", required=True)
    asks.add_argument("--home", required=True)
    asks.add_argument("--storage", default="embedded")
    asks.add_argument("--rows", type=int, default=800)
    asks.add_argument("--concurrency", type=int, default=32)
    asks.add_argument("--timeout", type=float, default=60.0)
    asks.add_argument("--deadline", type=float, default=600.0)
    asks.add_argument("--hedge", type=float, default=0.0)
    asks.add_argument("--rpm", type=float)
    return asks


if __name__ == "__main__":
    print(json.dumps(asyncio.run(judged(options().parse_args()))), flush=True)
