"""Oracles for a search without a run: one that counts its replies, and none at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from grpo_ray.errors import OracleError
from grpo_ray.protocols import Oracle
from grpo_ray.types import Message, Reply, Task


class Silent:
    """No oracle: whoever asks is told so."""

    replies = 0

    def within(self, scope: str) -> Self:
        return self

    def at(self, name: str) -> Self:
        return self

    def again(self, times: int) -> Self:
        return self

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        raise OracleError("there is no oracle")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise OracleError("there is no oracle")

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
        return [None for _ in answers]


@dataclass(slots=True)
class Counted:
    """An oracle, and how many replies it gave."""

    oracle: Oracle
    counter: list[int] = field(default_factory=lambda: [0])

    @property
    def replies(self) -> int:
        return self.counter[0]

    def within(self, scope: str) -> "Counted":
        return Counted(self.oracle.within(scope), self.counter)

    def at(self, name: str) -> "Counted":
        return Counted(self.oracle.at(name), self.counter)

    def again(self, times: int) -> "Counted":
        return Counted(self.oracle.again(times), self.counter)

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        self.counter[0] += 1
        return await self.oracle.complete(messages, shape=shape, nth=nth)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return await self.oracle.embed(texts)

    async def nearest(self, text: str, *, limit: int = 10) -> list[tuple[str, float]]:
        return await self.oracle.nearest(text, limit=limit)

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        return await self.oracle.check(task, answers, verifier=verifier, settings=settings)
