"""Which settings of a template to try: a few that meet every pair of labels, then ever finer ones; or any, by chance.

Most of what parameters do, they do alone or in pairs. So the first rows are a pairwise covering array: each label of
one parameter meets each label of every other (greedy, after AETG: Cohen, Dalal, Fredman, Patton 1997). Rows beyond it
follow a scrambled Sobol sequence over the grid of all settings (direction numbers: Joe and Kuo 2008; scrambling:
Matoušek 1998), which keeps labels, and the ways in which they come together, in balance at any count.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from math import prod
from typing import Literal

from grpo_ray.canonical import rng
from grpo_ray.errors import ConfigError
from grpo_ray.prompting import Settings, check_template, content_hash, root
from grpo_ray.registry import hint
from grpo_ray.types import Parameter, Template

How = Literal["covering", "stochastic"]
Point = tuple[int, ...]
"""The place of a label among its parameter's choices, one a parameter."""
Cell = tuple[int, int]
"""(a parameter's place, a label's place)"""

CANDIDATES = 10
"""Rows that compete to be the next of a covering array."""
PATIENCE = 32
"""Points of the sequence in a row that may be known already, before the next unseen one of the grid is taken."""
BITS = 30
SOBOL: tuple[tuple[int, tuple[int, ...]], ...] = (
    (1, (1,)),
    (3, (1,)),
    (7, (1, 3)),
    (11, (1, 3, 1)),
    (13, (1, 1, 1)),
    (19, (1, 1, 3, 3)),
    (25, (1, 3, 5, 13)),
    (37, (1, 1, 5, 5, 17)),
    (41, (1, 1, 5, 5, 5)),
    (47, (1, 1, 7, 11, 19)),
    (55, (1, 1, 5, 1, 1)),
    (59, (1, 1, 1, 3, 11)),
    (61, (1, 3, 5, 5, 31)),
    (67, (1, 3, 3, 9, 7, 49)),
    (91, (1, 1, 1, 15, 21, 21)),
    (97, (1, 3, 1, 13, 27, 49)),
    (103, (1, 1, 1, 15, 7, 5)),
    (109, (1, 3, 1, 15, 13, 25)),
    (115, (1, 1, 5, 5, 19, 61)),
    (131, (1, 3, 7, 11, 23, 15, 103)),
    (137, (1, 3, 7, 13, 13, 15, 69)),
)
"""One a dimension: the bits of a primitive polynomial, and the first direction numbers."""


def variations(template: Template, count: int, how: How, seed: int) -> list[Template]:
    """Children of a template with other settings, `count` of them or all that there are.

    With `covering`, the template and its children together meet every pair of labels, if `count` is large enough. A
    child that can't be rendered is left out.
    """
    if how not in ("covering", "stochastic"):
        raise ConfigError(f"variation {how!r} is unknown{hint(how, ['covering', 'stochastic'])}")
    stream = rng(seed, "variations", template.id)
    if how == "covering":
        rows = covering(template.parameters, count + 1, stream.getrandbits(32), template.settings)
    else:
        rows = stochastic(template.parameters, count + 1, stream)
    others = [row for row in rows if row != template.settings][:count]
    children = [_child(template, settings) for settings in others]
    return [child for child in children if not check_template(child)]


def covering(parameters: Sequence[Parameter], count: int, seed: int, first: Settings = ()) -> list[Settings]:
    """`count` settings, no two alike, or all that there are; fewer of them are the beginning of more.

    `first` is the first row, where it is given. Rows meet new pairs of labels until all are met, then follow a Sobol
    sequence; beyond 21 parameters the rest of them are drawn by chance there.
    """
    sizes = [len(parameter.choices) for parameter in parameters]
    count = min(count, prod(sizes))
    rows = [_point(parameters, first)] if first else []
    rows += islice(_pairwise(sizes, rows, rng(seed, "pairs")), max(0, count - len(rows)))
    spread = sobol(len(sizes), rng(seed, "sobol"))
    seen = set(rows)
    while len(rows) < count:
        rows.append(_unseen(spread, sizes, seen))
        seen.add(rows[-1])
    return [_settings(parameters, row) for row in rows[:count]]


def stochastic(parameters: Sequence[Parameter], count: int, rng: random.Random) -> list[Settings]:
    """`count` settings, no two alike, each as likely as any other; or all that there are, in a random order."""
    sizes = [len(parameter.choices) for parameter in parameters]
    if count * 2 > prod(sizes):
        every = list(product(*map(range, sizes)))
        return [_settings(parameters, point) for point in rng.sample(every, min(count, len(every)))]
    drawn: dict[Point, None] = {}
    while len(drawn) < count:
        drawn[tuple(rng.randrange(size) for size in sizes)] = None
    return [_settings(parameters, point) for point in drawn]


def sobol(dimensions: int, rng: random.Random) -> Iterator[tuple[float, ...]]:
    """Points in [0, 1)^dimensions, scrambled: any 2^k first ones stand evenly in every dimension."""
    directions = [_scrambled(_directions(*SOBOL[axis]), rng) for axis in range(min(dimensions, len(SOBOL)))]
    state = [rng.getrandbits(BITS) for _ in directions]
    for number in range(1, 1 << BITS):
        rest = (rng.random() for _ in range(dimensions - len(directions)))
        yield (*(bits / (1 << BITS) for bits in state), *rest)
        lowest = (number & -number).bit_length() - 1  # Gray code: one direction changes from a point to the next
        state = [bits ^ axis[lowest] for bits, axis in zip(state, directions, strict=True)]


def _child(template: Template, settings: Settings) -> Template:
    moved = [
        f"{n}: {old} → {new}" for (n, old), (_, new) in zip(template.settings, settings, strict=True) if old != new
    ]
    child = replace(
        template,
        settings=settings,
        version=template.version + 1,
        parents=(template.id,),
        mutation="variation",
        note=", ".join(moved),
    )
    return replace(child, id=f"{root(template.id)}~{content_hash(child)}")


def _settings(parameters: Sequence[Parameter], point: Point) -> Settings:
    return tuple((one.name, one.choices[place].label) for one, place in zip(parameters, point, strict=True))


def _point(parameters: Sequence[Parameter], settings: Settings) -> Point:
    chosen = dict(settings)
    return tuple([choice.label for choice in one.choices].index(chosen[one.name]) for one in parameters)


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pairwise(sizes: Sequence[int], rows: Sequence[Point], stream: random.Random) -> Iterator[Point]:
    """Rows until every pair of labels of two parameters stands in one, after those that there are."""
    axes = [[(axis, place) for place in range(size)] for axis, size in enumerate(sizes)]
    missing: dict[Cell, set[Cell]] = {
        cell: {other for rest in axes if rest is not axis for other in rest} for axis in axes for cell in axis
    }
    used: Counter[Cell] = Counter()
    for row in rows:
        _meet(list(enumerate(row)), missing, used)
    while any(missing.values()):
        most = max(map(len, missing.values()))
        starts = [cell for cell, others in missing.items() if len(others) == most]
        tried = [_candidate(stream.choice(starts), axes, missing, used, stream) for _ in range(CANDIDATES)]
        best = max(tried, key=lambda cells: (_gain(cells, missing), -sum(used[cell] for cell in cells)))
        _meet(best, missing, used)
        yield tuple(place for _, place in sorted(best))


def _candidate(
    start: Cell,
    axes: Sequence[Sequence[Cell]],
    missing: dict[Cell, set[Cell]],
    used: Counter[Cell],
    stream: random.Random,
) -> list[Cell]:
    """A row from `start`: the other parameters, in a random order, take the label that meets the most new ones.

    Among equals it is the label used least, so that labels stay in balance.
    """
    cells = [start]
    rest = [axis for axis in axes if start not in axis]
    for axis in stream.sample(rest, len(rest)):
        ranked = [(-len(missing[cell].intersection(cells)), used[cell], stream.random(), cell) for cell in axis]
        cells.append(min(ranked)[-1])
    return cells


def _gain(cells: Sequence[Cell], missing: dict[Cell, set[Cell]]) -> int:
    return sum(len(missing[cell].intersection(cells)) for cell in cells)


def _meet(cells: Sequence[Cell], missing: dict[Cell, set[Cell]], used: Counter[Cell]) -> None:
    used.update(cells)
    for cell in cells:
        missing[cell].difference_update(cells)


# ── the rest of the grid ──────────────────────────────────────────────────────────────────────────────────────────


def _unseen(spread: Iterator[tuple[float, ...]], sizes: Sequence[int], seen: set[Point]) -> Point:
    """The sequence's next point of the grid that is not seen; or, where it finds none, the next one in order."""
    point: Point = ()
    for at in islice(spread, PATIENCE):
        point = tuple(int(share * size) for share, size in zip(at, sizes, strict=True))
        if point not in seen:
            return point
    while point in seen:
        point = _after(point, sizes)
    return point


def _after(point: Point, sizes: Sequence[int]) -> Point:
    """The next point in the order in which digits count; the last one is followed by the first."""
    places = list(point)
    for axis in reversed(range(len(places))):
        places[axis] = (places[axis] + 1) % sizes[axis]
        if places[axis]:
            break
    return tuple(places)


def _directions(polynomial: int, first: Sequence[int]) -> list[int]:
    """BITS direction numbers as BITS-bit fractions, by Sobol's recurrence; the first dimension's are 1/2, 1/4, …"""
    degree = polynomial.bit_length() - 1
    if not degree:
        return [1 << (BITS - 1 - place) for place in range(BITS)]
    found = [number << (BITS - 1 - place) for place, number in enumerate(first)]
    for place in range(degree, BITS):
        direction = found[place - degree] ^ (found[place - degree] >> degree)
        for back in range(1, degree):
            direction ^= found[place - back] * (polynomial >> (degree - back) & 1)
        found.append(direction)
    return found


def _scrambled(directions: Sequence[int], rng: random.Random) -> list[int]:
    """A random linear scramble: each bit is flipped by those above it, chosen once."""
    masks = [(rng.getrandbits(row) << (BITS - row) if row else 0) | 1 << (BITS - 1 - row) for row in range(BITS)]
    return [
        sum(((direction & mask).bit_count() & 1) << (BITS - 1 - row) for row, mask in enumerate(masks))
        for direction in directions
    ]
