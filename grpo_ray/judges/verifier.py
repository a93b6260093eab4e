"""The task's own check, in words too; the rationale never holds the reference answer, for mutations read it."""

from grpo_ray.answers import final_answer
from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group

DIMENSION = "verified"


async def judge(group: Group, oracle: Oracle, *, name: str = "verifier") -> list[Evaluation]:
    """One evaluation a rollout on the dimension `verified`; missing where the task names no verifier."""
    task = group.prompt.task
    verdicts = await oracle.check(task, [rollout.text for rollout in group.rollouts])
    return [
        Evaluation(rollout.id, name, DIMENSION, verdict, _words(verdict, rollout.text, bool(task.verifier)))
        for rollout, verdict in zip(group.rollouts, verdicts, strict=True)
    ]


def _words(verdict: float | None, text: str, checkable: bool) -> str:
    if not checkable:
        return "this task names no verifier"
    if verdict is None:
        return "the check gave no verdict: it failed or took too long"
    said = final_answer(text)[:200]
    if verdict >= 1:
        return f"answered {said!r}, which matches the reference"
    return f"answered {said!r}, which does not match the reference" + (f" (in part: {verdict:g})" if verdict else "")
