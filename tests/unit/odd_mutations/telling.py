"""A mutation that writes down, in the child's note, what it was given; and claims things that are not its to say."""

import random
from collections.abc import Sequence
from dataclasses import replace

from grpo_ray.canonical import canonical
from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template


async def mutate(parents: Sequence[Parent], oracle: Oracle, rng: random.Random) -> Template:
    text = f"{parents[0].template.text} Number {rng.randrange(10**6)}."
    claims = {"id": "boss", "version": 99, "parents": ("nobody",), "mutation": "seed", "task_type": "other"}
    return replace(parents[0].template, text=text, note=canonical(list(parents)), **claims)
