"""What people ask and decide about a run's judges and its money: more operations, beside `operations.py`."""

from datetime import UTC, datetime
from typing import Any

from grpo_ray import registry
from grpo_ray.canonical import plain
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.explain import explain as explained
from grpo_ray.gate import BUDGET, specs_of, spent
from grpo_ray.operations import state_of, which
from grpo_ray.protocols import Archive
from grpo_ray.trust import ACCEPTED, open_alarms


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
    doubts = open_alarms(await store.events())
    for one in doubts:
        await store.save_event(row["step"], ACCEPTED, {"kind": one["kind"], "judge": one["judge"], "who": who})
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
