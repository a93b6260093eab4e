"""Which number of slots to decode with: more while that still pays."""

from collections.abc import Callable, Sequence

from grpo_ray.types import Pace, SlotsFound

FEWEST = 4
GROWTH = 1.1
"""A number of slots pays when it is this many times as fast as the best before it."""
PATIENCE = 2
"""Sizes in a row that don't pay, after which no larger one is tried: one may be a hiccup, or a step between kernels."""


def sizes(most: int) -> list[int]:
    """Numbers of slots to try: 4, 8, 16 … and, last, `most`."""
    tried, slots = [], FEWEST
    while slots < most:
        tried.append(slots)
        slots *= 2
    return [*tried, most]


def choose(sizes: Sequence[int], measure: Callable[[int], float]) -> SlotsFound:
    """The last of the sizes that pays; `measure` gives the tokens a second of one."""
    paces: list[Pace] = []
    best, misses = Pace(sizes[0], 0.0), 0
    for slots in sizes:
        paces.append(Pace(slots, measure(slots)))
        pays = paces[-1].tokens_per_second > GROWTH * best.tokens_per_second
        best, misses = (paces[-1], 0) if pays else (best, misses + 1)
        if misses == PATIENCE:
            break
    return SlotsFound(best.slots, tuple(paces))
