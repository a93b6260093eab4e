"""A parametric mutation: parameters of the parent move to the labels that promise most."""

import heapq
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from math import sqrt
from statistics import fmean

from grpo_ray.errors import ConfigError
from grpo_ray.mutations._known import known
from grpo_ray.pieces import with_settings
from grpo_ray.prompting import content_hash
from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template

WIDTH = 128
"""Combinations that are kept of each number of moves: as many as could be known already."""
Move = tuple[tuple[str, str], ...]
"""(parameter name, new label), one pair a parameter that moves."""


async def mutate(
    parents: Sequence[Parent],
    oracle: Oracle,
    rng: random.Random,
    *,
    moves: int | None = None,
    second: float = 0.3,
    noise: float = 0.2,
) -> Template:
    """The first parent with its parameters at the best combination, by its hopes, that nobody in the family has tried.

    At most `moves` parameters move at once (None: as many as promise something). Without hopes one moves, or two with
    probability `second`: what no relative has tried comes first, and among that the choice is a Thompson draw: a label is
    expected to be as good as the given parents that have it (`noise`: deviation of that for a single parent, in the
    reward's unit). A parent without other choices stays as it is.
    """
    parent, hopes = parents[0].template, dict(parents[0].hopes)
    tried = known(parents)
    if any(f"{name}={label}" in hopes for name, label in _others(parent)):
        move = _climb(parent, hopes, moves or len(parent.settings), tried)
    else:
        move = _step(parents, rng, 1 if moves == 1 or rng.random() >= second else 2, noise, tried)
    old = dict(parent.settings)
    note = ", ".join(f"{name}: {old[name]} → {label}" for name, label in move) or "no other choices"
    return replace(with_settings(parent, dict(move)), mutation="set_parameter", parents=(parent.id,), note=note)


def check_settings(*, moves: int | None = None, second: float = 0.3, noise: float = 0.2) -> None:
    """Raise ConfigError where nothing could move."""
    if moves is not None and moves < 1:
        raise ConfigError(f"moves is {moves}; a child needs at least 1, and null is as many as promise something")
    if not 0 <= second <= 1 or noise < 0:
        raise ConfigError("second is a probability, 0 to 1, and noise is 0 or more")


def _others(template: Template) -> list[tuple[str, str]]:
    """Every (parameter, label) that the template has not chosen."""
    chosen = dict(template.settings)
    return [(p.name, c.label) for p in template.parameters for c in p.choices if c.label != chosen[p.name]]


# ── with hopes ────────────────────────────────────────────────────────────────────────────────────────────────────


def _climb(template: Template, hopes: Mapping[str, float], most: int, tried: set[str]) -> Move:
    """The best move that leads to something new; where all within reach is known, the best."""
    ranked = _ranked(template, hopes, most, min(len(tried) + 1, WIDTH))
    fresh = (move for move in ranked if content_hash(with_settings(template, dict(move))) not in tried)
    return next(fresh, ranked[0])


def _ranked(template: Template, hopes: Mapping[str, float], most: int, width: int) -> list[Move]:
    """Moves of one to `most` parameters by what they promise, best first: at least the best `width`, exactly.

    Gains add up, so the best combinations of some parameters are made of the best ones of all but the last of them; they
    are kept by how many parameters they move, as far as that matters. Among equals, fewer moves come first.
    """
    chosen, bounded = dict(template.settings), most < len(template.parameters)
    best: dict[int, list[tuple[float, Move]]] = {0: [(0.0, ())]}
    for parameter in template.parameters:
        name, now = parameter.name, hopes.get(f"{parameter.name}={chosen[parameter.name]}", 0.0)
        labels = [choice.label for choice in parameter.choices if choice.label != chosen[name]]
        gains = [(label, hopes.get(f"{name}={label}", 0.0) - now) for label in labels]
        grown: dict[int, list[tuple[float, Move]]] = defaultdict(list)
        for count, some in best.items():
            grown[count] += some
            if count < most:
                further = count + 1 if bounded else 1
                grown[further] += [
                    (gain + more, (*move, (name, label))) for gain, move in some for label, more in gains
                ]
        best = {count: heapq.nlargest(width, some, key=_worth) for count, some in grown.items() if some}
    moving = [one for count, some in best.items() if count for one in some]
    return [move for _, move in sorted(moving, key=_worth, reverse=True)]


def _worth(one: tuple[float, Move]) -> tuple[float, int]:
    return one[0], -len(one[1])


# ── without ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _step(parents: Sequence[Parent], rng: random.Random, count: int, noise: float, tried: set[str]) -> Move:
    """One move of `count` parameters, or of one where there are no more; () where nothing can move."""
    parent = parents[0].template
    moves = _moves(parent, count) or _moves(parent, 1)
    if not moves:
        return ()
    fresh = [move for move in moves if content_hash(with_settings(parent, dict(move))) not in tried]
    hopes = {label: _hope(label, parents, noise, rng) for label in sorted({pair for move in moves for pair in move})}
    return max(fresh or moves, key=lambda move: fmean(hopes[pair] for pair in move))


def _moves(template: Template, count: int) -> list[Move]:
    """Every way to move `count` parameters at once."""
    others: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, label in _others(template):
        others[name].append((name, label))
    return [move for some in combinations(others.values(), count) for move in product(*some)]


def _hope(pair: tuple[str, str], parents: Sequence[Parent], noise: float, rng: random.Random) -> float:
    """A draw of how good a label is: the mean fitness of the parents that have it, less sure the fewer they are."""
    found = [parent.fitness for parent in parents if pair in parent.template.settings]
    return rng.gauss(sum(found) / (len(found) + 1), noise / sqrt(len(found) + 1))
