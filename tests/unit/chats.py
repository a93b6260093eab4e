"""What tests of the call path share: a chat server that says what it is told to, in turn, and what it was asked."""

import asyncio
import socket
import threading
from time import monotonic
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grpo_ray.llm.endpoint import Endpoint, Trail
from grpo_ray.recipe import OracleSpec
from grpo_ray.stand_ins.faults import broken, client_stays
from grpo_ray.types import Attempt, Message, Reply

ASK = [Message("user", "How good is it?")]
GOOD = '{"rationale": "fine", "score": 2}'
HANG = Response(status_code=499)
"""In the place of a reply: none ever, until the client leaves."""
Seen = list[dict[str, Any]]
"""The bodies of requests, each with its authorization and the moment it came."""


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rationale: str
    score: Literal[1, 2, 3]


def scripted(
    *replies: str | Response, seen: Seen | None = None, go: threading.Event | None = None, **extra: Any
) -> Starlette:
    """A server that answers, in turn, with texts or with whole responses; the last one stays. It waits for `go`."""
    left = list(replies)

    async def chat(request: Request) -> Response:
        body = await request.json()
        if seen is not None:
            seen.append(body | {"authorization": request.headers["authorization"], "at": monotonic()})
        reply = left.pop(0) if len(left) > 1 else left[0]
        if reply is HANG:
            await client_stays(request, None)
        if go is not None:
            await asyncio.to_thread(go.wait, 60)
        return completion(reply, **extra) if isinstance(reply, str) else reply

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def completion(text: str, finish: str = "stop", refusal: str | None = None) -> JSONResponse:
    message = {"role": "assistant", "content": text or None, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m-1", "choices": [choice], "usage": usage}
    return JSONResponse(whole)


def no(status: int, message: str, code: str | None = None, **headers: str) -> Response:
    """An error as OpenAI words it; `retry_after_ms="20"` becomes a header."""
    body = {"error": {"message": message, "type": "invalid", "param": None, "code": code}}
    return JSONResponse(body, status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def spoilt(fault: str) -> Response:
    """A completion that was broken on its way: "cut" or "garbled"."""
    return broken(completion("never read"), fault)


def free_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def complete(
    url: str, spec: OracleSpec | None = None, shape: type[BaseModel] | None = Verdict, retries: int = 0
) -> Reply:
    reply, _ = tried(url, spec or OracleSpec(base_url=url, timeout_s=20), shape, retries)
    if isinstance(reply, Exception):
        raise reply
    return reply


def tried(
    url: str, spec: OracleSpec, shape: type[BaseModel] | None = None, retries: int = 4
) -> tuple[Reply | Exception, list[Attempt]]:
    """What one question comes to, without pauses between tries, and the calls that were made."""
    trail = Trail("request", "0/group/judge")

    async def main() -> Reply | Exception:
        endpoint = Endpoint(spec, base_url=url, retries=retries, pauses=(0.0, 0.0))
        try:
            return await endpoint.complete(ASK, shape=shape, trail=trail)
        except Exception as fault:
            return fault
        finally:
            await endpoint.close()

    return asyncio.run(main()), trail.attempts


async def until(holds: Any, seconds: float = 60.0) -> None:
    """Return when `holds()` is true."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
