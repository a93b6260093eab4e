"""The child of `checker.py`: reads one JSON line a check from stdin, answers with one line; ends when stdin closes.

Run as `python -m grpo_ray.check_worker MEMORY_MB SECONDS`.
"""

import inspect
import json
import math
import os
import resource
import sys
from io import TextIOWrapper
from typing import Any

from grpo_ray.canonical import typed
from grpo_ray.judges.verifier import found
from grpo_ray.types import Task

WRITTEN = 1 << 20
"""Bytes of a file that a check may write."""


def main(memory_mb: int, seconds: float) -> None:
    """Serve until stdin ends."""
    replies = _take_stdout()
    _limit(resource.RLIMIT_AS, memory_mb << 20)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, WRITTEN)
    for line in iter(sys.stdin.readline, ""):
        reply = answer(json.loads(line), seconds)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def answer(request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """{"ready": …}, {"score": …} or {"fault": why}: whatever a verifier does, the parent gets a line."""
    try:
        if "warm" in request:
            return {"ready": request["warm"], "seconds": seconds_of(request["warm"])}
        _limit_time(seconds)
        return judged(request)
    except (Exception, SystemExit) as fault:  # the boundary: a fault of somebody's verifier becomes a value
        return {"fault": f"{type(fault).__name__}: {fault}"[:500]}


def judged(request: dict[str, Any]) -> dict[str, Any]:
    """One verifier's word on one answer, as a score from 0 to 1."""
    verdict = found(request["verifier"])(request["answer"], typed(Task, request["task"]), **request["settings"])
    if verdict is None:
        return {"fault": "the verifier gives no verdict"}
    score = float(verdict)
    if not math.isfinite(score) or not 0.0 <= score <= 1.0:
        return {"fault": f"the verifier returned {score}, which is not from 0 to 1"}
    return {"score": score}


def seconds_of(verifier: str) -> float:
    """What the verifier's own setting `seconds` is by default, for those that keep time themselves; 0 without one."""
    setting = inspect.signature(found(verifier)).parameters.get("seconds")
    return setting.default if setting and isinstance(setting.default, float | int) else 0.0


def _take_stdout() -> TextIOWrapper:
    """A private way to the parent; what verifiers print goes to stderr."""
    mine = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return mine


def _limit_time(seconds: float) -> None:
    """Processor time up to now, and twice what one check may take: ends a child whose parent is gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + 2 * seconds) + 1)


def _limit(what: int, amount: int) -> None:
    """Lower the soft limit; some systems (macOS, for memory) know no such limit, and the timeout must do there."""
    hard = resource.getrlimit(what)[1]
    try:
        resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))
    except (ValueError, OSError) as refused:
        print(f"check_worker: no limit {what}: {refused}", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
