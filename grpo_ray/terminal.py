"""How results look on a terminal. Texts that a model wrote are shown as they are: no markup, control characters visible."""

import os
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from grpo_ray.launch import ENVIRONMENT, FindSlots
from grpo_ray.recipe import Placement
from grpo_ray.settings import masked
from grpo_ray.types import LostGroup, ScoredGroup, ScoredRollout, SlotsFound, Template, Wave

USUAL = {"home": Placement().home, "storage": Placement().storage}
BARS = "▁▂▃▄▅▆▇█"
ARMS = {
    "start_mean": "mean of the starting templates, base model",
    "start_best": "best starting template, base model",
    "best_template": "best evolved template, base model",
    "last_adapter": "best starting template, last adapter",
    "both": "best evolved template, last adapter",
}


def shown(text: Any) -> Text:
    """Untrusted text, literally: control and formatting characters as escapes, line ends and tabs kept."""
    safe = "".join(_visible(letter) for letter in str(text))
    return Text(safe)


def _visible(letter: str) -> str:
    if letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def sparkline(values: Sequence[float | None]) -> str:
    """One bar a value, from the least to the greatest; a dot where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return "·" * len(values)
    low, span = min(known), max(known) - min(known)
    scale = (len(BARS) - 1) / span if span else 0.0
    return "".join("·" if value is None else BARS[round((value - low) * scale)] for value in values)


def number(value: Any) -> str:
    """A number with three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    made = Table(title=shown(title), title_justify="left", header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else shown(number(cell)) for cell in row))
    return made


def outcome(result: Mapping[str, Any]) -> RenderableType:
    """The result of a run, or its status: accuracy by arm, paired differences, reward by step, templates."""
    parts: list[RenderableType] = [_heading(result)]
    rewards = result["reward_per_step"]
    if rewards:
        first, last = number(rewards[0]), number(rewards[-1])
        parts.append(shown(f"mean reward by step  {sparkline(rewards)}  {first} → {last}"))
    if held := result["heldout"]:
        arms = [(ARMS[arm], held[arm]["accuracy"], _interval(held[arm]), _tasks(held[arm])) for arm in ARMS]
        parts.append(table("held-out tasks, temperature 0", ("arm", "accuracy", "95 % interval", "tasks"), arms))
        gaps = [(name, gap["mean"], _interval(gap)) for name, gap in held["paired"].items()]
        parts.append(table("paired differences", ("arms", "difference", "95 % interval"), gaps))
    parts += [shown(line) for line in _oversight(result)]
    best = [(one["task_type"], one["id"], one["fitness"], one["text"]) for one in result["best_templates"]]
    parts.append(table("best templates", ("tasks", "template", "fitness", "text"), best))
    return Group(*parts)


def _oversight(result: Mapping[str, Any]) -> Iterator[str]:
    """What stands against the judges, what is waited for, what a dollar bought, and how right the forecast was."""
    run, judges, seen = result["run_id"], result["judges"], result["forecast"]
    yield from (f"in doubt: {words} (grpo-ray judge-report {run})" for words in judges["alarms"])
    yield from (f"does not count for now: {dimension} of {judge}" for judge, dimension in judges["held"])
    for door in judges["without_money"]:
        yield f"calls to {door} wait for money: grpo-ray budget {run} --usd …, or end the run and resume it with more"
    if (rows := seen["worth"]["rows_per_usd"]) is not None:
        gain = seen["worth"]["gain_per_usd"]
        yield f"a dollar of judging: {rows:.0f} rows" + ("" if gain is None else f", {gain:+.3f} held-out accuracy")
    if (right := seen["rightness"]) and right["inside80"] is not None:
        yield f"of the forecast's figures {right['inside80']:.0%} lay inside their 80 % interval"


def _heading(result: Mapping[str, Any]) -> Text:
    line = f"{result['run_id']}: step {result['steps']} of {result['planned_steps']}, {result['rollouts']} rollouts"
    line += f", {result['exported_rows']} rows to export"
    return shown(line if result["finished"] else f"{line}; wanted: {result['wanted']}")


def _tasks(one: Mapping[str, Any]) -> str:
    missing = one.get("missing", 0)
    return f"{one['tasks']} ({missing} without a verdict)" if missing else str(one["tasks"])


def _interval(one: Mapping[str, float]) -> str:
    return f"{one['low']:.3f} … {one['high']:.3f}"


def next_steps(result: Mapping[str, Any], place: Placement) -> str:
    """What to type after a run, each export only where there is something to take away.

    Where the run is kept is left out as far as commands in this environment look there unasked.
    """
    if place.storage == "memory":
        return "nothing of this run is kept; to export, run with: --set placement.storage=embedded"
    asked = {"home": place.home, "storage": masked(place.storage)}
    unsaid = {key: masked(os.environ.get(ENVIRONMENT[key]) or USUAL[key]) for key in asked}
    where = "".join(f" --{key} {shlex.quote(value)}" for key, value in asked.items() if value != unsaid[key])
    exports = [f"export {result['run_id']} --format chat --out data"] if result["exported_rows"] else []
    exports += [f"export {result['run_id']} --format adapter --out adapter"] if result["adapter"] else []
    lines = [*exports, f"status {result['run_id']}"]
    return "next: " + "\n      ".join(f"grpo-ray {line}{where}" for line in lines)


def aloud(find: FindSlots) -> FindSlots:
    """The same, saying on stderr that it is at work and what it found."""

    async def found(wave: Wave) -> SlotsFound:
        print("sampling.slots: auto: finding how many pay …", file=sys.stderr)
        answer = await find(wave)
        print(slots(answer), file=sys.stderr)
        return answer

    return found


def slots(found: SlotsFound) -> str:
    """How many slots were found, and the tokens a second that each number of them came to."""
    if not found.paces:
        return f"sampling.slots: {found.slots}, the usual number: this generator measures none"
    paces = ", ".join(f"{pace.slots}: {pace.tokens_per_second:,.0f}" for pace in found.paces)
    return f"sampling.slots: {found.slots} (tokens/s by slots: {paces})"


def runs(rows: Iterable[Mapping[str, Any]]) -> Table:
    """One line a run, its id in one piece even where the window is narrow."""
    made = Table(title="runs", title_justify="left", header_style="bold")
    for key in ("run", "step", "rollouts", "state", "created"):
        made.add_column(key, no_wrap=key == "run", overflow="fold")
    for row in rows:
        state = "finished" if row["finished"] else f"wanted: {row['wanted']}"
        created = str(row["created"])[:16].replace("T", " ")
        cells = (row["run"], f"{row['step']} of {row['steps']}", row["rollouts"], state, created)
        made.add_row(*map(shown, cells))
    return made


def checks(found: Iterable[Mapping[str, Any]]) -> Table:
    marks = {True: Text("ok", "green"), False: Text("no", "red")}
    cells = ((marks[c["ok"]], c["name"], c["detail"], c["fix"]) for c in found)
    return table("doctor", ("", "check", "found", "what to do"), cells)


def facts(title: str, value: Any) -> Tree:
    """Any plain value as a tree."""
    tree = Tree(shown(title))
    _grow(tree, value)
    return tree


def template(row: Mapping[str, Any]) -> Tree:
    """A template: its choices by label, and its ancestors in short."""
    choices = {p["name"]: {c["label"]: c["text"] for c in p["choices"]} for p in row["parameters"]}
    ancestry = {one["id"]: _template(one) for one in row["ancestry"][1:]}
    short = {"settings": dict(row["settings"]), "parameters": choices, "ancestry": ancestry}
    return facts(f"template {row['id']}", {**row, **short})


def _grow(tree: Tree, value: Any) -> None:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in pairs:
        if isinstance(item, Mapping | list) and item:
            _grow(tree.add(shown(key)), item)
        else:
            tree.add(shown(f"{key}: {item if isinstance(item, str) else number(item)}"))


def rollout(row: Mapping[str, Any]) -> RenderableType:
    """A rollout's whole ancestry, from the seed template to the advantage."""
    prompt, task = row["prompt"], row["prompt"]["task"]
    adapter = row["adapters"][0] if row["adapters"] else None
    made_by = f"{row['model']}, " + (
        f"adapter version {_version(adapter)} ({adapter['id'][:16]})" if adapter else "no adapter"
    )
    parts: list[RenderableType] = [
        shown(f"rollout {row['id']} of run {row['run']}, step {row['step']}, group {row['group']}"),
        facts("template chain, newest first", {one["id"]: _template(one) for one in row["templates"]}),
        facts("task", {key: task[key] for key in ("id", "task_type", "question", "answer", "verifier", "metadata")}),
        Panel(shown("\n".join(f"[{m['role']}] {m['content']}" for m in prompt["messages"])), title="prompt"),
        facts("sampled by", {"model": made_by, "seed": row["seed"], **row["sampling"]}),
        Panel(shown(row["text"]), title=f"completion ({row['finish_reason']}, {len(row['token_ids'])} tokens)"),
        table("evaluations", ("by", "dimension", "score", "rationale"), map(_evaluation, row["evaluations"])),
    ]
    reward = row["reward"] or {"value": None, "parts": []}
    cells = [(part["name"], part["value"], part["weight"]) for part in reward["parts"]]
    parts.append(table(f"reward {number(reward['value'])}", ("part", "value", "weight"), cells))
    parts.append(shown(f"advantage {number(row['advantage'])}"))
    return Group(*parts)


def explanation(row: Mapping[str, Any]) -> RenderableType:
    """How a rollout's advantage came about, from the scores to the sums."""
    parts: list[RenderableType] = [
        shown(f"rollout {row['rollout']} of run {row['run_id']}, step {row['step']}, group {row['group']}"),
        table("evaluations", ("by", "dimension", "score", "rationale"), map(_evaluation, row["evaluations"])),
    ]
    if row["audits"]:
        cells = [(*_evaluation(one)[:3], one["audit"]) for one in row["audits"]]
        parts.append(table("evaluations that count nothing", ("by", "dimension", "score", "for it is"), cells))
    cells = [(_part(p), p["working"], p["raw"], p["counts"], p["why"], p["weight"]) for p in row["parts"]]
    parts.append(table("reward parts", ("part", "from", "value", "counts as", "because", "weight"), cells))
    spread = f"group: mean reward {number(row['mean'])}, standard deviation {number(row['deviation'])}"
    parts += map(
        shown,
        (f"{row['aggregation']}, {row['advantages']}, compared within the {row['baseline']}", spread, *row["lines"]),
    )
    parts.append(shown(f"stored: reward {number(row['reward'])}, advantage {number(row['advantage'])}"))
    parts += [Text(f"does not agree: {shown(line).plain}", "red") for line in row["disagreements"]]
    return Group(*parts)


def _part(one: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}: {value}" for key, value in one["settings"].items())
    return f"{one['name']} ({settings})" if settings else one["name"]


def _version(adapter: Mapping[str, Any]) -> Any:
    return adapter.get("version", "?")


def _template(one: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("mutation", "note", "version", "settings", "system", "text", "stand_in", "missing")
    settings = {"settings": dict(one.get("settings", []))}
    return {key: value for key in keys if (value := ({**one, **settings}).get(key)) not in (None, "", {}, False)}


def _evaluation(one: Mapping[str, Any]) -> tuple[Any, ...]:
    by = " ".join(part for part in (one["judge"], one["model"], "(stand-in)" if one["stand_in"] else "") if part)
    return by, one["dimension"], one["score"], one["rationale"]


def preview(template: Template, scored: ScoredGroup | LostGroup) -> RenderableType:
    """One group: a row a rollout, and beside it what was said of it and what that is worth."""
    if isinstance(scored, LostGroup):
        return shown(f"{template.id}: no rollouts: {scored.reason}")
    prompt = scored.group.prompt
    title = f"{template.id} ({template.task_type}, {template.complexity}) on {prompt.task.question!r}"
    made = table(title, ("completion", "evaluations", "reward"), map(_preview_row, scored.rollouts))
    made.show_lines = True
    return made


def _preview_row(one: ScoredRollout) -> tuple[str, str, str]:
    said = (f"{e.dimension} {number(e.score)}: {e.rationale}" for e in one.evaluations)
    parts = (f"{part.name} {number(part.value)}" for part in one.reward.parts)
    return one.rollout.text, "\n".join(said), "\n".join((*parts, f"= {number(one.reward.value)}"))


def console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=False)


@contextmanager
def bar() -> Iterator[Callable[[Mapping[str, Any], float | None], None]]:
    """A progress bar on stderr: call what it gives with the archive's progress and the newest step's mean reward."""
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def draw(now: Mapping[str, Any], reward: float | None) -> None:
            line = f"{now['groups']} groups, {now['rollouts']} rollouts, mean reward {number(reward)}"
            progress.update(task, completed=now["step"], total=now["steps"], description=line)

        yield draw


def reviews(value: dict[str, Any]) -> str:
    """One line a rollout that people should look at."""
    lines = [
        f"{one['rollout_id']}  step {one['step']}  {one['value']:.2f}  {'; '.join(one['why'])}"
        for one in value["items"]
    ]
    return "\n".join(lines) or "nothing to review"
