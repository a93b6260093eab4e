"""A judge that fails on some groups."""

from grpo_ray.canonical import rng
from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group


async def judge(group: Group, oracle: Oracle, *, share: float = 0.5) -> list[Evaluation]:
    if rng("failing", group.id).random() < share:
        raise RuntimeError("this judge fell over")
    return [Evaluation(rollout.id, "failing", "mood", 1.0, "fine") for rollout in group.rollouts]
