"""An OpenAI-compatible server for work without a key. It is a stand-in and says so in every reply: so begin the names
of its models, and so its `system_fingerprint` reads.

`python -m grpo_ray.mock_openai --port 0` prints one JSON line, {"base_url": …}, when it is ready.
GET /v1/_stats counts what it has served; DELETE /v1/_stats begins the counts anew.
"""

import argparse
import json
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import count
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grpo_ray.canonical import digest
from grpo_ray.errors import ConfigError
from grpo_ray.stand_ins import batch as mock_batch
from grpo_ray.stand_ins.faults import (
    CONTENT,
    IN_BATCH,
    KINDS,
    Faults,
    broken,
    client_stays,
    fault_of,
    latency,
    limited,
    no_quota,
)
from grpo_ray.stand_ins.limits import Clock, Limits
from grpo_ray.stand_ins.record import Record
from grpo_ray.stand_ins.replies import (
    FEATURES,
    MODELS,
    Answer,
    complete,
    embed,
    error,
    is_served,
    models,
    refusal,
    tokens,
)

CHAT, EMBEDDINGS = mock_batch.ENDPOINTS
LARGEST = 8 << 20
"""Bytes of a request that are read."""


@dataclass(slots=True)
class Behaviour:
    """How the server behaves, for tests and benchmarks. Raises ConfigError.

    `features` are the response formats it takes; others get a 400, as from servers that know none.
    """

    delay_s: float = 0.0
    """Seconds before a reply; the median of them where there is a `tail`."""
    limit_every: int = 0
    """Every nth request gets a 429, by arrival (0: none)."""
    retry_after_s: float = 0.0
    """What the 429s of `limit_every` and of `faults.limited` ask to wait."""
    fail_every: int = 0
    quota: bool = True
    features: tuple[str, ...] = FEATURES
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The chat requests it has seen, newest last; kept only where `remember` is set."""
    remember: bool = False
    faults: Faults = field(default_factory=Faults)
    """Shares of requests that meet each kind of fault, and the seed that says which."""
    tail: float = 0.0
    """Sigma of the delay's log-normal spread; 0 is none, at 1 one reply in a hundred takes ten times the median."""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    burst_s: float = 60.0
    """How many seconds' worth of a limit may be used at once."""
    batch_s: float = 2.0
    """How long a batch takes."""
    shutdown_date: str = "2026-12-31"
    """The announced end of `stand-in-old`, as an ISO date."""

    def __post_init__(self) -> None:
        times = (self.delay_s, self.retry_after_s, self.tail, self.batch_s)
        if not all(0 <= value < math.inf for value in times):
            raise ConfigError("delay, retry-after, tail and batch time are 0 or more")
        if unknown := set(self.features) - set(FEATURES):
            raise ConfigError(f"response formats are {', '.join(FEATURES)}, not {', '.join(sorted(unknown))}")
        try:
            date.fromisoformat(self.shutdown_date)
        except ValueError as fault:
            raise ConfigError(f"a shutdown date is written as 2026-12-31, not {self.shutdown_date!r}") from fault


@dataclass(slots=True)
class House:
    """What one server keeps between requests."""

    ways: Behaviour
    limits: Limits
    record: Record = field(default_factory=Record)
    numbers: "count[int]" = field(default_factory=lambda: count(1))


def make_app(behaviour: Behaviour | None = None, *, clock: Clock = time.monotonic) -> Starlette:
    """The ASGI app: models, chat, embeddings, files, batches and counts, and OpenAI's error shape for all else."""
    ways = behaviour or Behaviour()
    house = House(ways, Limits(ways.requests_per_minute, ways.tokens_per_minute, ways.burst_s, clock))
    desk = mock_batch.Desk(lambda endpoint, body: _line(house, endpoint, body), ways.batch_s, clock)

    async def served(request: Request) -> Response:
        return await _served(request, house)

    async def listed(request: Request) -> Response:
        return _models(ways, request.path_params.get("id"))

    async def stats(request: Request) -> Response:
        if request.method == "DELETE":
            house.record.clear()
        return JSONResponse(house.record.counts())

    routes = [
        Route("/v1/models", listed),
        Route("/v1/models/{id}", listed),
        Route(CHAT, served, methods=["POST"]),
        Route(EMBEDDINGS, served, methods=["POST"]),
        Route("/v1/_stats", stats, methods=["GET", "DELETE"]),
        *mock_batch.routes(desk),
    ]
    return Starlette(routes=routes, exception_handlers={404: _no_route, 405: _no_route})


# ── how it is served ──────────────────────────────────────────────────────────────────────────────────────────────


async def _served(request: Request, house: House) -> Response:
    body = await _read(request)
    if isinstance(body, Response):
        return body
    house.record.arrived(body["model"])
    try:
        over = house.limits.take(body["model"], _cost(body))
        headers = house.limits.headers(body["model"])
        key = digest([request.url.path, body])
        response = over or await _answered(request, house, body, key)
    finally:
        house.record.left()
    if over:
        house.record.replied(key, 429, "", {})
    response.headers.update(headers | {"x-request-id": f"req_{key[:24]}"})
    return response


async def _read(request: Request) -> dict[str, Any] | Response:
    if int(request.headers.get("content-length") or 0) > LARGEST:
        return refusal(413, f"a request may have {LARGEST} bytes")
    try:
        body = await request.json()
    except (ValueError, ClientDisconnect):  # one that has left hears nothing of it
        return refusal(400, "the body is not JSON")
    if not isinstance(body, dict):
        return refusal(400, "the body must be a JSON object")
    return body if is_served(body.get("model")) else refusal(404, *_no_model(body.get("model")))


async def _answered(request: Request, house: House, body: dict[str, Any], key: str) -> Response:
    """The reply to a request that the limits let pass, whatever the faults make of it."""
    ways, endpoint, occurrence = house.ways, request.url.path, house.record.occurrence(key)
    fault = fault_of(ways.faults, key, occurrence)
    fault = "" if fault in CONTENT and endpoint != CHAT else fault
    fault = _by_number(ways, next(house.numbers)) or fault
    house.record.met(fault)
    wait_s = latency(ways.delay_s, ways.tail, ways.faults.seed, key, occurrence)
    wait_s += ways.faults.slow_s if fault == "slow" else 0.0
    if not await client_stays(request, {"hung": None, "limited": 0.0, "no_quota": 0.0}.get(fault, wait_s)):
        house.record.abandoned += 1
        return Response(status_code=499)  # nobody is there to read it
    status, said = _said(ways, endpoint, body, fault)
    house.record.replied(key, status, fault, said.get("usage", {}))
    refused = {"limited": lambda: limited(ways.retry_after_s), "no_quota": no_quota}.get(fault)
    return refused() if refused else broken(JSONResponse(said, status), fault)


def _said(ways: Behaviour, endpoint: str, body: dict[str, Any], fault: str) -> Answer:
    """Status and body, with the faults that lie in them; a 429's body is made with its headers."""
    if fault in ("limited", "no_quota"):
        return 429, {}
    if fault == "failed":
        return 500, error(500, "The stand-in was told to fail")
    if endpoint == EMBEDDINGS:
        return embed(body)
    status, said = complete(body, ways.features, fault)
    if ways.remember and status == 200:
        ways.requests.append(body)
    return status, said


def _by_number(ways: Behaviour, number: int) -> str:
    if not ways.quota:
        return "no_quota"
    if ways.limit_every and number % ways.limit_every == 0:
        return "limited"
    return "failed" if ways.fail_every and number % ways.fail_every == 0 else ""


def _line(house: House, endpoint: str, body: dict[str, Any]) -> Answer:
    """One line of a batch: without waiting and without limits, but counted, and with the faults that a line can have."""
    if not is_served(body.get("model")):
        message, param, code = _no_model(body.get("model"))
        return 404, error(404, message, param, code)
    key = digest([endpoint, body])
    house.record.arrived(body["model"])
    fault = fault_of(house.ways.faults, key, house.record.occurrence(key))
    fault = "" if fault not in IN_BATCH or (fault in CONTENT and endpoint != CHAT) else fault
    house.record.met(fault)
    status, said = _said(house.ways, endpoint, body, fault)
    house.record.replied(key, status, fault, said.get("usage", {}))
    house.record.left()
    return status, said


def _cost(body: dict[str, Any]) -> int:
    """Tokens that a request counts for against the limit: its characters' worth, or its cap where that is more.

    Source: OpenAI's guide to rate limits, which counts the larger of the two.
    """
    caps = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    said, inputs = body.get("messages"), body.get("input")
    given = [one.get("content") for one in said if isinstance(one, dict)] if isinstance(said, list) else []
    given += inputs if isinstance(inputs, list) else [inputs]
    estimate = sum(tokens(text) for text in given if isinstance(text, str))
    return max([estimate, *(cap for cap in caps if isinstance(cap, int))])


def _no_model(name: Any) -> tuple[str, str, str]:
    return f"no model {name!r}; this server has {', '.join(MODELS)}", "model", "model_not_found"


def _models(ways: Behaviour, wanted: str | None) -> Response:
    found = models(ways.shutdown_date)
    if wanted is None:
        return JSONResponse({"object": "list", "data": found})
    one = next((model for model in found if model["id"] == wanted), None)
    return JSONResponse(one) if one else refusal(404, *_no_model(wanted))


async def _no_route(request: Request, fault: Exception) -> Response:
    known = "models, chat/completions, embeddings, files, batches and _stats"
    return refusal(404, f"no route {request.method} {request.url.path}; there are {known} under /v1")


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
    logging.getLogger("uvicorn.error").addFilter(lambda said: "without completing response" not in said.getMessage())
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


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the server; `arguments` are those after its name (None: this process's)."""
    asks = parser()
    given = asks.parse_args(arguments)
    try:
        ways = behaviour_of(given)
        serve(given.host, given.port, behaviour=ways, with_parent=given.with_parent, ready=_say)
    except ConfigError as fault:
        asks.error(str(fault))


def parser() -> argparse.ArgumentParser:
    """What the command line takes, in words."""
    kinds = "faults:\n" + "\n".join(f"  {name:<10} {what}" for name, what in KINDS.items())
    form = argparse.RawDescriptionHelpFormatter
    asks = argparse.ArgumentParser(prog="grpo-ray mock-openai", description=__doc__, epilog=kinds, formatter_class=form)
    add, ways = asks.add_argument, Behaviour()
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8766, help="0 takes a free one")
    add("--with-parent", action="store_true", help="end when stdin closes")
    add("--delay", type=float, default=0.0, metavar="S", help="seconds before each reply")
    add(
        "--tail",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="log-normal spread of the delay; 1: 1%% take 10 times it",
    )
    add("--fault", action="append", default=[], metavar="KIND=SHARE", help="a share of requests, 0 to 1; see below")
    add("--seed", type=int, default=0, help="which requests meet a fault, and how long each takes")
    add("--slow", type=float, default=ways.faults.slow_s, metavar="S", help="how much longer slow answers take")
    add("--retry-after", type=float, default=0.0, metavar="S", help="what a 429 of a fault asks to wait")
    add("--limit-every", type=int, default=0, metavar="N", help="every Nth request gets a 429")
    add("--fail-every", type=int, default=0, metavar="N", help="every Nth request gets a 500")
    add("--no-quota", action="store_true", help="every request gets a 429 insufficient_quota")
    add("--rpm", type=int, default=0, metavar="N", help="requests a minute and model that are let through")
    add("--tpm", type=int, default=0, metavar="N", help="tokens a minute and model that are let through")
    add(
        "--burst", type=float, default=ways.burst_s, metavar="S", help="seconds' worth of a limit that may come at once"
    )
    add("--without", action="append", default=[], choices=FEATURES, help="a response format that is refused")
    add("--batch", type=float, default=ways.batch_s, metavar="S", help="seconds that a batch takes")
    add("--shutdown-date", default=ways.shutdown_date, metavar="DATE", help="the announced end of stand-in-old")
    return asks


def behaviour_of(given: argparse.Namespace) -> Behaviour:
    """The parsed command line as a Behaviour. Raises ConfigError."""
    return Behaviour(
        delay_s=given.delay,
        tail=given.tail,
        limit_every=given.limit_every,
        retry_after_s=given.retry_after,
        fail_every=given.fail_every,
        quota=not given.no_quota,
        features=tuple(name for name in FEATURES if name not in given.without),
        faults=replace(Faults(), **_shares(given.fault), seed=given.seed, slow_s=given.slow),
        requests_per_minute=given.rpm,
        tokens_per_minute=given.tpm,
        burst_s=given.burst,
        batch_s=given.batch,
        shutdown_date=given.shutdown_date,
    )


def _shares(given: Sequence[str]) -> dict[str, float]:
    """KIND=SHARE, as often as it was given."""
    shares: dict[str, float] = {}
    for one in given:
        name, _, share = one.partition("=")
        if name not in KINDS:
            raise ConfigError(f"no fault {name!r}; there are {', '.join(KINDS)}")
        try:
            shares[name] = float(share)
        except ValueError as fault:
            raise ConfigError(f"--fault {one}: write a share from 0 to 1, such as {name}=0.04") from fault
    return shares


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
