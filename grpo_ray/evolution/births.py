"""Children: of whom, by which mutation, with what in view; and which of them may live."""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from grpo_ray.canonical import rng
from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.evolution.knowledge import Knowledge
from grpo_ray.evolution.surrogate import Draw
from grpo_ray.pieces import loose
from grpo_ray.prompting import MAX_CHARACTERS, content_hash, fits, render, root
from grpo_ray.proposals import refusal
from grpo_ray.protocols import Oracle
from grpo_ray.recipe import Recipe, Weighted
from grpo_ray.registry import find
from grpo_ray.types import Member, Parent, Population, Prompt, ScoredGroup, ScoredRollout, Task, Template

BEST, WORST = 2, 3
"""Rollouts of a parent that a mutation reads."""
REMEMBERED = 50
"""Retired and refused templates that a population remembers."""

Shown = Sequence[tuple[Prompt, ScoredRollout]]


@dataclass(frozen=True, slots=True)
class Birth:
    """One child to be: how, of whom (the first parent is the one to change), and in which random stream."""

    mutation: Weighted
    parents: tuple[Parent, ...]
    index: int


async def bear(
    population: Population, groups: Sequence[ScoredGroup], known: Knowledge, oracle: Oracle, step: int, recipe: Recipe
) -> Population:
    """The population with the step's children. A child that is malformed, known already, or that the oracle gave no
    answer for is dropped and remembered."""
    births = _births(population, groups, known, step, recipe)
    async with asyncio.TaskGroup() as ward:
        labours = [ward.create_task(_bear(birth, oracle, step, recipe)) for birth in births]
    tasks = {scored.group.prompt.task.id: scored.group.prompt.task for scored in groups}
    for birth, labour in zip(births, labours, strict=True):
        population = _admit(population, birth, labour.result(), known, [tasks[key] for key in sorted(tasks)])
    return population


def kinds_met(population: Population, groups: Sequence[ScoredGroup]) -> list[str]:
    """The task types that the step met, or else those of the templates; only such as a living template fits."""
    met = {scored.group.prompt.task.task_type for scored in groups} or {t.task_type for t in population.templates}
    return sorted(kind for kind in met if any(fits(template, kind) for template in population.templates))


def remember(population: Population, id: str, why: str) -> Population:
    return replace(population, retired=(*population.retired, (id, why))[-REMEMBERED:])


def _births(
    population: Population, groups: Sequence[ScoredGroup], known: Knowledge, step: int, recipe: Recipe
) -> list[Birth]:
    """Task types take turns in a random order, so that none starves; there are never more than `size + children`."""
    spec, stream = recipe.evolution, rng(recipe.seed, "parents", step)
    count = max(0, min(spec.children, spec.size + spec.children - len(population.members)))
    turn = list(islice(_shares(spec.mutations), step * spec.children, (step + 1) * spec.children))
    mutations = stream.sample(turn, count)
    kinds = kinds_met(population, groups)
    stream.shuffle(kinds)
    shown = _shown(groups)
    births = []
    for index, mutation in enumerate(mutations):
        kind = kinds[index % len(kinds)]
        draw = known.draw(kind, spec.heat, step, index)
        parents = _parents(population, kind, shown, known, draw, stream)
        births.append(Birth(mutation, parents, index))
    return births


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
    population: Population,
    kind: str,
    shown: Mapping[str, Shown],
    known: Knowledge,
    draw: Draw | None,
    stream: random.Random,
) -> tuple[Parent, ...]:
    """The one to change, by Thompson sampling; then the runner-up; then the first one's living kin."""
    able = [member for member in population.members if fits(member.template, kind)]
    seen = [member for member in able if member.template.id in shown] or able
    luck = {member.template.id: stream.gauss(member.fitness, member.deviation) for member in able}
    worth = {m.template.id: draw.value(m.template) if draw else luck[m.template.id] for m in able}
    first = max(seen, key=lambda member: worth[member.template.id])
    second = sorted((m for m in able if m is not first), key=lambda member: -worth[member.template.id])[:1]
    kin = [m for m in able if root(m.template.id) == root(first.template.id) and m not in (first, *second)]
    sentences = known.sentences.get(root(first.template.id), frozenset())
    hoped = _hopes(first.template, draw, sentences) if draw else ()
    everyone = [_parent(member, population, shown) for member in (first, *second, *kin)]
    living = {member.template.id for member in able}
    past = tuple((id, "") for id in known.archive.get(root(first.template.id), ()) if id not in living)
    begins = replace(everyone[0], rejected=(*past, *everyone[0].rejected))
    return tuple(replace(parent, hopes=hoped) for parent in (begins, *everyone[1:]))


def _hopes(template: Template, draw: Draw, sentences: Collection[str]) -> tuple[tuple[str, float], ...]:
    """(piece, what it adds) of every setting the template could have, and of the sentences; unknown ones are missing."""
    settings = [f"{parameter.name}={choice.label}" for parameter in template.parameters for choice in parameter.choices]
    return tuple((one, round(draw.weights[one], 6)) for one in (*settings, *sorted(sentences)) if one in draw.weights)


def _parent(member: Member, population: Population, shown: Mapping[str, Shown]) -> Parent:
    template = member.template
    rollouts = sorted(shown.get(template.id, ()), key=_best_first)
    worst = rollouts[BEST:][-WORST:][::-1]
    rejected = tuple((id, why) for id, why in population.retired if root(id) == root(template.id))
    return Parent(template, member.fitness, tuple(rollouts[:BEST]), tuple(worst), rejected)


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


def _admit(
    population: Population, birth: Birth, child: Template | str, archive: Knowledge, tasks: Sequence[Task]
) -> Population:
    """The population with the child, or with a note of why not."""
    first = birth.parents[0].template
    if isinstance(child, str):
        return remember(population, f"{root(first.id)}~none-{population.generation}-{birth.index}", child)
    known = {template.id for template in population.templates} | {id for id, _ in population.retired}
    if child.id in known:
        return population  # it lives, or its failure is remembered already
    parents = [parent.template for parent in birth.parents]
    said = refusal(child, parents, population.templates, archive.hashes, MAX_CHARACTERS)
    if why := said or _unfit(child, tasks):
        return remember(population, child.id, f"{child.mutation} of {first.id} was refused: {why}")
    marked = replace(child, stand_in=child.stand_in or not archive.invented.isdisjoint(loose(child)))
    return replace(population, members=(*population.members, Member(marked, born=population.generation + 1)))


def _unfit(child: Template, tasks: Sequence[Task]) -> str:
    """Why a child can't be rendered over the tasks it is meant for, or ""."""
    refused = (unrenderable(child, task) for task in tasks if fits(child, task))
    return next((reason for reason in refused if reason), "")


def unrenderable(template: Template, task: Task) -> str:
    """Why a template can't be rendered over a task, or ""."""
    try:
        render(template, task, "trial")
    except ConfigError as error:
        return str(error)
    return ""
