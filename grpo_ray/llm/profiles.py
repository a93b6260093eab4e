"""Which parameters a model takes. Models that reason refuse some; what an endpoint once refused is not sent again."""

import re
from collections.abc import Container
from typing import Any

from grpo_ray.llm.addresses import host
from grpo_ray.recipe import OracleSpec

REASONING = re.compile(r"(^|/)(o\d|gpt-[5-9]|gpt-[12]\d)(?!.*-chat)", re.IGNORECASE)
"""OpenAI's models that reason before they answer; they refuse `temperature` unless their effort is none."""
CAPS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
"""The two names of the cap on a reply's tokens, each with the other."""


def parameters(spec: OracleSpec, base_url: str, refused: Container[str] = ()) -> dict[str, Any]:
    """What goes with every request to `spec.model` at `base_url`, without what it has `refused`."""
    cap = "max_completion_tokens" if host(base_url).endswith("openai.com") else "max_tokens"
    wanted: dict[str, Any] = {CAPS[cap] if cap in refused else cap: spec.max_tokens}
    if spec.reasoning_effort is not None:
        wanted["reasoning_effort"] = spec.reasoning_effort
    if spec.temperature is not None and not reasons(spec):
        wanted["temperature"] = spec.temperature
    return {name: value for name, value in wanted.items() if name not in refused}


def reasons(spec: OracleSpec) -> bool:
    """Whether the model reasons, as far as its name tells, and may."""
    return bool(REASONING.search(spec.model)) and spec.reasoning_effort != "none"


def objection(text: str, sent: Container[str]) -> str | None:
    """The parameter that an endpoint's refusal calls unsupported, if it was `sent`."""
    if not re.search(
        r"unsupported|not (supported|permitted)|unrecognized|unknown (parameter|name|field)", text, re.IGNORECASE
    ):
        return None
    named = re.findall(r"[a-z_]{5,}", text)
    return next((name for name in named if name in sent and name not in ("model", "messages")), None)
