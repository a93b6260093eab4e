"""A judge in openai/evals' model-graded YAML: a prompt with {input}, {completion}, {ideal}, and choices with scores.

https://github.com/openai/evals/blob/main/docs/eval-templates.md. What is other than there: what fills a placeholder
stands in the prompt as fenced data; the model answers in a strict shape with its rationale first, whichever
`eval_type` is written, and so nothing is parsed out of free text; an answer that is none of the choices is missing,
and not the lowest score; scores that leave 0 to 1 are brought into it by the lowest and the highest.
"""

import asyncio
import string
from collections.abc import Mapping
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.fenced import fenced
from grpo_ray.graders.placeholders import scope_of
from grpo_ray.graders.specs import choice_of, faults_of, instructed, read_yaml
from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group, Message, Reply, Task

EVAL_TYPES = ("cot_classify", "classify_cot", "classify", "cot_classify_jp")
MANY = ("from_n", "from_n_abc", "from_n_ABC")
"""choice_strings that choose among several completions; a rollout is judged by itself."""


class Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: str


class ModelGraded(BaseModel):
    """The fields of openai/evals' ModelGradedSpec that one completion can be judged by."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompt: str | tuple[Said, ...]
    choice_strings: tuple[str, ...]
    input_outputs: dict[str, str]
    choice_scores: dict[str, float] | Literal["from_strings"] | None = None
    eval_type: Literal[EVAL_TYPES] | None = None  # pyright: ignore[reportInvalidTypeForm]
    args: dict[str, Any] | None = None
    append_answer_prompt: bool = False
    format_type: Literal["in_message"] = "in_message"
    key: str | None = None
    group: str | None = None

    @field_validator("choice_strings", mode="before")
    @classmethod
    def _letters(cls, value: Any) -> Any:
        """A text is a list of its letters."""
        if isinstance(value, str) and value in MANY:
            raise ValueError(f"{value} compares several completions; here each is judged by itself")
        return list(value) if isinstance(value, str) else value

    @field_validator("choice_strings")
    @classmethod
    def _choices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        marked = [choice for choice in value if not choice.strip() or set(choice) & set(string.punctuation)]
        if marked or not value:
            raise ValueError(f"choices must be words without punctuation, not {marked or 'none at all'}")
        return tuple(dict.fromkeys(value))

    @field_validator("input_outputs")
    @classmethod
    def _one(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) != 1:
            raise ValueError(f"it must name one input and its completion, not {len(value)}: a rollout is one answer")
        return value

    @model_validator(mode="after")
    def _formats(self) -> "ModelGraded":
        for said in _messages(self):
            fields_of(said.content)
        return self


async def judge(
    group: Group,
    oracle: Oracle,
    *,
    file: str | None = None,
    spec: Mapping[str, Any] | None = None,
    key: str = "",
    args: Mapping[str, Any] | None = None,
    choice_scores: Mapping[str, float] | None = None,
    name: str = "model_graded",
    dimension: str = "",
) -> list[Evaluation]:
    """One evaluation a rollout and way to fill `args`, 0 to 1, by the YAML in `file` or the `spec` in the settings.

    `key` chooses among several specs of a file and names the dimension, unless `dimension` does. `args` and
    `choice_scores` stand in for those of the YAML; an argument with several named values makes a dimension of each,
    such as `closedqa/criteria=relevance`. Never raises for an OracleError: missing, with the reason.
    """
    called, found = definition(file, spec, key, args, choice_scores)
    ways = expanded(found.args or {}, dimension or called or name)
    texts = list(dict.fromkeys(rollout.text for rollout in group.rollouts))
    asked = [(text, on) for text in texts for on in ways]
    said = await asyncio.gather(*(_ask(found, group.prompt.task, text, ways[on], oracle) for text, on in asked))
    told = dict(zip(asked, said, strict=True))
    return [Evaluation(r.id, name, on, *told[r.text, on]) for r in group.rollouts for on in ways]


def check_settings(
    *,
    file: str | None = None,
    spec: Mapping[str, Any] | None = None,
    key: str = "",
    args: Mapping[str, Any] | None = None,
    choice_scores: Mapping[str, float] | None = None,
    **others: Any,
) -> None:
    """Raise ConfigError unless there is one spec that a rollout can be judged by."""
    definition(file, spec, key, args, choice_scores)


def definition(
    file: str | None,
    spec: Mapping[str, Any] | None,
    key: str,
    args: Mapping[str, Any] | None,
    choice_scores: Mapping[str, float] | None,
) -> tuple[str, ModelGraded]:
    """(its key, the spec of the settings). Raises ConfigError."""
    if (file is None) == (spec is None):
        raise ConfigError("a model_graded judge needs one of two settings: `spec`, the YAML itself, or `file`")
    called, found = _chosen(read_yaml(file) if file is not None else spec, key)
    given = {"args": dict(args) if args else None, "choice_scores": dict(choice_scores) if choice_scores else None}
    try:
        read = ModelGraded.model_validate(found | {name: value for name, value in given.items() if value})
    except ValidationError as error:
        raise ConfigError(faults_of(error, called or "spec")) from error
    scores_of(read)
    return called, read


def _chosen(value: Any, key: str) -> tuple[str, dict[str, Any]]:
    """A spec stands alone in its file, or under its name beside others."""
    if not isinstance(value, Mapping):
        raise ConfigError("model-graded YAML is a mapping with prompt, choice_strings and input_outputs")
    if "prompt" in value:
        return key, dict(value)
    names = ", ".join(map(str, value)) or "nothing"
    if not key and len(value) != 1:
        raise ConfigError(f"there are several specs; choose one with `key`: {names}")
    found = value.get(key) if key else next(iter(value.values()))
    if not isinstance(found, Mapping):
        raise ConfigError(f"there is no spec {key!r} in it; it has {names}")
    return key or str(next(iter(value))), dict(found)


def scores_of(spec: ModelGraded) -> dict[str, float]:
    """Choice → 0 to 1. Raises ConfigError where a choice has no score."""
    raw = spec.choice_scores
    if raw is None:
        raise ConfigError("it has no choice_scores (openai/evals then only counts choices); add them in the settings")
    try:
        scores = {choice: float(choice if raw == "from_strings" else raw[choice]) for choice in spec.choice_strings}
    except (ValueError, KeyError) as fault:
        raise ConfigError(f"choice_scores has no number for {fault}") from fault
    low, high = min(scores.values()), max(scores.values())
    if 0.0 <= low <= high <= 1.0:
        return scores
    if not -float("inf") < low < high < float("inf"):
        raise ConfigError("choice_scores must be different, finite numbers where they leave 0 to 1")
    return {choice: (score - low) / (high - low) for choice, score in scores.items()}


def expanded(args: Mapping[str, Any], dimension: str) -> dict[str, dict[str, str]]:
    """Dimension → arguments: one for each combination of those that have several named values."""
    fixed = {name: str(value) for name, value in args.items() if not isinstance(value, Mapping)}
    several = {name: value for name, value in args.items() if isinstance(value, Mapping)}
    ways = product(*([(name, label, str(text)) for label, text in values.items()] for name, values in several.items()))
    return {
        "/".join([dimension, *(f"{name}={label}" for name, label, _ in way)]): fixed
        | {name: text for name, _, text in way}
        for way in ways
    }


def fields_of(prompt: str) -> list[tuple[str, str | None]]:
    """(text, the name of the placeholder after it or None) of a `str.format` text. Raises ValueError.

    A name is looked up and nothing else: no attributes, no indices, no conversions.
    """
    parts = list(string.Formatter().parse(prompt))
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            raise ValueError(f"{{{name}}} is no placeholder; a brace that stays is written twice")
    return [(text, name) for text, name, _, _ in parts]


def request(spec: ModelGraded, task: Task, text: str, args: Mapping[str, str]) -> list[Message]:
    """The author's prompt under our instructions. Raises KeyError with the name of what is not there."""
    ((_, completion),) = spec.input_outputs.items()
    scope = scope_of(task, text)
    data = scope["item"] | {completion: scope["sample"]["output_text"]}
    shown = {name: fenced(value) for name, value in data.items() if value is not None} | dict(args)
    said = [(one.role, _filled(one.content, shown)) for one in _messages(spec)]
    choices = ", ".join(map(repr, spec.choice_strings))
    return instructed(f"your choice, one of these as it stands here: {choices}", said)


async def _ask(
    spec: ModelGraded, task: Task, text: str, args: Mapping[str, str], oracle: Oracle
) -> tuple[float | None, str, str, bool]:
    """(score, rationale, model, stand_in)."""
    try:
        asked = request(spec, task, text, args)
    except KeyError as fault:
        return None, f"the prompt can't be filled in: this task has no {fault}", "", False
    shape = choice_of(spec.choice_strings)
    try:
        reply: Reply = await oracle.complete(asked, shape=shape, nth=0)
    except OracleError as fault:
        return None, f"no verdict: {fault}", "", False
    said = shape.model_validate_json(reply.text).model_dump()
    return scores_of(spec)[said["choice"]], f"{said['choice']}: {said['rationale']}", reply.model, reply.stand_in


def _messages(spec: ModelGraded) -> tuple[Said, ...]:
    return (Said(role="user", content=spec.prompt),) if isinstance(spec.prompt, str) else spec.prompt


def _filled(prompt: str, shown: Mapping[str, str]) -> str:
    return "".join(text + ("" if name is None else shown[name]) for text, name in fields_of(prompt))
