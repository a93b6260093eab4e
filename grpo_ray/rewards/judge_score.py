"""What a judge says, over its dimensions."""

from collections.abc import Mapping, Sequence
from math import fsum

from grpo_ray.types import Evaluation, Group, Rollout


def reward(
    rollout: Rollout,
    evaluations: Sequence[Evaluation],
    group: Group,
    *,
    judge: str = "rubric",
    dimensions: Mapping[str, float] | None = None,
) -> float | None:
    """The mean score of `judge`, 0 to 1, over the dimensions it scored, weighted by `dimensions` (None: all alike).

    A dimension that `dimensions` leaves out counts nothing; missing where nothing that counts was scored.
    """
    heard = [(e.dimension, e.score) for e in evaluations if e.judge == judge and e.score is not None]
    weighed = [(score, 1.0 if dimensions is None else dimensions.get(name, 0.0)) for name, score in heard]
    total = fsum(weight for _, weight in weighed)
    return fsum(score * weight for score, weight in weighed) / total if total else None


def working(
    rollout: Rollout,
    evaluations: Sequence[Evaluation],
    group: Group,
    *,
    judge: str = "rubric",
    dimensions: Mapping[str, float] | None = None,
) -> str:
    """The weighted mean behind the value, in words."""
    heard = [(e.dimension, e.score) for e in evaluations if e.judge == judge and e.score is not None]
    weighed = [(name, score, 1.0 if dimensions is None else dimensions.get(name, 0.0)) for name, score in heard]
    terms = [f"{weight:g}·{score:.6g} ({name})" for name, score, weight in weighed if weight]
    total = fsum(weight for _, _, weight in weighed)
    return f"({' + '.join(terms)}) / {total:g}" if terms else f"{judge} scored nothing that counts"


def named(*, judge: str = "rubric", **_: object) -> list[tuple[str, str]]:
    """The judge that it reads."""
    return [("judge", judge)]
