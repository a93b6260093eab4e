"""The bundled server's faults, limits and counts, as a client meets them."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from serving import stand_in
from starlette.testclient import TestClient

from grpo_ray.errors import ConfigError
from grpo_ray.mock_openai import Behaviour, make_app
from grpo_ray.stand_ins.faults import KINDS, Faults, fault_of, latency
from grpo_ray.stand_ins.limits import Bucket, duration

pytestmark = pytest.mark.process

SHAPE = {"type": "json_schema", "json_schema": {"name": "X", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}  # fmt: skip


def asked(behaviour: Behaviour, use: Callable[[AsyncOpenAI], Awaitable[Any]], *, timeout: float = 20) -> Any:
    """What `use` makes of a client of a server that behaves so."""

    async def main(url: str) -> Any:
        http = DefaultAsyncHttpx2Client(trust_env=False)
        async with AsyncOpenAI(
            api_key="none", base_url=url, max_retries=0, timeout=timeout, http_client=http
        ) as client:
            return await use(client)

    with stand_in(behaviour) as url:
        return asyncio.run(main(url))


async def say(client: AsyncOpenAI, text: str = "hi", **more: Any) -> Any:
    return await client.chat.completions.create(model="stand-in", messages=[{"role": "user", "content": text}], **more)


async def counts(client: AsyncOpenAI) -> dict[str, Any]:
    return await client.get("/_stats", cast_to=dict[str, Any])


def post(client: TestClient, text: str = "hi", **more: Any) -> Any:
    body = {"model": "stand-in", "messages": [{"role": "user", "content": text}], **more}
    return client.post("/v1/chat/completions", json=body)


# ── which request meets which fault ───────────────────────────────────────────────────────────────────────────────


def test_each_fault_has_its_share_and_a_seed_of_its_own() -> None:
    faults = replace(Faults(), **dict.fromkeys(KINDS, 0.04))
    keys = [f"key {i}" for i in range(5000)]
    found = Counter(fault_of(faults, key, 0) for key in keys)
    for name in KINDS:
        assert abs(found[name] - 200) < 4 * math.sqrt(200), name
    assert [fault_of(faults, key, 0) for key in keys] == [fault_of(faults, key, 0) for key in keys]
    other = replace(faults, seed=1)
    assert [fault_of(faults, key, 0) for key in keys] != [fault_of(other, key, 0) for key in keys]


def test_every_kind_is_described() -> None:
    assert KINDS.keys() == {one.name for one in fields(Faults)} - {"seed", "slow_s"}


def test_a_request_that_met_a_fault_may_pass_when_it_comes_again() -> None:
    faults = Faults(failed=0.5)
    first = [key for key in map(str, range(1000)) if fault_of(faults, key, 0)]
    again = sum(bool(fault_of(faults, key, 1)) for key in first)
    assert 0.4 < again / len(first) < 0.6


def test_who_meets_a_fault_depends_on_no_order() -> None:
    texts = [f"text {i}" for i in range(40)]
    behaviour = Behaviour(faults=Faults(failed=0.3, limited=0.2, seed=3))
    one, two = TestClient(make_app(behaviour)), TestClient(make_app(behaviour))
    forth = {text: post(one, text).status_code for text in texts}
    back = {text: post(two, text).status_code for text in reversed(texts)}
    assert forth == back and set(forth.values()) == {200, 429, 500}


@pytest.mark.parametrize(
    "shares", [{"hung": 1.5}, {"cut": -0.1}, {"cut": 0.6, "hung": 0.6}, {"cut": math.nan}, {"slow_s": -1}]
)
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(Faults(), **shares)


def test_latency_is_fixed_or_has_a_heavy_tail_around_its_median() -> None:
    assert latency(0.2, 0.0, 0, "k", 0) == 0.2
    drawn = sorted(latency(0.2, 1.0, 0, f"key {i}", 0) for i in range(4001))
    assert drawn[2000] == pytest.approx(0.2, rel=0.1)
    assert drawn[3960] == pytest.approx(2.05, rel=0.35), "sigma 1: the 99th percentile is ten times the median"
    assert latency(0.2, 1.0, 0, "key 1", 0) != latency(0.2, 1.0, 0, "key 1", 1)


# ── what a client meets ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "raised", "code"),
    [
        ("limited", openai.RateLimitError, "rate_limit_exceeded"),
        ("no_quota", openai.RateLimitError, "insufficient_quota"),
        ("failed", openai.InternalServerError, None),
    ],
)
def test_faults_of_the_status(kind: str, raised: type[openai.APIStatusError], code: str | None) -> None:
    async def use(client: AsyncOpenAI) -> None:
        with pytest.raises(raised) as told:
            await say(client)
        assert told.value.code == code
        assert told.value.response.headers.get("retry-after-ms") == ("250" if kind == "limited" else None)
        assert (await counts(client))["faults"] == {kind: 1}

    asked(Behaviour(retry_after_s=0.25, faults=replace(Faults(), **{kind: 1.0})), use)


def test_a_reply_that_is_cut_off_is_a_lost_connection() -> None:
    async def use(client: AsyncOpenAI) -> None:
        with pytest.raises(openai.APIConnectionError):
            await say(client)
        served = await counts(client)
        assert (served["faults"], served["answered"]) == ({"cut": 1}, 0)

    asked(Behaviour(faults=Faults(cut=1.0)), use)


def test_a_body_that_is_no_json_cannot_be_read() -> None:
    async def use(client: AsyncOpenAI) -> None:
        with pytest.raises((json.JSONDecodeError, openai.OpenAIError)):
            await say(client)
        assert (await counts(client))["answered"] == 0

    asked(Behaviour(faults=Faults(garbled=1.0)), use)


def test_a_server_that_hangs_does_so_until_its_client_leaves() -> None:
    async def use(client: AsyncOpenAI) -> None:
        with pytest.raises(openai.APITimeoutError):
            await say(client)
        served = await counts(client)
        while served["in_flight"]:
            served = await counts(client)
        assert (served["abandoned"], served["faults"], served["status"]) == (1, {"hung": 1}, {})

    asked(Behaviour(faults=Faults(hung=1.0)), use, timeout=0.3)


def test_clients_that_still_wait_do_not_keep_the_server_from_ending() -> None:
    async def use(client: AsyncOpenAI) -> "asyncio.Task[Any]":
        waiting = asyncio.create_task(say(client))
        while not (await counts(client))["in_flight"]:
            continue
        return waiting

    async def main(url: str) -> None:
        http = DefaultAsyncHttpx2Client(trust_env=False)
        client = AsyncOpenAI(api_key="none", base_url=url, max_retries=0, http_client=http)
        stopping.append(await use(client))
        await asyncio.to_thread(stop.__exit__, None, None, None)
        with pytest.raises(openai.APIError):
            await stopping[0]
        await client.close()

    stopping: list[asyncio.Task[Any]] = []
    stop = stand_in(Behaviour(faults=Faults(hung=1.0)))
    asyncio.run(main(stop.__enter__()))


def test_faults_of_the_content() -> None:
    replies = {
        kind: post(TestClient(make_app(Behaviour(faults=replace(Faults(), **{kind: 1.0})))), response_format=SHAPE)
        for kind in ("malformed", "truncated", "refused")
    }
    choices = {kind: reply.json()["choices"][0] for kind, reply in replies.items()}
    assert {reply.status_code for reply in replies.values()} == {200}
    assert (choices["malformed"]["finish_reason"], choices["truncated"]["finish_reason"]) == ("stop", "length")
    for kind in ("malformed", "truncated"):
        with pytest.raises(json.JSONDecodeError):
            json.loads(choices[kind]["message"]["content"])
    message = choices["refused"]["message"]
    assert message["content"] is None and message["refusal"].startswith("I'm sorry")


def test_embeddings_have_no_faults_of_content() -> None:
    client = TestClient(make_app(Behaviour(faults=Faults(refused=1.0))))
    body = {"model": "stand-in-embedding", "input": "x"}
    assert client.post("/v1/embeddings", json=body).status_code == 200
    assert client.get("/v1/_stats").json()["faults"] == {}


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """A time that moves when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_requests_over_the_limit_wait_as_long_as_they_are_told() -> None:
    clock = Clock()
    client = TestClient(make_app(Behaviour(requests_per_minute=60, burst_s=2.0), clock=clock))
    first, second, third = (post(client, text) for text in "abc")
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert first.headers["x-ratelimit-limit-requests"] == "60"
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in (first, second, third)] == ["1", "0", "0"]
    assert [reply.headers["x-ratelimit-reset-requests"] for reply in (first, second)] == ["1s", "2s"]
    error = third.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests") and "try again in 1s" in error[
        "message"
    ]
    assert (third.headers["retry-after-ms"], third.headers["retry-after"]) == ("1000", "1")
    clock.now += 0.5
    assert post(client, "c").headers["retry-after-ms"] == "500"
    clock.now += 0.5
    assert post(client, "c").status_code == 200
    assert client.get("/v1/_stats").json()["status"] == {"200": 3, "429": 2}


def test_tokens_have_a_limit_too_and_each_model_has_its_own() -> None:
    client = TestClient(make_app(Behaviour(tokens_per_minute=600), clock=Clock()))
    assert post(client, max_tokens=400).headers["x-ratelimit-remaining-tokens"] == "200"
    over = post(client, "x" * 1200)
    assert (over.status_code, over.json()["error"]["type"]) == (429, "tokens")
    assert over.headers["retry-after-ms"] == "10100", "301 tokens of 1200 characters, 200 there, ten a second"
    body = {"model": "stand-in-gullible", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 400}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    never = post(client, max_tokens=601)
    assert (
        never.status_code == 429
        and "retry-after" not in never.headers
        and "too large" in never.json()["error"]["message"]
    )


def test_a_limited_request_is_not_counted_as_seen() -> None:
    clock = Clock()
    behaviour = Behaviour(requests_per_minute=60, burst_s=1.0, faults=Faults(failed=0.5, seed=1))
    free = TestClient(make_app(Behaviour(faults=behaviour.faults)))
    client = TestClient(make_app(behaviour, clock=clock))
    for text in map(str, range(12)):
        assert post(client, text).status_code == post(free, text).status_code
        assert post(client, text).status_code == 429
        clock.now += 1


def test_a_bucket_lets_through_what_its_limit_says() -> None:
    bucket, taken = Bucket(600, 1.0, 10.0), 0
    for tick in range(1, 6001):
        bucket.refill(tick / 100)
        if not bucket.wait_s(1):
            bucket.level -= 1
            taken += 1
    assert 600 <= taken <= 610


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.0, "0ms"), (0.12, "120ms"), (8.64, "8.64s"), (360, "6m0s"), (3723, "1h2m3s")]
)
def test_durations_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


# ── counts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_good_answer_twice_is_a_duplicate() -> None:
    client = TestClient(make_app())
    for text in ("a", "b", "a", "a"):
        post(client, text)
    served = client.get("/v1/_stats").json()
    assert (served["requests"], served["answered"], served["distinct"], served["duplicates"]) == (4, 4, 2, 2)
    assert served["models"] == {"stand-in": 4} and served["tokens"]["prompt"] == 4
    assert client.delete("/v1/_stats").json()["requests"] == 0
    post(client, "a")
    assert client.get("/v1/_stats").json()["duplicates"] == 0


def test_a_retry_after_a_spoiled_answer_is_no_duplicate() -> None:
    spoiled = 0
    for seed in range(20):
        client = TestClient(make_app(Behaviour(faults=Faults(malformed=0.5, seed=seed))))
        while client.get("/v1/_stats").json()["distinct"] == 0:
            post(client, response_format=SHAPE)
        served = client.get("/v1/_stats").json()
        assert served["duplicates"] == 0 and served["answered"] == 1 + served["faults"].get("malformed", 0)
        spoiled += served["answered"] > 1
    assert spoiled > 3


def test_many_at_once_are_all_counted() -> None:
    async def use(client: AsyncOpenAI) -> dict[str, Any]:
        await asyncio.gather(*(say(client, f"text {i % 50}") for i in range(100)))
        return await counts(client)

    served = asked(Behaviour(delay_s=0.05), use)
    assert (served["requests"], served["answered"], served["duplicates"], served["in_flight"]) == (100, 100, 50, 0)
    assert served["most_in_flight"] > 1
