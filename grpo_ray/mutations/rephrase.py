"""Says a template's text in other words, with the same meaning: how a thing is said is worth points of its own."""

import random
from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from grpo_ray.fenced import NOTICE, fenced
from grpo_ray.mutations import _texts
from grpo_ray.mutations._known import known
from grpo_ray.pieces import jinja, sentences
from grpo_ray.prompting import content_hash
from grpo_ray.protocols import Oracle
from grpo_ray.types import Message, Parent, Template

MANNERS = (
    "Plain words and short sentences.",
    "The words of a patient teacher.",
    "The words of a precise manual.",
    "Another order of the sentences, where their meaning allows it.",
)
INSTRUCTIONS = f"""You say a prompt template in other words. `rephrase` is its text: write it anew so that it asks for \
the very same, no more and no less, in other words, in the manner named.
Keep every {{{{ … }}}} and {{% … %}} of the text exactly as it stands, each as often as now, with the label before it, and \
keep whatever says in which form the answer must come.
{NOTICE}"""


class Rephrased(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str


async def mutate(
    parents: Sequence[Parent], oracle: Oracle, rng: random.Random, *, max_characters: int = 2000
) -> Template:
    """The first parent in other words. Raises OracleError when two replies in a row won't do.

    A template without words of its own stays as it is, and nobody is asked.
    """
    parent, template, tried = parents[0], parents[0].template, known(parents)
    manner = rng.choice(MANNERS)
    if not sentences(template.text):
        return replace(template, mutation="rephrase", parents=(template.id,), note="there are no words")

    def wrong(said: Rephrased) -> list[str]:
        if _texts.same(said.text, template.text):
            return ["it is the text that there is already"]
        found = _texts.problems(said.text, parent, max_characters)
        known_already = not found and content_hash(replace(template, text=said.text)) in tried
        return found + ["this very text was tried before"] * known_already

    data = {"rephrase": template.text, "keep": jinja(template.text), "max_characters": max_characters, "manner": manner}
    messages = [Message("system", INSTRUCTIONS), Message("user", fenced(data))]
    said, reply = await _texts.written(oracle, messages, Rephrased, wrong)
    child = replace(template, text=said.text, mutation="rephrase", parents=(template.id,), note=manner)
    return replace(child, stand_in=template.stand_in or reply.stand_in)
