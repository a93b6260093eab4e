"""A judge that knows orders, and says in its rationale which one it went by."""

from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group, Message


async def judge(group: Group, oracle: Oracle, *, order: int = 0) -> list[Evaluation]:
    reply = await oracle.complete([Message("user", str(order))], nth=0)
    return [Evaluation(one.id, "ordering", "mood", 0.5, f"order {order}", reply.model) for one in group.rollouts]
