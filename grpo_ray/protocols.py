"""The verbs: what the loop may ask of the crew, and what each backend must keep."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from grpo_ray.lineage import Life
from grpo_ray.recipe import RunState
from grpo_ray.trials import Trial
from grpo_ray.types import (
    Adapter,
    AdapterBytes,
    Attempt,
    Evaluation,
    Group,
    Lesson,
    LostGroup,
    Message,
    Reply,
    Score,
    ScoredGroup,
    Slope,
    SlotsFound,
    Task,
    TaskSet,
    Template,
    Update,
    Wave,
)

Want = Literal["run", "pause", "stop"]
LABEL = "person"
"""The `audit` of a person's label, which counts in no reward; with a colon, what the judge's name begins with."""


# ── backends: plain and synchronous, each lives on one thread of one process ──────────────────────────────────────


class Generator(Protocol):
    """One model on one node. `make_generator(*, model, …)` of `generators/x.py` builds it."""

    def sample(self, wave: Wave, adapter: Adapter | None, content: AdapterBytes | None) -> Iterator[Group | LostGroup]:
        """Yield every prompt's group once, each as soon as it is whole.

        The adapter is loaded when its hash differs from the one in place. Never raises for a group: a prompt that
        can't be sampled is a LostGroup. Same wave, same adapter, same hardware: same bytes.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class Tunable(Protocol):
    """What a Generator keeps beside its own protocol when it can measure how many slots pay (`slots: auto`)."""

    def find_slots(self, wave: Wave) -> SlotsFound:
        """The slots that fit and still pay for waves like this one; its own `slots` don't matter. Leaves no trace."""
        ...


class Trainer(Protocol):
    """The LoRA trainer. `make_trainer(*, model, …)` of `trainers/x.py` builds it."""

    def update(
        self, adapter: Adapter | None, content: AdapterBytes | None, lessons: Sequence[Lesson], seed: int
    ) -> Update:
        """Train from `adapter` (None: fresh LoRA weights) on the lessons. Same arguments: same bytes."""
        ...

    def begin(
        self,
        adapter: Adapter | None,
        content: AdapterBytes | None,
        lessons: Sequence[Lesson],
        seed: int,
        rank: int = 0,
        of: int = 1,
    ) -> int:
        """Begin an update as trainer `rank` of `of`, all given the same lessons; returns how many steps it has.

        Then, for each step, `slope` of every trainer and `apply` of all their slopes; at last `end`.
        """
        ...

    def slope(self, step: int) -> Slope:
        """The gradient of this trainer's share of a step's groups, weighed as parts of the whole step."""
        ...

    def apply(self, slopes: Sequence[Slope]) -> str:
        """Take one optimizer step from the slopes, in their order; returns why the update must end here, or ""."""
        ...

    def end(self) -> Update:
        """What the update came to; every trainer says the same."""
        ...

    def close(self) -> None: ...


class Embedder(Protocol):
    """`make_embedder(*, …)` of `embedders/x.py` builds it."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector a text; all of one length."""
        ...


class Oracle(Protocol):
    """What judges and mutations may ask. Raises OracleError when an endpoint gives up."""

    def within(self, scope: str) -> "Oracle":
        """The same oracle, recording under `scope`: replies are replayed by (run, scope, request, occurrence)."""
        ...

    def at(self, name: str) -> "Oracle":
        """The same, asking the recipe's endpoint `oracles.NAME`; "" is the main one. Raises ConfigError."""
        ...

    def again(self, times: int) -> "Oracle":
        """The same for a further look: each `nth` asked for is `times` later, so that no reply is used twice."""
        ...

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        """One reply; with `shape` (a pydantic model) its text is JSON that the model has accepted.

        With `nth` (0: the first) the nth reply that anybody here ever got to this very request will do, and rewards it
        no second payment; without, every call gets a reply of its own.
        """
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]: ...

    async def nearest(self, text: str, *, limit: int = 10) -> list[tuple[str, float]]:
        """(rollout id, cosine similarity) of this run's stored completions nearest to `text`, best first."""
        ...

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        """What a verifier (None: the task's own) says of each answer, 0 to 1, in a process that can be killed.

        None: no verdict.
        """
        ...


# ── the crew: asynchronous, over one backend or over many actors ──────────────────────────────────────────────────


class Generators(Protocol):
    def sample(self, wave: Wave, adapter: Adapter | None) -> AsyncIterator[Group | LostGroup]:
        """The wave's groups as they finish, each id once, whatever dies on the way."""
        ...


class Judges(Protocol):
    async def evaluate(self, step: int, group: Group) -> tuple[Evaluation, ...]:
        """Every judge's word on every rollout, in the recipe's order of judges. Never raises: missing, with a reason."""
        ...


class Trainers(Protocol):
    async def update(self, adapter: Adapter | None, lessons: Sequence[Lesson], seed: int) -> Update: ...


class Store(Protocol):
    """The tables of one run. Every `save_*` keeps what came first and returns it, so that a step may be done again."""

    async def save_group(self, step: int, group: Group | LostGroup) -> Group | LostGroup: ...

    async def save_scored(self, step: int, scored: ScoredGroup) -> ScoredGroup: ...

    async def save_lessons(self, step: int, lessons: Sequence[Lesson]) -> None: ...

    async def save_adapter(
        self, adapter: Adapter, content: AdapterBytes, metrics: Sequence[tuple[str, float]]
    ) -> None: ...

    async def load_adapter(self, hash: str) -> AdapterBytes: ...

    async def save_state(self, state: RunState) -> None:
        """Durable only after all of the step's groups; its templates and their lives are saved with it."""
        ...

    async def load_state(self) -> RunState | None:
        """The newest state, or None before the first."""
        ...

    async def save_scores(self, split: str, scores: Sequence[Score]) -> None: ...

    async def load_scores(self, split: str) -> list[Score]: ...

    async def save_reply(self, key: str, reply: Reply, attempts: Sequence[Attempt] = ()) -> Reply:
        """The reply, with the calls that led to it."""
        ...

    async def load_reply(self, key: str, *, anywhere: bool = False) -> Reply | None:
        """The run's reply; with `anywhere`, another run's will do."""
        ...

    async def save_attempts(self, attempts: Sequence[Attempt]) -> None: ...

    async def attempts(self) -> list[Attempt]:
        """Every call made, in the order they were saved."""
        ...

    async def lessons(self, first: int = 0, last: int | None = None) -> list[Lesson]:
        """Those of steps first … last (inclusive), ordered by (step, group id)."""
        ...

    async def adapters(self) -> list[tuple[Adapter, dict[str, float]]]:
        """Every adapter made, by version and time, with what its update measured."""
        ...

    async def states(self) -> list[RunState]:
        """Every saved state, by step."""
        ...

    async def templates(self) -> list[Template]:
        """Every template that ever lived in the run, in the order they came."""
        ...

    async def lives(self) -> list[Life]:
        """The life of each of those, in their order."""
        ...

    async def trials(self, first: int = 0, last: int | None = None) -> list[Trial]:
        """Those of steps first … last (inclusive), ordered by (step, template, task); what got no reward is left out."""
        ...

    async def save_outcome(self, outcome: dict[str, Any]) -> None: ...

    async def load_outcome(self) -> dict[str, Any] | None: ...

    async def save_event(self, step: int, kind: str, detail: dict[str, Any]) -> None: ...

    async def events(self) -> list[dict[str, Any]]:
        """What `Archive.events` tells of this run."""
        ...

    async def scored_groups(self, first: int = 0, last: int | None = None) -> list[ScoredGroup]:
        """Those of steps first … last (inclusive), ordered by (step, group id), with what their rewards were made from."""
        ...

    async def add_evaluations(self, evaluations: Sequence[Evaluation]) -> None:
        """Append audits of rollouts that have their rewards, each (rollout, judge, dimension, version, audit) once.

        No reward changes, nor what `scored_groups` tells. Raises MissingError for a rollout without a reward, ValueError
        for an evaluation that is no audit.
        """
        ...

    async def save_labels(self, labels: Sequence[Evaluation]) -> None:
        """Append people's labels, by judges called "person:NAME", of rollouts that have their rewards, as audit LABEL.

        All are kept; of one person's on one dimension the newest counts. No reward changes. Raises MissingError for a
        rollout without a reward, ValueError for what no person said.
        """
        ...

    async def added_evaluations(self, first: int = 0, last: int | None = None) -> list[Evaluation]:
        """What was added, labels too, to the groups of steps first … last (inclusive), by step, group id and rollout, oldest first."""
        ...


class Archive(Protocol):
    """All runs: what operations read and steer. `make_storage(*, …)` of `storage/x.py` builds it (awaitable)."""

    async def create_run(self, state: RunState) -> None:
        """Begin a run: its recipe, its seed templates and its first state. Raises ConfigError if it exists."""
        ...

    async def open(self, run: str) -> "Store":
        """The tables of one run. Raises MissingError, naming the nearest run."""
        ...

    async def lock(self, run: str) -> None:
        """Hold the run until `close` or the process's end, however it ends. Raises RunLocked."""
        ...

    async def want(self, run: str, what: Want, who: str) -> None:
        """Ask a run to go on, to wait at the next step's edge, or to stop there."""
        ...

    async def wanted(self, run: str) -> Want: ...

    async def runs(self) -> list[dict[str, Any]]:
        """Newest first: run, name, step, steps, rollouts, wanted, created (ISO 8601), finished."""
        ...

    async def progress(self, run: str) -> dict[str, Any]:
        """What a progress bar needs, cheaply: step, steps, groups (of the newest step), rollouts."""
        ...

    async def find(self, kind: str, id: str, run: str | None = None) -> dict[str, Any]:
        """One row of `kind` (run, template, prompt, group, rollout, adapter) with everything kept of it.

        A unique beginning of an id will do. Raises MissingError, naming near ids; ConfigError where several fit.
        """
        ...

    async def search(self, run: str, vector: Sequence[float], limit: int) -> list[tuple[str, float]]:
        """(rollout id, cosine similarity), best first, by pgvector."""
        ...

    async def unembedded(self, run: str, limit: int) -> list[tuple[str, str]]:
        """(rollout id, text) of rollouts without an embedding yet."""
        ...

    async def save_embeddings(self, run: str, model: str, vectors: Sequence[tuple[str, Sequence[float]]]) -> None: ...

    async def events(self, run: str, after: int = 0) -> list[dict[str, Any]]:
        """id, time, step, kind, detail; in order."""
        ...

    async def close(self) -> None: ...


class Control(Protocol):
    """People's hands on the loop."""

    async def proceed(self, state: RunState) -> bool:
        """Whether to take another step; waits while the run is paused."""
        ...

    async def approve(self, state: RunState) -> RunState:
        """The state to go on with, after people have looked at it."""
        ...


@dataclass(frozen=True, slots=True)
class Crew:
    """Everything the loop may touch."""

    generators: Generators
    judges: Judges
    trainers: Trainers | None
    store: Store
    oracle: Oracle
    tasks: TaskSet
