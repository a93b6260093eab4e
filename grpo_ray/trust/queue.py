"""The review queue: what a person's label would tell most about. Pure: saved nouns in, an ordered list out.

Value is doubt × influence. Doubt adds up what speaks against the marks of a rollout, each from 0 to 1: panel members
or audits that lie apart, a verifier that says otherwise, a dimension that is held, top marks by a judge that canaries
fooled; where nobody could check, a little (UNCHECKED). Influence grows with the size of the advantage, from ½ to 1.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from grpo_ray.errors import ConfigError
from grpo_ray.trust.alarms import HELD, Review
from grpo_ray.trust.canaries import PASSING
from grpo_ray.trust.sheet import PERSON, is_verdict
from grpo_ray.types import Evaluation, Lesson, ScoredRollout

APART = 0.25
"""Marks that differ by no more than this (one anchor of five) agree."""
HELD_DOUBT = 0.5
FOOLED_DOUBT = 0.5
UNCHECKED = 0.05
STRONG = 1.0
"""An advantage of this size or more is worth a word."""
Doubt = tuple[float, str]


@dataclass(frozen=True, slots=True)
class Item:
    """A rollout for a person to look at."""

    rollout_id: str
    group: str
    step: int
    why: tuple[str, ...]
    """The reasons in words, the weightiest first; judges' names in them are untrusted."""
    value: float


def queue(steps: Mapping[int, Sequence[Lesson]], review: Review, limit: int = 20) -> tuple[Item, ...]:
    """The `limit` rollouts whose label is worth most, best first; ties go by step and id.

    `steps`: step → its lessons. Left out are those that a person labelled, those that no model judged, and, of equal
    answers to one task, all but the most valuable.
    """
    fooled = {alarm.judge for alarm in review.alarms if alarm.kind == "canaries"}
    found: dict[tuple[str, str], Item] = {}
    labelled: set[tuple[str, str]] = set()
    for step in sorted(steps):
        for lesson in steps[step]:
            task = lesson.group.group.prompt.task.id
            for one, advantage in zip(lesson.group.rollouts, lesson.advantages, strict=True):
                key = (task, one.rollout.text)
                if any(e.judge.startswith(PERSON) for e in one.evaluations):
                    labelled.add(key)
                elif (item := _item(one, advantage, lesson.group.group.id, step, review, fooled)) is not None:
                    found[key] = min(found.get(key, item), item, key=_order)
    return tuple(sorted((item for key, item in found.items() if key not in labelled), key=_order)[: max(0, limit)])


def labelled(rollout_id: str, dimension: str, score: float, who: str, words: str = "") -> Evaluation:
    """A person's label as an evaluation, 0 (worst) to 1 (best). Raises ConfigError for what is no label."""
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise ConfigError(f"a label of {score}; labels go from 0 (worst) to 1 (best)")
    if not who.strip() or not dimension.strip():
        raise ConfigError("a label needs the name of who gives it and the dimension that it is on")
    return Evaluation(rollout_id, f"{PERSON}{who.strip()}", dimension.strip(), float(score), words)


def _order(item: Item) -> tuple[float, int, str]:
    return -item.value, item.step, item.rollout_id


def _item(one: ScoredRollout, advantage: float, group: str, step: int, review: Review, fooled: set[str]) -> Item | None:
    doubts = sorted(_doubts(one, review, fooled), key=lambda doubt: (-doubt[0], doubt[1]))
    if not doubts:
        return None
    strength = abs(advantage) / (1 + abs(advantage))
    pull = f"an advantage of {advantage:+.2f}: it pulls hard on the weights"
    why = (*(words for _, words in doubts), *([pull] if abs(advantage) >= STRONG else []))
    return Item(one.rollout.id, group, step, why, math.fsum(size for size, _ in doubts) * (1 + strength) / 2)


def _doubts(one: ScoredRollout, review: Review, fooled: set[str]) -> list[Doubt]:
    by_model = [e for e in one.evaluations if e.model and e.score is not None]
    if not by_model:
        return []
    found = [*_panels(by_model), *_audits(by_model), *_held(by_model, review)]
    for judge, mean in sorted(_means(by_model).items()):
        if judge in fooled and mean >= PASSING:
            found.append((FOOLED_DOUBT * mean, f"{judge} gives it {mean:.2f}, and canaries have fooled {judge}"))
    verdicts = [e.score for e in one.evaluations if is_verdict((e.judge, e.dimension)) and e.score is not None]
    if verdicts:
        return [*found, *_verdict(fmean(verdicts), by_model)]
    return [*found, (UNCHECKED, "nobody could check it but a model")]


def _means(said: Iterable[Evaluation]) -> dict[str, float]:
    """Judge → its mean mark, held dimensions too, audits not."""
    marks: dict[str, list[float]] = defaultdict(list)
    for e in said:
        if e.audit in ("", HELD) and e.score is not None:
            marks[e.judge].append(e.score)
    return {judge: fmean(scores) for judge, scores in marks.items()}


def _panels(said: Iterable[Evaluation]) -> Iterable[Doubt]:
    """Members of a panel (judges called panel/member) that lie apart on a dimension."""
    heard: dict[tuple[str, str], list[float]] = defaultdict(list)
    for e in said:
        if "/" in e.judge and e.audit in ("", HELD) and e.score is not None:
            heard[e.judge.rpartition("/")[0], e.dimension].append(e.score)
    for (panel, dimension), scores in sorted(heard.items()):
        if (apart := max(scores) - min(scores)) > APART:
            yield apart, f"members of {panel} lie {apart:.2f} apart on {dimension}"


def _audits(said: Iterable[Evaluation]) -> Iterable[Doubt]:
    """A judge that gave another mark when it judged again: the widest gap of each dimension."""
    heard: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for e in said:
        if e.score is not None:
            heard[e.judge, e.dimension]["" if e.audit == HELD else e.audit] = e.score
    for (judge, dimension), marks in sorted(heard.items()):
        gaps = {audit: abs(mark - marks[""]) for audit, mark in marks.items() if audit and "" in marks}
        if gaps and (apart := max(gaps.values())) > APART:
            audit = min(name for name, gap in gaps.items() if gap == apart)
            words = f"{judge} gave {marks['']:.2f} on {dimension}, judged again ({audit}) {marks[audit]:.2f}"
            yield apart, words


def _held(said: Iterable[Evaluation], review: Review) -> Iterable[Doubt]:
    untrusted = {
        (e.judge, e.dimension)
        for e in said
        if e.audit == HELD or (not e.audit and (e.judge, e.dimension) in review.held)
    }
    for judge, dimension in sorted(untrusted):
        yield HELD_DOUBT, f"{judge} is not trusted on {dimension}"


def _verdict(verdict: float, said: Iterable[Evaluation]) -> Iterable[Doubt]:
    """Judges whose mean mark says the opposite of what verifiers say."""
    for judge, mean in sorted(_means(said).items()):
        if (gap := abs(mean - verdict)) > 0.5:
            yield gap, f"{judge} gives it {mean:.2f}, verifiers {verdict:.2f}"
