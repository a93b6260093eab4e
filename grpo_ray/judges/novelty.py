"""How far an answer is from those before it, and from the others of its group, by their embeddings."""

import asyncio
from collections.abc import Sequence
from typing import Literal

from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.graders.similarity import cosine_between
from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group

Against = Literal["run", "group", "both"]
Finding = tuple[float | None, str]
"""A score, or None, and why."""


async def judge(
    group: Group, oracle: Oracle, *, against: Against = "run", limit: int = 10, name: str = "novelty"
) -> list[Evaluation]:
    """1 - the highest cosine similarity, from 0 to 1: on `novelty` to the run's stored completions of other groups, on
    `group_novelty` to the other rollouts of this group.

    `limit` is how many of the nearest are asked for beyond this group's own, which don't count. Missing with the reason
    where the oracle gives up, and where there is nothing to compare with. What is stored by now depends on how far the
    run has come; the oracle records its reply, so that a step done again hears the same. Never raises for OracleError.
    """
    found: dict[str, list[Finding]] = {}
    if against != "group":
        found["novelty"] = await _in_run(group, oracle, limit)
    if against != "run":
        found["group_novelty"] = await _in_group(group, oracle)
    return [
        Evaluation(rollout.id, name, dimension, *findings[at])
        for at, rollout in enumerate(group.rollouts)
        for dimension, findings in found.items()
    ]


def check_settings(*, limit: int = 10, **others: object) -> None:
    """Raise ConfigError for a limit below 1."""
    if limit < 1:
        raise ConfigError(f"limit is {limit}; at least 1 is needed")


async def _in_run(group: Group, oracle: Oracle, limit: int) -> list[Finding]:
    """Equal texts are asked once."""
    own = {rollout.id for rollout in group.rollouts}
    texts = list(dict.fromkeys(rollout.text for rollout in group.rollouts))
    findings = await asyncio.gather(*(_far(text, own, oracle, limit + len(own)) for text in texts))
    by_text = dict(zip(texts, findings, strict=True))
    return [by_text[rollout.text] for rollout in group.rollouts]


async def _far(text: str, own: set[str], oracle: Oracle, limit: int) -> Finding:
    try:
        near = await oracle.nearest(text, limit=limit)
    except OracleError as fault:
        return None, f"no verdict: {fault}"
    others = [(similarity, id) for id, similarity in near if id not in own]
    if not others:
        return None, "no completion of another group is stored yet"
    similarity, id = max(others)
    return clipped(1 - similarity), f"the nearest stored completion is {id}, cosine similarity {similarity:.3f}"


async def _in_group(group: Group, oracle: Oracle) -> list[Finding]:
    texts = [rollout.text for rollout in group.rollouts]
    if len(texts) < 2:
        return [(None, "the group has no other rollout")] * len(texts)
    distinct = list(dict.fromkeys(texts))
    try:
        vectors = dict(zip(distinct, await oracle.embed(distinct), strict=True))
    except OracleError as fault:
        return [(None, f"no verdict: {fault}")] * len(texts)
    return [_apart(at, [vectors[text] for text in texts], group) for at in range(len(texts))]


def _apart(at: int, vectors: Sequence[Sequence[float]], group: Group) -> Finding:
    others = [(cosine_between(vectors[at], other), -where) for where, other in enumerate(vectors) if where != at]
    similarity, where = max(others)
    words = f"the nearest of its group is {group.rollouts[-where].id}, cosine similarity {similarity:.3f}"
    return clipped(1 - similarity), words


def clipped(value: float) -> float:
    return min(1.0, max(0.0, value))
