"""The Archive and the Store in plain dictionaries: for tests, `preview` and `storage: memory`; gone with the process."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import fmean
from typing import Any, TypeVar

from grpo_ray.canonical import digest, plain
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.graders.similarity import cosine_between
from grpo_ray.lineage import Life, lives, named, text_hash
from grpo_ray.protocols import Archive, Store, Want
from grpo_ray.recipe import RunState
from grpo_ray.registry import hint
from grpo_ray.storage._nouns import audits, labelled, told
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

T = TypeVar("T")
KINDS = ("run", "template", "prompt", "group", "rollout", "adapter")


async def make_storage() -> Archive:
    """An empty archive."""
    return MemoryArchive()


@dataclass(slots=True)
class MemoryStore(Store):
    """The tables of one run. A group is kept under its step and id: an exam may repeat a prompt under another step."""

    run: str
    created: str
    wanted: Want = "run"
    groups: dict[tuple[int, str], Group | LostGroup] = field(default_factory=dict)
    scored: dict[tuple[int, str], ScoredGroup] = field(default_factory=dict)
    added: dict[str, list[Evaluation]] = field(default_factory=dict)
    """Rollout id → what was said of it after its reward was made."""
    taught: dict[tuple[int, str], Lesson] = field(default_factory=dict)
    contents: dict[str, AdapterBytes] = field(default_factory=dict)
    made: dict[str, tuple[Adapter, dict[str, float]]] = field(default_factory=dict)
    kept: dict[int, RunState] = field(default_factory=dict)
    scores: dict[tuple[str, str, str | None, str], Score] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    happened: dict[str, dict[str, Any]] = field(default_factory=dict)
    vectors: dict[str, list[float]] = field(default_factory=dict)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    calls: list[Attempt] = field(default_factory=list)
    beside: "Mapping[str, MemoryStore]" = field(default_factory=dict, repr=False, compare=False)
    """All runs of the archive, this one too."""

    async def save_group(self, step: int, group: Group | LostGroup) -> Group | LostGroup:
        return self.groups.setdefault((step, group.id), group)

    async def save_scored(self, step: int, scored: ScoredGroup) -> ScoredGroup:
        return self.scored.setdefault((step, scored.group.id), scored)

    async def save_lessons(self, step: int, lessons: Sequence[Lesson]) -> None:
        for lesson in lessons:
            self.taught.setdefault((step, lesson.group.group.id), lesson)

    async def save_adapter(self, adapter: Adapter, content: AdapterBytes, metrics: Sequence[tuple[str, float]]) -> None:
        self.contents.setdefault(adapter.hash, content)
        self.made.setdefault(adapter.hash, (adapter, dict(metrics)))

    async def load_adapter(self, hash: str) -> AdapterBytes:
        if hash not in self.contents:
            raise MissingError(f"run {self.run!r} has no adapter {hash!r}{hint(hash, list(self.contents))}")
        return self.contents[hash]

    async def save_state(self, state: RunState) -> None:
        self.kept.setdefault(state.step, state)

    async def load_state(self) -> RunState | None:
        return self.kept[max(self.kept)] if self.kept else None

    async def save_scores(self, split: str, scores: Sequence[Score]) -> None:
        for score in scores:
            self.scores.setdefault((split, score.template_id, score.adapter, score.task_id), score)

    async def load_scores(self, split: str) -> list[Score]:
        return [score for key, score in self.scores.items() if key[0] == split]

    async def save_reply(self, key: str, reply: Reply, attempts: Sequence[Attempt] = ()) -> Reply:
        self.calls += attempts
        return self.replies.setdefault(key, reply)

    async def load_reply(self, key: str, *, anywhere: bool = False) -> Reply | None:
        if key in self.replies or not anywhere:
            return self.replies.get(key)
        return next((store.replies[key] for store in self.beside.values() if key in store.replies), None)

    async def save_attempts(self, attempts: Sequence[Attempt]) -> None:
        self.calls += attempts

    async def attempts(self) -> list[Attempt]:
        return list(self.calls)

    async def lessons(self, first: int = 0, last: int | None = None) -> list[Lesson]:
        return _between(self.taught, first, last)

    async def scored_groups(self, first: int = 0, last: int | None = None) -> list[ScoredGroup]:
        return _between(self.scored, first, last)

    async def add_evaluations(self, evaluations: Sequence[Evaluation]) -> None:
        audits(evaluations)
        said = self._said(evaluations)
        for e in evaluations:
            later = self.added.setdefault(e.rollout_id, [])
            if _which(e) not in map(_which, (*said[e.rollout_id], *later)):
                later.append(e)

    async def save_labels(self, labels: Sequence[Evaluation]) -> None:
        given = labelled(labels)
        self._said(given)
        for e in given:
            self.added.setdefault(e.rollout_id, []).append(e)

    async def added_evaluations(self, first: int = 0, last: int | None = None) -> list[Evaluation]:
        rollouts = [one.rollout for group in _between(self.scored, first, last) for one in group.rollouts]
        return [e for rollout in rollouts for e in self.added.get(rollout.id, [])]

    async def adapters(self) -> list[tuple[Adapter, dict[str, float]]]:
        return sorted(self.made.values(), key=lambda made: made[0].version)

    async def states(self) -> list[RunState]:
        return [self.kept[step] for step in sorted(self.kept)]

    async def templates(self) -> list[Template]:
        return list(named(await self.states()).values())

    async def lives(self) -> list[Life]:
        return lives(await self.states())

    async def trials(self, first: int = 0, last: int | None = None) -> list[Trial]:
        rewards: dict[tuple[int, str, str, str], list[float]] = defaultdict(list)
        for (step, _), scored in self.scored.items():
            if first <= step and (last is None or step <= last):
                prompt, values = scored.group.prompt, [one.reward.value for one in scored.rollouts]
                key = (step, prompt.template_id, prompt.task.id, prompt.task.task_type)
                rewards[key] += [value for value in values if value is not None]
        return [
            Trial(template, task, kind, step, fmean(values), len(values))
            for (step, template, task, kind), values in sorted(rewards.items())
            if values
        ]

    async def save_outcome(self, outcome: dict[str, Any]) -> None:
        if not self.outcomes:
            self.outcomes.append(outcome)

    async def load_outcome(self) -> dict[str, Any] | None:
        return self.outcomes[0] if self.outcomes else None

    async def save_event(self, step: int, kind: str, detail: dict[str, Any]) -> None:
        event = {"id": len(self.happened) + 1, "time": _now(), "step": step, "kind": kind, "detail": detail}
        self.happened.setdefault(digest([step, kind, detail]), event)

    async def events(self) -> list[dict[str, Any]]:
        return list(self.happened.values())

    def about(self) -> dict[str, Any]:
        """The run's line in `runs`."""
        state = self.kept[max(self.kept)]
        return {
            "run": self.run,
            "name": state.recipe.name,
            "step": state.step,
            "steps": state.recipe.steps,
            "rollouts": len(self.rollouts()),
            "wanted": self.wanted,
            "created": self.created,
            "finished": state.step >= state.recipe.steps,
        }

    def rollouts(self) -> dict[str, dict[str, Any]]:
        """Every rollout of the steps with what was said of it and what came of it."""
        return {
            rollout.id: {
                **plain(rollout),
                "step": step,
                "group": group.id,
                "prompt": plain(group.prompt),
                "sampling": plain(group.sampling),
                "model": group.model,
                "adapter": group.adapter,
                **self._judged(step, group.id, place),
            }
            for (step, _), group in self.groups.items()
            if isinstance(group, Group)
            for place, rollout in enumerate(group.rollouts)
        }

    def rows(self, kind: str) -> dict[str, dict[str, Any]]:
        """Id → everything kept of it, of one kind."""
        if kind == "run":
            return {self.run: {**self.about(), "state": plain(self.kept[max(self.kept)])}}
        if kind == "rollout":
            return self.rollouts()
        if kind == "template":
            return self._templates()
        if kind == "adapter":
            return {hash: {**plain(adapter), "metrics": metrics} for hash, (adapter, metrics) in self.made.items()}
        groups = [(step, group) for (step, _), group in self.groups.items()]
        if kind == "prompt":
            return {group.prompt.id: {**plain(group.prompt), "step": step} for step, group in groups}
        return {group.id: {**plain(group), "step": step} for step, group in groups}

    def _said(self, wanted: Sequence[Evaluation]) -> dict[str, tuple[Evaluation, ...]]:
        """Rollout id → what its reward was made from, of all that have one. Raises MissingError for one of `wanted`."""
        said = {one.rollout.id: one.evaluations for group in self.scored.values() for one in group.rollouts}
        if lost := next((e.rollout_id for e in wanted if e.rollout_id not in said), None):
            raise MissingError(f"run {self.run!r} has no scored rollout {lost!r}{hint(lost, list(said))}")
        return said

    def _added(self, scored: ScoredGroup, place: int) -> list[Evaluation]:
        return self.added.get(scored.rollouts[place].rollout.id, [])

    def _templates(self) -> dict[str, dict[str, Any]]:
        """Id → a template with its life."""
        states = [self.kept[step] for step in sorted(self.kept)]
        found = zip(named(states).values(), lives(states), strict=True)
        return {of.id: {**plain(of), "text_hash": text_hash(of), **told(life)} for of, life in found}

    def _judged(self, step: int, group: str, place: int) -> dict[str, Any]:
        scored, lesson = self.scored.get((step, group)), self.taught.get((step, group))
        return {
            "evaluations": plain([*scored.rollouts[place].evaluations, *self._added(scored, place)]) if scored else [],
            "reward": plain(scored.rollouts[place].reward) if scored else None,
            "advantage": lesson.advantages[place] if lesson else None,
        }


class MemoryArchive(Archive):
    """All runs of this process."""

    def __init__(self) -> None:
        self.stores: dict[str, MemoryStore] = {}

    async def create_run(self, state: RunState) -> None:
        if state.run in self.stores:
            raise ConfigError(f"a run called {state.run!r} exists already; resume it, or choose another name")
        self.stores[state.run] = MemoryStore(state.run, _now(), kept={state.step: state}, beside=self.stores)

    async def open(self, run: str) -> Store:
        return self._store(run)

    async def lock(self, run: str) -> None:
        """Nobody else can reach this archive, so the run only has to be there."""
        self._store(run)

    async def want(self, run: str, what: Want, who: str) -> None:
        store = self._store(run)
        store.wanted = what
        await store.save_event(max(store.kept), f"want_{what}", {"who": who, "at": _now()})

    async def wanted(self, run: str) -> Want:
        return self._store(run).wanted

    async def runs(self) -> list[dict[str, Any]]:
        return [store.about() for store in reversed(self.stores.values())]

    async def progress(self, run: str) -> dict[str, Any]:
        store = self._store(run)
        steps = [step for step, _ in store.groups]
        about = store.about()
        groups = steps.count(max(steps)) if steps else 0
        return {"step": about["step"], "steps": about["steps"], "groups": groups, "rollouts": about["rollouts"]}

    async def find(self, kind: str, id: str, run: str | None = None) -> dict[str, Any]:
        if kind not in KINDS:
            raise MissingError(f"nothing is called {kind!r} here{hint(kind, list(KINDS))}")
        stores = [self._store(run)] if run else list(self.stores.values())
        rows = [(name, store.run, row) for store in stores for name, row in store.rows(kind).items()]
        fitting = [row for row in rows if row[0] == id] or [row for row in rows if row[0].startswith(id)]
        if not fitting:
            raise MissingError(f"no {kind} has the id {id!r}{hint(id, [name for name, _, _ in rows])}")
        if len(fitting) > 1:
            several = ", ".join(f"{name} of run {of}" for name, of, _ in fitting[:4])
            raise ConfigError(f"several fit {kind} {id!r}: {several}; give more of the id, or the run")
        name, of, row = fitting[0]
        return {**row, "id": name, "run": of}

    async def search(self, run: str, vector: Sequence[float], limit: int) -> list[tuple[str, float]]:
        found = [(id, cosine_between(vector, other)) for id, other in self._store(run).vectors.items()]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:limit]

    async def unembedded(self, run: str, limit: int) -> list[tuple[str, str]]:
        store = self._store(run)
        return [(id, row["text"]) for id, row in store.rollouts().items() if id not in store.vectors][:limit]

    async def save_embeddings(self, run: str, model: str, vectors: Sequence[tuple[str, Sequence[float]]]) -> None:
        store = self._store(run)
        for id, vector in vectors:
            store.vectors.setdefault(id, list(vector))

    async def events(self, run: str, after: int = 0) -> list[dict[str, Any]]:
        return [event for event in self._store(run).happened.values() if event["id"] > after]

    async def close(self) -> None:
        """Nothing to give back."""

    def _store(self, run: str) -> MemoryStore:
        if run not in self.stores:
            raise MissingError(f"no run is called {run!r}{hint(run, list(self.stores))}")
        return self.stores[run]


def _between(table: dict[tuple[int, str], T], first: int, last: int | None) -> list[T]:
    return [table[key] for key in sorted(table) if first <= key[0] and (last is None or key[0] <= last)]


def _which(e: Evaluation) -> tuple[str, str, str, str]:
    """What makes an evaluation of a rollout another one."""
    return e.judge, e.dimension, e.version, e.audit


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
