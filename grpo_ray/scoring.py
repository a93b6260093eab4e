"""Evaluations → rewards: parts by name, blended by weight over those that are not missing."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpo_ray.errors import ConfigError
from grpo_ray.recipe import Recipe, Weighted
from grpo_ray.registry import find
from grpo_ray.types import Evaluation, Group, Reward, RewardPart, Rollout, ScoredGroup, ScoredRollout

TRL = ("prompts", "completions")
"""The arguments by which a TRL-style reward function is known: f(prompts, completions, completion_ids, **kwargs)."""


def score(group: Group, evaluations: Sequence[Evaluation], recipe: Recipe) -> ScoredGroup:
    """Every rollout with its evaluations and its reward. The same arguments make the same rewards, now or later."""
    heard = {rollout.id: tuple(e for e in evaluations if e.rollout_id == rollout.id) for rollout in group.rollouts}
    columns = [(spec, values_of(spec, group, heard)) for spec in recipe.rewards]
    return ScoredGroup(
        group,
        tuple(
            ScoredRollout(
                rollout,
                heard[rollout.id],
                blend(tuple(RewardPart(spec.name, values[i], spec.weight) for spec, values in columns)),
            )
            for i, rollout in enumerate(group.rollouts)
        ),
    )


def blend(parts: tuple[RewardPart, ...]) -> Reward:
    """The weighted mean of the parts that have a value; missing when none has one, or their weights come to 0."""
    present = [(part.value, part.weight) for part in parts if part.value is not None]
    total = math.fsum(weight for _, weight in present)
    if not total:
        return Reward(None, parts)
    return Reward(math.fsum(value * weight for value, weight in present) / total, parts)


def values_of(spec: Weighted, group: Group, heard: Mapping[str, tuple[Evaluation, ...]]) -> list[float | None]:
    """One value a rollout, in the rollouts' order; what is no finite number is missing."""
    reward = find("rewards", spec.name, "reward")
    if is_trl(reward):
        return [finite(value) for value in _ask_trl(reward, spec, group)]
    return [finite(reward(rollout, heard[rollout.id], group, **spec.settings)) for rollout in group.rollouts]


def is_trl(reward: Callable[..., Any]) -> bool:
    """Whether `reward` takes whole batches, as TRL's reward functions do."""
    return tuple(inspect.signature(reward).parameters)[:2] == TRL


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is missing, infinite or not a number."""
    return float(value) if value is not None and math.isfinite(value) else None


def _ask_trl(reward: Callable[..., Any], spec: Weighted, group: Group) -> list[float | None]:
    if inspect.iscoroutinefunction(reward):
        raise ConfigError(f"reward {spec.name!r} is async; write it with a plain def, or as a judge")
    offered = {**_columns(group), **spec.settings}
    parameters = inspect.signature(reward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        offered = {name: value for name, value in offered.items() if name in parameters}
    values = list(reward(**offered))
    if len(values) != len(group.rollouts):
        raise ConfigError(f"reward {spec.name!r} returned {len(values)} values for {len(group.rollouts)} completions")
    return values


def _columns(group: Group) -> dict[str, Any]:
    """What TRL hands over: conversational prompts and completions, and the dataset's columns, one item a rollout."""
    task, prompt, count = group.prompt.task, group.prompt, len(group.rollouts)
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    extra = {"question": task.question, "answer": task.answer, "task_id": task.id, "task_type": task.task_type}
    return {
        **{name: [value] * count for name, value in (dict(task.metadata) | extra).items()},
        "prompts": [messages] * count,
        "completions": [[_said(rollout)] for rollout in group.rollouts],
        "completion_ids": [list(rollout.token_ids) for rollout in group.rollouts],
        "trainer_state": None,
    }


def _said(rollout: Rollout) -> dict[str, str]:
    return {"role": "assistant", "content": rollout.text}
