"""What an endpoint's reply, or its fault, means: for the Attempt, for the gate, and for the person who reads of it."""

import json
from typing import Any

import openai

from grpo_ray.endpoints import brief, retry_after
from grpo_ray.errors import OracleError
from grpo_ray.gate import Outcome
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


def explain(fault: Exception, spec: OracleSpec, where: str) -> Read:
    """What a fault of the SDK's, of the time limit or of a body that is no JSON means."""
    if isinstance(fault, openai.APITimeoutError | TimeoutError):
        why = f"{where} did not answer within {spec.timeout_s:g} s; see oracle.timeout_s"
        return "timeout", Outcome("failed"), Again(why)
    if isinstance(fault, openai.APIConnectionError):
        why = f"can't reach {where} ({brief(fault.__cause__ or fault)}); start that server, or set oracle.base_url"
        return "unreachable", Outcome("unreachable"), Again(why)
    if isinstance(fault, openai.APIStatusError):
        return _status(fault, spec, where)
    text = brief(getattr(fault, "message", None) or fault)
    if isinstance(fault, json.JSONDecodeError | openai.APIResponseValidationError):
        return "broken", Outcome("failed"), Again(f"{where} sent a body that is no JSON: {text}")
    return type(fault).__name__, Outcome("failed"), OracleError(f"{where}: {text}")


def _status(fault: openai.APIStatusError, spec: OracleSpec, where: str) -> Read:
    """What a reply with an error's status means."""
    code, text, failed = str(fault.status_code), brief(fault.message), Outcome("failed")
    if isinstance(fault, openai.RateLimitError):
        return _limited(fault, spec, where)
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
    return code, failed, error


def _limited(fault: openai.RateLimitError, spec: OracleSpec, where: str) -> Read:
    text, headers = brief(fault.message), fault.response.headers
    if fault.code == "insufficient_quota":
        why = f"{where} has no quota left for the key in ${spec.api_key_env}: {text}"
        return "quota", Outcome("quota", why=why), OracleError(why)
    again = Again(f"{where} allows no more for now: {text}; see oracle.requests_per_minute", retry_after(headers))
    return "429", Outcome("limited", retry_after_s=again.after_s, **limits(headers)), again


def used(answer: Any) -> tuple[int, int]:
    """The tokens that an answer says it took in, and gave back."""
    usage = getattr(answer, "usage", None)
    return (usage.prompt_tokens or 0, getattr(usage, "completion_tokens", 0) or 0) if usage else (0, 0)


def finished(answer: Any) -> str:
    """An Attempt's status for an answer that came."""
    choice = next(iter(getattr(answer, "choices", None) or []), None)
    if choice is None or choice.message.content:
        return "cut_off" if choice is not None and choice.finish_reason == "length" else "ok"
    return "refused" if getattr(choice.message, "refusal", None) else "empty"


def limits(headers: Any) -> dict[str, Any]:
    """What the endpoint says that it allows a minute."""

    def read(name: str) -> float | None:
        text = headers.get(f"x-ratelimit-limit-{name}", "")
        return float(text) if text.isdecimal() and int(text) else None

    return {"requests_per_minute": read("requests"), "tokens_per_minute": read("tokens")}
