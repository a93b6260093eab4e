"""A judge that asks once for the whole group and marks every rollout alike: with what the reply says."""

from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group, Message


async def judge(group: Group, oracle: Oracle, *, words: str = "") -> list[Evaluation]:
    reply = await oracle.complete([Message("user", f"{words} {group.prompt.task.question}")], nth=0)
    return [
        Evaluation(rollout.id, "asking", "mood", float(reply.text), "because", reply.model)
        for rollout in group.rollouts
    ]
