"""A judge that speaks of another group's rollout, or off the scale."""

from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group


async def judge(group: Group, oracle: Oracle, *, rollout: str = "", score: str = "0.5") -> list[Evaluation]:
    return [Evaluation(rollout or group.rollouts[0].id, "strange", "mood", float(score), "because")]
