"""The experiment, on one screen: explore once, improve once, save; until the budget is spent or someone says stop."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from grpo_ray.advantages import with_advantages
from grpo_ray.canonical import digest_bytes, plain
from grpo_ray.changes import settle
from grpo_ray.evolution.knowledge import gather, informed
from grpo_ray.exam import clearly_worse, examine, favourite, under
from grpo_ray.population import evolve, plan_refill, plan_waves
from grpo_ray.protocols import Control, Crew
from grpo_ray.recipe import Recipe, RunState
from grpo_ray.scoring import score
from grpo_ray.trials import Trial
from grpo_ray.trust.alarms import ALARM, STEPS, Review, asks_models, held_back, reviewed
from grpo_ray.types import Adapter, Group, Lesson, LostGroup, Policy, Population, ScoredGroup, Wave


async def run(state: RunState, crew: Crew, control: Control) -> RunState:
    """Take steps until the budget is spent or someone says stop; each is saved before the next.

    With `lag: n` the next n steps are explored meanwhile, each with the policy of n steps before it, always:
    so generators wait neither for judges nor for the trainer, and the outcome is the same however fast they are.
    """
    ahead: deque[asyncio.Task[list[ScoredGroup]]] = deque()
    turn = asyncio.Lock()
    try:
        while state.step < state.recipe.steps and await control.proceed(state):
            last = min(state.step + state.recipe.lag, state.recipe.steps - 1)
            for step in range(state.step + len(ahead), last + 1):
                seen = await trials_before(step, state.recipe, crew)
                ahead.append(asyncio.create_task(explore(step, state.policy(step), state.recipe, seen, crew, turn)))
            groups = await ahead.popleft()
            state = await control.approve(await improve(state, groups, crew))
            state = await settle(state, crew.store, crew.tasks)
            await crew.store.save_state(state)  # durable only after all of its groups
    finally:
        await _abandon(ahead)
    return state


async def trials_before(step: int, recipe: Recipe, crew: Crew) -> list[Trial]:
    """What a curriculum may go by: steps that are whole whenever `step` is planned, be it early or once more."""
    last = step - recipe.lag - 1
    return await crew.store.trials(0, last) if recipe.plan.curriculum and last >= 0 else []


async def explore(
    step: int, policy: Policy, recipe: Recipe, seen: list[Trial], crew: Crew, turn: asyncio.Lock
) -> list[ScoredGroup]:
    """A step's groups, by id; where some teach nothing and the plan allows it, others are sampled in their place."""
    rounds = [plan_waves(step, policy, crew.tasks.train, recipe, seen)]
    found = await survey(rounds[0], step, policy, recipe, crew, turn)
    while len(rounds) <= recipe.plan.refill:
        rounds.append(plan_refill(step, policy, rounds, found, crew.tasks.train, recipe, seen))
        found += await survey(rounds[-1], step, policy, recipe, crew, turn)
    return sorted(found, key=lambda scored: scored.group.id)


async def survey(
    waves: list[Wave], step: int, policy: Policy, recipe: Recipe, crew: Crew, turn: asyncio.Lock
) -> list[ScoredGroup]:
    """Groups leave a wave one by one, so a slow judge never idles a generator; `turn` keeps steps in order.

    The turn ends with the sampling: what judges still have to say overlaps with the next step's sampling.
    """
    async with asyncio.TaskGroup() as air, turn, asyncio.TaskGroup() as sky:
        flights = [sky.create_task(fly(wave, step, policy, recipe, crew, air)) for wave in waves]
    landings = [landing for flight in flights for landing in flight.result()]
    return [scored for landing in landings if (scored := landing.result())]


async def fly(
    wave: Wave, step: int, policy: Policy, recipe: Recipe, crew: Crew, air: asyncio.TaskGroup
) -> list[asyncio.Task[ScoredGroup | None]]:
    """Sample one wave; each group goes on to its judges the moment it is whole."""
    groups = crew.generators.sample(wave, policy.adapter)
    return [land(attempt(group, step, policy, recipe, crew), air) async for group in groups]


def land(one: Coroutine[Any, Any, ScoredGroup | None], air: asyncio.TaskGroup) -> asyncio.Task[ScoredGroup | None]:
    """Begin an attempt; where another has just failed, `air` takes no more, and is about to cancel this flight."""
    try:
        return air.create_task(one)
    except RuntimeError:  # no fault of its own, to be told beside the one that matters
        one.close()
        raise asyncio.CancelledError from None


async def attempt(
    group: Group | LostGroup, step: int, policy: Policy, recipe: Recipe, crew: Crew
) -> ScoredGroup | None:
    """Save, judge, score, save: rollouts are safe before any judge speaks."""
    group = await crew.store.save_group(step, group)
    if isinstance(group, LostGroup):
        return None
    evaluations = held_back(await crew.judges.evaluate(step, group), policy.held)
    return await crew.store.save_scored(step, await score(group, evaluations, recipe, step))


async def improve(state: RunState, groups: list[ScoredGroup], crew: Crew) -> RunState:
    """The same groups make a better adapter and, side by side, a better population."""
    lessons = with_advantages(groups, state.recipe)
    async with asyncio.TaskGroup() as both:
        both.create_task(crew.store.save_lessons(state.step, lessons))
        judged = both.create_task(review(state, groups, crew))
        adapter = both.create_task(train(state, lessons, crew))
        evolved = both.create_task(select(state, groups, judged, crew))
    return state.next(adapter.result(), evolved.result(), judged.result().held)


async def review(state: RunState, groups: list[ScoredGroup], crew: Crew) -> Review:
    """What the steps so far say of their judges; what speaks against them is an event. Where no model judges: nothing."""
    if groups and not asks_models(groups):
        return Review()
    first = max(0, state.step - STEPS + 1)
    before = [await crew.store.scored_groups(step, step) for step in range(first, state.step)]
    events = [event for event in await crew.store.events() if event["step"] <= state.step]
    found = reviewed([*before, groups], events, state.recipe.trust, first)
    for alarm in found.alarms:
        await crew.store.save_event(state.step, ALARM, plain(alarm))
    return found


async def select(state: RunState, groups: list[ScoredGroup], judged: "asyncio.Task[Review]", crew: Crew) -> Population:
    """Fitness from every trial so far, then the next generation; none while the judges are in doubt."""
    trials = await crew.store.trials(0, state.step)
    known = gather(await crew.store.templates(), trials, state.step, state.recipe)
    population = informed(state.population, known)
    if (await judged).alarms:
        return population
    return await evolve(population, groups, known, crew.oracle.within(f"{state.step}/evolve"), state.step, state.recipe)


async def train(state: RunState, lessons: list[Lesson], crew: Crew) -> Adapter | None:
    """One update from the lessons that teach something; the bytes are safe before anything names them.

    None in steps that `train_every` leaves out.
    """
    useful = [lesson for lesson in lessons if any(lesson.advantages)]
    if crew.trainers is None or not useful or (state.step + 1) % state.recipe.train_every:
        return state.adapter
    update = await crew.trainers.update(state.adapter, useful, state.recipe.seed + state.step)
    if update.skipped:
        await crew.store.save_event(state.step, "update_skipped", {"why": update.skipped})
        return state.adapter
    old = state.adapter
    new = Adapter(
        hash=digest_bytes(update.content.weights, update.content.optimizer),
        version=old.version + 1 if old else 1,
        parent=old.hash if old else None,
        step=state.step,
        rate_scale=old.rate_scale if old else 1.0,
    )
    metrics = (*update.metrics, ("zero_variance", 1 - len(useful) / len(lessons)))
    await crew.store.save_adapter(new, update.content, metrics)
    return await promote(old, new, state, crew)


async def promote(old: Adapter | None, new: Adapter, state: RunState, crew: Crew) -> Adapter | None:
    """The gate: the new adapter, unless it is clearly worse than the old one on the same validation tasks."""
    gate = state.recipe.gate
    if not gate.tasks:
        return new
    tasks = crew.tasks.validation[: gate.tasks]
    pairs = under(favourite(state.population, tasks), tasks)
    before = await examine("validation", pairs, old, state.recipe, crew)
    after = await examine("validation", pairs, new, state.recipe, crew)
    if not clearly_worse(before, after, gate.z):
        return new
    await crew.store.save_event(state.step, "adapter_refused", {"adapter": new.hash, "kept": old.hash if old else None})
    return replace(old, rate_scale=old.rate_scale / 2) if old else None


async def _abandon(ahead: deque[asyncio.Task[list[ScoredGroup]]]) -> None:
    for task in ahead:
        task.cancel()
    await asyncio.gather(*ahead, return_exceptions=True)  # why the run ends is raised already, if it is a fault
