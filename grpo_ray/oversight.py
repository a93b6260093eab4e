"""What people ask and decide about a run's judges and its money: more operations, beside `operations.py`."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
from grpo_ray.trust.queue import queue
from grpo_ray.trust.report import Saved
from grpo_ray.trust.report import judge_report as report_of


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
    """Let a run spend `usd` in all at one door (host and model); None: its only one. Raises ConfigError."""
    row = await which(archive, run)
    store = await archive.open(row["run"])
    recipe = (await state_of(store, row["run"])).recipe
    doors = list(specs_of(recipe))
    if door is None and len(doors) > 1:
        raise ConfigError(f"run {row['run']} pays at several doors: {', '.join(doors)}; name one with --door")
    if door is not None and door not in doors:
        raise MissingError(f"run {row['run']} has no door {door!r}{registry.hint(door, doors)}")
    name = door or doors[0]
    detail = {"door": name, "max_usd": usd, "who": who, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    await store.save_event(row["step"], BUDGET, detail)
    spent_so_far = spent(await store.attempts()).get(name, 0.0)
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
    state = await state_of(store, row["run"])
    lessons = {step: await store.lessons(step, step) for step in range(state.step)}
    newest = [[lesson.group for lesson in lessons[step]] for step in sorted(lessons)[-alarms.STEPS :]]
    found = alarms.reviewed(newest, await store.events(), state.recipe.trust)
    return {"run_id": row["run"], "items": plain(queue(lessons, found, limit))}


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
