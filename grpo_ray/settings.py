"""A YAML file and `--set` overrides to a checked Config; what is wrong is listed whole, each with its dotted path.

The keys are those of `recipe.py`: the Recipe's at the top level, and `placement`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import ValidationError

from grpo_ray.bounds import out_of_bounds
from grpo_ray.canonical import plain, typed
from grpo_ray.errors import ConfigError, GrpoRayError
from grpo_ray.recipe import Config, Named, Placement, Recipe
from grpo_ray.registry import check_settings, hint, named_by, placed
from grpo_ray.scoring import check_reward
from grpo_ray.wording import shown, worded

PACKAGED = Path(__file__).parent.parent
"""Where the bundled prompts.json lies."""
NAMES = (("tasks",), ("judges",), ("rewards",), ("evolution", "mutations"))
"""Where a config has lists of names with settings."""
PASSES = 9
"""What is wrong inside something wrong takes another look; keys are at most this deep."""


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The Config of a file (None: of overrides alone) with `key.path=value` overrides, their values read as YAML.

    Relative paths in it are made absolute. Raises ConfigError with every problem found.
    """
    problems: list[str] = []
    tree = _override(_read(path) if path else {}, overrides, problems)
    pruned = _known(Recipe, tree, "", problems)
    wrong: dict[str, str] = {}
    config = _typed(pruned, wrong)
    problems += [f"{key}: {what}" for key, what in wrong.items()]
    if config is None:
        raise _refused(path, problems)
    folder = path.expanduser().resolve().parent if path else Path.cwd()
    resolved = resolve_paths(config, folder, problems)
    found = [*out_of_bounds(resolved), *misplaced(config.placement), *_misnamed(resolved.recipe, wrong)]
    problems += [problem for problem in found if not _about(problem.partition(": ")[0], wrong)]
    if problems:
        raise _refused(path, problems)
    return resolved


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
        raise ConfigError(f"{path}: expected keys and values, got {shown(found)}")
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
        raise LookupError(f"{key!r} would be inside {masked(shown(holder))}")
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
    if isinstance(value, bool) and {int, float} & set(_options(kind)):
        problems.append(f"{path.removesuffix('.')}: expected a number, got {shown(value)}")
    if not is_dataclass(kind) or not isinstance(value, dict):
        return value
    hints = get_type_hints(kind) | (_EXTRA if kind is Recipe else {})
    problems += [f"{path}{key}: unknown{_nearest(str(key), path, list(hints))}" for key in value if key not in hints]
    return {key: _known(hints[key], item, f"{path}{key}.", problems) for key, item in value.items() if key in hints}


def _options(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a type; a type that has none is its own only one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _bare(kind: Any) -> Any:
    """A type without its `| None`."""
    options = [option for option in _options(kind) if option is not NoneType]
    return options[0] if len(options) == 1 else kind


def _nearest(key: str, path: str, known: list[str]) -> str:
    """The nearest key here; or the section in which a key of that very name lives."""
    homes = [f"{name}.{key}" for name, kind in get_type_hints(Recipe).items() if key in _names(kind)]
    return f"; did you mean {homes[0]!r}?" if homes and not path else hint(key, known)


def _names(kind: Any) -> list[str]:
    kind = _bare(kind)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def _typed(tree: dict[str, Any], wrong: dict[str, str]) -> Config | None:
    """The Config of a tree; what is wrong goes to `wrong` (path → what), and a default or nothing takes its place.

    So the rest can be looked at too. None where what is left is no config either.
    """
    for _ in range(PASSES):
        placement = tree.get("placement")
        halves = {
            "recipe": {key: value for key, value in tree.items() if key != "placement"},
            "placement": {} if placement is None else placement,
        }
        try:
            return typed(Config, halves)
        except ValidationError as error:
            faults = _explain(error, tree)
        for at, words in faults:
            wrong.setdefault(".".join(map(str, at)), words)
            tree = _without(tree, at)
    return None


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """(keys, what is wrong there) of each wrong or missing value, each once."""
    found: dict[tuple[str | int, ...], str] = {}
    for fault in error.errors():
        keys = [*fault["loc"][1:]] if fault["loc"][0] == "recipe" else [*fault["loc"]]
        if fault["type"].startswith("missing"):
            found[tuple(keys)] = f"is missing{'; add at least one source of tasks' if keys == ['tasks'] else ''}"
        else:
            at, words = tuple(_reach(tree, keys)), worded(fault["type"], fault["msg"], fault["input"])
            found[at] = _either(found[at], words) if at in found else words
    return list(found.items())


def _either(one: str, other: str) -> str:
    """What two alternatives of one type expect: `expected A or B, got X`; the first word where they don't say it so."""
    (first, _, got), (second, _, same) = one.partition(", got "), other.partition(", got ")
    return f"{first} or {second.removeprefix('expected ')}, got {got}" if got == same and got else one


def _without(tree: dict[str, Any], at: Sequence[str | int]) -> dict[str, Any]:
    """The tree without what stands at `at`, or, where nothing does, without what should hold it.

    Items of a list of names keep their places: one that goes leaves a blank name. `tasks` has no default.
    """
    for end in range(len(at), 0, -1):
        holder, key = _at(tree, at[: end - 1]), at[end - 1]
        if isinstance(holder, dict) and (key in holder or at[:end] == ["tasks"]):
            return _set(tree, at[:end], [] if list(at[:end]) == ["tasks"] else _ABSENT)
        if isinstance(holder, list) and tuple(at[: end - 1]) in NAMES:
            return _set(tree, at[:end], {"name": ""})
    return tree


def _at(tree: Any, keys: Sequence[str | int]) -> Any:
    for key in keys:
        inside = isinstance(tree, dict) or (isinstance(tree, list) and isinstance(key, int) and key < len(tree))
        tree = (tree.get(key) if isinstance(tree, dict) else tree[key]) if inside else None  # pyright: ignore
    return tree


def _set(holder: Any, keys: Sequence[str | int], value: Any) -> Any:
    """A copy of `holder` with `value` at `keys`; _ABSENT: without that key."""
    if not keys:
        return value
    key, new = keys[0], _set(_at(holder, keys[:1]), keys[1:], value)
    if isinstance(holder, list):
        return [new if place == key else item for place, item in enumerate(holder)]
    return {name: item for name, item in holder.items() if name != key} | ({} if new is _ABSENT else {key: new})


def _about(path: str, wrong: Mapping[str, str]) -> bool:
    """Whether what is wrong already is at `path`, in it or around it."""
    return any(f"{path}.".startswith(f"{key}.") or key.startswith(f"{path}.") for key in wrong)


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


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def _misnamed(recipe: Recipe, wrong: Mapping[str, str]) -> Iterator[str]:
    """Names no registry knows, and settings that a named file does not take; not of what is wrong already."""
    for path, folder, entry, named in _named(recipe):
        if _about(path, wrong):
            continue
        try:
            yield from (placed(path, line) for line in _unfit(recipe, folder, entry, named))
        except ImportError as error:
            yield f"{path}: {folder} {named.name!r} can't be loaded on this machine: {error}"


def _unfit(recipe: Recipe, folder: str, entry: str, named: Named) -> list[str]:
    """What is wrong with one name and its settings."""
    given = {"model": recipe.model} if folder in ("generators", "trainers") else {}
    if twice := given.keys() & named.settings.keys():
        return [f"settings.{key}: is the recipe's; set {key!r} at the top" for key in twice]
    try:
        if folder == "rewards":
            check_reward(named.name, named.settings)
        else:
            check_settings(folder, named.name, entry, {**given, **named.settings})
    except GrpoRayError as error:
        return str(error).splitlines()
    return [*_strangers(recipe, folder, named)]


def _strangers(recipe: Recipe, folder: str, named: Named) -> Iterator[str]:
    """Oracles and judges that settings name and the recipe doesn't have."""
    known = {"judges": list(recipe.oracles), "rewards": [str(j.settings.get("name", j.name)) for j in recipe.judges]}
    what = {"judges": "among oracles", "rewards": "among the judges"}
    for key, one in named_by(folder, named.name, named.settings) if folder in known else []:
        if one not in known[folder]:
            yield f"settings.{key}: there is no {one!r} {what[folder]}{hint(one, known[folder])}"


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
    """The config with absolute paths: of prompts, of `path` in tasks' and `file` in judges' settings, of a model `./…`, `~/…`.

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
    judges = tuple(
        replace(one, settings={**one.settings, "file": found(f"judges.{index}.settings.file", file, places)})
        if isinstance(file := one.settings.get("file"), str)
        else one
        for index, one in enumerate(recipe.judges)
    )
    prompts = found("prompts", recipe.prompts, [*places, PACKAGED])
    model = found("model", recipe.model, places) if recipe.model.startswith((".", "~")) else recipe.model
    return replace(config, recipe=replace(recipe, tasks=tasks, judges=judges, prompts=prompts, model=model))


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────

_ABSENT = object()
_EXTRA = {"placement": Placement}
_DEFAULTS = {field.name: plain(field.default) for field in fields(Recipe) if field.default is not MISSING}
_DEFAULTS["placement"] = plain(Placement())
