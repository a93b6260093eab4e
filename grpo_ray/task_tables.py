"""What was measured of tasks, on a terminal and as a page: tables, and a bar while it is measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from grpo_ray import terminal

Numbers = Mapping[str, Any]
SHOWN = 8
"""Candidates of a task type that a table shows; JSON has all."""
WIDTH = 150
"""Columns of a page."""


@contextmanager
def bar() -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr: call what it gives for every group that is done, with how many there will be."""
    columns = (TextColumn("groups"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal.console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda total: progress.update(task, advance=1, total=total)


def plan(found: Numbers) -> RenderableType:
    """What would be sampled, and what it would cost."""
    cells = [(kind, *one.values()) for kind, one in found["types"].items()]
    columns = ("task type", "tasks", "templates", "groups", "groups with other settings")
    tokens = found["oracle_tokens"]
    lines = [
        f"{found['groups']} groups, {found['rollouts']} rollouts of at most {found['sampled_tokens']:,} tokens in all, "
        f"by {found['model']}",
        f"{found['judge_calls']} calls to {found['judge_model'] or 'no model'}: about {tokens['in']:,} tokens in and "
        f"{tokens['out']:,} out, {found['estimated_usd']:.4f} USD",
        *found["warnings"],
    ]
    title = f"{found['name']}: at most; nothing is sampled yet"
    return Group(terminal.table(title, columns, cells), *map(terminal.shown, lines))


def look(found: Numbers) -> RenderableType:
    """An analysis: what the model can do with each task type, with what to begin, which tasks teach, and what is in doubt."""
    parts: list[RenderableType] = [terminal.shown(_heading(found))]
    starts = {one["task_type"]: one["candidates"] for one in found.get("start", ())}
    for one in found["types"]:
        parts += [_cells(one), *_failures(one), *_dimensions(one)]
        parts += [_candidates(one["task_type"], starts[one["task_type"]])] if one["task_type"] in starts else []
    parts += [_curriculum(found["curriculum"]), terminal.shown(_unmeasured(found["curriculum"]))]
    return Group(*parts, *(terminal.shown(f"note: {line}") for line in found["warnings"]))


def page(found: Numbers) -> str:
    """The same as HTML that stands alone: no script, nothing loaded, and every text in it escaped."""
    console = Console(record=True, width=WIDTH, file=StringIO(), highlight=False)
    console.print(look(found))
    made = console.export_html(inline_styles=True)
    return made.encode("utf-8", "replace").decode("utf-8")


def _heading(found: Numbers) -> str:
    if "run_id" in found:
        return f"run {found['run_id']}: {found['rollouts']} rollouts of {found['steps']} steps"
    spent = f"{found['seconds']:.0f} s" + (f", {found['usd']:.4f} USD" if found["usd"] else "")
    return f"{found['name']}: {found['rollouts']} rollouts by {found['model']} ({spent})"


def _cells(one: Numbers) -> RenderableType:
    """Pass rates overall, by the templates' complexity, and by the tasks' difficulty."""
    cells = [one["overall"] | {"name": "all"}, *one["complexities"], *one["difficulties"]]
    by = "by the templates' complexity" + (f", and the tasks' {one['difficulty']}" if one["difficulties"] else "")
    columns = ("of", "pass rate", "tasks", "mixed / all right / all wrong", "groups that teach", "tokens")
    title = f"{one['task_type']}: pass rate ({one['marked_by']}), {by}"
    return _whole(terminal.table(title, columns, map(_cell, cells)))


def _cell(cell: Numbers) -> tuple[Any, ...]:
    shares = " / ".join(percent(cell[key]).rstrip("%") for key in ("mixed", "all_right", "all_wrong"))
    tokens = "–" if cell["tokens"] is None else f"{cell['tokens']:.0f}"
    return cell["name"], rate(cell["pass_rate"]), cell["tasks"], f"{shares} %", percent(cell["teaching"]), tokens


def _failures(one: Numbers) -> list[RenderableType]:
    cells = [(f["kind"], percent(f["share"]), f["count"], _short(f["example"])) for f in one["failures"]]
    title = f"{one['task_type']}: how answers fail"
    return [terminal.table(title, ("kind", "of rollouts", "count", "for example"), cells)] if cells else []


def _dimensions(one: Numbers) -> list[RenderableType]:
    cells = [
        (d["judge"], d["dimension"], d["mean"], d["missing"] or "", "\n".join(map(_short, d["examples"])))
        for d in one["dimensions"]
    ]
    title = f"{one['task_type']}: what judges say"
    columns = ("by", "dimension", "mean", "missing", "why marks are low, or missing")
    return [terminal.table(title, columns, cells)] if cells else []


def _candidates(kind: str, candidates: Sequence[Numbers]) -> RenderableType:
    rows = [_candidate(one) for one in candidates[:SHOWN]]
    more = f" (the first {SHOWN} of {len(candidates)})" if len(candidates) > SHOWN else ""
    columns = ("begin with", "settings", "pass rate", "less the best", "prompt tokens")
    return _whole(terminal.table(f"{kind}: templates, best first{more}", columns, rows))


def _whole(table: Table) -> Table:
    """The table, with names and rates in one piece even where the window is narrow."""
    for column in table.columns:
        column.no_wrap = column is table.columns[0] or column.header == "pass rate"
    return table


def _candidate(one: Numbers) -> tuple[Any, ...]:
    changed = "\n".join(f"{name}={label}" for name, label in one["changed"]) or "its own"
    behind, tokens = one["behind"], one["cell"]["prompt_tokens"]
    gap = "" if behind is None else f"{behind['value']:+.2f} ({behind['low']:+.2f} … {behind['high']:+.2f})"
    name = one["template"] if one["close"] else f"{one['template']} (worse)"
    return name, changed, rate(one["cell"]["pass_rate"]), gap, "–" if tokens is None else f"{tokens:.0f}"


def _curriculum(found: Numbers) -> RenderableType:
    names = {"solved": "solved", "learnable": "learnable", "too_hard": "too hard for now"}
    rows = []
    for bucket, name in names.items():
        for kind in sorted({one["task_type"] for one in found[bucket]}):
            some = [one for one in found[bucket] if one["task_type"] == kind]
            spans = (_span([one[key] for one in some]) for key in ("pass_rate", "weight"))
            rows.append((name, kind, len(some), *spans, ", ".join(one["task"] for one in some[:2])))
    title = f"curriculum, for groups of {found['group_size']}"
    return terminal.table(title, ("tasks", "type", "count", "pass rate", "weight", "such as"), rows)


def _unmeasured(found: Numbers) -> str:
    rest = (f"{one['tasks']} of {kind} (weight {one['weight']:.2f})" for kind, one in found["unmeasured"].items())
    return f"not measured: {', '.join(rest) or 'none'}"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} … {high}"


def rate(one: Numbers | None) -> str:
    """A pass rate with its 95 % interval."""
    return "–" if one is None else f"{one['value']:.2f} ({one['low']:.2f} … {one['high']:.2f})"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _short(text: str) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= 90 else f"{line[:89]}…"
