"""The gate: rates, slots, dead endpoints, and money."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.gate import BREAK_S, PACE, Closed, Outcome, Pacer, RateGate, Slots, Spent, door_of, specs_of, spent
from grpo_ray.recipe import Named, OracleSpec, Recipe
from grpo_ray.types import Attempt

SPEC = OracleSpec(base_url="http://127.0.0.1:1/v1", model="m", concurrency=8, usd_per_million=(2.0, 4.0))
DOOR = door_of(SPEC, SPEC.base_url)
OK = Outcome("ok")


def gate(**changes: object) -> RateGate:
    return RateGate.of({DOOR: replace(SPEC, **changes)})  # pyright: ignore[reportArgumentType]


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # pyright: ignore[reportArgumentType]


async def settled(task: asyncio.Task[int]) -> bool:
    """Whether a task ends without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)
    return task.done()


def test_doors_are_told_apart_by_host_and_model() -> None:
    strong = OracleSpec(base_url="https://api.example.com/v1", model="strong")
    recipe = Recipe(
        tasks=(Named(name="jsonl"),), oracles={"a": strong, "b": replace(strong, model="weak"), "c": strong}
    )
    assert list(specs_of(recipe)) == ["bundled stand-in", "api.example.com strong", "api.example.com weak"]


def test_calls_are_paid_and_refused_when_the_money_is_spent_until_more_is_allowed() -> None:
    async def work() -> None:
        one = gate(max_usd=1.0)
        lease = await one.enter(DOOR, 10, 1.0)
        await one.leave(DOOR, lease, Outcome("ok", 300_000, 100_000))
        assert (await one.total())[DOOR] == pytest.approx(1.0)
        with pytest.raises(Spent, match=r"\$1.00 of \$1 for 127.0.0.1 m is spent"):
            await one.enter(DOOR, 10, 1.0)
        await one.allow(DOOR, 2.0)
        await one.enter(DOOR, 10, 1.0)

    run(work)


def test_a_new_gate_knows_what_was_spent_from_the_attempts() -> None:
    attempts = [Attempt("r", DOOR, "s", 1, "ok", 0.0, 1.0, 1, 1, usd) for usd in (0.25, 0.5)]
    assert spent(attempts) == {DOOR: 0.75}
    with pytest.raises(Spent):
        asyncio.run(RateGate.of({DOOR: replace(SPEC, max_usd=0.7)}, spent(attempts)).enter(DOOR, 1, 1.0))


def test_money_that_is_spent_crosses_processes() -> None:
    fault = pickle.loads(pickle.dumps(Spent("why", DOOR, 2.0)))
    assert isinstance(fault, Spent) and (str(fault), fault.door, fault.max_usd) == ("why", DOOR, 2.0)


def test_no_more_at_once_than_slots_and_the_next_goes_when_one_leaves() -> None:
    async def work() -> None:
        one = gate(concurrency=2)
        one.doors[DOOR].slots.limit = 2
        first, _ = await one.enter(DOOR, 1, 1.0), await one.enter(DOOR, 1, 1.0)
        third = asyncio.create_task(one.enter(DOOR, 1, 60.0))
        assert not await settled(third)
        await one.leave(DOOR, first, OK)
        assert await settled(third)

    run(work)


def test_a_caller_that_gives_up_leaves_no_slot_behind() -> None:
    async def work() -> None:
        one = gate(concurrency=1)
        held = await one.enter(DOOR, 1, 1.0)
        with pytest.raises(Closed, match="busy with other calls"):
            await one.enter(DOOR, 1, 0.01)
        await one.leave(DOOR, held, OK)
        assert one.doors[DOOR].slots.used == 0
        await one.enter(DOOR, 1, 1.0)

    run(work)


def test_slots_of_dead_callers_are_freed() -> None:
    async def work() -> None:
        one = gate(concurrency=1, timeout_s=0.0)
        lease = await one.enter(DOOR, 1, 1.0)
        one.leases[lease] = (DOOR, 0.0)  # its holder was to be heard of long ago
        again = await one.enter(DOOR, 1, 1.0)
        await one.leave(DOOR, lease, Outcome("ok", 500_000, 0))
        assert one.doors[DOOR].slots.used == 1 and (await one.total())[DOOR] == pytest.approx(1.0)
        await one.leave(DOOR, again, OK)
        assert one.doors[DOOR].slots.used == 0

    run(work)


def test_without_quota_nobody_passes_for_a_while() -> None:
    async def work() -> None:
        one = gate()
        await one.leave(DOOR, await one.enter(DOOR, 1, 1.0), Outcome("quota", why="no quota left"))
        with pytest.raises(Closed, match="no quota left"):
            await one.enter(DOOR, 1, 1.0)
        until, why = one.doors[DOOR].shut
        one.doors[DOOR].shut = (until - BREAK_S, why)
        await one.enter(DOOR, 1, 1.0)

    run(work)


def test_a_dead_endpoint_is_tried_by_one_at_a_time_and_comes_back() -> None:
    async def work() -> None:
        one = gate()
        leases = [await one.enter(DOOR, 1, 1.0) for _ in range(4)]
        leases += [0]
        for lease in leases:
            await one.leave(DOOR, lease, Outcome("unreachable"))
        door = one.doors[DOOR]
        assert door.slots.limit == 1 and door.quiet_until > 0
        door.quiet_until = 0.0
        await one.leave(DOOR, await one.enter(DOOR, 1, 1.0), OK)
        assert door.fails == 0 and door.slots.limit > 1

    run(work)


@given(st.floats(1, 10_000), st.integers(2, 200))
def test_a_rate_is_kept_from_the_second_call_on(per_minute: float, calls: int) -> None:
    pacer = Pacer(per_minute)
    waits = [pacer.reserve(1, 100.0) for _ in range(calls)]
    gap = 60.0 / (per_minute * PACE)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(max(0.0, (calls - 1) * gap - 1.0), abs=1e-6)


def test_no_rate_no_wait_and_what_the_endpoint_says_is_learnt() -> None:
    async def work() -> None:
        one = gate(tokens_per_minute=100.0)
        door = one.doors[DOOR]
        assert door.requests.reserve(1, 1.0) == 0.0
        await one.leave(DOOR, 0, Outcome("limited", requests_per_minute=600.0, tokens_per_minute=9.0))
        assert (door.requests.per_minute, door.tokens.per_minute) == (600.0, 100.0)

    run(work)


def reply(slots: Slots, now: float, refused: bool = False) -> None:
    slots.judge(refused, now)


def test_slots_double_while_more_comes_back_and_step_back_when_not() -> None:
    slots = Slots(64)
    slots.used = 64  # all taken, always
    now, limits = 0.0, []
    for _ in range(12):
        limits.append(slots.limit)
        now += 1.0 if slots.limit <= 32 else slots.limit / 32  # the endpoint serves 32 at once
        for _ in range(slots.limit):
            slots.judge(False, now)
    assert limits[0] == 32 and 64 in limits and limits[-1] == 32


def test_a_window_of_refusals_takes_slots_and_single_ones_do_not() -> None:
    slots = Slots(32)
    for place in range(16):
        slots.judge(place == 3, 1.0)
    assert slots.limit == 16
    for place in range(16):
        slots.judge(place % 2 == 0, 2.0)
    assert slots.limit == 11
