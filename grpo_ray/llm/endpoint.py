"""HTTP to a model: `complete` and `embed` against any OpenAI-compatible endpoint, by URL.

Endpoints differ in how they can be held to a shape, so each is asked the strictest way it takes (`shapes.RUNGS`), and
every reply is checked with pydantic all the same; one that fails is sent back once with what was wrong, then given up.
Every try passes the gate and leaves an Attempt.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from random import Random
from statistics import median
from time import perf_counter, time
from typing import Any, TypeVar

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from pydantic import BaseModel

from grpo_ray.errors import MissingError, OracleError, UnreachableError
from grpo_ray.llm.addresses import brief, find_key, is_local, sendable
from grpo_ray.llm.gate import Gate, Outcome, RateGate, door_of, usd
from grpo_ray.llm.profiles import CAPS, objection, parameters
from grpo_ray.llm.replies import (
    Again,
    Refused,
    choice_of,
    explain,
    finished,
    limits,
    parsed,
    refusal_of,
    text_of,
    used,
    vectors,
)
from grpo_ray.llm.shapes import RUNGS, accepted, ask_for, response_format
from grpo_ray.recipe import OracleSpec
from grpo_ray.registry import hint
from grpo_ray.types import Attempt, Message, Reply

RETRIES = 4
"""Of 408, 409, 429, 5xx, lost connections, time-outs and bodies that are no JSON."""
PAUSES = (0.5, 8.0)
"""Seconds before the first and the latest of them at most, doubled between; never less than Retry-After says (≤ 120 s)."""
STAND_IN = "stand-in"
"""The `system_fingerprint` by which a server says that it is no real model."""
EMBED_BATCH = 256
SECRET = 8
"""Characters from which a key is worth hiding: `none` is not."""
PATIENCE_S = 86400.0
"""How long a call may wait for its turn: a slow endpoint is no fault."""
KNOWN = 16
"""Replies after which it is known how long one takes."""
T = TypeVar("T")


@dataclass(slots=True)
class Trail:
    """What was tried for one request."""

    request: str = ""
    scope: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    timer: asyncio.Timeout | None = None
    """The deadline of the whole, which stands still while a try waits for its turn."""


Send = Callable[[], Awaitable[Any]]
"""One request, to be sent as often as it takes; a raw response."""


class Endpoint:
    """One endpoint, as `spec` describes it, at `base_url` (where `spec` says `bundled`, the running server's)."""

    def __init__(
        self,
        spec: OracleSpec,
        *,
        base_url: str,
        gate: Gate | None = None,
        retries: int = RETRIES,
        pauses: tuple[float, float] = PAUSES,
    ) -> None:
        self.spec, self.base_url, self.door = spec, base_url, door_of(spec, base_url)
        self._client = connect(spec, base_url)
        self._gate = gate or RateGate.of({self.door: spec})
        self._retries, self._pauses, self._jitter = retries, pauses, Random(0)
        self._rung, self._ignored = 0, 0
        self._unsupported: set[str] = set()
        self._turns = asyncio.Semaphore(spec.concurrency)
        self._recent: deque[float] = deque(maxlen=64)
        self._reply_tokens = 256.0

    async def complete(
        self, messages: Sequence[Message], *, shape: type[BaseModel] | None = None, trail: Trail | None = None
    ) -> Reply:
        """One reply; with `shape` its text is JSON that `shape` has accepted. Raises OracleError."""
        said, trail = [{"role": m.role, "content": sendable(m.content)} for m in messages], trail or Trail()
        return await self._in_time(self._formed(said, shape, trail) if shape else self._free(said, trail), trail)

    async def embed(self, texts: Sequence[str], trail: Trail | None = None) -> list[list[float]]:
        """One unit vector a text. Raises OracleError, also where the recipe names no embedding model."""
        model = self.spec.embedding_model
        if not model:
            raise OracleError("no embeddings: set oracle.embedding_model to a model that the endpoint serves")
        found: list[list[float]] = []
        trail = trail or Trail()
        for start in range(0, len(texts), EMBED_BATCH):
            batch = [sendable(text) for text in texts[start : start + EMBED_BATCH]]
            create = partial(self._client.embeddings.with_raw_response.create, model=model, encoding_format="float")
            asked = self._asked(partial(create, input=batch), sum(map(len, batch)), trail)
            found += map(unit, vectors(await self._in_time(asked, trail), len(batch), self.base_url))
        return found

    async def probe(self) -> dict[str, str | None]:
        """The models served, each with the date its end is announced for (ISO 8601; None: not announced).

        Raises UnreachableError, or MissingError where `spec.model` isn't served.
        """
        try:
            listed = await self._asked(self._client.models.with_raw_response.list, 0, Trail())
        except OracleError as fault:
            raise UnreachableError(str(fault)) from fault
        models = {str(model.id): getattr(model, "shutdown_date", None) for model in getattr(listed, "data", None) or []}
        if self.spec.model not in models:
            raise MissingError(
                f"{self.base_url} serves no model {self.spec.model!r}{hint(self.spec.model, sorted(models))}"
            )
        return dict(sorted(models.items()))

    async def close(self) -> None:
        await self._client.close()

    async def _in_time(self, work: Awaitable[T], trail: Trail) -> T:
        """What `work` comes to within the deadline, for which waiting for a turn does not count."""
        try:
            async with asyncio.timeout(self.spec.deadline_s) as trail.timer:
                return await work
        except TimeoutError:
            raise OracleError(f"no reply within {self.spec.deadline_s:g} s in all; see oracle.deadline_s") from None

    # ── shapes ──

    async def _free(self, said: list[Any], trail: Trail) -> Reply:
        return (await self._say(said, trail))[0]

    async def _formed(self, said: list[Any], shape: type[BaseModel], trail: Trail) -> Reply:
        """Down the ladder until the endpoint takes the request; what it took is where the next one begins."""
        for rung in range(self._rung, len(RUNGS)):
            try:
                reply = await self._shaped(said, shape, RUNGS[rung], trail)
            except Refused:
                if rung == len(RUNGS) - 1:
                    raise
            else:
                self._rung = max(rung, self._rung)
                return reply
        raise AssertionError("the last rung returns or raises")

    async def _shaped(self, said: list[Any], shape: type[BaseModel], rung: str, trail: Trail) -> Reply:
        """One reply of the shape, the second one if need be. An endpoint that ignores the form is asked in words."""
        schema = schema_of(shape)
        asked = said if rung == "json_schema" else [*said, {"role": "user", "content": ask_for(schema)}]
        form = response_format(rung, shape.__name__, schema)
        first, text, wrong = await self._spoken(asked, shape, trail, **form)
        if text:
            return replace(first, text=text)
        complaint = {"role": "user", "content": f"This was not accepted: {wrong}\n{ask_for(schema)}"}
        again = [*asked, {"role": "assistant", "content": first.text}, complaint]
        second, text, wrong = await self._spoken(again, shape, trail, **form)
        if not text:
            raise OracleError(f"{self.base_url} twice sent no valid {shape.__name__}: {brief(wrong)}")
        if rung == "json_schema" and "{" not in first.text:
            self._ignored += 1
            self._rung = len(RUNGS) - 1 if self._ignored > 1 else self._rung
        return replace(
            second,
            text=text,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.completion_tokens + second.completion_tokens,
        )

    async def _spoken(
        self, asked: list[Any], shape: type[BaseModel], trail: Trail, **form: Any
    ) -> tuple[Reply, str, str]:
        """A reply, its text as `shape` accepts it (or ""), and what was wrong. Raises OracleError where it was cut off."""
        reply, finish = await self._say(asked, trail, **form)
        try:
            return reply, accepted(shape, reply.text), ""
        except ValueError as fault:
            if finish != "length":
                return reply, "", str(fault)
            why = f"{self.spec.model} was cut off at {self.spec.max_tokens} tokens; raise oracle.max_tokens"
            raise OracleError(why) from fault

    # ── one request ──

    async def _say(self, said: list[Any], trail: Trail, **form: Any) -> tuple[Reply, str]:
        """One reply, and why the model stopped; a parameter that the endpoint does not know is left out, for good."""
        options = parameters(self.spec, self.base_url, self._unsupported)
        create = self._client.chat.completions.with_raw_response.create
        size = sum(len(message["content"]) for message in said)
        try:
            # As extra_body the form goes past the SDK's copying of it, which takes longer than sending.
            send = partial(create, model=self.spec.model, messages=said, extra_body=form, **options)
            answer = await self._asked(send, size, trail)
        except Refused as fault:
            name = objection(str(fault), options)
            if name is None or CAPS.get(name) in self._unsupported:
                raise  # calls in the air meet the same refusal: that a name is known already is no reason to give up
            self._unsupported.add(name)
            return await self._say(said, trail, **form)
        return self._read(answer)

    def _read(self, answer: Any) -> tuple[Reply, str]:
        if (choice := choice_of(answer)) is None:
            raise OracleError(f"{self.base_url} did not send a chat completion; does the URL end in /v1?")
        tokens, finish = used(answer), str(getattr(choice, "finish_reason", None) or "")
        if not (text := text_of(choice)):
            why = refusal_of(choice) or f"an empty reply (finish_reason {finish})"
            raise OracleError(f"{self.spec.model} did not answer: {brief(why)}")
        self._reply_tokens += 0.1 * (tokens[1] - self._reply_tokens)
        stand_in = getattr(answer, "system_fingerprint", None) == STAND_IN
        return Reply(text, str(getattr(answer, "model", None) or self.spec.model), stand_in, *tokens), finish

    async def _asked(self, send: Send, size: int, trail: Trail) -> Any:
        """What the endpoint answers, after as many tries as it takes. Raises OracleError."""
        for number in range(1, self._retries + 2):
            try:
                return await self._hedged(send, size, trail, number)
            except Again as fault:
                if number > self._retries:
                    raise OracleError(f"{fault} ({number} tries)" if number > 1 else str(fault)) from fault
                pause = min(self._pauses[1], self._pauses[0] * 2 ** (number - 1)) * self._jitter.uniform(0.5, 1.0)
                await asyncio.sleep(max(pause, fault.after_s))
        raise AssertionError("the last try returns or raises")

    async def _hedged(self, send: Send, size: int, trail: Trail, number: int) -> Any:
        """One try; a second beside it when it takes much longer than others did. The first to answer counts."""
        entered = asyncio.Event()
        if not self.spec.hedge or len(self._recent) < KNOWN:
            return await self._try(send, size, trail, number, entered)
        tries = {asyncio.create_task(self._try(send, size, trail, number, entered))}
        try:
            await _first(tries, asyncio.create_task(entered.wait()))
            done, _ = await asyncio.wait(tries, timeout=self.spec.hedge * median(self._recent))
            if not done:
                tries.add(asyncio.create_task(self._try(send, size, trail, number, asyncio.Event())))
            while True:
                done, pending = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
                good = [one for one in done if not one.exception()]
                if good or not pending:
                    return (good or list(done))[0].result()
                tries = pending
        finally:
            for one in tries:
                one.cancel()
            await asyncio.gather(*tries, return_exceptions=True)  # a loser's fault is on its Attempt

    async def _try(self, send: Send, size: int, trail: Trail, number: int, entered: asyncio.Event) -> Any:
        """One call: through the gate, sent, read, written down. Raises Again, Refused or OracleError."""
        spec, guess = self.spec, int(size / 4 + self._reply_tokens)
        lease = await self._enter(guess, trail)
        entered.set()
        began, clock = time(), perf_counter()
        status, outcome, tokens = "given_up", Outcome("given_up"), (0, 0)
        try:
            async with asyncio.timeout(spec.timeout_s):
                raw = await send()
            answer = parsed(raw)
            status, tokens = finished(answer), used(answer)
            outcome = Outcome("ok", *tokens, **limits(raw.headers))
            self._recent.append(perf_counter() - clock)
            return answer
        except (openai.OpenAIError, TimeoutError) as fault:
            status, outcome, error = explain(fault, spec, self.base_url)
            raise masked(error, str(self._client.api_key)) from fault
        finally:
            seconds = perf_counter() - clock
            cost = usd(spec, *tokens)
            trail.attempts.append(
                Attempt(trail.request, self.door, trail.scope, number, status, began, seconds, *tokens, cost)
            )
            self._turns.release()
            await self._gate.leave(self.door, lease, outcome)

    async def _enter(self, guess: int, trail: Trail) -> int:
        """The gate's leave. No more of us wait there than could pass: thousands of calls wait here, where it costs little."""
        with _standing_still(trail.timer):
            await self._turns.acquire()
            try:
                return await self._gate.enter(self.door, guess, PATIENCE_S)
            except BaseException:
                self._turns.release()
                raise


def masked(error: OracleError, key: str) -> OracleError:
    """The error without a key that an endpoint repeated in its refusal: errors become rationales, which are kept."""
    if len(key) >= SECRET and any(key in str(part) for part in error.args):
        error.args = tuple(str(part).replace(key, "…") for part in error.args)
    return error


@contextmanager
def _standing_still(timer: asyncio.Timeout | None) -> Iterator[None]:
    """Inside, the deadline does not come nearer."""
    if timer is None or (until := timer.when()) is None:  # another try beside this one waits, too
        yield
        return
    began = asyncio.get_running_loop().time()
    timer.reschedule(None)
    try:
        yield
    finally:
        if not timer.expired():
            timer.reschedule(until + asyncio.get_running_loop().time() - began)


async def _first(tries: set[asyncio.Task[Any]], entered: asyncio.Task[Any]) -> None:
    """Return when the try is through the gate, or over."""
    try:
        await asyncio.wait({*tries, entered}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        entered.cancel()


def connect(spec: OracleSpec, base_url: str) -> AsyncOpenAI:
    """The client for `base_url`, which no proxy stands before on loopback. Raises ConfigError without a key."""
    return AsyncOpenAI(
        api_key=api_key(spec, base_url),
        base_url=base_url,
        timeout=spec.timeout_s,
        max_retries=0,
        http_client=DefaultAsyncHttpx2Client(trust_env=False) if is_local(base_url) else None,
    )


def api_key(spec: OracleSpec, base_url: str) -> str:
    """The key that `base_url` gets; the bundled server, wherever it runs, needs none. Raises ConfigError without one."""
    return "none" if spec.base_url == "bundled" else find_key(base_url, spec.api_key_env, "oracle.api_key_env")


@lru_cache
def schema_of(shape: type[BaseModel]) -> dict[str, Any]:
    """The shape's JSON Schema in OpenAI's strict form; made once, so not to be changed."""
    return dict(openai.pydantic_function_tool(shape)["function"].get("parameters", {}))


def unit(vector: Sequence[float]) -> list[float]:
    """`vector` at length 1 (a zero vector stays)."""
    length = math.sqrt(math.fsum(value * value for value in vector))
    return [value / length for value in vector] if length else list(vector)
