"""What a child may have other than its first parent, for mutations that take over pieces of relatives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from grpo_ray.pieces import with_sentences, with_settings
from grpo_ray.types import Template


@dataclass(frozen=True, slots=True)
class Change:
    """Something that a child may have other than its first parent, and what that promises."""

    kind: Literal["setting", "added", "dropped"]
    what: str
    """A parameter's name, or a sentence."""
    gain: float
    label: str = ""


def made(first: Template, chosen: Sequence[Change]) -> Template:
    """The child, with what was taken over as its note."""
    old = dict(first.settings)
    moved = {change.what: change.label for change in chosen if change.kind == "setting"}
    added = [change.what for change in chosen if change.kind == "added"]
    dropped = [change.what for change in chosen if change.kind == "dropped"]
    told = [f"{name}: {old[name]} → {label}" for name, label in moved.items()]
    told += [f"+ {sentence!r}" for sentence in added] + [f"− {sentence!r}" for sentence in dropped]
    child = with_sentences(with_settings(first, moved), dropped=dropped, added=added)
    return replace(child, note=", ".join(told)[:500])
