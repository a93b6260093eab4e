"""Shapes asked of a model: the ways to ask for JSON, strictest first, and what of a reply is accepted."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

RUNGS = ("json_schema", "json_object", "prompt")
"""Ways to ask for a shape, strictest first."""
OF_FORM = re.compile(r"(?<![a-z])format(?![a-z])|schema|json_object", re.IGNORECASE)
"""What a refusal says that means the way of asking."""
TOO_LONG = re.compile(
    r"context.?(length|window|size)|(maximum|too many).{0,30}tokens|(prompt|input|messages?) (is|are) too long",
    re.IGNORECASE,
)
"""What a refusal says that means what is asked, however it is."""


def response_format(rung: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """What a request says of the form that it wants, on one rung."""
    if rung == "prompt":
        return {}
    if rung == "json_object":
        return {"response_format": {"type": "json_object"}}
    strict = {"name": name, "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": strict}}


def ask_for(schema: dict[str, Any]) -> str:
    """The same in words."""
    return f"Reply with one JSON object alone, of this JSON Schema:\n{json.dumps(schema)}"


def accepted(shape: type[BaseModel], text: str) -> str:
    """The first JSON object in `text` that `shape` accepts, written anew. Raises ValueError saying what is wrong."""
    fault: ValueError = ValueError("there is no JSON object in it")
    for value in json_objects(text):
        try:
            return shape.model_validate(value).model_dump_json()
        except ValidationError as wrong:
            fault = ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in wrong.errors()[:10]))
    raise fault


def json_objects(text: str, limit: int = 50) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in `text`, in order; prose, code fences and broken beginnings are skipped."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0 and limit > 0:
        limit -= 1
        try:
            value, end = decoder.raw_decode(text, at)
            yield value
        except (ValueError, RecursionError):  # also a number of more digits than Python reads
            end = at + 1
        at = text.find("{", end)
