"""Whether a proposed template may cost rollouts: what is wrong with it is found here, before any is drawn."""

import re
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike

from grpo_ray.pieces import jinja
from grpo_ray.prompting import check_template, content_hash
from grpo_ray.types import Template

VARIATION = "variation"
"""The mutation of what people have spread out themselves: its placeholders may be others than its parent's."""
_PLACEHOLDER = re.compile(r"\{\{-?\s*(\w+)\s*-?\}\}")
_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)


def refusal(
    child: Template,
    parents: Sequence[Template],
    living: Sequence[Template],
    archive_hashes: Collection[str],
    max_characters: int,
) -> str:
    """Why a child may not live, in words, or "".

    It must be a valid template, keep every placeholder and statement of its first parent and bring none (unless it came by
    variation), have at most `max_characters` in its texts (or as many as its first parent), and say what neither a living
    template nor one of the archive says. `archive_hashes` are the content hashes of all that ever lived.
    """
    first = parents[0] if parents else None
    if first and child.mutation != VARIATION and (strange := _strange(child, first)):
        return strange
    if problems := check_template(child):
        return "; ".join(problems)
    most = max(max_characters, _length(first) if first else 0)
    if _length(child) > most:
        return f"it has {_length(child)} characters, and {most} are allowed"
    own = content_hash(child)
    same = [template.id for template in living if content_hash(template) == own]
    if same:
        return f"it says the same as {same[0]}"
    return "it says what was tried before" if own in archive_hashes else ""


def too_near(child_vector: Sequence[float], vectors: ArrayLike, least: float) -> bool:
    """Whether the cosine distance (0: the same direction, 2: the opposite) to any of (N, D) `vectors` is below `least`.

    To be asked of what `spoken` says, and only of children whose words are new: moving a setting changes few of them.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if not rows.size:
        return False
    own = np.asarray(child_vector, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(own)
    return bool(np.any(1.0 - rows @ own / np.where(lengths > 0, lengths, 1.0) < least))


def spoken(template: Template) -> str:
    """What a template says whatever the task is, to be embedded: its settings' words in place, nothing for the rest."""
    chosen = dict(template.settings)
    words = {p.name: c.text for p in template.parameters for c in p.choices if c.label == chosen.get(p.name)}
    text = "\n\n".join(part for part in (template.system, template.text) if part)
    filled = _PLACEHOLDER.sub(lambda found: words.get(found[1], ""), text)
    return _JINJA.sub("", filled).strip()


def _strange(child: Template, first: Template) -> str:
    """Placeholders that are lost, or that the first parent does without."""
    old, new = (set(jinja(f"{one.system or ''}\n{one.text}")) for one in (first, child))
    told = [f"it lost {found}" for found in sorted(old - new)] + [f"it has {found} anew" for found in sorted(new - old)]
    return "; ".join(told)


def _length(template: Template) -> int:
    return len(template.text) + len(template.system or "")
