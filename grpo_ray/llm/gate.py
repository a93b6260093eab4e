"""The gate that every call to an endpoint passes, one over the whole cluster: how many at once, how many a minute,
endpoints that are dead or without quota, and money.

A *door* is one model at one endpoint: what is limited, and paid, together.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic, time_ns
from typing import Any, Literal, Protocol

from grpo_ray.errors import OracleError
from grpo_ray.llm.addresses import host
from grpo_ray.recipe import OracleSpec, Recipe
from grpo_ray.types import Attempt

BREAK_S = 60.0
"""How long an endpoint without quota is left alone before calls may try again."""
DEAD = 5
"""Failures in a row to reach an endpoint after which its callers take turns."""
PACE = 0.98
"""The share of a known rate that is used: clocks differ, and a refusal costs more than a wait."""
BURST_S = 1.0
"""What was left unused of a rate in the last so many seconds may still be used."""
TROUBLE = 0.1
"""The share of refusals in a window above which they are a limit, not an accident."""
LEASE_S = 60.0
"""How long after its own time-out a caller that said no more counts as dead."""

BUDGET, BUDGET_SPENT = "budget", "budget_spent"
"""Events: a person allows a door to cost more; a door's money is spent, and calls wait. {"door", "max_usd"}."""
Status = Literal["ok", "limited", "unreachable", "quota", "failed", "given_up"]
"""given_up: the caller went away first, so that nothing is known."""


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


# ── rates ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Pacer:
    """A rate kept by spacing (the generic cell rate algorithm): `due` is when the next one may pass."""

    per_minute: float | None
    due: float = 0.0

    def reserve(self, amount: float, now: float) -> float:
        """Take `amount`'s turn; returns the seconds until it comes."""
        if not self.per_minute:
            return 0.0
        begin = max(self.due, now - BURST_S)
        self.due = begin + amount * 60.0 / (self.per_minute * PACE)
        return max(0.0, begin - now)


# ── how many at once ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Window:
    """What came back since a moment, while all slots were taken."""

    began: float
    done: int = 0
    refused: int = 0


class Slots:
    """As many calls at once as still pay: doubled while that makes more come back, fewer when refusals are many.

    Judged over windows of as many replies as there are slots. Never more than `ceiling`.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling, self.limit = ceiling, max(1, ceiling // 2)
        self.used = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._window = Window(monotonic())
        self._best: tuple[int, float] = (0, 0.0)
        self._hold = 0

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._queue)

    async def take(self) -> None:
        """Wait, in turn, for a slot."""
        if self.used < self.limit and not self._queue:
            self.used += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.free()
            raise

    def free(self) -> None:
        """Give a slot back."""
        self.used -= 1
        self._wake()

    def widen(self, limit: int) -> None:
        """Let at least so many in at once."""
        self.limit = max(self.limit, limit)
        self._wake()

    def judge(self, refused: bool, now: float) -> None:
        """Count one reply, and at a window's end set the limit anew."""
        window = self._window
        window.done += 1
        window.refused += refused
        if window.done < self.limit:
            return
        if window.refused > max(1, TROUBLE * window.done) or window.refused == window.done:
            self.limit, self._hold = max(1, int(self.limit * 0.7)), 4
        elif self._queue or self.used >= self.limit:
            self._climb(window.done / max(1e-9, now - window.began))
        self._window = Window(now)
        self._wake()

    def _climb(self, rate: float) -> None:
        """More slots if the last step up paid; back to where they paid if it did not, and a while without trying."""
        slots, before = self._best
        if self.limit > slots and rate < before * (1 + 0.25 * (self.limit / max(1, slots) - 1)):
            self.limit, self._hold = max(1, slots), 8
            return
        self._best = (self.limit, rate)
        self._hold -= self._hold > 0
        if not self._hold:
            self.limit = min(self.ceiling, self.limit * 2)

    def _wake(self) -> None:
        while self._queue and self.used < self.limit:
            turn = self._queue.popleft()
            if not turn.done():
                self.used += 1
                turn.set_result(None)


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

    def check(self, now: float) -> None:
        """Raise Spent or Closed where nobody may pass."""
        if self.max_usd is not None and self.usd >= self.max_usd:
            raise Spent(f"${self.usd:.2f} of ${self.max_usd:g} for {self.name} is spent", self.name, self.max_usd)
        if now < self.shut[0]:
            raise Closed(self.shut[1])

    def wait(self, tokens: int, now: float) -> float:
        """Take a turn; returns the seconds until it comes."""
        turn = max(self.requests.reserve(1, now), self.tokens.reserve(tokens, now))
        return max(turn, self.quiet_until - now)

    def learn(self, outcome: Outcome, now: float) -> None:
        """Take to heart what one call came to."""
        if outcome.status == "given_up":
            return
        self.usd += usd(self.spec, outcome.prompt_tokens, outcome.completion_tokens)
        self.requests.per_minute = (
            self.spec.requests_per_minute or outcome.requests_per_minute or self.requests.per_minute
        )
        self.tokens.per_minute = self.spec.tokens_per_minute or outcome.tokens_per_minute or self.tokens.per_minute
        if outcome.status == "quota":
            self.shut = (now + BREAK_S, outcome.why)
        if outcome.status == "unreachable":
            self._failed(now)
        elif self.fails:
            self.fails, self.quiet_until = 0, 0.0
            self.slots.widen(self.slots.ceiling // 2)
        self.slots.judge(outcome.status == "limited", now)

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
                    await asyncio.sleep(one.wait(tokens, monotonic()))
                    one.check(monotonic())
                except BaseException:
                    one.slots.free()
                    raise
        except TimeoutError:
            raise Closed(f"{one.spec.model} was busy with other calls for {patience_s:g} s") from None
        self.last += 1
        self.leases[self.last] = (door, monotonic() + one.spec.timeout_s + self.lease_s)
        self._watch()
        return self.last

    async def leave(self, door: str, lease: int, outcome: Outcome) -> None:
        """Say what a call came to; its money counts even where the lease ran out, or another gate gave it."""
        if self.leases.pop(lease, None):
            self.doors[door].slots.free()
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
            door, _ = self.leases.pop(lease)
            self.doors[door].slots.free()
        self._watch()
