"""Files and batches of the bundled server, driven by the real client."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from openai.types import Batch
from serving import running
from starlette.testclient import TestClient

from grpo_ray.mock_openai import Behaviour, make_app
from grpo_ray.stand_ins.batch import read_lines
from grpo_ray.stand_ins.faults import Faults

pytestmark = pytest.mark.process

CHAT = "/v1/chat/completions"


class Clock:
    """A time that moves when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def driven(use: Callable[[AsyncOpenAI, Clock], Awaitable[None]], behaviour: Behaviour | None = None) -> None:
    """Run `use` with a client of a server whose batches take ten seconds of a clock that `use` moves."""
    clock = Clock()

    async def main(url: str) -> None:
        http = DefaultAsyncHttpx2Client(trust_env=False)
        async with AsyncOpenAI(api_key="none", base_url=url, max_retries=0, http_client=http) as client:
            await use(client, clock)

    with running(make_app(behaviour or Behaviour(batch_s=10.0), clock=clock)) as url:
        asyncio.run(main(url))


def line(name: str, *, model: str = "stand-in", url: str = CHAT, **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": f"say {name}"}], **more}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


async def begun(client: AsyncOpenAI, lines: list[Any], **more: Any) -> Batch:
    content = "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines).encode()
    file = await client.files.create(file=("batch.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (len(content), "batch.jsonl", "batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more
    )


async def lines_of(client: AsyncOpenAI, file: str | None) -> dict[str, Any]:
    assert file is not None
    text = (await client.files.content(file)).text
    return {one["custom_id"]: one for one in map(json.loads, text.splitlines())}


def test_a_batch_runs_from_validating_to_completed() -> None:
    async def use(client: AsyncOpenAI, clock: Clock) -> None:
        batch = await begun(client, [line(f"n{i}") for i in range(10)], metadata={"run": "r1"})
        assert (batch.status, batch.metadata, batch.completion_window) == ("validating", {"run": "r1"}, "24h")
        seen = []
        for moment in (0.0, 1.5, 5.0, 9.5, 10.0):
            clock.now = 100.0 + moment
            batch = await client.batches.retrieve(batch.id)
            counts = batch.request_counts
            assert counts
            seen.append((batch.status, counts.completed))
        assert seen == [
            ("validating", 0),
            ("in_progress", 0),
            ("in_progress", 5),
            ("finalizing", 10),
            ("completed", 10),
        ]
        assert batch.completed_at and batch.completed_at - batch.created_at == 10 and batch.error_file_id is None
        said = await lines_of(client, batch.output_file_id)
        assert list(said) == [f"n{i}" for i in range(10)]
        response = said["n3"]["response"]
        live = await client.chat.completions.create(**line("n3")["body"])
        assert response["status_code"] == 200 and said["n3"]["error"] is None
        assert response["body"] == json.loads(live.model_dump_json(exclude_unset=True))
        assert response["body"]["system_fingerprint"] == "stand-in"
        assert batch.usage and batch.usage.output_tokens == 10 * response["body"]["usage"]["completion_tokens"]

    driven(use)


def test_a_bad_request_becomes_a_line_of_the_error_file() -> None:
    async def use(client: AsyncOpenAI, clock: Clock) -> None:
        batch = await begun(client, [line("good"), line("unknown", model="gpt-4"), line("empty", messages=[])])
        clock.now += 10
        batch = await client.batches.retrieve(batch.id)
        assert batch.request_counts and batch.request_counts.to_dict() == {"total": 3, "completed": 1, "failed": 2}
        assert list(await lines_of(client, batch.output_file_id)) == ["good"]
        errors = await lines_of(client, batch.error_file_id)
        assert {name: one["response"]["status_code"] for name, one in errors.items()} == {"unknown": 404, "empty": 400}
        assert errors["unknown"]["response"]["body"]["error"]["code"] == "model_not_found"

    driven(use)


def test_faults_reach_the_lines_of_a_batch() -> None:
    async def use(client: AsyncOpenAI, clock: Clock) -> None:
        batch = await begun(client, [line(f"n{i}") for i in range(60)])
        clock.now += 10
        batch = await client.batches.retrieve(batch.id)
        good, bad = await lines_of(client, batch.output_file_id), await lines_of(client, batch.error_file_id)
        assert not good.keys() & bad.keys() and len(good) + len(bad) == 60
        assert {one["response"]["status_code"] for one in bad.values()} == {500}
        assert any(one["response"]["body"]["choices"][0]["message"]["refusal"] for one in good.values())

    driven(use, Behaviour(batch_s=10.0, faults=Faults(failed=0.3, refused=0.3, hung=0.2)))


def test_a_file_with_a_broken_line_fails_as_a_whole() -> None:
    async def use(client: AsyncOpenAI, clock: Clock) -> None:
        batch = await begun(client, [line("a"), "{", line("a")])
        clock.now += 10
        batch = await client.batches.retrieve(batch.id)
        assert batch.status == "failed" and batch.output_file_id is None and batch.errors and batch.errors.data
        assert [(e.code, e.line) for e in batch.errors.data] == [("invalid_json_line", 2), ("duplicate_custom_id", 3)]

    driven(use)


def test_a_batch_that_is_cancelled_keeps_what_it_had() -> None:
    async def use(client: AsyncOpenAI, clock: Clock) -> None:
        batch = await begun(client, [line(f"n{i}") for i in range(10)])
        clock.now += 5
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        clock.now += 50
        batch = await client.batches.retrieve(batch.id)
        assert batch.status == "cancelled" and batch.cancelled_at == batch.created_at + 5
        assert len(await lines_of(client, batch.output_file_id)) == 5
        with pytest.raises(openai.BadRequestError, match="status 'cancelled'"):
            await client.batches.cancel(batch.id)

    driven(use)


def test_files_and_batches_are_listed_newest_first_and_files_deleted() -> None:
    async def use(client: AsyncOpenAI, clock: Clock) -> None:
        batches = [await begun(client, [line("a")]) for _ in range(3)]
        assert [one.id async for one in client.batches.list(limit=2)] == [one.id for one in reversed(batches)]
        files = [one.id async for one in client.files.list()]
        assert files == [one.input_file_id for one in reversed(batches)]
        assert (await client.files.delete(files[0])).deleted
        with pytest.raises(openai.NotFoundError, match=files[0]):
            await client.files.retrieve(files[0])
        with pytest.raises(openai.NotFoundError, match="No batch found"):
            await client.batches.retrieve("batch_none")

    driven(use)


def test_answers_of_a_batch_are_counted() -> None:
    async def use(client: AsyncOpenAI, clock: Clock) -> None:
        await begun(client, [line("a"), line("b")])
        clock.now += 10
        assert len([one async for one in client.batches.list()]) == 1
        await client.chat.completions.create(**line("a")["body"])
        served = await client.get("/_stats", cast_to=dict[str, Any])
        assert (served["answered"], served["distinct"], served["duplicates"]) == (3, 2, 1)

    driven(use)


@pytest.mark.parametrize(
    "asks",
    [
        {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"},
        {"input_file_id": "file-none", "endpoint": "/v1/moderations", "completion_window": "24h"},
        {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "1h"},
        [],
    ],
)
def test_wrong_batches_are_refused(asks: Any) -> None:
    reply = TestClient(make_app()).post("/v1/batches", json=asks)
    assert reply.status_code == 400 and reply.json()["error"]["message"]


def test_wrong_uploads_are_refused() -> None:
    client = TestClient(make_app())
    file = {"file": ("x.jsonl", b"{}")}
    assert client.post("/v1/files", data={"purpose": "fine-tune"}, files=file).status_code == 400
    assert client.post("/v1/files", data={"purpose": "batch"}).status_code == 400
    assert client.post("/v1/files", content=b"no form").status_code == 400


def test_what_is_wrong_with_a_file_is_said_by_line() -> None:
    lines = ["", '["no object"]', json.dumps({"custom_id": 3}), json.dumps(line("x", url="/v1/embeddings"))]
    found, errors = read_lines("\n".join(lines).encode(), CHAT)
    codes = [("invalid_json_line", 2), ("missing_required_parameter", 3), ("mismatched_endpoint", 4)]
    assert not found and [(error["code"], error["line"]) for error in errors] == codes
    assert read_lines(b"\n", CHAT)[1][0]["code"] == "empty_file"
