"""Before a run: sample and judge a few groups as it would, and forecast from them what it takes and what fits.

Nothing is kept of it but what it cost; a run that begins with a forecast keeps that as an event (`keep`), so that its
end can say how right it was.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from rich.console import Group, RenderableType

from grpo_ray import attended, crew, exam, launch, terminal
from grpo_ray.advantages import with_advantages
from grpo_ray.canonical import plain, short
from grpo_ray.errors import ConfigError, UnreachableError
from grpo_ray.forecasts.forecast import Forecast, fit, forecast, guess
from grpo_ray.forecasts.futures import Door, Measured, Planned
from grpo_ray.forecasts.hindsight import EVENT, cost_of_lost, costs
from grpo_ray.launch import Inputs
from grpo_ray.llm.gate import specs_of
from grpo_ray.population import begin, plan_waves
from grpo_ray.prompting import fits
from grpo_ray.protocols import Crew, Store
from grpo_ray.recipe import Config, Recipe, TrustSpec
from grpo_ray.scoring import score
from grpo_ray.stopwatch import Stopwatch, timed
from grpo_ray.types import Group as SampledGroup
from grpo_ray.types import Lesson, LostGroup, Policy, ScoredGroup, Task, Template, Wave

GROUPS = 4
MOST_GROUPS = 16
"""Measured unless more are asked for, even where slots would hold more."""
WARM_TOKENS = 4
"""Sampled before the clock starts: a first wave also loads and compiles."""
ROWS_PER_TASK = 4
"""As many as curation keeps."""
SPAN = re.compile(r"(?:in\s+)?(?=\d)(?:(\d+)\s*h)?\s*(?:(\d+)\s*m(?:in)?)?", re.IGNORECASE)
CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def measure(config: Config, inputs: Inputs, *, groups: int | None = None, train: bool = True) -> Measured:
    """Sample, judge and score `groups` groups, and take one update from them, in this process and in memory.

    None: at least GROUPS, and as many as fill the generator's slots. Costs what they cost, at the config's endpoints.
    """
    settings = looking(config, train)
    archive = await launch.open_archive(settings.placement)
    try:
        state = await launch.start(archive, settings, inputs)
        with attended.bundled_server(settings) as base_url:
            async with crew.local_crew(settings, archive, state.run, inputs.tasks, base_url) as here:
                return await measured_by(here, settings.recipe, inputs.templates, groups)
    finally:
        await archive.close()


def looking(config: Config, train: bool) -> Config:
    """The config for looking only, with its trainer if `train`; audits and canaries, too rare to be met, are left out."""
    alone = launch.untrained(config)
    return replace(
        alone, recipe=replace(alone.recipe, trainer=config.recipe.trainer if train else None, trust=TrustSpec())
    )


async def measured_by(crew: Crew, recipe: Recipe, templates: Sequence[Template], groups: int | None = None) -> Measured:
    """What the crew takes for one wave of `groups` prompts, on different tasks, under templates by turns.

    Raises UnreachableError where every group was lost, with the reasons.
    """
    wave = first_wave(recipe, templates, crew.tasks.train, groups)
    async for _ in crew.generators.sample(_warming(wave), None):
        continue
    watched, watch = timed(crew)
    async with asyncio.TaskGroup() as air:
        sampled = await _sample(wave, watched, recipe, air)
    lost = [group for group in sampled if isinstance(group, LostGroup)]
    if len(lost) == len(sampled):
        raise UnreachableError(f"no group could be sampled to forecast from: {'; '.join({one.reason for one in lost})}")
    lessons = with_advantages([one.result() for one in sampled if not isinstance(one, LostGroup)], recipe)
    train_s = await _train(lessons, watched, watch, recipe.seed)
    spent = watch.seconds
    kept = costs(lessons, await crew.store.attempts(), sample_s=spent["sample"], judge_s=spent.get("judge", 0.0))
    return Measured((*kept, *(cost_of_lost(group) for group in lost)), train_s)


def first_wave(recipe: Recipe, templates: Sequence[Template], tasks: Sequence[Task], groups: int | None) -> Wave:
    """As many prompts as asked for of those that the run begins with: each task once, templates by turns, one wave."""
    known = launch.numbered(recipe)
    assert known.sampling.slots != "auto"
    filling = ceil(known.sampling.slots / recipe.sampling.group_size)
    count = min(MOST_GROUPS, max(GROUPS, filling)) if groups is None else groups
    plan = replace(recipe.plan, tasks=count, templates=1, wave=count)
    (wave,) = plan_waves(0, Policy(begin(templates, recipe), None), tasks, replace(known, plan=plan))
    return wave


def _warming(wave: Wave) -> Wave:
    sampling = replace(wave.sampling, max_tokens=min(WARM_TOKENS, wave.sampling.max_tokens))
    return Wave(short("w", wave.id, "warming"), wave.prompts[:1], sampling)


Started = asyncio.Task[ScoredGroup] | LostGroup


async def _sample(wave: Wave, crew: Crew, recipe: Recipe, air: asyncio.TaskGroup) -> list[Started]:
    """Each group goes on to its judges the moment it is whole, as in a step."""
    return [
        group if isinstance(group, LostGroup) else air.create_task(_judge(group, crew, recipe))
        async for group in crew.generators.sample(wave, None)
    ]


async def _judge(group: SampledGroup, crew: Crew, recipe: Recipe) -> ScoredGroup:
    return await score(group, await crew.judges.evaluate(0, group), recipe)


async def _train(lessons: Sequence[Lesson], crew: Crew, watch: Stopwatch, seed: int) -> float | None:
    """Seconds of training a useful group; None where nothing could be trained."""
    useful = [lesson for lesson in lessons if any(lesson.advantages)]
    if crew.trainers is None or not useful:
        return None
    update = await crew.trainers.update(None, useful, seed)
    return None if update.skipped else watch.seconds["train"] / len(useful)


# ── what the recipe plans ─────────────────────────────────────────────────────────────────────────────────────────


def planned(config: Config, inputs: Inputs) -> Planned:
    """The recipe's plan in numbers."""
    recipe, tasks, bounds = config.recipe, inputs.tasks, launch.plan(config, inputs)
    kinds = max(len(inputs.templates), recipe.evolution.size if recipe.evolution.children else 0)
    prompts = min(recipe.plan.tasks, len(tasks.train)) * min(recipe.plan.templates, kinds)
    continuous = recipe.plan.batching == "continuous"
    unchecked = [task for task in tasks.validation + tasks.heldout if not task.verifier]
    trust = recipe.trust
    return Planned(
        steps=recipe.steps,
        prompts=prompts,
        templates=min(recipe.plan.templates, kinds),
        group_size=recipe.sampling.group_size,
        train_tasks=len(tasks.train),
        refill=recipe.plan.refill,
        waves=0 if continuous else ceil(prompts / recipe.plan.wave),
        generators=config.placement.generators,
        lag=recipe.lag,
        trains=recipe.trainer is not None,
        gate_answers=2 * recipe.gate.tasks if recipe.trainer else 0,
        exam_answers=exam_answers(inputs, trains=recipe.trainer is not None),
        exam_judged=len(unchecked) / max(1, len(tasks.validation + tasks.heldout)),
        rewrites=bounds["rewrite_calls"] / max(1, recipe.steps),
        rewrite_usd_per_million=recipe.oracle.usd_per_million,
        rejudged=trust.audit * (2 + bool(trust.second)) + trust.canaries,
        rows_per_task=ROWS_PER_TASK,
        doors=_doors(recipe),
    )


def _doors(recipe: Recipe) -> dict[str, Door]:
    return {
        name: Door(spec.concurrency, spec.requests_per_minute, spec.tokens_per_minute)
        for name, spec in specs_of(recipe).items()
    }


def exam_answers(inputs: Inputs, *, trains: bool) -> tuple[int, int]:
    """The fewest and the most greedy answers of the final exam: what was answered before is not asked again.

    Fewest: the seed templates stay the best; most: children take all places among the finalists, and win.
    """

    def able(tasks: Sequence[Task]) -> int:
        return sum(fits(template, task) for template in inputs.templates for task in tasks)

    validation, held = inputs.tasks.validation, inputs.tasks.heldout
    finals = min(exam.FINALISTS, len(inputs.templates)) * len(validation)
    fewest = able(validation) + able(held) + (finals + len(held) if trains else 0)
    children = exam.FINALISTS * len(validation) + len(held)
    return fewest, fewest + children + (2 * len(validation) + len(held) if trains else 0)


# ── what it comes to ──────────────────────────────────────────────────────────────────────────────────────────────


async def plan(
    config: Config,
    inputs: Inputs,
    *,
    money: float | None = None,
    seconds: float | None = None,
    groups: int | None = None,
    train: bool = True,
    chance: float = 0.9,
) -> dict[str, Any]:
    """What `launch.plan` says, with `forecast`, and what fits into `money` USD and `seconds` (see `described`).

    `groups` 0 measures nothing and starts nothing: the forecast is then a guess, and nothing is said of what fits.
    """
    if money is not None and not 0 <= money < float("inf"):
        raise ConfigError(f"--money takes an amount of USD, 0 or more, not {money:g}")
    if groups == 0:
        return described(config, inputs, None, money=money, seconds=seconds, chance=chance)
    measured = await measure(config, inputs, groups=groups, train=train)
    return described(config, inputs, measured, money=money, seconds=seconds, chance=chance)


def described(
    config: Config,
    inputs: Inputs,
    measured: Measured | None,
    *,
    money: float | None = None,
    seconds: float | None = None,
    chance: float = 0.9,
) -> dict[str, Any]:
    """Plain: the plan's counts, `forecast` (see `Forecast`), `measured` (None: nothing), `fits` (see `Fit`), `warnings`."""
    bounds, numbers, seed = launch.plan(config, inputs), planned(config, inputs), config.recipe.seed
    asked = money is not None or seconds is not None
    said = forecast(measured, numbers, seed=seed) if measured else guess(numbers.steps, _upper(config, bounds))
    fitted = None
    if measured and asked:
        fitted = fit(measured, numbers, money=money, seconds=seconds, chance=chance, seed=seed)
    return {
        **bounds,
        "forecast": plain(said),
        "measured": _about(measured) if measured else None,
        "fits": plain(fitted) if fitted else None,
        "warnings": _warnings(said, bounds["max_usd"], unanswered=asked and fitted is None),
    }


def _upper(config: Config, bounds: Mapping[str, Any]) -> dict[str, float]:
    tokens, rollouts = bounds["oracle_tokens"], bounds["rollouts"]
    return {
        "rollouts": rollouts,
        "rows": min(rollouts, ROWS_PER_TASK * bounds["tasks"]["train"]),
        "judge_calls": bounds["judge_calls"],
        "rewrite_calls": bounds["rewrite_calls"],
        "tokens_in": tokens["in"],
        "tokens_out": tokens["out"],
        "usd": bounds["estimated_usd"],
        "sampled_tokens": rollouts * config.recipe.sampling.max_tokens,
    }


def _about(measured: Measured) -> dict[str, Any]:
    """What was measured, and what that cost."""
    return {
        "groups": len(measured.groups),
        "lost": sum(group.lost for group in measured.groups),
        "sample_s": sum(group.sample_s for group in measured.groups),
        "train_s_per_group": measured.train_s,
        "usd": sum(calls.usd for group in measured.groups for _, calls in group.calls),
    }


def _warnings(said: Forecast, max_usd: float | None, *, unanswered: bool) -> list[str]:
    found = []
    if max_usd is not None and said.quantities["usd"].high80 > max_usd:
        found.append(f"the run may need more than oracle.max_usd ({max_usd:g} USD); it then waits, saved, for more")
    if unanswered:
        found.append("what fits can't be told without measuring: leave --groups out, or give 1 or more")
    return found


async def keep(store: Store, found: Mapping[str, Any]) -> None:
    """Keep a plan's forecast with the run that begins by it."""
    await store.save_event(0, EVENT, found["forecast"])


# ── how it looks, and what people say ─────────────────────────────────────────────────────────────────────────────


def look(found: Mapping[str, Any]) -> RenderableType:
    """A plan on a terminal: quantity, forecast, intervals; what fits; what was assumed."""
    said = found["forecast"]
    many = "nothing was measured: upper bounds" if said["guess"] else f"from {said['groups']} measured groups"
    rows = [
        (name.replace("_", " "), _amount(name, one["mean"]), *(_span(name, one, level) for level in ("80", "95")))
        for name, one in said["quantities"].items()
    ]
    title = f"{found['name']}: {said['steps']} steps, {many}"
    table = terminal.table(title, ("quantity", "forecast", "80 % interval", "95 % interval"), rows)
    lines = [*([_fits(found["fits"])] if found["fits"] else []), *found["warnings"]]
    lines += [f"assumed: {line}" for line in said["assumed"]]
    return Group(table, *(terminal.shown(line) for line in lines))


def _span(name: str, one: Mapping[str, float], level: str) -> str:
    return f"{_amount(name, one['low' + level])} … {_amount(name, one['high' + level])}"


def _fits(fits: Mapping[str, Any]) -> str:
    sure = f"with a probability of {fits['chance']:.0%}"
    if not fits["affordable"]:
        return f"fits: nothing: the exams alone pass the limit of {fits['limit']} ({sure})"
    ends = f"{fits['limit']} limits" if fits["limit"] else "neither money nor time limits"
    return f"fits: {fits['steps']} steps ({sure}): {ends}; take them with --set steps={fits['steps']}"


def _amount(name: str, value: float) -> str:
    if name == "usd":
        return f"{value:.2f}" if value >= 1 else f"{value:.4f}"
    if name.startswith("seconds"):
        return _duration(value)
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 100 else f"{minutes} min {left:02d} s"


def parse_until(text: str, now: datetime | None = None) -> float:
    """Seconds from `now` (local time) until "08:00" (the next), "in 6h", "90m", "1h30m", or an ISO 8601 time.

    Raises ConfigError for anything else, and for what is past.
    """
    now, said = now or datetime.now(), text.strip()
    if clock := CLOCK.fullmatch(said):
        then = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        then += timedelta(days=then <= now)
    elif span := SPAN.fullmatch(said):
        return _positive(3600.0 * int(span[1] or 0) + 60.0 * int(span[2] or 0), text)
    else:
        then = _iso(said, text)
    return _positive(then.timestamp() - now.timestamp(), text)


def _iso(said: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(said)
    except ValueError as fault:
        raise ConfigError(
            f"--until takes a time of day (08:00), a span (in 6h, 90m, 1h30m) or 2026-11-23T08:00, not {text!r}"
        ) from fault


def _positive(seconds: float, text: str) -> float:
    if seconds <= 0:
        raise ConfigError(f"--until {text!r} is not in the future")
    return seconds
