"""The topology on one screen: which class, how many, on which resources."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from typing import Any

from actors.driver import connected, dismiss, finished, preflight, ready

# isort: split
import ray
from ray.actor import ActorHandle

from actors import pools
from actors.control import Control
from actors.coordinator import Coordinator
from actors.generator import Generator
from actors.judge import Judge
from actors.rate_gate import CALLERS, Gate, RateGate
from actors.trainer import Trainer
from grpo_ray.backends import LIGHT
from grpo_ray.continuous import batched
from grpo_ray.crew import CONTENTS, Contents, open_oracle
from grpo_ray.protocols import Archive, Crew
from grpo_ray.recipe import Config, Named
from grpo_ray.types import SlotsFound, TaskSet, Wave

HEAD = {"node:__internal_head__": 0.001}
"""Where the store is: coordinator, judges, rate gate and control server stay with it."""
GENERATOR_MLX, TRAINER_MLX = 0.6, 0.4
"""Of a node's {"mlx": 1}: a Mac has one GPU, so it holds a generator and the trainer, but never two generators."""


@dataclass(frozen=True, slots=True)
class Cast:
    """The names of one run's actors. Names, because a constructor's arguments must outlive every restart."""

    coordinator: str
    control: str
    gate: str
    judges: tuple[str, ...]
    generators: tuple[str, ...]
    trainers: tuple[str, ...]


def names(config: Config, run: str) -> Cast:
    """New names, so that a run's next actors never meet its last ones."""
    nonce, place = token_hex(3), config.placement

    def some(role: str, count: int) -> tuple[str, ...]:
        return tuple(f"{run}/{role}-{number}/{nonce}" for number in range(count))

    (coordinator,), (control,), (gate,) = some("coordinator", 1), some("control", 1), some("gate", 1)
    trainers = some("trainer", config.recipe.trainers if config.recipe.trainer else 0)
    return Cast(coordinator, control, gate, some("judge", place.judges), some("generator", place.generators), trainers)


def assemble(config: Config, run: str, base_url: str, cast: Cast) -> dict[str, ActorHandle]:
    """Begin every actor of a run, by name. They live as long as the handles."""
    recipe, gate, make_crew = config.recipe, Gate(cast.gate), partial(crew, config, run, base_url, cast)
    actors = {
        cast.control: _actor(cast.control, Control, config.placement, resources=HEAD),
        cast.gate: _actor(cast.gate, RateGate, config, run, resources=HEAD, callers=CALLERS),
        cast.coordinator: _actor(cast.coordinator, Coordinator, config, run, make_crew, resources=HEAD),
    }
    for name in cast.judges:
        actors[name] = _actor(name, Judge, config, run, base_url, gate, resources=HEAD, callers=CALLERS)
    actors |= _generators(config, cast.generators)
    for name in cast.trainers:
        mlx = _mlx(recipe.trainer, TRAINER_MLX)
        actors[name] = _actor(name, Trainer, recipe.model, recipe.trainer, num_cpus=1, resources=mlx)
    return actors


def _generators(config: Config, names: Sequence[str]) -> dict[str, ActorHandle]:
    mlx = _mlx(config.recipe.generator, GENERATOR_MLX)
    return {name: _actor(name, Generator, config.recipe, num_cpus=1, resources=mlx) for name in names}


def _actor(
    name: str, plain: type, *given: Any, resources: dict[str, float], num_cpus: float = 0, callers: int | None = None
) -> ActorHandle:
    """Begun again whenever it dies. What it was doing then is done again by the pools, which know how.

    `callers`: how many calls an asynchronous actor has in the air at once (Ray's own: 1000), all of them waiting mostly.
    """
    kind: Any = ray.remote(plain)
    place = {"num_cpus": num_cpus, "resources": resources, "scheduling_strategy": "SPREAD"}
    more = {"max_concurrency": callers} if callers else {}
    return kind.options(name=name, max_restarts=-1, max_task_retries=0, **place, **more).remote(*given)


def _mlx(backend: Named | None, share: float) -> dict[str, float]:
    return {} if backend is None or backend.name in LIGHT else {"mlx": share}


def needs(config: Config) -> dict[str, float]:
    """What the actors together ask of a cluster."""
    recipe, generators = config.recipe, config.placement.generators
    trainers = recipe.trainers if recipe.trainer else 0
    mlx = generators * _mlx(recipe.generator, GENERATOR_MLX).get("mlx", 0)
    mlx += trainers * _mlx(recipe.trainer, TRAINER_MLX).get("mlx", 0)
    return {"CPU": generators + trainers, "mlx": mlx, **HEAD}


@asynccontextmanager
async def crew(
    config: Config, run: str, base_url: str, cast: Cast, archive: Archive, tasks: TaskSet
) -> AsyncIterator[Crew]:
    """The crew as the coordinator has it: pools over actors; the oracle for mutations and exams is its own."""
    store, keep = await archive.open(run), max(CONTENTS, config.recipe.lag + 2)
    contents = Contents(store, keep)
    generators = pools.Generators(cast.generators, pools.Parcels(contents, keep))
    async with open_oracle(config, archive, run, base_url, Gate(cast.gate)) as oracle:
        yield Crew(
            batched(generators, len(cast.generators), config.recipe),
            pools.Judges(cast.judges, config.recipe),
            pools.Trainers(cast.trainers, contents) if cast.trainers else None,
            store,
            oracle,
            tasks,
        )


@asynccontextmanager
async def on_stage(config: Config, run: str, base_url: str) -> AsyncIterator[Cast]:
    """Inside, every actor of the run is placed and has loaded what it needs; afterwards all are gone."""
    cast = names(config, run)
    actors = assemble(config, run, base_url, cast)
    try:
        await ready(actors)
        yield cast
    finally:
        await dismiss(actors, [cast.coordinator, cast.control, *cast.judges])


@contextmanager
def joined(config: Config) -> Iterator[Callable[[Wave], Awaitable[SlotsFound]]]:
    """Inside, Ray is there and large enough for the run: to be known before the run begins. Raises GrpoRayError.

    Gives what finds its slots, should the config leave them open.
    """
    with connected(config.placement, config.recipe.trainers):
        preflight(needs(config))
        yield partial(find_slots, config)


async def find_slots(config: Config, wave: Wave) -> SlotsFound:
    """What suits the nodes, by as many generators as the run will have, which are made for this alone."""
    if config.recipe.generator.name in LIGHT:
        return SlotsFound(wave.sampling.slots)
    nonce = token_hex(3)
    actors = _generators(config, [f"slots-{number}/{nonce}" for number in range(config.placement.generators)])
    try:
        await ready(actors)
        return await pools.find_slots(list(actors.values()), wave)
    finally:
        for actor in actors.values():
            ray.kill(actor)


async def run(config: Config, run: str, tasks: TaskSet, base_url: str) -> dict[str, Any]:
    """Take a run, begun in `placement.storage`, to its end or to where someone says stop, on a Ray that is `joined`.

    Returns run, step, steps, finished, state_hash. Raises GrpoRayError where a person can help.
    """
    async with on_stage(config, run, base_url) as cast:
        return await finished(cast.coordinator, tasks)
