"""The one place where text and numbers cross the database's border: everything comes back as it was, or is refused.

PostgreSQL's text can't hold NUL, and UTF-8 can't hold lone surrogates; a model may write either. They are kept as
ESC and four hex digits (ESC itself likewise), so that every Python string has one stored form and comes back exact.
NaN and infinities are refused: no reward, score or log-probability may be one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from psycopg.types.json import Json

from grpo_ray.canonical import canonical, plain

ESCAPE = "\x1b"
UNSTORABLE = re.compile("[\x00\x1b\ud800-\udfff]")
STORED = re.compile("\x1b([0-9a-f]{4})")


def keep(text: str) -> str:
    """`text` as PostgreSQL can hold it; text without NUL, ESC and surrogates is its own stored form."""
    return UNSTORABLE.sub(lambda found: f"{ESCAPE}{ord(found[0]):04x}", text)


def give(stored: str) -> str:
    """The way back from `keep`."""
    return STORED.sub(lambda found: chr(int(found[1], 16)), stored) if ESCAPE in stored else stored


def document(value: Any) -> Json:
    """A json column's value: canonical, its strings and keys kept as `keep` does."""
    return Json(_strings(plain(value), keep), dumps=canonical)


def outward(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A statement's parameters, ready for the database. Raises ValueError, naming the one that is not finite."""
    return {name: _outward(name, value) for name, value in parameters.items()}


def inward(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it was before it was stored."""
    return {name: _strings(value, give) for name, value in row.items()}


def _outward(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return keep(value)
    if isinstance(value, float):
        _check(name, (value,))
    elif isinstance(value, list | tuple) and value and isinstance(value[0], float):
        _check(name, value)
        return list(value)
    elif isinstance(value, list | tuple):
        return [keep(item) if isinstance(item, str) else item for item in value]
    return value


def _check(name: str, values: Sequence[float]) -> None:
    bad = [value for value in values if not isfinite(value)]
    if bad:
        raise ValueError(f"{name} holds {bad[0]}, and only finite numbers are stored")


def _strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_strings(item, change) for item in value]
    return value
