"""From a config to a run: read and check everything first, say what it will take, then begin one or take one up."""

import math
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from grpo_ray import exam, library, prompting, registry, splits
from grpo_ray.backends import untrainable
from grpo_ray.canonical import plain
from grpo_ray.errors import ConfigError, GrpoRayError, MissingError, RecipeChanged
from grpo_ray.llm.addresses import shown
from grpo_ray.llm.gate import BUDGET, BUDGET_SPENT, specs_of
from grpo_ray.operations import which
from grpo_ray.population import begin, plan_waves, unfit
from grpo_ray.prompting import fits
from grpo_ray.protocols import Archive, Embedder, Store
from grpo_ray.recipe import HOW, Config, JudgeSpec, Placement, Recipe, RunState
from grpo_ray.settings import misplaced
from grpo_ray.types import Policy, Sampling, SlotsFound, Task, TaskSet, Template, Wave

JUDGE_TOKENS = (400, 250)
"""A guess at what judging takes in beside the answers themselves, a call, and what it gives back, an answer."""
REWRITE_TOKENS = (3000, 800)
FREE = ("verifier", "heuristics", "set_parameter", "random_edit", "recombine", "crossover", "example_swap", "simplify")
"""Bundled judges and mutations that ask no endpoint."""
ENVIRONMENT = {"home": "GRPO_RAY_HOME", "storage": "GRPO_RAY_STORAGE"}
"""The keys of `placement` that have a default in the environment, and its name there."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a config names, read: the seed templates, and the tasks in their splits."""

    templates: tuple[Template, ...]
    tasks: TaskSet


FindSlots = Callable[[Wave], Awaitable[SlotsFound]]
"""What a generator finds for a wave."""


def load_inputs(config: Config) -> Inputs:
    """Read what the recipe names. Raises ConfigError listing every problem; nothing has started then."""
    recipe, problems = config.recipe, list(untrainable(config.recipe))
    templates: tuple[Template, ...] = ()
    tasks = TaskSet((), (), ())
    try:
        templates = library.load_library(Path(recipe.prompts))
    except GrpoRayError as fault:
        problems.append(str(fault))
    try:
        tasks = splits.load(recipe)
    except GrpoRayError as fault:
        problems.append(str(fault))
    if templates and tasks.train:
        problems += dict.fromkeys(
            [*unfit(templates, tasks.train + tasks.validation + tasks.heldout), *_unrenderable(templates, tasks.train)]
        )
    if config.placement.storage == "memory" and config.placement.ray != "off":
        problems.append("placement.storage: memory lives in one process; set placement.ray: off, or storage: embedded")
    if problems:
        raise ConfigError("\n".join(problems))
    return Inputs(templates, tasks)


def _unrenderable(templates: Sequence[Template], tasks: Sequence[Task]) -> Iterator[str]:
    """What is wrong with a template however well it is written: it is rendered over the first task that it fits."""
    for template in templates:
        for task in [task for task in tasks if fits(template, task)][:1]:
            try:
                prompting.render(template, task, "check")
            except ConfigError as fault:
                yield str(fault)


def plan(config: Config, inputs: Inputs) -> dict[str, Any]:
    """What a run will take, before it starts. Tokens and price are rough estimates; counts are upper bounds."""
    recipe, tasks = config.recipe, inputs.tasks
    prompts = recipe.plan.tasks * recipe.plan.templates * (1 + recipe.plan.refill) * recipe.steps
    judges = [judge for judge in recipe.judges if judge.name not in FREE]
    again = 1 + recipe.trust.audit * (2 + bool(recipe.trust.second)) + recipe.trust.canaries
    judgings = math.ceil(prompts * again * sum(_calls(judge, recipe) for judge in judges))
    rewrites = _rewrites(recipe)
    tokens = _tokens(recipe, judgings, rewrites)
    usd = sum(count * price / 1e6 for count, price in zip(tokens, recipe.oracle.usd_per_million, strict=True))
    return {
        "name": recipe.name,
        "model": recipe.model,
        "judge_model": f"{recipe.oracle.model} at {shown(recipe.oracle.base_url)}" if judges else None,
        "templates": len(inputs.templates),
        "tasks": {"train": len(tasks.train), "validation": len(tasks.validation), "heldout": len(tasks.heldout)},
        "steps": recipe.steps,
        "prompts": prompts,
        "rollouts": prompts * recipe.sampling.group_size,
        "slots": recipe.sampling.slots,
        "exam_answers": _exam_answers(inputs),
        "judge_calls": judgings,
        "rewrite_calls": rewrites,
        "oracle_tokens": {"in": tokens[0], "out": tokens[1]},
        "estimated_usd": round(usd, 4),
        "max_usd": recipe.oracle.max_usd,
        "storage": _where(config.placement),
        "ray": config.placement.ray,
    }


def _calls(judge: JudgeSpec, recipe: Recipe) -> int:
    """Requests a group at most: one an answer where nothing else is said, of each member of a panel."""
    together = judge.settings.get("answers_per_call", 1)
    members = len(judge.settings.get("members", ())) + bool(judge.settings.get("stronger"))
    return math.ceil(recipe.sampling.group_size / max(1, together)) * max(1, members)


def _rewrites(recipe: Recipe) -> int:
    mutations = recipe.evolution.mutations
    total = sum(one.weight for one in mutations)
    asking = sum(one.weight for one in mutations if one.name not in FREE)
    return round(recipe.steps * recipe.evolution.children * asking / total) if total else 0


def _tokens(recipe: Recipe, judgings: int, rewrites: int) -> tuple[int, int]:
    """Each call to a judge takes in the rubric and one answer or more."""
    together = max([judge.settings.get("answers_per_call", 1) for judge in recipe.judges], default=1)
    asked = judgings * (JUDGE_TOKENS[0] + together * recipe.sampling.max_tokens) + rewrites * REWRITE_TOKENS[0]
    said = judgings * together * JUDGE_TOKENS[1] + rewrites * REWRITE_TOKENS[1]
    return asked, said


def _exam_answers(inputs: Inputs) -> int:
    """Greedy answers of the final exam: all seed templates on both splits, finalists twice, four arms held out."""

    def able(tasks: Sequence[Task]) -> int:
        return sum(fits(template, task) for template in inputs.templates for task in tasks)

    validation, held = inputs.tasks.validation, inputs.tasks.heldout
    return able(validation) + 2 * exam.FINALISTS * len(validation) + able(held) + 4 * len(held)


def _where(placement: Placement) -> str:
    home = Path(placement.home).expanduser()
    return {"embedded": f"embedded PostgreSQL under {home}", "memory": "nowhere: in memory"}.get(
        placement.storage, "a PostgreSQL server of yours"
    )


def untrained(config: Config) -> Config:
    """The same config for looking only: in this process, in memory, one generator, no trainer."""
    recipe = replace(numbered(config.recipe), trainer=None)
    return replace(
        config, recipe=recipe, placement=replace(config.placement, storage="memory", ray="off", generators=1)
    )


async def open_archive(placement: Placement) -> Archive:
    """The archive that `placement.storage` names. Raises UnreachableError, or ConfigError where it can't be written."""
    storage = placement.storage
    if problems := list(misplaced(placement)):
        raise ConfigError("\n".join(problems))
    if storage.startswith(("postgresql://", "postgres://")):
        return await registry.find("storage", "postgres", "make_storage")(dsn=storage)
    settings = {"home": placement.home} if storage == "embedded" else {}
    return await registry.find("storage", storage, "make_storage")(**settings)


async def open_kept(placement: Placement) -> Archive:
    """The archive that `placement` names, for reading: none is made. Raises MissingError where there is none yet."""
    home = placement.home
    if placement.storage == "embedded" and not registry.find("storage", "embedded", "exists")(home):
        raise MissingError(
            f"there is no run in {home} yet; start one (grpo-ray run -c FILE), "
            "or name its folder with --home or placement.home"
        )
    return await open_archive(placement)


async def probe(placement: Placement) -> None:
    """Whether the archive could be opened, as far as that shows without making or starting anything.

    Raises what `open_archive` does.
    """
    storage = placement.storage
    if storage.startswith(("postgresql://", "postgres://")):
        await registry.find("storage", "postgres", "probe")(dsn=storage)
    elif storage == "embedded":
        registry.find("storage", "embedded", "probe")(placement.home)


def placed(config: Config, path: Path, sets: Sequence[str]) -> Config:
    """The config, kept where the environment says as far as its file at `path` and `--set` leave that open.

    Raises ConfigError where the environment names no storage.
    """
    file = yaml.load(path.expanduser().read_text("utf-8"), yaml.BaseLoader) or {}
    said = {f"placement.{key}" for key in file.get("placement") or {}} | {one.partition("=")[0].strip() for one in sets}
    left = [key for key in ENVIRONMENT if not said & {"placement", f"placement.{key}"}]
    found = {key: value for key in left if (value := os.environ.get(ENVIRONMENT[key]))}
    placement = replace(config.placement, **found)
    if problems := list(misplaced(placement)):
        raise ConfigError(f"${ENVIRONMENT['storage']}: {'; '.join(problems)}")
    return replace(config, placement=placement)


def pairs(sets: Sequence[str]) -> dict[str, Any]:
    """Settings given as KEY=VALUE, the values read as YAML. Raises ConfigError."""
    if wrong := [one for one in sets if "=" not in one]:
        raise ConfigError(f"--set takes KEY=VALUE, not {wrong[0]!r}")
    try:
        return {key: yaml.safe_load(value) for key, value in (one.split("=", 1) for one in sets)}
    except yaml.YAMLError as fault:
        raise ConfigError(f"--set: broken YAML: {fault}") from fault


def make_embedder(name: str, settings: Mapping[str, Any]) -> Embedder:
    """An embedder by the name of its file, with its settings checked."""
    registry.check_settings("embedders", name, "make_embedder", settings)
    return registry.find("embedders", name, "make_embedder")(**settings)


def new_id(name: str) -> str:
    """A short, readable run id: name, date and time, 4 hex digits."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name).strip("-") or "run"
    return f"{safe[:40]}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


async def begun(
    archive: Archive, config: Config, inputs: Inputs, resume: str | None, fork_of: str | None, find: FindSlots
) -> RunState:
    """The state of a new run, of the run `resume` taken up again, or of a fork of the run `fork_of`.

    Where the config leaves the slots open, a run that is taken up keeps its own; a new one and a fork `find` theirs.
    """
    if resume:
        return await take_up(archive, (await which(archive, resume))["run"], config)
    source = (await which(archive, fork_of))["run"] if fork_of else None
    if source:
        await _forkable(archive, source, config.recipe)
    found = await find(first_wave(config.recipe, inputs)) if config.recipe.sampling.slots == "auto" else None
    settled = replace(config, recipe=numbered(config.recipe, found.slots)) if found else config
    state = await fork(archive, source, settled) if source else await start(archive, settled, inputs)
    if found:
        paces = {str(pace.slots): round(pace.tokens_per_second, 1) for pace in found.paces}
        detail = {"slots": found.slots, "tokens_per_second": paces}
        await (await archive.open(state.run)).save_event(state.step, "slots_found", detail)
    return state


def numbered(recipe: Recipe, slots: int = Sampling().slots) -> Recipe:
    """The recipe with so many slots where it says `auto`."""
    if recipe.sampling.slots != "auto":
        return recipe
    return replace(recipe, sampling=replace(recipe.sampling, slots=slots))


def first_wave(recipe: Recipe, inputs: Inputs) -> Wave:
    """What a generator of the recipe may be given first: a wave, or all of the first step's where they are joined."""
    known = numbered(recipe)
    waves = plan_waves(0, Policy(begin(inputs.templates, known), None), inputs.tasks.train, known)
    joined = waves if known.plan.batching == "continuous" else waves[:1]
    return replace(waves[0], prompts=tuple(prompt for wave in joined for prompt in wave.prompts))


async def start(archive: Archive, config: Config, inputs: Inputs) -> RunState:
    """Begin a new run, whose slots are a number by now."""
    recipe = config.recipe
    population = begin(inputs.templates, recipe)
    state = RunState(new_id(recipe.name), 0, recipe, population, None, (Policy(population, None),))
    await archive.create_run(state)
    return state


async def take_up(archive: Archive, run: str, config: Config) -> RunState:
    """The newest state of a run. Raises RecipeChanged, naming the keys, when the config is another one than its own.

    Slots that the config leaves open are those that were found when the run began. How its oracles are reached and
    paid (`recipe.HOW`) may change.
    """
    store = await archive.open(run)
    state = await newest(store, run)
    slots = state.recipe.sampling.slots
    recipe = config.recipe if slots == "auto" else numbered(config.recipe, slots)
    if changed := [key for key in different(plain(state.recipe), plain(recipe)) if not _only_how(key)]:
        raise RecipeChanged(
            f"run {run} began with another recipe; changed: {', '.join(changed)}. Put them back, "
            f"or go on under the new one as a new run: --fork {run} in place of --resume {run}"
        )
    await archive.want(run, "run", "command line")
    await _tell_caps(store, state, recipe)
    return state


async def _tell_caps(store: Store, state: RunState, recipe: Recipe) -> None:
    """Doors whose money was spoken of before have the config's cap from here on."""
    told = {one["detail"]["door"] for one in await store.events() if one["kind"] in (BUDGET, BUDGET_SPENT)}
    for door, spec in specs_of(recipe).items():
        if door in told:
            detail = {"door": door, "max_usd": spec.max_usd, "who": "resume", "at": datetime.now(UTC).isoformat()}
            await store.save_event(state.step, BUDGET, detail)


def _only_how(key: str) -> bool:
    """Whether a dotted key of a recipe is one of `recipe.HOW`, of whichever oracle."""
    parts = key.split(".")
    return parts[0] in ("oracle", "oracles") and re.sub(r"\W.*", "", parts[-1]) in HOW


def reached(config: Config, state: RunState) -> Config:
    """The config of a run that was begun or taken up: the state's recipe, with its oracles as the config reaches them."""
    recipe = replace(state.recipe, oracle=config.recipe.oracle, oracles=config.recipe.oracles)
    return replace(config, recipe=recipe)


async def fork(archive: Archive, run: str, config: Config) -> RunState:
    """A new run that goes on, under the config's recipe, with the templates and the adapter another one has come to.

    With another model the adapter stays behind: it would not fit. Rollouts stay with the old run.
    """
    recipe = config.recipe
    source, old = await _forkable(archive, run, recipe)
    seeds = (await source.states())[0].population
    new = new_id(recipe.name)
    await archive.create_run(RunState(new, 0, recipe, seeds, None, (Policy(seeds, None),)))
    store = await archive.open(new)
    await store.save_event(0, "forked", {"from": run, "step": old.step})
    adapter = None
    if old.adapter and old.recipe.model == recipe.model:
        adapter = replace(old.adapter, parent=None)  # the bytes' parent stays with the old run
        await store.save_adapter(adapter, await source.load_adapter(adapter.hash), [])
    policies = (Policy(old.population, adapter),) * min(recipe.lag + 1, old.step + 1)
    state = RunState(new, old.step, recipe, old.population, adapter, policies)
    if old.step:
        await store.save_state(state)
    return state


async def _forkable(archive: Archive, run: str, recipe: Recipe) -> tuple[Store, RunState]:
    """The run's tables and its newest state. Raises ConfigError where no step is left."""
    source = await archive.open(run)
    old = await newest(source, run)
    if old.step >= recipe.steps:
        raise ConfigError(f"run {run} has taken {old.step} steps already; a fork of it needs more: --set steps=…")
    return source, old


async def newest(store: Store, run: str) -> RunState:
    """The state a run goes on from. Raises MissingError."""
    if (state := await store.load_state()) is None:
        raise MissingError(f"run {run} has no saved state; begin a new one")
    return state


def different(old: Any, new: Any, path: str = "") -> list[str]:
    """The dotted keys at which two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [found for key in keys for found in different(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for i, (a, b) in pairs for found in different(a, b, f"{path}[{i}]")]
    return [] if old == new else [path]
