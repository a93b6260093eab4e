"""Which parameters go out, which an endpoint talks us out of, and how long it may ask us to wait."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from chats import ASK, Seen, completion, no, scripted
from hypothesis import given
from hypothesis import strategies as st
from serving import running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from grpo_ray.errors import OracleError
from grpo_ray.llm.addresses import LONGEST_S, retry_after
from grpo_ray.llm.endpoint import Endpoint
from grpo_ray.llm.profiles import objection, parameters, reasons
from grpo_ray.recipe import OracleSpec

OPENAI, OTHER = "https://api.openai.com/v1", "https://api.example.com/v1"


@pytest.mark.parametrize("model", ["gpt-5", "gpt-5-mini", "gpt-5.1", "o3", "o4-mini", "openai/o3", "GPT-6", "gpt-11"])
def test_models_that_reason_get_no_temperature(model: str) -> None:
    assert reasons(OracleSpec(model=model))
    assert parameters(OracleSpec(model=model, temperature=0.2), OTHER) == {"max_tokens": 2000}


@pytest.mark.parametrize(
    "model",
    ["gpt-4o", "gpt-4.1-mini", "gpt-35-turbo", "gpt-3.5-turbo", "gpt-5-chat-latest", "qwen3-8b", "gpt-oss-20b", "olmo"],
)
def test_others_get_the_temperature_that_the_recipe_says(model: str) -> None:
    assert parameters(OracleSpec(model=model, temperature=0.2), OTHER)["temperature"] == 0.2
    assert "temperature" not in parameters(OracleSpec(model=model), OTHER)


def test_effort_is_sent_as_it_is_and_none_brings_the_temperature_back() -> None:
    low = parameters(OracleSpec(model="gpt-5", temperature=0.2, reasoning_effort="low"), OPENAI)
    assert low == {"max_completion_tokens": 2000, "reasoning_effort": "low"}
    none = parameters(OracleSpec(model="gpt-5", temperature=0.2, reasoning_effort="none"), OPENAI)
    assert (none["reasoning_effort"], none["temperature"]) == ("none", 0.2)


def test_the_cap_has_the_name_that_the_endpoint_takes() -> None:
    spec = OracleSpec(max_tokens=7)
    assert parameters(spec, OPENAI) == {"max_completion_tokens": 7}
    assert parameters(spec, OTHER) == {"max_tokens": 7}
    assert parameters(spec, OPENAI, {"max_completion_tokens"}) == {"max_tokens": 7}
    assert parameters(spec, OTHER, {"max_tokens", "max_completion_tokens"}) == {}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported; use 'max_completion_tokens'", "max_tokens"),
        ("Unsupported value: 'temperature' does not support 0.2 with this model.", "temperature"),
        ("Unrecognized request argument supplied: reasoning_effort", "reasoning_effort"),
        ("{'loc': ['body', 'reasoning_effort'], 'msg': 'Extra inputs are not permitted'}", "reasoning_effort"),
        ('Unknown name "reasoning_effort": Cannot find field.', "reasoning_effort"),
        ("max_tokens is too large: 2000", None),
        ("response_format is not supported", None),
        ("this model is not supported; see messages", None),
    ],
)
def test_an_objection_names_what_was_sent_or_nothing(words: str, name: str | None) -> None:
    assert objection(words, ("model", "messages", "max_tokens", "temperature", "reasoning_effort")) == name


def asked(app: Starlette, times: int = 1, at_once: bool = False, **spec: Any) -> list[Any]:
    """What an endpoint's answers, or faults, are, one after the other or all at once."""

    async def main(url: str) -> list[Any]:
        endpoint = Endpoint(OracleSpec(base_url=url, **spec), base_url=url, retries=0)
        try:
            if at_once:
                return await asyncio.gather(*(endpoint.complete(ASK) for _ in range(times)), return_exceptions=True)
            return [(await asyncio.gather(endpoint.complete(ASK), return_exceptions=True))[0] for _ in range(times)]
        finally:
            await endpoint.close()

    with running(app) as url:
        return asyncio.run(main(url))


@pytest.mark.process
def test_what_was_refused_once_is_not_sent_again() -> None:
    seen: Seen = []
    refused = no(400, "Unsupported value: 'temperature' does not support 0.2")
    effort = no(400, "Unrecognized request argument supplied: reasoning_effort")
    app = scripted(refused, effort, "yes", seen=seen)
    said = asked(app, 2, model="m", temperature=0.2, reasoning_effort="low")
    assert [one.text for one in said] == ["yes", "yes"]
    sent = [{"temperature", "reasoning_effort"} & set(body) for body in seen]
    assert sent == [{"temperature", "reasoning_effort"}, {"reasoning_effort"}, set(), set()]


@pytest.mark.process
@pytest.mark.parametrize(
    "words",
    [
        "Unsupported parameter: 'max_tokens'",
        "'max_tokens' and 'max_completion_tokens' are not supported",
        "Unsupported parameter: 'temperature'",
        "Unsupported parameters: temperature, max_tokens, reasoning_effort, max_completion_tokens",
    ],
)
def test_an_endpoint_that_goes_on_objecting_is_given_up(words: str) -> None:
    seen: Seen = []
    said = asked(scripted(no(400, words), seen=seen), 2, model="m", temperature=0.2, reasoning_effort="low")
    assert all(isinstance(one, OracleError) and "refused the request" in str(one) for one in said)
    assert len(seen) <= 8


@pytest.mark.process
def test_calls_that_meet_the_same_refusal_at_once_all_go_on_without_it() -> None:
    waiting, all_there = 0, asyncio.Event()

    async def chat(request: Request) -> Response:
        nonlocal waiting
        if "max_tokens" not in await request.json():
            return completion("yes")
        waiting += 1
        if waiting == 4:
            all_there.set()
        await all_there.wait()
        return no(400, "Unsupported parameter: 'max_tokens' is not supported; use 'max_completion_tokens'")

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    said = asked(app, 4, at_once=True, model="m", concurrency=8)
    assert [getattr(one, "text", one) for one in said] == ["yes"] * 4


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "7", "retry-after-ms": "soon"}, 7.0),
        ({"retry-after": "-7"}, 0.0),
        ({"retry-after-ms": "-7"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "inf"}, LONGEST_S),
        ({"retry-after": "86400"}, LONGEST_S),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
        ({"retry-after": "Sun Nov  6 08:49:37 1994"}, 0.0),
        ({"retry-after": "Sun, 06 Nov 2994 08:49:37 -0000"}, LONGEST_S),
    ],
)
def test_what_an_endpoint_asks_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers) == seconds


def test_a_date_is_waited_for() -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 30 <= retry_after({"retry-after": then}) <= 60


@given(st.text(), st.text())
def test_no_header_asks_for_what_cannot_be_waited(one: str, other: str) -> None:
    assert 0 <= retry_after({"retry-after": one, "retry-after-ms": other}) <= LONGEST_S
