"""What judges said in a run, as columns: one row a rollout, NaN where there is no mark. Made from saved nouns alone."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_ray.answers import VERIFIED
from grpo_ray.recipe import Recipe
from grpo_ray.trust.alarms import HELD, Dimension, failed
from grpo_ray.types import Evaluation, ScoredGroup, ScoredRollout

Array = NDArray[Any]
Key = tuple[str, str, str]
"""(judge, dimension, audit); audit is "" for the mark that counts, or would if its dimension were not held."""
PERSON = "person:"
"""What the name of a judge who is a person begins with; the person's own follows."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """The rollouts of some steps. Every array has one value a rollout."""

    rollouts: tuple[ScoredRollout, ...]
    steps: Array
    groups: Array
    """The place of each rollout's group, from 0."""
    verified: Array
    """The verifiers' mean verdict."""
    labels: Array
    """People's mean mark."""
    lengths: Array
    """Log characters, of an empty answer 0."""
    style: Array
    """Mean log-probability a token under the bare model that sampled it."""
    rewards: Array
    marks: Mapping[Key, Array]
    said: Mapping[str, tuple[tuple[int, Evaluation], ...]]
    """Judge → (row, evaluation), in the order they were saved."""

    @property
    def model_judges(self) -> tuple[str, ...]:
        """Those that asked a model, by name."""
        return tuple(sorted(judge for judge, some in self.said.items() if any(e.model for _, e in some)))

    @property
    def silent_judges(self) -> tuple[str, ...]:
        """Those that failed on everything, so that nobody knows whether they ask a model; by name."""
        return tuple(
            sorted(
                judge
                for judge, some in self.said.items()
                if judge not in self.model_judges
                and all(e.score is None for _, e in some)
                and any(failed(e) for _, e in some)
            )
        )

    def dimensions(self, judge: str) -> tuple[str, ...]:
        """What a judge spoke of where it counts, or would; one that failed as a whole spoke of "all", which is none."""
        spoken = {e.dimension for _, e in self.said[judge] if e.audit in ("", HELD)}
        return tuple(sorted(name for name in spoken if name != "all" or (judge, name, "") in self.marks))

    def column(self, judge: str, dimension: str, audit: str = "") -> Array:
        """A judge's marks on one dimension."""
        return self.marks.get((judge, dimension, audit), np.full(len(self.rollouts), np.nan))

    def audits(self, judge: str, dimension: str) -> tuple[str, ...]:
        """How the dimension was judged again."""
        return tuple(sorted(audit for who, name, audit in self.marks if (who, name) == (judge, dimension) and audit))

    def mean(self, judge: str) -> Array:
        """A judge's mean mark over its dimensions; NaN where it gave none."""
        return mean_of([self.column(judge, name) for name in self.dimensions(judge)], len(self.rollouts))


def sheet(steps: Mapping[int, Sequence[ScoredGroup]]) -> Sheet:
    """Step → its scored groups, as columns; the rows go by step, then as the groups do."""
    found = [(step, group, one) for step in sorted(steps) for group in steps[step] for one in group.rollouts]
    places: dict[tuple[int, str], int] = {}
    groups = [places.setdefault((step, group.group.id), len(places)) for step, group, _ in found]
    rollouts = tuple(one for _, _, one in found)
    marks = _marks(rollouts)
    return Sheet(
        rollouts=rollouts,
        steps=np.array([step for step, _, _ in found], int),
        groups=np.array(groups, int),
        verified=_mean_where(marks, len(rollouts), lambda key: is_verdict(key[:2]) and not key[2]),
        labels=_mean_where(marks, len(rollouts), lambda key: key[0].startswith(PERSON) and not key[2]),
        lengths=np.array([math.log(max(1, len(one.rollout.text))) for one in rollouts]),
        style=np.array([_style(one) for one in rollouts]),
        rewards=np.array([math.nan if one.reward.value is None else one.reward.value for one in rollouts]),
        marks=marks,
        said=_said(rollouts),
    )


def is_verdict(key: Dimension) -> bool:
    """Whether a verifier spoke there, not a person."""
    return key[1] == VERIFIED and not key[0].startswith(PERSON)


def mean_of(columns: Sequence[Array], rows: int) -> Array:
    """The mean of what is there in each row; NaN where nothing is."""
    if not columns:
        return np.full(rows, np.nan)
    table = np.array(columns)
    counts = np.isfinite(table).sum(axis=0)
    return np.divide(np.nansum(table, axis=0), counts, out=np.full(rows, np.nan), where=counts > 0)


def places_in_request(found: Sheet, judge: str, recipe: Recipe) -> Array | None:
    """Where each rollout's text stood among those that shared its request, from 0; None where each had its own.

    Told by the rubric's `answers_per_call`: the different texts of a group share requests in the rollouts' order.
    """
    specs = [one for one in recipe.judges if one.name == "rubric" and one.settings.get("name", "rubric") == judge]
    asked = [one.settings for one in specs if not one.settings.get("order")]
    if len(asked) != 1 or (size := int(asked[0].get("answers_per_call", 1))) < 2:
        return None
    seen: dict[int, dict[str, int]] = defaultdict(dict)
    places = []
    for group, one in zip(found.groups, found.rollouts, strict=True):
        texts = seen[int(group)]
        places.append(texts.setdefault(one.rollout.text, len(texts)) % size)
    return np.array(places, float)


def _marks(rollouts: Sequence[ScoredRollout]) -> dict[Key, Array]:
    marks: dict[Key, Array] = defaultdict(lambda: np.full(len(rollouts), np.nan))
    for row, one in enumerate(rollouts):
        for e in one.evaluations:
            if e.score is not None:
                marks[e.judge, e.dimension, "" if e.audit == HELD else e.audit][row] = e.score
    return dict(sorted(marks.items()))


def _mean_where(marks: Mapping[Key, Array], rows: int, wanted: Any) -> Array:
    return mean_of([column for key, column in marks.items() if wanted(key)], rows)


def _said(rollouts: Sequence[ScoredRollout]) -> dict[str, tuple[tuple[int, Evaluation], ...]]:
    said: dict[str, list[tuple[int, Evaluation]]] = defaultdict(list)
    for row, one in enumerate(rollouts):
        for e in one.evaluations:
            said[e.judge].append((row, e))
    return {judge: tuple(some) for judge, some in sorted(said.items())}


def _style(one: ScoredRollout) -> float:
    tokens = one.rollout.model_logprobs
    return math.fsum(tokens) / len(tokens) if tokens else math.nan
