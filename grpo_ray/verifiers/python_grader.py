"""OpenAI's python grader: somebody's `grade(sample, item)` over one answer, in the sandbox."""

from pathlib import Path

from grpo_ray.canonical import plain
from grpo_ray.errors import ConfigError
from grpo_ray.graders.placeholders import scope_of
from grpo_ray.sandbox import Limits, run
from grpo_ray.types import Task

RUNNER = Path(__file__).with_name("_grader_runner.py")


def verify(
    answer: str,
    task: Task,
    *,
    source: str,
    seconds: float = 5.0,
    memory_mb: int = 1024,
    processes: int = 16,
    allow_network: bool = False,
) -> float:
    """What `grade` of the script `source` says, as a float.

    `sample` has output_text, output_json, output_tools and choices; `item` the task's fields (see `scope_of`).
    `allow_network` also runs where the system knows no isolation. Raises ValueError with what the script raised,
    NoSandbox where it can't be cut off or is ended for its time or memory.

    A script that itself runs the answer (`eval(sample["output_text"])`) hands the answer its own score: what runs
    there can change what `grade` returns. Nothing outside the sandbox is within its reach.
    """
    scope = scope_of(task, answer)
    asked = plain({"source": source, "sample": scope["sample"], "item": scope["item"]})
    (said,) = run(RUNNER, asked, Limits(seconds, memory_mb, processes, allow_network=allow_network))
    if "fault" in said:
        raise ValueError(f"the python grader failed: {said['fault']}")
    return said["score"]


def check_settings(*, source: str, **others: object) -> None:
    """Raise ConfigError for a script that is no Python."""
    try:
        compile(source, "<python grader>", "exec")
    except (SyntaxError, ValueError) as fault:
        raise ConfigError(f"source is no Python: {fault}") from fault
