"""How much each setting and rule of a simulated world helps, alone and beside others, for each kind of instance.

A state is one integer a locus: 0 … L−1 with 0 for "unset" where the locus is a parameter, 0 or 1 where it is a rule.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
RESTARTS = 12


@dataclass(frozen=True, slots=True)
class Landscape:
    """The sum over loci of a main effect and of an NK table over the locus and its neighbours, weighed by kind."""

    sizes: tuple[int, ...]
    effects: Floats
    """(loci, levels) main effects; a locus with fewer levels has zeros at the end."""
    wired: Ints
    """The loci that have tables."""
    neighbours: Ints
    """(wired loci, K) the loci each table looks at beside its own."""
    tables: tuple[Floats, ...]
    """One a wired locus, flat over (own level, its neighbours' levels)."""
    weights: Floats
    """(loci, kinds) how much a locus matters to a kind of instance; about 1 on average."""

    def values(self, states: Ints) -> Floats:
        """(states, loci) → (states, kinds), in the landscape's own unit."""
        parts = self.effects[np.arange(len(self.sizes)), states]
        for locus, near, table in zip(self.wired, self.neighbours, self.tables, strict=True):
            place = states[:, locus]
            for other in near:
                place = place * self.sizes[other] + states[:, other]
            parts[:, locus] += table[place]
        return parts @ self.weights

    def moves(self, state: Ints) -> Ints:
        """Every state that differs in one locus; no move leads to "unset"."""
        found = []
        for locus, size in enumerate(self.sizes):
            for level in range(1 if size > 2 else 0, size):
                if level != state[locus]:
                    moved = state.copy()
                    moved[locus] = level
                    found.append(moved)
        return np.array(found)

    def best(self, shares: Floats, start: Ints, rng: Generator) -> Ints:
        """The best state that hill-climbing finds from the start and from random ones; `shares` weigh the kinds."""
        lows = np.array([1 if size > 2 else 0 for size in self.sizes])
        begun = [start, *(rng.integers(lows, self.sizes) for _ in range(RESTARTS))]
        tops = [self._climbed(state, shares) for state in begun]
        return max(tops, key=lambda state: float(self.values(state[None])[0] @ shares))

    def _climbed(self, state: Ints, shares: Floats) -> Ints:
        while True:
            moves = self.moves(state)
            gains = (self.values(moves) - self.values(state[None])) @ shares
            if gains.max() <= 1e-12:
                return state
            state = moves[gains.argmax()]


def draw(levels: Ints, useful: Ints, harmful: Ints, rules: int, kinds: int, share: float, rng: Generator) -> Landscape:
    """Main effects only. `share` is the rules' part of what there is to gain over a typical start."""
    scales = rng.lognormal(0.0, 0.7, len(levels))
    settings = [
        np.concatenate([[-1.0], rng.normal(size=count)]) * scale for count, scale in zip(levels, scales, strict=True)
    ]
    to_gain = sum(float(effect[1:].max() - np.median(effect[1:])) for effect in settings)
    helps = 0.2 + rng.exponential(size=len(useful))
    helps *= to_gain * share / (1 - share) / helps.sum()
    effect = np.zeros(rules)
    effect[useful] = helps
    effect[harmful] = -rng.uniform(0.4, 1.2, len(harmful)) * helps.mean()
    effects = [*settings, *(np.array([0.0, value]) for value in effect)]
    weights = np.clip(rng.gamma(2.0, 0.5, (len(effects), kinds)), 0.1, 3.0)
    weights[rng.random(weights.shape) < 0.05] = -0.3  # what helps one kind may hurt another
    sizes = tuple(len(effect) for effect in effects)
    matrix = np.array([[*effect, *[0.0] * (max(sizes) - len(effect))] for effect in effects])
    return Landscape(sizes, matrix, np.zeros(0, np.int64), np.zeros((0, 0), np.int64), (), weights)


def tangled(land: Landscape, loci: Ints, near: int, part: float, rng: Generator) -> Landscape:
    """The landscape with NK tables over `loci`, each with `near` neighbours, that make up `part` of the variance."""
    others = [rng.choice([i for i in loci if i != locus], near, replace=False) for locus in loci]
    shapes = [[land.sizes[i] for i in (locus, *some)] for locus, some in zip(loci, others, strict=True)]
    tables = [rng.normal(size=int(np.prod(shape))) for shape in shapes]
    states = np.stack([rng.integers(1 if size > 2 else 0, size, 400) for size in land.sizes], axis=1)
    wired = replace(land, wired=loci, neighbours=np.array(others), tables=tuple(tables))
    main = land.values(states).mean(axis=1)
    tables_alone = wired.values(states).mean(axis=1) - main
    scale = float(np.sqrt(part / (1 - part) * main.var() / tables_alone.var()))
    return replace(wired, tables=tuple(table * scale for table in tables))


def drifted(land: Landscape, part: float, rng: Generator) -> Landscape:
    """What the landscape turns into: `part` of the loci get the effects of another locus of their size."""
    effects = land.effects.copy()
    for size in sorted(set(land.sizes)):
        some = [i for i in range(len(effects)) if land.sizes[i] == size and rng.random() < part]
        for i, j in zip(some, rng.permutation(some), strict=True):
            effects[i, 1:size] = rng.permutation(land.effects[j, 1:size])
    return replace(land, effects=effects)
