"""Rollouts of a run judged once more: to check its judges, or by others than it had. No reward changes by it.

What is said is added to the store as audits. Replies are recorded like a run's own, so that a rejudging that broke off
goes on where it was when it is asked for again, and one that was whole costs nothing.
"""

import asyncio
import inspect
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any, Literal, get_args

from grpo_ray.checker import Checker
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.judging import LocalJudges, Seat, chosen
from grpo_ray.llm.addresses import brief
from grpo_ray.llm.batch import BatchEndpoint, Batching
from grpo_ray.llm.batch_files import StoreMemory
from grpo_ray.llm.endpoint import Endpoint
from grpo_ray.llm.gate import BUDGET, RateGate, specs_of, spent
from grpo_ray.oracle import RecordingOracle, Switchboard
from grpo_ray.protocols import LABEL, Archive, Oracle, Store
from grpo_ray.recipe import JudgeSpec, Recipe
from grpo_ray.registry import check_settings, hint, named_by
from grpo_ray.trust.alarms import HELD
from grpo_ray.types import Attempt, Evaluation, Group, ScoredGroup

Audit = Literal["repeat", "permuted", "second", "rejudged"]
"""The same request once more, in another order, or by the recipe's second oracle; or by judges that the run had not."""
ALONG = 8
"""Groups judged side by side where each call is waited for; in batches all of them are."""
REASONS = 5
"""Why marks are missing: the most frequent reasons are told."""
NOBODY: dict[Audit, str] = {
    "repeat": "none of them asks a model",
    "permuted": "none of them asks a model and knows another order to ask in",
    "second": "none of them asks one model, in whose place another could be asked",
    "rejudged": "they gave the marks that count; name others, or ask for a repeat",
}


@dataclass(slots=True)
class Tally:
    """What was said, and why not."""

    said: list[Evaluation] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)


async def rejudge(
    archive: Archive,
    run: str,
    *,
    base_url: str,
    judges: Sequence[str | JudgeSpec] = (),
    audit: Audit = "repeat",
    share: float = 1.0,
    batch: Batching | None = None,
) -> dict[str, Any]:
    """Judge a run's scored groups again, or a share of them that their ids decide, and add what is said as audits.

    `judges`: names of the recipe's (none: all of it), or further ones, which ask its oracles. The bundled server is at
    `base_url`. With `batch` requests go through the Batch API. Nobody else may be at work on the run. A mark that is
    missing, for want of money too, is not kept: the next time it is asked for again. Raises ConfigError, MissingError
    or RunLocked.

    Returns run_id, audit, groups, evaluations (marks given), missing, reasons (why → how many), calls, tokens, usd, and
    `changed` (see there).
    """
    await archive.lock(run)
    store = await archive.open(run)
    recipe, steps = await _saved(store, run)
    how = asked(recipe, judges, audit, [group for groups in steps for group in groups])
    some = [
        (step, group)
        for step, groups in enumerate(steps)
        for group in groups
        if share >= 1 or chosen(share, "rejudge", group.group)
    ]
    before, tally = len(await store.attempts()), Tally()
    async with _oracle(archive, run, recipe, base_url, batch) as oracle:
        if (again := Again(how, oracle)).nobody:
            raise ConfigError(f"no judge of run {run} can be asked that way ({audit}): {NOBODY[audit]}")
        turns = asyncio.Semaphore(max(1, len(some)) if batch else ALONG)
        async with asyncio.TaskGroup() as all_of_them:
            for step, group in some:
                all_of_them.create_task(_one(again, step, group.group, store, turns, tally))
    told = _told(tally, (await store.attempts())[before:])
    moved = changed([group for _, group in some], tally.said)
    return {"run_id": run, "audit": audit, "groups": len(some), **told, "changed": moved}


def _told(tally: Tally, attempts: Sequence[Attempt]) -> dict[str, Any]:
    return {
        "evaluations": len(tally.said),
        "missing": tally.missing.total(),
        "reasons": dict(tally.missing.most_common(REASONS)),
        "calls": len(attempts),
        "tokens": sum(one.prompt_tokens + one.completion_tokens for one in attempts),
        "usd": round(sum(one.usd for one in attempts), 6),
    }


def changed(groups: Iterable[ScoredGroup], said: Iterable[Evaluation]) -> list[dict[str, Any]]:
    """How far marks moved from those that counted: judge, dimension, rollouts marked both times, mean and absolute.

    `mean` is that of new − old, on the scale from 0 to 1, `absolute` the mean of its size.
    """
    old = {
        (e.rollout_id, e.judge, e.dimension): e.score
        for group in groups
        for one in group.rollouts
        for e in one.evaluations
        if e.audit in ("", HELD)
    }
    moves: dict[tuple[str, str], list[float]] = defaultdict(list)
    for e in said:
        first = old.get((e.rollout_id, e.judge, e.dimension))
        if e.score is not None and first is not None:
            moves[e.judge, e.dimension].append(e.score - first)
    return [
        {"judge": judge, "dimension": dimension, "rollouts": len(found)}
        | {"mean": fmean(found), "absolute": fmean(map(abs, found))}
        for (judge, dimension), found in sorted(moves.items())
    ]


def with_added(groups: Iterable[ScoredGroup], added: Iterable[Evaluation]) -> list[ScoredGroup]:
    """The groups with what `Store.added_evaluations` tells of them, for `trust.marks` and reports; rewards stay.

    A person's label is nobody's second look: it stands there as a mark of its own, without `audit`, and only the newest.
    """
    later: dict[str, dict[tuple[str, ...], Evaluation]] = defaultdict(dict)
    for e in added:
        which = (e.judge, e.dimension, e.version, e.audit)
        later[e.rollout_id][which] = replace(e, audit="") if e.audit == LABEL else e
    return [
        replace(
            group,
            rollouts=tuple(
                replace(one, evaluations=(*one.evaluations, *later[one.rollout.id].values())) for one in group.rollouts
            ),
        )
        for group in groups
    ]


# ── who is asked ──────────────────────────────────────────────────────────────────────────────────────────────────


class Again(LocalJudges):
    """Some of a run's judges, and further ones, asked in one way."""

    def __init__(self, asked: "Asked", oracle: Oracle) -> None:
        super().__init__(asked.recipe, oracle.within("rejudge"))
        self._how = asked
        self._seats = [seat for seat in self._seats if asked.suits(seat)]

    @property
    def nobody(self) -> bool:
        return not self._seats

    async def ask(self, step: int, group: Group) -> list[Evaluation]:
        """What they say; a judge that turns out to ask no model has nothing to say a second time."""
        audit = self._how.audit
        settings = {"order": 1 + self._how.recipe.seed} if audit == "permuted" else {}
        said = await asyncio.gather(*(self._ask(seat, step, group, audit, settings) for seat in self._seats))
        return [e for some in said for e in some if e.model or e.score is None or audit == "rejudged"]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which judges, and how; the recipe has the further ones too, from `first` on."""

    recipe: Recipe
    first: int
    names: tuple[str, ...]
    """Of the recipe's own; empty with no further ones: all."""
    audit: Audit
    heard: Mapping[str, bool]
    """Version → whether it asked a model, of those whose marks count."""

    def suits(self, seat: Seat) -> bool:
        """Whether the seat is wanted, and can be asked so."""
        all_of_it = not self.names and self.first == len(self.recipe.judges)
        if not (all_of_it or seat.place >= self.first or seat.spec.name in self.names):
            return False
        if self.audit == "rejudged":
            return seat.version not in self.heard
        if not self.heard.get(seat.version, True):
            return False
        if self.audit == "permuted":
            return "order" in inspect.signature(seat.judge).parameters
        if self.audit == "repeat":
            return True
        return seat.spec.oracle != self.recipe.trust.second and not named_by(
            "judges", seat.spec.name, seat.spec.settings
        )


def asked(recipe: Recipe, judges: Sequence[str | JudgeSpec], audit: Audit, groups: Iterable[ScoredGroup]) -> Asked:
    """What people want of the judges. Raises ConfigError, or MissingError for a judge that isn't there."""
    if audit not in get_args(Audit):
        raise ConfigError(f"there is no audit {audit!r}{hint(audit, list(get_args(Audit)))}")
    if audit == "second" and not recipe.trust.second:
        raise ConfigError("there is no second oracle to ask: the run's trust.second names none")
    known = [spec.name for spec in recipe.judges]
    for one in judges:
        if isinstance(one, JudgeSpec):
            check_settings("judges", one.name, "judge", one.settings)
            if one.oracle and one.oracle not in recipe.oracles:
                raise ConfigError(
                    f"judge {one.name!r}: no oracle {one.oracle!r}{hint(one.oracle, list(recipe.oracles))}"
                )
        elif one not in known:
            raise MissingError(f"the run has no judge {one!r}{hint(one, known)}")
    further = tuple(one for one in judges if isinstance(one, JudgeSpec))
    names = tuple(one for one in judges if isinstance(one, str))
    heard: dict[str, bool] = {}
    for e in (e for group in groups for one in group.rollouts for e in one.evaluations):
        if e.audit in ("", HELD) and (e.model or e.score is not None):  # a judge that was never reached may ask a model
            heard[e.version] = heard.get(e.version, False) or bool(e.model)
    return Asked(replace(recipe, judges=(*recipe.judges, *further)), len(known), names, audit, heard)


async def _one(judges: Again, step: int, group: Group, store: Store, turns: asyncio.Semaphore, tally: Tally) -> None:
    """Ask of one group, and save what was said."""
    async with turns:
        said = await judges.ask(step, group)
    given = [e for e in said if e.score is not None]
    await store.add_evaluations(given)
    tally.said += given
    tally.missing.update(brief(e.rationale, 160) for e in said if e.score is None)


# ── what they are asked of, and by what ───────────────────────────────────────────────────────────────────────────


async def _saved(store: Store, run: str) -> tuple[Recipe, list[list[ScoredGroup]]]:
    """The run's recipe, and its scored groups by step."""
    state = await store.load_state()
    if state is None:
        raise MissingError(f"run {run} has no saved state yet")
    steps = [await store.scored_groups(step, step) for step in range(state.step + state.recipe.lag + 1)]
    if not any(steps):
        raise MissingError(f"run {run} has no scored group yet: there is nothing to judge again")
    return state.recipe, steps


@asynccontextmanager
async def _oracle(
    archive: Archive, run: str, recipe: Recipe, base_url: str, batch: Batching | None
) -> AsyncIterator[Oracle]:
    """An oracle that records in the run's store, and waits for nobody to allow it more money."""
    store = await archive.open(run)
    gate = RateGate.of(specs_of(recipe), spent(await store.attempts()))
    for event in await store.events():
        if event["kind"] == BUDGET and event["detail"]["door"] in gate.doors:
            await gate.allow(event["detail"]["door"], event["detail"]["max_usd"])
    make = partial(BatchEndpoint, memory=StoreMemory(store), batching=batch) if batch else Endpoint
    endpoints = {
        name: make(one, base_url=base_url if one.base_url == "bundled" else one.base_url, gate=gate)
        for name, one in {"": recipe.oracle, **recipe.oracles}.items()
    }
    oracle = RecordingOracle(Switchboard(endpoints, store, Checker(), archive, run, None))
    try:
        yield oracle
    finally:
        await oracle.close()
