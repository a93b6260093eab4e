"""A check by rule, in words too; the rationale never holds the reference answer, for mutations read it."""

from collections.abc import Callable, Mapping
from typing import Any

from grpo_ray.answers import final_answer
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.protocols import Oracle
from grpo_ray.registry import check_settings as check_named
from grpo_ray.registry import find, hint, names
from grpo_ray.types import Evaluation, Group, Task


async def judge(
    group: Group,
    oracle: Oracle,
    *,
    verifier: str | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str = "verifier",
    dimension: str = "verified",
) -> list[Evaluation]:
    """One evaluation a rollout on `dimension`, by `verifier` (None: the task's own) with these `settings` of its own.

    `verifier` is a file of verifiers/, of tasks/, or a dotted name. Missing where there is none, and where it gives no
    verdict: a check that fails or takes too long is not a wrong answer.
    """
    task = group.prompt.task
    texts = [rollout.text for rollout in group.rollouts]
    verdicts = await oracle.check(task, texts, verifier=verifier, settings=settings)
    say = _sayer(verifier or task.verifier, task, settings or {})
    return [
        Evaluation(rollout.id, name, dimension, verdict, say(verdict, rollout.text))
        for rollout, verdict in zip(group.rollouts, verdicts, strict=True)
    ]


def check_settings(*, verifier: str | None = None, settings: Mapping[str, Any] | None = None, **others: object) -> None:
    """Raise ConfigError for a verifier that nobody knows, or for settings that it refuses."""
    if verifier is None:
        return
    try:
        found(verifier)
    except MissingError as fault:
        raise ConfigError(str(fault)) from fault
    if folder(verifier) == "verifiers":
        check_named("verifiers", verifier, "verify", settings or {})
    elif settings:
        raise ConfigError(f"the verifier {verifier!r} comes with its tasks and takes no settings")


def found(verifier: str) -> Callable[..., float | None]:
    """`verify(answer, task, *, …settings)` of that name. Raises MissingError with the nearest known name."""
    return find(folder(verifier), verifier, "verify")


def folder(verifier: str) -> str:
    """verifiers or tasks: where that name is a file; dotted names count as verifiers. Raises MissingError."""
    if "." in verifier or verifier in names("verifiers"):
        return "verifiers"
    if verifier in names("tasks"):
        return "tasks"
    raise MissingError(f"no verifier is called {verifier!r}{hint(verifier, names('verifiers') + names('tasks'))}")


def _sayer(verifier: str | None, task: Task, settings: Mapping[str, Any]) -> Callable[[float | None, str], str]:
    """(verdict, text) → words: those of the verifier's own `rationale` (files of verifiers/ may have one), else ours."""
    if verifier is None:
        return lambda verdict, text: "this task names no verifier"
    own = _rationale(verifier)

    def say(verdict: float | None, text: str) -> str:
        if verdict is None:
            return "the check gave no verdict: it failed or took too long"
        return own(verdict, task, settings) if own else _words(verdict, text)

    return say


def _rationale(verifier: str) -> Callable[[float, Task, Mapping[str, Any]], str] | None:
    """Only of our own files: what tasks/ and dotted names hold may be heavy, and is imported by the checker alone."""
    if verifier not in names("verifiers"):
        return None
    try:
        return find("verifiers", verifier, "rationale")
    except MissingError:
        return None


def _words(verdict: float, text: str) -> str:
    said = final_answer(text)[:200]
    if verdict >= 1:
        return f"answered {said!r}, which matches the reference"
    return f"answered {said!r}, which does not match the reference" + (f" (in part: {verdict:g})" if verdict else "")
