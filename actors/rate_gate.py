"""One actor that every call to the endpoint passes: the cluster-wide spend so far. Waiting calls cost it nothing."""

import ray
from ray.actor import ActorHandle

from actors.calls import answer, insist, watched
from grpo_ray import llm
from grpo_ray.recipe import OracleSpec

SPENT_S = 60.0
"""How long counting one call's tokens may take."""


class RateGate(llm.RateGate):
    """llm's gate, named for Ray's lists."""

    def __init__(self, spec: OracleSpec) -> None:
        super().__init__(spec.max_usd, spec.usd_per_million)

    async def open(self) -> None:
        """A sign of life."""

    def __repr__(self) -> str:
        return "RateGate"


class Gate:
    """The rate gate of the cluster, as llm's clients see it. Entering may take as long as there is no money."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: ActorHandle | None = None

    async def enter(self) -> None:
        gate = self._found()
        await insist("the rate gate", [gate], lambda: watched("the rate gate", gate, gate.enter.remote()))

    async def spent(self, prompt_tokens: int, completion_tokens: int) -> None:
        gate, tokens = self._found(), (prompt_tokens, completion_tokens)
        await insist(
            "the rate gate", [gate], lambda: answer("the rate gate", gate, gate.spent.remote(*tokens), SPENT_S)
        )

    def _found(self) -> ActorHandle:
        if self._handle is None:
            self._handle = ray.get_actor(self._name)
        return self._handle
