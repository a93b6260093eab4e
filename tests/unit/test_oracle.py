"""The oracle over real HTTP: what is recorded, what is replayed, what is shared, and how it waits for money."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from chats import ASK, GOOD, HANG, Seen, Verdict, completion, no, scripted, until
from serving import running, stand_in

from grpo_ray.checker import Checker
from grpo_ray.errors import ConfigError, OracleError, OutOfMoney
from grpo_ray.llm.gate import BUDGET, RateGate, Spent, door_of
from grpo_ray.oracle import RecordingOracle, make_oracle
from grpo_ray.recipe import Named, OracleSpec, Recipe, RunState
from grpo_ray.storage.memory import MemoryStore, make_storage
from grpo_ray.types import Member, Policy, Population, Template

pytestmark = pytest.mark.process


def archive(*runs: str) -> dict[str, MemoryStore]:
    """The stores of several runs, side by side."""
    stores: dict[str, MemoryStore] = {}
    stores |= {run: MemoryStore(run, "now", beside=stores) for run in runs}
    return stores


def oracle_at(
    url: str,
    store: MemoryStore,
    gate: RateGate | None = None,
    further: Mapping[str, OracleSpec] | None = None,
    **spec: Any,
) -> RecordingOracle:
    main = OracleSpec(base_url=url, **spec)
    return make_oracle(main, store, base_url=url, gate=gate, checker=Checker(), further=further, look_s=0.005)


def asking(oracle: RecordingOracle, work: Callable[[RecordingOracle], Awaitable[None]]) -> None:
    async def main() -> None:
        try:
            await work(oracle)
        finally:
            await oracle.close()

    asyncio.run(main())


def record(store: MemoryStore, url: str, scopes: list[str]) -> list[str]:
    """Ask the same thing in each scope in turn; what came back."""
    heard: list[str] = []

    async def work(oracle: RecordingOracle) -> None:
        children = {scope: oracle.within(scope) for scope in scopes}
        heard.extend([(await children[scope].complete(ASK)).text for scope in scopes])

    asking(oracle_at(url, store), work)
    return heard


def test_replies_are_replayed_by_scope_request_and_occurrence_whatever_the_url() -> None:
    store = MemoryStore("run", "now")
    with running(scripted("one", "two", "three", "four")) as url:
        first = record(store, url, ["0/a", "0/a", "0/b"])
    assert first == ["one", "two", "three"]
    with running(scripted("five")) as other:
        assert record(store, other, ["0/a", "0/a", "0/b", "0/b"]) == ["one", "two", "three", "five"]


def test_an_oracle_without_embeddings_or_archive_says_so() -> None:
    async def work(oracle: RecordingOracle) -> None:
        with pytest.raises(OracleError, match=r"set oracle\.embedding_model"):
            await oracle.embed(["x"])
        with pytest.raises(OracleError, match="nearest needs"):
            await oracle.nearest("x")

    asking(oracle_at("http://127.0.0.1:9/v1", MemoryStore("run", "now")), work)


def test_embeddings_are_replayed_too() -> None:
    store, heard = MemoryStore("run", "now"), list[list[list[float]]]()

    async def work(oracle: RecordingOracle) -> None:
        heard.append(await oracle.within("0").embed(["a", "b"]))

    with stand_in() as url:
        asking(oracle_at(url, store, embedding_model="stand-in-embedding"), work)
    asking(oracle_at("http://127.0.0.1:9/v1", store, embedding_model="stand-in-embedding"), work)
    assert heard[0] == heard[1] and len(heard[0]) == 2


# ── nth: what many may ask at once ──


def test_equal_requests_of_two_scopes_and_two_runs_are_paid_once() -> None:
    seen: Seen = []
    stores = archive("one", "other")

    async def work(oracle: RecordingOracle) -> None:
        for scope in ("0/a", "1/b"):
            assert (await oracle.within(scope).complete(ASK, nth=0)).text == "first"

    with running(scripted("first", "second", seen=seen)) as url:
        asking(oracle_at(url, stores["one"]), work)
        asking(oracle_at(url, stores["other"]), work)
    assert len(seen) == 1
    assert stores["one"].replies == stores["other"].replies  # each run has all that it was told
    assert len(stores["one"].calls) == 1 and not stores["other"].calls


def test_another_nth_another_temperature_or_another_shape_is_another_reply() -> None:
    store = MemoryStore("run", "now")

    async def work(oracle: RecordingOracle) -> None:
        said = [await oracle.complete(ASK, nth=0), await oracle.complete(ASK, nth=1), await oracle.complete(ASK, nth=0)]
        assert [one.text for one in said] == ["a", "b", "a"]

    async def warmer(oracle: RecordingOracle) -> None:
        assert (await oracle.complete(ASK, nth=0)).text == "c"
        assert (await oracle.complete(ASK, shape=Verdict, nth=0)).text == '{"rationale":"fine","score":2}'

    with running(scripted("a", "b", "c", GOOD)) as url:
        asking(oracle_at(url, store), work)
        asking(oracle_at(url, store, temperature=0.7), warmer)


def test_equal_requests_in_the_air_share_one_call() -> None:
    seen: Seen = []
    store, go = MemoryStore("run", "now"), threading.Event()

    async def work(oracle: RecordingOracle) -> None:
        tasks = [asyncio.create_task(oracle.within(str(i)).complete(ASK, nth=0)) for i in range(5)]
        await until(lambda: seen)
        go.set()
        assert {(await task).text for task in tasks} == {"only"}

    with running(scripted("only", "never", seen=seen, go=go)) as url:
        asking(oracle_at(url, store), work)
    assert len(seen) == 1 and len(store.calls) == 1 and len(store.replies) == 1


def test_a_first_asker_who_goes_away_fails_nobody_else() -> None:
    seen: Seen = []
    store, go = MemoryStore("run", "now"), threading.Event()

    async def work(oracle: RecordingOracle) -> None:
        first, second = (asyncio.create_task(oracle.within(name).complete(ASK, nth=0)) for name in "ab")
        await until(lambda: seen)
        first.cancel()
        await asyncio.wait([first])
        go.set()
        assert first.cancelled() and (await second).text == "only"

    with running(scripted("only", seen=seen, go=go)) as url:
        asking(oracle_at(url, store), work)
    assert len(seen) == 1 and not store.calls[0].scope.endswith("b")


def test_a_fault_in_the_air_is_everybody_s_and_nobody_s_afterwards() -> None:
    store = MemoryStore("run", "now")

    async def work(oracle: RecordingOracle) -> None:
        said = await asyncio.gather(*(oracle.complete(ASK, nth=0) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, OracleError) and "bad key" in str(one) for one in said)
        assert (await oracle.complete(ASK, nth=0)).text == "mended"

    with running(scripted(no(401, "bad key"), "mended")) as url:
        asking(oracle_at(url, store), work)
    assert [one.status for one in store.calls] == ["401", "ok"]


def test_faults_are_not_replayed_but_their_calls_are_kept() -> None:
    store = MemoryStore("run", "now")

    async def work(oracle: RecordingOracle) -> None:
        child = oracle.within("0/a")
        with pytest.raises(OracleError, match="did not answer"):
            await child.complete(ASK)

    with running(scripted(completion("", refusal="no"))) as url:
        asking(oracle_at(url, store, usd_per_million=(1.0, 1.0)), work)
    assert not store.replies and [(one.status, one.scope) for one in store.calls] == [("refused", "0/a")]
    assert store.calls[0].usd == pytest.approx(15e-6)
    with running(scripted("mended")) as url:
        assert record(store, url, ["0/a"]) == ["mended"]


def test_a_further_look_uses_no_reply_twice() -> None:
    async def work(oracle: RecordingOracle) -> None:
        assert (await oracle.complete(ASK, nth=0)).text == "a"
        assert (await oracle.again(1).complete(ASK, nth=0)).text == "b"
        assert (await oracle.again(1).again(1).complete(ASK, nth=0)).text == "c"
        assert (await oracle.again(1).within("x").complete(ASK, nth=0)).text == "b"
        assert (await oracle.again(2).complete(ASK, nth=0)).text == "c"

    with running(scripted("a", "b", "c", "d")) as url:
        asking(oracle_at(url, MemoryStore("run", "now")), work)


def test_another_endpoint_is_asked_by_its_name() -> None:
    async def work(oracle: RecordingOracle) -> None:
        child = oracle.within("0")
        assert (await child.complete(ASK, nth=0)).text == "main"
        assert (await child.at("strong").complete(ASK, nth=0)).text == "strong"
        assert (await child.at("strong").at("").complete(ASK, nth=0)).text == "main"
        with pytest.raises(ConfigError, match="did you mean 'strong'"):
            child.at("strongg")

    with running(scripted("main")) as url, running(scripted("strong")) as other:
        further = {"strong": OracleSpec(base_url=other, model="strong")}
        asking(oracle_at(url, MemoryStore("run", "now"), further=further), work)


def test_closing_gives_up_what_is_in_the_air() -> None:
    seen: Seen = []

    async def work(oracle: RecordingOracle) -> None:
        flight = asyncio.create_task(oracle.complete(ASK, nth=0))
        await until(lambda: seen)
        flight.cancel()
        await asyncio.wait([flight])
        await oracle.close()
        assert not oracle.board.flying

    with running(scripted(HANG, seen=seen)) as url:
        asking(oracle_at(url, MemoryStore("run", "now")), work)


# ── money ──

PRICES = {"model": "m", "concurrency": 1, "usd_per_million": (1e6 / 30, 1e6 / 15)}
"""One reply of `completion` costs 10/30 + 5/15 = 2/3 USD."""


def paid(work: Callable[[RecordingOracle, RateGate, str], Awaitable[None]], max_usd: float, store: MemoryStore) -> None:
    with running(scripted("yes")) as url:
        spec = OracleSpec(base_url=url, max_usd=max_usd, **PRICES)  # pyright: ignore[reportArgumentType]
        door = door_of(spec, url)
        gate = RateGate.of({door: spec})
        asking(oracle_at(url, store, gate, max_usd=max_usd, **PRICES), lambda oracle: work(oracle, gate, door))


def told(store: MemoryStore) -> list[float]:
    """The caps that the run says were reached."""
    return [one["detail"]["max_usd"] for one in store.happened.values() if one["kind"] == "budget_spent"]


def test_without_money_callers_wait_until_more_is_allowed_and_each_cap_is_told_once() -> None:
    store = MemoryStore("run", "now")

    async def work(oracle: RecordingOracle, gate: RateGate, door: str) -> None:
        await oracle.complete(ASK)
        waiting = [asyncio.create_task(oracle.within(name).complete(ASK)) for name in "ab"]
        await until(lambda: told(store))
        await store.save_event(1, BUDGET, {"door": "another", "max_usd": 50.0})
        await store.save_event(1, BUDGET, {"door": door, "max_usd": 0.2})  # less than before
        await store.save_event(1, BUDGET, {"door": door, "max_usd": 1.0})
        await until(lambda: len(told(store)) == 2)  # one went on, and the new cap is reached
        assert sum(one.done() for one in waiting) == 1 and gate.doors[door].usd >= 1.0
        await store.save_event(2, BUDGET, {"door": door, "max_usd": None})
        assert [(await one).text for one in waiting] == ["yes", "yes"]
        assert (await oracle.complete(ASK)).text == "yes" and gate.doors[door].max_usd is None

    paid(work, 0.5, store)
    assert told(store) == [0.5, 1.0]
    assert sum(one.usd for one in store.calls) == pytest.approx(4 * 2 / 3)


def test_what_a_person_allowed_before_is_found_by_a_gate_that_has_forgotten_it() -> None:
    store = MemoryStore("run", "now")

    async def work(oracle: RecordingOracle, gate: RateGate, door: str) -> None:
        await store.save_event(0, BUDGET, {"door": door, "max_usd": 5.0})
        for _ in range(3):
            await oracle.complete(ASK)
        assert gate.doors[door].max_usd == 5.0

    paid(work, 0.5, store)


def test_what_a_person_allowed_before_the_process_began_is_over() -> None:
    store = MemoryStore("run", "now")

    async def work(oracle: RecordingOracle, gate: RateGate, door: str) -> None:
        await store.save_event(0, BUDGET, {"door": door, "max_usd": 5.0})
        oracle.board.since = 1
        await oracle.complete(ASK)
        waiting = asyncio.create_task(oracle.complete(ASK))
        await until(lambda: told(store))
        assert gate.doors[door].max_usd == 0.5
        await store.save_event(1, BUDGET, {"door": door, "max_usd": 6.0})
        assert (await waiting).text == "yes" and gate.doors[door].max_usd == 6.0

    paid(work, 0.5, store)


def test_less_is_heeded_before_the_money_is_spent() -> None:
    store = MemoryStore("run", "now")

    async def work(oracle: RecordingOracle, gate: RateGate, door: str) -> None:
        oracle.board.look_s = 0.0
        await oracle.complete(ASK)
        await store.save_event(0, BUDGET, {"door": door, "max_usd": 0.7})
        await oracle.complete(ASK)
        waiting = asyncio.create_task(oracle.complete(ASK))
        await until(lambda: told(store))
        waiting.cancel()
        await asyncio.wait([waiting])

    paid(work, 50.0, store)
    assert told(store) == [0.7] and len(store.calls) == 2


class Counting(MemoryStore):
    """How often all events were read."""

    reads = 0

    async def events(self) -> list[dict[str, Any]]:
        Counting.reads += 1
        return await super().events()


def test_one_looks_for_all_who_wait() -> None:
    store = Counting("run", "now")

    async def work(oracle: RecordingOracle, gate: RateGate, door: str) -> None:
        oracle.board.look_s = 60.0
        await oracle.complete(ASK)
        waiting = [asyncio.create_task(oracle.within(str(i)).complete(ASK)) for i in range(64)]
        await until(lambda: told(store))
        for _ in range(300):  # all of them reach the door
            await asyncio.sleep(0)
        assert Counting.reads <= 2 and list(oracle.board.waiting) == [door]
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)

    paid(work, 0.5, store)


def test_a_stop_ends_the_wait_for_everybody_and_is_no_missing_mark() -> None:
    async def main(url: str) -> None:
        everything, spec = await make_storage(), OracleSpec(base_url=url, max_usd=0.5, **PRICES)  # pyright: ignore[reportArgumentType]
        population = Population((Member(Template("tpl", "{{ question }}")),))
        recipe = Recipe(name="r", steps=1, tasks=(Named(name="jsonl"),), oracle=spec)
        await everything.create_run(RunState("run", 0, recipe, population, None, (Policy(population, None),)))
        store, gate = await everything.open("run"), RateGate.of({door_of(spec, url): spec})
        places: dict[str, Any] = {"base_url": url, "archive": everything, "run": "run", "look_s": 0.005}
        oracle = make_oracle(spec, store, gate=gate, checker=Checker(), **places)
        await oracle.complete(ASK)
        waiting = [asyncio.create_task(oracle.within(name).complete(ASK, nth=1)) for name in "abc"]
        await until(lambda: oracle.board.waiting)
        await everything.want("run", "stop", "a test")
        for fault in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(fault, OutOfMoney) and not isinstance(fault, OracleError)
            assert "m" in str(fault) and "larger max_usd" in str(fault) and "grpo-ray budget run" in str(fault)
        assert not oracle.board.waiting
        await oracle.close()

    with running(scripted("yes")) as url:
        asyncio.run(main(url))


def test_where_nobody_can_allow_more_spent_money_ends_the_run() -> None:
    async def work(oracle: RecordingOracle, gate: RateGate, door: str) -> None:
        oracle.board.wait = False
        await oracle.complete(ASK)
        with pytest.raises(OutOfMoney, match=r"is spent; set a larger max_usd"):
            await oracle.complete(ASK)

    store = MemoryStore("run", "now")
    paid(work, 0.5, store)
    assert not told(store)


def test_a_caller_that_waits_for_money_can_be_cancelled_and_holds_no_slot() -> None:
    store = MemoryStore("run", "now")

    async def work(oracle: RecordingOracle, gate: RateGate, door: str) -> None:
        await oracle.complete(ASK)
        waiting = asyncio.create_task(oracle.complete(ASK))
        await until(lambda: told(store))
        assert gate.doors[door].slots.used == 0
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    paid(work, 0.5, store)


def test_stored_replies_cost_nothing_when_the_money_is_spent() -> None:
    store = MemoryStore("run", "now")

    async def work(oracle: RecordingOracle, gate: RateGate, door: str) -> None:
        await oracle.within("0").complete(ASK)
        assert (await oracle.within("0").complete(ASK)).text == "yes"

    paid(work, 0.5, store)
    assert len(store.calls) == 1 and not told(store)


def test_without_a_gate_that_others_can_open_spent_money_is_an_error() -> None:
    async def work(oracle: RecordingOracle) -> None:
        await oracle.complete(ASK)
        with pytest.raises(Spent, match="is spent"):
            await oracle.complete(ASK)

    with running(scripted("yes")) as url:
        asking(oracle_at(url, MemoryStore("run", "now"), max_usd=0.5, **PRICES), work)
