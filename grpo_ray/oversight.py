"""What people ask and decide about a run's judges and its money: more operations, beside `operations.py`."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from grpo_ray import registry
from grpo_ray.canonical import plain
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.explain import explain as explained
from grpo_ray.llm.batch import Batching
from grpo_ray.llm.gate import BUDGET, specs_of, spent
from grpo_ray.operations import state_of, which
from grpo_ray.protocols import Archive
from grpo_ray.recipe import Recipe
from grpo_ray.rejudging import Audit, with_added
from grpo_ray.rejudging import rejudge as judged_again
from grpo_ray.trust import alarms
from grpo_ray.trust.queue import labelled, queue
from grpo_ray.trust.report import Saved
from grpo_ray.trust.report import judge_report as report_of
from grpo_ray.types import Evaluation, Lesson


async def explain(archive: Archive, id: str, run: str | None = None) -> dict[str, Any]:
    """The arithmetic from what was said of one rollout to its advantage (see `explain.Explanation`)."""
    row = await archive.find("rollout", id, run)
    store = await archive.open(row["run"])
    lessons = await store.lessons(row["step"], row["step"])
    recipe = next((state.recipe for state in await store.states() if state.step == row["step"]), None)
    if recipe is None or row["advantage"] is None:
        raise MissingError(f"rollout {row['id']} has no advantage: its step, {row['step']}, is not whole yet")
    return {"run_id": row["run"], "step": row["step"], **plain(explained(lessons, row["id"], recipe))}


async def accept_judges(archive: Archive, run: str | None = None, *, who: str) -> dict[str, Any]:
    """Take a person's word that the doubts about a run's judges may be passed over."""
    row = await which(archive, run)
    store = await archive.open(row["run"])
    doubts = alarms.open_alarms(await store.events())
    for one in doubts:
        await store.save_event(row["step"], alarms.ACCEPTED, {"kind": one["kind"], "judge": one["judge"], "who": who})
    return {"run_id": row["run"], "accepted": [one["words"] for one in doubts]}


async def budget(archive: Archive, run: str | None, usd: float, door: str | None = None, *, who: str) -> dict[str, Any]:
    """Let a run spend `usd` in all at one door (host and model); None: its only one. More or less than before.

    The newest word wins while the run's process lives; one that is resumed begins with its config's max_usd again.
    Raises ConfigError for less than is spent already, and where the door must be named; MissingError.
    """
    row = await which(archive, run)
    store = await archive.open(row["run"])
    recipe = (await state_of(store, row["run"])).recipe
    doors = list(specs_of(recipe))
    if door is None and len(doors) > 1:
        raise ConfigError(f"run {row['run']} pays at several doors: {', '.join(doors)}; name one with --door")
    if door is not None and door not in doors:
        raise MissingError(f"run {row['run']} has no door {door!r}{registry.hint(door, doors)}")
    name = door or doors[0]
    spent_so_far = spent(await store.attempts()).get(name, 0.0)
    if not (math.isfinite(usd) and usd >= spent_so_far):
        raise ConfigError(
            f"run {row['run']} has spent ${spent_so_far:.6f} at {name}: it can't cost ${usd:g} in all; allow that much or more, "
            f"or end it: grpo-ray stop {row['run']}"
        )
    detail = {"door": name, "max_usd": usd, "who": who, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    await store.save_event(row["step"], BUDGET, detail)
    return {"run_id": row["run"], "door": name, "max_usd": usd, "spent_usd": round(spent_so_far, 6)}


async def judge_report(archive: Archive, run: str | None = None) -> dict[str, Any]:
    """Everything that tells how far a run's judges can be trusted (see `trust.report.judge_report`)."""
    row = await which(archive, run)
    store = await archive.open(row["run"])
    state = await state_of(store, row["run"])
    last = state.step + state.recipe.lag
    steps = {step: some for step in range(last + 1) if (some := await store.scored_groups(step, step))}
    added = await store.added_evaluations()
    steps = {step: with_added(some, added) for step, some in steps.items()}
    told = (await store.lessons(), await store.events(), await store.attempts(), await store.load_outcome())
    return report_of(Saved(row["run"], state.recipe, steps, *told))


async def review(archive: Archive, run: str | None = None, *, limit: int = 20) -> dict[str, Any]:
    """The rollouts that a person's label would tell most about, each with why."""
    row = await which(archive, run)
    store = await archive.open(row["run"])
    state, added = await state_of(store, row["run"]), await store.added_evaluations()
    lessons = {step: _with_groups(await store.lessons(step, step), added) for step in range(state.step)}
    newest = [[lesson.group for lesson in lessons[step]] for step in sorted(lessons)[-alarms.STEPS :]]
    found = alarms.reviewed(newest, await store.events(), state.recipe.trust)
    return {"run_id": row["run"], "items": plain(queue(lessons, found, limit))}


def _with_groups(lessons: Sequence[Lesson], added: Sequence[Evaluation]) -> list[Lesson]:
    """The lessons, whose groups have what was said of them later too."""
    groups = with_added([lesson.group for lesson in lessons], added)
    return [replace(lesson, group=group) for lesson, group in zip(lessons, groups, strict=True)]


async def label(
    archive: Archive, run: str | None, rollout: str, dimension: str, score: float, who: str, words: str = ""
) -> dict[str, Any]:
    """Keep a person's label of a rollout (its id, or a unique beginning): 0 is worst, 1 best. No reward changes by it.

    A later label by `who` on the same dimension takes an earlier one's place. Raises ConfigError for what is no label, or
    where several rollouts fit; MissingError for a rollout that isn't there, or has no reward yet.
    """
    name = (await which(archive, run))["run"] if run else None
    row = await archive.find("rollout", rollout, name)
    given = labelled(row["id"], dimension, score, who, words)
    await (await archive.open(row["run"])).save_labels([given])
    told = {"judge": given.judge, "dimension": given.dimension, "score": given.score, "words": words}
    return {"run_id": row["run"], "rollout_id": row["id"], **told}


async def rejudge(
    archive: Archive,
    run: str | None,
    *,
    serve: Callable[[Recipe], AbstractContextManager[str]],
    judges: Sequence[str] = (),
    audit: Audit = "repeat",
    share: float = 1.0,
    batch: bool = False,
) -> dict[str, Any]:
    """A run's groups judged once more (see `rejudging.rejudge`); `serve` starts the bundled server where one is needed."""
    row = await which(archive, run)
    recipe = (await state_of(await archive.open(row["run"]), row["run"])).recipe
    with serve(recipe) as base_url:
        how = {"judges": judges, "audit": audit, "share": share, "batch": Batching() if batch else None}
        return await judged_again(archive, row["run"], base_url=base_url, **how)
