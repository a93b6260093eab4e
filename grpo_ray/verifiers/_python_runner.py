"""Runs Python code and its tests inside the sandbox, each test in a process of its own. Standard library only.

stdin: {"code", "tests", "entry_point", "test_s", "seconds"} as JSON. stdout: a JSON line a test, then null.
The runner never runs the code itself. A test's process tells it that a test has passed by a nonce made for this one
test, which the code is not told; so neither an exit, nor a print, nor a patched builtin passes a test.
"""

import ast
import ctypes
import json
import os
import resource
import secrets
import select
import signal
import sys
import time
from types import CodeType
from typing import Any, NoReturn

_DUMPABLE = 4
"""Of prctl(2)."""
_STRANGE = f"strange_{secrets.token_hex(8)}"
"""The name of the stranger that `_Guarded` compares with."""


def main() -> None:
    asked = json.loads(sys.stdin.buffer.read())
    report = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DUMPABLE, 0)  # what the code starts can't look into this process
    until = time.monotonic() + asked["seconds"]
    for test in asked["tests"]:
        seconds = min(asked["test_s"], until - time.monotonic())
        word = (
            attempt(asked["code"], test, asked["entry_point"], report.fileno(), seconds) if seconds > 0 else "no time"
        )
        report.write(json.dumps(word) + "\n")
        report.flush()
    report.write("null\n")
    report.flush()


def attempt(code: str, test: str, entry_point: str | None, report: int, seconds: float) -> str:
    """ "passed", "failed" or "took too long"; whatever the test started is gone afterwards."""
    nonce = secrets.token_hex(16).encode()
    heard, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(heard)
        os.close(report)
        _try(code, test, entry_point, tell, nonce)
    os.close(tell)
    said, late = _hear(heard, len(nonce), seconds)
    os.close(heard)
    _end(child)
    return "passed" if said == nonce else "took too long" if late else "failed"


def _hear(heard: int, length: int, seconds: float) -> tuple[bytes, bool]:
    """Up to `length` bytes, and whether time ran out first."""
    said, until = b"", time.monotonic() + seconds
    while len(said) < length:
        if not select.select([heard], [], [], max(0.0, until - time.monotonic()))[0]:
            return said, True
        part = os.read(heard, length - len(said))
        if not part:
            break
        said += part
    return said, False


def _end(child: int) -> None:
    """The test's process and its group; as process 1 of a namespace, every other process in it."""
    for process in (child, -child, *([-1] if os.getpid() == 1 else [])):
        try:
            os.kill(process, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    while True:
        try:
            os.waitpid(-1 if os.getpid() == 1 else child, 0)
        except ChildProcessError:
            return


def _try(code: str, test: str, entry_point: str | None, tell: int, nonce: bytes) -> NoReturn:
    write, leave, run = os.write, os._exit, exec  # before the code can put others in their place
    try:
        os.setsid()
        if os.getppid() != 1:
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # outside a namespace nothing ends what leaves the group
        checks = _compiled(test, entry_point)
        world: dict[str, Any] = {"__name__": "answer"}
        run(compile(code, "<answer>", "exec"), world)
        world |= {_STRANGE: object()}
        run(checks, world)
        write(tell, nonce)
    except BaseException:  # the boundary: whatever the code or a test does, this process only ever ends
        leave(1)
    leave(0)


def _compiled(test: str, entry_point: str | None) -> CodeType:
    """The test's statements, then calls of its `test…` functions, and of `check(entry_point)` where it has that."""
    tree = ast.fix_missing_locations(_Guarded().visit(ast.parse(test)))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    calls = [f"{name}()" for name in functions if name.startswith("test")]
    calls += [f"check({entry_point})"] if "check" in functions and entry_point else []
    tree.body += ast.parse("\n".join(calls)).body
    return compile(tree, "<test>", "exec")


class _Guarded(ast.NodeTransformer):
    """Makes of `assert a == b` that neither equals a stranger too: what equals everything passes no test."""

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        equal = node.test
        if not (isinstance(equal, ast.Compare) and len(equal.ops) == 1 and isinstance(equal.ops[0], ast.Eq)):
            return node
        return ast.copy_location(ast.Assert(_alike([equal.left, equal.comparators[0]]), node.msg), node)


def _alike(sides: list[ast.expr]) -> ast.expr:
    """`(lambda a, b: a == b and not a == strange and not b == strange)(left, right)`."""
    text = f"(lambda a, b: a == b and not (a == {_STRANGE}) and not (b == {_STRANGE}))(0, 0)"
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    call.args = sides
    return call


if __name__ == "__main__":
    main()
