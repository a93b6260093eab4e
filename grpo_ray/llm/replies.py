"""What an endpoint's reply, or its fault, means: for the Attempt, for the gate, and for the person who reads of it."""

from dataclasses import replace
from typing import Any

import openai

from grpo_ray.errors import OracleError
from grpo_ray.llm.addresses import brief, hidden, retry_after, shown
from grpo_ray.llm.gate import Outcome
from grpo_ray.recipe import OracleSpec

Read = tuple[str, Outcome, OracleError]
"""An Attempt's status, what the gate should know, and the error that says what to do."""


class Refused(OracleError):
    """The endpoint called the request itself wrong; another way of asking may do."""


class Again(OracleError):
    """A fault that may pass: the request may be tried once more, after so many seconds at least."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Limited(Again):
    """The endpoint allows no more for now: no fault, so that this is tried again until the deadline."""


OVERLOADED = (503, 529)
"""Statuses by which a server says that it has too much to do."""


def explain(fault: Exception, spec: OracleSpec, url: str, key: str = "") -> Read:
    """What a fault of the SDK's, of the time limit or of a body that is no JSON means; nothing of it holds the key."""
    status, outcome, error = _explained(fault, spec, shown(url), key)
    error.args = tuple(hidden(str(part), key) for part in error.args)
    return hidden(status, key), replace(outcome, why=hidden(outcome.why, key)), error


def _explained(fault: Exception, spec: OracleSpec, where: str, key: str) -> Read:
    cause = type(fault.__cause__).__name__
    if isinstance(fault, openai.APITimeoutError | TimeoutError) and cause != "ConnectTimeout":
        why = f"{where} did not answer within {spec.timeout_s:g} s; see oracle.timeout_s"
        return "timeout", Outcome("late"), Again(why)
    if isinstance(fault, openai.APIConnectionError):
        text = _words(fault.__cause__ or fault, key) or cause
        why = f"can't reach {where} ({text}); start that server, or set oracle.base_url"
        return "unreachable", Outcome("unreachable"), Again(why)
    if isinstance(fault, openai.APIStatusError):
        return _status(fault, spec, where, key)
    text = _words(getattr(fault, "message", None) or fault, key)
    if isinstance(fault, openai.APIResponseValidationError):
        return "broken", Outcome("failed"), Again(f"{where} sent a body that is no JSON: {text}")
    return type(fault).__name__, Outcome("failed"), OracleError(f"{where}: {text}")


def _words(what: object, key: str) -> str:
    """`brief`, of which no half of a key is left where it was cut."""
    return brief(hidden(str(what), key))


def _status(fault: openai.APIStatusError, spec: OracleSpec, where: str, key: str) -> Read:
    """What a reply with an error's status means."""
    code, text = str(fault.status_code), _words(fault.message, key)
    outcome = Outcome("late" if fault.status_code in OVERLOADED else "failed")
    if isinstance(fault, openai.RateLimitError):
        return _limited(fault, spec, where, key)
    if isinstance(fault, openai.AuthenticationError | openai.PermissionDeniedError):
        error: OracleError = OracleError(f"{where} refused the key in ${spec.api_key_env}: {text}")
    elif isinstance(fault, openai.NotFoundError):
        error = OracleError(f"{where} knows no {spec.model!r} or no such route: {text}; see oracle.model")
    elif isinstance(fault, openai.BadRequestError | openai.UnprocessableEntityError):
        error = Refused(f"{where} refused the request: {text}")
    elif fault.status_code in (408, 409) or fault.status_code >= 500:
        error = Again(f"{where}: {text}", retry_after(fault.response.headers))
    else:
        error = OracleError(f"{where}: {text}")
    return code, outcome, error


def _limited(fault: openai.RateLimitError, spec: OracleSpec, where: str, key: str) -> Read:
    text, headers = _words(fault.message, key), fault.response.headers
    if fault.code == "insufficient_quota":
        why = f"{where} has no quota left for the key in ${spec.api_key_env}: {text}"
        return "quota", Outcome("quota", why=why), OracleError(why)
    again = Limited(f"{where} allows no more for now: {text}; see oracle.requests_per_minute", retry_after(headers))
    return "429", Outcome("limited", retry_after_s=again.after_s, **limits(headers)), again


# ── the SDK checks nothing of a body but that it is JSON: what is read here may be missing, or of any type ──


def parsed(raw: Any) -> Any:
    """The body of a raw response as the SDK reads it. Raises APIResponseValidationError where it is no JSON."""
    try:
        return raw.parse()
    except (ValueError, RecursionError) as fault:  # no JSON, no UTF-8, a number too long, lists in lists in lists
        raise openai.APIResponseValidationError(raw.http_response, None, message=brief(fault)) from fault


def choice_of(answer: Any) -> Any:
    """The first choice of a chat completion; None where the body is something else."""
    choices = getattr(answer, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    return None if getattr(choice, "message", None) is None else choice


def text_of(choice: Any) -> str:
    """What a choice says, or ""; of content that comes in parts, those of text (models that reason send others too)."""
    content = getattr(choice.message, "content", None)
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [one.get("text") for one in parts if isinstance(one, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def refusal_of(choice: Any) -> str:
    """Why a model would not answer, in its words, or ""."""
    return str(getattr(choice.message, "refusal", None) or "")


def used(answer: Any) -> tuple[int, int]:
    """The tokens that an answer says it took in, and gave back; 0 where it doesn't."""
    usage = getattr(answer, "usage", None)
    found = (getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens"))
    taken, given = (max(0, count) if isinstance(count, int) else 0 for count in found)
    return taken, given


def finished(answer: Any) -> str:
    """An Attempt's status for an answer that came."""
    choice = choice_of(answer)
    if choice is None:
        return "ok" if isinstance(getattr(answer, "data", None), list) else "invalid"
    if refusal_of(choice) and not text_of(choice):
        return "refused"
    if getattr(choice, "finish_reason", None) == "length":
        return "cut_off"
    return "ok" if text_of(choice) else "empty"


def vectors(answer: Any, count: int, where: str) -> list[list[float]]:
    """The embeddings of `count` texts, in the texts' order. Raises OracleError where these are not as many vectors."""
    data = getattr(answer, "data", None)
    if not isinstance(data, list) or len(data) != count:
        raise OracleError(f"{where} sent {len(data) if isinstance(data, list) else 'no'} embeddings for {count} texts")
    try:
        return [[float(value) for value in item.embedding] for item in sorted(data, key=lambda item: item.index)]
    except (AttributeError, TypeError, ValueError) as fault:
        raise OracleError(f"{where} sent an embedding that is no list of numbers: {brief(fault)}") from fault


def limits(headers: Any) -> dict[str, Any]:
    """What the endpoint says that it allows a minute."""

    def read(name: str) -> float | None:
        text = headers.get(f"x-ratelimit-limit-{name}", "")
        return float(text) if text.isdecimal() and int(text) else None

    return {"requests_per_minute": read("requests"), "tokens_per_minute": read("tokens")}
