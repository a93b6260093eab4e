"""The population: what a step explores, what its groups say of each template, and who lives on.

All chance comes from the run's seed and the step, so the same rewards lead to the same population.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from math import ceil

from grpo_ray.advantages import with_advantages
from grpo_ray.canonical import rng, short
from grpo_ray.curriculum import prefer, weights
from grpo_ray.errors import ConfigError
from grpo_ray.evolution.births import bear, kinds_met, unrenderable
from grpo_ray.evolution.culling import culled
from grpo_ray.evolution.knowledge import Knowledge, informed
from grpo_ray.prompting import fits, render, uses_metadata
from grpo_ray.protocols import Oracle
from grpo_ray.recipe import Recipe
from grpo_ray.trials import Trial
from grpo_ray.types import ANY, Member, Policy, Population, Prompt, Sampling, ScoredGroup, Task, Template, Wave


def begin(templates: Sequence[Template], recipe: Recipe) -> Population:
    """The first population of a run: the seed templates, all of them, nothing known of any."""
    if not templates:
        raise ConfigError(f"{recipe.prompts} has no templates; a run needs at least one")
    return Population(tuple(Member(template) for template in templates))


def unfit(templates: Sequence[Template], tasks: Sequence[Task]) -> list[str]:
    """What keeps templates and tasks from going together: a task type no template fits, metadata that is not there."""
    kinds = sorted({task.task_type for task in tasks})
    lonely = [kind for kind in kinds if not any(fits(template, kind) for template in templates)]
    found = [f"no template fits tasks of type {kind!r}; add one of that type, or of type {ANY!r}" for kind in lonely]
    for template in filter(uses_metadata, templates):
        refused = (unrenderable(template, task) for task in tasks if fits(template, task))
        found += [reason for reason in refused if reason][:1]
    return found


# ── what a step explores ──────────────────────────────────────────────────────────────────────────────────────────


def plan_waves(
    step: int, policy: Policy, tasks: Sequence[Task], recipe: Recipe, trials: Sequence[Trial] = ()
) -> list[Wave]:
    """The step's prompts: each of its tasks under several templates, cut into waves of fixed content.

    With a curriculum the tasks are drawn by what `trials` show of them; without, each comes once an epoch.
    Raises ConfigError when a task has no template that fits it.
    """
    if recipe.plan.curriculum:
        chosen = _preferred(tasks, recipe.plan.tasks, rng(recipe.seed, "curriculum", step), tasks, recipe, trials)
    else:
        chosen = next(islice(_draws(tasks, recipe.plan.tasks, recipe.seed), step, None))
    stream = rng(recipe.seed, "prompts", step)
    return _waves(chosen, step, policy, recipe, stream)


def plan_refill(
    step: int,
    policy: Policy,
    rounds: Sequence[Sequence[Wave]],
    found: Sequence[ScoredGroup],
    tasks: Sequence[Task],
    recipe: Recipe,
    trials: Sequence[Trial] = (),
) -> list[Wave]:
    """Further tasks for a step, in place of those groups of its first round that taught nothing. None missing: no waves.

    Such a group was lost, or its rewards are all alike (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2). `rounds`
    are the step's waves so far: their tasks are not met again. Each new task comes under several templates, as all do.
    """
    met = [{prompt.task.id for wave in waves for prompt in wave.prompts} for waves in rounds]
    wanted = sum(len(wave.prompts) for wave in rounds[0])
    teaching = sum(any(lesson.advantages) for lesson in with_advantages(found, recipe))
    stream = rng(recipe.seed, "refill", step, len(rounds))
    fresh = [task for task in _permuted(tasks, stream) if not any(task.id in some for some in met)]
    count = ceil(max(0, wanted - teaching) / recipe.plan.templates)
    if recipe.plan.curriculum:
        fresh = _preferred(fresh, count, stream, tasks, recipe, trials)
    return _waves(fresh[:count], step, policy, recipe, stream)


def _preferred(
    some: Sequence[Task],
    count: int,
    stream: random.Random,
    tasks: Sequence[Task],
    recipe: Recipe,
    trials: Sequence[Trial],
) -> list[Task]:
    """`count` of some tasks: rather those whose groups should come out mixed; what is known of a type is of all its `tasks`."""
    return prefer(some, weights(trials, tasks, recipe.sampling.group_size), count, stream)


def _waves(tasks: Sequence[Task], step: int, policy: Policy, recipe: Recipe, stream: random.Random) -> list[Wave]:
    pairs = _assign(tasks, policy.population.members, recipe, stream)
    prompts = [render(template, task, step) for template, task in pairs]
    stream.shuffle(prompts)
    seed = rng(recipe.seed, "sampling", step).getrandbits(31)
    sampling = Sampling(**asdict(recipe.sampling), seed=seed)
    cuts = [_neighbours(prompts[i : i + recipe.plan.wave]) for i in range(0, len(prompts), recipe.plan.wave)]
    return [Wave(short("w", [prompt.id for prompt in cut], sampling), cut, sampling) for cut in cuts]


def _neighbours(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """A template's prompts side by side: they begin alike, and generators read a shared beginning once."""
    return tuple(sorted(prompts, key=lambda prompt: prompt.template_id))


def _draws(tasks: Sequence[Task], size: int, seed: int) -> Iterator[list[Task]]:
    """The tasks of step 0, 1, 2, …: without replacement over epochs, and never one task twice in a step."""
    size = min(size, len(tasks))
    pool: list[Task] = []
    epoch = 0
    while True:
        if len(pool) < size:
            fresh = _permuted(tasks, rng(seed, "tasks", epoch))
            left = {task.id for task in pool}
            lead = [task for task in fresh if task.id not in left][: size - len(pool)]
            leading = {task.id for task in lead}
            pool += [*lead, *(task for task in fresh if task.id not in leading)]
            epoch += 1
        yield pool[:size]
        pool = pool[size:]


def _permuted(tasks: Sequence[Task], stream: random.Random) -> list[Task]:
    """The tasks in a random order in which every stretch holds the task types in proportion."""
    kinds: dict[str, list[Task]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: task.id):
        kinds[task.task_type].append(task)
    placed: list[tuple[float, str, Task]] = []
    for kind, some in sorted(kinds.items()):
        stream.shuffle(some)
        placed += [((index + 0.5) / len(some), kind, task) for index, task in enumerate(some)]
    return [task for *_, task in sorted(placed, key=lambda place: place[:2])]


def _assign(
    tasks: Sequence[Task], members: Sequence[Member], recipe: Recipe, stream: random.Random
) -> list[tuple[Template, Task]]:
    """Each task under the templates that a draw likes best (Thompson sampling); those never tried come first, once."""
    untried = {member.template.id for member in members if not member.trials}
    pairs: list[tuple[Template, Task]] = []
    for task in tasks:
        able = [member for member in members if fits(member.template, task)]
        if not able:
            raise ConfigError(f"no template fits tasks of type {task.task_type!r} (task {task.id!r})")
        stream.shuffle(able)
        luck = {member.template.id: stream.gauss(member.fitness, member.deviation) for member in able}
        able.sort(key=lambda member: (member.template.id not in untried, -luck[member.template.id]))
        chosen = _with_known(able, recipe.plan.templates)
        untried -= {member.template.id for member in chosen}
        pairs += [(member.template, task) for member in chosen]
    return pairs


def _with_known(able: Sequence[Member], count: int) -> list[Member]:
    """The first `count`; where all are new, the last gives way to one that new ones can be measured against."""
    chosen, rest = list(able[:count]), able[count:]
    known = [member for member in rest if member.trials]
    if known and count > 1 and not any(member.trials for member in chosen):
        chosen[-1] = known[0]
    return chosen


# ── who lives on ──────────────────────────────────────────────────────────────────────────────────────────────────


async def evolve(
    population: Population, groups: Sequence[ScoredGroup], known: Knowledge, oracle: Oracle, step: int, recipe: Recipe
) -> Population:
    """The next generation: children of fit parents come in, the least fit leave. `children: 0` changes nothing."""
    if not recipe.evolution.children:
        return population
    population = informed(await bear(population, groups, known, oracle, step, recipe), known)
    population = culled(population, known, recipe.evolution, kinds_met(population, groups))
    return replace(population, generation=population.generation + 1)
