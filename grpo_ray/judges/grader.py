"""A judge that is written down as one of OpenAI's graders, in the config or in a file of its own, and run here.

What fills a placeholder of a model grader stands in its message as fenced data (`fenced.py`), where the author put the
placeholder: `Answer: {{ sample.output_text }}` becomes `Answer: ` and a block that a model is told to take as material.
That, and a system message with our instructions before the author's, is all that is changed in what he wrote.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.graders.formula import calculate, names_in
from grpo_ray.graders.placeholders import Unfilled, fill, scope_of
from grpo_ray.graders.similarity import METRICS, cosine
from grpo_ray.graders.specs import (
    Grader,
    LabelModel,
    Multi,
    Python,
    Scored,
    ScoreModel,
    StringCheck,
    TextSimilarity,
    choice_of,
    read_grader,
    read_yaml,
    request,
    scaled,
    string_check,
)
from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group, Task


@dataclass(frozen=True, slots=True)
class Graded:
    """A grader's value, in its own range (None: missing, and `words` say why)."""

    value: float | None
    words: str
    model: str = ""
    stand_in: bool = False


async def judge(
    group: Group,
    oracle: Oracle,
    *,
    grader: Mapping[str, Any] | None = None,
    file: str | None = None,
    name: str = "grader",
    dimension: str = "",
) -> list[Evaluation]:
    """One evaluation a rollout, 0 to 1, by the grader in the settings or in the YAML or JSON `file`.

    `dimension` is the grader's own name where it is empty, or else its type. Equal answers are graded once. Never
    raises for an OracleError: missing, with the reason.
    """
    found = definition(grader, file)
    texts = list(dict.fromkeys(rollout.text for rollout in group.rollouts))
    said = await asyncio.gather(*(grade(found, group.prompt.task, text, oracle) for text in texts))
    graded = {text: _from_0_to_1(found, one) for text, one in zip(texts, said, strict=True)}
    on = dimension or found.name or found.type
    return [
        Evaluation(rollout.id, name, on, one.value, one.words, one.model, one.stand_in)
        for rollout in group.rollouts
        for one in [graded[rollout.text]]
    ]


def check_settings(*, grader: Mapping[str, Any] | None = None, file: str | None = None, **others: Any) -> None:
    """Raise ConfigError unless there is one grader, and it can be run."""
    definition(grader, file)


def definition(grader: Mapping[str, Any] | None, file: str | None) -> Grader:
    """The grader of the settings. Raises ConfigError."""
    if (grader is None) == (file is None):
        raise ConfigError("a grader judge needs one of two settings: `grader`, the definition itself, or `file`")
    return read_grader(grader if file is None else read_yaml(file))


async def grade(grader: Grader, task: Task, text: str, oracle: Oracle) -> Graded:
    """One grader's word on one answer; a fault of an endpoint, an item or a formula is a missing value."""
    try:
        return await _graded(grader, task, text, oracle)
    except OracleError as fault:
        return Graded(None, f"no verdict: {fault}")
    except Unfilled as fault:
        return Graded(None, f"{grader.type} can't be filled in: {fault}")


async def _graded(grader: Grader, task: Task, text: str, oracle: Oracle) -> Graded:
    scope = scope_of(task, text)
    match grader:
        case StringCheck():
            value = string_check(grader, scope)
            return Graded(value, f"{grader.operation} {'holds' if value else 'does not hold'}")
        case TextSimilarity():
            return await _similarity(grader, scope, oracle)
        case Python():
            (value,) = await oracle.check(task, [text], verifier="python_grader", settings={"source": grader.source})
            failed = "the script gave no number from 0 to 1: it failed or took too long"
            return Graded(value, failed if value is None else f"the script gave {value:g}")
        case ScoreModel() | LabelModel():
            return await _by_model(grader, scope, oracle)
        case Multi():
            return await _multi(grader, task, text, oracle)


async def _similarity(grader: TextSimilarity, scope: Mapping[str, Any], oracle: Oracle) -> Graded:
    """The rationale never holds the reference, for mutations read it."""
    said, right = fill(grader.input, scope), fill(grader.reference, scope)
    if grader.evaluation_metric == "cosine":
        value = cosine(*await oracle.embed([said, right]))
    else:
        value = METRICS[grader.evaluation_metric](said, right)
    return Graded(value, f"{grader.evaluation_metric} with the reference is {value:.3f}")


async def _by_model(grader: ScoreModel | LabelModel, scope: Mapping[str, Any], oracle: Oracle) -> Graded:
    asked = request(grader, scope)
    if isinstance(grader, ScoreModel):
        reply = await oracle.complete(asked, shape=Scored, nth=0)
        marked = Scored.model_validate_json(reply.text)
        return Graded(marked.score, marked.rationale, reply.model, reply.stand_in)
    shape = choice_of(grader.labels)
    reply = await oracle.complete(asked, shape=shape, nth=0)
    said = shape.model_validate_json(reply.text).model_dump()
    words = f"{said['choice']}: {said['rationale']}"
    return Graded(float(said["choice"] in grader.passing_labels), words, reply.model, reply.stand_in)


async def _multi(grader: Multi, task: Task, text: str, oracle: Oracle) -> Graded:
    """Only the graders that the formula names are run; one of them missing leaves the whole missing."""
    names = [name for name in grader.graders if name in names_in(grader.calculate_output)]
    parts = await asyncio.gather(*(grade(grader.graders[name], task, text, oracle) for name in names))
    told = "; ".join(f"{name}: {part.words}" for name, part in zip(names, parts, strict=True))
    models = " + ".join(dict.fromkeys(part.model for part in parts if part.model))
    stand_in = any(part.stand_in for part in parts)
    values = {name: part.value for name, part in zip(names, parts, strict=True) if part.value is not None}
    if len(values) < len(names):
        return Graded(None, f"a part is missing. {told}", models, stand_in)
    try:
        value = calculate(grader.calculate_output, values)
    except ValueError as fault:
        return Graded(None, f"{fault}. {told}", models, stand_in)
    return Graded(value, told, models, stand_in)


def _from_0_to_1(grader: Grader, one: Graded) -> Graded:
    if one.value is None:
        return one
    score = scaled(grader, one.value)
    if score is None:
        words = f"the value {one.value:g} is outside the grader's range; it said: {one.words}"
        return Graded(None, words, one.model, one.stand_in)
    if grader.pass_threshold is None:
        return Graded(score, one.words, one.model, one.stand_in)
    passes = "passes" if one.value >= grader.pass_threshold else "does not pass"
    return Graded(score, f"{passes} ({grader.pass_threshold:g} needed): {one.words}", one.model, one.stand_in)
