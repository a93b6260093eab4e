"""The Batch API: the requests of `llm.Endpoint`, answered within a day at half the price, for what nobody waits for.

Calls gather until no more come; then they go up as one file, whose batch is looked at ever more rarely until it has
ended. What the file will hold is written down before the batch begins, so that a process that dies leaves nothing that
is paid for twice: another one finds the batch by its file, and hands its lines to whoever asks the same again.
"""

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from time import time
from typing import Any, TypeVar

import openai
from openai.types import Batch
from openai.types.chat import ChatCompletion

from grpo_ray.errors import OracleError
from grpo_ray.llm.addresses import brief, hidden
from grpo_ray.llm.batch_files import Memory, Said, Sent, named, read_lines
from grpo_ray.llm.endpoint import PAUSES, RETRIES, Endpoint, Trail
from grpo_ray.llm.gate import Closed, Gate, Outcome, usd
from grpo_ray.llm.profiles import CAPS, objection, parameters
from grpo_ray.llm.replies import Again, Limited, Refused, explain, finished, used
from grpo_ray.recipe import OracleSpec
from grpo_ray.types import Attempt, Reply

T = TypeVar("T")
ROUTE = "/v1/chat/completions"
DISCOUNT = 0.5
"""Of the usual price (OpenAI, Batch API FAQ: "each model will be offered at 50% cost discount")."""
DAY_S = 86_400.0
PATIENCE_S = 2 * DAY_S
"""How long a batch is waited for after its day; then it counts as lost."""
ENDED = ("completed", "failed", "expired", "cancelled")
BYTES_PER_S = 100_000.0
"""How slow a file may travel before its transfer is given up."""
AROUND = 200
"""Bytes of a request's line around what is sent, at most."""
LINE_BYTES = 20_000
"""As long as the lines of a result are, about, at most."""
SKEW_S = 3600.0
"""By how much the endpoint's clock may be behind ours."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests gather and how batches are looked after. The limits are OpenAI's (API reference, Create batch)."""

    gather_s: float = 1.0
    """A batch goes when so long no request has come."""
    poll_s: tuple[float, float] = (5.0, 60.0)
    """Between two looks at it, at first and at most; doubled between."""
    most_lines: int = 50_000
    most_bytes: int = 200_000_000


class Gone(OracleError):
    """No batch was ever made of a file: its requests may be sent again."""


class NoSuch(OracleError):
    """The endpoint doesn't know what it is asked for."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What came of a batch: its lines by custom_id, when, and of what is not among them, why."""

    lines: Mapping[str, Said]
    time: float
    status: str
    why: str


@dataclass(slots=True, eq=False)
class Flight:
    """One batch, from the first request that waits for it; `asked` as in Sent."""

    asked: dict[str, float] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    file: str = ""
    full: asyncio.Event = field(default_factory=asyncio.Event)
    landing: asyncio.Task[Landed] | None = None

    def lives(self) -> bool:
        """Whether anything may still come of it."""
        return bool(self.file) or (self.landing is not None and not self.landing.done())


class BatchEndpoint(Endpoint):
    """An Endpoint whose completions go through batches; shapes, repairs and embeddings are as there."""

    def __init__(
        self,
        spec: OracleSpec,
        *,
        base_url: str,
        gate: Gate | None = None,
        memory: Memory | None = None,
        batching: Batching | None = None,
        retries: int = RETRIES,
        pauses: tuple[float, float] = PAUSES,
    ) -> None:
        slow = replace(spec, deadline_s=max(spec.deadline_s, 4 * (DAY_S + PATIENCE_S)))  # three rungs and a repair
        super().__init__(slow, base_url=base_url, gate=gate, retries=retries, pauses=pauses)
        self._memory, self._batching = memory, batching or Batching()
        self._boarding: Flight | None = None
        self._spare: dict[str, list[tuple[Flight, str]]] = defaultdict(list)
        self._landings: set[asyncio.Task[Landed]] = set()
        self._taking_up, self._taken_up, self._last = asyncio.Lock(), False, 0.0

    async def close(self) -> None:
        """Stop waiting; batches under way go on, for the next process to take up."""
        for landing in self._landings:
            landing.cancel()
        await asyncio.gather(*self._landings, return_exceptions=True)
        await super().close()

    # ── one request ──

    async def _say(self, said: list[Any], trail: Trail, **form: Any) -> tuple[Reply, str]:
        """As an Endpoint's, but every request with a parameter that turns out unknown is sent again without it."""
        known = frozenset(self._unsupported)
        options = parameters(self.spec, self.base_url, known)
        try:
            answer = await self._answered({"model": self.spec.model, "messages": said, **form, **options}, trail)
        except Refused as fault:
            name = objection(str(fault), options)
            if name is None or CAPS.get(name) in known:
                raise
            self._unsupported.add(name)
            return await self._say(said, trail, **form)
        return self._read(answer)

    async def _answered(self, body: dict[str, Any], trail: Trail) -> ChatCompletion:
        """The reply to one request, from a batch of before where one was not used, else from the next. Raises OracleError."""
        await self._take_up()
        name = named(body)
        while True:
            flight, id = self._place(name, body)
            try:
                landed = await asyncio.shield(flight.landing or self._start(flight, self._resumed(flight)))
            except asyncio.CancelledError:
                self._spare[name].append((flight, id))
                raise
            except Gone:
                continue
            except OracleError as fault:
                self._failed(flight, id, trail, fault)
                raise
            return self._read_line(id, flight.asked[id], landed, trail)

    def _place(self, name: str, body: dict[str, Any]) -> tuple[Flight, str]:
        """A line that nobody waits for, of the same request; or a new one in the file that gathers."""
        while self._spare[name]:
            flight, id = self._spare[name].pop(0)
            if flight.lives():
                return flight, id
        flight, most, said = self._boarding, self._batching, json.dumps(body)
        room = most.most_bytes - len(said) - AROUND
        if flight is None or len(flight.lines) >= most.most_lines or flight.size > room:
            if flight is not None:
                flight.full.set()
            flight = self._boarding = Flight()
            self._start(flight, self._flown(flight))
        id = f"{name}-{len(flight.lines)}"
        line = f'{{"custom_id": "{id}", "method": "POST", "url": "{ROUTE}", "body": {said}}}\n'.encode()
        self._last = max(time(), math.nextafter(self._last, math.inf))
        flight.asked[id] = self._last
        flight.lines.append(line)
        flight.size += len(line)
        return flight, id

    def _read_line(self, id: str, asked: float, landed: Landed, trail: Trail) -> ChatCompletion:
        """One line's reply; it leaves its Attempt, at the batch's price."""
        status, answer, fault = meaning(landed.lines.get(id), landed, self._where, self._key)
        tokens = used(answer) if answer else (0, 0)
        took, cost = max(0.0, landed.time - asked), usd(self.spec, *tokens) * DISCOUNT
        attempt = Attempt(trail.request, self.door, trail.scope, 1, status, asked, took, *tokens, cost)
        trail.attempts.append(attempt)
        if answer is None:
            raise fault or OracleError(status)
        return answer

    def _failed(self, flight: Flight, id: str, trail: Trail, fault: OracleError) -> None:
        """No word of a batch: where it may have begun, its lines wait for whoever asks again."""
        if not isinstance(fault, Closed):  # then nothing was sent
            trail.attempts.append(Attempt(trail.request, self.door, trail.scope, 1, "failed", time(), 0.0))
        if flight.file:
            flight.landing = None if flight.landing and flight.landing.done() else flight.landing
            self._spare[id.rpartition("-")[0]].append((flight, id))

    # ── one batch ──

    async def _take_up(self) -> None:
        """Make the lines of earlier processes' batches known, once."""
        async with self._taking_up:
            if self._taken_up or self._memory is None:
                return
            for sent in await self._memory.pending(self.door):
                flight = Flight(dict(sent.asked), file=sent.file)
                for id in sent.asked:
                    self._spare[id.rpartition("-")[0]].append((flight, id))
            self._taken_up = True

    def _start(self, flight: Flight, work: Coroutine[Any, Any, Landed]) -> asyncio.Task[Landed]:
        landing = flight.landing = asyncio.create_task(work)
        self._landings.add(landing)
        landing.add_done_callback(self._landings.discard)
        return landing

    async def _flown(self, flight: Flight) -> Landed:
        """Gather, upload, write down, begin; then as `_landed`. Raises Closed before anything is sent."""
        await self._quiet(flight)
        if self._boarding is flight:
            self._boarding = None
        lease = await self._gate.enter(self.door, 0, self.spec.deadline_s)
        outcome = Outcome("failed")
        try:
            content = b"".join(flight.lines)
            upload = partial(self._client.files.create, file=("batch.jsonl", content), purpose="batch")
            file = str((await self._called(upload, len(content))).id)
            if self._memory is not None:
                await self._memory.remember(Sent(file, self.door, flight.asked))
            flight.file, flight.lines = file, []
            batch = await self._begun(flight)
            outcome = Outcome("ok")
        finally:
            await self._gate.leave(self.door, lease, outcome)
        return await self._landed(flight, batch)

    async def _quiet(self, flight: Flight) -> None:
        """Until for `gather_s` no request has come, or the file is full."""
        count = -1
        while count != len(flight.lines) and not flight.full.is_set():
            count = len(flight.lines)
            try:
                async with asyncio.timeout(self._batching.gather_s):
                    await flight.full.wait()
            except TimeoutError:
                continue

    async def _begun(self, flight: Flight) -> Batch:
        """The batch over an uploaded file. A fault may hide that it was made, so each try looks first."""

        async def found_or_begun() -> Batch:
            how: Any = {"endpoint": ROUTE, "completion_window": "24h"}
            found = await self._found(flight)
            return found or read_batch(await self._client.batches.create(input_file_id=flight.file, **how))

        return await self._called(found_or_begun)

    async def _found(self, flight: Flight) -> Batch | None:
        """The batch that was made of the flight's file, among the endpoint's newest."""
        since = min(flight.asked.values()) - SKEW_S
        async for batch in self._client.batches.list(limit=100):
            if batch.input_file_id == flight.file:
                return batch
            if batch.created_at < since:
                break
        return None

    async def _resumed(self, flight: Flight) -> Landed:
        """As `_landed`, of a file that was uploaded before. Raises Gone where no batch was made of it."""
        batch = await self._called(partial(self._found, flight))
        if batch is None:
            await self._forget(flight)
            raise Gone(f"{self._where} has no batch over {self.door}'s file")
        return await self._landed(flight, batch)

    async def _landed(self, flight: Flight, batch: Batch) -> Landed:
        """Wait until the batch has ended; its lines count however it did. Raises OracleError."""
        try:
            batch = await self._ended(flight, batch)
            lines: dict[str, Said] = {}
            for file in filter(None, (batch.output_file_id, batch.error_file_id)):
                download = partial(self._client.files.content, file)
                content = await self._called(download, LINE_BYTES * len(flight.asked))
                lines |= read_lines(content.text)
        except NoSuch:
            await self._forget(flight)
            raise
        await self._pay([one for id, one in lines.items() if id in flight.asked])
        data = (batch.errors.data if batch.errors else None) or []
        why = brief(hidden("; ".join(one.message or one.code or "" for one in data), self._key))
        return Landed(lines, time(), batch.status, why)

    async def _pay(self, lines: Iterable[Said]) -> None:
        """Tell the gate what the lines cost; the batch's own lease was given back when it began."""
        tokens = [used(ChatCompletion.construct(**one.response.body)) for one in lines if one.response]
        given, got = (sum(some) for some in (zip(*tokens, strict=True) if tokens else ((), ())))
        await self._gate.leave(self.door, 0, Outcome("ok", round(DISCOUNT * given), round(DISCOUNT * got)))

    async def _ended(self, flight: Flight, batch: Batch) -> Batch:
        """The batch when it has ended; an endpoint that is away for a while is asked again. Raises OracleError."""
        pause, latest = self._batching.poll_s

        async def look() -> Batch:
            return read_batch(await self._client.batches.retrieve(batch.id))

        while batch.status not in ENDED:
            if time() > batch.created_at + DAY_S + PATIENCE_S:
                await self._forget(flight)
                raise OracleError(f"{self._where} has not ended the batch {batch.id}; it is {batch.status}")
            await asyncio.sleep(pause)
            pause = min(latest, 2 * pause)
            try:
                batch = await self._called(look)
            except Again:
                continue
        return batch

    async def _forget(self, flight: Flight) -> None:
        if self._memory is not None:
            await self._memory.forget(flight.file)
        flight.file = ""

    async def _called(self, send: Callable[[], Awaitable[T]], size: int = 0) -> T:
        """What the endpoint answers, after as many tries as it takes. Raises OracleError."""
        faults = 0
        for number in count(1):
            try:
                async with asyncio.timeout(self.spec.timeout_s + size / BYTES_PER_S):
                    return await send()
            except (openai.OpenAIError, ValueError, TimeoutError) as fault:
                error = self._fault_of(fault)
                faults += not isinstance(error, Limited)
                if not isinstance(error, Again) or faults > self._retries:
                    raise error from fault
            await self._pause(number, error)
        raise AssertionError("the last try returns or raises")

    def _fault_of(self, fault: Exception) -> OracleError:
        """What a fault of a batch's own requests means."""
        if isinstance(fault, ValueError):
            return Again(f"{self._where} sent what can't be read: {brief(hidden(str(fault), self._key))}")
        status, _, error = explain(fault, self.spec, self.base_url, self._key)
        if status != "404":
            return error
        why = brief(hidden(str(getattr(fault, "message", fault)), self._key))
        return NoSuch(f"{self._where}: {why}; does that endpoint have a Batch API?")


def meaning(
    said: Said | None, landed: Landed, where: str, key: str = ""
) -> tuple[str, ChatCompletion | None, OracleError | None]:
    """An Attempt's status, and the completion or what went wrong, without the key."""
    if said is None:
        status = landed.status if landed.status != "completed" else "lost"
        return status, None, OracleError(f"{where} gave no reply: its batch is {landed.status}. {landed.why}".strip())
    if said.response is None:
        error = said.error or Said.Fault()
        code = hidden(error.code or "failed", key)
        return code, None, OracleError(f"{where} gave no reply ({code}): {brief(hidden(error.message or '', key))}")
    code = said.response.status_code
    if code == 200:
        answer = ChatCompletion.construct(**said.response.body)
        return finished(answer), answer, None
    fault = said.response.body.get("error")
    text = brief(hidden(str(fault.get("message") if isinstance(fault, dict) else fault), key))
    kind = Refused if code in (400, 422) else OracleError
    return str(code), None, kind(f"{where} refused the request: {text}" if kind is Refused else f"{where}: {text}")


def read_batch(found: Any) -> Batch:
    """The SDK checks nothing of what it reads. Raises ValueError."""
    if isinstance(found, Batch) and isinstance(found.id, str) and isinstance(found.status, str):
        return found
    raise ValueError("it is no batch")
