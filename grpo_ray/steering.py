"""What people ask and decide about a run's templates: more operations, beside `operations.py`.

Whatever changes the population is written down at once, with who and when, and takes effect at the next step's edge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from grpo_ray import changes, lineage
from grpo_ray.canonical import plain
from grpo_ray.changes import CHANGE, Change
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.gains import gains
from grpo_ray.library import dump_library, load_library, reload, write_library
from grpo_ray.operations import state_of, which
from grpo_ray.prompting import content_hash
from grpo_ray.protocols import Archive, Store
from grpo_ray.recipe import RunState
from grpo_ray.registry import hint
from grpo_ray.types import Population, Template

EDGE = "at the next step's edge"
SEED = "seed"
"""The mutation of a template that nothing is told of."""
Wish = Literal["pin", "unpin", "retire"]


# ── to look ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def templates(archive: Archive, run: str | None = None, *, everything: bool = False) -> dict[str, Any]:
    """A run's templates, the living first and the fittest of them first; with `everything` the retired too.

    templates: nodes of `lineage.tree` without their course, each with its template's text, system, parameters and examples,
    and `born` (the generation it came in with, None for the retired); waiting: changes that no step has taken in yet; refused: those
    that could not be done, each with why.
    """
    row = await which(archive, run)
    store = await archive.open(row["run"])
    state = await state_of(store, row["run"])
    texts = {template.id: template for template in await store.templates()}
    born = {member.template.id: member.born for member in state.population.members}
    nodes = lineage.ranked((await _tree(store, state))["nodes"])
    found = [
        plain(texts[node["id"]]) | {key: node[key] for key in node if key != "course"} | {"born": born.get(node["id"])}
        for node in nodes
        if everything or node["living"]
    ]
    return {"run_id": row["run"], "step": state.step, "templates": found, **_wishes(await store.events())}


def _wishes(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The changes that wait, and those that were refused."""
    known = {change.id: change for change in changes.read(events)}
    at = {event["id"]: event["detail"]["at"] for event in events if event["kind"] == CHANGE}
    refused = [
        _told(known[id], at[id]) | {"step": event["step"], "refused": why}
        for event in events
        if event["kind"] == changes.APPLIED
        for id, why in event["detail"]["refused"]
    ]
    return {"waiting": [_told(one, at[one.id]) for one in changes.waiting(events)], "refused": refused}


def _told(change: Change, at: str) -> dict[str, Any]:
    about = [change.template] if change.template else [template.id for template in change.templates]
    return {"change": change.kind, "templates": about, "who": change.who, "at": at, "why": change.why}


async def tree(archive: Archive, run: str | None = None, *, everything: bool = True) -> dict[str, Any]:
    """Who came from whom, as plain data: run_id, step, and the nodes and edges of `lineage.tree`, in the order they came.

    Without `everything` only the living and what they came from.
    """
    row = await which(archive, run)
    store = await archive.open(row["run"])
    state = await state_of(store, row["run"])
    found = await _tree(store, state)
    return {"run_id": row["run"], "step": state.step, **(found if everything else lineage.family(found))}


async def _tree(store: Store, state: RunState) -> lineage.Tree:
    known, lives, trials = await store.templates(), await store.lives(), await store.trials()
    start = min(life.made for life in lives)
    first = {life.template for life in lives if life.made == start}
    gained = gains(known, first, trials, state.step, state.recipe)
    return lineage.tree(known, lives, state.population, gained)


async def diff(archive: Archive, a: str, b: str, run: str | None = None) -> dict[str, Any]:
    """What changes from one template of a run to another (see `lineage.diff`); ids may be unique beginnings."""
    row = await which(archive, run)
    known = await (await archive.open(row["run"])).templates()
    return {"run_id": row["run"], **lineage.diff(_one(a, known, row["run"]), _one(b, known, row["run"]))}


async def export(
    archive: Archive,
    path: str | Path,
    run: str | None = None,
    *,
    everything: bool = False,
    best: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a prompts.json that starts another run: the living templates, or all that ever lived, or the `best` of each type.

    Raises ConfigError where the file is there already, unless it may be overwritten.
    """
    place = _free(path, overwrite)
    name, chosen = await _chosen(archive, run, everything, best)
    write_library(place, chosen)
    return {"run_id": name, "path": str(place), "templates": [template.id for template in chosen]}


async def library(archive: Archive, run: str | None = None, *, best: int | None = None) -> dict[str, Any]:
    """What `export` would write of the living templates, as a value: {"run_id", "prompts"}."""
    name, chosen = await _chosen(archive, run, False, best)
    return {"run_id": name, "prompts": dump_library(chosen)}


async def _chosen(
    archive: Archive, run: str | None, everything: bool, best: int | None
) -> tuple[str, Sequence[Template]]:
    row = await which(archive, run)
    store = await archive.open(row["run"])
    if everything:
        return row["run"], await store.templates()
    return row["run"], _best((await state_of(store, row["run"])).population, best)


def _free(path: str | Path, overwrite: bool) -> Path:
    place = Path(path).expanduser()
    if place.exists() and not overwrite:
        raise ConfigError(f"{place} is there already; choose another file, or overwrite it with --force")
    return place


def _best(population: Population, count: int | None) -> list[Template]:
    """The living templates, fittest first; at most `count` of each task type."""
    ranked = sorted(population.members, key=lambda member: (-member.fitness, member.template.id))
    met: dict[str, int] = {}
    found = []
    for template in (member.template for member in ranked):
        met[template.task_type] = met.get(template.task_type, 0) + 1
        found += [template] if count is None or met[template.task_type] <= count else []
    return found


# ── to change ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def pin(archive: Archive, id: str, run: str | None = None, *, who: str, why: str = "") -> dict[str, Any]:
    """Keep a living template whatever it comes to."""
    return await _wish(archive, "pin", id, run, who, why)


async def unpin(archive: Archive, id: str, run: str | None = None, *, who: str, why: str = "") -> dict[str, Any]:
    """Let a template go the way of all others again."""
    return await _wish(archive, "unpin", id, run, who, why)


async def retire(archive: Archive, id: str, run: str | None = None, *, who: str, why: str = "") -> dict[str, Any]:
    """Take a template out of the population, pinned or not. Raises ConfigError where none would be left for its tasks."""
    return await _wish(archive, "retire", id, run, who, why)


async def _wish(archive: Archive, kind: Wish, id: str, run: str | None, who: str, why: str) -> dict[str, Any]:
    name, step, store, population = await _steered(archive, run)
    template = _living(id, population, await store.templates(), name)
    wish = Change(0, kind, who, template.id, why)
    _, refused = changes.applied(population, [wish])
    if refused:
        raise ConfigError(f"run {name}: {refused[0][1]}")
    await _keep(store, step, wish)
    return {"run_id": name, "change": kind, "template": template.id, "takes_effect": EDGE}


async def import_templates(
    archive: Archive,
    path: str | Path,
    run: str | None = None,
    *,
    who: str,
    why: str = "",
    again: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Let what is new in a prompts.json into a run's population. Where the file has any problem nothing changes.

    Templates are the same when they say the same; those that the run has retired stay so, unless they shall live `again`. One
    that was changed comes in as a child of what it was. Raises ConfigError with every problem of the file.
    """
    place = Path(path).expanduser()  # noqa: ASYNC240 - it reads no disk
    name, step, store, population = await _steered(archive, run)
    known = {template.id: template for template in (*await store.templates(), *population.templates)}
    found = reload(place, list(known.values()))
    back = _retired(place, known, population) if again else []
    wish = Change(0, "import", who, why=why, templates=(*(_signed(one, who, why) for one in found.new), *back))
    _, refused = changes.applied(population, [wish])
    if refused:
        raise ConfigError("\n".join([f"run {name}:", *(f"  {what}" for _, what in refused)]))
    if wish.templates and not dry_run:
        await _keep(store, step, wish)
    return {
        "run_id": name,
        "change": "import",
        "templates": [template.id for template in wish.templates],
        "known": found.same - len(back),
        "takes_effect": "never: this was a dry run" if dry_run else EDGE if wish.templates else "never: nothing is new",
    }


def _signed(template: Template, who: str, why: str) -> Template:
    """A new template of a file, with who brought it in where the file says nothing of where it comes from."""
    if template.mutation != SEED:
        return template
    return replace(template, mutation="import", note=f"imported by {who}" + (f": {why}" if why else ""))


def _retired(path: Path, known: Mapping[str, Template], population: Population) -> list[Template]:
    """The templates of a file that the run knows, and that live no longer."""
    said = {content_hash(template) for template in load_library(path)}
    living = {content_hash(template) for template in population.templates}
    gone = {content_hash(one): one for one in known.values() if content_hash(one) in said - living}
    return list(gone.values())


async def _steered(archive: Archive, run: str | None) -> tuple[str, int, Store, Population]:
    """(run, step, its tables, its population as it will be with the changes that wait). Raises ConfigError once it is over."""
    row = await which(archive, run)
    if row["finished"]:
        raise ConfigError(f"run {row['run']} is finished: its templates stay as they are; export them, or fork it")
    store = await archive.open(row["run"])
    state = await state_of(store, row["run"])
    population, _ = changes.applied(state.population, changes.waiting(await store.events()))
    return row["run"], state.step, store, population


async def _keep(store: Store, step: int, wish: Change) -> None:
    detail = {key: value for key, value in plain(wish).items() if key != "id"}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    await store.save_event(step, CHANGE, {**detail, "at": now})


def _living(id: str, population: Population, known: Sequence[Template], run: str) -> Template:
    """The living template of an id or its unique beginning. Raises MissingError naming a near one, or ConfigError."""
    if any(template.id.startswith(id) for template in population.templates):
        return _one(id, population.templates, run)
    if any(template.id == id for template in known):
        why = next((f": {why}" for gone, why in reversed(population.retired) if gone == id), "")
        raise ConfigError(
            f"template {id} of run {run} is retired{why}; to have it back: grpo-ray templates import FILE --again"
        )
    return _one(id, population.templates, run)


def _one(id: str, known: Sequence[Template], run: str) -> Template:
    found = [one for one in known if one.id == id] or [one for one in known if one.id.startswith(id)]
    if not found:
        raise MissingError(f"run {run} has no template {id!r}{hint(id, [one.id for one in known])}")
    if len(found) > 1:
        raise ConfigError(f"{id!r} fits several templates: {', '.join(one.id for one in found[:4])}; write more of it")
    return found[0]
