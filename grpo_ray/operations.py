"""Every operation a person or an agent may ask for, once. CLI and MCP only translate to these.

`run` is a run's id or its unique beginning; None means the newest run. What comes back is plain (JSON can hold it).
Texts in it that a model wrote are untrusted.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from grpo_ray import curation, exam, registry, reports
from grpo_ray.canonical import digest, plain, short
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.forecasts import hindsight
from grpo_ray.llm.gate import without_money
from grpo_ray.prompting import fits, render
from grpo_ray.protocols import Archive, Crew, Store, Want
from grpo_ray.recipe import Recipe, RunState
from grpo_ray.scoring import score
from grpo_ray.trust.alarms import open_alarms
from grpo_ray.types import LostGroup, Row, Sampling, ScoredGroup, ScoredRollout, Template, Wave

Embed = Callable[[Sequence[str]], Awaitable[list[list[float]]]]
Kind = Literal["run", "template", "rollout", "adapter"]
ARMS = ("start_mean", "start_best", "best_template", "last_adapter", "both")
OF_RUN = ("adapter", "state", "lessons")
"""What an exporter may ask for beside its settings."""
EMBED_BATCH = 128
EMBED_MOST = 4096
"""Completions embedded in one search at most, so that an agent's call ends in time; the next search goes on."""
TEXT_MOST = 2000
"""Characters of a completion that a search shows; `show rollout` has all of it."""


async def runs(archive: Archive) -> list[dict[str, Any]]:
    """All runs, newest first: run, name, step, steps, rollouts, wanted, created, finished."""
    return await archive.runs()


async def which(archive: Archive, run: str | None) -> dict[str, Any]:
    """The row of one run. Raises MissingError, naming the nearest, or ConfigError where several fit."""
    rows = await archive.runs()
    if not rows:
        raise MissingError("there is no run yet; start one with: grpo-ray run -c FILE")
    if run is None:
        return rows[0]
    found = [row for row in rows if row["run"] == run] or [row for row in rows if row["run"].startswith(run)]
    if not found:
        raise MissingError(f"there is no run {run!r}{registry.hint(run, [row['run'] for row in rows])}")
    if len(found) > 1:
        raise ConfigError(f"{run!r} fits several runs: {', '.join(row['run'] for row in found)}; write more of it")
    return found[0]


async def status(archive: Archive, run: str | None = None) -> dict[str, Any]:
    """How a run is doing, with the keys of a finished run's result as far as they are known; None: not yet."""
    row = await which(archive, run)
    store = await archive.open(row["run"])
    state = await state_of(store, row["run"])
    lessons = await store.lessons(last=state.step - 1) if state.step else []
    outcome = await store.load_outcome()
    return {
        "run_id": row["run"],
        "name": row["name"],
        "wanted": row["wanted"],
        "created": row["created"],
        "finished": row["finished"],
        "steps": state.step,
        "planned_steps": state.recipe.steps,
        "rollouts": row["rollouts"],
        "heldout": heldout(outcome),
        "reward_per_step": [await mean_reward(store, step) for step in range(state.step)],
        "last_step": await last_step(store, state),
        "best_templates": await best_templates(archive, state, outcome),
        "adapter": asdict(state.adapter) if state.adapter else None,
        "exported_rows": len(curation.rows(lessons)),
        "state_hash": state_hash(state),
        "seconds": (outcome or {}).get("seconds", {}),
        "judges": await judging(store, state),
        "forecast": hindsight.review(await store.events(), await store.attempts(), lessons, outcome),
    }


async def judging(store: Store, state: RunState) -> dict[str, Any]:
    """What stands against a run's judges: dimensions that do not count, alarms no person accepted, doors without money."""
    held, events = state.policies[-1].held if state.policies else (), await store.events()
    return {
        "held": [list(one) for one in held],
        "alarms": [one["words"] for one in open_alarms(events)],
        "without_money": without_money(events),
    }


def state_hash(state: RunState) -> str:
    """sha256 of the canonical state without the run's id, so that two runs of one seed compare equal."""
    return digest(replace(state, run=""))


def heldout(outcome: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The five arms, each {accuracy, low, high, tasks}, and `paired`: "arm - arm" → {mean, low, high}."""
    if not outcome or "both" not in outcome:
        return None
    paired = {name: {"mean": mean, "low": low, "high": high} for name, mean, low, high in outcome["paired"]}
    return {arm: outcome[arm] for arm in ARMS} | {"paired": paired}


async def mean_reward(store: Store, step: int) -> float | None:
    """The mean over one step's rollouts that have a reward."""
    return reports.reward_per_step([await store.lessons(step, step)])[0]


async def last_step(store: Store, state: RunState) -> dict[str, Any] | None:
    """The metrics of the newest step that is whole (see `reports.step_report`)."""
    if not state.step:
        return None
    return reports.step_report(state.step - 1, await store.lessons(state.step - 1, state.step - 1))


async def best_templates(archive: Archive, state: RunState, outcome: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """For each task type the template chosen with the last adapter; before the outcome is known, the fittest."""
    if not outcome or "chosen" not in outcome:
        return reports.best_templates(state.population)
    living = {row["id"]: row for row in reports.best_templates(state.population, None)}
    chosen = [(kind, id) for arm, kind, id in outcome["chosen"] if arm == "both"]
    return [(living.get(id) or await _retired(archive, state.run, id)) | {"task_type": kind} for kind, id in chosen]


async def _retired(archive: Archive, run: str, id: str) -> dict[str, Any]:
    """A template that the population no longer holds, in the form of those that it does."""
    row = await archive.find("template", id, run)
    return {key: row.get(key) for key in reports.TEMPLATE_KEYS} | {"settings": dict(row["settings"])}


async def pause(archive: Archive, run: str | None = None, *, who: str) -> dict[str, Any]:
    """Ask a run to wait at the next step's edge."""
    return await _want(archive, run, "pause", who)


async def resume(archive: Archive, run: str | None = None, *, who: str) -> dict[str, Any]:
    """Ask a paused run to go on."""
    return await _want(archive, run, "run", who)


async def stop(archive: Archive, run: str | None = None, *, who: str) -> dict[str, Any]:
    """Ask a run to end at the next step's edge, saved."""
    return await _want(archive, run, "stop", who)


async def _want(archive: Archive, run: str | None, what: Want, who: str) -> dict[str, Any]:
    row = await which(archive, run)
    if row["finished"]:
        raise ConfigError(
            f"run {row['run']} is finished: there is nothing left to {what if what != 'run' else 'resume'}"
        )
    await archive.want(row["run"], what, who)
    return {"run_id": row["run"], "wanted": what, "takes_effect": "at the next step's edge"}


async def show(archive: Archive, kind: str, id: str, run: str | None = None) -> dict[str, Any]:
    """Everything kept of one run, template, rollout or adapter; `id` may be its unique beginning.

    A template comes with its `ancestry` (itself first, then parents, breadth first), an adapter likewise; a rollout
    with those of its template and its adapter.
    """
    row = await archive.find(kind, id, run)
    if kind == "template":
        row["ancestry"] = await _templates_back(archive, row["run"], row["id"])
    if kind == "adapter":
        row["ancestry"] = await _adapters_back(archive, row["run"], row["id"])
    if kind == "rollout":
        row["templates"] = await _templates_back(archive, row["run"], row["prompt"]["template_id"])
        row["adapters"] = await _adapters_back(archive, row["run"], row["adapter"]) if row["adapter"] else []
    return row


async def _templates_back(archive: Archive, run: str, id: str) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    queue = [id]
    while queue:
        if (near := queue.pop(0)) not in found:
            found[near] = await _ancestor(archive, "template", near, run)
            queue += found[near].get("parents", [])
    return list(found.values())


async def _adapters_back(archive: Archive, run: str, hash: str | None) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    while hash and hash not in found:
        found[hash] = await _ancestor(archive, "adapter", hash, run)
        hash = found[hash].get("parent")
    return list(found.values())


async def _ancestor(archive: Archive, kind: str, id: str, run: str) -> dict[str, Any]:
    """A forked run begins with templates and an adapter whose own parents stayed with the run it was forked from."""
    try:
        row = await archive.find(kind, id, run)
    except MissingError:
        return {"id": id, "run": run, "missing": "it is older than this run, which was forked"}
    return {key: value for key, value in row.items() if key != "ancestry"}


async def search_rollouts(
    archive: Archive,
    query: str,
    *,
    run: str | None = None,
    limit: int = 10,
    embed: Embed | None = None,
    model: str = "",
) -> dict[str, Any]:
    """Stored completions nearest to `query`: by meaning with an embedder (of `model`), by its words without one.

    Brings the run's embeddings up to date first, at most EMBED_MOST a call; `complete` says whether all are in.
    """
    row = await which(archive, run)
    store = await archive.open(row["run"])
    known = {one.rollout.id: (group, one) for group in await store.scored_groups() for one in group.rollouts}
    if embed is None:
        found, complete = _by_words(query, known, limit), True
    else:
        complete = await _embed_missing(archive, row["run"], embed, model)
        (vector,) = await embed([query])
        found = await archive.search(row["run"], vector, limit)
    results = [{"rollout": id, "similarity": near} | _described(known.get(id)) for id, near in found]
    return {
        "run_id": row["run"],
        "by": "words" if embed is None else "meaning",
        "complete": complete,
        "results": results,
    }


async def _embed_missing(archive: Archive, run: str, embed: Embed, model: str) -> bool:
    for _ in range(EMBED_MOST // EMBED_BATCH):
        if not (texts := await archive.unembedded(run, EMBED_BATCH)):
            return True
        vectors = await embed([text for _, text in texts])
        await archive.save_embeddings(run, model, [(id, v) for (id, _), v in zip(texts, vectors, strict=True)])
    return not await archive.unembedded(run, 1)


def _by_words(
    query: str, known: Mapping[str, tuple[ScoredGroup, ScoredRollout]], limit: int
) -> list[tuple[str, float]]:
    """(rollout id, share of the query's words that the completion or its task has), best first."""
    words = set(query.lower().split())
    near = {
        id: sum(word in f"{one.rollout.text}\n{group.group.prompt.task.question}".lower() for word in words)
        / len(words)
        for id, (group, one) in known.items()
        if words
    }
    return sorted(((id, share) for id, share in near.items() if share), key=lambda pair: (-pair[1], pair[0]))[:limit]


def _described(found: tuple[ScoredGroup, ScoredRollout] | None) -> dict[str, Any]:
    if found is None:
        return {"text": None, "reward": None, "question": None, "template": None}
    group, one = found
    prompt = group.group.prompt
    return {
        "text": one.rollout.text[:TEXT_MOST],
        "reward": one.reward.value,
        "question": prompt.task.question,
        "template": prompt.template_id,
    }


async def export(
    archive: Archive, run: str | None, format: str, out: str | Path, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write a run's curated rows, or its adapter for formats that ask for one, under `out`.

    `rows` is how many were written: with an adapter none.
    """
    exporter, given = registry.find("exporters", format, "export"), dict(settings or {})
    asked = [name for name in OF_RUN if name in inspect.signature(exporter).parameters]
    if taken := sorted(given.keys() & asked):
        raise ConfigError(f"exporters {format!r} takes {', '.join(taken)} from the run; leave it out of the settings")
    registry.check_settings("exporters", format, "export", given | dict.fromkeys(asked))
    row = await which(archive, run)
    store = await archive.open(row["run"])
    await _unquestioned(store, row["run"])
    lessons = await store.lessons()
    of_run = {"lessons": lessons} | (await _of_run(store, row["run"]) if {"adapter", "state"} & set(asked) else {})
    rows = curation.rows(lessons)
    path = _written(exporter, rows, Path(out), given | {name: of_run[name] for name in asked})
    count = 0 if "adapter" in asked else len(rows)
    return {"run_id": row["run"], "format": format, "rows": count, "path": str(path), "files": _files(path)}


async def _unquestioned(store: Store, run: str) -> None:
    """Raise ConfigError while there are doubts about the run's judges that no person has looked at."""
    if doubts := open_alarms(await store.events()):
        words = "; ".join(sorted({one["words"] for one in doubts}))
        raise ConfigError(
            f"the judges of run {run} are in doubt: {words}. Look at them (grpo-ray judge-report {run}); to export all "
            f"the same: grpo-ray accept-judges {run}"
        )


def _written(exporter: Callable[..., Path], rows: Sequence[Row], out: Path, settings: Mapping[str, Any]) -> Path:
    out = out.expanduser()
    try:
        return Path(exporter(rows, out, **settings))
    except OSError as fault:
        raise ConfigError(f"can't write to {out}: {fault.strerror}; choose another folder with --out") from fault


def _files(path: Path) -> list[str]:
    return [str(file) for file in sorted(path.rglob("*")) if file.is_file()] or [str(path)]


async def _of_run(store: Store, run: str) -> dict[str, Any]:
    """The run's last state, and the bytes of the last adapter that the gate let through."""
    state = await state_of(store, run)
    if state.adapter is None:
        raise MissingError(f"run {run} has no adapter yet: no step has trained one; take more steps with a trainer")
    return {"state": state, "adapter": await store.load_adapter(state.adapter.hash)}


async def evaluate(run: str, crew: Crew, split: str = "heldout") -> dict[str, Any]:
    """An exam of a run's last state on a split, at temperature 0; templates are always chosen on validation tasks.

    On held-out tasks all five arms; on others the best starting template and the tuned whole. Answers already
    in the store are not asked again.
    """
    states = await crew.store.states()
    if not states:
        raise MissingError(f"run {run} has no saved state yet")
    start, state = states[0].population, states[-1]
    if split == "heldout":
        found = plain(await exam.outcome(start, state, crew))
        return {"run_id": run, "split": split, "step": state.step, **(heldout(found) or {})}
    tasks = getattr(crew.tasks, split)
    first = await exam.choose(start, None, state.recipe, crew, finalists=None)
    tuned = await exam.choose(state.population, state.adapter, state.recipe, crew, also=(first,))
    before = await exam.examine(split, exam.under(first, tasks), None, state.recipe, crew)
    after = await exam.examine(split, exam.under(tuned, tasks), state.adapter, state.recipe, crew)
    mean, low, high = exam.difference(before, after)
    arms = {"start_best": plain(exam.accuracy(before)), "both": plain(exam.accuracy(after))}
    paired = {"both - start_best": {"mean": mean, "low": low, "high": high}}
    return {"run_id": run, "split": split, "step": state.step, **arms, "paired": paired}


async def preview(
    templates: Sequence[Template], recipe: Recipe, crew: Crew
) -> AsyncIterator[tuple[Template, ScoredGroup | LostGroup]]:
    """One group a template, over the first training task that it fits: sampled, evaluated, scored, and not kept."""
    sampling = Sampling(**asdict(recipe.sampling), seed=recipe.seed)
    for template in templates:
        if (task := next((task for task in crew.tasks.train if fits(template, task)), None)) is None:
            continue
        wave = Wave(short("w", template.id, "preview"), (render(template, task, "preview"),), sampling)
        async for group in crew.generators.sample(wave, None):
            if isinstance(group, LostGroup):
                yield template, group
            else:
                yield template, await score(group, await crew.judges.evaluate(0, group), recipe)


def seen(template: Template, scored: ScoredGroup | LostGroup) -> dict[str, Any]:
    """A group of a preview: template, task, group, and its rollouts, each with its text, evaluations and reward.

    A lost group has no rollouts, and `lost` says why.
    """
    if isinstance(scored, LostGroup):
        task, group, rollouts = scored.prompt.task, scored.id, ()
    else:
        task, group, rollouts = scored.group.prompt.task, scored.group.id, scored.rollouts
    return {
        "template": template.id,
        "task": task.id,
        "question": task.question,
        "group": group,
        "rollouts": [
            {"text": one.rollout.text, "evaluations": plain(one.evaluations), "reward": plain(one.reward)}
            for one in rollouts
        ],
        "lost": scored.reason if isinstance(scored, LostGroup) else None,
    }


async def state_of(store: Store, run: str) -> RunState:
    state = await store.load_state()
    if state is None:
        raise MissingError(f"run {run} has no saved state yet")
    return state
