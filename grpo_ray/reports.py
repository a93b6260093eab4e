"""What was saved, in numbers: the metrics of a step, rewards over steps, the best templates. All plain."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from grpo_ray.answers import VERIFIED
from grpo_ray.types import Evaluation, Lesson, Population, ScoredRollout


def step_report(step: int, lessons: Sequence[Lesson]) -> dict[str, Any]:
    """The metrics of one step. Means are over what is there, None where nothing is; shares lie in 0 … 1.

    `zero_variance_groups`: the share of groups whose advantages are all 0, which teach nothing.
    `verified`: the share of checked rollouts with full marks. `missing`: (judge, dimension) → evaluations without a
    score. `tokens`: a completion's mean length; `truncated`: the share cut off at max_tokens.
    """
    scored = [one for lesson in lessons for one in lesson.group.rollouts]
    evaluations = [evaluation for one in scored for evaluation in one.evaluations]
    marks = [e.score == 1.0 for e in evaluations if e.dimension == VERIFIED and e.score is not None]
    return {
        "step": step,
        "groups": len(lessons),
        "rollouts": len(scored),
        "mean_reward": _mean(_rewards(scored)),
        "rewards_missing": sum(one.reward.value is None for one in scored),
        "verified": _mean(marks),
        "zero_variance_groups": _mean([not any(lesson.advantages) for lesson in lessons]),
        "tokens": _mean([len(one.rollout.token_ids) for one in scored]),
        "truncated": _mean([one.rollout.finish_reason == "length" for one in scored]),
        "missing": _missing(evaluations),
        "by_template": _by(lessons, lambda lesson: lesson.group.group.prompt.template_id),
        "by_task_type": _by(lessons, lambda lesson: lesson.group.group.prompt.task.task_type),
        "parts": _parts(scored),
    }


def reward_per_step(steps: Iterable[Sequence[Lesson]]) -> list[float | None]:
    """The mean reward of each step's rollouts, in the steps' order; None where no rollout has one."""
    return [_mean(_rewards(one for lesson in lessons for one in lesson.group.rollouts)) for lessons in steps]


TEMPLATE_KEYS = (
    *("id", "task_type", "complexity", "version", "mutation", "parents", "settings", "text", "system", "note"),
    *("stand_in", "fitness", "trials"),
)
"""What a result says of a template; fitness and trials are None for one that was retired."""


def best_templates(population: Population, limit: int | None = 5) -> list[dict[str, Any]]:
    """The fittest living templates, best first; None for `limit` shows all."""
    ranked = sorted(population.members, key=lambda member: (-member.fitness, member.template.id))
    return [
        {key: getattr(member.template, key) for key in TEMPLATE_KEYS[:-2]}
        | {"parents": list(member.template.parents), "settings": dict(member.template.settings)}
        | {"fitness": round(member.fitness, 6), "trials": round(member.trials, 3)}
        for member in ranked[:limit]
    ]


def _rewards(scored: Iterable[ScoredRollout]) -> list[float]:
    return [one.reward.value for one in scored if one.reward.value is not None]


def _missing(evaluations: Iterable[Evaluation]) -> dict[str, int]:
    """`judge/dimension` → how many evaluations have no score."""
    found: dict[str, int] = defaultdict(int)
    for evaluation in evaluations:
        if evaluation.score is None:
            found[f"{evaluation.judge}/{evaluation.dimension}"] += 1
    return dict(sorted(found.items()))


def _by(lessons: Sequence[Lesson], key: Callable[[Lesson], str]) -> dict[str, float | None]:
    """What `key` says of a lesson → the mean reward there."""
    found: dict[str, list[float]] = defaultdict(list)
    for lesson in lessons:
        found[key(lesson)] += _rewards(lesson.group.rollouts)
    return {name: _mean(values) for name, values in sorted(found.items())}


def _parts(scored: Iterable[ScoredRollout]) -> dict[str, float | None]:
    """Name of a reward's part → its mean."""
    found: dict[str, list[float]] = defaultdict(list)
    for part in (part for one in scored for part in one.reward.parts):
        found[part.name] += [] if part.value is None else [part.value]
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 6) if values else None
