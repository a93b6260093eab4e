"""The search as a machine: whether one seed leads to one population, bit for bit, and what the algorithm itself takes.

For the first, searches of simulated worlds are recorded and replayed, in the same process and in fresh ones whose
hashes are salted otherwise. For the second, the search of `optimize_prompts` goes on from a large archive, with rollouts
and replies that come at once.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from random import Random
from typing import Any

import numpy as np
from evolution_meter import Meter
from evolution_reflector import SimOracle
from evolution_worlds import World

from grpo_ray import optimize
from grpo_ray.canonical import digest, plain, typed
from grpo_ray.fenced import unfenced
from grpo_ray.pieces import rebuilt
from grpo_ray.prompting import content_hash
from grpo_ray.recipe import PlanSpec, Recipe
from grpo_ray.trials import Trial
from grpo_ray.types import Choice, Member, Message, Parameter, Population, Reply, Task, Template

BUDGET = 300
SALTS = ("1", "2")
PARAMETERS, LABELS, SENTENCES = 10, 4, 60
ARCHIVED, TASKS, TRIALS, LIVING = 1000, 200, 3, 12
Tape = dict[str, Any]
"""Name of a request → what was replied."""


# ── the same population from the same seed ────────────────────────────────────────────────────────────────────────


class Recorder(optimize.Silent):
    """An oracle that keeps what another replied; without another it replays, and raises LookupError for news."""

    def __init__(self, inner: SimOracle | None, tape: Tape, scope: str = "") -> None:
        self.inner, self.tape, self.scope = inner, tape, scope
        self._seen: Counter[str] = Counter()

    def within(self, scope: str) -> "Recorder":
        return Recorder(self.inner, self.tape, f"{self.scope}/{scope}")

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        key = self._name("complete", list(messages), shape.__name__ if shape else "", nth)
        if self.inner and key not in self.tape:
            self.tape[key] = plain(await self.inner.complete(messages, shape=shape, nth=nth))
        return typed(Reply, self._known(key))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        key = self._name("embed", list(texts))
        if self.inner and key not in self.tape:
            self.tape[key] = await self.inner.embed(texts)
        return self._known(key)

    def _name(self, *asked: Any) -> str:
        """By scope, request, and how often this scope has asked it."""
        request = digest([self.scope, *asked])
        self._seen[request] += 1
        return f"{request} {self._seen[request]}"

    def _known(self, key: str) -> Any:
        if key not in self.tape:
            raise LookupError(f"a request in {self.scope} was never recorded: the search has taken another way")
        return self.tape[key]


def outcome(kind: str, seed: int, tape: Tape, *, live: bool, budget: int = BUDGET) -> str:
    """The digest of population, archive, trials and returned text of a search of a world."""
    world = World(seed, kind)
    meter = Meter(world, budget)
    numbers = {task.id: number for number, task in enumerate(world.tasks)}

    def evaluator(candidate: Mapping[str, str], task: Task) -> tuple[float, Mapping[str, str]]:
        score, said = meter.roll(candidate["text"], numbers[task.id])
        return score, {"feedback": said, "answer": "right" if score > 0.5 else "wrong"}

    oracle = Recorder(SimOracle(world, seed) if live else None, tape)
    found = asyncio.run(
        optimize.optimize_prompts(
            [world.seed_template()], world.tasks, evaluator, budget=budget, oracle=oracle, seed=seed
        )
    )
    return digest([found.population, found.archive, found.trials, found.text])


def recorded(kind: str, seed: int) -> tuple[Tape, list[str]]:
    """What was replied in a search, and its digest, followed by that of a replay in the same process."""
    tape: Tape = {}
    return tape, [outcome(kind, seed, tape, live=True), outcome(kind, seed, tape, live=False)]


def replayed(kind: str, seed: int, tape: Tape) -> str:
    return outcome(kind, seed, tape, live=False)


@dataclass(frozen=True, slots=True)
class Replays:
    """Digests of one search: as it was recorded, then of its replays."""

    kind: str
    seed: int
    replies: int
    digests: tuple[str, ...]

    @property
    def differ(self) -> int:
        """Replays that came to something else."""
        return sum(other != self.digests[0] for other in self.digests[1:])


def replays(kinds: Sequence[str], seeds: Sequence[int]) -> list[Replays]:
    """Every world searched and recorded in one process, and replayed there and in a fresh process a salt."""
    jobs = [(kind, seed) for seed in seeds for kind in kinds]
    with alone("0") as pool:
        taped = list(pool.map(recorded, *zip(*jobs, strict=True)))
    digests = [said for _, said in taped]
    for salt in SALTS:
        with alone(salt) as pool:
            again = pool.map(replayed, *zip(*jobs, strict=True), [tape for tape, _ in taped])
            digests = [[*said, other] for said, other in zip(digests, again, strict=True)]
    return [Replays(*job, len(tape), tuple(said)) for job, (tape, _), said in zip(jobs, taped, digests, strict=True)]


def alone(salt: str) -> ProcessPoolExecutor:
    """One fresh process whose hashes are salted so, on one thread."""
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": salt}
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


# ── the algorithm's own time ──────────────────────────────────────────────────────────────────────────────────────


class Canned(optimize.Silent):
    """Replies at once: the template it was shown with one sentence more, always another."""

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        self.replies += 1
        text = next(data["template"] for message in messages if (data := unfenced(message.content)))
        new = rebuilt(text, added=[f"Mind point {self.replies}, which is new."])
        said = {"diagnosis": "One more thing is to be minded.", "settings": [], "text": new}
        assert shape
        return Reply(shape.model_validate(said).model_dump_json(), "canned", stand_in=True)


def first() -> Template:
    """A template of ten parameters with four labels each."""
    names = [f"p{number}" for number in range(PARAMETERS)]
    parameters = tuple(
        Parameter(name, tuple(Choice(f"{label}", f"Way {label} of {name}.") for label in range(LABELS)))
        for name in names
    )
    text = "\n".join([*(f"{{{{ {name} }}}}" for name in names), "Solve this.", "", "Question: {{ question }}"])
    return Template("seed", text, parameters=parameters, settings=tuple((name, "0") for name in names))


def descendants(luck: Random, count: int) -> list[Template]:
    """A family: each a child of an earlier one by a setting or two and a sentence, no two of them alike."""
    family = [first()]
    known = {content_hash(family[0])}
    while len(family) < count:
        child = _child(luck.choice(family), luck, "rewrite" if len(family) % 2 else "recombine")
        if (hash := content_hash(child)) not in known:
            known.add(hash)
            family.append(replace(child, id=f"seed~{hash}"))
    return family


def _child(parent: Template, luck: Random, mutation: str) -> Template:
    moved = {f"p{number}" for number in luck.sample(range(PARAMETERS), luck.randint(1, 2))}
    settings = tuple((n, str(luck.randrange(LABELS)) if n in moved else label) for n, label in parent.settings)
    sentence = f"Keep rule {luck.randrange(SENTENCES)} in mind."
    there = sentence in parent.text
    text = rebuilt(parent.text, dropped=[sentence] if there else [], added=[] if there else [sentence])
    return replace(parent, text=text, settings=settings, mutation=mutation, parents=(parent.id,))


def told(family: Sequence[Template], tasks: Sequence[Task], luck: Random) -> list[Trial]:
    """A few trials of each template, from long ago up to the last step, as four children a step would have had them."""
    worth = {template.id: luck.gauss(0.5, 0.2) for template in family}
    return [
        Trial(one.id, task.id, task.task_type, (place - len(family)) // 4, luck.gauss(worth[one.id], 0.3), 1)
        for place, one in enumerate(family)
        for task in luck.sample(list(tasks), TRIALS)
    ]


def begun(evaluator: optimize.Evaluator, archived: int, seed: int) -> optimize.Search:
    """A search that stands where an archive of that size has led it: the last templates live."""
    luck = Random(seed)
    tasks = [Task(f"t{number:03}", f"What is {number} + {number}?") for number in range(TASKS)]
    family = descendants(luck, archived)
    recipe = Recipe(
        tasks=(),
        seed=seed,
        plan=optimize.PLAN,
        evolution=replace(optimize.EVOLUTION, size=LIVING),
        trainer=None,
        prompts="the archive",
    )
    population = Population(tuple(Member(template) for template in family[-LIVING:]))
    search = optimize.Search(recipe, tasks, evaluator, {task.id: task for task in tasks}, 0, population)
    search.archive |= {template.id: template for template in family}
    search.trials += told(family, tasks, luck)
    return search


def a_generation(plan: PlanSpec) -> int:
    """Rollouts of one."""
    return plan.tasks * plan.templates


def generations(count: int, archived: int = ARCHIVED, seed: int = 0) -> list[float]:
    """Seconds that each of so many generations takes, the first of them with nothing read yet.

    From a generation's first rollout to the next one's: what rollouts are remembered by, what trials say, children,
    who leaves, and the plan.
    """
    times: list[float] = []
    luck = Random(seed)

    def evaluator(candidate: Mapping[str, str], task: Task) -> tuple[float, Mapping[str, str]]:
        times.append(time.perf_counter())
        return float(luck.random() < 0.5), {"feedback": "It goes wrong somewhere.", "answer": "wrong"}

    search = begun(evaluator, archived, seed)
    rollouts = a_generation(search.recipe.plan)
    asyncio.run(optimize._evolve(search, Canned(), rollouts * (count + 1), patience=None, proceed=lambda spent: True))
    return np.diff(np.array(times[::rollouts])).tolist()


def timed(count: int, archived: int = ARCHIVED) -> list[float]:
    """The same in a fresh process, on one thread."""
    with alone("0") as pool:
        return pool.submit(generations, count, archived).result()
