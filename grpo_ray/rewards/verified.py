"""What the task's own verifier says."""

from collections.abc import Sequence
from statistics import fmean

from grpo_ray.types import Evaluation, Group, Rollout


def reward(
    rollout: Rollout, evaluations: Sequence[Evaluation], group: Group, *, dimension: str = "verified"
) -> float | None:
    """The mean score on `dimension`, 0 to 1; missing where nobody could check."""
    scores = [e.score for e in evaluations if e.dimension == dimension and e.score is not None]
    return fmean(scores) if scores else None


def working(rollout: Rollout, evaluations: Sequence[Evaluation], group: Group, *, dimension: str = "verified") -> str:
    """The mean behind the value, in words."""
    scores = [f"{e.judge} {e.score:g}" for e in evaluations if e.dimension == dimension and e.score is not None]
    return f"mean of {', '.join(scores)}" if scores else f"nobody scored {dimension!r}"
