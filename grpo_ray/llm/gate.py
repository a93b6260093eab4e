"""The gate that every call to an endpoint passes, one over the whole cluster: how many at once, how many a minute,
endpoints that are dead or without quota, and money.

A *door* is one model at one endpoint: what is limited, and paid, together.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic, time_ns
from typing import Any, Protocol

from grpo_ray.errors import OracleError
from grpo_ray.llm.addresses import host
from grpo_ray.llm.pace import Pacer, Slots, Status, Window
from grpo_ray.recipe import OracleSpec, Recipe
from grpo_ray.types import Attempt

BREAK_S = 60.0
"""How long an endpoint without quota is left alone before calls may try again."""
DEAD = 5
"""Failures in a row to reach an endpoint after which its callers take turns."""
LEASE_S = 60.0
"""How long after its own time-out a caller that said no more counts as dead."""

BUDGET, BUDGET_SPENT = "budget", "budget_spent"
"""Events: a person allows a door to cost more; a door's money is spent, and calls wait. {"door", "max_usd"}."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one call, as far as the gate is concerned."""

    status: Status
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retry_after_s: float = 0.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """What the endpoint said that it allows."""
    why: str = ""


class Closed(OracleError):
    """Nobody may pass for now, and why."""


class Spent(Closed):
    """The money that a door may cost is used up."""

    def __init__(self, why: str, door: str, max_usd: float) -> None:
        super().__init__(why)
        self.door, self.max_usd = door, max_usd

    def __reduce__(self) -> tuple[type["Spent"], tuple[str, str, float]]:
        return Spent, (str(self), self.door, self.max_usd)


class Gate(Protocol):
    """What every call passes: the cluster's rate gate, or a `RateGate` of this process."""

    async def enter(self, door: str, tokens: int, patience_s: float) -> int:
        """Wait for a turn, at most `patience_s`; returns a lease. `tokens`: a guess. Raises Closed, or Spent."""
        ...

    async def leave(self, door: str, lease: int, outcome: Outcome) -> None:
        """Say what a call came to."""
        ...

    async def allow(self, door: str, max_usd: float | None) -> None:
        """Change what a door may cost in all (None: no limit)."""
        ...


def door_of(spec: OracleSpec, base_url: str) -> str:
    """The door's name: host and model."""
    return f"{'bundled' if spec.base_url == 'bundled' else host(base_url)} {spec.model}"


def specs_of(recipe: Recipe) -> dict[str, OracleSpec]:
    """Door → the spec that first names it; doors are told apart by host and model only."""
    found: dict[str, OracleSpec] = {}
    for spec in (recipe.oracle, *recipe.oracles.values()):
        found.setdefault(door_of(spec, spec.base_url), spec)
    return found


def usd(spec: OracleSpec, prompt_tokens: int, completion_tokens: int) -> float:
    """What a call costs."""
    price_in, price_out = spec.usd_per_million
    return (prompt_tokens * price_in + completion_tokens * price_out) / 1e6


def spent(attempts: Iterable[Attempt]) -> dict[str, float]:
    """Door → what calls have cost there, in USD."""
    found: dict[str, float] = {}
    for one in attempts:
        found[one.door] = found.get(one.door, 0.0) + one.usd
    return found


def without_money(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """The doors of a run at which calls wait for money, by its events."""
    caps: dict[str, float] = {}
    for detail, kind in ((one["detail"], one["kind"]) for one in events):
        if kind == BUDGET_SPENT:
            caps[detail["door"]] = detail["max_usd"]
        elif kind == BUDGET and (detail["max_usd"] is None or detail["max_usd"] > caps.get(detail["door"], 0.0)):
            caps.pop(detail["door"], None)
    return list(caps)


# ── the gate ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Door:
    """One model at one endpoint."""

    name: str
    spec: OracleSpec
    slots: Slots
    requests: Pacer
    tokens: Pacer
    max_usd: float | None
    usd: float = 0.0
    fails: int = 0
    quiet_until: float = 0.0
    shut: tuple[float, str] = (0.0, "")
    """Until when calls are refused, and why."""
    leases: set[int] = field(default_factory=set)
    """The calls in the air."""
    landed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever one of them is over."""
    price: float = 0.0
    """What a call costs, in the mean."""
    asked_s: float = 0.0
    """The longest that refusals of late asked to wait."""
    learnt: bool = False
    """Whether the rate is one that was found by refusals, and so may be too low."""

    def check(self, now: float) -> None:
        """Raise Spent or Closed where nobody may pass."""
        if self.max_usd is not None and self.usd >= self.max_usd:
            raise Spent(f"${self.usd:.2f} of ${self.max_usd:g} for {self.name} is spent", self.name, self.max_usd)
        if now < self.shut[0]:
            raise Closed(self.shut[1])

    async def afford(self) -> None:
        """Wait while all the money that is left may go to calls in the air, so that they alone can pass the cap."""
        while (
            self.max_usd is not None and self.leases and self.usd + self.price * (len(self.leases) + 1) > self.max_usd
        ):
            self.landed.clear()
            await self.landed.wait()
            self.check(monotonic())

    def wait(self, tokens: int, now: float) -> float:
        """Take a turn; returns the seconds until it comes."""
        turn = max(self.requests.reserve(1, now), self.tokens.reserve(tokens, now))
        return max(turn, self.quiet_until - now)

    def learn(self, outcome: Outcome, now: float) -> None:
        """Take to heart what one call came to."""
        cost = usd(self.spec, outcome.prompt_tokens, outcome.completion_tokens)
        self.usd += cost
        if outcome.status == "given_up":
            return
        self.price += (cost - self.price) / 8 if cost else 0.0
        self._told(outcome)
        if outcome.status == "quota":
            self.shut = (now + BREAK_S, outcome.why)
        if outcome.status == "unreachable":
            self._failed(now)
        elif self.fails:
            self.fails, self.quiet_until = 0, 0.0
            self.slots.widen(self.slots.ceiling // 2)
        if window := self.slots.judge(outcome.status, now):
            self._pace(window, now)

    def _told(self, outcome: Outcome) -> None:
        """The rates that the endpoint says; the config's go first."""
        said = outcome.requests_per_minute
        self.learnt = self.learnt and not said
        self.requests.per_minute = self.spec.requests_per_minute or said or self.requests.per_minute
        self.tokens.per_minute = self.spec.tokens_per_minute or outcome.tokens_per_minute or self.tokens.per_minute
        self.asked_s = max(self.asked_s, outcome.retry_after_s)

    def _pace(self, window: Window, now: float) -> None:
        """Where many were refused, all wait as long as was asked; a rate that nobody tells is found by what passed."""
        if window.is_limit(window.limited):
            self.quiet_until = max(self.quiet_until, now + self.asked_s)
            if self.learnt or not self.requests.per_minute:
                self.requests.per_minute, self.learnt = max(6.0, 60 * window.rate(now)), True
        elif self.learnt and self.requests.per_minute:
            self.requests.per_minute *= 1.1
        self.asked_s = 0.0

    def _failed(self, now: float) -> None:
        """The callers of an endpoint that seems dead go on trying, one at a time, ever more rarely.

        Calls that were in the air already fail together, and count no further.
        """
        if now < self.quiet_until:
            return
        self.fails += 1
        if self.fails >= DEAD:
            self.slots.limit = 1
            self.quiet_until = now + min(30.0, 0.5 * 2.0 ** min(10, self.fails - DEAD))


@dataclass(slots=True)
class RateGate:
    """The gate itself, for one process, or for an actor that all others ask."""

    doors: dict[str, Door] = field(default_factory=dict)
    leases: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Lease → its door, and when its holder counts as dead."""
    lease_s: float = LEASE_S
    last: int = field(default_factory=time_ns)
    """The newest lease; a gate begun again gives none that the one before it gave."""
    burial: asyncio.TimerHandle | None = None
    """When the next holder may be dead: callers who wait for its slot wake nobody by themselves."""

    @classmethod
    def of(cls, specs: Mapping[str, OracleSpec], spent: Mapping[str, float] | None = None) -> "RateGate":
        """A gate with a door a spec; `spent` USD at each so far."""
        gate = cls()
        for name, spec in specs.items():
            pacers = Pacer(spec.requests_per_minute), Pacer(spec.tokens_per_minute)
            gate.doors[name] = Door(
                name, spec, Slots(spec.concurrency), *pacers, spec.max_usd, (spent or {}).get(name, 0.0)
            )
        return gate

    async def enter(self, door: str, tokens: int, patience_s: float) -> int:
        """Wait for a turn, at most `patience_s`. Raises Closed, Spent, or KeyError for a door that is not there."""
        one = self.doors[door]
        one.check(monotonic())
        self._bury()
        try:
            async with asyncio.timeout(patience_s):
                await one.slots.take()
                try:
                    one.check(monotonic())
                    await one.afford()
                    await asyncio.sleep(one.wait(tokens, monotonic()))
                    one.check(monotonic())
                except BaseException:
                    one.slots.free()
                    raise
        except TimeoutError:
            raise Closed(f"{one.spec.model} was busy with other calls for {patience_s:g} s") from None
        self.last += 1
        self.leases[self.last] = (door, monotonic() + one.spec.timeout_s + self.lease_s)
        one.leases.add(self.last)
        one.price = one.price or usd(one.spec, tokens, 0)
        self._watch()
        return self.last

    async def leave(self, door: str, lease: int, outcome: Outcome) -> None:
        """Say what a call came to; its money counts even where the lease ran out, or another gate gave it."""
        self._end(lease)
        self.doors[door].learn(outcome, monotonic())

    async def allow(self, door: str, max_usd: float | None) -> None:
        """Change what a door may cost in all (None: no limit)."""
        self.doors[door].max_usd = max_usd

    async def total(self) -> dict[str, float]:
        """USD spent so far, by door."""
        return {name: one.usd for name, one in self.doors.items()}

    def _watch(self) -> None:
        """Have the dead buried when the next lease runs out."""
        if self.burial is None and self.leases:
            due = min(until for _, until in self.leases.values()) - monotonic()
            self.burial = asyncio.get_running_loop().call_later(max(0.0, due), self._bury)

    def _bury(self) -> None:
        """Free the slots of callers that died with a call in the air."""
        if self.burial:
            self.burial.cancel()
            self.burial = None
        for lease in [lease for lease, (_, until) in self.leases.items() if until <= monotonic()]:
            self._end(lease)
        self._watch()

    def _end(self, lease: int) -> None:
        """A call is over; nothing where it was already."""
        if (held := self.leases.pop(lease, None)) is not None:
            door = self.doors[held[0]]
            door.leases.discard(lease)
            door.landed.set()
            door.slots.free()
