"""What is known of a population: for each task type a surrogate of its own, and what they say of the living templates."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from grpo_ray.canonical import rng
from grpo_ray.evolution.surrogate import Draw, Surrogate, learn
from grpo_ray.pieces import loose
from grpo_ray.prompting import content_hash, fits, root
from grpo_ray.recipe import Recipe
from grpo_ray.trials import Trial
from grpo_ray.types import Member, Population, Template

DRAWS = 64
"""Samples that deviations and probabilities are counted from."""
DIGITS = 6
"""Rounded, so that the last bits of a linear-algebra library do not reach the state of a run."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Task type → what its trials say; a type without trials is not there."""

    kinds: Mapping[str, Surrogate]
    seed: int
    sentences: Mapping[str, frozenset[str]]
    """Seed template → every loose sentence that its kin ever had."""
    archive: Mapping[str, tuple[str, ...]]
    """Seed template → the ids of its kin, in the order they came."""
    hashes: frozenset[str]
    """Content hashes of all that ever lived."""
    invented: frozenset[str]
    """Loose sentences that only templates a stand-in had a hand in ever had."""

    def draw(self, kind: str, heat: float, *purpose: str | int) -> Draw | None:
        """One sample, by a random stream of its own; None where nothing is known. `heat`: see `Surrogate.draws`."""
        known = self.kinds.get(kind)
        return known.draws(1, self.stream(kind, *purpose), heat)[0] if known else None

    def stream(self, *purpose: str | int) -> np.random.Generator:
        return np.random.default_rng(rng(self.seed, "surrogate", *purpose).getrandbits(64))

    def trials(self, template: Template) -> float:
        """Tasks a template was tried on; old ones count less."""
        return sum(known.trials.get(template.id, 0.0) for known in self.kinds.values())


def gather(templates: Sequence[Template], trials: Sequence[Trial], step: int, recipe: Recipe) -> Knowledge:
    """What the trials up to `step` say. Where weights are trained too, only rollouts of one step are compared."""
    by_kind: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        by_kind[trial.task_type].append(trial)
    drift, discount = recipe.trainer is not None, recipe.evolution.discount
    found = {
        kind: learn(templates, some, step, discount=discount, drift=drift, shared=recipe.evolution.surrogate)
        for kind, some in sorted(by_kind.items())
    }
    sentences: dict[str, set[str]] = defaultdict(set)
    archive: dict[str, list[str]] = defaultdict(list)
    for template in templates:
        sentences[root(template.id)] |= set(loose(template))
        archive[root(template.id)].append(template.id)
    return Knowledge(
        {kind: known for kind, known in found.items() if known},
        recipe.seed,
        {name: frozenset(some) for name, some in sentences.items()},
        {name: tuple(some) for name, some in archive.items()},
        frozenset(_hash(template) for template in templates),
        frozenset(one for template in templates if template.stand_in for one in loose(template))
        - {one for template in templates if not template.stand_in for one in loose(template)},
    )


def _hash(template: Template) -> str:
    """The content hash; a child's name ends with it."""
    return template.id.rpartition("~")[2] if "~" in template.id else content_hash(template)


def informed(population: Population, known: Knowledge) -> Population:
    """The same members with what is known of each: how much better than the others, how sure that is, on how many tasks."""
    told: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for kind, values in each_kind(population, known).items():
        level = values - values.mean(axis=1, keepdims=True)
        for member, mean, deviation in zip(able(population, kind), level.mean(axis=0), level.std(axis=0), strict=True):
            told[member.template.id].append((float(mean), float(deviation)))
    return replace(population, members=tuple(_told(member, told, known) for member in population.members))


def each_kind(population: Population, known: Knowledge) -> dict[str, np.ndarray]:
    """Task type → (draws, members that fit it): what each of them may be worth there."""
    return {
        kind: surrogate.worths([member.template for member in some], DRAWS, known.stream(kind, "worths"))
        for kind, surrogate in known.kinds.items()
        if (some := able(population, kind))
    }


def able(population: Population, kind: str) -> list[Member]:
    return [member for member in population.members if fits(member.template, kind)]


def _told(member: Member, told: Mapping[str, list[tuple[float, float]]], known: Knowledge) -> Member:
    trials = round(known.trials(member.template), DIGITS)
    if not (found := told.get(member.template.id)):
        return replace(member, trials=trials)
    mean, deviation = np.mean(found, axis=0)
    return replace(member, fitness=round(float(mean), DIGITS), deviation=round(float(deviation), DIGITS), trials=trials)
