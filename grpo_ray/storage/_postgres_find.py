"""Everything kept of one row, with the way back to the seeds."""

from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from typing import Any

from grpo_ray.canonical import plain
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.lineage import text_hash
from grpo_ray.registry import hint
from grpo_ray.storage import _nouns as nouns
from grpo_ray.storage._database import Session
from grpo_ray.storage._postgres_store import read_groups, read_scored
from grpo_ray.types import Group

Row = dict[str, Any]


async def find(session: Session, kind: str, id: str, run: str | None) -> Row:
    """One row of `kind`; `id` and `run` may be unique beginnings."""
    if kind not in READERS:
        raise MissingError(f"nothing is called {kind!r} here{hint(kind, list(READERS))}")
    if run is not None:
        run = (await _one(session, "run", run, None))["run"]
    found = await _one(session, kind, id, run)
    return {**await READERS[kind](session, found["run"], found["id"]), "id": found["id"], "run": found["run"]}


async def _one(session: Session, kind: str, id: str, run: str | None) -> Row:
    rows = await session.all("known", kind=kind, id=id, run=run)
    fitting = [row for row in rows if row["id"] == id] or rows
    if not fitting:
        known = [row["id"] for row in await session.all("known_ids", kind=kind, run=run)]
        near = get_close_matches(id, known, n=3, cutoff=0.5) or sorted(known)[:3]
        raise MissingError(f"no {kind} has the id {id!r}; near: {', '.join(near) or 'there is none yet'}")
    if len(fitting) > 1:
        several = ", ".join(f"{row['id']} of run {row['run']}" for row in fitting[:4])
        raise ConfigError(f"several fit {kind} {id!r}: {several}; give more of the id, or the run")
    return fitting[0]


async def _run(session: Session, run: str, id: str) -> Row:
    (row,) = [row for row in await session.all("runs") if row["run"] == run]
    newest = await session.one("newest_state", run=run)
    outcome = await session.one("load_outcome", run=run)
    events = await session.all("events", run=run, after=0)
    adapters = await session.all("adapters", run=run)
    names = ("name", "step", "steps", "rollouts", "wanted")
    return {name: row[name] for name in names} | {
        "created": row["created"].isoformat(),
        "finished": row["step"] >= row["steps"],
        "recipe": newest["state"]["recipe"] if newest else None,
        "state": newest["state"] if newest else None,
        "states": [_dated(one) for one in await session.all("states_summary", run=run)],
        "adapters": adapters,
        "events": [one | {"time": one["time"].isoformat()} for one in events],
        "outcome": outcome["outcome"] if outcome else None,
    }


async def _template(session: Session, run: str, id: str) -> Row:
    chain = await _templates_back(session, run, id)
    (rewards,) = await session.all("template_rewards", run=run, id=id)
    (life,) = await session.all("life", run=run, id=id)
    return {
        **chain[0],
        **life,
        "ancestry": chain,
        "children": [row["id"] for row in await session.all("children", run=run, id=id)],
        "history": await session.all("fitness_history", run=run, id=id),
        "mean_reward": rewards["mean_reward"],
        "rollouts": rewards["rollouts"],
    }


async def _adapter(session: Session, run: str, id: str) -> Row:
    chain = await _adapters_back(session, run, id)
    return {**chain[0], "ancestry": chain}


async def _prompt(session: Session, run: str, id: str) -> Row:
    (row,) = await session.all("prompt", run=run, id=id)
    groups = await session.all("groups_of_prompt", run=run, id=id)
    return {**plain(nouns.prompt_of(row)), "groups": groups, "step": groups[0]["step"] if groups else None}


async def _group(session: Session, run: str, id: str) -> Row:
    (group,) = await read_groups(session, run, [id])
    (row,) = await session.all("step_of", run=run, id=id)
    rewards = await session.all("rewards", run=run, ids=[id])
    return {**plain(group), "step": row["step"], "rewards": {one["rollout"]: one["value"] for one in rewards}}


async def _rollout(session: Session, run: str, id: str) -> Row:
    """The whole ancestry: prompt, task, template chain, adapter chain, evaluations, reward parts, advantage."""
    (of,) = await session.all("group_of", run=run, id=id)
    (scored,) = await read_scored(session, run, [of["id"]])
    (row,) = await session.all("step_of", run=run, id=of["id"])
    templates = await _templates_back(session, run, scored.group.prompt.template_id)
    adapter = scored.group.adapter
    (rollout,) = [one for one in scored.group.rollouts if one.id == id]
    return {
        **plain(rollout),
        "step": row["step"],
        "group": scored.group.id,
        "prompt": plain(scored.group.prompt),
        "sampling": plain(scored.group.sampling),
        "model": scored.group.model,
        "seconds": scored.group.seconds,
        "adapter": adapter,
        "adapters": await _adapters_back(session, run, adapter) if adapter else [],
        "templates": templates,
        "parameters": dict(templates[0]["settings"]),
        "evaluations": [_dated(one) for one in await session.all("said_of", run=run, id=id)],
        "reward": next((plain(one.reward) for one in scored.rollouts if one.rollout.id == id), None),
        "advantage": await _advantage(session, run, scored.group, id),
    }


async def _advantage(session: Session, run: str, group: Group, id: str) -> float | None:
    rewards = await session.all("rewards", run=run, ids=[group.id])
    return next((row["advantage"] for row in rewards if row["rollout"] == id), None)


async def _templates_back(session: Session, run: str, id: str) -> list[Row]:
    """A template and its ancestors, nearest first."""
    rows = await session.all("template_chain", run=run, id=id)
    return [{**plain(of := nouns.template_of(row)), "text_hash": text_hash(of), "run": run} for row in rows]


async def _adapters_back(session: Session, run: str, id: str) -> list[Row]:
    """An adapter and those it was trained from, newest first."""
    rows = await session.all("adapter_chain", run=run, id=id)
    return [{**_dated(row), "id": row["hash"], "run": run} for row in rows]


def _dated(row: Row) -> Row:
    return row | {"created": row["created"].isoformat()}


READERS: dict[str, Callable[[Session, str, str], Awaitable[Row]]] = {
    "run": _run,
    "template": _template,
    "prompt": _prompt,
    "group": _group,
    "rollout": _rollout,
    "adapter": _adapter,
}
