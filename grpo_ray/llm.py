"""HTTP to a model: `complete` and `embed` against any OpenAI-compatible endpoint, by URL.

Endpoints differ in how they can be held to a shape, so each is asked the strictest way it takes (`RUNGS`), and every
reply is checked with pydantic all the same; one that fails is sent back once with what was wrong, then given up.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from pydantic import BaseModel, ValidationError

from grpo_ray.endpoints import brief, find_key, host, is_local, sendable
from grpo_ray.errors import MissingError, OracleError, UnreachableError
from grpo_ray.recipe import OracleSpec
from grpo_ray.registry import hint
from grpo_ray.types import Message, Reply

RUNGS = ("json_schema", "json_object", "prompt")
"""Ways to ask for a shape, strictest first."""
RETRIES = 3
"""Of 408, 409, 429, 5xx and lost connections, by the SDK: 0.5 s to 8 s apart, or what Retry-After says (≤ 120 s)."""
BREAK_S = 60.0
"""How long an endpoint without quota is left alone before one more call may try."""
STAND_IN = "stand-in"
"""The `system_fingerprint` by which a server says that it is no real model."""
EMBED_BATCH = 256


class Gate(Protocol):
    """What every call passes: the cluster's rate gate, or a `RateGate` of this process."""

    async def enter(self) -> None: ...

    async def spent(self, prompt_tokens: int, completion_tokens: int) -> None: ...


class RateGate:
    """The spend so far, in USD. Calls wait, and do not fail, while the budget is used up.

    Calls in flight when the budget ends are paid all the same, so the overshoot is at most one call a slot.
    """

    def __init__(self, max_usd: float | None, usd_per_million: tuple[float, float], usd: float = 0.0) -> None:
        self._max_usd, self._prices, self._usd = max_usd, usd_per_million, usd
        self._changed = asyncio.Condition()

    async def enter(self) -> None:
        """Return as soon as there is money left."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._max_usd is None or self._usd < self._max_usd)

    async def spent(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one call's tokens."""
        price_in, price_out = self._prices
        self._usd += (prompt_tokens * price_in + completion_tokens * price_out) / 1e6

    async def allow(self, max_usd: float | None) -> None:
        """Change the budget (None: no limit); whoever waits goes on if it suffices."""
        async with self._changed:
            self._max_usd = max_usd
            self._changed.notify_all()

    async def total(self) -> float:
        """USD spent so far."""
        return self._usd


class Refused(OracleError):
    """The endpoint called the request itself wrong; another way of asking may do."""


class Endpoint:
    """One endpoint, as `spec` describes it, at `base_url` (where `spec` says `bundled`, the running server's)."""

    def __init__(self, spec: OracleSpec, *, base_url: str, gate: Gate | None = None, retries: int = RETRIES) -> None:
        self.spec, self.base_url = spec, base_url
        self._client = connect(spec, base_url, retries)
        self._gate = gate or RateGate(spec.max_usd, spec.usd_per_million)
        self._slots = asyncio.Semaphore(spec.concurrency)
        self._rung = 0
        self._cap = "max_completion_tokens" if host(base_url).endswith("openai.com") else "max_tokens"
        self._quota: tuple[float, str] = (0.0, "")

    async def complete(self, messages: Sequence[Message], *, shape: type[BaseModel] | None = None) -> Reply:
        """One reply; with `shape` its text is JSON that `shape` has accepted. Raises OracleError."""
        said = [{"role": m.role, "content": sendable(m.content)} for m in messages]
        if shape is None:
            return (await self._say(said))[0]
        for rung in range(self._rung, len(RUNGS)):
            try:
                reply = await self._shaped(said, shape, RUNGS[rung])
            except Refused:
                if rung == len(RUNGS) - 1:
                    raise
            else:
                self._rung = rung
                return reply
        raise AssertionError("the last rung returns or raises")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector a text. Raises OracleError, also where the recipe names no embedding model."""
        model = self.spec.embedding_model
        if not model:
            raise OracleError("no embeddings: set oracle.embedding_model to a model that the endpoint serves")
        found: list[list[float]] = []
        for start in range(0, len(texts), EMBED_BATCH):
            batch = [sendable(text) for text in texts[start : start + EMBED_BATCH]]
            async with self._call():
                answer = await self._client.embeddings.create(model=model, input=batch, encoding_format="float")
            if len(answer.data or []) != len(batch):
                raise OracleError(f"{self.base_url} sent {len(answer.data or [])} embeddings for {len(batch)} texts")
            found += [unit(item.embedding) for item in sorted(answer.data, key=lambda item: item.index)]
            await self._gate.spent(answer.usage.prompt_tokens if answer.usage else 0, 0)
        return found

    async def probe(self) -> list[str]:
        """The names of the models served. Raises UnreachableError, or MissingError where `spec.model` isn't served."""
        try:
            async with self._call():
                models = sorted([model.id async for model in self._client.models.list()])
        except OracleError as fault:
            raise UnreachableError(str(fault)) from fault
        if self.spec.model not in models:
            raise MissingError(f"{self.base_url} serves no model {self.spec.model!r}{hint(self.spec.model, models)}")
        return models

    async def close(self) -> None:
        await self._client.close()

    async def _shaped(self, said: list[dict[str, str]], shape: type[BaseModel], rung: str) -> Reply:
        schema = schema_of(shape)
        asked = said if rung == "json_schema" else [*said, {"role": "user", "content": _ask_for(schema)}]
        reply, finish = await self._say(asked, **_response_format(rung, shape, schema))
        try:
            return replace(reply, text=accepted(shape, reply.text))
        except ValueError as fault:
            if finish == "length":
                raise self._cut_off() from fault
            complaint = f"This was not accepted: {fault}\n{_ask_for(schema)}"
        again = [*asked, {"role": "assistant", "content": reply.text}, {"role": "user", "content": complaint}]
        second, finish = await self._say(again, **_response_format(rung, shape, schema))
        try:
            text = accepted(shape, second.text)
        except ValueError as fault:
            if finish == "length":
                raise self._cut_off() from fault
            raise OracleError(f"{self.base_url} twice sent no valid {shape.__name__}: {brief(fault)}") from fault
        return replace(
            second,
            text=text,
            prompt_tokens=reply.prompt_tokens + second.prompt_tokens,
            completion_tokens=reply.completion_tokens + second.completion_tokens,
        )

    async def _say(self, said: list[dict[str, str]], **extra: Any) -> tuple[Reply, str]:
        """One call: its reply, and why the model stopped."""
        try:
            return await self._create(said, **extra)
        except Refused as fault:
            other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[self._cap]
            if self._cap not in str(fault) or "unsupported" not in str(fault).lower():
                raise
            self._cap = other
        return await self._create(said, **extra)

    async def _create(self, said: list[dict[str, str]], **extra: Any) -> tuple[Reply, str]:
        options: dict[str, Any] = {"model": self.spec.model, "messages": said, **extra}
        options[self._cap] = self.spec.max_tokens
        if self.spec.temperature is not None:
            options["temperature"] = self.spec.temperature
        async with self._call():
            answer: Any = await self._client.chat.completions.create(**options)
        if not getattr(answer, "choices", None):
            raise OracleError(f"{self.base_url} did not send a chat completion; does the URL end in /v1?")
        usage, choice = answer.usage, answer.choices[0]
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        await self._gate.spent(*tokens)
        if not choice.message.content:
            why = getattr(choice.message, "refusal", None) or f"an empty reply (finish_reason {choice.finish_reason})"
            raise OracleError(f"{self.spec.model} did not answer: {brief(why)}")
        stand_in = getattr(answer, "system_fingerprint", None) == STAND_IN
        reply = Reply(choice.message.content, answer.model or self.spec.model, stand_in, *tokens)
        return reply, choice.finish_reason or ""

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """A slot and the gate's leave; what the SDK raises becomes an OracleError that says what to do."""
        self._check_quota()
        async with self._slots:
            await self._gate.enter()
            self._check_quota()  # another call may have found out meanwhile
            try:
                yield
            except (openai.OpenAIError, json.JSONDecodeError) as fault:
                raise self._explain(fault) from fault

    def _check_quota(self) -> None:
        until, why = self._quota
        if time.monotonic() < until:
            raise OracleError(why)

    def _explain(self, fault: Exception) -> OracleError:
        where, spec, text = self.base_url, self.spec, brief(getattr(fault, "message", None) or fault)
        match fault:
            case openai.APITimeoutError():
                why = f"{where} did not answer within {spec.timeout_s:g} s; see oracle.timeout_s"
            case openai.APIConnectionError():
                cause = brief(fault.__cause__ or fault)
                why = f"can't reach {where} ({cause}); start that server, or set oracle.base_url"
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                why = f"{where} refused the key in ${spec.api_key_env}: {text}"
            case openai.NotFoundError():
                why = f"{where} knows no {spec.model!r} or no such route: {text}; see oracle.model"
            case openai.RateLimitError(code="insufficient_quota"):
                why = f"{where} has no quota left for the key in ${spec.api_key_env}: {text}"
                self._quota = (time.monotonic() + BREAK_S, why)
            case openai.BadRequestError() | openai.UnprocessableEntityError():
                return Refused(f"{where} refused the request: {text}")
            case _:
                why = f"{where}: {text}"
        return OracleError(why)

    def _cut_off(self) -> OracleError:
        return OracleError(f"{self.spec.model} was cut off at {self.spec.max_tokens} tokens; raise oracle.max_tokens")


def connect(spec: OracleSpec, base_url: str, retries: int) -> AsyncOpenAI:
    """The client for `base_url`, which no proxy stands before on loopback. Raises ConfigError without a key."""
    return AsyncOpenAI(
        api_key=api_key(spec, base_url),
        base_url=base_url,
        timeout=spec.timeout_s,
        max_retries=retries,
        http_client=DefaultAsyncHttpx2Client(trust_env=False) if is_local(base_url) else None,
    )


def api_key(spec: OracleSpec, base_url: str) -> str:
    """The key that `base_url` gets; the bundled server, wherever it runs, needs none. Raises ConfigError without one."""
    return "none" if spec.base_url == "bundled" else find_key(base_url, spec.api_key_env, "oracle.api_key_env")


def schema_of(shape: type[BaseModel]) -> dict[str, Any]:
    """The shape's JSON Schema in OpenAI's strict form."""
    return dict(openai.pydantic_function_tool(shape)["function"].get("parameters", {}))


def accepted(shape: type[BaseModel], text: str) -> str:
    """The first JSON object in `text` that `shape` accepts, written anew. Raises ValueError saying what is wrong."""
    fault: ValueError = ValueError("there is no JSON object in it")
    for value in json_objects(text):
        try:
            return shape.model_validate(value).model_dump_json()
        except ValidationError as wrong:
            fault = ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in wrong.errors()[:10]))
    raise fault


def json_objects(text: str, limit: int = 50) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in `text`, in order; prose, code fences and broken beginnings are skipped."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0 and limit > 0:
        limit -= 1
        try:
            value, end = decoder.raw_decode(text, at)
            yield value
        except (json.JSONDecodeError, RecursionError):
            end = at + 1
        at = text.find("{", end)


def unit(vector: Sequence[float]) -> list[float]:
    """`vector` at length 1 (a zero vector stays)."""
    length = math.sqrt(math.fsum(value * value for value in vector))
    return [value / length for value in vector] if length else list(vector)


def _response_format(rung: str, shape: type[BaseModel], schema: dict[str, Any]) -> dict[str, Any]:
    if rung == "prompt":
        return {}
    if rung == "json_object":
        return {"response_format": {"type": "json_object"}}
    strict = {"name": shape.__name__, "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": strict}}


def _ask_for(schema: dict[str, Any]) -> str:
    return f"Reply with one JSON object alone, of this JSON Schema:\n{json.dumps(schema)}"
