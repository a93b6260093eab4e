"""Prompt evolution as a library call: no Ray, no training, no store; an evaluator of yours says how good an answer was.

Planning, surrogate, mutations and selection are a run's own code, with other settings: one child a generation, groups of one
rollout, and a comparison of the best at the end.
"""

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import isfinite, nan
from typing import Any

from grpo_ray.asking import Counted, Silent
from grpo_ray.bounds import out_of_bounds
from grpo_ray.canonical import rng, short
from grpo_ray.errors import ConfigError
from grpo_ray.evolution.births import bear
from grpo_ray.evolution.culling import chance_of_better
from grpo_ray.evolution.knowledge import Knowledge, gather, informed
from grpo_ray.population import begin, evolve, plan_waves, unfit
from grpo_ray.prompting import check_template, fits, render, uses_metadata
from grpo_ray.protocols import Oracle
from grpo_ray.recipe import Config, EvolutionSpec, Named, PlanSpec, Recipe, Weighted
from grpo_ray.registry import check_settings
from grpo_ray.trials import Trial
from grpo_ray.types import (
    Evaluation,
    Group,
    Member,
    Policy,
    Population,
    Prompt,
    Reward,
    Rollout,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
    Template,
)

QUESTION = "{{ question }}"
REMEMBERED = 6
"""Answers of a template that mutations may read."""
EVOLUTION = EvolutionSpec(size=4, children=1, discount=0.99, mutations=(Weighted(name="rewrite"),))
PLAN = PlanSpec(tasks=5, templates=2, wave=10_000)
"""With an oracle: one child a generation, compared with one of the fittest on five tasks."""
BLIND = replace(EVOLUTION, size=8, children=4, mutations=(Weighted(name="recombine"),))
BLIND_PLAN = replace(PLAN, tasks=2, templates=4)
"""Without: many children, each seen little, for only the surrogate says where to go."""
SURE = 0.05
"""A search without patience left stops when something better is less likely than this."""

Score = float | None | tuple[float | None, Mapping[str, Any]]
"""A reward (None: missing), alone or with what is known of it: "feedback" and "answer" are shown to mutations."""
Evaluator = Callable[[Mapping[str, str], Any], Score | Awaitable[Score]]
"""(candidate, example) → score; a candidate is the template's texts ("text", "system"), its settings filled in."""


@dataclass(frozen=True, slots=True)
class Optimized:
    """What came out: the template to use, and everything that led to it."""

    best: Template
    text: str
    """The best template's text with its settings filled in and `{{ question }}` left as it stands."""
    population: Population
    archive: tuple[Template, ...]
    """Every template that ever lived, in the order they came."""
    trials: tuple[Trial, ...]
    rollouts: int
    replies: int
    """Replies asked of the oracle."""


@dataclass(slots=True)
class Search:
    """A search under way."""

    recipe: Recipe
    tasks: Sequence[Task]
    evaluator: Evaluator
    examples: Mapping[str, Any]
    budget: int
    population: Population
    archive: dict[str, Template] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    rollouts: int = 0
    seen: dict[str, list[ScoredGroup]] = field(default_factory=dict)
    """Template id → what it was last answered with."""

    @property
    def generation(self) -> int:
        """Rollouts that one generation may take."""
        return self.recipe.plan.tasks * self.recipe.plan.templates

    @property
    def groups(self) -> list[ScoredGroup]:
        return [group for groups in self.seen.values() for group in groups]

    def known(self, step: int) -> Knowledge:
        return gather(list(self.archive.values()), self.trials, step, self.recipe)

    def became(self, population: Population) -> None:
        self.population = population
        self.seen = {
            id: groups for id, groups in self.seen.items() if any(one.id == id for one in population.templates)
        }
        self.archive |= {one.id: one for one in population.templates if one.id not in self.archive}


async def optimize_prompts(
    seeds: Sequence[Template | str],
    tasks: Sequence[Any],
    evaluator: Evaluator,
    *,
    budget: int,
    oracle: Oracle | None = None,
    seed: int = 0,
    evolution: EvolutionSpec | None = None,
    plan: PlanSpec | None = None,
    final: float = 0.2,
    finalists: int = 4,
    patience: int | None = None,
    proceed: Callable[[int], bool] = lambda rollouts: True,
) -> Optimized:
    """Evolve the seeds for `budget` rollouts (calls of `evaluator`) and return the template that is likeliest the best.

    `tasks`: `Task`s, or examples of any kind (a mapping's "question" or "input" is the question); the evaluator gets
    them as they are. `oracle`: who rewrites; None leaves out the mutations that ask. `final`: the share of the budget
    that the `finalists` best are compared with at the end, on the same tasks, half of them leaving at a time.
    `evolution`, `plan`: None takes EVOLUTION and PLAN, or BLIND and BLIND_PLAN without an oracle. The search ends early
    when for `patience` generations no living template was likely to be better than the fittest by 0.01, and when
    `proceed`, given the rollouts so far, says no.
    Raises ConfigError for seeds that are no templates, for too small a budget, and for a score that is no number.
    """
    if isinstance(seeds, str):
        raise ConfigError("seeds is a text; give a list of texts or templates")
    known_tasks = _tasks(tasks)
    usual = (EVOLUTION, PLAN) if oracle else (BLIND, BLIND_PLAN)
    recipe = Recipe(
        tasks=(Named(name="given"),),
        seed=seed,
        plan=plan or usual[1],
        evolution=_answerable(evolution or usual[0], oracle),
        trainer=None,
        prompts="the seeds",
    )
    templates = [_template(one, place) for place, one in enumerate(seeds)]
    if found := _faults(templates, known_tasks, recipe):
        raise ConfigError("; ".join(found))
    examples = {task.id: given for task, given in zip(known_tasks, tasks, strict=True)}
    asked = Counted(oracle) if oracle else Silent()
    search = Search(recipe, known_tasks, evaluator, examples, budget, begin(templates, recipe))
    search.became(search.population)
    _check_budget(search, final, finalists)
    until = int(budget * (1 - final))
    step = await _evolve(search, asked, until, patience, proceed)
    if search.rollouts + search.generation <= until:  # it ended early: what was not explored is not spent
        search.budget = search.rollouts + budget - until
    best = await _race(search, asked, step, finalists)
    return Optimized(
        best,
        candidate(best)["text"],
        search.population,
        tuple(search.archive.values()),
        tuple(search.trials),
        search.rollouts,
        asked.replies,
    )


def _faults(templates: Sequence[Template], tasks: Sequence[Task], recipe: Recipe) -> list[str]:
    """What is wrong with what a search is given, in words; mutations raise by themselves."""
    for mutation in recipe.evolution.mutations:
        check_settings("mutations", mutation.name, "mutate", mutation.settings)
    found = list(out_of_bounds(Config(recipe=recipe)))
    for what, some in (("seeds", templates), ("tasks", tasks)):
        twice = [id for id, times in Counter(one.id for one in some).items() if times > 1]
        found += [f"two of the {what} are called {id!r}; give each an id of its own" for id in twice]
    found += [f"seed {one.id!r}: {fault}" for one in templates for fault in check_template(one)]
    needy = [] if found else filter(uses_metadata, templates)
    found += [f"seed {one.id!r} shows metadata, which a candidate can't; put it into the questions" for one in needy]
    return found or unfit(templates, tasks)


def _check_budget(search: Search, final: float, finalists: int) -> None:
    """Raise ConfigError where not even the first generation fits."""
    if not 0 <= final < 1 or finalists < 1:
        raise ConfigError(
            f"final is {final}, finalists {finalists}; a share from 0 to below 1, and 1 or more, are right"
        )
    waves = plan_waves(0, Policy(search.population, None), search.tasks, search.recipe)
    first = sum(len(wave.prompts) for wave in waves)
    if int(search.budget * (1 - final)) < first:
        least = next(budget for budget in count(first) if int(budget * (1 - final)) >= first)
        told = f"a budget of {search.budget} rollouts is too small: the first generation takes {first}"
        raise ConfigError(
            f"{told}, and {final:.0%} is kept for the end; give {least}, or plan fewer tasks or templates"
        )


def candidate(template: Template) -> dict[str, str]:
    """A template's texts with its settings filled in, `{{ question }}` left as it stands."""
    messages = render(template, Task("", QUESTION), "candidate").messages
    return {"text" if message.role == "user" else message.role: message.content for message in messages}


async def _evolve(
    search: Search, oracle: "Counted | Silent", until: int, patience: int | None, proceed: Callable[[int], bool]
) -> int:
    """Generation after generation, while the next one's rollouts fit; returns the step that comes next."""
    step = settled = 0
    while proceed(search.rollouts) and (patience is None or settled < patience):
        waves = plan_waves(step, Policy(search.population, None), search.tasks, search.recipe)
        prompts = [prompt for wave in waves for prompt in wave.prompts]
        if search.rollouts + len(prompts) > until:
            return step
        await _tried(search, prompts, step)
        known = search.known(step)
        population = informed(search.population, known)
        search.became(
            await evolve(population, search.groups, known, oracle.within(f"{step}/evolve"), step, search.recipe)
        )
        step += 1
        if patience is not None:
            settled = settled + 1 if chance_of_better(search.population, search.known(step)) < SURE else 0
    return step


async def _race(search: Search, oracle: "Counted | Silent", step: int, finalists: int) -> Template:
    """Successive halving on tasks in common: the fittest, with what is expected to be best of all, until one is left."""
    arms = await _finalists(search, oracle, step, finalists)
    stream = rng(search.recipe.seed, "final")
    for left in range(max(1, (len(arms) - 1).bit_length()), 0, -1):
        room = search.budget - search.rollouts
        each = max(1, room // left // len(arms))
        tasks = [
            task
            for _ in range(each // len(search.tasks) + 1)
            for task in stream.sample(search.tasks, len(search.tasks))
        ]
        prompts = [render(arm, task, step) for task in tasks[:each] for arm in arms if fits(arm, task)]
        await _tried(search, prompts[:room], step)
        step += 1
        arms = _ranked(search, arms, step)[: max(1, (len(arms) + 1) // 2)]
    return arms[0]


async def _finalists(search: Search, oracle: "Counted | Silent", step: int, count: int) -> list[Template]:
    """The fittest, and before them the children of the fittest that are expected to be better still."""
    spec = replace(
        search.recipe.evolution, heat=0.0, children=2, mutations=(Weighted(name="recombine", settings={"moves": 99}),)
    )
    living = search.population
    grown = await bear(living, search.groups, search.known(step), oracle, step, replace(search.recipe, evolution=spec))
    search.became(grown)
    fresh = [one for one in grown.templates if one.id not in {other.id for other in living.templates}]
    return [*fresh, *_ranked(search, living.templates, step)][:count]


def _ranked(search: Search, templates: Sequence[Template], step: int) -> list[Template]:
    """By posterior mean, best first."""
    population = informed(Population(tuple(Member(one) for one in templates)), search.known(step))
    return [member.template for member in sorted(population.members, key=lambda member: -member.fitness)]


async def _tried(search: Search, prompts: Sequence[Prompt], step: int) -> list[ScoredGroup]:
    """Each prompt's score, as a group of one rollout, and as a trial."""
    scores = []
    for prompt in prompts:
        said = search.evaluator(candidate(search.archive[prompt.template_id]), search.examples[prompt.task.id])
        scores.append(await said if inspect.isawaitable(said) else said)
    search.rollouts += len(prompts)
    groups = [_group(prompt, said, place) for place, (prompt, said) in enumerate(zip(prompts, scores, strict=True))]
    for group in groups:
        value, prompt = group.rollouts[0].reward.value, group.group.prompt
        search.seen[prompt.template_id] = [*search.seen.get(prompt.template_id, []), group][-REMEMBERED:]
        if value is not None:
            search.trials.append(Trial(prompt.template_id, prompt.task.id, prompt.task.task_type, step, value, 1))
    return groups


def _group(prompt: Prompt, said: Score, place: int) -> ScoredGroup:
    value, told = said if isinstance(said, tuple) else (said, {})
    value = None if value is None else _number(value, prompt)
    rollout = Rollout(short("r", prompt.id, place), 0, str(told.get("answer", "")), (), (), "stop", 0)
    spoken = Evaluation(rollout.id, "evaluator", "score", value, str(told.get("feedback", "")))
    reward = Reward(value, ())
    group = Group(short("g", prompt.id, place), prompt, (rollout,), (), Sampling(group_size=1), "evaluator", None)
    return ScoredGroup(group, (ScoredRollout(rollout, (spoken,), reward),))


def _number(value: Any, prompt: Prompt) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number):
        told = f"the evaluator gave {value!r} for {prompt.template_id!r} on {prompt.task.id!r}"
        raise ConfigError(f"{told}; a score is a finite number, or None where there is none")
    return number


def _tasks(given: Sequence[Any]) -> list[Task]:
    if not given:
        raise ConfigError("there are no tasks; give at least two")
    return [
        one if isinstance(one, Task) else Task(f"example-{place:05}", _question(one)) for place, one in enumerate(given)
    ]


def _question(example: Any) -> str:
    if isinstance(example, Mapping):
        return str(next((example[key] for key in ("question", "input") if key in example), dict(example)))
    return str(example)


def _template(given: Template | str, place: int) -> Template:
    if isinstance(given, Template):
        return given
    text = given if "question" in given and "{{" in given else f"{given}\n\n{QUESTION}"
    return Template(f"seed-{place}", text)


ASKS = frozenset({"rewrite", "rephrase"})


def _answerable(evolution: EvolutionSpec, oracle: Oracle | None) -> EvolutionSpec:
    """Without an oracle, the mutations that ask one are left out."""
    if oracle or not evolution.mutations:
        return evolution
    kept = tuple(one for one in evolution.mutations if one.name not in ASKS)
    if not kept:
        raise ConfigError("every mutation asks an oracle, and there is none; give oracle=…, or add set_parameter")
    return replace(evolution, mutations=kept)
