"""The control of an ablation: a random edit, blind to rewards and rationales. What beats it has learnt something."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template

PIECES = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|\s+|[^\s{]+|\{", re.DOTALL)
"""A placeholder, white space, or a word."""


async def mutate(parents: Sequence[Parent], oracle: Oracle, rng: random.Random, *, parameter: float = 0.5) -> Template:
    """The first parent with a parameter set at random (probability `parameter`), or with an edit of one word.

    A word outside placeholders is dropped, swapped with the next one, or written twice. Where only one of the two
    ways is open it is taken; where none is, the parent is returned as it is.
    """
    parent = parents[0].template
    ways = [_set_parameter, _edit_word] if rng.random() < parameter else [_edit_word, _set_parameter]
    edited = ways[0](parent, rng) or ways[1](parent, rng) or parent
    return replace(edited, mutation="random_edit", parents=(parent.id,))


def _set_parameter(template: Template, rng: random.Random) -> Template | None:
    chosen = dict(template.settings)
    moves = [(p.name, c.label) for p in template.parameters for c in p.choices if c.label != chosen[p.name]]
    if not moves:
        return None
    name, label = rng.choice(moves)
    settings = tuple((n, label if n == name else old) for n, old in template.settings)
    return replace(template, settings=settings, note=f"{name}: {chosen[name]} → {label}")


def _edit_word(template: Template, rng: random.Random) -> Template | None:
    pieces = PIECES.findall(template.text)
    words = [index for index, piece in enumerate(pieces) if not piece.isspace() and not piece.startswith("{")]
    if not words:
        return None
    place = rng.randrange(len(words))
    index, word = words[place], pieces[words[place]]
    edit = rng.choice(("drop", "swap", "double") if place + 1 < len(words) else ("drop", "double"))
    if edit == "drop":
        pieces[index] = ""
    elif edit == "swap":
        other = words[place + 1]
        pieces[index], pieces[other] = pieces[other], word
    else:
        pieces[index] = f"{word} {word}"
    return replace(template, text="".join(pieces), note=f"{edit} {word!r}")
