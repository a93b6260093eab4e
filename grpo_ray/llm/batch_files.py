"""The files of the Batch API: what of them must outlive a process, and how their lines read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from grpo_ray.canonical import digest
from grpo_ray.protocols import Store

BATCH, GONE = "batch", "batch_gone"
"""Events: a file of requests that a batch is to be made of, and one that no batch came of."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A file of requests, as far as it must be known again: no texts."""

    file: str
    door: str
    asked: Mapping[str, float]
    """custom_id → when it was asked for (seconds since 1970, no two the same). Before its last "-" stands `named(body)`."""


class Memory(Protocol):
    """Where files that batches are made of outlive the process."""

    async def remember(self, sent: Sent) -> None:
        """Durable before it returns."""
        ...

    async def pending(self, door: str) -> list[Sent]:
        """What was sent there by processes before this one, with the lines that nobody has used."""
        ...

    async def forget(self, file: str) -> None:
        """Nothing will come of that file."""
        ...


class StoreMemory(Memory):
    """In a run's events. A line's Attempt is stored in one transaction with its reply, and says that it was used."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def remember(self, sent: Sent) -> None:
        await self._store.save_event(0, BATCH, {"file": sent.file, "door": sent.door, "asked": dict(sent.asked)})

    async def pending(self, door: str) -> list[Sent]:
        events = await self._store.events()
        gone = {event["detail"]["file"] for event in events if event["kind"] == GONE}
        files = [one["detail"] for one in events if one["kind"] == BATCH and one["detail"]["door"] == door]
        paid = {one.time for one in await self._store.attempts() if one.door == door}
        found = [
            Sent(one["file"], door, {id: asked for id, asked in one["asked"].items() if asked not in paid})
            for one in files
            if one["file"] not in gone
        ]
        return [sent for sent in found if sent.asked]

    async def forget(self, file: str) -> None:
        await self._store.save_event(0, GONE, {"file": file})


class Said(BaseModel):
    """What a line of a result file says: an HTTP reply, or an error without one."""

    class Http(BaseModel):
        status_code: int
        body: dict[str, Any] = {}

    class Fault(BaseModel):
        code: str | None = None
        message: str | None = None

    custom_id: str
    response: Http | None = None
    error: Fault | None = None


def named(body: Mapping[str, Any]) -> str:
    """A request's name, by which it is known again: 40 hex digits of its hash."""
    return digest(body)[:40]


def read_lines(text: str) -> dict[str, Said]:
    """The lines of a result file by custom_id; what is no such line is left out."""
    found: dict[str, Said] = {}
    for line in text.split("\n"):  # and not splitlines: JSON may hold U+2028 as it is
        try:
            said = Said.model_validate_json(line)
        except ValidationError:
            continue
        found[said.custom_id] = said
    return found
