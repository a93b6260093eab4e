"""A mutation that changes a name and nothing that is said."""

import random
from collections.abc import Sequence
from dataclasses import replace

from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template


async def mutate(parents: Sequence[Parent], oracle: Oracle, rng: random.Random) -> Template:
    return replace(parents[0].template, note="nothing new", version=9, id="mine")
