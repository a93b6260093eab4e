"""What mutations that let a model write have in common: asking it, and what its text must keep."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from jinja2 import TemplateSyntaxError
from pydantic import BaseModel

from grpo_ray.errors import OracleError
from grpo_ray.pieces import jinja
from grpo_ray.prompting import placeholders
from grpo_ray.protocols import Oracle
from grpo_ray.types import Message, Parent, Reply

T = TypeVar("T", bound=BaseModel)


async def written(
    oracle: Oracle, messages: Sequence[Message], shape: type[T], wrong: Callable[[T], list[str]]
) -> tuple[T, Reply]:
    """A reply that nothing is wrong with; one that won't do is sent back once. Raises OracleError."""
    reply = await oracle.complete(messages, shape=shape)
    said = shape.model_validate_json(reply.text)
    if not (found := wrong(said)):
        return said, reply
    complaint = "This can't be used: " + "; ".join(found) + ". Write it again."
    messages = [*messages, Message("assistant", reply.text), Message("user", complaint)]
    reply = await oracle.complete(messages, shape=shape)
    said = shape.model_validate_json(reply.text)
    if found := wrong(said):
        raise OracleError(f"{reply.model} twice wrote what can't be used: {'; '.join(found)}")
    return said, reply


def problems(text: str, parent: Parent, max_characters: int) -> list[str]:
    """Why `text` can't stand in the place of the parent's; empty when it can."""
    old = parent.template.text
    most = max(max_characters, len(old))
    found: list[str] = []
    if len(text) > most:
        found.append(f"the text has {len(text)} characters, and {most} are allowed")
    if jinja(text) != jinja(old):
        found.append(f"the text's placeholders are {jinja(text)}, and must be {jinja(old)}")
    try:
        placeholders(text)
    except TemplateSyntaxError as fault:
        found.append(f"the text is no Jinja2 template: {fault.message}")
    shown = {prompt.task.question for prompt, _ in (*parent.worst, *parent.best)}
    if any(spaceless(question) in spaceless(text) for question in shown if spaceless(question) not in spaceless(old)):
        found.append("the text holds one of the questions")
    return found


def same(text: str, other: str) -> bool:
    """Whether two texts say the same, whatever their case and white space."""
    return spaceless(text) == spaceless(other)


def spaceless(text: str) -> str:
    return "".join(text.split()).casefold()
