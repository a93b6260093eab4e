"""A folder is a registry and a file's name is its name in the config; a dotted name loads from outside.

`find("judges", "rubric", "judge")` is `grpo_ray/judges/rubric.py`'s `judge`;
`find("rewards", "my_package.rewards.brevity", "reward")` is somebody else's.
"""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo_ray.errors import ConfigError, MissingError

HOME = Path(__file__).parent


def names(folder: str) -> list[str]:
    """The names a config may use for `folder`, sorted."""
    return sorted(file.stem for file in (HOME / folder).glob("*.py") if not file.stem.startswith("_"))


def find(folder: str, name: str, entry: str) -> Callable[..., Any]:
    """The callable `entry` of the file `name` in `folder`, or of a module elsewhere by its dotted name.

    Raises MissingError with the nearest known name.
    """
    if "." not in name and name not in names(folder):
        raise MissingError(f"no {folder} file is called {name!r}{hint(name, names(folder))}")
    module = name if "." in name else f"grpo_ray.{folder}.{name}"
    if "." in name and not _exists(module):
        raise MissingError(f"{module!r} (of {folder}) can't be imported; is it installed here and on every node?")
    found = getattr(import_module(module), entry, None)
    if found is None:
        raise MissingError(f"{module!r} has no {entry!r}; a {folder} file needs one")
    return found


def check_settings(folder: str, name: str, entry: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError when `settings` are not what the callable's keyword-only arguments allow."""
    parameters = inspect.signature(find(folder, name, entry)).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    unknown = [f"{folder} {name!r} has no setting {key!r}{hint(key, known)}" for key in settings if key not in known]
    missing = [f"{folder} {name!r} needs the setting {key!r}" for key in needed if key not in settings]
    if unknown or missing:
        raise ConfigError("\n".join(unknown + missing))


def hint(name: str, known: list[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
