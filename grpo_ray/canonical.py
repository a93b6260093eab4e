"""One text for one value: canonical JSON, the hashes made of it, and the way back to typed values."""

import hashlib
import json
import random
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter


def plain(value: Any) -> Any:
    """`value` with dataclasses as dicts and tuples as lists: what JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, compact, UTF-8 kept, no NaN."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


def digest_bytes(*parts: bytes) -> str:
    """sha256 of the parts, each with its length before it, 64 hex digits."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "big") + part)
    return state.hexdigest()


def short(prefix: str, *parts: Any) -> str:
    """A logical id: `prefix-` and the first 16 hex digits of the parts' digest."""
    return f"{prefix}-{digest(list(parts))[:16]}"


def rng(*parts: Any) -> random.Random:
    """A random stream that depends on its name alone, e.g. `rng(seed, "prompts", step)`."""
    return random.Random(digest(list(parts)))


def typed(kind: Any, value: Any) -> Any:
    """The way back from plain values: `typed(RunState, json.loads(text))`; raises pydantic's ValidationError."""
    return _adapter(kind).validate_python(value)


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
