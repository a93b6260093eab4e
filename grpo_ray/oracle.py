"""The oracle: what judges and mutations may ask. Every reply is recorded before it is used, and replayed when a step
is done again, so that a resumed run hears the same words as an unbroken one.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from grpo_ray.canonical import digest
from grpo_ray.checker import Checker
from grpo_ray.errors import OracleError
from grpo_ray.llm import Endpoint, Gate, schema_of
from grpo_ray.protocols import Archive, Oracle, Store
from grpo_ray.recipe import OracleSpec
from grpo_ray.types import Message, Reply, Task


def make_oracle(
    spec: OracleSpec,
    store: Store,
    *,
    base_url: str,
    gate: Gate | None,
    checker: Checker,
    archive: Archive | None = None,
    run: str = "",
) -> "RecordingOracle":
    """The oracle of one process, asking at `base_url` and recording in `store`. Raises ConfigError without a key."""
    return RecordingOracle(Endpoint(spec, base_url=base_url, gate=gate), store, checker, archive, run)


class RecordingOracle(Oracle):
    """Asks the endpoint only what the store has no reply to. A child made by `within` counts occurrences anew."""

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        checker: Checker,
        archive: Archive | None = None,
        run: str = "",
        scope: str = "",
    ) -> None:
        self._endpoint, self._store, self._checker = endpoint, store, checker
        self._archive, self._run, self._scope = archive, run, scope
        self._seen: Counter[str] = Counter()

    def within(self, scope: str) -> "RecordingOracle":
        """A child whose replies are recorded under `scope`, inside this one's."""
        inner = f"{self._scope}/{scope}" if self._scope else scope
        return RecordingOracle(self._endpoint, self._store, self._checker, self._archive, self._run, inner)

    async def complete(self, messages: Sequence[Message], *, shape: type[Any] | None = None) -> Reply:
        spec = self._endpoint.spec
        request = {
            "kind": "complete",
            "model": spec.model,
            "temperature": spec.temperature,
            "max_tokens": spec.max_tokens,
            "messages": list(messages),
            "shape": schema_of(shape) if shape else None,
        }
        return await self._recorded(request, lambda: self._endpoint.complete(messages, shape=shape))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        model = self._endpoint.spec.embedding_model or ""

        async def ask() -> Reply:
            return Reply(json.dumps(await self._endpoint.embed(texts)), model)

        reply = await self._recorded({"kind": "embed", "model": model, "texts": list(texts)}, ask)
        return json.loads(reply.text)

    async def nearest(self, text: str, *, limit: int = 10) -> list[tuple[str, float]]:
        archive = self._archive
        if archive is None:
            raise OracleError("nearest needs a storage that keeps embeddings; this oracle was made without one")
        (vector,) = await self.embed([text])

        async def ask() -> Reply:
            return Reply(json.dumps(await archive.search(self._run, vector, limit)), "")

        reply = await self._recorded({"kind": "nearest", "text": text, "limit": limit}, ask)
        return [(rollout, similarity) for rollout, similarity in json.loads(reply.text)]

    async def check(self, task: Task, answers: Sequence[str]) -> list[float | None]:
        return await self._checker.check(task, answers)

    async def close(self) -> None:
        """Close the connections and end the checker's process; children share both."""
        await self._endpoint.close()
        await self._checker.close()

    async def _recorded(self, request: dict[str, Any], ask: Callable[[], Awaitable[Reply]]) -> Reply:
        """The stored reply to this scope's nth such request, or a new one, stored; never by URL: servers may move."""
        name = digest(request)
        occurrence = self._seen[name]
        self._seen[name] += 1
        key = digest([self._scope, name, occurrence])
        known = await self._store.load_reply(key)
        return known if known is not None else await self._store.save_reply(key, await ask())
