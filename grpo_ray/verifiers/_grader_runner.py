"""Runs one `grade(sample, item)` inside the sandbox. Standard library only.

stdin: {"source", "sample", "item"} as JSON. stdout: {"score"} or {"fault"} as a JSON line, then null.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    asked = json.loads(sys.stdin.buffer.read())
    report = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    report.write(json.dumps(graded(asked)) + "\nnull\n")
    report.flush()
    os._exit(0)  # nothing that the script left behind may speak after it


def graded(asked: dict[str, Any]) -> dict[str, Any]:
    """What the script's `grade` says, as a float; else the fault, as a value."""
    try:
        world: dict[str, Any] = {"__name__": "grader"}
        exec(compile(asked["source"], "<python grader>", "exec"), world)
        return {"score": float(world["grade"](asked["sample"], asked["item"]))}
    except BaseException as fault:  # the boundary: whatever the script does, there is a line that says so
        return {"fault": f"{type(fault).__name__}: {fault}"[:300]}


if __name__ == "__main__":
    main()
