"""Prompt evolution and GEPA on the bundled nano model: the three datasets of configs/quickstart.yaml, searched apart.

Both begin with the first template of prompts.json for the task's type, get as many rollouts of the same tasks at the
quickstart's temperature, and the same luck: a draw is numbered by (text, task, repeat). A rollout's score is the
verifier's word alone, 0 or 1; its feedback are the rationales of the rubric, by the bundled server's rules. Both have
their texts rewritten by `mutations/rewrite.py`, which asks the same bundled server. GEPA's candidate is the template's
text with its settings filled in; a setting that the reply moves becomes another phrase in it.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from evolution_gepa import COMPONENT, FOLDER, TUNED, Quiet
from evolution_meter import Outcome, Spent

from grpo_ray.asking import Silent
from grpo_ray.canonical import plain, rng
from grpo_ray.errors import OracleError
from grpo_ray.generators.mlx import make_generator
from grpo_ray.judges import rubric
from grpo_ray.library import load_library
from grpo_ray.mutations import rewrite
from grpo_ray.optimize import candidate, optimize_prompts
from grpo_ray.prompting import content_hash, render
from grpo_ray.protocols import Generator
from grpo_ray.recipe import Config, Splits
from grpo_ray.settings import load_config
from grpo_ray.splits import cut
from grpo_ray.stand_ins import replies
from grpo_ray.tasks import reasoning_gym
from grpo_ray.types import (
    Evaluation,
    Group,
    LostGroup,
    Message,
    Parent,
    Prompt,
    Reply,
    Reward,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    Template,
    Wave,
)

HOME = Path(__file__).parents[2]
DATASETS = ("chain_sum", "products", "spell_backward")
SEARCHED, HELD_OUT = 100, 200
"""Tasks that a search may use, and others that its text is marked by."""
SPARE = 2
"""How many times more are made than are needed, for some questions come twice."""
BUDGET = 300
POOL = 2
ANSWERER = Template("candidate", "{{ question }}")


@dataclass(frozen=True, slots=True)
class Exercise:
    """One dataset cut by a seed, and the template that every search begins with."""

    dataset: str
    seed: int
    tasks: tuple[Task, ...]
    held_out: tuple[Task, ...]
    start: Template


@dataclass(frozen=True, slots=True)
class Rolled:
    """One rollout, as a search sees it."""

    prompt: Prompt
    rollout: Rollout
    score: float
    feedback: str


@dataclass(frozen=True, slots=True)
class Found:
    """One search: the held-out accuracy of its text, and of the start's, at temperature 0."""

    dataset: str
    seed: int
    arm: str
    value: float
    start: float
    text: str
    rollouts: int
    replies: int
    seconds: float


@lru_cache
def quickstart() -> Config:
    return load_config(HOME / "configs" / "quickstart.yaml")


@lru_cache
def nano() -> Generator:
    """The model, loaded once a process; it belongs to the thread that asked first."""
    return make_generator(model=quickstart().recipe.model)


def exercise(dataset: str, seed: int) -> Exercise:
    """The quickstart's parameters, and fresh tasks for every seed."""
    (settings,) = [one.settings for one in quickstart().recipe.tasks if one.settings["dataset"] == dataset]
    wanted = {"size": SPARE * (SEARCHED + HELD_OUT), "seed": seed}
    made = reasoning_gym.load_tasks(**{**settings, **wanted})
    tasks = cut([made], Splits(train=SEARCHED, validation=0, heldout=HELD_OUT), seed)
    start = next(one for one in load_library(HOME / "prompts.json") if one.task_type == settings["task_type"])
    return Exercise(dataset, seed, tasks.train, tasks.heldout, start)


def sampled(prompts: Sequence[Prompt], temperature: float, seed: int) -> list[Group | LostGroup]:
    """One rollout a prompt, all in one wave, in the prompts' order."""
    settings = replace(quickstart().recipe.sampling, group_size=1, temperature=temperature)
    wave = Wave("w", tuple(prompts), Sampling(**asdict(settings), seed=seed))
    groups = {group.prompt.id: group for group in nano().sample(wave, None, None)}
    return [groups[prompt.id] for prompt in prompts]


def answerer(text: str) -> Template:
    """A candidate's text as a template without parameters."""
    return replace(ANSWERER, text=text)


def accuracy(text: str, tasks: Sequence[Task]) -> float:
    """The part of the tasks that is solved at temperature 0."""
    groups = sampled([render(answerer(text), task, "exam") for task in tasks], 0.0, 0)
    return fmean(correct(group) for group in groups)


def correct(group: Group | LostGroup) -> float:
    """The verifier's word on the only rollout; a prompt that could not be answered is wrong."""
    return 0.0 if isinstance(group, LostGroup) else reasoning_gym.verify(group.rollouts[0].text, group.prompt.task)


class StandIn(Silent):
    """The bundled server's model, asked in this process; `replies` counts what it said."""

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        body = {"model": replies.MODEL, "messages": plain(list(messages)), "response_format": {"type": "json_object"}}
        status, said = replies.complete(body)
        if status != 200:
            raise OracleError(f"the bundled server refuses: {said}")
        self.replies += 1
        return Reply(said["choices"][0]["message"]["content"], replies.MODEL, stand_in=True)


class Desk:
    """Rollouts of an exercise on a budget."""

    def __init__(self, exercise: Exercise, budget: int) -> None:
        self.exercise, self.budget, self.spent = exercise, budget, 0
        self._repeats: Counter[tuple[str, str]] = Counter()
        self._judge = StandIn()

    async def rolled(self, wanted: Sequence[tuple[str, Task]]) -> list[Rolled]:
        """A rollout of each text over its task, in one wave. Raises Spent, and samples nothing, beyond the budget."""
        if self.spent + len(wanted) > self.budget:
            raise Spent(f"{len(wanted)} rollouts are more than are left of {self.budget}")
        self.spent += len(wanted)
        prompts = [self._prompt(text, task) for text, task in wanted]
        groups = sampled(prompts, quickstart().recipe.sampling.temperature, self.exercise.seed)
        return [await self._marked(group) for group in groups]

    def _prompt(self, text: str, task: Task) -> Prompt:
        """The prompt, under a name that its luck depends on."""
        repeat = self._repeats[text, task.id]
        self._repeats[text, task.id] += 1
        return render(answerer(text), task, f"{content_hash(answerer(text))}/{repeat}")

    async def _marked(self, group: Group | LostGroup) -> Rolled:
        if isinstance(group, LostGroup):
            silent = Rollout(f"{group.id}-0", 0, "", (), (), "stop", 0)
            return Rolled(group.prompt, silent, 0.0, f"There is no answer: {group.reason}")
        said = await rubric.judge(group, self._judge)
        return Rolled(group.prompt, group.rollouts[0], correct(group), " ".join(one.rationale for one in said))


# ── the searches ──────────────────────────────────────────────────────────────────────────────────────────────────


def ours(exercise: Exercise, budget: int) -> Outcome:
    """`optimize_prompts` as anybody would call it."""
    desk, oracle = Desk(exercise, budget), StandIn()

    async def evaluator(candidate: Mapping[str, str], task: Task) -> tuple[float, Mapping[str, str]]:
        (rolled,) = await desk.rolled([(candidate["text"], task)])
        return rolled.score, {"feedback": rolled.feedback, "answer": rolled.rollout.text}

    seed = exercise.seed
    found = asyncio.run(
        optimize_prompts([exercise.start], exercise.tasks, evaluator, budget=budget, oracle=oracle, seed=seed)
    )
    return Outcome(found.text, desk.spent, oracle.replies)


class Adapter:
    """GEPAAdapter over a desk. A batch that the budget does not cover is broken off, and the run ends.

    A proposal is the rewrite mutation's, of the template that a candidate's text was filled in from.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk, self.oracle = desk, StandIn()
        self.broken_off = False
        self._luck = rng(desk.exercise.seed, "gepa")
        self._templates = {candidate(desk.exercise.start)["text"]: desk.exercise.start}

    def evaluate(self, batch: list[Task], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        from gepa.core.adapter import EvaluationBatch  # pyright: ignore[reportMissingImports]

        try:
            rolled = asyncio.run(self.desk.rolled([(candidate[COMPONENT], task) for task in batch]))
        except Spent:
            self.broken_off = True
            raise
        scores = [one.score for one in rolled]
        return EvaluationBatch(outputs=scores, scores=scores, trajectories=rolled if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        return {name: [{"rolled": one} for one in eval_batch.trajectories] for name in components_to_update}

    def propose_new_texts(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        """Raises OracleError where two replies in a row won't do; GEPA asks again, and then lets the iteration be."""
        seen = [one["rolled"] for one in reflective_dataset[COMPONENT]]
        text, child = self._rewritten(parent_of(self._templates[candidate[COMPONENT]], seen))
        self._templates[text] = child
        return {COMPONENT: text}

    def _rewritten(self, parent: Parent) -> tuple[str, Template]:
        child = asyncio.run(rewrite.mutate([parent], self.oracle, self._luck))
        return candidate(child)["text"], child


def parent_of(template: Template, seen: Sequence[Rolled]) -> Parent:
    """What the rewriter reads: all that was seen, right answers as the best, the others as the worst."""
    shown = [(one.prompt, _scored(one)) for one in seen]
    best = tuple(pair for pair, one in zip(shown, seen, strict=True) if one.score == 1)
    worst = tuple(pair for pair, one in zip(shown, seen, strict=True) if one.score < 1)
    return Parent(template, fmean(one.score for one in seen), best, worst)


def _scored(rolled: Rolled) -> ScoredRollout:
    """As `optimize_prompts` hands on what an evaluator says."""
    said = Evaluation(rolled.rollout.id, "evaluator", "score", rolled.score, rolled.feedback)
    return ScoredRollout(rolled.rollout, (said,), Reward(rolled.score, ()))


def gepa(exercise: Exercise, budget: int, *, validation: int, **settings: Any) -> Outcome:
    """Run GEPA with the last `validation` tasks as its validation set and the rest to reflect on."""
    sys.path.append(str(FOLDER))
    from gepa import optimize  # pyright: ignore[reportMissingImports]

    desk = Desk(exercise, budget)
    adapter = Adapter(desk)
    result = optimize(
        seed_candidate={COMPONENT: candidate(exercise.start)["text"]},
        trainset=list(exercise.tasks[:-validation]),
        valset=list(exercise.tasks[-validation:]),
        adapter=adapter,
        stop_callbacks=lambda state: adapter.broken_off or desk.spent >= budget,
        logger=Quiet(),
        seed=exercise.seed,
        raise_on_exception=False,
        **settings,
    )
    return Outcome(result.best_candidate[COMPONENT], desk.spent, adapter.oracle.replies)


# ── running them ──────────────────────────────────────────────────────────────────────────────────────────────────


ARMS = {"ours": ours, "gepa tuned": partial(gepa, **TUNED)}


def search(exercise: Exercise, arm: str, budget: int, start: float) -> Found:
    """Run one arm, and mark what it found."""
    began = time.perf_counter()
    found = ARMS[arm](exercise, budget)
    seconds = round(time.perf_counter() - began, 1)
    value = accuracy(found.text, exercise.held_out)
    which = exercise.dataset, exercise.seed, arm
    return Found(*which, value, start, found.text, found.rollouts, found.replies, seconds)


def search_all(job: tuple[str, int, tuple[str, ...], int]) -> list[Found]:
    """Every arm on one dataset and seed."""
    dataset, seed, arms, budget = job
    given = exercise(dataset, seed)
    start = accuracy(candidate(given.start)["text"], given.held_out)
    return [search(given, arm, budget, start) for arm in arms]


def measure(datasets: Sequence[str], seeds: Sequence[int], arms: Sequence[str]) -> Iterator[Found]:
    """Every arm on every dataset and seed, over a pool of processes."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    jobs = [(dataset, seed, tuple(arms), BUDGET) for seed, dataset in product(seeds, datasets)]
    with ProcessPoolExecutor(min(POOL, len(jobs)), mp_context=get_context("spawn")) as pool:
        for found in pool.map(search_all, jobs):
            for one in found:
                print(
                    f"{one.dataset} {one.seed} {one.arm}: {one.value:.3f} by {one.text!r}", file=sys.stderr, flush=True
                )
            yield from found
