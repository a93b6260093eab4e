"""For tests of the population: templates of two parameters, a step's groups, and a world in which one tone is best."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from grpo_ray.asking import Silent
from grpo_ray.errors import OracleError
from grpo_ray.evolution.knowledge import gather, informed
from grpo_ray.population import evolve, plan_waves
from grpo_ray.recipe import Named, Recipe, Weighted
from grpo_ray.trials import Trial
from grpo_ray.types import (
    ANY,
    Choice,
    Group,
    Message,
    Parameter,
    Policy,
    Population,
    Reply,
    Reward,
    Rollout,
    ScoredGroup,
    ScoredRollout,
    Task,
    Template,
    Wave,
)

LABELS = ("a", "b", "c", "d", "e", "f")


@dataclass(frozen=True)
class SilentOracle(Silent):
    """An endpoint that is down."""

    async def complete(
        self, messages: Sequence[Message], *, shape: type | None = None, nth: int | None = None
    ) -> Reply:
        raise OracleError("the endpoint is down")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise OracleError("the endpoint is down")


def template(name: str, kind: str = ANY) -> Template:
    tone = Parameter("tone", tuple(Choice(label, label * 3) for label in LABELS))
    size = Parameter("size", tuple(Choice(label, label * 2) for label in LABELS))
    chosen = (("tone", "a"), ("size", "a"))
    return Template(
        name,
        f"{name}: {{{{ tone }}}} {{{{ size }}}} {{{{ question }}}}",
        kind,
        parameters=(tone, size),
        settings=chosen,
    )


def tasks(count: int, *kinds: str) -> list[Task]:
    kinds = kinds or ("sums",)
    return [Task(f"t-{i:03}", f"{i}?", task_type=kinds[i % len(kinds)]) for i in range(count)]


def recipe(**changes: object) -> Recipe:
    return replace(Recipe(tasks=(Named(name="jsonl"),)), **changes)


def answered(waves: Sequence[Wave], quality: dict[str, float], size: int = 4, spread: float = 0.0) -> list[ScoredGroup]:
    """Groups with rewards that come from the template's quality, and by `spread` from a rollout's place."""
    found = []
    for prompt in (prompt for wave in waves for prompt in wave.prompts):
        rollouts = tuple(Rollout(f"r-{prompt.id}-{i}", i, "x", (1,), (0.0,), "stop", i) for i in range(size))
        group = Group(f"g-{prompt.id}", prompt, rollouts, (1,), waves[0].sampling, "canned", None)
        value = quality.get(prompt.template_id, 0.5)
        rewards = [Reward(value + spread * rollout.index, ()) for rollout in rollouts]
        pairs = zip(rollouts, rewards, strict=True)
        found.append(ScoredGroup(group, tuple(ScoredRollout(one, (), reward) for one, reward in pairs)))
    return found


def trials_of(groups: Sequence[ScoredGroup], step: int) -> list[Trial]:
    told = [(scored.group.prompt, [one.reward.value or 0.0 for one in scored.rollouts]) for scored in groups]
    return [Trial(p.template_id, p.task.id, p.task.task_type, step, fmean(some), len(some)) for p, some in told]


def worth(of: Template, best: str = "d") -> float:
    """The better the nearer the tone is to `best`."""
    return 1 - abs(LABELS.index(dict(of.settings)["tone"]) - LABELS.index(best)) / len(LABELS)


def live(start: Population, chosen: Recipe, steps: int, some: Sequence[Task]) -> list[Population]:
    """Populations over steps, as they are before each."""
    history, archive, trials = [start], {one.id: one for one in start.templates}, list[Trial]()
    for step in range(steps):
        waves = plan_waves(step, Policy(history[-1], None), some, chosen)
        groups = answered(waves, {one.id: worth(one) for one in history[-1].templates})
        trials += trials_of(groups, step)
        known = gather(list(archive.values()), trials, step, chosen)
        after = asyncio.run(evolve(informed(history[-1], known), groups, known, SilentOracle(), step, chosen))
        archive |= {one.id: one for one in after.templates}
        history.append(after)
    return history


PARAMETRIC = (Weighted(name="set_parameter"),)
SOME = tuple(
    template(name, kind)
    for name, kind in (("s1", "sums"), ("s2", "sums"), ("w1", "words"), ("w2", "words"), ("x", ANY))
)
