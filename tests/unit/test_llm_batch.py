"""Completions through batches of the bundled server, in time that a test moves where it matters."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from chats import GOOD, Verdict
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from serving import running
from starlette.types import Receive, Scope, Send

from grpo_ray.errors import OracleError
from grpo_ray.llm.batch import BatchEndpoint, Batching, Landed, meaning
from grpo_ray.llm.batch_files import Sent, StoreMemory, named, read_lines
from grpo_ray.llm.endpoint import Trail
from grpo_ray.llm.gate import RateGate, Spent
from grpo_ray.llm.replies import Refused
from grpo_ray.mock_openai import Behaviour, make_app
from grpo_ray.recipe import OracleSpec
from grpo_ray.stand_ins.faults import Faults
from grpo_ray.storage.memory import MemoryStore
from grpo_ray.types import Attempt, Message, Reply

pytestmark = pytest.mark.process

PRICED = OracleSpec(usd_per_million=(2.0, 8.0))
QUICK = Batching(gather_s=0.05, poll_s=(0.01, 0.02))


class Clock:
    """The server's time, which moves when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A server whose batches take no time, or ten seconds of its clock, and a run's store beside it."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.url, self.clock, self.store = url, clock, MemoryStore("run", "now")
        http = DefaultAsyncHttpx2Client(trust_env=False)
        self.client = AsyncOpenAI(api_key="none", base_url=url, max_retries=0, http_client=http)
        self.opened: list[BatchEndpoint] = []

    def endpoint(self, spec: OracleSpec = PRICED, **more: Any) -> BatchEndpoint:
        """A process's endpoint; all of them keep their batches in the one store."""
        more = {"memory": StoreMemory(self.store), "batching": QUICK, "pauses": (0.0, 0.0)} | more
        self.opened.append(BatchEndpoint(spec, base_url=self.url, **more))
        return self.opened[-1]

    async def batches(self) -> list[Any]:
        return [one async for one in self.client.batches.list()]

    async def sizes(self) -> list[int]:
        """How many lines each batch's file has, newest first."""
        return [len(await self.sent(batch)) for batch in await self.batches()]

    async def begun(self, count: int = 1) -> Any:
        """The newest batch, as soon as there are so many."""
        async with asyncio.timeout(60):
            while len(found := await self.batches()) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return found[0]

    async def sent(self, batch: Any) -> list[dict[str, Any]]:
        """The bodies of a batch's file."""
        text = (await self.client.files.content(batch.input_file_id)).text
        return [json.loads(line)["body"] for line in text.splitlines()]


def at(use: Callable[[Place], Awaitable[None]], behaviour: Behaviour | None = None) -> None:
    clock = Clock()

    async def main(url: str) -> None:
        place = Place(url, clock)
        try:
            await use(place)
        finally:
            for endpoint in place.opened:
                await endpoint.close()
            await place.client.close()

    with running(make_app(behaviour or Behaviour(batch_s=0.0), clock=clock)) as url:
        asyncio.run(main(url))


def ask(text: str) -> list[Message]:
    return [Message("user", text)]


def test_calls_of_one_moment_go_as_one_file_at_half_the_price() -> None:
    async def use(place: Place) -> None:
        endpoint = place.endpoint()
        trails = [Trail(f"r{i}", f"0/g/{i}") for i in range(5)]
        asked = [endpoint.complete(ask(f"{'long ' * i}{i}"), trail=trail) for i, trail in enumerate(trails)]
        replies = await asyncio.gather(*asked)
        (batch,) = await place.batches()
        assert batch.completion_window == "24h" and len(await place.sent(batch)) == 5
        assert all(reply.stand_in and "stand-in" in reply.text for reply in replies)
        assert len({reply.prompt_tokens for reply in replies}) > 1  # each got its own line
        for trail, reply in zip(trails, replies, strict=True):
            (attempt,) = trail.attempts
            assert (attempt.door, attempt.status, attempt.number) == ("bundled stand-in", "ok", 1)
            assert (attempt.request, attempt.scope) == (trail.request, trail.scope) and attempt.seconds > 0
            assert attempt.usd == pytest.approx((2.0 * reply.prompt_tokens + 8.0 * reply.completion_tokens) / 2e6)

    at(use)


def test_what_a_file_may_hold_is_kept_to() -> None:
    async def use(place: Place) -> None:
        by_lines = place.endpoint(batching=replace(QUICK, most_lines=2))
        await asyncio.gather(*(by_lines.complete(ask(str(i))) for i in range(5)))
        assert sorted(await place.sizes()) == [1, 2, 2]
        by_bytes = place.endpoint(batching=replace(QUICK, most_bytes=3000))
        await asyncio.gather(*(by_bytes.complete(ask(f"{i} {'x' * 1000}")) for i in range(4)))
        assert (await place.sizes())[:-3] == [2, 2]

    at(use)


def test_a_shape_is_repaired_in_the_next_batch_and_given_up_after_it() -> None:
    async def use(place: Place) -> None:
        trail = Trail()
        with pytest.raises(OracleError, match="twice sent no valid Verdict"):
            await place.endpoint().complete(ask("How good?"), shape=Verdict, trail=trail)
        repair, first = await place.batches()
        assert "This was not accepted" in (await place.sent(repair))[0]["messages"][-1]["content"]
        assert (await place.sent(first))[0]["response_format"]["type"] == "json_schema"
        assert [one.status for one in trail.attempts] == ["ok", "ok"]

    at(use, Behaviour(batch_s=0.0, faults=Faults(malformed=1.0)))


def test_an_endpoint_without_schemas_is_asked_in_words_in_the_next_batch() -> None:
    async def use(place: Place) -> None:
        endpoint = place.endpoint()
        asked = [endpoint.complete(ask(f"How good is {i}?"), shape=Verdict, trail=Trail()) for i in range(3)]
        said = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, OracleError) for one in said)  # the stand-in has no such object to say in words
        forms = [
            {one.get("response_format", {}).get("type") for one in await place.sent(b)} for b in await place.batches()
        ]
        assert forms[::-1][:2] == [{"json_schema"}, {"json_object"}]

    at(use, Behaviour(batch_s=0.0, features=("json_object",)))


def test_a_good_shape_comes_back_as_json() -> None:
    async def use(place: Place) -> None:
        reply = await place.endpoint().complete(ask("How good?"), shape=Verdict)
        assert Verdict.model_validate_json(reply.text).score == 1

    at(use)


def test_a_line_that_failed_fails_its_caller_alone() -> None:
    async def use(place: Place) -> None:
        endpoint, trails = place.endpoint(), [Trail() for _ in range(40)]
        asked = [endpoint.complete(ask(str(i)), trail=trail) for i, trail in enumerate(trails)]
        said = await asyncio.gather(*asked, return_exceptions=True)
        assert len(await place.batches()) == 1
        bad = [one for one in said if isinstance(one, OracleError)]
        assert bad and len(bad) < 40 and all(isinstance(one, Reply | OracleError) for one in said)
        assert any("told to fail" in str(one) for one in bad) and any("did not answer" in str(one) for one in bad)
        assert {one.status for trail in trails for one in trail.attempts} == {"ok", "500", "refused"}
        assert all(len(trail.attempts) == 1 for trail in trails)

    at(use, Behaviour(batch_s=0.0, faults=Faults(failed=0.3, refused=0.3)))


def test_what_a_cancelled_batch_had_done_counts_and_the_rest_is_told_why() -> None:
    async def use(place: Place) -> None:
        endpoint, trails = place.endpoint(), [Trail() for _ in range(10)]
        asked = [asyncio.create_task(endpoint.complete(ask(str(i)), trail=t)) for i, t in enumerate(trails)]
        batch = await place.begun()
        place.clock.now += 5
        await place.client.batches.cancel(batch.id)
        said = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(one, Reply) for one in said] == [True] * 5 + [False] * 5
        assert "its batch is cancelled" in str(said[-1])
        assert [trail.attempts[0].status for trail in trails] == ["ok"] * 5 + ["cancelled"] * 5

    at(use, Behaviour(batch_s=10.0))


async def kept(place: Place, endpoint: BatchEndpoint, text: str, scope: str = "") -> Reply:
    """What an oracle does: the reply is saved with what was tried for it."""
    trail = Trail("request", scope)
    reply = await endpoint.complete(ask(text), trail=trail)
    return await place.store.save_reply(f"{scope} {text}", reply, trail.attempts)


def test_a_process_that_dies_while_a_batch_runs_does_not_pay_twice() -> None:
    async def use(place: Place) -> None:
        first = place.endpoint()
        left = [asyncio.create_task(first.complete(ask(text))) for text in ("a", "b", "b")]
        await place.begun()
        await first.close()
        assert all(
            isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*left, return_exceptions=True)
        )
        second = place.endpoint()
        again = [asyncio.create_task(kept(place, second, text, text)) for text in ("b", "a")]
        place.clock.now += 10
        assert all(reply.stand_in for reply in await asyncio.gather(*again))
        assert len(await place.batches()) == 1
        (pending,) = await StoreMemory(place.store).pending("bundled stand-in")
        assert len(pending.asked) == 1  # the second b
        third = place.endpoint()
        await kept(place, third, "b", "again")
        assert len(await place.batches()) == 1 and not await StoreMemory(place.store).pending("bundled stand-in")
        assert (await place.client.get("/_stats", cast_to=dict[str, Any]))["answered"] == 3

    at(use, Behaviour(batch_s=10.0))


def test_a_reply_that_was_saved_answers_nobody_else_later() -> None:
    async def use(place: Place) -> None:
        await kept(place, place.endpoint(), "a")
        await kept(place, place.endpoint(), "a", "again")
        assert len(await place.batches()) == 2

    at(use)


def test_a_caller_who_leaves_leaves_its_line_to_the_next_who_asks_the_same() -> None:
    async def use(place: Place) -> None:
        endpoint = place.endpoint()
        caller = asyncio.create_task(endpoint.complete(ask("a")))
        await place.begun()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        place.clock.now += 10
        assert (await endpoint.complete(ask("a"))).stand_in and len(await place.batches()) == 1

    at(use, Behaviour(batch_s=10.0))


def test_a_file_that_no_batch_was_made_of_is_forgotten() -> None:
    async def use(place: Place) -> None:
        spec = PRICED
        body = {"model": spec.model, "messages": [{"role": "user", "content": "a"}], "max_tokens": spec.max_tokens}
        memory = StoreMemory(place.store)
        await memory.remember(Sent("file-lost", "bundled stand-in", {f"{named(body)}-0": 1.5, "other-1": 2.5}))
        assert (await kept(place, place.endpoint(), "a")).stand_in
        (batch,) = await place.batches()
        assert await place.sent(batch) == [body]
        assert await memory.pending("bundled stand-in") == []

    at(use)


def test_a_batch_whose_results_are_gone_is_an_error_and_then_asked_anew() -> None:
    async def use(place: Place) -> None:
        first = place.endpoint()
        left = asyncio.create_task(first.complete(ask("a")))
        batch = await place.begun()
        await first.close()
        await asyncio.gather(left, return_exceptions=True)
        place.clock.now += 10
        done = await place.client.batches.retrieve(batch.id)
        await place.client.files.delete(str(done.output_file_id))
        second = place.endpoint()
        with pytest.raises(OracleError, match="No file found"):
            await second.complete(ask("a"))
        again = asyncio.create_task(second.complete(ask("a")))
        await place.begun(2)
        place.clock.now += 10
        assert (await again).stand_in

    at(use, Behaviour(batch_s=10.0))


def test_a_batch_whose_beginning_was_lost_on_the_way_is_found_and_not_made_twice() -> None:
    """The server makes it, and the reply that says so is broken."""
    app, begun = make_app(Behaviour(batch_s=0.0)), []

    async def losing(scope: Scope, receive: Receive, send: Send) -> None:
        async def lost(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "status": 503}
            await send(message)

        first = scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", "/v1/batches") and not begun
        begun.extend([scope["path"]] if first else [])
        await app(scope, receive, lost if first else send)

    async def main(url: str) -> None:
        place = Place(url, Clock())
        endpoint = place.endpoint()
        assert (await endpoint.complete(ask("a"))).stand_in and len(begun) == 1
        assert len(await place.batches()) == 1
        await endpoint.close()
        await place.client.close()

    with running(losing) as url:
        asyncio.run(main(url))


def test_no_text_and_no_key_is_remembered() -> None:
    async def use(place: Place) -> None:
        await kept(place, place.endpoint(), "very secret question")
        events = json.dumps(await place.store.events())
        assert "secret" not in events and "Bearer" not in events and "file-" in events

    at(use)


def test_money_that_is_spent_keeps_a_batch_from_beginning() -> None:
    async def use(place: Place) -> None:
        spec = replace(PRICED, max_usd=0.01)
        gate = RateGate.of({"bundled stand-in": spec}, {"bundled stand-in": 0.01})
        endpoint, trail = place.endpoint(spec, gate=gate), Trail()
        with pytest.raises(Spent):
            await endpoint.complete(ask("a"), trail=trail)
        assert not await place.batches() and not trail.attempts
        await gate.allow("bundled stand-in", 1.0)
        reply = await endpoint.complete(ask("a"), trail=trail)
        spent = (await gate.total())["bundled stand-in"] - 0.01
        assert spent == pytest.approx(sum(one.usd for one in trail.attempts), abs=5e-6) and reply.stand_in

    at(use)


def test_a_file_that_the_endpoint_refuses_fails_all_its_callers_with_the_reason() -> None:
    async def use(place: Place) -> None:
        endpoint, trail = BatchEndpoint(PRICED, base_url=f"{place.url}/nowhere", batching=QUICK), Trail()
        place.opened.append(endpoint)
        with pytest.raises(OracleError, match="Batch API"):
            await endpoint.complete(ask("a"), trail=trail)
        assert [one.status for one in trail.attempts] == ["failed"]

    at(use)


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────

OPEN = Landed({}, 1.0, "expired", "took too long")


def line(**more: Any) -> str:
    return json.dumps({"id": "x", "custom_id": "n-1", "error": None} | more)


def test_lines_mean_what_they_say() -> None:
    body = {"choices": [{"message": {"content": GOOD}, "finish_reason": "stop"}]}
    good = read_lines(line(response={"status_code": 200, "body": body}))["n-1"]
    status, answer, fault = meaning(good, OPEN, "there")
    assert status == "ok" and answer is not None and fault is None
    text = {"error": {"message": "no such form"}}
    refused = read_lines(line(response={"status_code": 400, "body": text}))["n-1"]
    assert isinstance(meaning(refused, OPEN, "there")[2], Refused)
    expired = read_lines(line(error={"code": "batch_expired", "message": "too late"}))["n-1"]
    status, _, fault = meaning(expired, OPEN, "there")
    assert status == "batch_expired" and "too late" in str(fault)
    status, _, fault = meaning(None, OPEN, "there")
    assert status == "expired" and "its batch is expired. took too long" in str(fault)


def test_lines_that_are_none_are_left_out() -> None:
    texts = ["", "{", "[]", line(), line(custom_id=3), line(response={"status_code": "x"}), "\u2028" + line()]
    assert list(read_lines("\n".join(texts))) == ["n-1"]
    assert read_lines(json.dumps({"custom_id": "a\u2028b"}, ensure_ascii=False)).keys() == {"a\u2028b"}


def test_attempts_of_other_doors_say_nothing_of_a_line() -> None:
    async def main() -> None:
        store = MemoryStore("run", "now")
        memory = StoreMemory(store)
        await memory.remember(Sent("file-1", "here", {"a-0": 1.5, "a-1": 2.5}))
        await store.save_attempts(
            [Attempt("r", "there", "", 1, "ok", 1.5, 1.0), Attempt("r", "here", "", 1, "ok", 2.5, 1.0)]
        )
        assert await memory.pending("here") == [Sent("file-1", "here", {"a-0": 1.5})]
        assert await memory.pending("there") == []

    asyncio.run(main())
