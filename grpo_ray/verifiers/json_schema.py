"""JSON that keeps a schema: for tasks whose answer has a form."""

import json
import re
from collections.abc import Mapping
from typing import Any

from jsonschema import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry

from grpo_ray.answers import after_mark, spoken
from grpo_ray.errors import ConfigError
from grpo_ray.types import Task

TRIES = 200
"""Places in a text where a JSON value is looked for."""
_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_DECODER = json.JSONDecoder()


def verify(answer: str, task: Task, *, schema: Mapping[str, Any] | None = None) -> float:
    """1 where the answer's first JSON value keeps the schema (the setting's, else `metadata["schema"]`); else 0.

    The value may stand after `Answer:`, in a code fence or among words; without one it is 0. The schema's `$schema`
    names its dialect (2020-12 without); references to other documents are not fetched. Raises ValueError without a
    schema, and jsonschema's SchemaError for a broken one.
    """
    wanted = schema if schema is not None else task.metadata.get("schema")
    if not isinstance(wanted, Mapping):
        raise ValueError(f"task {task.id} has no metadata 'schema', and the settings have none")
    found, value = first_json(answer)
    return float(found and checking(wanted).is_valid(value))


def rationale(score: float, task: Task, settings: Mapping[str, Any]) -> str:
    """In words; there is no reference answer to speak of."""
    return (
        "the answer holds JSON that keeps the schema"
        if score
        else "the answer holds no JSON, or JSON that breaks the schema"
    )


def check_settings(*, schema: Mapping[str, Any] | None = None) -> None:
    """Raise ConfigError for what is no JSON schema."""
    try:
        checking(schema or {})
    except SchemaError as fault:
        raise ConfigError(f"schema is no JSON schema: {fault.message}") from fault


def checking(schema: Mapping[str, Any]) -> Validator:
    """A validator of the schema's dialect that fetches nothing. Raises SchemaError."""
    kind = validator_for(schema)
    kind.check_schema(dict(schema))
    return kind(dict(schema), registry=Registry())


def first_json(answer: str) -> tuple[bool, Any]:
    """Whether there is a JSON value, and it: what stands after the mark, in a fence, or else the first { or [."""
    said = spoken(answer)
    for text in (after_mark(answer), *_FENCED.findall(said)):
        value = _decoded(text.strip(), whole=True)
        if value:
            return True, value[0]
    starts = [found.start() for found in re.finditer(r"[{\[]", said)][:TRIES]
    values = (_decoded(said[start:], whole=False) for start in starts)
    return next(((True, value[0]) for value in values if value), (False, None))


def _decoded(text: str, *, whole: bool) -> tuple[Any] | None:
    """The value in a tuple of one, for a value may be null."""
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return (value,) if end == len(text) or not whole else None
