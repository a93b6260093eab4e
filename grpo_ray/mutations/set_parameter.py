"""A parametric mutation: one parameter of the parent, or two, moves to another choice."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from math import sqrt
from statistics import fmean

from grpo_ray.prompting import content_hash
from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template

Move = tuple[tuple[str, str], ...]
"""(parameter name, new label), one or two of them."""


async def mutate(
    parents: Sequence[Parent], oracle: Oracle, rng: random.Random, *, second: float = 0.3, noise: float = 0.2
) -> Template:
    """The first parent with a parameter moved; with probability `second`, two of them.

    Moves whose outcome no relative has tried come first. Among those the choice is a Thompson draw: a label is
    expected to be as good as the given parents that have it (`noise`: deviation of that for a single parent, in the
    reward's unit). A parent without other choices is returned as it is.
    """
    parent = parents[0].template
    several = rng.random() < second
    moves = _moves(parent, 2) if several else []
    moves = moves or _moves(parent, 1)
    tried = {content_hash(one.template) for one in parents} | {id.rpartition("~")[2] for id, _ in parents[0].rejected}
    fresh = [move for move in moves if content_hash(_moved(parent, move)) not in tried]
    if not moves:
        return parent
    hopes = {label: _hope(label, parents, noise, rng) for label in sorted({pair for move in moves for pair in move})}
    best = max(fresh or moves, key=lambda move: fmean(hopes[pair] for pair in move))
    old = dict(parent.settings)
    note = ", ".join(f"{name}: {old[name]} → {label}" for name, label in best)
    return replace(_moved(parent, best), mutation="set_parameter", parents=(parent.id,), note=note)


def _moves(template: Template, count: int) -> list[Move]:
    """Every way to move `count` parameters at once."""
    chosen = dict(template.settings)
    others = [[(p.name, c.label) for c in p.choices if c.label != chosen[p.name]] for p in template.parameters]
    return [move for some in combinations(others, count) for move in product(*some)]


def _moved(template: Template, move: Move) -> Template:
    new = dict(move)
    return replace(template, settings=tuple((name, new.get(name, label)) for name, label in template.settings))


def _hope(pair: tuple[str, str], parents: Sequence[Parent], noise: float, rng: random.Random) -> float:
    """A draw of how good a label is: the mean fitness of the parents that have it, less sure the fewer they are."""
    found = [parent.fitness for parent in parents if pair in parent.template.settings]
    return rng.gauss(sum(found) / (len(found) + 1), noise / sqrt(len(found) + 1))
