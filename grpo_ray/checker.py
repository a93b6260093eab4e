"""Untrusted checks in a process that can be killed: a verifier may hang, eat memory or crash, and nobody else notices."""

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from grpo_ray.canonical import plain
from grpo_ray.types import Task

LINE_LIMIT = 1 << 20
"""Bytes of one reply line of the child."""
SPARE_S = 5.0
"""What a check may take beyond the `seconds` that its verifier keeps to by itself."""
log = logging.getLogger(__name__)


class Checker:
    """One persistent child that runs verifiers, one check at a time; killed and begun anew when a check takes too long.

    `timeout_s` is per answer, or what a verifier's own `seconds` and `SPARE_S` come to, if that is more; `start_s` is
    what the child's start and a verifier's import may take; `memory_mb` bounds the child's address space where the
    system knows such a bound (Linux).
    """

    def __init__(self, *, timeout_s: float = 10.0, start_s: float = 120.0, memory_mb: int = 4096) -> None:
        self._timeout_s, self._start_s, self._memory_mb = timeout_s, start_s, memory_mb
        self._turn = asyncio.Lock()
        self._child: Process | None = None
        self._warm: dict[str, float] = {}

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        """What `verifier` (None: the task's own) says of each answer, 0 to 1; None: no verdict (the log says why).

        `settings` are the verifier's keyword arguments.
        """
        named = verifier or task.verifier
        if not named:
            return [None] * len(answers)
        asked = {"verifier": named, "settings": plain(dict(settings or {})), "task": plain(task)}
        async with self._turn:
            return [await self._verdict(asked | {"answer": answer}) for answer in answers]

    async def close(self) -> None:
        """End the child."""
        async with self._turn:
            await self._end()

    async def _verdict(self, asked: dict[str, Any]) -> float | None:
        named, task = asked["verifier"], asked["task"]
        if named not in self._warm:
            ready = await self._ask({"warm": named}, self._start_s)
            if "fault" in ready:
                return self._no_verdict(task, ready["fault"])
            self._warm[named] = ready["seconds"]
        own = asked["settings"].get("seconds", self._warm[named])
        kept = own + SPARE_S if own and isinstance(own, float | int) else 0.0
        reply = await self._ask(asked, max(self._timeout_s, kept))
        if "fault" in reply:
            return self._no_verdict(task, reply["fault"])
        return reply["score"]

    async def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """One line there, one line back; a child that can't keep that up is ended, and the fault is a value."""
        answered = False
        try:
            child = self._child or await self._start()
            line = await asyncio.wait_for(_exchange(child, request), timeout_s)
            reply = json.loads(line)
            answered = True
            return reply
        except TimeoutError:
            return {"fault": f"took longer than {timeout_s:g} s"}
        except (OSError, ValueError) as fault:
            return {"fault": f"the checking process ended ({fault or type(fault).__name__}): out of memory or time?"}
        finally:
            if not answered:  # also when cancelled: a late reply must not meet the next question
                await self._end()

    async def _start(self) -> Process:
        self._child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "grpo_ray.check_worker", str(self._memory_mb), str(self._timeout_s)),
            stdin=PIPE,
            stdout=PIPE,
            env=_environment(),
            limit=LINE_LIMIT,
            start_new_session=True,
        )
        return self._child

    async def _end(self) -> None:
        child, self._child = self._child, None
        self._warm.clear()
        if child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        if child.stdin:
            child.stdin.close()
        await child.wait()

    def _no_verdict(self, task: dict[str, Any], why: str) -> None:
        log.warning("no verdict on task %s: %s", task["id"], why)


async def _exchange(child: Process, request: dict[str, Any]) -> bytes:
    assert child.stdin and child.stdout
    child.stdin.write(json.dumps(request).encode() + b"\n")
    await child.stdin.drain()
    line = await child.stdout.readline()
    if not line.endswith(b"\n"):
        raise ValueError("no reply")
    return line


def _environment() -> dict[str, str]:
    """Only what an import needs: no keys, no tokens, no proxies."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    fixed = {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return kept | fixed
