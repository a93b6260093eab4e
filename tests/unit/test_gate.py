"""The gate: rates, slots, dead endpoints, and money."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import replace
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ray.llm.gate import (
    BREAK_S,
    BUDGET,
    BUDGET_SPENT,
    DEAD,
    Closed,
    Outcome,
    RateGate,
    Spent,
    door_of,
    specs_of,
    spent,
    without_money,
)
from grpo_ray.llm.pace import BURST_S, PACE, Pacer, Slots
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


def test_slots_double_while_more_comes_back_and_step_back_when_not() -> None:
    slots = Slots(64)
    slots.used = 64  # all taken, always
    now, limits = 0.0, []
    for _ in range(12):
        limits.append(slots.limit)
        now += 1.0 if slots.limit <= 32 else slots.limit / 32  # the endpoint serves 32 at once
        for _ in range(slots.limit):
            slots.judge("ok", now)
    assert limits[0] == 32 and 64 in limits and limits[-1] == 32


def test_a_window_of_refusals_takes_slots_and_single_ones_do_not() -> None:
    slots = Slots(32)
    for place in range(16):
        slots.judge("limited" if place == 3 else "ok", 1.0)
    assert slots.limit == 16
    for place in range(16):
        slots.judge("limited" if place % 2 == 0 else "ok", 2.0)
    assert slots.limit == 11


# ── many at once ──────────────────────────────────────────────────────────────────────────────────────────────────

STEPS = st.lists(st.sampled_from(["take", "free", "cancel first", "cancel last", "narrow", "widen"]), max_size=60)


async def quiet() -> None:
    """Let everything happen that needs no time."""
    for _ in range(4):
        await asyncio.sleep(0)


@settings(deadline=None)
@given(st.integers(1, 6), STEPS)
def test_never_more_than_the_limit_and_everybody_in_turn(ceiling: int, steps: list[str]) -> None:
    async def work() -> None:
        slots, waiting, holding = Slots(ceiling), list[int](), list[int]()
        tasks: dict[int, asyncio.Task[None]] = {}

        async def caller(number: int) -> None:
            await slots.take()
            assert slots.used <= slots.limit
            assert number == waiting[0], "not in turn"
            waiting.remove(number)
            holding.append(number)

        async def cancelled(number: int) -> None:
            tasks[number].cancel()
            waiting.remove(number)
            await asyncio.wait([tasks[number]])

        for number, step in enumerate(steps):
            if step == "take":
                waiting.append(number)
                tasks[number] = asyncio.create_task(caller(number))
            elif step == "free" and holding:
                holding.pop()
                slots.free()
            elif step.startswith("cancel") and waiting:
                await cancelled(waiting[0 if step == "cancel first" else -1])
            elif step == "narrow":
                slots.limit = max(1, slots.limit - 1)
            elif step == "widen":
                slots.widen(min(ceiling, slots.limit + 1))
            await quiet()
            assert slots.used == len(holding)
            assert not waiting or slots.used >= slots.limit, "somebody waits before a free slot"
        while holding:
            holding.pop()
            slots.free()
            await quiet()
        assert not waiting and slots.used == 0
        assert all(task.done() and (task.cancelled() or not task.exception()) for task in tasks.values())

    run(work)


@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))
def test_a_caller_that_is_cancelled_at_any_moment_leaves_no_slot(limit: int, rounds: int, more: int) -> None:
    async def work() -> None:
        one = gate(concurrency=limit)
        one.doors[DOOR].slots.limit = limit
        leases = [await one.enter(DOOR, 1, 60.0) for _ in range(limit)]
        tasks = [asyncio.create_task(one.enter(DOOR, 1, 60.0)) for _ in range(more + 1)]
        for _ in range(rounds):
            await asyncio.sleep(0)
        await one.leave(DOOR, leases.pop(), OK)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        leases += [] if tasks[0].cancelled() else [tasks[0].result()]
        for lease in leases:
            await one.leave(DOOR, lease, OK)
        for task in tasks[1:]:
            await one.leave(DOOR, await task, OK)
        assert one.doors[DOOR].slots.used == 0 and not one.leases

    run(work)


@given(st.floats(30, 6000), st.lists(st.floats(0, 5), min_size=2, max_size=120), st.floats(1, 120))
def test_no_stretch_of_time_holds_more_calls_than_the_rate_allows(rate: float, gaps: list[float], span: float) -> None:
    pacer, now, passed = Pacer(rate), 1000.0, list[float]()
    for gap in gaps:
        now += gap
        passed.append(now + pacer.reserve(1, now))
    assert passed == sorted(passed)
    allowed = rate * PACE / 60 * (span + BURST_S) + 1
    for begin in passed:
        assert sum(begin <= moment < begin + span for moment in passed) <= allowed + 1e-6


def test_six_hundred_a_minute_wanted_twice_as_often_are_used_to_the_full() -> None:
    pacer = Pacer(600.0)
    passed = [when / 20 + pacer.reserve(1, when / 20) for when in range(2400)]  # two minutes of 1200 a minute
    for begin in (0.0, 30.0, 60.0, 120.0):
        share = sum(begin <= moment < begin + 60.0 for moment in passed) / 600
        assert 0.95 <= share <= 1.0


def test_a_single_refusal_stops_nobody_else_however_long_it_asks_to_wait() -> None:
    async def work() -> None:
        one = gate()
        leases = [await one.enter(DOOR, 1, 1.0) for _ in range(2)]
        await one.leave(DOOR, leases[0], Outcome("limited", retry_after_s=60.0))
        before = one.doors[DOOR].slots.limit
        other = asyncio.create_task(one.enter(DOOR, 1, 60.0))
        assert await settled(other) and one.doors[DOOR].slots.limit == before

    run(work)


def test_a_storm_of_refusals_takes_slots_and_quiet_gives_them_back() -> None:
    one = gate(concurrency=32)
    door, now = one.doors[DOOR], monotonic()
    door.slots.used = 32  # all taken, always
    limits = []
    for status in ["ok"] * 2 + ["limited"] * 12 + ["ok"] * 40:
        now += 1.0  # what an endpoint with room to spare takes, however many there are
        for _ in range(door.slots.limit):
            door.learn(Outcome(status), now)  # pyright: ignore[reportArgumentType]
        limits.append(door.slots.limit)
    assert limits[1] == 32 and limits[13] == 1 and limits[-1] == 32
    assert all(1 <= limit <= 32 for limit in limits)


def test_calls_that_fail_together_are_one_sign_of_death() -> None:
    async def work() -> None:
        one = gate(concurrency=64)
        for lease in [await one.enter(DOOR, 1, 1.0) for _ in range(32)]:
            await one.leave(DOOR, lease, Outcome("unreachable"))
        door = one.doors[DOOR]
        assert door.fails == DEAD and door.quiet_until - monotonic() <= 0.5

    run(work)


def test_when_an_endpoint_comes_back_those_who_wait_go_at_once() -> None:
    async def work() -> None:
        one = gate()
        door = one.doors[DOOR]
        door.fails, door.slots.limit = 7, 1
        lease = await one.enter(DOOR, 1, 1.0)
        door.quiet_until = monotonic() + 30
        waiting = [asyncio.create_task(one.enter(DOOR, 1, 60.0)) for _ in range(3)]
        await quiet()
        await one.leave(DOOR, lease, OK)
        await quiet()
        assert all(task.done() for task in waiting)

    run(work)


def test_a_call_that_was_given_up_says_nothing_of_the_endpoint() -> None:
    async def work() -> None:
        one = gate()
        door = one.doors[DOOR]
        door.fails = 3
        await one.leave(DOOR, await one.enter(DOOR, 1, 1.0), Outcome("given_up"))
        assert door.fails == 3 and door.slots.used == 0

    run(work)


def test_those_who_wait_for_a_dead_caller_s_slot_get_it_without_anybody_s_coming() -> None:
    async def work() -> None:
        one = gate(concurrency=1, timeout_s=0.0)
        one.lease_s = 0.02
        await one.enter(DOOR, 1, 1.0)  # and is never heard of again
        await asyncio.wait_for(one.enter(DOOR, 1, 60.0), 60.0)
        assert one.doors[DOOR].slots.used == 1

    run(work)


def test_a_gate_begun_again_frees_nothing_for_leases_of_the_one_before() -> None:
    async def work() -> None:
        old, new = gate(), gate()
        stale = await old.enter(DOOR, 1, 1.0)
        await new.enter(DOOR, 1, 1.0)
        await new.leave(DOOR, stale, Outcome("ok", 500_000, 0))
        assert new.doors[DOOR].slots.used == 1 and (await new.total())[DOOR] == pytest.approx(1.0)

    run(work)


def test_doors_that_wait_for_money_are_told_until_more_is_allowed() -> None:
    def event(kind: str, door: str, usd: float | None) -> dict[str, object]:
        return {"kind": kind, "detail": {"door": door, "max_usd": usd}}

    spent = [event(BUDGET_SPENT, "a", 1.0), event(BUDGET_SPENT, "b", 2.0)]
    assert without_money(spent) == ["a", "b"]
    assert without_money([*spent, event(BUDGET, "a", 1.0), event(BUDGET, "b", 3.0)]) == ["a"]
    assert without_money([*spent, event(BUDGET, "a", None), event(BUDGET_SPENT, "b", 3.0)]) == ["b"]


def test_money_promised_to_calls_in_the_air_is_waited_for_and_the_cap_holds() -> None:
    async def work() -> None:
        one = gate(max_usd=1.0, usd_per_million=(1_000_000.0, 0.0))  # a dollar a token in
        first = await one.enter(DOOR, 1, 1.0)
        second = asyncio.create_task(one.enter(DOOR, 1, 60.0))
        assert not await settled(second)
        await one.leave(DOOR, first, Outcome("ok", 0, 0))  # it cost nothing after all
        await second
        third = asyncio.create_task(one.enter(DOOR, 1, 60.0))
        await one.leave(DOOR, second.result(), Outcome("ok", 1, 0))
        with pytest.raises(Spent):
            await third
        assert (await one.total())[DOOR] == 1.0

    run(work)


def test_many_refusals_make_all_wait_as_long_as_was_asked_and_teach_a_rate() -> None:
    async def work() -> None:
        one = gate(concurrency=8)
        for _ in range(4):
            await one.leave(DOOR, 0, Outcome("limited", retry_after_s=2.0))
        door = one.doors[DOOR]
        assert door.quiet_until > 0 and door.learnt and door.requests.per_minute
        rate = door.requests.per_minute
        for _ in range(8):
            await one.leave(DOOR, 0, OK)
        assert door.requests.per_minute > rate

    run(work)


def test_late_replies_take_slots_as_refusals_do() -> None:
    slots = Slots(16)
    slots.used = 16
    for _ in range(4):
        for _ in range(slots.limit):
            slots.judge("late", 1.0)
    assert slots.limit == 1
