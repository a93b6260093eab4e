"""Exams: how well templates do at temperature 0, per adapter; each answer is kept and never asked twice.

Splits keep their meaning: validation chooses templates and gates adapters, held-out is only reported.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from statistics import fmean, stdev

from grpo_ray.canonical import short
from grpo_ray.prompting import fits, render
from grpo_ray.protocols import Crew
from grpo_ray.recipe import Recipe, RunState
from grpo_ray.scoring import score
from grpo_ray.types import Adapter, Group, LostGroup, Population, Sampling, Score, Task, Template, Wave

WAVE = 64
FINALISTS = 4
"""Templates of one task type, best by fitness, that the final choice on validation tasks looks at."""

Pairs = Sequence[tuple[Template, Task]]
Choice = Mapping[str, Template]
"""Task type → the template to use for it."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A mean over tasks with its 95 % interval (normal approximation); `missing` tasks, without a verdict, are left out."""

    accuracy: float
    low: float
    high: float
    tasks: int
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to on held-out tasks. Arms: templates before or after, model before or after."""

    start_mean: Accuracy
    start_best: Accuracy
    best_template: Accuracy
    last_adapter: Accuracy
    both: Accuracy
    chosen: tuple[tuple[str, str, str], ...]
    """(arm, task type, template id)"""
    paired: tuple[tuple[str, float, float, float], ...]
    """(arm − arm, mean difference on the same tasks, 95 % low, high)"""


async def outcome(start: Population, state: RunState, crew: Crew) -> Outcome:
    """Choose on validation tasks, report on held-out ones."""
    recipe, last, tasks = state.recipe, state.adapter, crew.tasks.heldout
    first = await choose(start, None, recipe, crew, finalists=None)
    evolved = await choose(state.population, None, recipe, crew)
    tuned = await choose(state.population, last, recipe, crew, also=(first, evolved))
    everyone = [(template, task) for template in start.templates for task in tasks if fits(template, task)]
    arms = {
        "start_mean": await examine("heldout", everyone, None, recipe, crew),
        "start_best": await examine("heldout", under(first, tasks), None, recipe, crew),
        "best_template": await examine("heldout", under(evolved, tasks), None, recipe, crew),
        "last_adapter": await examine("heldout", under(first, tasks), last, recipe, crew),
        "both": await examine("heldout", under(tuned, tasks), last, recipe, crew),
    }
    chosen = {"start_best": first, "best_template": evolved, "last_adapter": first, "both": tuned}
    against = [("best_template", "start_best"), ("last_adapter", "start_best"), ("both", "start_best")]
    against += [("both", "best_template"), ("both", "last_adapter")]
    return Outcome(
        **{name: accuracy(scores) for name, scores in arms.items()},
        chosen=tuple((arm, kind, t.id) for arm, choice in chosen.items() for kind, t in sorted(choice.items())),
        paired=tuple((f"{a} - {b}", *difference(arms[b], arms[a])) for a, b in against),
    )


async def choose(
    population: Population,
    adapter: Adapter | None,
    recipe: Recipe,
    crew: Crew,
    finalists: int | None = FINALISTS,
    also: Sequence[Choice] = (),
) -> dict[str, Template]:
    """For each task type the template that does best on its validation tasks; ties go to the fitter one.

    Looked at are the `finalists` fittest (None: all), and what was chosen before, without the adapter (`also`).
    """
    members = sorted(population.members, key=lambda member: -member.fitness)
    kinds = sorted({task.task_type for task in crew.tasks.validation + crew.tasks.heldout})
    chosen: dict[str, Template] = {}
    for kind in kinds:
        tasks = [task for task in crew.tasks.validation if task.task_type == kind]
        fittest = [member.template for member in members if fits(member.template, kind)][:finalists]
        able = list({one.id: one for one in [*fittest, *(choice[kind] for choice in also)]}.values())
        pairs = [(template, task) for template in able for task in tasks]
        scores = await examine("validation", pairs, adapter, recipe, crew)
        means = {t.id: accuracy([s for s in scores if s.template_id == t.id]).accuracy for t in able}
        chosen[kind] = max(able, key=lambda template: means[template.id])
    return chosen


def favourite(population: Population, tasks: Sequence[Task]) -> dict[str, Template]:
    """For each task type the fittest template, as far as training tasks have shown."""
    members = sorted(population.members, key=lambda member: -member.fitness)
    kinds = sorted({task.task_type for task in tasks})
    return {kind: next(m.template for m in members if fits(m.template, kind)) for kind in kinds}


def under(choice: Choice, tasks: Sequence[Task]) -> list[tuple[Template, Task]]:
    """Each task with the template chosen for its type."""
    return [(choice[task.task_type], task) for task in tasks]


async def examine(split: str, pairs: Pairs, adapter: Adapter | None, recipe: Recipe, crew: Crew) -> list[Score]:
    """One score a pair, in the pairs' order; what the store knows already isn't asked again.

    Waves have fixed content: a wave is taken whole unless all of it is known, so that a repeat is the same exam.
    """
    name = adapter.hash if adapter else None
    known = {(s.template_id, s.task_id): s for s in await crew.store.load_scores(split) if s.adapter == name}
    waves = [pairs[i : i + WAVE] for i in range(0, len(pairs), WAVE)]
    todo = [wave for wave in waves if any((template.id, task.id) not in known for template, task in wave)]
    async with asyncio.TaskGroup() as air:
        flights = [air.create_task(_sit(wave, adapter, recipe, crew)) for wave in todo]
    found = [found for flight in flights for found in flight.result()]
    await crew.store.save_scores(split, found)
    known |= {(s.template_id, s.task_id): s for s in found}
    return [known[template.id, task.id] for template, task in pairs]


async def _sit(pairs: Pairs, adapter: Adapter | None, recipe: Recipe, crew: Crew) -> list[Score]:
    sampling = Sampling(**asdict(replace(recipe.sampling, group_size=1, temperature=0.0)), seed=recipe.seed)
    prompts = [render(template, task, "exam") for template, task in pairs]
    wave = Wave(short("w", [prompt.id for prompt in prompts], "exam"), tuple(prompts), sampling)
    groups = {group.prompt.id: group async for group in crew.generators.sample(wave, adapter)}
    async with asyncio.TaskGroup() as air:
        marks = [air.create_task(_mark(groups[prompt.id], recipe, crew)) for prompt in prompts]
    name = adapter.hash if adapter else None
    return [
        Score(template.id, name, task.id, correct, text)
        for (template, task), (correct, text) in zip(pairs, (mark.result() for mark in marks), strict=True)
    ]


async def _mark(group: Group | LostGroup, recipe: Recipe, crew: Crew) -> tuple[float | None, str]:
    """The verifier's word, or the reward that the judges' words come to; None: no verdict. No completion at all is 0."""
    if isinstance(group, LostGroup):
        return 0.0, ""
    task, text = group.prompt.task, group.rollouts[0].text
    if task.verifier:
        (verdict,) = await crew.oracle.check(task, [text])
        return verdict, text
    evaluations = await crew.judges.evaluate(-1, group)
    return (await score(group, evaluations, recipe)).rollouts[0].reward.value, text


def accuracy(scores: Sequence[Score]) -> Accuracy:
    """Mean over tasks of the mean over their scores, with a 95 % normal interval over tasks."""
    means = list(by_task(scores).values())
    mean, half = _mean(means), _half(means)
    missing = len({one.task_id for one in scores}) - len(means)
    return Accuracy(mean, max(0.0, mean - half), min(1.0, mean + half), len(means), missing)


def difference(before: Sequence[Score], after: Sequence[Score]) -> tuple[float, float, float]:
    """Mean paired difference over the tasks both have, with its 95 % interval."""
    old, new = by_task(before), by_task(after)
    gaps = [new[task] - old[task] for task in old if task in new]
    mean, half = _mean(gaps), _half(gaps)
    return mean, mean - half, mean + half


def clearly_worse(before: Sequence[Score], after: Sequence[Score], z: float) -> bool:
    """Whether `after` is below `before` by more than `z` standard errors of the paired difference."""
    old, new = by_task(before), by_task(after)
    gaps = [new[task] - old[task] for task in old if task in new]
    return _mean(gaps) + z * _half(gaps) / 1.96 < 0


def by_task(scores: Sequence[Score]) -> dict[str, float]:
    """Task id → mean of `correct` over its scores; tasks without a verdict are left out."""
    found: dict[str, list[float]] = {}
    for one in scores:
        if one.correct is not None:
            found.setdefault(one.task_id, []).append(one.correct)
    return {task: fmean(values) for task, values in found.items()}


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _half(values: Sequence[float]) -> float:
    """Half the width of a 95 % normal interval of the mean."""
    return 1.96 * stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
