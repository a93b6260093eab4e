"""One remote call with a deadline: its answer, the fault of the actor's own code, or Down, after which it may be
called again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from grpo_ray.errors import GrpoRayError, UnreachableError

PING_S = 60.0
"""How long an asynchronous actor that is at work may take to say that it lives."""
REVIVE_S = 600.0
"""How long a dead actor may take to come back: Ray's notice of a lost node, its restart, the model's loading."""
ATTEMPTS = 5
"""How often one piece of work is begun; one that kills every actor it meets is given up."""
log = logging.getLogger("grpo_ray.actors")
T = TypeVar("T")


class Down(Exception):
    """An actor died, hung or can't be reached, with Ray's words; its work may be done again."""


async def answer(what: str, handle: ActorHandle, ref: Awaitable[T], timeout_s: float) -> T:
    """What a call on `handle` returns. Raises Down, or the fault that the actor's own code raised.

    A call that takes longer than `timeout_s` is as good as dead: its process is ended, and Ray begins a new one.
    """
    try:
        return await asyncio.wait_for(ref, timeout_s)
    except TimeoutError:
        ray.kill(handle, no_restart=False)
        raise Down(f"{what} did not answer within {timeout_s:g} s") from None
    except RayTaskError as fault:
        raise own(fault) from None
    except RayError as fault:
        raise Down(f"{what} is gone ({type(fault).__name__}): {brief(fault)}") from None


async def watched(what: str, handle: ActorHandle, ref: Awaitable[T]) -> T:
    """The answer of an asynchronous actor, however long it waits (for money, say), as long as it says that it lives."""
    flight = asyncio.ensure_future(ref)
    while not flight.done():
        await asyncio.wait([flight], timeout=PING_S)
        if not flight.done():
            await answer(what, handle, handle.open.remote(), PING_S)
    return await answer(what, handle, flight, PING_S)


async def revived(what: str, handle: ActorHandle) -> None:
    """Return when the actor answers (again). Raises UnreachableError after REVIVE_S, or its own code's fault."""
    deadline, pause = monotonic() + REVIVE_S, 0.2
    while True:
        try:
            return await answer(what, handle, handle.open.remote(), max(1.0, deadline - monotonic()))
        except Down as fault:
            if monotonic() > deadline:
                raise UnreachableError(f"{what} did not come back within {REVIVE_S:g} s: {fault}") from None
        await asyncio.sleep(pause)
        pause = min(5.0, pause * 2)


async def insist(what: str, handles: Sequence[ActorHandle], call: Callable[[], Awaitable[T]]) -> T:
    """The answer of `call` on these actors, made again whenever one of them died. Raises UnreachableError."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            return await call()
        except Down as fault:
            reason = str(fault)
            log.warning("%s; its work is done again", reason)
            for handle in handles:
                await revived(what, handle)
    raise UnreachableError(f"{what} died {ATTEMPTS} times over the same work; last: {reason}")


def own(fault: RayTaskError) -> Exception:
    """What an actor's code raised: a person's fault bare, a bug with the actor's traceback."""
    cause: Any = fault.cause
    return cause if isinstance(cause, GrpoRayError) else fault


def brief(fault: RayError) -> str:
    """The first line of what Ray says."""
    return next((line.strip() for line in str(fault).splitlines() if line.strip()), "")
