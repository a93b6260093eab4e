"""Untrusted checks: verdicts, and what happens to a verifier that hangs, dies, prints or lies."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from grpo_ray.checker import Checker
from grpo_ray.types import Task

pytestmark = pytest.mark.process

WILD = """
import os, sys, time

def verify(answer, task):
    print("noise on stdout", flush=True)
    if answer == "hang":
        time.sleep(3600)
    if answer == "spin":
        while True: pass
    if answer == "die":
        os._exit(3)
    if answer == "leave":
        sys.exit("bye")
    if answer == "fault":
        raise RuntimeError("no")
    if answer == "eat":
        bytearray(64 << 30)
    if answer == "keys":
        return float("SECRET_TOKEN" in os.environ)
    if answer == "nothing":
        return None
    if answer == "nap":
        time.sleep(0.6)
    return {"two": 2.0, "nan": float("nan"), "pid": 0.5}.get(answer, 1.0)
"""

PATIENT = """
from wild import checks

def verify(answer, task, *, seconds=2.0):
    return checks.verify(answer, task)
"""


@pytest.fixture
def wild(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild" / "__init__.py").write_text("")
    (tmp_path / "wild" / "checks.py").write_text(WILD)
    sys.path.insert(0, str(tmp_path))
    (tmp_path / "wild" / "patient.py").write_text(PATIENT)
    yield "wild.checks"
    sys.path.remove(str(tmp_path))


def using(checker: Checker, work: Callable[[Checker], Awaitable[None]]) -> None:
    async def main() -> None:
        try:
            await work(checker)
        finally:
            await checker.close()

    asyncio.run(main())


def test_the_bundled_verifier_runs_in_the_child() -> None:
    async def work(checker: Checker) -> None:
        task = Task("t", "2+2?", "4", verifier="jsonl")
        assert await checker.check(task, ["Answer: 4", "Answer: 5", "so it is\n4.0"]) == [1.0, 0.0, 1.0]
        assert await checker.check(Task("t", "Why?"), ["because", "so"]) == [None, None]

    using(Checker(), work)


def test_a_fault_is_no_verdict_and_the_next_check_goes_on(wild: str) -> None:
    async def work(checker: Checker) -> None:
        task = Task("t", "?", verifier=wild)
        answers = ["fine", "fault", "die", "fine", "leave", "two", "nan", "eat", "fine"]
        assert await checker.check(task, answers) == [1.0, None, None, 1.0, None, None, None, None, 1.0]

    using(Checker(), work)


@pytest.mark.parametrize("bad", ["hang", "spin"])
def test_a_check_that_takes_too_long_is_killed(wild: str, bad: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work(checker: Checker) -> None:
        assert await checker.check(Task("t", "?", verifier=wild), [bad, "fine"]) == [None, 1.0]

    using(Checker(timeout_s=1.0), work)
    assert "took longer than 1 s" in caplog.text


def test_the_child_sees_no_keys(wild: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")

    async def work(checker: Checker) -> None:
        assert await checker.check(Task("t", "?", verifier=wild), ["keys"]) == [0.0]

    using(Checker(), work)


def test_an_unknown_verifier_is_no_verdict(caplog: pytest.LogCaptureFixture) -> None:
    async def work(checker: Checker) -> None:
        assert await checker.check(Task("t", "?", verifier="jsonll"), ["x"]) == [None]

    using(Checker(), work)
    assert "did you mean 'jsonl'" in caplog.text


def test_a_cancelled_check_does_not_answer_the_next_one(wild: str) -> None:
    async def work(checker: Checker) -> None:
        task = Task("t", "?", verifier=wild)
        await checker.check(task, ["fine"])
        hanging = asyncio.create_task(checker.check(task, ["hang"]))
        await asyncio.sleep(0.05)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert await checker.check(task, ["pid", "fine"]) == [0.5, 1.0]

    using(Checker(), work)


def test_close_ends_the_child() -> None:
    async def main() -> None:
        checker = Checker()
        await checker.check(Task("t", "2+2?", "4", verifier="jsonl"), ["4"])
        child = checker._child
        assert child is not None
        await checker.close()
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)

    asyncio.run(main())


def test_a_named_verifier_with_settings_comes_before_the_tasks_own() -> None:
    async def work(checker: Checker) -> None:
        task = Task("t", "?", "3.14159", verifier="jsonl")
        said = ["Answer: 3.14", "Answer: 3"]
        assert await checker.check(task, said) == [0.0, 0.0]
        assert await checker.check(task, said, verifier="numeric", settings={"absolute": 0.01}) == [1.0, 0.0]
        assert await checker.check(task, said, verifier="numeric", settings={"absolute": 0.2}) == [1.0, 1.0]
        assert await checker.check(Task("t", "?"), ["ab"], verifier="regex", settings={"pattern": "b$"}) == [1.0]

    using(Checker(), work)


def test_a_pattern_that_never_ends_is_no_verdict() -> None:
    async def work(checker: Checker) -> None:
        task = Task("t", "?", metadata={"pattern": "(a+)+$"})
        said = ["a" * 40 + "!", "aaa"]
        assert await checker.check(task, said, verifier="regex") == [None, 1.0]

    using(Checker(timeout_s=1.0), work)


def test_wrong_settings_and_no_verdict_are_values(wild: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work(checker: Checker) -> None:
        task = Task("t", "?", "4")
        assert await checker.check(task, ["4"], verifier="jsonl", settings={"case": True}) == [None]
        assert await checker.check(task, ["nothing"], verifier=wild) == [None]

    using(Checker(), work)
    assert "unexpected keyword argument 'case'" in caplog.text
    assert "the verifier gives no verdict" in caplog.text


def test_a_verifiers_own_seconds_lengthen_its_check(wild: str) -> None:
    async def work(checker: Checker) -> None:
        assert await checker.check(Task("t", "?"), ["nap"], verifier=wild) == [None]
        assert await checker.check(Task("t", "?"), ["nap"], verifier="wild.patient") == [1.0]
        assert await checker.check(Task("t", "?"), ["nap"], verifier=wild, settings={"seconds": 5.0}) == [None]

    using(Checker(timeout_s=0.3), work)
