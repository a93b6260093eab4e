"""One question, as many tries as it takes: what is tried again, what is given up, and what is written down of it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from chats import ASK, GOOD, HANG, Seen, Verdict, completion, free_url, no, scripted, spoilt, tried, until
from serving import running, stand_in
from starlette.responses import Response

from grpo_ray.errors import OracleError
from grpo_ray.llm.endpoint import RETRIES, Endpoint, Trail
from grpo_ray.llm.gate import Outcome, RateGate, door_of
from grpo_ray.mock_openai import Behaviour
from grpo_ray.recipe import OracleSpec
from grpo_ray.stand_ins.faults import KINDS, Faults
from grpo_ray.types import Reply

pytestmark = pytest.mark.process

DOWN = no(500, "down")
FULL = no(429, "too many", retry_after_ms="5")


def spec(url: str, **changes: Any) -> OracleSpec:
    return replace(OracleSpec(base_url=url, model="m", timeout_s=20), **changes)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (FULL, "429"),
        (DOWN, "500"),
        (no(503, "busy"), "503"),
        (no(408, "late"), "408"),
        (no(409, "locked"), "409"),
        (spoilt("cut"), "unreachable"),
        (spoilt("garbled"), "broken"),
    ],
)
def test_a_fault_that_may_pass_is_tried_again(fault: Response, status: str) -> None:
    with running(scripted(fault, fault, "at last")) as url:
        reply, attempts = tried(url, spec(url))
    assert isinstance(reply, Reply) and reply.text == "at last"
    assert [(one.number, one.status) for one in attempts] == [(1, status), (2, status), (3, "ok")]


def test_a_try_that_hangs_is_given_up_and_the_next_one_counts() -> None:
    with running(scripted(HANG, "at last")) as url:
        reply, attempts = tried(url, spec(url, timeout_s=2.0))
    assert isinstance(reply, Reply) and reply.text == "at last"
    assert [one.status for one in attempts] == ["timeout", "ok"] and attempts[0].seconds >= 1.9


@pytest.mark.parametrize(
    ("header", "seconds"), [({"retry_after_ms": "300"}, 0.3), ({"retry_after": "1", "retry_after_ms": "x"}, 1.0)]
)
def test_the_next_try_is_not_before_the_endpoint_wants_it(header: dict[str, str], seconds: float) -> None:
    seen: Seen = []
    with running(scripted(no(429, "wait", **header), "ok", seen=seen)) as url:
        tried(url, spec(url))
    assert seen[1]["at"] - seen[0]["at"] >= seconds - 0.01


@pytest.mark.parametrize("fault", [DOWN, spoilt("garbled")])
def test_after_all_tries_the_error_says_how_many_there_were(fault: Response) -> None:
    seen: Seen = []
    with running(scripted(fault, seen=seen)) as url:
        gone, attempts = tried(url, spec(url), retries=RETRIES)
    assert isinstance(gone, OracleError) and str(gone).endswith(f"({RETRIES + 1} tries)")
    assert [one.number for one in attempts] == list(range(1, RETRIES + 2)) and len(seen) == RETRIES + 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_no_second_try_would_mend_is_not_tried_again(status: int) -> None:
    seen: Seen = []
    with running(scripted(no(status, "no"), seen=seen)) as url:
        gone, attempts = tried(url, spec(url))
    assert isinstance(gone, OracleError) and "tries" not in str(gone)
    assert [one.status for one in attempts] == [str(status)] and len(seen) == 1


def test_nobody_there_is_tried_again_too() -> None:
    url = free_url()
    gone, attempts = tried(url, spec(url), retries=2)
    assert isinstance(gone, OracleError) and "can't reach" in str(gone)
    assert [one.status for one in attempts] == ["unreachable"] * 3


def test_the_deadline_covers_the_waits_between_tries() -> None:
    seen: Seen = []
    with running(scripted(no(429, "wait", retry_after="100"), seen=seen)) as url:
        gone, attempts = tried(url, spec(url, deadline_s=2.0))
    assert str(gone) == "no reply within 2 s in all: it allows no more for now (429); see oracle.deadline_s"
    assert len(seen) == len(attempts) == 1


def test_the_deadline_covers_a_try_that_hangs_and_says_so_on_its_attempt() -> None:
    with running(scripted(HANG)) as url:
        gone, attempts = tried(url, spec(url, deadline_s=0.3))
    assert "in all" in str(gone) and [one.status for one in attempts] == ["given_up"]


def test_the_deadline_stands_still_while_a_call_waits_for_its_turn() -> None:
    async def main() -> None:
        with running(scripted("yes")) as url:
            plan = spec(url, deadline_s=5.0)
            gate = RateGate.of({door_of(plan, url): replace(plan, concurrency=1)})
            held = await gate.enter(door_of(plan, url), 1, 1.0)
            endpoint, trail = Endpoint(plan, base_url=url, gate=gate), Trail()
            asked = asyncio.create_task(endpoint.complete(ASK, trail=trail))
            await until(lambda: gate.doors[door_of(plan, url)].slots.waiting == 1)
            assert trail.timer is not None and trail.timer.when() is None
            await gate.leave(door_of(plan, url), held, Outcome("ok"))
            assert (await asked).text == "yes"
            await endpoint.close()

    asyncio.run(main())


def test_the_deadline_covers_embeddings() -> None:
    async def main() -> None:
        with running(scripted(HANG)) as url:
            endpoint = Endpoint(spec(url, deadline_s=0.2, embedding_model="e"), base_url=url, pauses=(5.0, 5.0))
            with pytest.raises(OracleError, match=r"0\.2 s|no such route"):
                await endpoint.embed(["x"])
            await endpoint.close()

    asyncio.run(main())


def test_a_key_that_an_endpoint_repeats_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-very-secret-indeed")
    with running(scripted(no(401, "Incorrect API key provided: sk-very-secret-indeed"))) as url:
        gone, attempts = tried(url, spec(url, api_key_env="SOME_KEY"))
    assert "Incorrect API key provided: …" in str(gone) and "sk-very-secret-indeed" not in f"{gone} {attempts}"


def test_without_quota_nobody_else_asks_either() -> None:
    seen: Seen = []
    with running(scripted(no(429, "You exceeded your current quota", "insufficient_quota"), seen=seen)) as url:

        async def main() -> list[str]:
            gate = RateGate.of({door_of(spec(url), url): spec(url)})
            endpoints = [Endpoint(spec(url), base_url=url, gate=gate) for _ in range(3)]
            words = []
            for endpoint in endpoints:
                with pytest.raises(OracleError, match="no quota left") as gone:
                    await endpoint.complete(ASK)
                words.append(str(gone.value))
                await endpoint.close()
            return words

        words = asyncio.run(main())
    assert len(seen) == 1 and len(set(words)) == 1


@pytest.mark.parametrize(
    ("response", "status", "words"),
    [
        (completion("", refusal="I would rather not"), "refused", "I would rather not"),
        (completion("", "content_filter"), "empty", "finish_reason content_filter"),
        (completion('{"rationale": "and so', "length"), "cut_off", "raise oracle.max_tokens"),
        (Response("<html>", media_type="text/html"), "invalid", "did not send a chat completion"),
    ],
)
def test_a_reply_that_is_none_says_so_on_its_attempt(response: Response, status: str, words: str) -> None:
    with running(scripted(response)) as url:
        gone, attempts = tried(url, spec(url), Verdict)
    assert isinstance(gone, OracleError) and words in str(gone)
    assert [one.status for one in attempts] == [status]


def test_every_try_is_written_down_without_keys_or_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KEY", "sk-very-secret")
    seen: Seen = []
    echo = no(500, "the key sk-very-secret and the text How good is it?")
    with running(scripted(echo, "no JSON at all", GOOD, seen=seen)) as url:
        plan = spec(url, api_key_env="LOCAL_KEY", usd_per_million=(2.0, 8.0))
        reply, attempts = tried(url, plan, Verdict)
    assert isinstance(reply, Reply) and seen[0]["authorization"] == "Bearer sk-very-secret"
    assert [(one.number, one.status, one.prompt_tokens, one.completion_tokens) for one in attempts] == [
        (1, "500", 0, 0), (2, "ok", 10, 5), (1, "ok", 10, 5),
    ]  # fmt: skip
    assert [one.usd for one in attempts] == pytest.approx([0, 60e-6, 60e-6])
    assert {(one.request, one.scope, one.door) for one in attempts} == {("request", "0/group/judge", "127.0.0.1 m")}
    assert all(one.time > 1e9 and one.seconds >= 0 for one in attempts)
    for secret in ("sk-very-secret", ASK[0].content, "no JSON at all", "rationale"):
        assert secret not in repr(attempts)


def test_a_caller_that_is_cancelled_leaves_no_slot_and_says_so() -> None:
    seen: Seen = []
    with running(scripted(HANG, seen=seen)) as url:

        async def main() -> None:
            gate = RateGate.of({door_of(spec(url), url): spec(url)})
            endpoint, trail = Endpoint(spec(url), base_url=url, gate=gate), Trail()
            asking = asyncio.create_task(endpoint.complete(ASK, trail=trail))
            await until(lambda: seen)
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled() and [one.status for one in trail.attempts] == ["given_up"]
            assert gate.doors[endpoint.door].slots.used == 0 and not gate.leases
            await endpoint.close()

        asyncio.run(main())


def test_whatever_the_server_does_every_question_ends_and_no_slot_is_lost() -> None:
    kinds = [kind for kind in KINDS if kind not in ("no_quota", "slow")]
    ways = Behaviour(retry_after_s=0.01, faults=replace(Faults(seed=5), **dict.fromkeys(kinds, 0.06)))
    with stand_in(ways) as url:

        async def main() -> None:
            plan = OracleSpec(base_url=url, timeout_s=3.0, concurrency=8)
            gate = RateGate.of({door_of(plan, url): plan})
            endpoint = Endpoint(plan, base_url=url, gate=gate, pauses=(0.0, 0.0))
            trails = [Trail(str(number)) for number in range(40)]
            asked = [
                endpoint.complete([replace(ASK[0], content=f"{trail.request}: how good?")], trail=trail)
                for trail in trails
            ]
            said = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(one, Reply | OracleError) for one in said)
            assert sum(isinstance(one, Reply) for one in said) >= 30
            assert gate.doors[endpoint.door].slots.used == 0 and not gate.leases
            for one, trail in zip(said, trails, strict=True):
                got = [attempt.status in ("ok", "cut_off") for attempt in trail.attempts]
                assert got.count(True) == isinstance(one, Reply) and not any(got[:-1])
            await endpoint.close()

        asyncio.run(main())
