"""Before a run, and apart from any: sample a few rollouts of a few train tasks under every template that fits, judge
them, and say what the model can do with them, with which templates to begin, and which tasks teach.

Nothing is kept. Held-out and validation tasks are not looked at.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from time import monotonic
from typing import Any

from grpo_ray import analysis, attended, crew, launch, planning, starting
from grpo_ray.canonical import plain, rng, short
from grpo_ray.curriculum import interleaved
from grpo_ray.errors import ConfigError, UnreachableError
from grpo_ray.launch import Inputs
from grpo_ray.operations import which
from grpo_ray.prompting import fits, render
from grpo_ray.protocols import Archive, Crew
from grpo_ray.recipe import Config, EvolutionSpec, JudgeSpec, PlanSpec, Recipe
from grpo_ray.scoring import score
from grpo_ray.types import Group, LostGroup, Prompt, Sampling, ScoredGroup, Task, Template, Wave
from grpo_ray.variation import variations

PURPOSE = "analysis"
BUCKETS = ("solved", "learnable", "too_hard")
QUIET = 0.05
"""The share of rollouts that a judge may leave without a mark before that is worth a word."""
Pair = tuple[Template, Task]
Landed = Callable[[int], None]
"""Called when a group is done with, with how many there will be as far as is known."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How much to sample: `rollouts` a group, `tasks` of each type, and `settings` other settings of the best templates."""

    rollouts: int = 4
    tasks: int = 6
    settings: int = 3


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What was found, plain, and the library that begins with what is proposed."""

    found: dict[str, Any]
    library: tuple[Template, ...]


@dataclass(frozen=True, slots=True)
class _Sampled:
    scored: tuple[ScoredGroup, ...]
    lost: tuple[LostGroup, ...]


# ── what it will take ─────────────────────────────────────────────────────────────────────────────────────────────


def planned(config: Config, inputs: Inputs, asked: Asked) -> dict[str, Any]:
    """How much would be sampled and judged, and what that would cost at most; nothing is asked for it.

    Raises ConfigError where there is nothing to sample.
    """
    tasks = chosen(inputs.tasks.train, asked.tasks, config.recipe.seed)
    kinds = {kind: _kind(kind, some, inputs.templates, asked) for kind, some in tasks.items()}
    groups = sum(one["groups"] + one["groups_with_other_settings"] for one in kinds.values())
    recipe = _recipe(config, asked)
    plan, judges = (
        PlanSpec(tasks=groups, templates=1),
        tuple(_at_most(judge, asked.rollouts) for judge in recipe.judges),
    )
    recipe = replace(recipe, steps=1, plan=plan, evolution=EvolutionSpec(children=0), judges=judges)
    bounds = launch.plan(replace(config, recipe=recipe), inputs)
    said = {key: bounds[key] for key in ("judge_model", "judge_calls", "oracle_tokens", "estimated_usd", "max_usd")}
    usd, most = bounds["estimated_usd"], bounds["max_usd"]
    warnings = [f"that may be more than oracle.max_usd ({most:g} USD)"] if most is not None and usd > most else []
    return {
        "name": recipe.name,
        "model": recipe.model,
        "types": kinds,
        "groups": groups,
        "rollouts": groups * asked.rollouts,
        "sampled_tokens": groups * asked.rollouts * recipe.sampling.max_tokens,
        **said,
        "warnings": warnings,
    }


def _at_most(judge: JudgeSpec, rollouts: int) -> JudgeSpec:
    """The judge, given no more answers a call than a group has, so that its tokens are not counted too high."""
    together = judge.settings.get("answers_per_call", 1)
    return replace(judge, settings={**judge.settings, "answers_per_call": rollouts}) if together > rollouts else judge


def _kind(kind: str, tasks: Sequence[Task], templates: Sequence[Template], asked: Asked) -> dict[str, int]:
    able = [template for template in templates if fits(template, kind)]
    others = sorted((_settings_left(one, asked.settings) for one in able), reverse=True)[: starting.FINALISTS]
    return {
        "tasks": len(tasks),
        "templates": len(able),
        "groups": len(tasks) * len(able),
        "groups_with_other_settings": len(tasks) * sum(others),
    }


def _settings_left(template: Template, most: int) -> int:
    return min(most, prod(len(parameter.choices) for parameter in template.parameters) - 1)


def chosen(tasks: Sequence[Task], count: int, seed: int) -> dict[str, list[Task]]:
    """Task type → `count` of its tasks, by the seed, their levels of difficulty in proportion. Raises ConfigError."""
    if not tasks:
        raise ConfigError("the config's train split is empty; raise splits.train, or add tasks")
    kinds: dict[str, list[Task]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: task.id):
        kinds[task.task_type].append(task)
    return {kind: _spread(some, rng(seed, PURPOSE, kind))[:count] for kind, some in sorted(kinds.items())}


def _spread(tasks: Sequence[Task], stream: Any) -> list[Task]:
    """One type's tasks by chance, in an order in which every stretch holds the levels in proportion."""
    _, level = analysis.levels(tasks)
    by_level: dict[str, list[Task]] = defaultdict(list)
    for task in stream.sample(list(tasks), len(tasks)):
        by_level[level.get(task.id, "")].append(task)
    return interleaved(by_level, stream)


def _recipe(config: Config, asked: Asked) -> Recipe:
    """The recipe for looking: no trainer, no audits, slots that are a number, and groups of the size asked for."""
    recipe = planning.looking(config, train=False).recipe
    return replace(recipe, sampling=replace(recipe.sampling, group_size=asked.rollouts))


# ── doing it ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def survey(config: Config, inputs: Inputs, asked: Asked, landed: Landed = lambda total: None) -> Surveyed:
    """Sample and judge in this process and in memory, at the config's endpoints, and say what was found.

    Raises ConfigError where there is nothing to sample, UnreachableError where no group came, or none was marked.
    """
    settings = replace(planning.looking(config, train=False), recipe=_recipe(config, asked))
    archive = await launch.open_archive(settings.placement)
    began = monotonic()
    try:
        state = await launch.start(archive, settings, inputs)
        with attended.bundled_server(settings) as base_url:
            async with crew.local_crew(settings, archive, state.run, inputs.tasks, base_url) as here:
                done = await surveyed_by(here, settings.recipe, inputs.templates, asked, landed)
                usd = sum(attempt.usd for attempt in await here.store.attempts())
    finally:
        await archive.close()
    group_size = config.recipe.sampling.group_size
    found = described(done, settings.recipe, inputs, group_size)
    spent = {"usd": round(usd, 6), "seconds": round(monotonic() - began, 1)}
    return Surveyed({**found, **spent, "asked": plain(asked)}, starting.library(done.starts, inputs.templates))


@dataclass(frozen=True, slots=True)
class Done:
    """The groups of the templates as they are, and of the best ones with other settings."""

    as_they_are: tuple[ScoredGroup, ...]
    others: tuple[ScoredGroup, ...]
    lost: tuple[LostGroup, ...]
    starts: tuple[starting.Start, ...]


async def surveyed_by(
    crew: Crew, recipe: Recipe, templates: Sequence[Template], asked: Asked, landed: Landed = lambda total: None
) -> Done:
    """Every template as it is first; then, for each task type, the best of them with other settings on the same tasks."""
    tasks = chosen(crew.tasks.train, asked.tasks, recipe.seed)
    plan = {kind: _kind(kind, some, templates, asked) for kind, some in tasks.items()}
    total = sum(one["groups"] + one["groups_with_other_settings"] for one in plan.values())
    pairs = [(t, task) for kind, some in tasks.items() for t in templates if fits(t, kind) for task in some]
    first = await _sample(pairs, crew, recipe, lambda: landed(total))
    marked = analysis.by_type(first.scored)
    _check(first, marked)
    tried = {
        kind: _tried(marked.get(kind, []), templates, some, asked.settings, recipe.seed) for kind, some in tasks.items()
    }
    pairs = [(other, task) for kind, some in tried.items() for other in some for task in tasks[kind]]
    second = await _sample(pairs, crew, recipe, lambda: landed(len(first.scored) + len(first.lost) + len(pairs)))
    made = [*templates, *(other for some in tried.values() for other in some)]
    everything = analysis.by_type([*first.scored, *second.scored])
    starts = tuple(starting.start(kind, some, made) for kind, some in sorted(everything.items()))
    return Done(first.scored, second.scored, (*first.lost, *second.lost), starts)


def _check(first: _Sampled, marked: dict[str, list[analysis.Marked]]) -> None:
    """Raise UnreachableError where there is nothing to say anything from, with the reasons."""
    if not first.scored:
        reasons = "; ".join(dict.fromkeys(one.reason for one in first.lost))
        raise UnreachableError(f"no group could be sampled: {reasons}")
    if all(mark is None for some in marked.values() for _, marks in some for mark in marks):
        said = [e for group in first.scored for one in group.rollouts for e in one.evaluations if e.score is None]
        reasons = (
            "; ".join(dict.fromkeys(f"{e.judge}: {e.rationale}" for e in said)) or "the recipe's judges say nothing"
        )
        raise UnreachableError(f"no rollout could be marked: {reasons[:2000]}")


def _tried(
    groups: Sequence[analysis.Marked], templates: Sequence[Template], tasks: Sequence[Task], most: int, seed: int
) -> list[Template]:
    """Other settings of one task type's best templates, such as can be rendered over its tasks."""
    finalists = starting.finalists(groups, templates) if most else []
    made = (other for template in finalists for other in variations(template, most, "covering", seed))
    return [other for other in made if _renders(other, tasks)]


def _renders(template: Template, tasks: Sequence[Task]) -> bool:
    try:
        return bool([render(template, task, PURPOSE) for task in tasks])
    except ConfigError:
        return False


async def _sample(pairs: Sequence[Pair], crew: Crew, recipe: Recipe, landed: Callable[[], None]) -> _Sampled:
    """Each group goes on to its judges the moment it is whole, as in a step; in the pairs' order."""
    prompts = [render(template, task, PURPOSE) for template, task in pairs]
    done: dict[str, ScoredGroup | LostGroup] = {}

    async def judge(group: Group | LostGroup) -> None:
        lost = isinstance(group, LostGroup)
        done[group.prompt.id] = group if lost else await score(group, await crew.judges.evaluate(0, group), recipe)
        landed()

    async def fly(wave: Wave) -> None:
        async with asyncio.TaskGroup() as landing:
            async for group in crew.generators.sample(wave, None):
                landing.create_task(judge(group))

    async with asyncio.TaskGroup() as air:
        for wave in _waves(prompts, recipe):
            air.create_task(fly(wave))
    found = [done[prompt.id] for prompt in prompts]
    scored = tuple(one for one in found if isinstance(one, ScoredGroup))
    return _Sampled(scored, tuple(one for one in found if isinstance(one, LostGroup)))


def _waves(prompts: Sequence[Prompt], recipe: Recipe) -> list[Wave]:
    """As many prompts a wave as the recipe says, or as fill the slots; a template's own stand side by side."""
    sampling = Sampling(**asdict(recipe.sampling), seed=recipe.seed)
    size = max(recipe.plan.wave, -(-sampling.slots // sampling.group_size))
    cuts = [tuple(prompts[at : at + size]) for at in range(0, len(prompts), size)]
    return [Wave(short("w", [prompt.id for prompt in cut], PURPOSE), cut, sampling) for cut in cuts]


# ── what was found ────────────────────────────────────────────────────────────────────────────────────────────────


def described(done: Done, recipe: Recipe, inputs: Inputs, group_size: int) -> dict[str, Any]:
    """What the groups show, plain: `types`, `start`, `curriculum` for runs with groups of `group_size`, and `warnings`."""
    types = analysis.analyse(done.as_they_are, inputs.templates, inputs.tasks.train)
    everything = [*done.as_they_are, *done.others]
    found = [trial for some in analysis.by_type(everything).values() for trial in analysis.trials(some)]
    return {
        "name": recipe.name,
        "model": recipe.model,
        "groups": len(everything),
        "rollouts": sum(len(group.rollouts) for group in everything),
        "lost": dict(Counter(one.reason for one in done.lost)),
        "types": plain(types),
        "start": plain(done.starts),
        "curriculum": plain(analysis.curriculum(found, inputs.tasks.train, group_size)),
        "warnings": warnings(types, len(done.lost)),
    }


def warnings(types: Sequence[analysis.TypeReport], lost: int) -> list[str]:
    """What a reader should know before believing the numbers."""
    said = [f"{lost} groups were lost and are left out"] if lost else []
    for one in types:
        if one.overall.unmarked:
            said.append(f"{one.task_type}: nobody could mark {one.overall.unmarked} of {one.overall.rollouts} rollouts")
        said += [f"{one.task_type}: {line}" for line in _silences(one.dimensions)]
        by_stand_in = [found.judge for found in one.dimensions if found.stand_in]
        if by_stand_in:
            said.append(f"{one.task_type}: the marks of {by_stand_in[0]} come from a stand-in, not from a model")
    return said


def _silences(dimensions: Sequence[analysis.Dimension]) -> list[str]:
    """A line for the dimensions of one judge on which marks are missing, alike and for the same reason."""
    found: dict[tuple[str, int, int, str], list[str]] = defaultdict(list)
    for one in dimensions:
        if one.missing > QUIET * (one.missing + one.scored):
            why = f": {one.examples[0]}" if not one.scored and one.examples else ""
            found[one.judge, one.missing, one.missing + one.scored, why].append(one.dimension)
    return [
        f"{judge} gave no mark to {missing} of {rollouts} rollouts ({', '.join(names)}){why}"
        for (judge, missing, rollouts, why), names in found.items()
    ]


async def of_run(archive: Archive, run: str | None = None) -> dict[str, Any]:
    """The same of a run's own rollouts, of any template and adapter; newer ones count more in its curriculum.

    Nothing is sampled. Raises MissingError where no step is saved yet.
    """
    row = await which(archive, run)
    store = await archive.open(row["run"])
    state = await launch.newest(store, row["run"])
    steps = {step: await store.scored_groups(step, step) for step in range(state.step)}
    groups = [group for some in steps.values() for group in some]
    if not groups:
        raise ConfigError(f"run {row['run']} has no rewarded rollouts yet; let it take a step")
    marked = {step: analysis.by_type(some) for step, some in steps.items()}
    found = [t for step, kinds in marked.items() for some in kinds.values() for t in analysis.trials(some, step)]
    tasks = list({group.group.prompt.task.id: group.group.prompt.task for group in groups}.values())
    types = analysis.analyse(groups, await store.templates(), tasks)
    return {
        "run_id": row["run"],
        "name": row["name"],
        "steps": state.step,
        "groups": len(groups),
        "rollouts": sum(len(group.rollouts) for group in groups),
        "types": plain(types),
        "curriculum": plain(analysis.curriculum(found, tasks, state.recipe.sampling.group_size)),
        "warnings": warnings(types, 0),
    }


def brief(found: dict[str, Any], limit: int) -> dict[str, Any]:
    """A report without every task's weight, and with at most `limit` tasks a bucket; `counts` says how many there are."""
    whole = found["curriculum"]
    cut = {bucket: whole[bucket][:limit] for bucket in BUCKETS}
    counts = {bucket: len(whole[bucket]) for bucket in BUCKETS}
    rest = {key: whole[key] for key in ("group_size", "unmeasured")}
    return {**found, "curriculum": {**rest, **cut, "counts": counts}}
