"""The recipe's judges over a group, side by side; and the judges judged: some groups are judged again, and some
judges are given a canary.
"""

import asyncio
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_ray import fenced
from grpo_ray.answers import VERIFIED
from grpo_ray.canonical import digest, short
from grpo_ray.errors import ConfigError, OutOfMoney
from grpo_ray.protocols import Oracle, Store
from grpo_ray.recipe import JudgeSpec, Recipe
from grpo_ray.registry import find, named_by
from grpo_ray.trust.alarms import CANARY
from grpo_ray.trust.canaries import fitting, passed, planted
from grpo_ray.types import Evaluation, Group

BUGS = (TypeError, NameError, AttributeError, ImportError)
"""What no reply and no endpoint brings about: a judge's code is wrong, and the run stops."""
NOUNS = ("grpo_ray.types", "grpo_ray.protocols", "grpo_ray.errors")
"""What they hold goes into no request."""
EXAM = -1
"""The step of exams, whose answers are no part of what judges are judged by."""
Judge = Callable[..., Awaitable[Sequence[Evaluation]]]


@dataclass(frozen=True, slots=True)
class Seat:
    """One judge of the recipe."""

    place: int
    spec: JudgeSpec
    judge: Judge
    version: str


class LocalJudges:
    """The recipe's judges in this process."""

    def __init__(self, recipe: Recipe, oracle: Oracle, store: Store | None = None) -> None:
        self._recipe, self._oracle, self._store = recipe, oracle, store
        self._seats = [_seated(place, spec, recipe) for place, spec in enumerate(recipe.judges)]

    async def evaluate(self, step: int, group: Group) -> tuple[Evaluation, ...]:
        """Every judge's word on every rollout, in the recipe's order of judges; then what audits said."""
        said = await asyncio.gather(*(self._ask(seat, step, group) for seat in self._seats))
        spoke = [seat for seat, some in zip(self._seats, said, strict=True) if any(one.model for one in some)]
        audits: list[Sequence[Evaluation]] = []
        if step != EXAM:
            if chosen(self._recipe.trust.audit, "audit", group):
                audits = await asyncio.gather(*(self._audit(seat, step, group) for seat in spoke))
            if self._store and chosen(self._recipe.trust.canaries * len(group.rollouts), "canary", group):
                right = known_right(group, [one for some in said for one in some])
                await asyncio.gather(*(self._plant(seat, step, group, right, self._store) for seat in spoke))
        return tuple(one for some in (*said, *audits) for one in some)

    async def _ask(
        self, seat: Seat, step: int, group: Group, audit: str = "", settings: Mapping[str, Any] | None = None
    ) -> Sequence[Evaluation]:
        """One judge's word; its fault becomes a value here, and only here."""
        scope = f"{step}/{group.id}/{seat.place}-{seat.spec.name}{audit and f'-{audit}'}"
        given = {**seat.spec.settings, **(settings or {})}
        try:
            said = checked(await seat.judge(group, self._oracle_of(seat, audit).within(scope), **given), group)
        except ConfigError as fault:
            raise ConfigError(f"judges.{seat.place} ({seat.spec.name}): {fault}") from fault
        except OutOfMoney:
            raise  # the run ends here, and is taken up again with these answers still to be judged
        except BUGS as bug:
            bug.add_note(f"in the judge {seat.spec.name!r} (judges.{seat.place}), over the group {group.id}")
            raise
        except Exception as fault:
            said = missing(group, seat.spec.name, f"{type(fault).__name__}: {fault}")
        return [replace(one, version=seat.version, audit=audit) for one in said]

    def _oracle_of(self, seat: Seat, audit: str) -> Oracle:
        """The oracle that a judge asks; for a repeat, one that gives no reply twice."""
        if audit == "second":
            return self._oracle.at(self._recipe.trust.second)
        oracle = self._oracle.at(seat.spec.oracle)
        return oracle.again(1) if audit == "repeat" else oracle

    async def _audit(self, seat: Seat, step: int, group: Group) -> list[Evaluation]:
        """The same request once more, in another order where the judge knows one, and by the second oracle."""
        kinds: list[tuple[str, dict[str, Any]]] = [("repeat", {})]
        if "order" in inspect.signature(seat.judge).parameters:
            kinds.append(("permuted", {"order": 1 + self._recipe.seed}))
        second = self._recipe.trust.second
        if second not in ("", seat.spec.oracle) and not named_by("judges", seat.spec.name, seat.spec.settings):
            kinds.append(("second", {}))  # panels have oracles of their own, and nobody is his own second
        said = await asyncio.gather(*(self._ask(seat, step, group, kind, settings) for kind, settings in kinds))
        return [one for some in said for one in some]

    async def _plant(self, seat: Seat, step: int, group: Group, right: str | None, store: Store) -> None:
        """Have one canary judged, and keep what came of it."""
        kinds = fitting(group, right)
        canary = kinds[draw("kind", group) % len(kinds)]
        said = await self._ask(seat, step, planted(group, canary))
        if (fooled := passed(said)) is None:
            return
        names = {"group": group.id, "judge": said[0].judge, "version": seat.version}
        detail = {"canary": canary.kind, "passed": fooled, "scores": {one.dimension: one.score for one in said}}
        await store.save_event(step, CANARY, {**names, **detail})


def known_right(group: Group, said: Sequence[Evaluation]) -> str | None:
    """The first answer of the group that a verifier found right."""
    right = {one.rollout_id for one in said if one.dimension == VERIFIED and not one.model and one.score == 1.0}
    return next((rollout.text for rollout in group.rollouts if rollout.id in right), None)


def chosen(share: float, purpose: str, group: Group) -> bool:
    """Whether a group is of that share of all groups; the same answer every time."""
    return share > 0 and draw(purpose, group) < share * 2**32


def draw(purpose: str, group: Group) -> int:
    """A number from 0 to 2³² − 1 that the group's id and the purpose alone decide."""
    return int(digest([purpose, group.id])[:8], 16)


def _seated(place: int, spec: JudgeSpec, recipe: Recipe) -> Seat:
    judge = find("judges", spec.name, "judge")
    return Seat(place, spec, judge, version_of(judge, spec, recipe))


def version_of(judge: Judge, spec: JudgeSpec, recipe: Recipe) -> str:
    """A short hash of what a judge's words depend on: code, settings, the files they name, models and how they are asked.

    The code is that of its module and of those of ours that this imports itself. A judge that asks through another one
    (its setting `judge`) changes with that one.
    """
    asked = [recipe.oracles[name] if name else recipe.oracle for name in (spec.oracle, *_oracles(spec))]
    how = [[one.model, one.temperature, one.reasoning_effort, one.max_tokens] for one in asked]
    code = [_source(judge)]
    if isinstance(below := spec.settings.get("judge"), str):
        code.append(_source(find("judges", below, "judge")))
    file = Path(str(spec.settings.get("file", ""))).expanduser()
    words = file.read_text("utf-8", "replace") if file.is_file() else ""
    return short("j", code, dict(spec.settings), how, words)


def _oracles(spec: JudgeSpec) -> list[str]:
    return [name for _, name in named_by("judges", spec.name, spec.settings)]


def _source(judge: Judge) -> list[str]:
    """The source of a judge's module, then those of the modules that requests are built from, by name."""
    module = inspect.getmodule(judge)
    if module is None:
        return []
    return [inspect.getsource(one) for one in (module, *imported(module))]


def imported(module: ModuleType) -> list[ModuleType]:
    """The modules of ours that a module imports itself, by name, and how data is fenced; nouns ask for nothing."""
    names = {_home(value) for value in vars(module).values()} | {fenced.__name__}
    ours = sorted(name for name in names - {module.__name__, *NOUNS} if name.startswith("grpo_ray."))
    return [found for name in ours if not hasattr(found := sys.modules[name], "__path__")]  # packages are empty


def _home(value: object) -> str:
    """The module that a name of a module stands for, or whose function or class it is."""
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return home if isinstance(home, str) else ""


def missing(group: Group, judge: str, reason: str) -> tuple[Evaluation, ...]:
    """No score for any rollout of the group, and why."""
    return tuple(Evaluation(rollout.id, judge, "all", None, reason) for rollout in group.rollouts)


def checked(evaluations: Sequence[Evaluation], group: Group) -> Sequence[Evaluation]:
    """The evaluations as they are. Raises ValueError for one of another group's rollout, or off the scale."""
    known = {rollout.id for rollout in group.rollouts}
    for one in evaluations:
        if one.rollout_id not in known:
            raise ValueError(f"an evaluation of {one.rollout_id!r}, which is not of this group")
        if one.score is not None and not (math.isfinite(one.score) and 0 <= one.score <= 1):
            raise ValueError(f"a score of {one.score} on {one.dimension!r}; scores go from 0 to 1")
    return evaluations
