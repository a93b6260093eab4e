"""A child with what the whole family has found: the settings and sentences that a draw of the surrogate hopes most of."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from grpo_ray.errors import ConfigError
from grpo_ray.mutations._changes import Change, made
from grpo_ray.mutations._known import known
from grpo_ray.pieces import loose
from grpo_ray.prompting import content_hash
from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template


async def mutate(
    parents: Sequence[Parent], oracle: Oracle, rng: random.Random, *, moves: int = 4, max_characters: int = 2000
) -> Template:
    """The first parent with the `moves` changes that promise most; where that is known already, with the next best.

    A change is another setting, a sentence that some relative has or had, or one of its own less. Without hopes, or where
    nothing promises anything, the parent stays as it is.
    """
    first = parents[0].template
    tried, most = known(parents), max(max_characters, len(first.text))
    changes = sorted(_changes(parents[0]), key=lambda change: -change.gain)
    better = [change for change in changes if change.gain > 0]
    children = (
        replace(made(first, chosen), mutation="recombine", parents=(first.id,)) for chosen in _combined(better, moves)
    )
    fresh = (child for child in children if len(child.text) <= most and content_hash(child) not in tried)
    return next(fresh, replace(first, mutation="recombine", parents=(first.id,), note="nothing promises more"))


def check_settings(*, moves: int = 4, max_characters: int = 2000) -> None:
    """Raise ConfigError where nothing could change."""
    if moves < 1:
        raise ConfigError(f"moves is {moves}; a child needs at least 1")


def _changes(parent: Parent) -> list[Change]:
    template, hopes = parent.template, dict(parent.hopes)
    found: list[Change] = []
    for parameter in template.parameters:
        now = hopes.get(f"{parameter.name}={dict(template.settings)[parameter.name]}", 0.0)
        labels = {choice.label: hopes.get(f"{parameter.name}={choice.label}", 0.0) for choice in parameter.choices}
        best = max(labels, key=lambda label: labels[label])
        found.append(Change("setting", parameter.name, labels[best] - now, best))
    own = loose(template)
    settings = {f"{p.name}={c.label}" for p in template.parameters for c in p.choices}
    found += [Change("added", one, hope) for one, hope in hopes.items() if one not in own and one not in settings]
    return [*found, *(Change("dropped", one, -hopes[one]) for one in own if one in hopes)]


def _combined(better: Sequence[Change], moves: int) -> Iterator[Sequence[Change]]:
    """The best `moves` changes; then with the next best in place of one of them; then ever further down."""
    best, following = better[:moves], better[moves : moves + 1]
    yield best
    for place in reversed(range(len(best))):
        yield [*best[:place], *best[place + 1 :], *following]
    yield from (better[place : place + moves] for place in range(2, len(better)))
