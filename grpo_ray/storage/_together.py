"""Many small requests as few large ones: what comes in while one is under way goes out with the next."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
MOST = 256
"""Requests that go out at once."""


class Together(Generic[K, V]):
    """`await together(item)` is its part of what `work` makes of a list of items, one result an item.

    A request waits for nobody: alone, it goes out at once. Where a list fails, each of its items is tried by itself.
    """

    def __init__(self, work: Callable[[list[K]], Awaitable[list[V]]], most: int = MOST) -> None:
        self._work, self._most = work, most
        self._waiting: list[tuple[K, asyncio.Future[V]]] = []
        self._server: asyncio.Task[None] | None = None

    async def __call__(self, item: K) -> V:
        """The result for one item, or the fault that it ended with."""
        turn: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, turn))
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        return await turn

    async def _serve(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            fault = await self._answer(batch)
            if fault is not None and len(batch) == 1:
                _fail(batch[0][1], fault)
            elif fault is not None:
                for one in batch:
                    _fail(one[1], await self._answer([one]))

    async def _answer(self, batch: list[tuple[K, asyncio.Future[V]]]) -> Exception | None:
        """Hand the results out; or the fault, which is its askers' to mend."""
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as fault:
            return fault
        for (_, turn), result in zip(batch, results, strict=True):
            if not turn.done():
                turn.set_result(result)
        return None


def _fail(turn: "asyncio.Future[V]", fault: Exception | None) -> None:
    if fault is not None and not turn.done():
        turn.set_exception(fault)
