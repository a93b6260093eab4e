"""A second try beside one that takes much longer than others did: the first to answer counts, and nothing leaks."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from chats import ASK, HANG, Seen, no, scripted, until
from serving import running
from starlette.responses import Response

from grpo_ray.errors import OracleError
from grpo_ray.llm.endpoint import KNOWN, Endpoint, Trail
from grpo_ray.llm.gate import RateGate, door_of
from grpo_ray.recipe import OracleSpec

pytestmark = pytest.mark.process

Work = Callable[[Endpoint, RateGate, Trail, Seen], Awaitable[None]]


def after_quick_ones(work: Work, *replies: str | Response, **changes: object) -> None:
    """Do `work` with an endpoint that is known to be quick; it meets `replies`. In the end all slots are free."""
    seen: Seen = []
    with running(scripted(*["quick"] * KNOWN, *replies, seen=seen)) as url:
        plan = replace(OracleSpec(base_url=url, model="m", hedge=3.0, timeout_s=30), **changes)  # pyright: ignore

        async def main() -> None:
            gate = RateGate.of({door_of(plan, url): plan})
            endpoint = Endpoint(plan, base_url=url, gate=gate, retries=0)
            for _ in range(KNOWN):
                await endpoint.complete(ASK)
            seen.clear()
            await work(endpoint, gate, Trail("r"), seen)
            assert gate.doors[endpoint.door].slots.used == 0 and not gate.leases
            await endpoint.close()

        asyncio.run(main())


def statuses(trail: Trail) -> list[tuple[int, str]]:
    return sorted((one.number, one.status) for one in trail.attempts)


def test_a_hung_try_gets_a_second_beside_it_whose_reply_counts() -> None:
    async def work(endpoint: Endpoint, gate: RateGate, trail: Trail, seen: Seen) -> None:
        reply = await endpoint.complete(ASK, trail=trail)
        assert reply.text == "beside" and len(seen) == 2
        assert statuses(trail) == [(1, "given_up"), (1, "ok")]

    after_quick_ones(work, HANG, "beside")


def test_a_quick_reply_needs_no_second_try() -> None:
    async def work(endpoint: Endpoint, gate: RateGate, trail: Trail, seen: Seen) -> None:
        for _ in range(3):
            await endpoint.complete(ASK, trail=trail)
        assert len(seen) == 3 and statuses(trail) == [(1, "ok")] * 3

    after_quick_ones(work, "quick", hedge=1e6)


def test_without_hedging_a_hung_try_has_the_field_to_itself() -> None:
    async def work(endpoint: Endpoint, gate: RateGate, trail: Trail, seen: Seen) -> None:
        with pytest.raises(OracleError, match=r"within 0\.5 s"):
            await endpoint.complete(ASK, trail=trail)
        assert len(seen) == 1

    after_quick_ones(work, HANG, "beside", hedge=0.0, timeout_s=0.5)


def test_before_enough_is_known_there_is_no_second_try() -> None:
    seen: Seen = []
    with running(scripted(HANG, "beside", seen=seen)) as url:

        async def main() -> None:
            plan = OracleSpec(base_url=url, hedge=0.001, timeout_s=0.5)
            endpoint = Endpoint(plan, base_url=url, retries=0)
            with pytest.raises(OracleError, match=r"within 0\.5 s"):
                await endpoint.complete(ASK)
            await endpoint.close()

        asyncio.run(main())
    assert len(seen) == 1


def test_a_second_try_that_fails_leaves_the_first_its_time() -> None:
    async def work(endpoint: Endpoint, gate: RateGate, trail: Trail, seen: Seen) -> None:
        with pytest.raises(OracleError, match="did not answer within 1 s"):
            await endpoint.complete(ASK, trail=trail)
        assert statuses(trail) == [(1, "500"), (1, "timeout")]

    after_quick_ones(work, HANG, no(500, "down"), timeout_s=1.0)


def test_both_tries_failing_is_one_failed_try() -> None:
    async def work(endpoint: Endpoint, gate: RateGate, trail: Trail, seen: Seen) -> None:
        with pytest.raises(OracleError, match="did not answer within 1 s"):
            await endpoint.complete(ASK, trail=trail)
        assert statuses(trail) == [(1, "timeout")] * 2 and len(seen) == 2

    after_quick_ones(work, HANG, HANG, timeout_s=1.0)


@pytest.mark.parametrize("replies", [(HANG,), (HANG, HANG)])
def test_a_caller_that_is_cancelled_takes_both_tries_along(replies: tuple[Response, ...]) -> None:
    async def work(endpoint: Endpoint, gate: RateGate, trail: Trail, seen: Seen) -> None:
        asking = asyncio.create_task(endpoint.complete(ASK, trail=trail))
        await until(lambda: len(seen) == len(replies))
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        assert asking.cancelled() and statuses(trail) == [(1, "given_up")] * len(replies)

    after_quick_ones(work, *replies, hedge=3.0 if len(replies) == 2 else 1e6)


def test_a_second_try_waits_at_the_gate_like_others_and_takes_over_when_the_first_is_over() -> None:
    async def work(endpoint: Endpoint, gate: RateGate, trail: Trail, seen: Seen) -> None:
        slots = gate.doors[endpoint.door].slots
        slots.limit = slots.ceiling = 1
        assert (await endpoint.complete(ASK, trail=trail)).text == "then"
        assert len(seen) == 2 and statuses(trail) == [(1, "ok"), (1, "timeout")]

    after_quick_ones(work, HANG, "then", timeout_s=1.0)
