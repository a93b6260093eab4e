"""The oracle: what judges and mutations may ask. Every reply is recorded before it is used, and replayed when a step
is done again, so that a resumed run hears the same words as an unbroken one.
"""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any

from grpo_ray.canonical import digest
from grpo_ray.checker import Checker
from grpo_ray.errors import ConfigError, OracleError, OutOfMoney
from grpo_ray.llm.endpoint import Endpoint, Trail, schema_of
from grpo_ray.llm.gate import BUDGET, BUDGET_SPENT, Gate, Spent
from grpo_ray.protocols import Archive, Oracle, Store
from grpo_ray.recipe import OracleSpec
from grpo_ray.registry import hint
from grpo_ray.types import Message, Reply, Task

LOOK_S = 2.0
"""How often a process looks what people have allowed a door to cost."""
Ask = Callable[[Trail], Awaitable[Reply]]


def make_oracle(
    spec: OracleSpec,
    store: Store,
    *,
    base_url: str,
    gate: Gate | None,
    checker: Checker,
    archive: Archive | None = None,
    run: str = "",
    further: Mapping[str, OracleSpec] | None = None,
    since: int = 0,
    wait: bool = True,
    look_s: float = LOOK_S,
) -> "RecordingOracle":
    """The oracle of one process, recording in `store`; the bundled server answers at `base_url`.

    What people allowed counts from the event after `since` on. Without `wait`, spent money is OutOfMoney at once: for
    runs that nobody else can reach. Raises ConfigError without a key.
    """
    specs = {"": spec, **(further or {})}
    endpoints = {
        name: Endpoint(one, base_url=base_url if one.base_url == "bundled" else one.base_url, gate=gate)
        for name, one in specs.items()
    }
    return RecordingOracle(Switchboard(endpoints, store, checker, archive, run, gate, since, wait, look_s))


@dataclass(slots=True)
class Switchboard:
    """What an oracle and its children share: endpoints, store, checker, and the questions in the air."""

    endpoints: Mapping[str, Endpoint]
    store: Store
    checker: Checker
    archive: Archive | None
    run: str
    gate: Gate | None
    """None: nobody else can open it, and a call without money fails as any other does."""
    since: int = 0
    """The newest event when the process began, when the config's max_usd held."""
    wait: bool = True
    look_s: float = LOOK_S
    flying: dict[str, asyncio.Task[Reply]] = field(default_factory=dict)
    waiting: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Door → the one who waits there for money, for all."""
    allowed: dict[str, float | None] = field(default_factory=dict)
    """Door → the newest word on what it may cost."""
    seen: int = 0
    looked: float = -math.inf
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def shared(self, key: str, trail: Trail, ask: Ask) -> Reply:
        """The reply under a key that many may ask for at once: asked for by the first, who may go away meanwhile."""
        if key not in self.flying:
            self.flying[key] = asyncio.create_task(self.recorded(key, trail, ask, anywhere=True))
            self.flying[key].add_done_callback(partial(self._landed, key))
        return await asyncio.shield(self.flying[key])

    def _landed(self, key: str, task: asyncio.Task[Reply]) -> None:
        """Take a question from the air; a fault that nobody waited for is on the attempts."""
        self.flying.pop(key, None)
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Give up the questions that nobody waits for any more, close the connections, end the checker's process."""
        left = [*self.flying.values(), *self.waiting.values()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for endpoint in self.endpoints.values():
            await endpoint.close()
        await self.checker.close()

    async def recorded(self, key: str, trail: Trail, ask: Ask, *, anywhere: bool = False) -> Reply:
        """The stored reply, or a new one, stored; what was tried for it is stored too, however it ended."""
        known = await self.store.load_reply(key, anywhere=anywhere)
        if known is not None:
            return known if not anywhere else await self.store.save_reply(key, known)
        try:
            reply = await self._paid(trail, ask)
        except (OracleError, OutOfMoney):
            await self.store.save_attempts(trail.attempts)
            raise
        return await self.store.save_reply(key, reply, trail.attempts)

    async def _paid(self, trail: Trail, ask: Ask) -> Reply:
        """Ask; while there is no money, wait until a person allows more."""
        while True:
            if self.gate and monotonic() - self.looked >= self.look_s:
                await self._heed(self.gate)
            try:
                return await ask(trail)
            except Spent as fault:
                await self._wait_for_money(fault)

    async def _wait_for_money(self, fault: Spent) -> None:
        """Wait, beside all others at the door, for the one who looks. Raises OutOfMoney."""
        if self.gate is None:
            raise fault
        if not self.wait:
            raise OutOfMoney(f"{fault}; set a larger max_usd (--set oracle.max_usd=USD, or that of oracles.NAME)")
        door = fault.door
        if door not in self.waiting:
            self.waiting[door] = asyncio.create_task(self._money(fault, self.gate))
            self.waiting[door].add_done_callback(partial(self._waited, door))
        await asyncio.shield(self.waiting[door])

    def _waited(self, door: str, task: asyncio.Task[None]) -> None:
        """Let the next caller without money wait anew; whoever waited has heard of a fault."""
        self.waiting.pop(door, None)
        if not task.cancelled():
            task.exception()

    async def _money(self, fault: Spent, gate: Gate) -> None:
        """Return when more is allowed at the door. Raises OutOfMoney when the run is to stop."""
        detail = {"door": fault.door, "max_usd": fault.max_usd, "since": self.since}
        await self.store.save_event(0, BUDGET_SPENT, detail)
        while True:
            await self._heed(gate)
            usd = self.allowed.get(fault.door, fault.max_usd)
            if usd is None or usd > fault.max_usd:
                return await gate.allow(fault.door, usd)
            if self.archive and await self.archive.wanted(self.run) == "stop":
                raise OutOfMoney(
                    f"stopped while waiting for money: {fault}. Resume with a larger max_usd; or resume as it is, and then: "
                    f"grpo-ray budget {self.run} --usd MORE --door {fault.door!r}"
                )
            await asyncio.sleep(self.look_s)

    async def _heed(self, gate: Gate) -> None:
        """Tell the gate what people have allowed, or allow no longer, since the process began; the newest word wins."""
        self.looked = monotonic()
        async with self.turn:
            doors = {one.door for one in self.endpoints.values()}
            for event in await self._news(max(self.since, self.seen)):
                self.seen = event["id"]
                if event["kind"] == BUDGET and (door := event["detail"]["door"]) in doors:
                    self.allowed[door] = event["detail"]["max_usd"]
                    await gate.allow(door, self.allowed[door])

    async def _news(self, after: int) -> list[dict[str, Any]]:
        if self.archive:
            return await self.archive.events(self.run, after)
        return [event for event in await self.store.events() if event["id"] > after]


@dataclass(slots=True)
class RecordingOracle(Oracle):
    """Asks an endpoint only what the store has no reply to. A child made by `within` counts occurrences anew."""

    board: Switchboard
    scope: str = ""
    name: str = ""
    """Which of the recipe's oracles."""
    later: int = 0
    """What `again` adds to each nth."""
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def endpoint(self) -> Endpoint:
        return self.board.endpoints[self.name]

    def within(self, scope: str) -> "RecordingOracle":
        """A child whose replies are recorded under `scope`, inside this one's."""
        inner = f"{self.scope}/{scope}" if self.scope else scope
        return replace(self, scope=inner, seen=Counter())

    def at(self, name: str) -> "RecordingOracle":
        if name not in self.board.endpoints:
            known = [one for one in self.board.endpoints if one]
            raise ConfigError(f"there is no {name!r} among oracles{hint(name, known)}")
        return replace(self, name=name)

    def again(self, times: int) -> "RecordingOracle":
        return replace(self, later=self.later + times)

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        spec, endpoint = self.endpoint.spec, self.endpoint
        request = {
            "kind": "complete",
            "model": spec.model,
            "temperature": spec.temperature,
            "max_tokens": spec.max_tokens,
            "messages": list(messages),
            "shape": schema_of(shape) if shape else None,
        }
        if spec.reasoning_effort is not None:
            request["reasoning_effort"] = spec.reasoning_effort

        async def ask(trail: Trail) -> Reply:
            return await endpoint.complete(messages, shape=shape, trail=trail)

        if nth is None:
            return await self._recorded(request, ask)
        name = digest(request)
        return await self.board.shared(digest(["nth", name, nth + self.later]), Trail(name, self.scope), ask)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        endpoint, model = self.endpoint, self.endpoint.spec.embedding_model or ""

        async def ask(trail: Trail) -> Reply:
            return Reply(json.dumps(await endpoint.embed(texts, trail)), model)

        reply = await self._recorded({"kind": "embed", "model": model, "texts": list(texts)}, ask)
        return json.loads(reply.text)

    async def nearest(self, text: str, *, limit: int = 10) -> list[tuple[str, float]]:
        archive = self.board.archive
        if archive is None:
            raise OracleError("nearest needs a storage that keeps embeddings; this oracle was made without one")
        (vector,) = await self.embed([text])

        async def ask(trail: Trail) -> Reply:
            return Reply(json.dumps(await archive.search(self.board.run, vector, limit)), "")

        reply = await self._recorded({"kind": "nearest", "text": text, "limit": limit}, ask)
        return [(rollout, similarity) for rollout, similarity in json.loads(reply.text)]

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        return await self.board.checker.check(task, answers, verifier=verifier, settings=settings)

    async def close(self) -> None:
        """Close the connections and end the checker's process; children share both."""
        await self.board.close()

    async def _recorded(self, request: dict[str, Any], ask: Ask) -> Reply:
        """The stored reply to this scope's nth such request, or a new one, stored; never by URL: servers may move."""
        name = digest(request)
        occurrence = self.seen[name]
        self.seen[name] += 1
        key = digest([self.scope, name, occurrence])
        return await self.board.recorded(key, Trail(name, self.scope), ask)
