"""Rewrites a template's instruction from what judges wrote about its best and worst answers."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from jinja2 import TemplateSyntaxError
from pydantic import BaseModel, ConfigDict

from grpo_ray.canonical import short
from grpo_ray.errors import OracleError
from grpo_ray.fenced import NOTICE, fenced
from grpo_ray.prompting import placeholders
from grpo_ray.protocols import Oracle
from grpo_ray.types import Message, Parent, Prompt, Reply, ScoredRollout, Template

WORST, BEST, REJECTED = 3, 2, 10
SHOWN = 1500
"""Characters of an answer that are shown."""
ADVICE = (
    "Change only what the feedback calls for.",
    "Say it in one short sentence.",
    "Say plainly what form the working should take.",
    "Say it quite differently from the present text.",
)
INSTRUCTIONS = f"""You improve a prompt template. Read how it did: its worst and its best answers, each with its reward \
and with what judges wrote about it, and the changes that were tried before and did not help.
First write a diagnosis of one or two sentences: what in the instruction leads to the flaws, and what would mend them. \
Then write the template's text anew.
Keep every {{{{ … }}}} and {{% … %}} of the text exactly as it stands, each as often as now; change the words around \
them. The text must serve any task of this kind: name no single question or answer.
{NOTICE}"""
_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)


class Rewritten(BaseModel):
    """The diagnosis stands before the text, so that the text can follow from it."""

    model_config = ConfigDict(extra="forbid")
    diagnosis: str
    text: str


async def mutate(
    parents: Sequence[Parent], oracle: Oracle, rng: random.Random, *, max_characters: int = 2000
) -> Template:
    """The first parent's template with a new text. Raises OracleError when two replies in a row won't do."""
    parent = parents[0]
    messages = request(parent, rng.choice(ADVICE), max_characters)
    reply = await oracle.complete(messages, shape=Rewritten)
    said = Rewritten.model_validate_json(reply.text)
    if wrong := problems(said.text, parent, max_characters):
        complaint = "This text can't be used: " + "; ".join(wrong) + ". Write it again."
        messages = [*messages, Message("assistant", reply.text), Message("user", complaint)]
        reply = await oracle.complete(messages, shape=Rewritten)
        said = Rewritten.model_validate_json(reply.text)
        if wrong := problems(said.text, parent, max_characters):
            raise OracleError(f"{reply.model} twice wrote a text that can't be used: {'; '.join(wrong)}")
    return _child(parent.template, said, reply)


def request(parent: Parent, advice: str, max_characters: int) -> list[Message]:
    """The template and its evidence, as fenced data under fixed instructions."""
    template = parent.template
    worst, best = parent.worst[:WORST], parent.best[:BEST]
    rewards = [scored.reward.value for _, scored in (*worst, *best) if scored.reward.value is not None]
    data = {
        "template": template.text,
        "settings": [list(pair) for pair in template.settings],
        "keep": jinja(template.text),
        "max_characters": max_characters,
        "fitness": round(parent.fitness, 4),
        "mean_reward": round(fmean(rewards), 4) if rewards else None,
        "worst": [_shown(prompt, scored) for prompt, scored in worst],
        "best": [_shown(prompt, scored) for prompt, scored in best],
        "tried_without_success": [why for _, why in parent.rejected[-REJECTED:]],
        "advice": advice,
    }
    return [Message("system", INSTRUCTIONS), Message("user", fenced(data))]


def problems(text: str, parent: Parent, max_characters: int) -> list[str]:
    """Why `text` can't replace the parent's; empty when it can."""
    old = parent.template.text
    found: list[str] = []
    if _spaceless(text) == _spaceless(old):
        found.append("it is the text that there is already")
    if len(text) > max_characters:
        found.append(f"it has {len(text)} characters, and {max_characters} are allowed")
    if jinja(text) != jinja(old):
        found.append(f"its placeholders are {jinja(text)}, and must be {jinja(old)}")
    try:
        placeholders(text)
    except TemplateSyntaxError as fault:
        found.append(f"it is no Jinja2 template: {fault.message}")
    if any(_spaceless(prompt.task.question) in _spaceless(text) for prompt, _ in (*parent.worst, *parent.best)):
        found.append("it holds one of the questions")
    return found


def jinja(text: str) -> list[str]:
    """Every placeholder and statement of a template, sorted, blanks evened out."""
    return sorted(" ".join([found[:2], *found[2:-2].split(), found[-2:]]) for found in _JINJA.findall(text))


def _child(template: Template, said: Rewritten, reply: Reply) -> Template:
    note = " ".join(said.diagnosis.split())[:500]
    return replace(
        template,
        id=short("t", said.text, template.system, template.settings, template.examples, [template.id], "rewrite"),
        text=said.text,
        version=template.version + 1,
        parents=(template.id,),
        mutation="rewrite",
        note=note,
        stand_in=template.stand_in or reply.stand_in,
    )


def _shown(prompt: Prompt, scored: ScoredRollout) -> dict[str, Any]:
    feedback = [
        {"dimension": e.dimension, "score": e.score, "rationale": e.rationale}
        for e in scored.evaluations
        if e.score is not None and not e.audit and "/" not in e.judge  # neither audits nor a panel's single members
    ]
    answer, reward = scored.rollout.text[:SHOWN], scored.reward.value
    return {"question": prompt.task.question, "answer": answer, "reward": reward, "feedback": feedback}


def _spaceless(text: str) -> str:
    return "".join(text.split()).casefold()
