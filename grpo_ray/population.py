"""The population: what a step explores, what its groups say of each template, and who lives on.

All chance comes from the run's seed and the step, so the same rewards lead to the same population.
"""

import asyncio
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import ceil, sqrt

from grpo_ray.advantages import template_relative, with_advantages
from grpo_ray.canonical import rng, short
from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.prompting import check_template, content_hash, render, uses_metadata
from grpo_ray.protocols import Oracle
from grpo_ray.recipe import EvolutionSpec, Recipe, Weighted
from grpo_ray.registry import find
from grpo_ray.types import (
    ANY,
    Member,
    Parent,
    Policy,
    Population,
    Prompt,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
    Template,
    Wave,
)

BEST, WORST = 2, 3
"""Rollouts of a parent that a mutation reads."""
REMEMBERED = 50
"""Retired and refused templates that a population remembers."""
FLOOR = 2
"""Templates that stay for each task type, however unfit."""
SPREAD = 0.3
"""Typical deviation of one template-relative advantage, for Thompson draws; rewards lie in 0 … 1."""

Shown = Sequence[tuple[Prompt, ScoredRollout]]


@dataclass(frozen=True, slots=True)
class Birth:
    """One child to be: how, of whom (the first parent is the one to change), and in which random stream."""

    mutation: Weighted
    parents: tuple[Parent, ...]
    index: int


def fits(template: Template, task: Task | str) -> bool:
    """Whether a template is meant for a task, or a task type."""
    return template.task_type in (ANY, task.task_type if isinstance(task, Task) else task)


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
        refused = (_unrenderable(template, task) for task in tasks if fits(template, task))
        found += [reason for reason in refused if reason][:1]
    return found


# ── what a step explores ──────────────────────────────────────────────────────────────────────────────────────────


def plan_waves(step: int, policy: Policy, tasks: Sequence[Task], recipe: Recipe) -> list[Wave]:
    """The step's prompts: each of its tasks under several templates, cut into waves of fixed content.

    Raises ConfigError when a task has no template that fits it.
    """
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
    return _waves(fresh[: ceil(max(0, wanted - teaching) / recipe.plan.templates)], step, policy, recipe, stream)


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
    """Each task under the templates that have been tried least, one of them one that is known already.

    Evidence beyond what a verdict needs (`min_trials`) counts no further: after that all take turns.
    """
    enough = recipe.evolution.min_trials
    planned: Counter[str] = Counter()
    pairs: list[tuple[Template, Task]] = []
    for task in tasks:
        able = [member for member in members if fits(member.template, task)]
        if not able:
            raise ConfigError(f"no template fits tasks of type {task.task_type!r} (task {task.id!r})")
        stream.shuffle(able)
        able.sort(key=lambda member: min(member.trials, enough) + planned[member.template.id])
        for member in _with_known(able, recipe.plan.templates, enough):
            planned[member.template.id] += 1
            pairs.append((member.template, task))
    return pairs


def _with_known(able: Sequence[Member], count: int, enough: float) -> list[Member]:
    """The first `count`; where all are new, the last gives way to one that new ones can be measured against."""
    chosen, rest = list(able[:count]), able[count:]
    known = [member for member in rest if member.trials >= enough]
    if known and count > 1 and all(member.trials < enough for member in chosen):
        chosen[-1] = known[0]
    return chosen


# ── what the groups say ───────────────────────────────────────────────────────────────────────────────────────────


def with_fitness(population: Population, groups: Sequence[ScoredGroup], recipe: Recipe) -> Population:
    """Old evidence fades by `discount` (the model changes too), the step's template-relative advantages are added."""
    fade, found = recipe.evolution.discount, template_relative(groups)
    members = []
    for member in population.members:
        values = found.get(member.template.id, [])
        total, trials = member.total * fade + sum(values), member.trials * fade + len(values)
        members.append(replace(member, total=total, trials=trials))
    return replace(population, members=tuple(members))


# ── who lives on ──────────────────────────────────────────────────────────────────────────────────────────────────


async def evolve(
    population: Population, groups: Sequence[ScoredGroup], oracle: Oracle, step: int, recipe: Recipe
) -> Population:
    """The next generation: children of fit parents come in, the least fit leave. `children: 0` changes nothing.

    A child that is malformed, known already, or that the oracle gave no answer for is dropped and remembered.
    """
    spec = recipe.evolution
    if not spec.children:
        return population
    births = _births(population, groups, step, recipe)
    async with asyncio.TaskGroup() as ward:
        labours = [ward.create_task(_bear(birth, oracle, step, recipe)) for birth in births]
    tasks = {scored.group.prompt.task.id: scored.group.prompt.task for scored in groups}
    for birth, labour in zip(births, labours, strict=True):
        population = _admit(population, birth, labour.result(), [tasks[key] for key in sorted(tasks)])
    return replace(_cull(population, spec, _kinds(population, groups)), generation=population.generation + 1)


def _births(population: Population, groups: Sequence[ScoredGroup], step: int, recipe: Recipe) -> list[Birth]:
    """Task types take turns in a random order, so that none starves; there are never more than `size + children`."""
    spec, stream = recipe.evolution, rng(recipe.seed, "parents", step)
    count = max(0, min(spec.children, spec.size + spec.children - len(population.members)))
    turn = list(islice(_shares(spec.mutations), step * spec.children, (step + 1) * spec.children))
    mutations = stream.sample(turn, count)
    kinds = _kinds(population, groups)
    stream.shuffle(kinds)
    shown = _shown(groups)
    births = []
    for index, mutation in enumerate(mutations):
        parents = _parents(population, kinds[index % len(kinds)], shown, stream)
        births.append(Birth(mutation, parents, index))
    return births


def _kinds(population: Population, groups: Sequence[ScoredGroup]) -> list[str]:
    """The task types that the step met, or else those of the templates; only such as a living template fits."""
    met = {scored.group.prompt.task.task_type for scored in groups} or {t.task_type for t in population.templates}
    return sorted(kind for kind in met if any(fits(template, kind) for template in population.templates))


def _shares(mutations: Sequence[Weighted]) -> Iterator[Weighted]:
    """Mutations without end, each as often as its weight says, as exactly as whole children allow."""
    total = sum(mutation.weight for mutation in mutations)
    made = [0.0] * len(mutations)
    for count in itertools.count(1):
        owed = [count * mutation.weight / total - done for mutation, done in zip(mutations, made, strict=True)]
        first = owed.index(max(owed))
        made[first] += 1
        yield mutations[first]


def _parents(
    population: Population, kind: str, shown: Mapping[str, Shown], stream: random.Random
) -> tuple[Parent, ...]:
    """The one to change, by Thompson sampling; then the runner-up; then the first one's living kin."""
    able = [member for member in population.members if fits(member.template, kind)]
    seen = [member for member in able if member.template.id in shown] or able
    draws = [stream.gauss(member.fitness(), SPREAD / sqrt(member.trials + 1)) for member in seen]
    ranked = [member for _, member in sorted(zip(draws, seen, strict=True), key=lambda pair: -pair[0])]
    first, chosen = ranked[0], ranked[:2]
    kin = [m for m in able if root(m.template.id) == root(first.template.id) and m not in chosen]
    return tuple(_parent(member, population, shown) for member in (*chosen, *kin))


def _parent(member: Member, population: Population, shown: Mapping[str, Shown]) -> Parent:
    template = member.template
    rollouts = sorted(shown.get(template.id, ()), key=_best_first)
    worst = rollouts[BEST:][-WORST:][::-1]
    rejected = tuple((id, why) for id, why in population.retired if root(id) == root(template.id))
    return Parent(template, member.fitness(), tuple(rollouts[:BEST]), tuple(worst), rejected)


def _shown(groups: Sequence[ScoredGroup]) -> dict[str, list[tuple[Prompt, ScoredRollout]]]:
    """Template id → its rollouts of the step that have a reward."""
    found: dict[str, list[tuple[Prompt, ScoredRollout]]] = defaultdict(list)
    for scored in groups:
        prompt = scored.group.prompt
        found[prompt.template_id] += [(prompt, one) for one in scored.rollouts if one.reward.value is not None]
    return dict(found)


def _best_first(pair: tuple[Prompt, ScoredRollout]) -> tuple[float, int, str]:
    """By reward; among equals, one of each group before the second of any, so that several tasks are seen."""
    scored = pair[1]
    return -(scored.reward.value or 0.0), scored.rollout.index, scored.rollout.id


async def _bear(birth: Birth, oracle: Oracle, step: int, recipe: Recipe) -> Template | str:
    """What the mutation makes, named and dated; or why there is nothing."""
    spec, first = birth.mutation, birth.parents[0].template
    mutate = find("mutations", spec.name, "mutate")
    stream = rng(recipe.seed, "child", step, birth.index)
    try:
        child = await mutate(birth.parents, oracle.within(f"child/{birth.index}"), stream, **spec.settings)
    except OracleError as error:
        return f"{spec.name} of {first.id} came to nothing: {error}"
    living = {parent.template.id for parent in birth.parents}
    named = replace(child, task_type=first.task_type, mutation=spec.name)
    parents = child.parents if child.parents and living.issuperset(child.parents) else (first.id,)
    stand_in = child.stand_in or first.stand_in
    name = f"{root(first.id)}~{content_hash(named)}"
    return replace(named, id=name, version=first.version + 1, parents=parents, stand_in=stand_in)


def _admit(population: Population, birth: Birth, child: Template | str, tasks: Sequence[Task]) -> Population:
    """The population with the child, or with a note of why not."""
    first = birth.parents[0].template
    if isinstance(child, str):
        return _remember(population, f"{root(first.id)}~none-{population.generation}-{birth.index}", child)
    known = {template.id for template in population.templates} | {id for id, _ in population.retired}
    if child.id in known:
        return population  # it lives, or its failure is remembered already
    if why := _twin(child, population) or _refusal(child, birth, tasks):
        return _remember(population, child.id, f"{child.mutation} of {first.id} was refused: {why}")
    return replace(population, members=(*population.members, Member(child)))


def _twin(child: Template, population: Population) -> str:
    same = [template.id for template in population.templates if content_hash(template) == content_hash(child)]
    return f"it says the same as {same[0]}" if same else ""


def _refusal(child: Template, birth: Birth, tasks: Sequence[Task]) -> str:
    """Why a child may not live, or ""."""
    if problems := check_template(child):
        return "; ".join(problems)
    if uses_metadata(child) and not any(uses_metadata(parent.template) for parent in birth.parents):
        return "it uses metadata that its parents do without"
    refused = (_unrenderable(child, task) for task in tasks if fits(child, task))
    return next((reason for reason in refused if reason), "")


def _unrenderable(template: Template, task: Task) -> str:
    try:
        render(template, task, "trial")
    except ConfigError as error:
        return str(error)
    return ""


def _cull(population: Population, spec: EvolutionSpec, kinds: Sequence[str]) -> Population:
    """Retire the least fit beyond `size` that have been tried enough, but never below FLOOR for a task type."""
    kinds = sorted({*kinds, *(template.task_type for template in population.templates)} - {ANY}) or [ANY]
    tried = [member for member in population.members if member.trials >= spec.min_trials]
    for member in sorted(tried, key=lambda member: (member.fitness(), member.template.id)):
        if len(population.members) <= spec.size:
            break
        rest = tuple(other for other in population.members if other is not member)
        served = [kind for kind in kinds if fits(member.template, kind)]
        if all(sum(fits(other.template, kind) for other in rest) >= FLOOR for kind in served):
            population = _remember(replace(population, members=rest), member.template.id, _epitaph(member))
    return population


def _epitaph(member: Member) -> str:
    template = member.template
    settings = ", ".join(f"{name}={label}" for name, label in template.settings)
    told = "; ".join(part for part in (template.note, settings) if part)
    return f"{member.fitness():+.3f} over {member.trials:.1f} trials" + (f" ({told})" if told else "")


def _remember(population: Population, id: str, why: str) -> Population:
    return replace(population, retired=(*population.retired, (id, why))[-REMEMBERED:])


def root(id: str) -> str:
    """The seed template that an id goes back to."""
    return id.split("~", maxsplit=1)[0]
