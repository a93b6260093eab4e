"""One actor that every call to an endpoint passes, with the cluster-wide rates and the spend so far. Waiting calls cost
it nothing.
"""

import asyncio
from collections.abc import Awaitable

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.calls import answer, insist, watched
from grpo_ray.launch import open_archive
from grpo_ray.llm import gate
from grpo_ray.recipe import Config

SAID_S = 60.0
"""How long a word that is not waited on, as of what a call came to, may take."""
CALLERS = 100_000
"""Calls to the actor at once: those who wait for their turn may not keep those inside from leaving (Ray's own: 1000)."""


class RateGate:
    """The gate, in an actor: begun again, it knows from the store what was spent."""

    def __init__(self, config: Config, run: str) -> None:
        self._config, self._run = config, run
        self._gate: gate.RateGate | None = None

    async def open(self) -> None:
        """Read what was spent. Raises GrpoRayError where the store can't be opened."""
        if self._gate is None:
            archive = await open_archive(self._config.placement)
            try:
                attempts = await (await archive.open(self._run)).attempts()
            finally:
                await archive.close()
            self._gate = self._gate or gate.RateGate.of(gate.specs_of(self._config.recipe), gate.spent(attempts))

    async def enter(self, door: str, tokens: int, patience_s: float) -> int:
        await self.open()
        assert self._gate is not None
        return await self._gate.enter(door, tokens, patience_s)

    async def leave(self, door: str, lease: int, outcome: gate.Outcome) -> None:
        await self.open()
        assert self._gate is not None
        await self._gate.leave(door, lease, outcome)

    async def allow(self, door: str, max_usd: float | None) -> None:
        await self.open()
        assert self._gate is not None
        await self._gate.allow(door, max_usd)

    def __repr__(self) -> str:
        return "RateGate"


class Gate:
    """The rate gate of the cluster, as llm's clients see it. Entering may take as long as others are in the way."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: ActorHandle | None = None
        self._givings: set[asyncio.Task[None]] = set()

    async def enter(self, door: str, tokens: int, patience_s: float) -> int:
        one, asked = self._found(), list[ObjectRef[int]]()

        def ask() -> Awaitable[int]:
            asked.append(one.enter.remote(door, tokens, patience_s))
            return watched("the rate gate", one, asked[-1])

        try:
            return await insist("the rate gate", [one], ask)
        except asyncio.CancelledError:
            for ref in asked[-1:]:
                giving = asyncio.create_task(self._give_back(door, ref))
                self._givings.add(giving)
                giving.add_done_callback(self._givings.discard)
            raise

    async def _give_back(self, door: str, ref: ObjectRef[int]) -> None:
        """Give back what a caller that went away was given, when its turn comes.

        Not by `ray.cancel`: a call that has ended meanwhile then seems cancelled, and its lease is lost.
        """
        try:
            lease = await ref
        except RayError:
            return
        await self.leave(door, lease, gate.Outcome("given_up"))

    async def leave(self, door: str, lease: int, outcome: gate.Outcome) -> None:
        await self._say("leave", door, lease, outcome)

    async def allow(self, door: str, max_usd: float | None) -> None:
        await self._say("allow", door, max_usd)

    async def _say(self, verb: str, *given: object) -> None:
        one = self._found()
        await insist(
            "the rate gate", [one], lambda: answer("the rate gate", one, getattr(one, verb).remote(*given), SAID_S)
        )

    def _found(self) -> ActorHandle:
        if self._handle is None:
            self._handle = ray.get_actor(self._name)
        return self._handle
