"""How fast an endpoint may be called: so many a minute, and so many at once."""

import asyncio
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import Literal

PACE = 0.98
"""The share of a known rate that is used: clocks differ, and a refusal costs more than a wait."""
BURST_S = 1.0
"""What was left unused of a rate in the last so many seconds may still be used."""
TROUBLE = 0.25
"""The share of refusals and time-outs in a window above which they are a limit, not an accident."""
Status = Literal["ok", "limited", "late", "unreachable", "quota", "failed", "given_up"]
"""What a call came to. late: a time-out, or a server that says it has too much to do; given_up: the caller went away."""


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
    """What came back since a moment: as many replies as there were slots then."""

    began: float
    done: int = 0
    ok: int = 0
    limited: int = 0
    late: int = 0

    def count(self, status: Status) -> None:
        """One more reply."""
        self.done += 1
        self.ok += status == "ok"
        self.limited += status == "limited"
        self.late += status == "late"

    def rate(self, now: float) -> float:
        """Good replies a second."""
        return self.ok / max(1e-9, now - self.began)

    @property
    def troubled(self) -> bool:
        """Whether refusals and time-outs are so many that they are a limit, not an accident."""
        bad = self.limited + self.late
        return self.is_limit(bad) or bad == self.done

    def is_limit(self, replies: int) -> bool:
        """Whether so many replies are a limit, not an accident."""
        return replies > max(1, TROUBLE * self.done)


class Line:
    """So many at once, in turn; who has been in before may go to the front, so that what is begun ends before more begins."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

    async def take(self, *, first: bool = False) -> None:
        """Wait for a place."""
        if self.used < self.limit and not self._queue:
            self.used += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._queue.appendleft if first else self._queue.append)(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.free()
            raise

    def free(self) -> None:
        """Give a place back."""
        self.used -= 1
        self._wake()

    def _wake(self) -> None:
        while self._queue and self.used < self.limit:
            turn = self._queue.popleft()
            if not turn.done():
                self.used += 1
                turn.set_result(None)


class Slots(Line):
    """As many calls at once as still pay: doubled while more good replies come back, fewer when many are refused or late.

    Judged over windows of as many replies as there are slots. Never more than `ceiling`.
    """

    def __init__(self, ceiling: int) -> None:
        super().__init__(max(1, ceiling // 2))
        self.ceiling = ceiling
        self._window = Window(monotonic())
        self._best: tuple[int, float] = (0, 0.0)
        self._hold = 0

    async def take(self, *, first: bool = False) -> None:
        """Wait, in turn, for a slot; a window without replies begins when calls do."""
        if not self.used and not self._window.done:
            self._window.began = monotonic()
        await super().take(first=first)

    def widen(self, limit: int) -> None:
        """Let at least so many in at once."""
        self.limit = max(self.limit, limit)
        self._wake()

    def judge(self, status: Status, now: float) -> Window | None:
        """Count one reply; at a window's end set the limit anew, and give the window back."""
        window = self._window
        window.count(status)
        if window.done < self.limit:
            return None
        if window.troubled:
            self.limit, self._hold = max(1, int(self.limit * 0.7)), 4
        elif self._queue or self.used >= self.limit:
            self._climb(window.rate(now))
        self._window = Window(now)
        self._wake()
        return window

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
