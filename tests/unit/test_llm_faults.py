"""What faults of endpoints cost and tell: refusals, keys, money of calls that nobody waits for, servers that are away."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from chats import ASK, GOOD, HANG, Seen, Verdict, completion, no, scripted, tried, until
from serving import running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from grpo_ray.doctor import check_endpoint, check_key
from grpo_ray.errors import ConfigError, OracleError, UnreachableError
from grpo_ray.llm.addresses import find_key, hidden, shown
from grpo_ray.llm.batch import BatchEndpoint, Landed, meaning
from grpo_ray.llm.batch_files import read_lines
from grpo_ray.llm.endpoint import KNOWN, Endpoint, Trail
from grpo_ray.llm.gate import Outcome
from grpo_ray.llm.shapes import OF_FORM, TOO_LONG
from grpo_ray.recipe import OracleSpec
from grpo_ray.types import Reply

pytestmark = pytest.mark.process

KEY = "sk-very-secret-indeed"
BAD = '{"rationale": "x", "score": 9}'
PRICED = OracleSpec(model="m", timeout_s=20, usd_per_million=(2.0, 8.0))


class Told:
    """A gate that lets all in and keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    async def enter(self, door: str, tokens: int, patience_s: float) -> int:
        return 1

    async def leave(self, door: str, lease: int, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    async def allow(self, door: str, max_usd: float | None) -> None:
        raise NotImplementedError


def told(*replies: str | Response, **changes: Any) -> tuple[Outcome, Trail]:
    """What the gate is told of one call that fails, and its trail."""
    gate, trail = Told(), Trail()
    with running(scripted(*replies)) as url:

        async def main() -> None:
            plan = replace(PRICED, base_url=url, **changes)
            endpoint = Endpoint(plan, base_url=url, gate=gate, retries=0)
            with pytest.raises(OracleError):
                await endpoint.complete(ASK, trail=trail)
            await endpoint.close()

        asyncio.run(main())
    return gate.outcomes[0], trail


def forms(*replies: str | Response, times: int) -> tuple[list[str | None], list[Any]]:
    """The forms that requests asked for, and what came of so many questions, one after the other."""
    seen: Seen = []
    with running(scripted(*replies, seen=seen)) as url:

        async def main() -> list[Any]:
            endpoint = Endpoint(OracleSpec(base_url=url), base_url=url)
            asked = [endpoint.complete(ASK, shape=Verdict) for _ in range(times)]
            found = [(await asyncio.gather(one, return_exceptions=True))[0] for one in asked]
            await endpoint.close()
            return found

        found = asyncio.run(main())
    return [(body.get("response_format") or {}).get("type") for body in seen], found


# ── tried again ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_being_told_to_wait_is_no_fault() -> None:
    full, down = no(429, "too many", retry_after_ms="1"), no(500, "down")
    with running(scripted(*[full] * 5, down, full, "at last")) as url:
        reply, attempts = tried(url, replace(PRICED, base_url=url), retries=1)
    assert isinstance(reply, Reply) and reply.text == "at last"
    assert [one.status for one in attempts] == ["429"] * 5 + ["500", "429", "ok"]
    with running(scripted(full, down, full, down)) as url:
        gone, attempts = tried(url, replace(PRICED, base_url=url), retries=1)
    assert isinstance(gone, OracleError) and str(gone).endswith("down (4 tries)") and len(attempts) == 4


def test_probing_an_endpoint_that_only_says_wait_ends_with_the_deadline() -> None:
    async def listed(request: Request) -> Response:
        return no(429, "wait", retry_after="100")

    async def main(url: str) -> None:
        endpoint = Endpoint(replace(PRICED, base_url=url, deadline_s=0.5), base_url=url, retries=0)
        with pytest.raises(UnreachableError, match=r"within 0\.5 s in all"):
            await endpoint.probe()
        await endpoint.close()

    with running(Starlette(routes=[Route("/v1/models", listed)])) as url:
        asyncio.run(main(url))


# ── shapes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_endpoint_that_sends_json_of_its_own_is_asked_in_words_after_two_replies() -> None:
    asked, found = forms(BAD, GOOD, BAD, GOOD, GOOD, times=3)
    assert asked == ["json_schema"] * 4 + [None] and all(isinstance(one, Reply) for one in found)


def test_replies_that_fail_twice_count_as_well() -> None:
    asked, found = forms(BAD, BAD, BAD, BAD, GOOD, times=3)
    assert asked == ["json_schema"] * 4 + [None]
    assert [isinstance(one, Reply) for one in found] == [False, False, True]


def test_one_slip_now_and_then_does_not_cost_the_schema() -> None:
    asked, _ = forms(*[BAD, GOOD, GOOD] * 4, times=8)
    assert set(asked) == {"json_schema"} and len(asked) == 12


def test_one_odd_refusal_does_not_cost_the_schema() -> None:
    asked, found = forms(no(400, "bad luck"), GOOD, GOOD, times=2)
    assert asked == ["json_schema", "json_object", "json_schema"] and all(isinstance(one, Reply) for one in found)


def test_what_is_learnt_goes_as_far_as_the_refusals_that_spoke_of_the_form() -> None:
    asked, _ = forms(no(400, "unknown json_schema"), no(400, "bad luck"), GOOD, GOOD, times=2)
    assert asked == ["json_schema", "json_object", None, "json_object"]


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        "prompt is too long: 9000 tokens > 8192 maximum",
        "the input exceeds the context window, whatever its format",
    ],
)
def test_what_is_too_long_is_too_long_in_every_form(words: str) -> None:
    asked, found = forms(no(400, words), times=2)
    assert asked == ["json_schema"] * 2 and all(isinstance(one, OracleError) for one in found)


def test_what_speaks_of_the_form_is_told_from_what_does_not() -> None:
    for words in (
        "response_format is not supported",
        "Invalid schema for x",
        "'text.format' is unknown",
        "json_object",
    ):
        assert OF_FORM.search(words) and not TOO_LONG.search(words)
    for words in ("no more information", "bad platform", "flagged by our policy"):
        assert not OF_FORM.search(words) and not TOO_LONG.search(words)


def test_a_model_that_thought_until_it_was_cut_off_says_what_to_raise() -> None:
    with running(scripted(completion("", "length"))) as url:
        gone, attempts = tried(url, replace(PRICED, base_url=url, max_tokens=77))
    assert "cut off at 77 tokens; raise oracle.max_tokens, or lower oracle.reasoning_effort" in str(gone)
    assert [one.status for one in attempts] == ["cut_off"]


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_quota_other_callers_do_not_read_the_key_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    outcome, _ = told(no(429, f"{'no ' * 95}quota for {KEY}", "insufficient_quota"), api_key_env="SOME_KEY")
    assert outcome.status == "quota" and "no quota left" in outcome.why and "sk-very" not in outcome.why


def test_a_batch_repeats_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)

    async def main(url: str) -> str:
        endpoint = BatchEndpoint(OracleSpec(base_url=url, api_key_env="SOME_KEY"), base_url=url, retries=0)
        with pytest.raises(OracleError) as gone:
            await endpoint._called(lambda: endpoint._client.chat.completions.create(model="m", messages=[]))
        await endpoint.close()
        return str(gone.value)

    for status in (401, 404):
        with running(scripted(no(status, f"no such key: {KEY}"))) as url:
            words = asyncio.run(main(url))
        assert "no such key: …" in words


@pytest.mark.parametrize(
    "line",
    [
        f'{{"custom_id": "n-1", "error": {{"code": "c", "message": "no: {KEY}"}}}}',
        f'{{"custom_id": "n-1", "response": {{"status_code": 400, "body": {{"error": {{"message": "no: {KEY}"}}}}}}}}',
        f'{{"custom_id": "n-1", "response": {{"status_code": 401, "body": {{"error": "no: {KEY}"}}}}}}',
    ],
)
def test_the_lines_of_a_batch_repeat_no_key(line: str) -> None:
    _, _, fault = meaning(read_lines(line)["n-1"], Landed({}, 1.0, "completed", ""), "there", KEY)
    assert str(fault).endswith("no: …")


def test_the_doctor_shows_no_server_here_the_key_for_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("SOME_KEY", "local-key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"

        def heard() -> str:
            there, _ = server.accept()
            with there:
                said = there.recv(65536).decode()
                there.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n" + b'{"data": []}')
            return said.lower()

        async def asked(spec: OracleSpec) -> str:
            said, _ = await asyncio.gather(asyncio.to_thread(heard), check_endpoint(spec))
            return said

        assert "bearer none" in asyncio.run(asked(OracleSpec(base_url=url)))
        assert "bearer local-key" in asyncio.run(asked(OracleSpec(base_url=url, api_key_env="SOME_KEY")))
    assert "mostly needs none" in check_key(OracleSpec(base_url=url)).detail


def test_names_and_passwords_in_a_url_are_not_shown() -> None:
    assert (
        shown("http://me:pa@ss@host:1/v1") == "http://host:1/v1" and shown("https://host/v1/@x") == "https://host/v1/@x"
    )
    assert hidden("none", "none") == "none"
    with pytest.raises(ConfigError, match=r"^https://host/v1 needs a key"):
        find_key("https://me:pass@host/v1", "NO_SUCH_KEY", "oracle.api_key_env")
    with running(scripted(no(500, "down"), no(404, "gone"), completion("", "content_filter"), Response("x"))) as url:
        named = url.replace("http://", "http://me:password@")
        for _ in range(4):
            gone, attempts = tried(named, replace(PRICED, base_url=named), Verdict, retries=0)
            assert isinstance(gone, OracleError) and "password" not in f"{gone} {attempts}"
    found = asyncio.run(check_endpoint(OracleSpec(base_url=named)))
    assert not found.ok and "password" not in repr(found)


# ── what the gate is told, and money ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def silent() -> Iterator[str]:
    """A port whose queue of connections is full, so that one more is not answered, as behind a firewall that drops."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        waiting = [socket.socket() for _ in range(6)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        for one in waiting:
            one.close()


def test_a_connection_that_is_never_made_is_a_dead_endpoint() -> None:
    gate, trail = Told(), Trail()
    with silent() as url:

        async def main() -> None:
            endpoint = Endpoint(replace(PRICED, base_url=url, timeout_s=2.0), base_url=url, gate=gate, retries=0)
            with pytest.raises(OracleError, match=r"can't reach .*ConnectTimeout"):
                await endpoint.complete(ASK, trail=trail)
            await endpoint.close()

        asyncio.run(main())
    assert gate.outcomes == [Outcome("unreachable")] and trail.attempts[0].status == "unreachable"


@pytest.mark.parametrize(("status", "kind"), [(503, "late"), (529, "late"), (500, "failed"), (401, "failed")])
def test_too_much_to_do_is_told_from_other_faults(status: int, kind: str) -> None:
    outcome, trail = told(no(status, "no"))
    assert outcome == Outcome(kind) and trail.attempts[0].usd == 0  # pyright: ignore


def test_a_try_that_timed_out_is_paid_for_as_far_as_can_be_guessed() -> None:
    outcome, trail = told(HANG, timeout_s=0.5)
    size = len(ASK[0].content) // 4
    (attempt,) = trail.attempts
    assert outcome == Outcome("late", size, 256) and attempt.status == "timeout"
    assert (attempt.prompt_tokens, attempt.completion_tokens) == (size, 256)
    assert attempt.usd == pytest.approx((2.0 * size + 8.0 * 256) / 1e6)


def test_a_call_that_is_cancelled_and_one_that_lost_are_paid_for_too() -> None:
    seen: Seen = []
    gate, lost, left = Told(), Trail(), Trail()
    with running(scripted(*["quick"] * KNOWN, HANG, "beside", HANG, seen=seen)) as url:

        async def main() -> None:
            plan = replace(PRICED, base_url=url, hedge=3.0, timeout_s=30)
            endpoint = Endpoint(plan, base_url=url, gate=gate, retries=0)
            for _ in range(KNOWN):
                await endpoint.complete(ASK)
            await endpoint.complete(ASK, trail=lost)
            asking = asyncio.create_task(endpoint.complete(ASK, trail=left))
            await until(lambda: len(seen) >= KNOWN + 3)
            asking.cancel()
            await asyncio.wait([asking])
            await endpoint.close()

        asyncio.run(main())
    given_up = [one for one in (*lost.attempts, *left.attempts) if one.status == "given_up"]
    assert len(given_up) >= 2 and all(one.prompt_tokens == len(ASK[0].content) // 4 for one in given_up)
    assert all(5 <= one.completion_tokens < 256 and one.usd > 0 for one in given_up)  # the mean nears the replies' 5
    assert all(one.completion_tokens for one in gate.outcomes if one.status == "given_up")


def test_embeddings_give_back_no_tokens() -> None:
    async def main() -> None:
        plan = replace(PRICED, embedding_model="e", deadline_s=0.3)
        with silent() as url:
            told, trail = Told(), Trail()
            endpoint = Endpoint(replace(plan, base_url=url), base_url=url, gate=told, retries=0)
            with pytest.raises(OracleError, match="in all"):
                await endpoint.embed(["four" * 10], trail)
            await endpoint.close()
            assert told.outcomes == [Outcome("given_up", 10, 0)]

    asyncio.run(main())
