"""Code that means harm, in the sandbox: it ends as 0 or as no verdict, nothing hangs, and nothing is left behind."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_ray.checker import Checker
from grpo_ray.sandbox import Limits, NoSandbox, profile, run
from grpo_ray.types import Task
from grpo_ray.verifiers.python_tests import verify

SQUARES = ("assert f(2) == 4", "assert f(3) == 9", "def test_zero():\n    assert f(0) == 0", "assert f(1) == 2")
"""Three that hold for squares, and one that never does for them."""
HARMS = {
    "an endless loop": "def f(x):\n    while True: pass",
    "asleep": "import time\ndef f(x): time.sleep(3600)",
    "a fork bomb": "import os\ndef f(x):\n    while True: os.fork()",
    "ten gigabytes": "def f(x): return len(bytearray(10 << 30))",
    "exit before": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "exit in the test": "import os\ndef f(x): os._exit(0)",
    "equal to all": "class All:\n    def __eq__(self, other): return True\ndef f(x): return All()",
    "builtins": "import builtins, os\nbuiltins.exec = builtins.compile = lambda *a: None\n"
    "os._exit = lambda code: None\nbuiltins.AssertionError = None\ndef f(x): return -1",
    "blind writing": "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed' * 9)\n    except OSError: pass\n"
    "def f(x): return -1",
    "killing the runner": "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    return -1",
    "no Python": "def f(x) return 4",
    "a daemon": "import os\ndef f(x):\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass\n    return -1",
}


def score(code: str, *tests: str, **settings: float | bool) -> float:
    """In this process, which only waits for the warden."""
    task = Task("t", "?", metadata={"tests": list(tests or SQUARES)})
    patient = {"seconds": 60.0, "test_s": 30.0}
    try:
        return verify(f"```python\n{code}\n```", task, **(patient | settings))  # type: ignore[arg-type]
    except NoSandbox as fault:
        if str(fault).startswith("no sandbox"):
            pytest.skip(f"this machine can't: {fault}")
        raise


def until(so: Callable[[], bool]) -> None:
    """Look until it is so; half a minute at most."""
    deadline = time.monotonic() + 30
    while not so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


pytestmark = pytest.mark.process


def test_the_share_of_tests_that_pass() -> None:
    assert score("def f(x): return x * x") == 0.75
    assert score("def f(x): return x * x", all_or_nothing=True) == 0.0
    assert score("def f(x): return x * x", *SQUARES[:3], all_or_nothing=True) == 1.0


def test_a_hang_costs_its_own_test_only() -> None:
    assert score("def f(x):\n    while x == 3: pass\n    return x * x", test_s=3.0) == 0.5


def test_check_is_called_with_the_entry_point() -> None:
    task = Task("t", "?", metadata={"tests": "def check(candidate):\n    assert candidate(2) == 4", "entry_point": "f"})
    assert score("def f(x): return 4") >= 0.25  # skips where there is no sandbox
    assert verify("```\ndef f(x): return x * x\n```", task) == 1.0
    assert verify("```\ndef f(x): return x + 3\n```", task) == 0.0


@pytest.mark.parametrize("harm", HARMS)
def test_harm_earns_nothing(harm: str) -> None:
    assert score(HARMS[harm], *SQUARES[:2], test_s=0.5) == 0.0


def test_a_flood_of_words_is_dropped() -> None:
    assert score("def f(x):\n    print('x' * (100 << 20))\n    return x * x", SQUARES[0]) == 1.0


def test_a_file_has_bounds() -> None:
    assert score("def f(x):\n    open('big', 'wb').write(b'x' * (100 << 20))\n    return 4", SQUARES[0]) == 0.0


def test_there_is_no_network_not_even_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        code = f"import socket\ndef f(x):\n    socket.create_connection({address!r}, 1)\n    return 4"
        assert score(code, SQUARES[0]) == 0.0
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_it_writes_and_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "secret").write_text("4")
    inside = "import os\ndef f(x):\n    open('mine', 'w').write('4')\n    return int(open('mine').read())"
    outside = f"def f(x):\n    open({str(tmp_path / 'out')!r}, 'w')\n    return 4"
    assert (score(inside, SQUARES[0]), score(outside, SQUARES[0])) == (1.0, 0.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS hides home folders only")
def test_it_sees_neither_files_nor_keys_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("4")
    monkeypatch.setenv("SECRET_TOKEN", "4")
    assert score(f"def f(x): return int(open({str(tmp_path / 'secret')!r}).read())", SQUARES[0]) == 0.0
    assert score("import os\ndef f(x): return int(os.environ['SECRET_TOKEN'])", SQUARES[0]) == 0.0
    others = "import os\ndef f(x): return len([p for p in os.listdir('/proc') if p.isdigit()]) <= 2"
    assert score(others, "assert f(0)") == 1.0


def test_one_test_leaves_nothing_to_the_next() -> None:
    tests = ["open('left', 'w').close()\nassert f(2) == 4", "assert f.__dict__.setdefault('n', 1) == 1"] * 2
    assert score("def f(x): return x * x", *tests) == 1.0


def test_the_folder_goes_with_a_checker_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score("def f(x): return 4")  # skips where there is no sandbox
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    task = Task("t", "?", verifier="python_tests", metadata={"tests": ["assert f(2) == 4"]})

    async def main() -> None:
        checker = Checker()
        try:
            assert await checker.check(task, ["def f(x): return 4"]) == [1.0]
            slow = {"seconds": 60.0, "test_s": 60.0}
            hanging = asyncio.create_task(checker.check(task, ["def f(x):\n  while True: pass"], settings=slow))
            await asyncio.to_thread(until, lambda: bool(os.listdir(tmp_path)))
            hanging.cancel()
            await asyncio.to_thread(until, lambda: not os.listdir(tmp_path))
        finally:
            await checker.close()

    asyncio.run(main())


def test_a_script_that_does_not_end_itself_is_no_verdict(tmp_path: Path) -> None:
    score("def f(x): return 4")  # skips where there is no sandbox
    for text, why in (
        ("print(1)", "before it was done"),
        ("print('x')", "not JSON"),
        ("while True: print('1234567')", "too much"),
        ("import time\nprint(1, flush=True)\ntime.sleep(60)", "before it was done"),
    ):
        (tmp_path / "script.py").write_text(text)
        with pytest.raises(NoSandbox, match=why):
            run(tmp_path / "script.py", None, Limits(seconds=0.5))


def test_macos_rules_deny_the_network_and_hide_homes() -> None:
    rules = profile("/private/tmp/x", "/Users/me/grpo/runner.py", ["/Users/me/venv"], allow_network=False)
    assert "(deny network*)" in rules and '(deny file-read-data (subpath "/Users")' in rules
    assert rules.index("(deny file-read-data") < rules.index('(allow file-read-data (subpath "/Users/me/venv")')
    assert "(deny network*)" not in profile("/private/tmp/x", "/x.py", [], allow_network=True)
