"""The same judging as `judging_crew.py`, by a judge actor and the rate gate on a Ray of its own; to be killed.

Prints {"ready": pid of the judge actor}, then what came of it.
"""

import argparse
import asyncio
import json
import os
import sys
from secrets import token_hex
from typing import Any

from actors import cluster, pools
from actors.driver import connected

# isort: split
import ray
from judging_crew import RUN, SIZE, TEMPLATES, options, recipe, timed

from actors.judge import Judge
from actors.rate_gate import CALLERS, Gate, RateGate
from grpo_ray.launch import open_archive
from grpo_ray.population import begin
from grpo_ray.protocols import Crew
from grpo_ray.recipe import Config, Placement, RunState
from grpo_ray.types import Policy, TaskSet


class KnownJudge(Judge):
    """A judge that says which process it is."""

    async def pid(self) -> int:
        return os.getpid()


async def judged(given: argparse.Namespace) -> dict[str, Any]:
    """Place the actors, take up the run or begin it, judge every group."""
    plan = recipe(given.url, given)
    config = Config(recipe=plan, placement=Placement(home=given.home, control_port=0))
    archive = await open_archive(config.placement)
    try:
        if not any(row["run"] == RUN for row in await archive.runs()):
            population = begin(TEMPLATES, plan)
            await archive.create_run(RunState(RUN, 0, plan, population, None, (Policy(population, None),)))
        store = await archive.open(RUN)
        gate, judge = f"gate/{token_hex(3)}", f"judge/{token_hex(3)}"
        actors = {
            gate: cluster._actor(gate, RateGate, config, RUN, resources={}, callers=CALLERS),
            judge: cluster._actor(judge, KnownJudge, config, RUN, given.url, Gate(gate), resources={}, callers=CALLERS),
        }
        await asyncio.gather(*(actor.open.remote() for actor in actors.values()))
        say({"ready": ray.get(actors[judge].pid.remote())})
        oracle: Any = None
        crew = Crew(None, pools.Judges((judge,), plan), None, store, oracle, TaskSet((), (), ()))  # pyright: ignore
        return await timed(given.rows // SIZE, plan, crew, store)
    finally:
        await archive.close()


def say(what: dict[str, Any]) -> None:
    """One line on the real stdout: inside of `connected` print goes to stderr."""
    print(json.dumps(what), file=sys.__stdout__, flush=True)


def main() -> None:
    """Read the command line, judge, print."""
    given = options().parse_args()
    with connected(Placement(home=given.home)):
        say(asyncio.run(judged(given)))


if __name__ == "__main__":
    main()
