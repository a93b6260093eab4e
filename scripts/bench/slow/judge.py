"""A judge for benchmarks: it waits, and gives every rollout a mark that depends on its id alone."""

import asyncio

from grpo_ray.canonical import rng
from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group


async def judge(group: Group, oracle: Oracle, *, seconds: float = 0.5) -> list[Evaluation]:
    """Marks on the dimension `verified`, after `seconds`."""
    await asyncio.sleep(seconds)
    return [
        Evaluation(rollout.id, "slow", "verified", float(rng("slow", rollout.id).random() < 0.5), "drawn", "", True)
        for rollout in group.rollouts
    ]
