"""A child of two templates: the first one's frame, settings of both, and the sentences of both that promise something."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations

from grpo_ray.errors import ConfigError
from grpo_ray.mutations._changes import Change, made
from grpo_ray.mutations._known import known
from grpo_ray.mutations._texts import spaceless
from grpo_ray.pieces import loose, sentences
from grpo_ray.prompting import content_hash
from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template

TRIES = 64
"""Combinations that are looked at for one that is new."""
COIN = 1e-6
"""What a coin's side counts for beside hopes."""


async def mutate(
    parents: Sequence[Parent],
    oracle: Oracle,
    rng: random.Random,
    *,
    most_sentences: int = 2,
    max_characters: int = 2000,
) -> Template:
    """The first parent, crossed with the other one that promises most; without hopes, with the runner-up.

    Label by label and sentence by sentence what promises more is taken, and a coin decides what nothing is known of. At most
    `most_sentences` come from the other, and sentences of the first one that are hoped to do harm go. What the family has
    tried is passed over for the next best. Where there is nobody to cross with, the first parent stays as it is.
    """
    first, hopes, tried = parents[0].template, dict(parents[0].hopes), known(parents)
    most = max(max_characters, len(first.text))
    found: list[tuple[float, Template, Template]] = []
    for other in parents[1:] if hopes else parents[1:2]:
        changes = _changes(first, other.template, hopes, rng, most_sentences)
        found += [(gain, child, other.template) for gain, child in _crossed(first, changes, tried, most)]
    if not found:
        return replace(first, mutation="crossover", parents=(first.id,), note="nothing new to take over")
    _, child, other = max(found, key=lambda one: one[0])
    note = f"with {other.id}: {child.note}"[:500]
    return replace(child, mutation="crossover", parents=(first.id, other.id), note=note)


def check_settings(*, most_sentences: int = 2, max_characters: int = 2000) -> None:
    """Raise ConfigError for a number of sentences below 0."""
    if most_sentences < 0:
        raise ConfigError(f"most_sentences is {most_sentences}; 0 takes none over")


def _changes(
    first: Template, other: Template, hopes: Mapping[str, float], rng: random.Random, most: int
) -> list[Change]:
    """All that could be taken over from `other`, `most` sentences of it, and all of the first one's that does harm."""
    new = dict(other.settings)
    found: list[Change] = []
    for parameter in first.parameters:
        old, label = dict(first.settings)[parameter.name], new.get(parameter.name)
        if label is None or label == old or label not in [choice.label for choice in parameter.choices]:
            continue
        pieces = [f"{parameter.name}={label}", f"{parameter.name}={old}"]
        both = [hopes.get(piece, 0.0) for piece in pieces]
        gain = both[0] - both[1] if any(piece in hopes for piece in pieces) else _coin(rng)
        found.append(Change("setting", parameter.name, gain, label))
    own = {spaceless(sentence) for sentence in (*sentences(first.system or ""), *sentences(first.text))}
    brought = [sentence for sentence in loose(other) if spaceless(sentence) not in own]
    added = [Change("added", one, hopes[one] if one in hopes else _coin(rng)) for one in brought]
    harmful = [Change("dropped", one, -hopes[one]) for one in loose(first) if hopes.get(one, 0.0) < 0]
    return [*found, *sorted(added, key=lambda change: -change.gain)[:most], *harmful]


def _crossed(
    first: Template, changes: Sequence[Change], tried: set[str], max_characters: int
) -> list[tuple[float, Template]]:
    """The best combination of changes that is new, bears something of the other and is not too long: one, or none."""
    for chosen in _combined(changes):
        child = made(first, chosen)
        taken = any(change.kind != "dropped" for change in chosen)
        if taken and len(child.text) <= max_characters and content_hash(child) not in tried:
            return [(sum(change.gain for change in chosen), child)]
    return []


def _combined(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """First all that promise something; then those but for one or two choices, the least costly first."""
    places = range(len(changes))
    flips = chain.from_iterable(combinations(places, count) for count in (0, 1, 2))
    ranked = sorted(flips, key=lambda some: sum(abs(changes[place].gain) for place in some))
    for some in ranked[:TRIES]:
        yield [change for place, change in enumerate(changes) if (change.gain > 0) != (place in some)]


def _coin(rng: random.Random) -> float:
    return rng.choice((-COIN, COIN))
