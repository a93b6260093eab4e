"""A judge with a bug in it, or that finds its settings wrong."""

from grpo_ray.errors import ConfigError
from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group


async def judge(group: Group, oracle: Oracle, *, bug: str = "type") -> list[Evaluation]:
    if bug == "settings":
        raise ConfigError("no such bug")
    length = {"type": lambda: len(3), "attribute": lambda: group.lenght, "name": lambda: lenght}[bug]()  # type: ignore  # noqa: F821
    return [Evaluation(rollout.id, "buggy", "length", length, "") for rollout in group.rollouts]
