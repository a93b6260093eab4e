"""A judge whose scores are no scores."""

from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group


async def judge(group: Group, oracle: Oracle, *, score: float = 11.0) -> list[Evaluation]:
    return [Evaluation(rollout.id, "raving", "mood", score, "off the scale") for rollout in group.rollouts]
