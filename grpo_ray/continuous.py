"""Waves that wait for the same generators, sampled together: between two waves no engine runs empty."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from math import ceil

from grpo_ray.canonical import short
from grpo_ray.protocols import Generators
from grpo_ray.recipe import Recipe
from grpo_ray.types import Adapter, Group, LostGroup, Wave


def batched(generators: Generators, count: int, recipe: Recipe) -> Generators:
    """`count` generators, as the recipe's plan has waves taken: one by one, or together."""
    return Continuous(generators, count) if recipe.plan.batching == "continuous" else generators


@dataclass(slots=True, eq=False)
class Seat:
    """A wave on its way, and what has come of it; None says that nothing more will."""

    wave: Wave
    adapter: Adapter | None
    arrived: asyncio.Queue[Group | LostGroup | BaseException | None] = field(default_factory=asyncio.Queue)
    aboard: "Flight | None" = None
    left: bool = False
    """Whether nobody waits for the wave any more."""

    def goes_with(self, other: "Seat") -> bool:
        return self.adapter == other.adapter and self.wave.sampling == other.wave.sampling


@dataclass(slots=True, eq=False)
class Flight:
    """Waves that one generator takes as one."""

    seats: list[Seat]
    task: asyncio.Task[None]


class Continuous:
    """`count` generators, of which each takes its share of the waves that wait when it falls free, as one.

    What shares a batch then depends on time, and with it the last bits of log-probabilities: two runs of one seed may
    part, which waves alone would not let them.
    """

    def __init__(self, inner: Generators, count: int) -> None:
        self._inner, self._free = inner, count
        self._waiting: list[Seat] = []

    async def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        """The wave's groups, one by one; what breaks the flight that it is on is raised here."""
        seat = Seat(wave, adapter)
        self._waiting.append(seat)
        asyncio.get_running_loop().call_soon(self._depart)  # after the waves that are asked for in this moment
        try:
            for _ in wave.prompts:
                come = await seat.arrived.get()
                if come is None:
                    raise RuntimeError(f"generators ended wave {wave.id} without all of its groups")
                if isinstance(come, BaseException):
                    raise come
                yield come
        finally:
            self._leave(seat)

    def _leave(self, seat: Seat) -> None:
        """A flight that nobody waits for any more is given up."""
        seat.left = True
        if seat.aboard is None:
            self._waiting.remove(seat)
        elif all(mate.left for mate in seat.aboard.seats):
            seat.aboard.task.cancel()

    def _depart(self) -> None:
        """Send every free generator off with its share of those that wait and go together."""
        while self._free and self._waiting:
            mates = [seat for seat in self._waiting if seat.goes_with(self._waiting[0])]
            seats = mates[: ceil(len(mates) / self._free)]
            self._waiting = [seat for seat in self._waiting if seat not in seats]
            self._free -= 1
            flight = Flight(seats, asyncio.create_task(self._fly(seats)))
            flight.task.add_done_callback(self._landed)
            for seat in seats:
                seat.aboard = flight

    async def _fly(self, seats: list[Seat]) -> None:
        prompts = {prompt.id: prompt for seat in seats for prompt in seat.wave.prompts}
        homes = {id: [seat for seat in seats if any(id == one.id for one in seat.wave.prompts)] for id in prompts}
        sampling, end = seats[0].wave.sampling, None
        try:
            wave = Wave(short("w", list(prompts), sampling), tuple(prompts.values()), sampling)
            async for group in self._inner.sample(wave, seats[0].adapter):
                for seat in homes[group.prompt.id]:
                    seat.arrived.put_nowait(group)
        except BaseException as fault:  # the boundary: whatever it is, those who wait for the groups raise it
            end = fault
        for seat in seats:
            seat.arrived.put_nowait(end)

    def _landed(self, _: asyncio.Task[None]) -> None:
        self._free += 1
        self._depart()
