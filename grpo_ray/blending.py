"""Parts into a reward: what each counts as under caps and gates, and the weighted mean of what is there."""

import math
from collections.abc import Sequence

from grpo_ray.recipe import RewardSpec
from grpo_ray.types import RewardPart

Values = tuple[float | None, ...]
"""One value a part, in the recipe's order of rewards; None: it doesn't count."""


def counted(rows: Sequence[Sequence[RewardPart]], specs: Sequence[RewardSpec]) -> list[Values]:
    """What the parts of each rollout of one group count as: above its cap the cap, behind a closed gate 0.

    A gate closes where its part's raw value is below it; every other part then counts as 0, a missing one too, for
    it would whatever it was. A gate without any value in the group (nobody can check such a task) gates nothing. Where
    it has values, a rollout without one has no reward at all: it might have been gated, and to let it pass would
    pay for completions that break a verifier.
    """
    gates = [
        i for i, spec in enumerate(specs) if spec.gate is not None and any(row[i].value is not None for row in rows)
    ]
    return [_counted(row, specs, gates) for row in rows]


def _counted(row: Sequence[RewardPart], specs: Sequence[RewardSpec], gates: Sequence[int]) -> Values:
    if any(row[gate].value is None for gate in gates):
        return (None,) * len(row)
    shut = [gate for gate in gates if is_shut(row[gate].value, specs[gate])]
    pairs = enumerate(zip(row, specs, strict=True))
    return tuple(0.0 if set(shut) - {i} else capped(part.value, spec.cap) for i, (part, spec) in pairs)


def is_shut(value: float | None, spec: RewardSpec) -> bool:
    """Whether a raw value closes the gate of its own spec."""
    return value is not None and spec.gate is not None and value < spec.gate


def capped(value: float | None, cap: float | None) -> float | None:
    """`value`, at most `cap`; each None: no value, no cap."""
    return value if value is None or cap is None else min(value, cap)


def blend(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Σ w·v / Σ w over the values that are there; None where none is, or their weights come to 0."""
    present = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    total = math.fsum(weight for _, weight in present)
    return math.fsum(value * weight for value, weight in present) / total if total else None
