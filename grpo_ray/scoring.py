"""Evaluations → rewards: each reward's values by name, blended into one number a rollout.

A reward is a file of `rewards/`, or a reward function as TRL's GRPOTrainer takes it, by its dotted name.
"""

import asyncio
import inspect
import logging
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from grpo_ray.blending import blend, counted
from grpo_ray.errors import ConfigError, GrpoRayError, MissingError
from grpo_ray.recipe import Recipe, RewardSpec
from grpo_ray.registry import check_settings, find, hint
from grpo_ray.types import Evaluation, Group, Reward, RewardPart, Rollout, ScoredGroup, ScoredRollout

TRL = {"prompts", "completions", "completion_ids"}
"""A reward function that takes one of these is TRL-style: f(prompts, completions, completion_ids, **columns)."""
GIVEN = TRL | {"trainer_state", "log_metric", "log_extra"}
"""What every TRL-style function may ask for, whatever the task; no setting may be called so."""
THREAD = ThreadPoolExecutor(1, "rewards")
"""Where plain TRL-style functions run: one thread, one call at a time, as in TRL; a slow one doesn't stop the loop."""
LOG = logging.getLogger(__name__)

Heard = Mapping[str, tuple[Evaluation, ...]]
"""Rollout id → what counts of what was said of it."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What a reward function finds in `trainer_state` of TRL's, as far as there is such a thing here."""

    global_step: int
    max_steps: int


async def score(group: Group, evaluations: Sequence[Evaluation], recipe: Recipe, step: int = 0) -> ScoredGroup:
    """Every rollout with its evaluations and its reward. The same arguments make the same rewards, now or later.

    Audits are kept, but count nothing. Raises ConfigError, naming the reward, where one from outside fails.
    """
    said = {rollout.id: tuple(e for e in evaluations if e.rollout_id == rollout.id) for rollout in group.rollouts}
    heard = {id: tuple(e for e in some if not e.audit) for id, some in said.items()}
    state = TrainerState(step, recipe.steps)
    columns = await asyncio.gather(*(values_of(spec, group, heard, state) for spec in recipe.rewards))
    specs = recipe.rewards
    rows = [
        tuple(RewardPart(spec.name, values[i], spec.weight) for spec, values in zip(specs, columns, strict=True))
        for i in range(len(group.rollouts))
    ]
    weights = [spec.weight for spec in specs]
    blended = [Reward(blend(values, weights), row) for values, row in zip(counted(rows, specs), rows, strict=True)]
    pairs = zip(group.rollouts, blended, strict=True)
    return ScoredGroup(group, tuple(ScoredRollout(rollout, said[rollout.id], reward) for rollout, reward in pairs))


async def values_of(spec: RewardSpec, group: Group, heard: Heard, state: TrainerState) -> list[float | None]:
    """One value a rollout, in the rollouts' order; what is no finite number is missing."""
    reward = find_reward(spec.name)
    if is_trl(reward):
        return await _ask_trl(reward, spec, group, state)
    with _named(spec.name):
        return [finite(reward(rollout, heard[rollout.id], group, **spec.settings)) for rollout in group.rollouts]


def find_reward(name: str) -> Callable[..., Any]:
    """The `reward` of a file or a module, or a TRL-style function by `module.function`. Raises MissingError."""
    try:
        return find("rewards", name, "reward")
    except MissingError:
        function = _function(name)
        if function is None:
            raise
        return function


def check_reward(name: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError when `settings` are not what the reward takes; a TRL-style one's are checked by name."""
    reward = find_reward(name)
    if not is_trl(reward):
        check_settings("rewards", name, "reward", settings)
        return
    parameters = inspect.signature(reward).parameters
    known = sorted(parameters.keys() - GIVEN)
    problems = [
        f"settings.{key}: is what a reward function is given; it can't be set" for key in settings if key in GIVEN
    ]
    if not _takes_all(reward):
        strange = [key for key in settings if key not in parameters and key not in GIVEN]
        problems += [f"reward {name!r} has no setting {key!r}{hint(key, known)}" for key in strange]
    if problems:
        raise ConfigError("\n".join(problems))


def is_trl(reward: Callable[..., Any]) -> bool:
    """Whether `reward` takes whole batches by keyword, as TRL's reward functions do."""
    parameters = inspect.signature(reward).parameters
    return bool(TRL & parameters.keys()) or all(p.kind is p.VAR_KEYWORD for p in parameters.values())


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is missing, infinite or not a number."""
    return float(value) if value is not None and math.isfinite(value) else None


# ── reward functions from outside ─────────────────────────────────────────────────────────────────────────────────


def _function(name: str) -> Callable[..., Any] | None:
    module, _, last = name.rpartition(".")
    try:
        found = getattr(import_module(module), last, None) if module else None
    except ModuleNotFoundError as fault:
        if fault.name and f"{module}.".startswith(f"{fault.name}."):
            return None
        raise  # the module is there, and what it imports is not
    return found if callable(found) and is_trl(found) else None


async def _ask_trl(
    reward: Callable[..., Any], spec: RewardSpec, group: Group, state: TrainerState
) -> list[float | None]:
    call = partial(reward, **_arguments(reward, spec, group, state))
    with _named(spec.name):
        said = call() if inspect.iscoroutinefunction(reward) else await _threaded(call)
        values = await said if inspect.isawaitable(said) else said
        found = [finite(value) for value in values]
    if len(found) != len(group.rollouts):
        raise ConfigError(f"reward {spec.name!r} returned {len(found)} values for {len(group.rollouts)} completions")
    return found


async def _threaded(call: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(THREAD, call)


def _arguments(reward: Callable[..., Any], spec: RewardSpec, group: Group, state: TrainerState) -> dict[str, Any]:
    """Everything that is offered, as far as the function takes it."""
    offered = {**_columns(group), **_beside(spec.name, state), **spec.settings}
    parameters = inspect.signature(reward).parameters
    asked = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if lacking := [name for name in asked if name not in offered]:
        columns = ", ".join(sorted(offered.keys() - GIVEN))
        raise ConfigError(
            f"reward {spec.name!r} needs {', '.join(lacking)}, which task {group.prompt.task.id!r} does not have;"
            f" give it in the task's metadata or in the reward's settings (there are: {columns})"
        )
    return offered if _takes_all(reward) else {name: offered[name] for name in offered if name in parameters}


def _takes_all(reward: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(reward).parameters.values())


def _columns(group: Group) -> dict[str, Any]:
    """Conversational prompts and completions, and the dataset's columns: one item a rollout, each its own copy."""
    task, prompt, count = group.prompt.task, group.prompt, len(group.rollouts)
    extra = {"question": task.question, "answer": task.answer, "task_id": task.id, "task_type": task.task_type}
    columns = {**task.metadata, **extra}
    return {
        **{name: [deepcopy(value) for _ in range(count)] for name, value in columns.items()},
        "prompts": [[{"role": m.role, "content": m.content} for m in prompt.messages] for _ in range(count)],
        "completions": [[_said(rollout)] for rollout in group.rollouts],
        "completion_ids": [list(rollout.token_ids) for rollout in group.rollouts],
    }


def _beside(name: str, state: TrainerState) -> dict[str, Any]:
    """What TRL hands over beside the columns. What a function logs goes to Python's logging, at the level INFO."""
    return {
        "trainer_state": state,
        "log_metric": partial(LOG.info, "reward %s, metric %s: %s", name),
        "log_extra": partial(LOG.info, "reward %s, column %s: %s", name),
    }


def _said(rollout: Rollout) -> dict[str, str]:
    return {"role": "assistant", "content": rollout.text}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """The boundary to rewards from outside: whatever they raise stops the run, in words that name them."""
    try:
        yield
    except GrpoRayError:
        raise
    except Exception as fault:
        if "." not in name:
            raise  # one of ours: a bug keeps its traceback
        raise ConfigError(f"reward {name!r} failed: {type(fault).__name__}: {fault}{_place(fault)}") from fault


def _place(fault: Exception) -> str:
    """Where outside of this file it was raised, or ""."""
    frames = [frame for frame in traceback.extract_tb(fault.__traceback__) if frame.filename != __file__]
    inside = [frame for frame in frames if not frame.filename.startswith(sys.base_prefix)]
    return f" ({inside[-1].filename}, line {inside[-1].lineno})" if inside else ""
