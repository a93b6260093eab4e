"""A judge whose code is wrong."""

from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group


async def judge(group: Group, oracle: Oracle) -> list[Evaluation]:
    raise TypeError("a bug")
