"""The endpoint over real HTTP on loopback: shapes, parameters, keys, and what strangers send."""

import asyncio
import json
from typing import Any

import pytest
from chats import ASK, GOOD, Verdict, complete, completion, free_url, no, scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import running, stand_in
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from grpo_ray.errors import ConfigError, MissingError, OracleError, UnreachableError
from grpo_ray.llm.endpoint import Endpoint, api_key, unit
from grpo_ray.llm.shapes import accepted, json_objects
from grpo_ray.mock_openai import Behaviour
from grpo_ray.recipe import OracleSpec
from grpo_ray.types import Message

pytestmark = pytest.mark.process


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_a_shape_is_asked_for_the_strictest_way_and_comes_back_as_json() -> None:
    seen: list[dict[str, Any]] = []
    with running(scripted(GOOD, seen=seen)) as url:
        reply = complete(url)
    assert json.loads(reply.text) == {"rationale": "fine", "score": 2}
    assert (reply.model, reply.stand_in, reply.prompt_tokens, reply.completion_tokens) == ("m-1", False, 10, 5)
    form = seen[0]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["strict"] is True
    assert form["json_schema"]["schema"]["additionalProperties"] is False
    assert "temperature" not in seen[0] and seen[0]["max_tokens"] == 2000


def test_the_ladder_goes_down_once_and_stays_there() -> None:
    seen: list[dict[str, Any]] = []
    no_format = no(400, "response_format is not supported")
    with running(scripted(no_format, no_format, f"Sure:\n```json\n{GOOD}\n```", seen=seen)) as url:

        async def main() -> None:
            endpoint = Endpoint(OracleSpec(base_url=url), base_url=url)
            for _ in range(2):
                assert Verdict.model_validate_json((await endpoint.complete(ASK, shape=Verdict)).text).score == 2
            await endpoint.close()

        asyncio.run(main())
    assert [(body.get("response_format") or {}).get("type") for body in seen] == [
        "json_schema", "json_object", None, None,
    ]  # fmt: skip
    assert "JSON Schema" in seen[-1]["messages"][-1]["content"]


def test_an_endpoint_that_ignores_the_form_is_asked_in_words_after_two_replies() -> None:
    seen: list[dict[str, Any]] = []
    with running(scripted("It is fine.", GOOD, "Good.", GOOD, GOOD, seen=seen)) as url:

        async def main() -> None:
            endpoint = Endpoint(OracleSpec(base_url=url), base_url=url)
            for _ in range(3):
                assert Verdict.model_validate_json((await endpoint.complete(ASK, shape=Verdict)).text).score == 2
            await endpoint.close()

        asyncio.run(main())
    assert ["response_format" in body for body in seen] == [True, True, True, True, False]
    assert "JSON Schema" in seen[4]["messages"][-1]["content"]


def test_a_request_that_is_too_long_is_sent_once_and_does_not_move_the_ladder() -> None:
    too_long = no(400, "context length exceeded")
    seen: list[dict[str, Any]] = []
    with running(scripted(too_long, GOOD, seen=seen)) as url:

        async def main() -> None:
            endpoint = Endpoint(OracleSpec(base_url=url), base_url=url)
            with pytest.raises(OracleError, match="context length exceeded"):
                await endpoint.complete(ASK, shape=Verdict)
            await endpoint.complete(ASK, shape=Verdict)
            await endpoint.close()

        asyncio.run(main())
    assert [body["response_format"]["type"] for body in seen] == ["json_schema"] * 2


def test_a_malformed_reply_is_sent_back_once_with_what_was_wrong() -> None:
    seen: list[dict[str, Any]] = []
    with running(scripted('{"rationale": "x", "score": 9}', GOOD, seen=seen)) as url:
        reply = complete(url)
    assert json.loads(reply.text)["score"] == 2
    assert (reply.prompt_tokens, reply.completion_tokens) == (20, 10)
    assert [m["role"] for m in seen[1]["messages"]] == ["user", "assistant", "user"]
    assert "score" in seen[1]["messages"][2]["content"]


def test_two_malformed_replies_are_given_up() -> None:
    seen: list[dict[str, Any]] = []
    with (
        running(scripted("no idea", seen=seen)) as url,
        pytest.raises(OracleError, match="twice sent no valid Verdict"),
    ):
        complete(url)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("app", "message"),
    [
        (scripted('{"rationale": "x', finish="length"), "raise oracle.max_tokens"),
        (scripted("", refusal="I can't judge that"), "I can't judge that"),
        (scripted(no(401, "bad key")), r"refused the key in \$OPENAI_API_KEY"),
        (scripted(no(404, "no such model")), "see oracle.model"),
        (scripted(PlainTextResponse("<html>hello</html>")), "did not send a chat completion"),
        (scripted(JSONResponse({"hello": 1})), "did not send a chat completion"),
    ],
)
def test_what_an_endpoint_does_wrong_is_said_with_the_way_out(app: Starlette, message: str) -> None:
    with running(app) as url, pytest.raises(OracleError, match=message):
        complete(url)


def test_broken_json_with_a_json_header_is_an_oracle_error() -> None:
    with running(scripted(Response("{", media_type="application/json"))) as url, pytest.raises(OracleError):
        complete(url)


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{}]},
        {"choices": [None]},
        {"choices": "x"},
        {"choices": {"a": 1}},
        {"choices": []},
        {"choices": [{"message": None}]},
        {"choices": [{"message": "hi"}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {"content": [{"type": "thinking"}, None]}}]},
        [1],
        None,
        "x",
    ],
)
def test_json_that_is_no_completion_is_a_fault_of_the_endpoint_s_not_a_bug(body: Any) -> None:
    with running(scripted(JSONResponse(body))) as url, pytest.raises(OracleError, match=r"did not (send|answer)"):
        complete(url)


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}"])
def test_a_body_that_cannot_be_read_is_a_fault_of_the_endpoint_s_not_a_bug(body: bytes) -> None:
    response = Response(body, media_type="application/json")
    with running(scripted(response)) as url, pytest.raises(OracleError, match="sent a body that is no JSON"):
        complete(url)


@pytest.mark.parametrize("usage", [None, [], {}, "10", {"prompt_tokens": "x", "completion_tokens": 1.5}])
def test_tokens_that_are_not_told_count_as_none(usage: Any) -> None:
    body = {"choices": [{"message": {"content": "hi"}}], "usage": usage, "model": 5}
    with running(scripted(JSONResponse(body))) as url:
        reply = complete(url, shape=None)
    assert (reply.text, reply.model, reply.prompt_tokens, reply.completion_tokens) == ("hi", "5", 0, 0)


def test_content_that_comes_in_parts_is_their_text() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    with running(scripted(JSONResponse({"choices": [{"message": {"content": parts}}]}))) as url:
        assert complete(url, shape=None).text == "ab"


@pytest.mark.parametrize(
    "data", [None, "x", [], [{"index": 0, "embedding": [1.0]}], [{"index": 0}, {"index": 1}], [{}, {}], [1, 2]]
)
def test_embeddings_that_are_none_are_a_fault_of_the_endpoint_s(data: Any) -> None:
    async def sent(request: Request) -> Response:
        return JSONResponse({"data": data})

    async def main(url: str) -> None:
        endpoint = Endpoint(OracleSpec(base_url=url, embedding_model="e"), base_url=url, retries=0)
        with pytest.raises(OracleError, match=r"sent (an|no|0|1) embeddings? "):
            await endpoint.embed(["a", "b"])
        await endpoint.close()

    with running(Starlette(routes=[Route("/v1/embeddings", sent, methods=["POST"])])) as url:
        asyncio.run(main(url))


def test_nobody_there_names_the_url_and_what_to_start() -> None:
    url = free_url()
    with pytest.raises(OracleError, match=rf"can't reach {url} .*start that server"):
        complete(url)


def test_probe_raises_unreachable_or_missing() -> None:
    async def probe(url: str, model: str) -> dict[str, str | None]:
        endpoint = Endpoint(OracleSpec(base_url=url, model=model), base_url=url, retries=0)
        try:
            return await endpoint.probe()
        finally:
            await endpoint.close()

    with stand_in() as url:
        assert "stand-in" in asyncio.run(probe(url, "stand-in"))
        with pytest.raises(MissingError, match="did you mean 'stand-in'"):
            asyncio.run(probe(url, "stand-inn"))
    with pytest.raises(UnreachableError, match="can't reach"):
        asyncio.run(probe(free_url(), "stand-in"))


def test_limits_and_failures_are_ridden_out() -> None:
    with stand_in(Behaviour(limit_every=2, retry_after_s=0.01, fail_every=3)) as url:
        for _ in range(4):
            assert complete(url, shape=None, retries=3).text.startswith("I am a stand-in")


def test_a_late_answer_is_given_up_on() -> None:
    with stand_in(Behaviour(delay_s=30)) as url:

        async def main() -> None:
            endpoint = Endpoint(OracleSpec(base_url=url, timeout_s=0.5), base_url=url, retries=0)
            with pytest.raises(OracleError, match=r"within 0.5 s; see oracle.timeout_s"):
                await endpoint.complete(ASK)
            await endpoint.close()

        asyncio.run(main())


def test_without_quota_the_endpoint_is_left_alone() -> None:
    seen: list[dict[str, Any]] = []
    gone = no(429, "You exceeded your current quota", "insufficient_quota")
    with running(scripted(gone, gone, gone, gone, GOOD, seen=seen)) as url:

        async def main() -> None:
            endpoint = Endpoint(OracleSpec(base_url=url), base_url=url, retries=0)
            for _ in range(3):
                with pytest.raises(OracleError, match="no quota left"):
                    await endpoint.complete(ASK)
            await endpoint.close()

        asyncio.run(main())
    assert len(seen) == 1


def test_an_endpoint_that_wants_the_other_name_of_the_cap_gets_it() -> None:
    seen: list[dict[str, Any]] = []
    wants = no(400, "Unsupported parameter: 'max_tokens' is not supported; use 'max_completion_tokens'")
    with running(scripted(wants, "yes", seen=seen)) as url:
        assert complete(url, shape=None).text == "yes"
    assert "max_tokens" in seen[0] and "max_tokens" not in seen[1] and seen[1]["max_completion_tokens"] == 2000


def test_no_more_calls_at_once_than_the_recipe_says() -> None:
    now, most = 0, 0

    async def chat(request: Request) -> Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(20):
            await asyncio.sleep(0)
        now -= 1
        return completion("ok")

    with running(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])) as url:

        async def main() -> None:
            endpoint = Endpoint(OracleSpec(base_url=url, concurrency=3), base_url=url)
            await asyncio.gather(*(endpoint.complete(ASK) for _ in range(12)))
            await endpoint.close()

        asyncio.run(main())
    assert 1 <= most <= 3


def test_keys_go_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("LOCAL_KEY", "local-secret")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    remote, local = "https://api.openai.com/v1", "http://127.0.0.1:1/v1"
    assert api_key(OracleSpec(base_url=remote), remote) == "sk-secret"
    assert api_key(OracleSpec(base_url=local), local) == "none"
    assert api_key(OracleSpec(base_url=local, api_key_env="LOCAL_KEY"), local) == "local-secret"
    assert api_key(OracleSpec(base_url="bundled"), "http://10.0.0.1:1/v1") == "none"
    with pytest.raises(ConfigError, match="export NO_SUCH_KEY"):
        api_key(OracleSpec(base_url=remote, api_key_env="NO_SUCH_KEY"), remote)


def test_a_stand_in_says_that_it_is_one_and_embeds() -> None:
    with stand_in() as url:
        spec = OracleSpec(base_url=url, embedding_model="stand-in-embedding")
        assert complete(url, spec, shape=None).stand_in is True

        async def main() -> list[list[float]]:
            endpoint = Endpoint(spec, base_url=url)
            try:
                return await endpoint.embed(["show your steps", "show your steps!", "purple"])
            finally:
                await endpoint.close()

        one, near, far = asyncio.run(main())
    assert cosine(one, one) == pytest.approx(1)
    assert cosine(one, near) > 0.8
    assert cosine(one, far) < 0.4


def test_text_that_is_no_utf8_is_sent_all_the_same() -> None:
    with stand_in() as url:

        async def main() -> None:
            endpoint = Endpoint(OracleSpec(base_url=url), base_url=url)
            await endpoint.complete([Message("user", "half a \ud83d pair")])
            await endpoint.close()

        asyncio.run(main())


@settings(deadline=None)
@given(st.text(), st.text())
def test_an_object_is_found_whatever_stands_around_it(before: str, after: str) -> None:
    before = before.replace("{", "(")
    assert Verdict.model_validate_json(accepted(Verdict, before + GOOD + after)).score == 2


@settings(deadline=None)
@given(st.text(alphabet='{}[]":, a1\\'))
def test_any_text_yields_objects_or_nothing(text: str) -> None:
    assert all(isinstance(found, dict) for found in json_objects(text))


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_unit_vectors_have_length_one(vector: list[float]) -> None:
    length = sum(x * x for x in unit(vector)) ** 0.5
    assert length == pytest.approx(1) or sum(x * x for x in vector) < 1e-200
