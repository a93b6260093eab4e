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
from itertools import count
from random import Random
from statistics import median
from time import perf_counter, time
from typing import Any, TypeVar

import httpx2
import openai
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from pydantic import BaseModel

from grpo_ray.errors import MissingError, OracleError, UnreachableError
from grpo_ray.llm.addresses import brief, find_key, hidden, is_local, sendable, shown
from grpo_ray.llm.gate import Gate, Outcome, RateGate, door_of, usd
from grpo_ray.llm.pace import Line
from grpo_ray.llm.profiles import CAPS, objection, parameters
from grpo_ray.llm.replies import (
    Again,
    Limited,
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
from grpo_ray.llm.shapes import OF_FORM, RUNGS, TOO_LONG, accepted, ask_for, response_format
from grpo_ray.recipe import OracleSpec
from grpo_ray.registry import hint
from grpo_ray.types import Attempt, Message, Reply

RETRIES = 4
"""Of 408, 409, 5xx, lost connections, time-outs and bodies that are no JSON; a 429 is tried again until the deadline."""
PAUSES = (0.5, 8.0)
"""Seconds before the first and the latest of them at most, doubled between; never less than Retry-After says (≤ 120 s)."""
STAND_IN = "stand-in"
"""The `system_fingerprint` by which a server says that it is no real model."""
EMBED_BATCH = 256
CONNECT_S = 20.0
"""How long a connection may take to be made, at most: a firewall that drops what comes says nothing."""
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
Guess = tuple[int, int]
"""The tokens that a request may take in, and give back: what counts as paid where no reply says it."""


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
        self._client, self._where = connect(spec, base_url), shown(base_url)
        self._key = str(self._client.api_key)
        self._gate = gate or RateGate.of({self.door: spec})
        self._retries, self._pauses, self._jitter = retries, pauses, Random(0)
        self._rung, self._ignored = 0, 0
        self._unsupported: set[str] = set()
        self._turns = Line(spec.concurrency)
        self._unanswered: set[str] = set()
        self._recent: deque[float] = deque(maxlen=64)
        self._reply_tokens = 256.0

    async def complete(
        self, messages: Sequence[Message], *, shape: type[BaseModel] | None = None, trail: Trail | None = None
    ) -> Reply:
        """One reply; with `shape` its text is JSON that `shape` has accepted. Raises OracleError.

        A request that got none before goes to the front of the line.
        """
        said, trail = [{"role": m.role, "content": sendable(m.content)} for m in messages], trail or Trail()
        try:
            reply = await self._in_time(self._formed(said, shape, trail) if shape else self._free(said, trail), trail)
        except OracleError:
            if trail.request:
                self._unanswered.add(trail.request)
            raise
        self._unanswered.discard(trail.request)
        return reply

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
            asked = self._asked(partial(create, input=batch), (sum(map(len, batch)) // 4, 0), trail)
            found += map(unit, vectors(await self._in_time(asked, trail), len(batch), self._where))
        return found

    async def probe(self) -> dict[str, str | None]:
        """The models served, each with the date its end is announced for (ISO 8601; None: not announced).

        Raises UnreachableError, or MissingError where `spec.model` isn't served.
        """
        try:
            trail = Trail()
            listed = await self._in_time(self._asked(self._client.models.with_raw_response.list, (0, 0), trail), trail)
        except OracleError as fault:
            raise UnreachableError(str(fault)) from fault
        models = {str(model.id): getattr(model, "shutdown_date", None) for model in getattr(listed, "data", None) or []}
        if self.spec.model not in models:
            raise MissingError(
                f"{self._where} serves no model {self.spec.model!r}{hint(self.spec.model, sorted(models))}"
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
            busy = trail.attempts and trail.attempts[-1].status == "429"
            said = ": it allows no more for now (429)" if busy else ""
            raise OracleError(
                f"no reply within {self.spec.deadline_s:g} s in all{said}; see oracle.deadline_s"
            ) from None

    # ── shapes ──

    async def _free(self, said: list[Any], trail: Trail) -> Reply:
        return (await self._say(said, trail))[0]

    async def _formed(self, said: list[Any], shape: type[BaseModel], trail: Trail) -> Reply:
        """Down the ladder until the endpoint takes the request; the next one begins below what it called unsupported.

        A refusal that names no cause may be due to this one request, so that the next one begins where this one did.
        """
        below = self._rung
        for rung in range(below, len(RUNGS)):
            try:
                reply = await self._shaped(said, shape, RUNGS[rung], trail)
            except Refused as fault:
                if rung == len(RUNGS) - 1 or TOO_LONG.search(str(fault)):
                    raise
                below = rung + 1 if below == rung and OF_FORM.search(str(fault)) else below
            else:
                self._rung = max(below, self._rung)
                return reply
        raise AssertionError("the last rung returns or raises")

    async def _shaped(self, said: list[Any], shape: type[BaseModel], rung: str, trail: Trail) -> Reply:
        """One reply of the shape, the second one if need be. An endpoint that ignores the form is asked in words."""
        schema = schema_of(shape)
        asked = said if rung == "json_schema" else [*said, {"role": "user", "content": ask_for(schema)}]
        form = response_format(rung, shape.__name__, schema)
        first, text, wrong = await self._spoken(asked, shape, trail, **form)
        if rung == "json_schema":
            self._heeded(bool(text))
        if text:
            return replace(first, text=text)
        complaint = {"role": "user", "content": f"This was not accepted: {wrong}\n{ask_for(schema)}"}
        again = [*asked, {"role": "assistant", "content": first.text}, complaint]
        second, text, wrong = await self._spoken(again, shape, trail, **form)
        if not text:
            raise OracleError(f"{self._where} twice sent no valid {shape.__name__}: {brief(wrong)}")
        return replace(
            second,
            text=text,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.completion_tokens + second.completion_tokens,
        )

    def _heeded(self, well: bool) -> None:
        """Whether a reply was of the schema sent along. One that isn't costs a second request: two such are too many."""
        self._ignored = max(0, self._ignored + (-1 if well else 1))
        self._rung = len(RUNGS) - 1 if self._ignored > 1 else self._rung

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
            raise OracleError(self._cut_off()) from fault

    def _cut_off(self) -> str:
        ways = "raise oracle.max_tokens, or lower oracle.reasoning_effort where the model reasons"
        return f"{self.spec.model} was cut off at {self.spec.max_tokens} tokens; {ways}"

    # ── one request ──

    async def _say(self, said: list[Any], trail: Trail, **form: Any) -> tuple[Reply, str]:
        """One reply, and why the model stopped; a parameter that the endpoint does not know is left out, for good."""
        options = parameters(self.spec, self.base_url, self._unsupported)
        create = self._client.chat.completions.with_raw_response.create
        guess = sum(len(message["content"]) for message in said) // 4, int(self._reply_tokens)
        try:
            # As extra_body the form goes past the SDK's copying of it, which takes longer than sending.
            send = partial(create, model=self.spec.model, messages=said, extra_body=form, **options)
            answer = await self._asked(send, guess, trail)
        except Refused as fault:
            name = objection(str(fault), options)
            if name is None or CAPS.get(name) in self._unsupported:
                raise  # calls in the air meet the same refusal: that a name is known already is no reason to give up
            self._unsupported.add(name)
            return await self._say(said, trail, **form)
        return self._read(answer)

    def _read(self, answer: Any) -> tuple[Reply, str]:
        if (choice := choice_of(answer)) is None:
            raise OracleError(f"{self._where} did not send a chat completion; does the URL end in /v1?")
        tokens, finish = used(answer), str(getattr(choice, "finish_reason", None) or "")
        if not (text := text_of(choice)):
            if finish == "length" and not refusal_of(choice):
                raise OracleError(self._cut_off())
            why = refusal_of(choice) or f"an empty reply (finish_reason {finish})"
            raise OracleError(f"{self.spec.model} did not answer: {brief(hidden(why, self._key))}")
        self._reply_tokens += 0.1 * (tokens[1] - self._reply_tokens)
        stand_in = getattr(answer, "system_fingerprint", None) == STAND_IN
        return Reply(text, str(getattr(answer, "model", None) or self.spec.model), stand_in, *tokens), finish

    async def _asked(self, send: Send, guess: Guess, trail: Trail) -> Any:
        """What the endpoint answers, after as many tries as it takes. Raises OracleError."""
        faults = 0
        for number in count(1):
            try:
                return await self._hedged(send, guess, trail, number)
            except Again as fault:
                faults += not isinstance(fault, Limited)
                if faults > self._retries:
                    raise OracleError(f"{fault} ({number} tries)" if number > 1 else str(fault)) from fault
                await self._pause(number, fault)
        raise AssertionError("the last try returns or raises")

    async def _pause(self, number: int, fault: Again) -> None:
        """Wait for the next try."""
        pause = min(self._pauses[1], self._pauses[0] * 2.0 ** min(number - 1, 30)) * self._jitter.uniform(0.5, 1.0)
        await asyncio.sleep(max(pause, fault.after_s))

    async def _hedged(self, send: Send, guess: Guess, trail: Trail, number: int) -> Any:
        """One try; a second beside it when it takes much longer than others did. The first to answer counts."""
        entered = asyncio.Event()
        if not self.spec.hedge or len(self._recent) < KNOWN:
            return await self._try(send, guess, trail, number, entered)
        tries = {asyncio.create_task(self._try(send, guess, trail, number, entered))}
        try:
            await _first(tries, asyncio.create_task(entered.wait()))
            done, _ = await asyncio.wait(tries, timeout=self.spec.hedge * median(self._recent))
            if not done:
                tries.add(asyncio.create_task(self._try(send, guess, trail, number, asyncio.Event())))
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

    async def _try(self, send: Send, guess: Guess, trail: Trail, number: int, entered: asyncio.Event) -> Any:
        """One call: through the gate, sent, read, written down. Raises Again, Refused or OracleError.

        One that nobody waits for any more is paid for all the same, as far as can be guessed.
        """
        lease = await self._enter(sum(guess), trail)
        entered.set()
        began, clock = time(), perf_counter()
        status, outcome, tokens = "given_up", Outcome("given_up", *guess), guess
        try:
            async with asyncio.timeout(self.spec.timeout_s):
                raw = await send()
            answer = parsed(raw)
            status, tokens = finished(answer), used(answer)
            outcome = Outcome("ok", *tokens, **limits(raw.headers))
            self._recent.append(perf_counter() - clock)
            return answer
        except (openai.OpenAIError, TimeoutError) as fault:
            status, outcome, error = explain(fault, self.spec, self.base_url, self._key)
            tokens = guess if status == "timeout" else (0, 0)
            outcome = replace(outcome, prompt_tokens=tokens[0], completion_tokens=tokens[1])
            raise error from fault
        finally:
            seconds = perf_counter() - clock
            cost = usd(self.spec, *tokens)
            trail.attempts.append(
                Attempt(trail.request, self.door, trail.scope, number, status, began, seconds, *tokens, cost)
            )
            self._turns.free()
            await self._gate.leave(self.door, lease, outcome)

    async def _enter(self, guess: int, trail: Trail) -> int:
        """The gate's leave. No more of us wait there than could pass: thousands of calls wait here, where it costs little."""
        with _standing_still(trail.timer):
            await self._turns.take(first=bool(trail.attempts) or trail.request in self._unanswered)
            try:
                return await self._gate.enter(self.door, guess, PATIENCE_S)
            except BaseException:
                self._turns.free()
                raise


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
        timeout=httpx2.Timeout(spec.timeout_s, connect=min(CONNECT_S, 0.8 * spec.timeout_s)),
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
