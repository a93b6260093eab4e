"""The answer's Python code against unit tests, in a sandbox: no network, little memory and time, a folder of its own."""

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_ray.answers import spoken
from grpo_ray.errors import ConfigError
from grpo_ray.sandbox import Limits, run
from grpo_ray.types import Task

RUNNER = Path(__file__).with_name("_python_runner.py")
_FENCED = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "py", "python3", "")
_DEFINES = re.compile(r"^(?:async def|def|class) ", re.MULTILINE)


def verify(
    answer: str,
    task: Task,
    *,
    tests: str | Sequence[str] | None = None,
    entry_point: str | None = None,
    all_or_nothing: bool = False,
    seconds: float = 8.0,
    test_s: float = 2.0,
    memory_mb: int = 1024,
    processes: int = 16,
    allow_network: bool = False,
) -> float:
    """The share of tests that pass (`all_or_nothing`: 1 for all of them, else 0); 0 for an answer without code.

    The tests are the setting's, else `metadata["tests"]`: a list, one text a test, or one text that is cut at its
    `assert` statements and `test…` functions. A test passes by coming to its end: statements, then its `test…`
    functions, then `check(entry_point)` where it defines `check` (as HumanEval's do; `metadata["entry_point"]`).
    Each runs the code anew in a process of its own for at most `test_s`, all of them for `seconds`; a test that runs
    out of time, memory or processes has failed. `allow_network` also runs where the system knows no isolation.

    Raises ValueError without tests, NoSandbox where the code can't be cut off or something else ended it.

    What a run is safe from is said in `sandbox.py`. What a score is safe from: exits, prints, patched builtins,
    objects that equal everything in `assert a == b`, tests' processes that meddle with each other or the runner
    (on macOS: not with each other). What remains: code and tests share one interpreter, so code that is written
    against this very runner can search its own process for the nonce, or for the tests and what they expect.
    """
    wanted = all_tests(task, tests)
    if not wanted:
        raise ValueError(f"task {task.id} has no metadata 'tests', and the settings have none")
    point = entry_point or task.metadata.get("entry_point")
    code = code_of(answer)
    if not code.strip():
        return 0.0
    limits = Limits(seconds + 1, memory_mb, processes, allow_network=allow_network)
    asked = {"code": code, "tests": wanted, "entry_point": point, "test_s": test_s, "seconds": seconds}
    words = run(RUNNER, asked, limits)
    passed = words.count("passed")
    return float(passed == len(wanted)) if all_or_nothing else passed / len(wanted)


def check_settings(
    *,
    tests: str | Sequence[str] | None = None,
    entry_point: str | None = None,
    seconds: float = 8.0,
    test_s: float = 2.0,
    memory_mb: int = 1024,
    processes: int = 16,
    **others: object,
) -> None:
    """Raise ConfigError for tests that are no Python, a name that is none, or limits that let nothing run."""
    least = {
        "seconds": (seconds, 0.1),
        "test_s": (test_s, 0.1),
        "memory_mb": (memory_mb, 64),
        "processes": (processes, 4),
    }
    problems = [
        f"{name} is {value:g}; at least {low:g} is needed" for name, (value, low) in least.items() if value < low
    ]
    if entry_point is not None and not entry_point.isidentifier():
        problems.append(f"entry_point {entry_point!r} is no name of a function")
    try:
        for test in [tests] if isinstance(tests, str) else tests or ():
            ast.parse(test)
    except (SyntaxError, ValueError) as fault:
        problems.append(f"a test is not Python: {fault}")
    if problems:
        raise ConfigError("\n".join(problems))


def rationale(score: float, task: Task, settings: Mapping[str, Any]) -> str:
    """In words, without the tests themselves: "3 of 4 tests pass"."""
    count = len(all_tests(task, settings.get("tests")))
    if settings.get("all_or_nothing"):
        return f"all {count} tests pass" if score else f"not all of the {count} tests pass"
    return f"{round(score * count)} of {count} tests pass"


def all_tests(task: Task, tests: str | Sequence[str] | None) -> list[str]:
    """The tests one by one, each a text of Python. Raises ValueError for a text that is none."""
    given = tests if tests is not None else task.metadata.get("tests", ())
    try:
        return split(given) if isinstance(given, str) else [str(test) for test in given]
    except SyntaxError as fault:
        raise ValueError(f"the tests of task {task.id} are not Python: {fault}") from fault


def split(text: str) -> list[str]:
    """One text a top-level `assert` or `test…` function, with what stands before it and is no test; else all as one."""
    before: list[ast.stmt] = []
    found: list[str] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assert) or (isinstance(node, ast.FunctionDef) and node.name.startswith("test")):
            found.append(ast.unparse(ast.Module([*before, node], [])))
        else:
            before.append(node)
    return found or ([text] if before else [])


def code_of(answer: str) -> str:
    """The last fenced block of Python that defines something, else the last; unfenced, all that is said, if it parses."""
    said = spoken(answer)
    blocks = [text for language, text in _FENCED.findall(said) if language.lower() in _PYTHON]
    if blocks:
        return next((block for block in reversed(blocks) if _DEFINES.search(block)), blocks[-1])
    try:
        ast.parse(said)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return said
