"""A mutation that needs an endpoint, whatever state that is in."""

import random
from collections.abc import Sequence
from dataclasses import replace

from grpo_ray.protocols import Oracle
from grpo_ray.types import Message, Parent, Template


async def mutate(parents: Sequence[Parent], oracle: Oracle, rng: random.Random) -> Template:
    reply = await oracle.complete([Message("user", "better?")])
    return replace(parents[0].template, text=reply.text)
