"""The driver's side: connect to Ray or start one, see that the actors fit and answer, wait for the run, tidy up."""

import asyncio
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from actors.environment import NUMERIC

# isort: split
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.calls import ATTEMPTS, brief, log, own
from grpo_ray.errors import ConfigError, UnreachableError
from grpo_ray.recipe import Placement
from grpo_ray.types import TaskSet

START_S = 900.0
"""How long placing the actors and loading the models may take; Ray says nothing when a node is missing."""
CLOSE_S = 5.0
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in a driver that `ray job submit` started."""


@contextmanager
def connected(place: Placement, trainers: int = 1) -> Iterator[None]:
    """Inside, Ray is there: one of its own (`local`), or the cluster at `placement.ray`. Raises UnreachableError.

    A driver that `ray job submit` started is in a cluster already, and stays in it. What Ray prints (that a worker
    died, say) goes to stderr: stdout is for results.
    """
    address = "auto" if place.ray == "local" and JOB in os.environ else place.ray
    mine: dict[str, Any] = {"runtime_env": {"env_vars": NUMERIC}}
    if address == "local":  # its workers inherit this process's environment, API keys too
        room = place.generators + trainers
        mine = {"num_cpus": max(os.cpu_count() or 1, room), "resources": {"mlx": room}, "include_dashboard": False}
    try:
        ray.init(address, **mine, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as fault:  # Ray raises bare ones too, as when a busy machine starts it too slowly
        ray.shutdown()
        raise UnreachableError(_no_cluster(address, fault)) from fault
    with redirect_stdout(sys.stderr):
        try:
            _guard_token()
            yield
        finally:
            ray.shutdown()


def _no_cluster(address: str, fault: Exception) -> str:
    first = next(iter(str(fault).strip().splitlines()), "") or type(fault).__name__
    if address == "local":
        return f"Ray did not start here ({first}); is the machine busy? Try again, or without Ray: placement.ray: off"
    return (
        f"no Ray cluster can be joined at placement.ray: {address} ({first}). Is one up (ray status), and is its token "
        "in ~/.ray/auth_token here? A cluster without tokens needs RAY_AUTH_MODE=disabled; placement.ray: local, none"
    )


def _guard_token() -> None:
    """Ray writes the token of a new cluster for everybody to read."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)


def preflight(needed: dict[str, float]) -> None:
    """Raise ConfigError when the cluster, were it idle, could not hold what the actors need; Ray would wait for ever."""
    there = ray.cluster_resources()
    short = [
        f"{name}: {amount:g} needed, {there.get(name, 0):g} there"
        for name, amount in sorted(needed.items())
        if there.get(name, 0) < amount
    ]
    if short:
        raise ConfigError(
            f"this Ray cluster is too small ({'; '.join(short)}). Start Ray on every Mac that shall hold a model with "
            "--resources '{\"mlx\": 1}' (cluster.yaml does), or lower placement.generators"
        )


async def ready(actors: Mapping[str, ActorHandle]) -> None:
    """Return when every actor is placed and has opened what it needs. Raises GrpoRayError."""
    opened = [asyncio.ensure_future(actor.open.remote()) for actor in actors.values()]
    try:
        async with asyncio.timeout(START_S):
            await asyncio.gather(*opened)
    except TimeoutError:
        late = [name for name, one in zip(actors, opened, strict=True) if not one.done() or one.cancelled()]
        raise UnreachableError(f"not ready within {START_S:g} s: {', '.join(late)}; see ray status") from None
    except RayTaskError as fault:
        raise own(fault) from None
    except RayError as fault:
        raise UnreachableError(f"an actor did not start: {brief(fault)}") from fault


async def finished(name: str, tasks: TaskSet) -> dict[str, Any]:
    """What the coordinator's run comes to; begun again from the newest saved state when the coordinator dies."""
    coordinator: Any = ray.get_actor(name)
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            return await coordinator.conduct.remote(tasks)
        except RayTaskError as fault:
            raise own(fault) from None
        except RayActorError as fault:
            reason = brief(fault)
            log.warning("the coordinator died (%s); going on from the newest saved state", reason)
            await _back(coordinator)
    raise UnreachableError(f"the coordinator died {ATTEMPTS} times; last: {reason}")


async def _back(coordinator: Any) -> None:
    async with asyncio.timeout(START_S):
        while True:
            with suppress(RayActorError):
                return await coordinator.open.remote()
            await asyncio.sleep(1)


async def dismiss(actors: Mapping[str, ActorHandle], closing: Sequence[str]) -> None:
    """Let those that hold connections close them, then end every actor's process."""
    farewells = [asyncio.ensure_future(actors[name].close.remote()) for name in closing]
    await asyncio.wait(farewells, timeout=CLOSE_S)
    for farewell in farewells:
        if farewell.done() and not farewell.cancelled() and (fault := farewell.exception()):
            log.info("an actor was gone before it could close: %s", fault)
    for actor in actors.values():
        ray.kill(actor)
