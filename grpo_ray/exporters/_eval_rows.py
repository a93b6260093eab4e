"""What both evaluation logs tell of a run: its scored groups, flattened, with means over what was scored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import fsum
from typing import Any

from grpo_ray.answers import VERIFIED
from grpo_ray.errors import ConfigError
from grpo_ray.types import Evaluation, Group, Lesson, Row, ScoredRollout


@dataclass(frozen=True, slots=True)
class Judged:
    """One rollout with all that was said of it."""

    group: Group
    scored: ScoredRollout
    advantage: float
    row: str | None
    """The id of the dataset row that it became."""

    @property
    def heard(self) -> tuple[Evaluation, ...]:
        """What counts towards the reward: without the audits."""
        return tuple(e for e in self.scored.evaluations if not e.audit)

    @property
    def stand_in(self) -> bool:
        return any(e.stand_in for e in self.scored.evaluations)

    @property
    def verdict(self) -> float | None:
        """The verifier's word, 0 to 1, or None."""
        return next((e.score for e in self.heard if e.dimension == VERIFIED and e.score is not None), None)

    @property
    def scores(self) -> dict[str, float]:
        """judge/dimension → score, of what is not missing; with `reward` where there is one."""
        found = {named(e): e.score for e in self.heard if e.score is not None}
        reward = self.scored.reward.value
        return found | ({} if reward is None else {"reward": reward})

    @property
    def missing(self) -> dict[str, str]:
        """judge/dimension → why there is no score."""
        return {named(e): e.rationale for e in self.heard if e.score is None}

    @property
    def about(self) -> dict[str, Any]:
        """Where it comes from, and whether a stand-in judged it."""
        prompt = self.group.prompt
        return {
            "task_id": prompt.task.id,
            "task_type": prompt.task.task_type,
            "template_id": prompt.template_id,
            "group_id": self.group.id,
            "rollout_id": self.scored.rollout.id,
            "adapter": self.group.adapter,
            "advantage": self.advantage,
            "row": self.row,
            "stand_in": self.stand_in,
        }


def judged(lessons: Sequence[Lesson], rows: Sequence[Row]) -> list[Judged]:
    """Every rollout, by (group, index). Raises ConfigError where there is none."""
    kept = {row.rollout_id: row.id for row in rows}
    found = [
        Judged(lesson.group.group, one, advantage, kept.get(one.rollout.id))
        for lesson in sorted(lessons, key=lambda lesson: lesson.group.group.id)
        for one, advantage in zip(lesson.group.rollouts, lesson.advantages, strict=True)
    ]
    if not found:
        raise ConfigError("there is nothing to export: no completion has been judged yet; take a step")
    return found


def named(evaluation: Evaluation) -> str:
    return f"{evaluation.judge}/{evaluation.dimension}"


def means(found: Sequence[Judged]) -> dict[str, tuple[float, int]]:
    """Name of a score → (its mean over those that have it, how many have it), by name."""
    values: dict[str, list[float]] = {}
    for one in found:
        for name, score in one.scores.items():
            values.setdefault(name, []).append(score)
    return {name: (fsum(some) / len(some), len(some)) for name, some in sorted(values.items())}


def accuracy(found: Sequence[Judged]) -> float | None:
    """The share of right answers among those with a verdict."""
    verdicts = [one.verdict for one in found if one.verdict is not None]
    return sum(verdict >= 1 for verdict in verdicts) / len(verdicts) if verdicts else None


def models(found: Sequence[Judged]) -> list[str]:
    """The models that answered, by name."""
    return sorted({one.group.model for one in found})


def messages(one: Judged) -> Iterator[Mapping[str, str]]:
    return ({"role": message.role, "content": message.content} for message in one.group.prompt.messages)


def moment(created: str | None) -> datetime:
    """When the log was written: now, or what the settings say (ISO 8601), in UTC. Raises ConfigError."""
    if created is None:
        return datetime.now(UTC)
    try:
        said = datetime.fromisoformat(created)
    except ValueError as fault:
        raise ConfigError(f"created is {created!r}: write a time such as 2026-01-31T12:00:00+00:00") from fault
    return said.replace(tzinfo=said.tzinfo or UTC).astimezone(UTC)
