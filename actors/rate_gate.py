"""One actor that every call to an endpoint passes, with the cluster-wide rates and the spend so far. Waiting calls cost
it nothing.
"""

import ray
from ray.actor import ActorHandle

from actors.calls import answer, insist, watched
from grpo_ray import gate
from grpo_ray.launch import open_archive
from grpo_ray.recipe import Config

SAID_S = 60.0
"""How long a word that is not waited on, as of what a call came to, may take."""


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

    async def enter(self, door: str, tokens: int, patience_s: float) -> int:
        one = self._found()
        return await insist(
            "the rate gate", [one], lambda: watched("the rate gate", one, one.enter.remote(door, tokens, patience_s))
        )

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
