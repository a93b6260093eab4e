"""prompts.json to templates and back, and what a changed one means for a population.

A parameter's type is a way to write its choices. It isn't kept: what can be written as a range or as a list is written
so again.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from grpo_ray.errors import ConfigError
from grpo_ray.json_fields import Problem, kind_name, of_kind, read_json, record, twice, whole
from grpo_ray.parameters import dump_parameter, read_parameter, where_written
from grpo_ray.prompting import FEW_SHOT, content_hash, faults, root
from grpo_ray.registry import hint
from grpo_ray.types import ANY, Example, Template

VERSION = 1
LINEAGE = ("version", "parents", "mutation", "note", "stand_in")
"""What a template may tell of its descent."""
_BORN = {field.name: field.default for field in fields(Template) if field.name in LINEAGE}

Pools = Mapping[str, Sequence[tuple[str, Example]]]
"""Name → (task type, example)."""


@dataclass(frozen=True, slots=True)
class Reload:
    """What a prompts.json has for a population. What the file lost stays: a gap is no order to retire anything."""

    new: tuple[Template, ...]
    """Templates to add, in the file's order. One that was changed comes as a child of what it was."""
    same: int
    """Templates of the file that are there already."""


def load_library(path: Path) -> tuple[Template, ...]:
    """The templates of a prompts.json. Raises ConfigError with every problem found, each with its JSON path."""
    problems: list[Problem] = []
    library = record("$", read_json(path), ("version", "templates"), ("pools",), problems)
    if library.get("version", VERSION) != VERSION:
        problems.append(("$.version", f"{library['version']!r} is unknown; this release reads version {VERSION}"))
    pools = _pools(library.get("pools", {}), problems)
    entries = of_kind(list, "$.templates", library.get("templates", []), problems)
    if "templates" in library and not entries and isinstance(library["templates"], list):
        problems.append(("$.templates", "is empty; a run needs at least one template"))
    templates = [_template(f"$.templates[{index}]", entry, pools, problems) for index, entry in enumerate(entries)]
    problems += _repeated_ids(templates)
    if problems:
        raise ConfigError(_told(path, problems))
    return tuple(templates)


def reload(path: Path, living: Sequence[Template]) -> Reload:
    """What a prompts.json has that is not among `living`. Raises ConfigError as `load_library` does: nothing changes.

    Templates are the same when they say the same, whatever they are called. `living` may hold those that were retired
    too, where the file shall not bring them back.
    """
    known = {content_hash(template) for template in living}
    named = {template.id: template for template in living}
    new: list[Template] = []
    same = 0
    for template in load_library(path):
        if content_hash(template) in known:
            same += 1
            continue
        known.add(content_hash(template))
        new.append(_changed(named[template.id], template) if template.id in named else template)
    return Reload(tuple(new), same)


def _changed(old: Template, new: Template) -> Template:
    said = "text", "system", "parameters", "settings", "examples", "task_type"
    note = "changed by hand: " + ", ".join(name for name in said if getattr(old, name) != getattr(new, name))
    name = f"{root(old.id)}~{content_hash(new)}"
    return replace(new, id=name, version=old.version + 1, parents=(old.id,), mutation="edit", note=note)


def _told(path: Path, problems: Sequence[Problem]) -> str:
    lines = "\n".join(f"  {where}: {what}" for where, what in problems)
    return f"{path}: {len(problems)} problem{'s' * (len(problems) > 1)}\n{lines}"


# ── templates to prompts.json ─────────────────────────────────────────────────────────────────────────────────────


def write_library(path: Path, templates: Sequence[Template]) -> Path:
    """Write a prompts.json that `load_library` reads back to equal templates.

    Raises ConfigError when they could not be read back, or the file can't be written.
    """
    library = dump_library(templates)
    problems = [(f"$.templates[{i}].{where}", what) for i, t in enumerate(templates) for where, what in faults(t)]
    problems += _repeated_ids(templates)
    if not templates:
        problems.append(("$.templates", "would be empty; there is no template to write"))
    if problems:
        raise ConfigError(_told(path, problems))
    text = json.dumps(library, indent=2, ensure_ascii=False) + "\n"
    try:
        path.write_bytes(text.encode("utf-8", "backslashreplace"))  # half a surrogate pair: as JSON escapes it
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror}") from error
    return path


def dump_library(templates: Sequence[Template]) -> dict[str, Any]:
    """The JSON of a prompts.json with these templates. Examples that several of them share become a pool."""
    shared = [some for some, count in Counter(t.examples for t in templates).items() if some and count > 1]
    pools = {some: f"examples-{number}" for number, some in enumerate(shared, start=1)}
    listed = {name: [_dumped_example(example) for example in some] for some, name in pools.items()}
    entries = [_dumped(template, pools) for template in templates]
    return {"version": VERSION} | ({"pools": listed} if listed else {}) | {"templates": entries}


def _dumped(template: Template, pools: Mapping[tuple[Example, ...], str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": template.id, "task_type": template.task_type, "complexity": template.complexity}
    if template.system is not None:
        entry["system"] = template.system
    entry["text"] = template.text
    chosen = dict(template.settings)
    if template.parameters:
        entry["parameters"] = {p.name: dump_parameter(p, chosen.get(p.name, "")) for p in template.parameters}
    if template.examples in pools:
        entry["examples"] = {"pool": pools[template.examples]}
    elif template.examples:
        entry["examples"] = [_dumped_example(example) for example in template.examples]
    told = {key: getattr(template, key) for key in LINEAGE if getattr(template, key) != _BORN[key]}
    return entry | ({"lineage": told} if told else {})


def _dumped_example(example: Example) -> dict[str, str]:
    return {"question": example.question, "response": example.response}


# ── prompts.json to templates ─────────────────────────────────────────────────────────────────────────────────────


def _template(where: str, raw: Any, pools: Pools, problems: list[Problem]) -> Template:
    """The template an entry describes; what is malformed is reported and replaced, so that the rest is looked at."""
    own: list[Problem] = []
    optional = ("task_type", "complexity", "system", "parameters", "examples", "lineage")
    entry = record(where, raw, ("id", "text"), optional, own)

    def text(key: str, default: str) -> str:
        return of_kind(str, f"{where}.{key}", entry.get(key, default), own) or default

    task_type = text("task_type", ANY)
    settings: list[tuple[str, str]] = []
    listed = of_kind(dict, f"{where}.parameters", entry.get("parameters", {}), own)
    own += twice(f"{where}.parameters", listed)
    made = Template(
        id=text("id", ""),
        text=text("text", ""),
        task_type=task_type,
        complexity=text("complexity", "single-step"),
        system=text("system", "") or None,
        parameters=tuple(read_parameter(f"{where}.parameters.{n}", n, p, settings, own) for n, p in listed.items()),
        settings=tuple(settings),
        examples=_examples(f"{where}.examples", entry.get("examples", []), task_type, pools, own),
        **_lineage(f"{where}.lineage", entry.get("lineage", {}), own),
    )
    found = faults(made) if isinstance(raw, dict) else []
    problems += [*own, *_news(where, found, listed, {path for path, _ in own})]
    return made


def _news(where: str, found: Sequence[Problem], listed: Mapping[str, Any], said: set[str]) -> list[Problem]:
    """Faults of a template where the file has them, but for those that come of what was `said` already."""
    unread = any(path.startswith(f"{where}.examples") for path in said)
    news: list[Problem] = []
    for path, what in found:
        head, name, rest = (*path.split(".", maxsplit=2), "", "")[:3]
        place = f"{head}.{name}.{where_written(rest, listed.get(name))}" if rest else path
        follows = unread and (head == "examples" or (name == FEW_SHOT and rest == "choices"))
        if f"{where}.{place}" not in said and not follows:
            news.append((f"{where}.{place}", what))
    return list(dict.fromkeys(news))


def _lineage(where: str, raw: Any, problems: list[Problem]) -> dict[str, Any]:
    entry = record(where, raw, (), LINEAGE, problems)
    found = dict(_BORN)
    for key in ("mutation", "note", "stand_in"):
        if key in entry:
            found[key] = of_kind(type(_BORN[key]), f"{where}.{key}", entry[key], problems)
    parents = of_kind(list, f"{where}.parents", entry.get("parents", []), problems)
    found["parents"] = tuple(
        of_kind(str, f"{where}.parents[{index}]", one, problems) for index, one in enumerate(parents)
    )
    if "version" in entry:
        found["version"] = whole(f"{where}.version", entry["version"], problems, least=1) or 1
    return found


def _repeated_ids(templates: Sequence[Template]) -> list[Problem]:
    first: dict[str, int] = {}
    for index, template in enumerate(templates):
        first.setdefault(template.id, index)
    return [
        (f"$.templates[{index}].id", f"{t.id!r} is the id of $.templates[{first[t.id]}] already")
        for index, t in enumerate(templates)
        if t.id and first[t.id] != index
    ]


# ── examples ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _pools(raw: Any, problems: list[Problem]) -> dict[str, list[tuple[str, Example]]]:
    listed = of_kind(dict, "$.pools", raw, problems)
    problems += twice("$.pools", listed)
    return {name: _pool(f"$.pools.{name}", pool, problems) for name, pool in listed.items()}


def _pool(where: str, raw: Any, problems: list[Problem]) -> list[tuple[str, Example]]:
    entries = of_kind(list, where, raw, problems)
    if raw == []:
        problems.append((where, "is empty; a pool needs at least one example"))
    found = [_example(f"{where}[{index}]", entry, ("task_type",), problems) for index, entry in enumerate(entries)]
    return found or [(ANY, Example("?", "?"))]


def _examples(where: str, raw: Any, task_type: str, pools: Pools, problems: list[Problem]) -> tuple[Example, ...]:
    """Examples as they stand, or the first `count` of a pool that fit `task_type`."""
    if isinstance(raw, list):
        return tuple(_example(f"{where}[{index}]", entry, (), problems)[1] for index, entry in enumerate(raw))
    if not isinstance(raw, dict):
        problems.append((where, f"expected a list, or an object that names a pool, got {kind_name(raw)}"))
        return ()
    entry = record(where, raw, ("pool",), ("count", "task_type"), problems)
    kind = of_kind(str, f"{where}.task_type", entry.get("task_type", task_type), problems)
    name = entry.get("pool")
    if not isinstance(name, str) or name not in pools:
        if name is not None or "pool" in raw:
            problems.append((f"{where}.pool", f"there is no pool {name!r}{hint(str(name), list(pools))}"))
        return ()
    fitting = [example for of, example in pools[name] if ANY in (kind, of) or of == kind]
    count = whole(f"{where}.count", entry.get("count", len(fitting) or 1), problems, least=1) or 0
    if not fitting:
        kinds = ", ".join(sorted({of for of, _ in pools[name]}))
        problems.append((f"{where}.pool", f"{name!r} has no examples for tasks of type {kind!r}; it has {kinds}"))
    elif count > len(fitting):
        problems.append((f"{where}.count", f"{count} is more than the {len(fitting)} examples that fit"))
    return tuple(fitting[:count])


def _example(where: str, raw: Any, optional: tuple[str, ...], problems: list[Problem]) -> tuple[str, Example]:
    """The task type that an example is of, and the example."""
    entry = record(where, raw, ("question", "response"), optional, problems)
    texts = {key: of_kind(str, f"{where}.{key}", entry.get(key, "?"), problems) for key in ("question", "response")}
    problems += [(f"{where}.{key}", "is empty") for key, value in entry.items() if value == ""]
    task_type = of_kind(str, f"{where}.task_type", entry.get("task_type", ANY), problems)
    return task_type, Example(texts["question"] or "?", texts["response"] or "?")
