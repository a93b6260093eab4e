"""Whether a completion is written so that its answer can be found."""

from collections.abc import Sequence

from grpo_ray.answers import marked_answer
from grpo_ray.types import Evaluation, Group, Rollout


def reward(
    rollout: Rollout, evaluations: Sequence[Evaluation], group: Group, *, finish_share: float = 0.5
) -> float | None:
    """1 for an answer after `Answer:` in a completion that came to its own end.

    `finish_share` of it is for the end, the rest for the answer.
    """
    marked, ended = bool(marked_answer(rollout.text)), rollout.finish_reason == "stop"
    return (1 - finish_share) * marked + finish_share * ended


def working(rollout: Rollout, evaluations: Sequence[Evaluation], group: Group, *, finish_share: float = 0.5) -> str:
    """The sum behind the value, in words."""
    marked, ended = bool(marked_answer(rollout.text)), rollout.finish_reason == "stop"
    answer, end = "an answer" if marked else "no answer", "came to its end" if ended else "cut off"
    return f"{1 - finish_share:g}·{marked:d} ({answer}) + {finish_share:g}·{ended:d} ({end})"
