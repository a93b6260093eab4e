"""The tables of one run in PostgreSQL. Every save keeps what came first, so each may be done again."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from grpo_ray.canonical import digest, typed
from grpo_ray.errors import MissingError
from grpo_ray.lineage import Life, named_in
from grpo_ray.protocols import Store
from grpo_ray.recipe import RunState
from grpo_ray.registry import hint
from grpo_ray.storage import _nouns as nouns
from grpo_ray.storage._database import Database, Session
from grpo_ray.storage._text import document
from grpo_ray.storage._together import Together
from grpo_ray.trials import Trial
from grpo_ray.types import (
    Adapter,
    AdapterBytes,
    Attempt,
    Evaluation,
    Group,
    Lesson,
    LostGroup,
    Reply,
    Score,
    ScoredGroup,
    Template,
)

END = 2**31 - 1
"""The last step there can be."""


class PostgresStore(Store):
    """One run of a database."""

    def __init__(self, database: Database, run: str) -> None:
        self.database = database
        self.run = run
        self._saving = Together(self._save_replies)
        self._loading = Together(self._load_replies)

    async def save_group(self, step: int, group: Group | LostGroup) -> Group | LostGroup:
        async def work(session: Session) -> Group | LostGroup:
            await put_group(session, self.run, step, group)
            return (await read_groups(session, self.run, [group.id]))[0]

        return await self.database.transact(work)

    async def save_scored(self, step: int, scored: ScoredGroup) -> ScoredGroup:
        async def work(session: Session) -> ScoredGroup:
            if await begin_scoring(session, self.run, step, scored.group):
                said, rewards, parts = nouns.said_rows(self.run, scored)
                await session.put("save_evaluation", *said)
                await session.put("save_reward", *rewards)
                await session.put("save_reward_part", *parts)
            return (await read_scored(session, self.run, [scored.group.id]))[0]

        return await self.database.transact(work)

    async def save_lessons(self, step: int, lessons: Sequence[Lesson]) -> None:
        rows = [
            {"run": self.run, "rollout": one.rollout.id, "step": step, "value": float(value)}
            for lesson in lessons
            for one, value in zip(lesson.group.rollouts, lesson.advantages, strict=True)
        ]
        await self.database.transact(lambda session: session.put("save_advantage", *rows))

    async def save_adapter(self, adapter: Adapter, content: AdapterBytes, metrics: Sequence[tuple[str, float]]) -> None:
        row = {"run": self.run, "hash": adapter.hash, "version": adapter.version, "parent": adapter.parent}
        row |= {"step": adapter.step, "rate_scale": float(adapter.rate_scale), "metrics": document(dict(metrics))}
        row |= {"weights": content.weights, "optimizer": content.optimizer}
        await self.database.transact(lambda session: session.put("save_adapter", row))

    async def load_adapter(self, hash: str) -> AdapterBytes:
        row = await self.database.transact(lambda session: session.one("load_adapter", run=self.run, hash=hash))
        if row is None:
            known = [adapter.hash for adapter, _ in await self.adapters()]
            raise MissingError(f"run {self.run!r} has no adapter {hash!r}{hint(hash, known)}")
        return AdapterBytes(row["weights"], row["optimizer"])

    async def adapters(self) -> list[tuple[Adapter, dict[str, float]]]:
        rows = await self.database.transact(lambda session: session.all("adapters", run=self.run))
        return [(nouns.adapter_of(row), row["metrics"]) for row in rows]

    async def save_state(self, state: RunState) -> None:
        await self.database.transact(lambda session: put_state(session, self.run, state))

    async def load_state(self) -> RunState | None:
        row = await self.database.transact(lambda session: session.one("newest_state", run=self.run))
        return typed(RunState, row["state"]) if row else None

    async def states(self) -> list[RunState]:
        rows = await self.database.transact(lambda session: session.all("states", run=self.run))
        return [typed(RunState, row["state"]) for row in rows]

    async def save_scores(self, split: str, scores: Sequence[Score]) -> None:
        rows = [
            {"run": self.run, "split": split, "template": one.template_id, "adapter": one.adapter}
            | {"task": one.task_id, "correct": one.correct, "text": one.text}
            for one in scores
        ]
        await self.database.transact(lambda session: session.put("save_score", *rows))

    async def load_scores(self, split: str) -> list[Score]:
        rows = await self.database.transact(lambda session: session.all("load_scores", run=self.run, split=split))
        return [Score(**row) for row in rows]

    async def save_reply(self, key: str, reply: Reply, attempts: Sequence[Attempt] = ()) -> Reply:
        return await self._saving((key, reply, attempts))

    async def load_reply(self, key: str, *, anywhere: bool = False) -> Reply | None:
        return await self._loading((key, anywhere))

    async def _save_replies(self, items: list[tuple[str, Reply, Sequence[Attempt]]]) -> list[Reply]:
        """One transaction for many; what was first under a key comes back."""

        async def work(session: Session) -> list[Reply]:
            await session.put("save_reply", *({"run": self.run, "key": key} | asdict(one) for key, one, _ in items))
            attempts = [{"run": self.run} | asdict(one) for _, _, tried in items for one in tried]
            await session.put("save_attempt", *attempts)
            rows = await session.all("load_replies", run=self.run, keys=[key for key, _, _ in items])
            stored = {row.pop("key"): row for row in rows}
            return [Reply(**stored[key]) for key, _, _ in items]

        return await self.database.transact(work)

    async def _load_replies(self, items: list[tuple[str, bool]]) -> list[Reply | None]:
        async def work(session: Session) -> list[Reply | None]:
            mine = await session.all(
                "load_replies", run=self.run, keys=[key for key, anywhere in items if not anywhere]
            )
            shared = [key for key, anywhere in items if anywhere]
            theirs = await session.all("load_replies_anywhere", run=self.run, keys=shared) if shared else []
            found = [{row.pop("key"): Reply(**row) for row in rows} for rows in (mine, theirs)]
            return [found[anywhere].get(key) for key, anywhere in items]

        return await self.database.transact(work)

    async def save_attempts(self, attempts: Sequence[Attempt]) -> None:
        rows = [{"run": self.run} | asdict(one) for one in attempts]
        await self.database.transact(lambda session: session.put("save_attempt", *rows))

    async def attempts(self) -> list[Attempt]:
        rows = await self.database.transact(lambda session: session.all("attempts", run=self.run))
        return [Attempt(**row) for row in rows]

    async def lessons(self, first: int = 0, last: int | None = None) -> list[Lesson]:
        async def work(session: Session) -> list[Lesson]:
            ids = await session.all("lesson_ids", run=self.run, first=first, last=_last(last))
            scored = await read_scored(session, self.run, [row["id"] for row in ids])
            rewards = await _rewards(session, self.run, [one.group.id for one in scored])
            return [nouns.lesson_of(one, rewards) for one in scored]

        return await self.database.transact(work)

    async def scored_groups(self, first: int = 0, last: int | None = None) -> list[ScoredGroup]:
        async def work(session: Session) -> list[ScoredGroup]:
            ids = await session.all("group_ids", run=self.run, first=first, last=_last(last))
            return await read_scored(session, self.run, [row["id"] for row in ids])

        return await self.database.transact(work)

    async def add_evaluations(self, evaluations: Sequence[Evaluation]) -> None:
        nouns.audits(evaluations)
        await self._append("add_evaluation", evaluations)

    async def save_labels(self, labels: Sequence[Evaluation]) -> None:
        await self._append("save_label", nouns.labelled(labels))

    async def _append(self, statement: str, evaluations: Sequence[Evaluation]) -> None:
        """Add to what was said of rollouts that have rewards. Raises MissingError for another one."""
        rollouts = sorted({e.rollout_id for e in evaluations})

        async def work(session: Session) -> None:
            rewarded = {row["rollout"] for row in await session.all("adding_turn", run=self.run, rollouts=rollouts)}
            if lost := next((id for id in rollouts if id not in rewarded), None):
                raise MissingError(f"run {self.run!r} has no scored rollout {lost!r}")
            await session.put(statement, *(nouns.evaluation_row(self.run, e) for e in evaluations))

        await self.database.transact(work)

    async def added_evaluations(self, first: int = 0, last: int | None = None) -> list[Evaluation]:
        async def work(session: Session) -> list[Evaluation]:
            ids = [row["id"] for row in await session.all("group_ids", run=self.run, first=first, last=_last(last))]
            said = nouns.by_rollout(await session.all("evaluations", run=self.run, ids=ids))
            groups = [one for one in await read_groups(session, self.run, ids) if isinstance(one, Group)]
            rows = [row for group in groups for rollout in group.rollouts for row in said[rollout.id]]
            return [nouns.evaluation_of(row) for row in rows if not row["counted"]]

        return await self.database.transact(work)

    async def templates(self) -> list[Template]:
        rows = await self.database.transact(lambda session: session.all("templates", run=self.run))
        return [nouns.template_of(row) for row in rows]

    async def lives(self) -> list[Life]:
        rows = await self.database.transact(lambda session: session.all("lives", run=self.run))
        return [nouns.life_of(row) for row in rows]

    async def trials(self, first: int = 0, last: int | None = None) -> list[Trial]:
        rows = await self.database.transact(
            lambda session: session.all("trials", run=self.run, first=first, last=_last(last))
        )
        return [nouns.trial_of(row) for row in rows]

    async def save_outcome(self, outcome: dict[str, Any]) -> None:
        row = {"run": self.run, "outcome": document(outcome)}
        await self.database.transact(lambda session: session.put("save_outcome", row))

    async def load_outcome(self) -> dict[str, Any] | None:
        row = await self.database.transact(lambda session: session.one("load_outcome", run=self.run))
        return row["outcome"] if row else None

    async def save_event(self, step: int, kind: str, detail: dict[str, Any]) -> None:
        await self.database.transact(lambda session: put_event(session, self.run, step, kind, detail))

    async def events(self) -> list[dict[str, Any]]:
        rows = await self.database.transact(lambda session: session.all("events", run=self.run, after=0))
        return [row | {"time": row["time"].isoformat()} for row in rows]


async def put_group(session: Session, run: str, step: int, group: Group | LostGroup) -> None:
    """The group with its prompt, task and rollouts, unless its id is there already."""
    await session.put("save_task", nouns.task_row(run, group.prompt.task))
    await session.put("save_prompt", nouns.prompt_row(run, group.prompt))
    new = await session.one("save_group", **nouns.group_row(run, step, group))
    if new and isinstance(group, Group):
        await session.put("save_rollout", *nouns.rollout_rows(run, group))


async def begin_scoring(session: Session, run: str, step: int, group: Group) -> bool:
    """Whether this is the first to score the group, which is nearly always there already."""
    begin = partial(session.one, "begin_scoring", run=run, id=group.id)
    if await begin():
        return True
    await put_group(session, run, step, group)
    return await begin() is not None


async def put_state(session: Session, run: str, state: RunState) -> None:
    """The state, its templates, and what was known of them, unless the step has a state already."""
    adapter = state.adapter.hash if state.adapter else None
    if await session.one("save_state", run=run, step=state.step, adapter=adapter, state=document(state)):
        await session.put("save_template", *(nouns.template_row(run, one) for one in named_in(state)))
        await session.put("save_member", *nouns.member_rows(state))
        await session.put("begin_life", *nouns.life_rows(state))
        await session.put("go_on_living", nouns.death_row(state))
        await session.put("end_life", nouns.death_row(state))


async def put_event(session: Session, run: str, step: int, kind: str, detail: dict[str, Any]) -> None:
    """An event, once: a step that is done again tells nothing new."""
    await session.all("event_turn", run=run)
    row = {"run": run, "step": step, "kind": kind, "detail": document(detail), "digest": digest([step, kind, detail])}
    await session.put("save_event", row)


async def read_groups(session: Session, run: str, ids: list[str]) -> list[Group | LostGroup]:
    """Ordered by (step, id)."""
    rows = await session.all("groups", run=run, ids=ids)
    return nouns.groups_of(rows, await session.all("rollouts", run=run, ids=ids))


async def read_scored(session: Session, run: str, ids: list[str]) -> list[ScoredGroup]:
    """Ordered by (step, id)."""
    groups = await read_groups(session, run, ids)
    said = nouns.by_rollout(await session.all("evaluations", run=run, ids=ids))
    parts = nouns.by_rollout(await session.all("reward_parts", run=run, ids=ids))
    rewards = await _rewards(session, run, ids)
    return [nouns.scored_of(group, said, rewards, parts) for group in groups if isinstance(group, Group)]


async def _rewards(session: Session, run: str, ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    return nouns.by_rollout(await session.all("rewards", run=run, ids=ids))


def _last(step: int | None) -> int:
    return END if step is None else step
