"""What the bundled server answers, by request and model: completions, vectors, and errors in OpenAI's shapes.

Every reply says that it is simulated: its `system_fingerprint` is `stand-in`, and so begins the name of every model.
"""

import hashlib
import json
import math
from typing import Any

from starlette.responses import JSONResponse

from grpo_ray.canonical import digest
from grpo_ray.fenced import unfenced
from grpo_ray.stand_ins import gullible, ranking, rewording
from grpo_ray.stand_ins import rules as stand_in

MODEL = "stand-in"
GULLIBLE_MODEL = "stand-in-gullible"
OLD_MODEL = "stand-in-old"
EMBEDDING_MODEL = "stand-in-embedding"
MODELS = (MODEL, GULLIBLE_MODEL, OLD_MODEL, EMBEDDING_MODEL)
DIMENSIONS = 256
FEATURES = ("json_schema", "json_object")
CREATED = 1735689600
"""Completions hold no clock, so that the same request gets the same bytes."""
Answer = tuple[int, dict[str, Any]]
"""An HTTP status and a JSON body."""


def is_served(model: Any) -> bool:
    """The listed models, and any other name that begins with `stand-in-`: the honest judge under that name."""
    return isinstance(model, str) and (model == MODEL or model.startswith(f"{MODEL}-"))


def models(shutdown_date: str) -> list[dict[str, Any]]:
    """The served models as `openai.types.Model`s; `stand-in-old` has an announced end."""
    owned = {"object": "model", "created": CREATED, "owned_by": MODEL}
    return [{"id": name, **owned, "shutdown_date": shutdown_date if name == OLD_MODEL else None} for name in MODELS]


def complete(body: dict[str, Any], features: tuple[str, ...] = FEATURES, fault: str = "") -> Answer:
    """A chat completion: a verdict, a rewritten or rephrased template, or a line that says what this server is.

    `fault` spoils it: "malformed" content, a "truncated" one, or one "refused" by the model.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        return 400, error(400, "'messages' must be a list of {role, content} with text contents", "messages")
    form = body.get("response_format") or {"type": "text"}
    if not isinstance(form, dict) or form.get("type") not in ("text", *features):
        return 400, error(400, f"response_format {form!r} is not supported", "response_format")
    text = reply_to(messages, form, body["model"])
    message, finish = spoiled(text, fault)
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    return 200, {
        "id": f"chatcmpl-{digest(body)[:24]}",
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "system_fingerprint": MODEL,
        "choices": [choice],
        "usage": _usage(sum(tokens(one["content"]) for one in messages), tokens(message["content"] or "")),
    }


def spoiled(text: str, fault: str) -> tuple[dict[str, Any], str]:
    """The assistant's message, and why it ended, after a fault of the content ("": none)."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if fault == "refused":
        return message | {"content": None, "refusal": "I'm sorry, but I can't help with that."}, "stop"
    if fault == "truncated":
        return message | {"content": text[: len(text) // 2]}, "length"
    if fault == "malformed":  # what sampling slips look like: a quote that is lost, and an end that is not there
        return message | {"content": text[: -max(1, len(text) // 8)].replace('"', "", 1)}, "stop"
    return message, "stop"


def reply_to(messages: list[dict[str, Any]], form: dict[str, Any], model: str = MODEL) -> str:
    """Data that it knows the kind of is judged or rewritten by rule; any other request gets the barest valid reply."""
    texts = [message["content"] for message in messages]
    data = first_data(texts)
    if model == GULLIBLE_MODEL and (verdict := gullible.judge(texts, data)) is not None:
        return json.dumps(verdict)
    ruled = by_rule(data, texts) if isinstance(data, dict) else None
    if ruled is not None:
        return json.dumps(ruled)
    if form["type"] == "json_schema":
        schema = form.get("json_schema", {}).get("schema", {})
        return json.dumps(barest(schema, schema.get("$defs", {})))
    return "{}" if form["type"] == "json_object" else "I am a stand-in, not a model; I only judge and rewrite by rule."


def by_rule(data: dict[str, Any], texts: list[str]) -> dict[str, Any] | None:
    """The reply to data of a kind that there is a rule for, known by its keys; None for other data."""
    if {"question", "answers", "dimensions"} <= data.keys():
        return stand_in.judge(data)
    if {"question", "answers", "rank_by"} <= data.keys():
        return ranking.rank(data)
    if {"template", "worst"} <= data.keys():
        return stand_in.rewrite(data, digest(texts), again=len(texts) > 2)
    if {"rephrase", "keep"} <= data.keys():
        return {"text": rewording.rephrase(data["rephrase"], digest(texts))}
    return None


def first_data(texts: list[str]) -> Any:
    """The value of the first text with a fenced block of JSON, or None."""
    for text in texts:
        try:
            found = unfenced(text)
        except ValueError:  # marks around what is no JSON
            continue
        if found is not None:
            return found
    return None


def barest(schema: dict[str, Any], kinds: dict[str, Any]) -> Any:
    """The smallest value that a JSON Schema (as pydantic writes them) allows."""
    if "$ref" in schema:
        return barest(kinds[schema["$ref"].rsplit("/", 1)[-1]], kinds)
    if "enum" in schema or "const" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if "anyOf" in schema:
        return barest(schema["anyOf"][-1], kinds)
    simple = {
        "string": MODEL,
        "integer": schema.get("minimum", 0),
        "number": schema.get("minimum", 0),
        "boolean": False,
    }
    if schema.get("type") == "object":
        return {name: barest(part, kinds) for name, part in schema.get("properties", {}).items()}
    return [] if schema.get("type") == "array" else simple.get(schema.get("type", ""))


def embed(body: dict[str, Any]) -> Answer:
    """Unit vectors of hashed character trigrams: near where texts share letters, the same everywhere."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return 400, error(400, "'input' must be a text or a list of texts", "input")
    if body.get("encoding_format", "float") != "float":
        return 400, error(400, "only encoding_format 'float' is supported", "encoding_format")
    data = [{"object": "embedding", "index": i, "embedding": vector(text)} for i, text in enumerate(texts)]
    used = sum(tokens(text) for text in texts)
    usage = {"prompt_tokens": used, "total_tokens": used}
    return 200, {
        "object": "list",
        "model": EMBEDDING_MODEL,
        "system_fingerprint": MODEL,
        "data": data,
        "usage": usage,
    }


def vector(text: str) -> list[float]:
    """`DIMENSIONS` numbers at length 1."""
    sums = [0.0] * DIMENSIONS
    padded = f"  {text.casefold()} "
    for at in range(len(padded) - 2):
        hashed = hashlib.blake2b(padded[at : at + 3].encode("utf-8", "replace"), digest_size=4).digest()
        sums[int.from_bytes(hashed[:2], "big") % DIMENSIONS] += 1.0 if hashed[2] & 1 else -1.0
    length = math.sqrt(sum(value * value for value in sums))
    return [value / length for value in sums] if length else [1.0, *[0.0] * (DIMENSIONS - 1)]


def error(
    status: int, message: str, param: str | None = None, code: str | None = None, kind: str = ""
) -> dict[str, Any]:
    """An error's body in OpenAI's shape; `kind` is its type, by the status where nothing else is said."""
    usual = "invalid_request_error" if status < 429 else "server_error" if status >= 500 else "rate_limit_error"
    return {"error": {"message": message, "type": kind or usual, "param": param, "code": code}}


def refusal(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's shape, as a response."""
    return JSONResponse(error(status, message, param, code), status)


def tokens(text: str) -> int:
    """A rough count: four characters a token."""
    return len(text) // 4 + 1


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
