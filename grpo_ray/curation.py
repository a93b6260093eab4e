"""Lessons into dataset rows: what was good enough, once, in a split that depends on the task alone."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from grpo_ray.answers import VERIFIED
from grpo_ray.canonical import digest, short
from grpo_ray.types import Group, Lesson, Message, Row, ScoredRollout, TaskSet

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
SHARE = 0.05
"""Of the tasks, for validation and for test each."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt of which one was clearly better."""

    id: str
    split: SplitName
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float
    """The difference of their rewards."""
    task_id: str
    template_id: str
    chosen_rollout: str
    rejected_rollout: str
    stand_in: bool


def rows(
    lessons: Sequence[Lesson], tasks: TaskSet | None = None, *, min_reward: float = 0.5, per_task: int = 4
) -> list[Row]:
    """The best completions of each task, at most `per_task`, ordered by (task, reward from high to low, id).

    Kept are those with a reward of at least `min_reward` that no verifier found wrong; the same text for the same
    task once. With `tasks`, only rollouts on training tasks are taken. Row ids hash content, never the run.
    """
    good: dict[str, list[tuple[Group, ScoredRollout]]] = defaultdict(list)
    for group, one in _scored(lessons, tasks):
        if one.reward.value is not None and one.reward.value >= min_reward and not _wrong(one):
            good[group.prompt.task.id].append((group, one))
    splits = split(good)
    return [
        _row(group, one, splits[task])
        for task in sorted(good)
        for group, one in sorted(_once(good[task]), key=_best_first)[:per_task]
    ]


def pairs(lessons: Sequence[Lesson], tasks: TaskSet | None = None, *, margin: float = 0.2) -> list[Pair]:
    """The best against the worst completion of each group, where their rewards differ by at least `margin`.

    The better one must not have been found wrong by a verifier. Ordered by id; the same pair once.
    """
    by_group: dict[str, list[tuple[Group, ScoredRollout]]] = defaultdict(list)
    for group, one in _scored(lessons, tasks):
        if one.reward.value is not None:
            by_group[group.id].append((group, one))
    splits = split({group.prompt.task.id for of in by_group.values() for group, _ in of})
    found = [pair for of in by_group.values() if (pair := _pair(sorted(of, key=_best_first), splits, margin))]
    return sorted({pair.id: pair for pair in found}.values(), key=lambda pair: pair.id)


def split(tasks: Iterable[str]) -> dict[str, SplitName]:
    """Task id → split, by the id's hash: about 90 / 5 / 5 per cent, and the same in every run.

    Of three tasks or more none of the splits is empty (in few tasks, the hashes nearest to a border cross it);
    of fewer, all are for training.
    """
    order = sorted(set(tasks), key=lambda task: (_place(task), task))
    if len(order) < len(SPLITS):
        return dict.fromkeys(order, "train")
    low = max(1, sum(_place(task) < SHARE for task in order))
    high = max(low + 1, sum(_place(task) < 2 * SHARE for task in order))
    high = min(high, len(order) - 1)
    low = min(low, high - 1)
    return {task: "validation" if i < low else "test" if i < high else "train" for i, task in enumerate(order)}


def _scored(lessons: Sequence[Lesson], tasks: TaskSet | None) -> list[tuple[Group, ScoredRollout]]:
    allowed = None if tasks is None else {task.id for task in tasks.train}
    groups = [lesson.group for lesson in lessons]
    return [
        (scored.group, one)
        for scored in groups
        if allowed is None or scored.group.prompt.task.id in allowed
        for one in scored.rollouts
    ]


def _wrong(one: ScoredRollout) -> bool:
    """Whether a verifier spoke, and found anything but a right answer."""
    return any(e.dimension == VERIFIED and e.score is not None and e.score < 1 for e in one.evaluations)


def _best_first(found: tuple[Group, ScoredRollout]) -> tuple[float, str]:
    _, one = found
    return -(one.reward.value or 0.0), one.rollout.id


def _once(found: list[tuple[Group, ScoredRollout]]) -> list[tuple[Group, ScoredRollout]]:
    """Each text once, the best rewarded."""
    by_text: dict[str, tuple[Group, ScoredRollout]] = {}
    for group, one in sorted(found, key=_best_first):
        by_text.setdefault(one.rollout.text, (group, one))
    return list(by_text.values())


def _row(group: Group, one: ScoredRollout, of: SplitName) -> Row:
    prompt, task = group.prompt, group.prompt.task
    messages = (*prompt.messages, Message("assistant", one.rollout.text))
    return Row(
        id=short("row", task.id, messages),
        split=of,
        messages=messages,
        reward=float(one.reward.value or 0.0),
        task_id=task.id,
        task_type=task.task_type,
        template_id=prompt.template_id,
        rollout_id=one.rollout.id,
        adapter=group.adapter,
        stand_in=any(evaluation.stand_in for evaluation in one.evaluations),
    )


def _pair(ranked: list[tuple[Group, ScoredRollout]], splits: dict[str, SplitName], margin: float) -> Pair | None:
    (group, best), (_, worst) = ranked[0], ranked[-1]
    gap = float(best.reward.value or 0.0) - float(worst.reward.value or 0.0)
    if gap < margin or best.rollout.text == worst.rollout.text or _wrong(best):
        return None
    prompt = group.prompt
    return Pair(
        id=short("pair", prompt.task.id, prompt.messages, best.rollout.text, worst.rollout.text),
        split=splits[prompt.task.id],
        messages=prompt.messages,
        chosen=best.rollout.text,
        rejected=worst.rollout.text,
        margin=gap,
        task_id=prompt.task.id,
        template_id=prompt.template_id,
        chosen_rollout=best.rollout.id,
        rejected_rollout=worst.rollout.id,
        stand_in=any(e.stand_in for one in (best, worst) for e in one.evaluations),
    )


def _place(task: str) -> float:
    """A number in [0, 1) that depends on the task's id alone."""
    return int(digest(["split", task])[:12], 16) / 16**12
