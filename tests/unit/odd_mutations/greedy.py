"""A mutation whose children read metadata that their parents never asked for."""

import random
from collections.abc import Sequence
from dataclasses import replace

from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template


async def mutate(parents: Sequence[Parent], oracle: Oracle, rng: random.Random) -> Template:
    text = parents[0].template.text + " {{ metadata.answer | default('') }}"
    return replace(parents[0].template, text=text)
