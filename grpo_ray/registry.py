"""A folder is a registry and a file's name is its name in the config; a dotted name loads from outside.

`find("judges", "rubric", "judge")` is `grpo_ray/judges/rubric.py`'s `judge`;
`find("rewards", "my_package.rewards.brevity", "reward")` is somebody else's.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import EllipsisType, ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.wording import worded

HOME = Path(__file__).parent
PLAIN = (str, int, float, bool, None, NoneType, ..., EllipsisType, list, tuple, dict, Mapping, Sequence, Any)
"""Types whose every value YAML can hold; `...` stands in tuple[str, ...]."""


def names(folder: str) -> list[str]:
    """The names a config may use for `folder`, sorted."""
    return sorted(file.stem for file in (HOME / folder).glob("*.py") if not file.stem.startswith("_"))


def find(folder: str, name: str, entry: str) -> Callable[..., Any]:
    """The callable `entry` of the file `name` in `folder`, or of a module elsewhere by its dotted name.

    Raises MissingError with the nearest known name.
    """
    if "." not in name and name not in names(folder):
        missing = f"no {folder} file is called" if folder != "exporters" else "there is no export format"
        raise MissingError(f"{missing} {name!r}{hint(name, names(folder))}")
    module = name if "." in name else f"grpo_ray.{folder}.{name}"
    if "." in name and not _exists(module):
        raise MissingError(f"{module!r} (of {folder}) can't be imported; is it installed here and on every node?")
    found = getattr(import_module(module), entry, None)
    if found is None:
        raise MissingError(f"{module!r} has no {entry!r}; a {folder} file needs one")
    return found


def named_by(folder: str, name: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(setting, name) of everything else of the recipe that settings name, where the file tells by `named(**settings)`.

    A judge names oracles, a reward judges.
    """
    entry = {"judges": "judge", "rewards": "reward"}[folder]
    tells = getattr(sys.modules[find(folder, name, entry).__module__], "named", None) if "." not in name else None
    return tells(**settings) if tells else []


def check_settings(folder: str, name: str, entry: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError when `settings` are not what the callable's keyword-only arguments allow, listing all of it.

    Names, then values by their annotations, then whatever the file's own `check_settings(**settings)` refuses. A line
    about a value begins with `settings`, for `placed`.
    """
    found = find(folder, name, entry)
    parameters = inspect.signature(found).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    strange = [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else [key for key in settings if key not in known]
    problems = [f"{folder} {name!r} has no setting {key!r}{hint(key, known)}" for key in strange]
    problems += [f"{folder} {name!r} needs the setting {key!r}" for key in needed if key not in settings]
    problems += _mistyped(found, {key: value for key, value in settings.items() if key in known})
    problems = problems or _refused(sys.modules[found.__module__], settings)
    if problems:
        raise ConfigError("\n".join(problems))


def placed(path: str, problem: str) -> str:
    """One line of `check_settings` about what a config names at `path`: `trainer.settings.rank: …`."""
    return f"{path}.{problem}" if re.match(r"settings[.:]", problem) else f"{path}: {problem}"


def _mistyped(found: Callable[..., Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """Values that are not of their annotation's type; annotations that no config could fill are left alone."""
    try:
        hints = get_type_hints(found)
    except NameError:  # types that only a type checker imports
        return
    for key, value in settings.items():
        if key in hints and _is_plain(hints[key]):
            yield from (f"settings.{key}{fault}" for fault in _faults(hints[key], value))


def _faults(kind: Any, value: Any) -> list[str]:
    """What is wrong with a value, each beginning with the path inside it. Read as JSON, where a list may be a tuple."""
    try:
        TypeAdapter(kind).validate_json(json.dumps(value, default=repr), strict=True)
    except ValidationError as error:
        faults = {_inside(value, e["loc"]): worded(e["type"], e["msg"], e["input"]) for e in error.errors()}
        return [f"{path}: {what}" for path, what in faults.items()]
    return []


def _inside(value: Any, keys: Sequence[str | int]) -> str:
    """The keys as far as the value has them: pydantic adds names of its own where a type has alternatives."""
    path = ""
    for key in keys:
        listed = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if not ((isinstance(value, dict) and key in value) or listed):
            return path
        path, value = f"{path}.{key}", value[key]  # pyright: ignore[reportCallIssue, reportArgumentType]
    return path


def _is_plain(kind: Any) -> bool:
    """Whether YAML can hold every value of this type."""
    if get_origin(kind) is Literal:
        return True
    if not get_args(kind):
        return kind in PLAIN
    return get_origin(kind) in (*PLAIN, Union, UnionType) and all(_is_plain(part) for part in get_args(kind))


def _refused(module: ModuleType, settings: Mapping[str, Any]) -> list[str]:
    check = getattr(module, "check_settings", None)
    if check is None:
        return []
    try:
        check(**settings)
    except ConfigError as fault:
        return [f"settings: {line}" for line in str(fault).splitlines()]
    return []


def hint(name: str, known: list[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
