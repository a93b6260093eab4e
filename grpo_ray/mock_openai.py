"""An OpenAI-compatible server for work without a key. It is a stand-in and says so in every reply: the model is called
`stand-in`, and so is the `system_fingerprint`.

`python -m grpo_ray.mock_openai --port 0` prints one JSON line, {"base_url": …}, when it is ready.
"""

import argparse
import asyncio
import hashlib
import json
import math
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grpo_ray import stand_in
from grpo_ray.canonical import digest
from grpo_ray.errors import ConfigError
from grpo_ray.fenced import unfenced

MODEL = "stand-in"
EMBEDDING_MODEL = "stand-in-embedding"
DIMENSIONS = 256
FEATURES = ("json_schema", "json_object")
LARGEST = 8 << 20
"""Bytes of a request that are read."""
CREATED = 1735689600
"""Replies hold no clock, so that the same request gets the same bytes."""


@dataclass(slots=True)
class Behaviour:
    """How the server misbehaves, for tests: seconds before a reply, and every nth request limited or failed (0: none).

    `features` are the response formats it takes; others get a 400, as from servers that know none.
    """

    delay_s: float = 0.0
    limit_every: int = 0
    retry_after_s: float = 0.0
    fail_every: int = 0
    quota: bool = True
    features: tuple[str, ...] = FEATURES
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The chat requests it has seen, newest last; kept only where `remember` is set."""
    remember: bool = False


def make_app(behaviour: Behaviour | None = None) -> Starlette:
    """The ASGI app: /v1/models, /v1/chat/completions, /v1/embeddings, and OpenAI's error shape for all else."""
    ways = behaviour or Behaviour()
    numbers = count(1)

    async def chat(request: Request) -> Response:
        return await _served(request, ways, numbers, lambda body: complete(body, ways))

    async def embeddings(request: Request) -> Response:
        return await _served(request, ways, numbers, embed)

    routes = [
        Route("/v1/models", _models),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={404: _no_route, 405: _no_route})


# ── what it answers ───────────────────────────────────────────────────────────────────────────────────────────────


def complete(body: dict[str, Any], ways: Behaviour) -> Response:
    """A chat completion: a verdict, a rewritten template, or a line that says what this server is."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        return refusal(400, "'messages' must be a list of {role, content} with text contents", "messages")
    form = body.get("response_format") or {"type": "text"}
    if not isinstance(form, dict) or form.get("type") not in ("text", *ways.features):
        return refusal(400, f"response_format {form!r} is not supported", "response_format")
    if ways.remember:
        ways.requests.append(body)
    text = reply_to(messages, form)
    usage = _usage(sum(_tokens(message["content"]) for message in messages), _tokens(text))
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    return JSONResponse(
        {
            "id": f"chatcmpl-{digest(body)[:24]}",
            "object": "chat.completion",
            "created": CREATED,
            "model": MODEL,
            "system_fingerprint": MODEL,
            "choices": [choice],
            "usage": usage,
        }
    )


def reply_to(messages: list[dict[str, Any]], form: dict[str, Any]) -> str:
    """Data that it knows the kind of is judged or rewritten by rule; any other request gets the barest valid reply."""
    data = next((found for message in messages if (found := unfenced(message["content"])) is not None), None)
    if isinstance(data, dict) and {"question", "answers", "dimensions"} <= data.keys():
        return json.dumps(stand_in.judge(data))
    if isinstance(data, dict) and {"template", "worst"} <= data.keys():
        return json.dumps(stand_in.rewrite(data, digest([m["content"] for m in messages])))
    if form["type"] == "json_schema":
        schema = form.get("json_schema", {}).get("schema", {})
        return json.dumps(barest(schema, schema.get("$defs", {})))
    return "{}" if form["type"] == "json_object" else "I am a stand-in, not a model; I only judge and rewrite by rule."


def barest(schema: dict[str, Any], kinds: dict[str, Any]) -> Any:
    """The smallest value that a JSON Schema (as pydantic writes them) allows."""
    if "$ref" in schema:
        return barest(kinds[schema["$ref"].rsplit("/", 1)[-1]], kinds)
    if "enum" in schema or "const" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if "anyOf" in schema:
        return barest(schema["anyOf"][-1], kinds)
    simple = {
        "string": MODEL,
        "integer": schema.get("minimum", 0),
        "number": schema.get("minimum", 0),
        "boolean": False,
    }
    if schema.get("type") == "object":
        return {name: barest(part, kinds) for name, part in schema.get("properties", {}).items()}
    return [] if schema.get("type") == "array" else simple.get(schema.get("type", ""))


def embed(body: dict[str, Any]) -> Response:
    """Unit vectors of hashed character trigrams: near where texts share letters, the same everywhere."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return refusal(400, "'input' must be a text or a list of texts", "input")
    if body.get("encoding_format", "float") != "float":
        return refusal(400, "only encoding_format 'float' is supported", "encoding_format")
    data = [{"object": "embedding", "index": i, "embedding": vector(text)} for i, text in enumerate(texts)]
    used = sum(_tokens(text) for text in texts)
    usage = {"prompt_tokens": used, "total_tokens": used}
    return JSONResponse({"object": "list", "model": EMBEDDING_MODEL, "data": data, "usage": usage})


def vector(text: str) -> list[float]:
    """`DIMENSIONS` numbers at length 1."""
    sums = [0.0] * DIMENSIONS
    padded = f"  {text.casefold()} "
    for at in range(len(padded) - 2):
        hashed = hashlib.blake2b(padded[at : at + 3].encode("utf-8", "replace"), digest_size=4).digest()
        sums[int.from_bytes(hashed[:2], "big") % DIMENSIONS] += 1.0 if hashed[2] & 1 else -1.0
    length = math.sqrt(sum(value * value for value in sums))
    return [value / length for value in sums] if length else [1.0, *[0.0] * (DIMENSIONS - 1)]


def refusal(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 429 else "server_error" if status >= 500 else "rate_limit_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


# ── how it is served ──────────────────────────────────────────────────────────────────────────────────────────────


async def _served(
    request: Request, ways: Behaviour, numbers: "count[int]", answer: Callable[[dict[str, Any]], Response]
) -> Response:
    if int(request.headers.get("content-length") or 0) > LARGEST:
        return refusal(413, f"a request may have {LARGEST} bytes")
    try:
        body = await request.json()
    except ValueError:
        return refusal(400, "the body is not JSON")
    if not isinstance(body, dict):
        return refusal(400, "the body must be a JSON object")
    if not isinstance(body.get("model"), str) or not body["model"].startswith(MODEL):
        return refusal(404, f"no model {body.get('model')!r}; this server has {MODEL!r}", "model", "model_not_found")
    return await _misbehaved(ways, next(numbers)) or answer(body)


async def _misbehaved(ways: Behaviour, number: int) -> Response | None:
    await asyncio.sleep(ways.delay_s)
    if not ways.quota:
        return refusal(429, "You exceeded your current quota", code="insufficient_quota")
    if ways.limit_every and number % ways.limit_every == 0:
        limited = refusal(429, "Too many requests", code="rate_limit_exceeded")
        limited.headers["retry-after-ms"] = str(round(ways.retry_after_s * 1000))
        limited.headers["retry-after"] = str(math.ceil(ways.retry_after_s))
        return limited
    if ways.fail_every and number % ways.fail_every == 0:
        return refusal(500, "The stand-in was told to fail")
    return None


async def _models(request: Request) -> Response:
    owned = {"object": "model", "created": CREATED, "owned_by": MODEL}
    return JSONResponse({"object": "list", "data": [{"id": name, **owned} for name in (MODEL, EMBEDDING_MODEL)]})


async def _no_route(request: Request, fault: Exception) -> Response:
    return refusal(404, f"no route {request.method} {request.url.path}; there are /v1/models, chat and embeddings")


class _Announcing(uvicorn.Server):
    """Says when it is ready."""

    ready: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    behaviour: Behaviour | None = None,
    with_parent: bool = False,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve until interrupted, or, with `with_parent`, until stdin closes. Calls `ready` with {"base_url": …} as JSON.

    Port 0 takes a free one. Raises ConfigError where the address can't be had.
    """
    bound = _bind(host, port)
    shown = f"[{host}]" if ":" in host else host
    line = json.dumps({"base_url": f"http://{shown}:{bound.getsockname()[1]}/v1"})
    config = uvicorn.Config(make_app(behaviour), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    server = _Announcing(config)
    server.ready = lambda: ready(line)
    if with_parent:
        threading.Thread(target=_leave_with_parent, args=(server,), daemon=True).start()
    server.run(sockets=[bound])


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as fault:
        raise ConfigError(f"can't listen on {host}:{port}: {fault.strerror}; choose another --port") from fault


def _leave_with_parent(server: uvicorn.Server) -> None:
    """A parent, however it dies, closes its end of the pipe."""
    while sys.stdin.buffer.readline():
        continue
    server.should_exit = True


def main() -> None:
    """The command line of the server."""
    asks = argparse.ArgumentParser(prog="mock-openai", description=__doc__)
    asks.add_argument("--host", default="127.0.0.1")
    asks.add_argument("--port", type=int, default=8766, help="0 takes a free one")
    asks.add_argument("--with-parent", action="store_true", help="end when stdin closes")
    asks.add_argument("--delay", type=float, default=0.0, metavar="S", help="seconds before each reply")
    asks.add_argument("--limit-every", type=int, default=0, metavar="N", help="every Nth request gets a 429")
    asks.add_argument("--retry-after", type=float, default=0.0, metavar="S", help="what such a 429 asks to wait")
    asks.add_argument("--fail-every", type=int, default=0, metavar="N", help="every Nth request gets a 500")
    given = asks.parse_args()
    ways = Behaviour(given.delay, given.limit_every, given.retry_after, given.fail_every)
    try:
        serve(given.host, given.port, behaviour=ways, with_parent=given.with_parent, ready=_say)
    except ConfigError as fault:
        asks.error(str(fault))


def _say(line: str) -> None:
    print(line, flush=True)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def _tokens(text: str) -> int:
    """A rough count: four characters a token."""
    return len(text) // 4 + 1


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


if __name__ == "__main__":
    main()
