"""JSON that people write, read field by field: every slip becomes a problem with its JSON path, and reading goes on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

from grpo_ray.errors import ConfigError
from grpo_ray.registry import hint

T = TypeVar("T")
Problem = tuple[str, str]
"""(JSON path, what is wrong there)"""


class _Object(dict[str, Any]):
    """A JSON object that remembers the keys it was given twice."""

    repeated: tuple[str, ...] = ()


def read_json(path: Path) -> Any:
    """The file's value. Raises ConfigError naming the file and, where it is no JSON, the place."""

    def remember(pairs: list[tuple[str, Any]]) -> _Object:
        made = _Object(pairs)
        made.repeated = tuple(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return made

    try:
        return json.loads(path.read_text("utf-8"), object_pairs_hook=remember)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: broken JSON in line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deep") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{path}: broken JSON: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error


def record(
    where: str, raw: Any, needed: tuple[str, ...], optional: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    """An object's known keys; what is unknown, missing or given twice is reported."""
    given = of_kind(dict, where, raw, problems)
    known = [*needed, *optional]
    problems += twice(where, given)
    problems += [(f"{where}.{key}", f"is an unknown key{hint(key, known)}") for key in given if key not in known]
    if isinstance(raw, dict):
        problems += [(f"{where}.{key}", "is missing") for key in needed if key not in given]
    return {key: value for key, value in given.items() if key in known}


def of_kind(kind: type[T], where: str, raw: Any, problems: list[Problem]) -> T:
    """`raw` where it is of that kind; else an empty one, and a problem."""
    if isinstance(raw, kind):
        return raw
    problems.append((where, f"expected {kind_name(kind())}, got {kind_name(raw)}"))
    return kind()


def whole(where: str, raw: Any, problems: list[Problem], least: int | None = None) -> int | None:
    """A whole number, of `least` at least; or None, and a problem."""
    if not isinstance(raw, int) or isinstance(raw, bool):
        problems.append((where, f"expected a whole number, got {kind_name(raw)}"))
        return None
    if least is not None and raw < least:
        problems.append((where, f"{raw} is less than {least}"))
        return None
    return raw


def twice(where: str, raw: dict[str, Any]) -> list[Problem]:
    """Keys that an object of `read_json` was given more than once."""
    return [(f"{where}.{key}", "is given twice") for key in raw.repeated] if isinstance(raw, _Object) else []


def kind_name(value: Any) -> str:
    """What people call a value of this kind."""
    names = {dict: "an object", _Object: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
