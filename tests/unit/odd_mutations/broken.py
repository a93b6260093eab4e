"""A mutation whose children use a placeholder that nobody fills."""

import random
from collections.abc import Sequence
from dataclasses import replace

from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template


async def mutate(parents: Sequence[Parent], oracle: Oracle, rng: random.Random) -> Template:
    return replace(parents[0].template, text=f"{{{{ no_such }}}} {rng.random()}")
