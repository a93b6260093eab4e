"""Who leaves: the templates that are least likely to be the best at anything."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from grpo_ray.evolution.births import remember
from grpo_ray.evolution.knowledge import Knowledge, able, each_kind
from grpo_ray.prompting import fits
from grpo_ray.recipe import EvolutionSpec
from grpo_ray.types import ANY, Member, Population

FLOOR = 2
"""Templates that stay for each task type, however unfit."""


def culled(population: Population, known: Knowledge, spec: EvolutionSpec, kinds: Sequence[str]) -> Population:
    """Without those that were tried and are least likely to be the best, beyond `size`.

    Never below FLOOR for a task type, nor without one for any type where there is one: tasks may come that the step has
    not met. What people pinned stays.
    """
    kinds = sorted({*kinds, *(template.task_type for template in population.templates)} - {ANY}) or [ANY]
    chance = best_chances(population, known)
    tried = [member for member in population.members if member.trials and not member.pinned]
    for member in sorted(tried, key=lambda m: (chance.get(m.template.id, 0.0), m.fitness, m.template.id)):
        if len(population.members) <= spec.size:
            break
        rest = tuple(other for other in population.members if other is not member)
        served = [kind for kind in kinds if fits(member.template, kind)]
        if member.template.task_type == ANY and all(other.template.task_type != ANY for other in rest):
            continue
        if all(sum(fits(other.template, kind) for other in rest) >= FLOOR for kind in served):
            population = remember(replace(population, members=rest), member.template.id, _epitaph(member))
    return population


def best_chances(population: Population, known: Knowledge) -> dict[str, float]:
    """Template id → the probability that it is the best for some task type."""
    chance: dict[str, float] = defaultdict(float)
    for kind, values in each_kind(population, known).items():
        wins = np.bincount(values.argmax(axis=1), minlength=values.shape[1]) / len(values)
        for member, share in zip(able(population, kind), wins, strict=True):
            chance[member.template.id] = max(chance[member.template.id], float(share))
    return dict(chance)


def chance_of_better(population: Population, known: Knowledge, least: float = 0.01) -> float:
    """The probability that some living template is better than the fittest by `least`, for some task type; 1 before trials."""
    chances = [1.0] if not known.kinds else []
    for values in each_kind(population, known).values():
        fittest = values[:, values.mean(axis=0).argmax()]
        chances.append(float((values.max(axis=1) - fittest > least).mean()))
    return max(chances, default=1.0)


def _epitaph(member: Member) -> str:
    template = member.template
    settings = ", ".join(f"{name}={label}" for name, label in template.settings)
    told = "; ".join(part for part in (template.note, settings) if part)
    return f"{member.fitness:+.3f} over {member.trials:.1f} trials" + (f" ({told})" if told else "")
