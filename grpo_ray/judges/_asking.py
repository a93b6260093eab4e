"""What judges share that ask through another judge: finding it, checking its settings, and asking it."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from grpo_ray.errors import ConfigError, MissingError, OracleError
from grpo_ray.protocols import Oracle
from grpo_ray.registry import check_settings, find
from grpo_ray.types import Evaluation, Group

Judge = Callable[..., Awaitable[Sequence[Evaluation]]]


def knows_order(judge: str) -> bool:
    """Whether the judge of that name can ask in another order, for audits. Raises MissingError."""
    return "order" in inspect.signature(find("judges", judge, "judge")).parameters


def settled(judge: str, settings: Mapping[str, Any] | None) -> None:
    """Raise ConfigError for a judge that nobody knows, or for settings that it refuses."""
    try:
        check_settings("judges", judge, "judge", settings or {})
    except MissingError as fault:
        raise ConfigError(f"judge: {fault}") from fault


async def marked(
    judge: str, settings: Mapping[str, Any] | None, group: Group, oracle: Oracle, order: int = 0
) -> list[Evaluation]:
    """What that judge itself says of the group, and no other judge that it asked in turn.

    A judge that lets an OracleError through is missing with the reason; `order` 0 is left to its settings.
    """
    found: Judge = find("judges", judge, "judge")
    try:
        said = await found(group, oracle, **{**(settings or {}), **({"order": order} if order else {})})
    except OracleError as fault:
        return unmarked(group, judge, "all", f"no verdict: {fault}")
    return [one for one in said if one.judge == said[0].judge]


def unmarked(group: Group, judge: str, dimension: str, reason: str) -> list[Evaluation]:
    """No score for any rollout of the group, and why."""
    return [Evaluation(rollout.id, judge, dimension, None, reason) for rollout in group.rollouts]
