"""A YAML file and `--set` overrides to a checked Config; what is wrong is listed whole, each with its dotted path.

The keys are those of `recipe.py`: the Recipe's at the top level, and `placement`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import ValidationError

from grpo_ray.canonical import digest, plain, typed
from grpo_ray.errors import ConfigError, GrpoRayError
from grpo_ray.recipe import Config, Named, Placement, Recipe
from grpo_ray.registry import check_settings, find, hint
from grpo_ray.scoring import is_trl

PACKAGED = Path(__file__).parent.parent
"""Where the bundled prompts.json lies."""

EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "dict": "a mapping",
    "mapping": "a mapping",
    "tuple": "a list",
    "list": "a list",
    "dataclass": "a mapping with `name`, and `settings` where it has some",
}
"""The beginning of pydantic's name of an error → what should stand there."""


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The Config of a file (None: of overrides alone) with `key.path=value` overrides, their values read as YAML.

    Relative paths in it are made absolute. Raises ConfigError with every problem found.
    """
    problems: list[str] = []
    tree = _override(_read(path) if path else {}, overrides, problems)
    pruned = _known(Recipe, tree, "", problems)
    placement = pruned.pop("placement", {})
    try:
        config = typed(Config, {"recipe": pruned, "placement": {} if placement is None else placement})
    except ValidationError as error:
        raise _refused(path, [*problems, *_explain(error, pruned | {"placement": placement})]) from error
    problems += _out_of_bounds(config)
    problems += _misnamed(config.recipe)
    folder = path.expanduser().resolve().parent if path else Path.cwd()
    resolved = resolve_paths(config, folder, problems)
    if problems:
        raise _refused(path, problems)
    return resolved


def recipe_hash(recipe: Recipe) -> str:
    """64 hex digits that two recipes share only when they are the same."""
    return digest(recipe)


def _refused(path: Path | None, problems: Sequence[str]) -> ConfigError:
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{path or 'config'}: {len(problems)} problem{'s' * (len(problems) > 1)}\n{lines}")


# ── YAML ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `off` is text and 4e-4 is a number. A key given twice is refused."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own name and shape)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan", list("-+0123456789.")),
    ("merge", r"<<", ["<"]),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = _parse(path.expanduser().read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: broken YAML{_where(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; bundled ones lie in {PACKAGED / 'configs'}") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    if not isinstance(found, dict | None):
        raise ConfigError(f"{path}: expected keys and values, got {_shown(found)}")
    return found or {}


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


def _where(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f" in line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return f": {error}"


# ── overrides ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _override(tree: dict[str, Any], overrides: Sequence[str], problems: list[str]) -> dict[str, Any]:
    """The tree with every `key.path=value` put in its place; a list's index is a number."""
    for text in overrides:
        (key, sign, value), said = text.partition("="), f"--set {masked(text)}"
        if not sign or not key.strip():
            problems.append(f"{said}: expected key.path=value")
            continue
        try:
            tree = _put(tree, _DEFAULTS, key.strip().split("."), _parse(value))
        except yaml.YAMLError as error:
            problems.append(f"{said}: broken YAML{_where(error)}")
        except LookupError as error:
            problems.append(f"{said}: {error.args[0]}")
    return tree


def _put(holder: Any, default: Any, keys: Sequence[str], value: Any) -> Any:
    """`holder` with `value` at `keys`; what the file leaves out starts as its default. Raises LookupError."""
    if not keys:
        return value
    if holder is _ABSENT:
        holder = deepcopy(default)
    key, rest = keys[0], keys[1:]
    if isinstance(holder, list):
        if not key.isdecimal() or int(key) > len(holder):
            raise LookupError(f"{key!r} is no place in a list of {len(holder)}; 0 … {len(holder)} are")
        place = int(key)
        old, usual = [*holder, _ABSENT][place], default[place] if _has(default, place) else None
        return [*holder[:place], _put(old, usual, rest, value), *holder[place + 1 :]]
    if not isinstance(holder, dict | None):
        raise LookupError(f"{key!r} would be inside {masked(_shown(holder))}")
    usual = default.get(key) if isinstance(default, dict) else None
    return {**(holder or {}), key: _put((holder or {}).get(key, _ABSENT), usual, rest, value)}


def _has(default: Any, place: int) -> bool:
    return isinstance(default, list) and place < len(default)


# ── keys and types ────────────────────────────────────────────────────────────────────────────────────────────────


def _known(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` without the keys that `kind` does not have; each of those is a problem."""
    kind = _bare(kind)
    if get_origin(kind) is tuple and isinstance(value, list):
        return [_known(get_args(kind)[0], item, f"{path}{index}.", problems) for index, item in enumerate(value)]
    if kind in (int, float) and isinstance(value, bool):
        problems.append(f"{path.removesuffix('.')}: expected a number, got {_shown(value)}")
    if not is_dataclass(kind) or not isinstance(value, dict):
        return value
    hints = get_type_hints(kind) | (_EXTRA if kind is Recipe else {})
    problems += [f"{path}{key}: unknown{_nearest(str(key), path, list(hints))}" for key in value if key not in hints]
    return {key: _known(hints[key], item, f"{path}{key}.", problems) for key, item in value.items() if key in hints}


def _bare(kind: Any) -> Any:
    """A type without its `| None`."""
    options = [option for option in get_args(kind) if option is not NoneType]
    return options[0] if get_origin(kind) in (Union, UnionType) and len(options) == 1 else kind


def _nearest(key: str, path: str, known: list[str]) -> str:
    """The nearest key here; or the section in which a key of that very name lives."""
    homes = [f"{name}.{key}" for name, kind in get_type_hints(Recipe).items() if key in _names(kind)]
    return f"; did you mean {homes[0]!r}?" if homes and not path else hint(key, known)


def _names(kind: Any) -> list[str]:
    kind = _bare(kind)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> list[str]:
    """One line a wrong or missing value."""
    found: dict[str, str] = {}
    for fault in error.errors():
        keys = [*fault["loc"][1:]] if fault["loc"][0] == "recipe" else [*fault["loc"]]
        at = keys if fault["type"].startswith("missing") else _reach(tree, keys)
        found.setdefault(".".join(map(str, at)), _wrong(fault["type"], fault["msg"], fault["input"], keys))
    return [f"{path}: {what}" for path, what in found.items()]


def _reach(tree: Any, keys: Sequence[str | int]) -> list[str | int]:
    """The keys as far as the tree has them: pydantic adds names of its own where a type has alternatives."""
    at: list[str | int] = []
    for key in keys:
        inside = isinstance(tree, dict) or (isinstance(tree, list) and isinstance(key, int) and key < len(tree))
        if not inside:
            return at
        at.append(key)
        tree = tree.get(key) if isinstance(tree, dict) else tree[key]  # pyright: ignore[reportArgumentType, reportCallIssue]
    return at


def _wrong(kind: str, message: str, given: Any, keys: Sequence[str | int]) -> str:
    if kind.startswith("missing"):
        return f"is missing{'; add at least one source of tasks' if list(keys) == ['tasks'] else ''}"
    expected = next((words for start, words in EXPECTED.items() if kind.startswith(start)), "")
    if kind.startswith("literal") or not expected:
        return f"{message[0].lower()}{message[1:]}, got {_shown(given)}"
    return f"expected {expected}, got {_shown(given)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else repr(value)


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _out_of_bounds(config: Config) -> Iterator[str]:
    for path, (good, words) in BOUNDS.items():
        value = _value(config, path)
        if value is not None and not good(value):
            yield f"{path}: {value} is out of bounds; it must be {words}"
    yield from _inconsistent(config.recipe)
    yield from misplaced(config.placement)


def _value(config: Config, path: str) -> Any:
    value: Any = config if path.startswith("placement.") else config.recipe
    for key in path.split("."):
        value = getattr(value, key)
    return value


def _inconsistent(recipe: Recipe) -> Iterator[str]:
    if not recipe.tasks:
        yield "tasks: is empty; add at least one source of tasks"
    shares = {"rewards": recipe.rewards, "evolution.mutations": recipe.evolution.mutations}
    for path, parts in shares.items():
        wrong = [index for index, part in enumerate(parts) if not 0 <= part.weight < float("inf")]
        yield from (f"{path}.{index}.weight: {parts[index].weight} is out of bounds; 0 or more" for index in wrong)
        needed = path == "rewards" or recipe.evolution.children
        if needed and not wrong and not sum(part.weight for part in parts):
            yield f"{path}: needs at least one entry with a weight above 0"
    if recipe.evolution.children and recipe.plan.templates < 2:
        yield "plan.templates: templates are told apart on common tasks; it must be 2 or more, or evolution.children 0"
    if not all(0 <= price < float("inf") for price in recipe.oracle.usd_per_million):
        yield "oracle.usd_per_million: a price must be 0 or more"
    if not recipe.oracle.base_url.startswith(("http://", "https://")) and recipe.oracle.base_url != "bundled":
        yield f"oracle.base_url: expected bundled or http(s)://HOST…/v1, got {recipe.oracle.base_url!r}"


def misplaced(place: Placement) -> Iterator[str]:
    """What is wrong with the names of a Ray cluster and a storage; a DSN's password is not repeated."""
    if not re.fullmatch(r"local|auto|off|\S+:\d+", place.ray):
        yield f"placement.ray: expected local, auto, off or HOST:PORT, got {place.ray!r}"
    if not re.fullmatch(r"embedded|memory|postgres(ql)?://\S*|\w+(\.\w+)+", place.storage):
        known = ["embedded", "memory", "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"]
        yield f"placement.storage: no such storage{hint(place.storage, known)}"


def masked(text: str) -> str:
    """`text` without the passwords of the URLs in it."""
    return re.sub(r"(:/+[^\s:/@]*:)\S*@|([?&]password=)[^&\s]*", lambda m: f"{m[1]}…@" if m[1] else f"{m[2]}…", text)


def _misnamed(recipe: Recipe) -> Iterator[str]:
    """Names no registry knows, and settings that a named file does not take."""
    for path, folder, entry, named in _named(recipe):
        given = {"model": recipe.model} if folder in ("generators", "trainers") else {}
        try:
            if folder != "rewards" or not is_trl(find(folder, named.name, entry)):
                check_settings(folder, named.name, entry, {**given, **named.settings})
        except GrpoRayError as error:
            yield from (f"{path}: {line}" for line in str(error).splitlines())
        except ImportError as error:
            yield f"{path}: {folder} {named.name!r} can't be loaded on this machine: {error}"


def _named(recipe: Recipe) -> Iterator[tuple[str, str, str, Named]]:
    """(dotted path, folder, entry, what is named)"""
    lists: list[tuple[str, str, str, Sequence[Named]]] = [
        ("tasks", "tasks", "load_tasks", recipe.tasks),
        ("judges", "judges", "judge", recipe.judges),
        ("rewards", "rewards", "reward", recipe.rewards),
        ("evolution.mutations", "mutations", "mutate", recipe.evolution.mutations),
    ]
    for path, folder, entry, several in lists:
        yield from ((f"{path}.{index}", folder, entry, named) for index, named in enumerate(several))
    yield "generator", "generators", "make_generator", recipe.generator
    if recipe.trainer:
        yield "trainer", "trainers", "make_trainer", recipe.trainer


# ── paths ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def resolve_paths(config: Config, folder: Path, problems: list[str]) -> Config:
    """The config with absolute paths: of the prompt library, of `path` in tasks' settings, of a model `./…` or `~/…`.

    Looked for beside the config file (`folder`), in the working directory and, for prompts.json, in the package.
    """
    recipe, places = config.recipe, [folder, Path.cwd()]

    def found(key: str, name: str, places: Sequence[Path]) -> str:
        near = list(dict.fromkeys(place / Path(name).expanduser() for place in places))
        if existing := next((file for file in near if file.exists()), None):
            return str(existing.resolve())
        problems.append(f"{key}: there is no {name!r}; looked for {', '.join(map(str, near))}")
        return name

    tasks = tuple(
        replace(one, settings={**one.settings, "path": found(f"tasks.{index}.settings.path", path, places)})
        if isinstance(path := one.settings.get("path"), str)
        else one
        for index, one in enumerate(recipe.tasks)
    )
    prompts = found("prompts", recipe.prompts, [*places, PACKAGED])
    model = found("model", recipe.model, places) if recipe.model.startswith((".", "~")) else recipe.model
    return replace(config, recipe=replace(recipe, tasks=tasks, prompts=prompts, model=model))


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────

_ABSENT = object()
_EXTRA = {"placement": Placement}
_DEFAULTS = {field.name: plain(field.default) for field in fields(Recipe) if field.default is not MISSING}
_DEFAULTS["placement"] = plain(Placement())

Bound = tuple[Callable[[Any], bool], str]


def _at_least(low: float) -> Bound:
    return lambda value: low <= value < float("inf"), f"{low} or more"


_POSITIVE: Bound = (lambda value: 0 < value < float("inf"), "above 0")
_SHARE: Bound = (lambda value: 0 < value <= 1, "above 0, at most 1")

BOUNDS: Mapping[str, Bound] = {
    "seed": _at_least(0),
    "steps": _at_least(0),
    "lag": _at_least(0),
    "splits.train": _at_least(1),
    "splits.validation": _at_least(1),
    "splits.heldout": _at_least(1),
    "sampling.group_size": (lambda value: value >= 2, "2 or more, for rollouts are compared within their group"),
    "sampling.temperature": (lambda value: 0 < value <= 5, "above 0, at most 5; at 0 a group's rollouts are all alike"),
    "sampling.top_p": _SHARE,
    "sampling.top_k": _at_least(0),
    "sampling.min_p": (lambda value: 0 <= value < 1, "0 (off) or more, below 1"),
    "sampling.repetition_penalty": (lambda value: 0 < value <= 10, "above 0, at most 10; 1 is off"),
    "sampling.stop": (all, "a list of texts, none of them empty"),
    "sampling.max_tokens": _at_least(1),
    "sampling.slots": _at_least(1),
    "plan.tasks": _at_least(1),
    "plan.templates": _at_least(1),
    "plan.wave": _at_least(1),
    "evolution.size": _at_least(1),
    "evolution.children": _at_least(0),
    "evolution.min_trials": _at_least(1),
    "evolution.discount": _SHARE,
    "trainers": _at_least(1),
    "gate.tasks": _at_least(0),
    "gate.z": _at_least(0),
    "oracle.concurrency": _at_least(1),
    "oracle.timeout_s": _POSITIVE,
    "oracle.max_tokens": _at_least(1),
    "oracle.temperature": (lambda value: 0 <= value <= 5, "between 0 and 5"),
    "oracle.max_usd": _POSITIVE,
    "placement.generators": _at_least(1),
    "placement.judges": _at_least(1),
    "placement.control_port": (lambda value: 0 <= value <= 65535, "a port, 0 … 65535"),
}
"""Dotted path → (what makes a value good, in words); a value of None is always good."""
