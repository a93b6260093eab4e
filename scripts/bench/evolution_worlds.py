"""Simulated worlds for prompt evolution, each drawn from a seed and of one kind; nothing in them knows who searches.

A candidate has settings and rules. How well it does on an instance is a logistic curve over what its settings and
rules are worth to that kind of instance, less the instance's difficulty. A start stands at 0.25–0.45 and the best that
hill-climbing with full knowledge finds at 0.92–0.97, whatever else is drawn. Every draw of a score is numbered by
(candidate, instance, repeat), so all searches of a world meet the same luck.
"""

import random
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from evolution_landscape import Floats, Ints, Landscape, draw, drifted, tangled
from evolution_words import PRAISE, VAGUE, Candidate, Edit, Words, edited
from numpy.random import Generator

from grpo_ray.types import Task, Template

KINDS = ("factored", "rugged", "poor_feedback", "noisy_instances", "drifting", "biased_judge")
TASKS, HELDOUT = 100, 400
PATIENCE = 0.8
"""How much of the way from the start to the best room is given, in rules, before a prompt is too long."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What is special about a world, each number drawn from its seed."""

    tangle: float
    """Part of the variance that is interaction."""
    near: int
    """With how many others a locus interacts."""
    clue: float
    mislead: float
    """Chances that a critic names a true flaw, and a false one; else it says nothing of use."""
    pointed: float
    """The chance that a clue on a setting says which other value would be right."""
    scatter: float
    """Standard deviation of difficulty, in logits."""
    lapse: float
    """The chance that a score is drawn blindly."""
    graded: bool
    """Scores between 0 and 1 instead of right or wrong."""
    skill: float
    """The chance that the reflector does what a clue says."""
    drift: float = 0.0
    """Part of the loci whose effects change until the budget is spent."""
    flattery: float = 0.0
    """What a flattering setting adds to the score that is seen, and never to the true one."""


def traits(kind: str, rng: Generator) -> Traits:
    """The traits of a world of that kind."""
    plain = Traits(
        tangle=rng.uniform(0.05, 0.2),
        near=1,
        clue=rng.uniform(0.55, 0.8),
        mislead=rng.uniform(0.05, 0.12),
        pointed=rng.uniform(0.4, 0.8),
        scatter=rng.uniform(0.7, 1.6),
        lapse=rng.uniform(0.0, 0.05),
        graded=bool(rng.random() < 0.5),
        skill=rng.uniform(0.7, 0.9),
    )
    special = {
        "rugged": {"tangle": rng.uniform(0.5, 0.7), "near": 3},
        "poor_feedback": {"clue": rng.uniform(0.06, 0.16), "mislead": rng.uniform(0.15, 0.35)},
        "noisy_instances": {"scatter": rng.uniform(3.0, 4.5), "lapse": rng.uniform(0.1, 0.2)},
        "drifting": {"drift": rng.uniform(0.3, 0.5)},
        "biased_judge": {"flattery": rng.uniform(0.04, 0.1)},
    }
    return replace(plain, **special.get(kind, {}))


@dataclass(frozen=True, slots=True)
class Instances:
    """Difficulties in logits and kinds, one a instance."""

    difficulty: Floats
    kind: Ints


class World:
    """One simulated world; everything public but its effects, which only `true` and `flaws` look at."""

    def __init__(self, seed: int, kind: str) -> None:
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        self.seed, self.kind, self.traits = seed, kind, traits(kind, rng)
        levels = rng.integers(3, 6, rng.integers(8, 13))
        useful, neutral, harmful = (int(rng.integers(*span)) for span in ((7, 12), (8, 13), (5, 9)))
        rules, kinds = useful + neutral + harmful, int(rng.integers(3, 6))
        shuffled = rng.permutation(rules)
        self.useful, self.harmful = shuffled[:useful], shuffled[useful : useful + harmful]
        self.words = Words.draw(levels.tolist(), rules, rng)
        self.shares = rng.dirichlet(np.full(kinds, 4.0))
        land = draw(levels, self.useful, self.harmful, rules, kinds, rng.uniform(0.4, 0.6), rng)
        wired = np.concatenate([np.arange(len(levels)), len(levels) + np.sort(self.useful)])
        land = tangled(land, wired, self.traits.near, self.traits.tangle, rng)
        self.start = self._start(land, levels, neutral, rng)
        self.room, self.cost = useful + 3, float(rng.uniform(0.01, 0.03))
        self._ends = [land, drifted(land, self.traits.drift, rng)] if self.traits.drift else [land]
        self._bests = [one.best(self.shares, self.state(self.start), rng) for one in self._ends]
        self.best = self._candidate(self._bests[-1])
        self._scales = [self._scale(one, top) for one, top in zip(self._ends, self._bests, strict=True)]
        self._trained, self._held = self._instances(TASKS, rng), self._instances(HELDOUT, rng)
        self._guess = float(rng.uniform(0.0, 0.08))
        self._worth, self.flaws = lru_cache(4096)(self._worth_now), lru_cache(4096)(self._flaws_now)
        self.parse = lru_cache(4096)(self.words.parse)
        self._base, self._slope = self._calibrated(rng.uniform(0.25, 0.45), rng.uniform(0.92, 0.97))
        self.flattering = self._flatterers(rng)
        self._line = float(rng.uniform(0.003, 0.01)) if self.traits.flattery else 0.0
        self.tasks = tuple(self._task(i) for i in range(TASKS))

    # ── candidates ────────────────────────────────────────────────────────────────────────────────────────────────

    def seed_template(self) -> Template:
        """The start as a template with parameters."""
        return self.words.template(self.start, "seed")

    def seed_text(self) -> str:
        """The start as a text without placeholders but the question's."""
        return self.words.text(self.start)

    def state(self, candidate: Candidate) -> Ints:
        rules = [int(index in candidate.rules) for index in range(len(self.words.topics))]
        return np.array([*(value + 1 for value in candidate.settings), *rules])

    def _candidate(self, state: Ints) -> Candidate:
        count = len(self.words.values)
        rules = frozenset(int(i) for i in np.flatnonzero(state[count:]))
        return Candidate(tuple(int(level) - 1 for level in state[:count]), rules)

    def _start(self, land: Landscape, levels: Ints, neutral: int, rng: Generator) -> Candidate:
        """A person's first try: the fourth best of 15 drawn candidates with one useful rule and one neutral one."""
        spare = sorted(set(range(len(self.words.topics))) - {*self.useful.tolist(), *self.harmful.tolist()})
        drawn = [
            Candidate(
                tuple(rng.integers(levels).tolist()), frozenset({int(rng.choice(self.useful)), int(rng.choice(spare))})
            )
            for _ in range(15)
        ]
        worth = land.values(np.stack([self.state(one) for one in drawn])) @ self.shares
        return drawn[int(np.argsort(worth)[-4])]

    # ── worth ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def true(self, candidate: Candidate | str, at: float = 1.0) -> float:
        """The mean chance over held-out instances, without noise or bias; `at` is the part of the budget spent."""
        one = self.parse(candidate) if isinstance(candidate, str) else candidate
        return float(self._chances(one, self._held, _notch(at)).mean())

    def score(self, candidate: Candidate, number: int, repeat: int, at: float = 0.0) -> tuple[float, str]:
        """The score seen, 0 to 1, and a critic's words, for the `repeat`th rollout on one of the tasks."""
        notch = _notch(at)
        rng = random.Random(f"{self.seed} {self.kind} {_name(candidate)} {number} {repeat}")
        one = Instances(self._trained.difficulty[number : number + 1], self._trained.kind[number : number + 1])
        chance = float(self._chances(candidate, one, notch)[0]) + self.bias(candidate)
        chance = min(0.99, max(0.01, chance))
        score = self._drawn(0.5 if rng.random() < self.traits.lapse else chance, rng)
        return score, self._words(candidate, int(one.kind[0]), score, notch, rng)

    def _drawn(self, chance: float, rng: random.Random) -> float:
        if self.traits.graded:
            return rng.betavariate(3 * chance, 3 * (1 - chance))
        return float(rng.random() < chance)

    def bias(self, candidate: Candidate) -> float:
        """What the judge adds to a candidate's chance for its settings and its length."""
        if not self.traits.flattery:
            return 0.0
        found = sum(candidate.settings[p] == value for p, value in self.flattering)
        longer = len(candidate.rules) - len(self.start.rules)
        return found * self.traits.flattery + longer * self._line

    def _chances(self, candidate: Candidate, instances: Instances, notch: int) -> Floats:
        logits = self._base + self._slope * self._worth(candidate, notch)[instances.kind] - instances.difficulty
        return self._guess + (1 - self._guess) / (1 + np.exp(-logits))

    def _worth_now(self, candidate: Candidate, notch: int) -> Floats:
        """What a candidate is worth to each kind of instance: 0 for the start, 1 for the best, on average."""
        return self._worths(self.state(candidate)[None], notch, [candidate.clutter])[0]

    def _worths(self, states: Ints, notch: int, clutter: list[int]) -> Floats:
        """(states, kinds)"""
        parts = [(land.values(states) - low) / span for land, (low, span) in zip(self._ends, self._scales, strict=True)]
        late = notch / NOTCHES if len(parts) == 2 else 0.0
        lines = states[:, len(self.words.values) :].sum(axis=1)
        cost = self.cost * (np.maximum(0, lines - self.room) + np.array(clutter))
        return (1 - late) * parts[0] + late * parts[-1] - cost[:, None]

    def _scale(self, land: Landscape, best: Ints) -> tuple[float, float]:
        """The mean value of the start, and the span from there to the best."""
        low, high = land.values(np.stack([self.state(self.start), best])) @ self.shares
        return float(low), float(high - low)

    # ── the critic ────────────────────────────────────────────────────────────────────────────────────────────────

    def _words(self, candidate: Candidate, kind: int, score: float, notch: int, rng: random.Random) -> str:
        if rng.random() < score:
            return PRAISE
        fate = rng.random()
        if fate < self.traits.clue and (found := self.flaws(candidate, notch)[kind]):
            edits, gains = zip(*found, strict=True)
            (edit,) = rng.choices(edits, gains)
            blunt = edit.kind == "set" and rng.random() >= self.traits.pointed
            return self.words.clue(replace(edit, value=None) if blunt else edit)
        if self.traits.clue <= fate < self.traits.clue + self.traits.mislead:
            return self.words.clue(self._whim(candidate, rng))
        return rng.choice(VAGUE)

    def _flaws_now(self, candidate: Candidate, notch: int) -> list[list[tuple[Edit, float]]]:
        """For each kind of instance, the edits that would help, with how much."""
        state, edits = self.state(candidate), self.edits(candidate)
        states = np.stack([self.state(edited(candidate, edit)) for edit in edits])
        count = [0] * len(edits)
        gains = self._worths(states, notch, count) - self._worths(state[None], notch, [0])
        return [[(e, g) for e, g in zip(edits, column, strict=True) if g > 0.005] for column in gains.T.tolist()]

    def edits(self, candidate: Candidate) -> list[Edit]:
        """Every single edit there is."""
        chosen = candidate.settings
        sets = [
            Edit("set", p, v) for p, some in enumerate(self.words.values) for v in range(len(some)) if v != chosen[p]
        ]
        rules = range(len(self.words.topics))
        return [*sets, *(Edit("drop" if index in candidate.rules else "add", index) for index in rules)]

    def _whim(self, candidate: Candidate, rng: random.Random) -> Edit:
        """An edit that a critic calls for without reason."""
        edits = self.edits(candidate)
        kind = rng.choice([edit.kind for edit in edits])
        return rng.choice([edit for edit in edits if edit.kind == kind])

    # ── drawing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _instances(self, count: int, rng: Generator) -> Instances:
        kinds = rng.choice(len(self.shares), count, p=self.shares)
        return Instances(rng.normal(0.0, self.traits.scatter, count), kinds)

    def _task(self, number: int) -> Task:
        kind = self._trained.kind[number]
        return Task(f"task-{number}", f"Question {number} of chapter {'ABCDE'[kind]}.", "right")

    def _flatterers(self, rng: Generator) -> tuple[tuple[int, int], ...]:
        """Settings that impress the judge; none of them is the best value."""
        pick = rng.choice(len(self.words.values), 3, replace=False)
        others = [[v for v in range(len(self.words.values[p])) if v != self.best.settings[p]] for p in pick]
        return tuple((int(p), int(rng.choice(some))) for p, some in zip(pick, others, strict=True))

    def _calibrated(self, low: float, high: float) -> tuple[float, float]:
        """The base and the slope, in logits, at which the start stands at `low` and the best at `high` at the end."""
        slopes = [0.0, 60.0]
        for _ in range(40):
            self._slope = sum(slopes) / 2
            self._base = self._based(low)
            slopes[self.true(self.best) > high] = self._slope
        return self._base, self._slope

    def _based(self, low: float) -> float:
        bases = [-40.0, 20.0]
        for _ in range(40):
            self._base = sum(bases) / 2
            bases[self.true(self.start) > low] = self._base
        return sum(bases) / 2


NOTCHES = 50


def _notch(at: float) -> int:
    """The part of the budget spent, in fiftieths, so that what was worked out can be kept."""
    return round(min(1.0, max(0.0, at)) * NOTCHES)


def _name(candidate: Candidate) -> str:
    return f"{candidate.settings} {sorted(candidate.rules)} {candidate.clutter}"
