"""How a run's templates look on a terminal: a table, a tree, and the words in which two of them differ."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from grpo_ray import lineage
from grpo_ray.terminal import number, shown, table

STYLES = {"same": "", "gone": "red strike", "new": "green"}
MARKS = {"same": ("", ""), "gone": ("[-", "-]"), "new": ("{+", "+}")}
"""Around the words that are gone and new, for whoever sees no colours."""


def listed(found: Mapping[str, Any]) -> RenderableType:
    """The templates, the living first; then the changes that wait, and those that were refused."""
    rows = [_row(node) for node in found["templates"]]
    title = f"templates of {found['run_id']} at the beginning of step {found['step']}"
    made = table(title, ("id", "tasks", "fitness", "gain", "trials", "since", "made by", ""), rows)
    lines = [f"waits for the next step's edge: {_wish(one)}" for one in found["waiting"]]
    lines += [f"refused at step {one['step']}: {_wish(one)}: {one['refused']}" for one in found["refused"]]
    return Group(_narrow(made), *map(shown, lines))


def _narrow(made: Table) -> Table:
    """An id in one piece even where the window is narrow."""
    made.columns[0].no_wrap = True
    return made


def _row(node: Mapping[str, Any]) -> tuple[Any, ...]:
    fitness, gain = _spread(node["fitness"], node["deviation"]), _spread(node["gain"], node["gain_deviation"])
    trials = None if node["trials"] is None else f"{node['trials']:.1f}"
    made_by = node["mutation"] + (f" of {', '.join(node['parents'])}" if node["parents"] else "")
    since = f"step {node['made']}"
    return node["id"], node["task_type"], fitness, gain, trials, since, made_by, _end(node)


def _end(node: Mapping[str, Any]) -> str:
    if node["living"]:
        return "pinned" if node["pinned"] else ""
    return f"retired at step {node['retired']}" + (f": {node['why']}" if node["why"] else "")


def _spread(value: float | None, deviation: float | None) -> str:
    if value is None:
        return number(None)
    return f"{value:+.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def _wish(one: Mapping[str, Any]) -> str:
    why = f" ({one['why']})" if one["why"] else ""
    return f"{one['change']} {', '.join(one['templates'])}, said {one['who']} at {one['at']}{why}"


def tree(found: Mapping[str, Any]) -> Tree:
    """Each template below the one it is a change of."""
    top = Tree(shown(f"templates of {found['run_id']} at the beginning of step {found['step']}"))
    at = [top]
    for depth, node in lineage.forest({"nodes": found["nodes"], "edges": found["edges"]}):
        at = [*at[: depth + 1], at[depth].add(_label(node))]
    return top


def _label(node: Mapping[str, Any]) -> Text:
    further = f", with {', '.join(node['parents'][1:])}" if node["parents"][1:] else ""
    gain = _spread(node["gain"], node["gain_deviation"])
    words = Text.assemble(
        (shown(node["id"]).plain, "bold" if node["living"] else "dim"),
        shown(f"  {gain}  {node['mutation']}{further} at step {node['made']}"),
    )
    if end := _end(node):
        words.append_text(Text(f"  {shown(end).plain}", "dim"))
    return words


def diff(found: Mapping[str, Any]) -> RenderableType:
    """Old words struck out in red, new ones in green, each between marks; then settings, choices, examples and descent."""
    if found["same"]:
        return Group(shown(f"{found['from']} and {found['to']} say the same"), *_facts(found))
    return Group(shown(f"{found['from']} → {found['to']}"), *_texts(found), *_settings(found), *_facts(found))


def _texts(found: Mapping[str, Any]) -> Iterator[Text]:
    for key in ("system", "text"):
        if key in found:
            yield Text(f"\n{key}", "bold")
            yield Text.assemble(*(_piece(*piece) for piece in found[key]))


def _piece(kind: str, words: str) -> tuple[str, str]:
    before, after = MARKS[kind]
    return f"{before}{shown(words).plain}{after}", STYLES[kind]


def _settings(found: Mapping[str, Any]) -> Iterator[Text]:
    for one in found.get("settings", ()):
        yield shown(f"setting {one['name']}: {_or_none(one['from'])} → {_or_none(one['to'])}")
    for one in found.get("choices", ()):
        yield shown(f"choice {one['name']}={one['label']}: {_quoted(one['from'])} → {_quoted(one['to'])}")
    examples = found.get("examples", {"gone": (), "new": (), "order": False})
    for key in ("gone", "new"):
        for one in examples[key]:
            yield Text(f"example {key}: {shown(one['question']).plain} → {shown(one['response']).plain}", STYLES[key])
    if examples["order"]:
        yield shown("the examples of both stand in another order")


def _facts(found: Mapping[str, Any]) -> Iterator[Text]:
    for key, (old, new) in found["facts"].items():
        yield shown(f"{key}: {_fact(old)} → {_fact(new)}")


def _fact(value: Any) -> str:
    return _or_none(", ".join(value) if isinstance(value, list) else value)


def _or_none(value: Any) -> str:
    return "–" if value in (None, "") else str(value)


def _quoted(value: str | None) -> str:
    return "–" if value is None else repr(value)
