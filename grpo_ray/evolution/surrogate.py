"""What every trial so far says of any template: a Bayesian regression on the pieces that templates are made of.

A trial's mean reward is taken to be the sum of its task's difficulty, of what each piece of the template adds (a setting,
a sentence), of what is the template's own, and of noise. All are random effects
(Gaussian, mean 0), so that a template without trials is known by its pieces, and one with many by itself. The variances,
as shares of the noise's, are those of a small grid that make the trials likeliest (empirical Bayes). Old trials count
less by `discount` a step.

With N templates that have trials, the work is that of solving N equations a few times, whatever the number of trials.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grpo_ray.pieces import pieces
from grpo_ray.trials import Trial
from grpo_ray.types import Template

Array = NDArray[np.float64]

NODES = 200
"""Templates that are reckoned with: those with most evidence."""
SIZING = 100
"""Templates that the variances are found on."""
FAINT = 0.01
"""Trials that count less than this are left out."""
TASK, PIECE, OWN = (0.1, 0.6), (0.01, 0.04), (0.005,)
"""The grid: variances of a task's difficulty, a piece, a template's own; the noise's is 1."""
ANEW = (100.0,)
"""The tasks' where they are met anew each step: nothing is known of their level then."""
ALONE = (0.02, 0.1, 0.5)
"""The same for a template's own where nothing is shared."""
TRUST = 1.0
"""What a vote is expected to be worth, in standard deviations of a piece, before any trial; and how sure that is."""
REASONED = ("rewrite",)
"""Mutations that read answers and what judges wrote: what they put in they vote for, what they take out against."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Variances, as shares of the noise's."""

    task: float
    piece: float
    own: float
    vote: float


@dataclass(frozen=True, slots=True)
class Draw:
    """One way things may be: a sample of every effect from what the trials leave open."""

    weights: Mapping[str, float]
    """Piece → what it adds, in the reward's unit. A piece no trial has met is not there."""
    own: Mapping[str, float]
    """Template id → what is its own."""

    def value(self, template: Template) -> float:
        """What it takes the template's reward to be, less what is common to all."""
        return sum(self.weights.get(piece, 0.0) for piece in pieces(template)) + self.own.get(template.id, 0.0)


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The trials, boiled down to N templates made of D pieces."""

    names: tuple[str, ...]
    """The N templates: those with most evidence."""
    columns: tuple[str, ...]
    """The D pieces."""
    made_of: Array
    """(N, D): 1 where a template has a piece."""
    votes: Array
    """(D,): how far those who reasoned about answers wanted a piece, -1 … 1."""
    precision: Array
    """(N, N): L, how well the trials tell templates apart, in the noise's unit."""
    target: Array
    """(N,): what the trials say, in L's unit."""
    solved: Array
    """(N, N): (I + L K)⁻¹, where K is what templates are expected to have in common."""
    root: Array
    """(N, N): what times its transpose is L."""
    evidence: "Evidence"
    scales: Scales
    noise: float
    """Variance of one rollout's reward about what is expected."""
    trials: Mapping[str, float]
    """Template id → how many tasks it was tried on; old ones count less."""

    def draws(self, count: int, rng: np.random.Generator, heat: float = 1.0) -> list[Draw]:
        """`count` samples from the posterior; `heat` scales how far they are from its mean."""
        unit = float(np.sqrt(self.noise))
        found = zip(*(part * unit for part in self._sampled(count, rng, heat)), strict=True)
        return [
            Draw(
                dict(zip(self.columns, weights.tolist(), strict=True)), dict(zip(self.names, own.tolist(), strict=True))
            )
            for weights, own in found
        ]

    def expected(self) -> Draw:
        """The posterior mean of every effect."""
        return self.draws(1, np.random.default_rng(0), heat=0.0)[0]

    def worths(self, templates: Sequence[Template], count: int, rng: np.random.Generator) -> Array:
        """(count, templates): samples of what each may be worth, less what is common to all. Without trials, its own is open."""
        weights, own = self._sampled(count, rng, 1.0)
        rows = {name: row for row, name in enumerate(self.names)}
        found = weights @ _membership(templates, self.columns).T
        fresh = rng.normal(size=(count, len(templates))) * np.sqrt(self.scales.own)
        for place, template in enumerate(templates):
            found[:, place] += own[:, rows[template.id]] if template.id in rows else fresh[:, place]
        return found * np.sqrt(self.noise)

    def _sampled(self, count: int, rng: np.random.Generator, heat: float) -> tuple[Array, Array]:
        """(C, D) pieces and (C, N) owns by Matheron's rule: a prior sample, corrected by what was seen."""
        scales = self.scales
        trust = heat * rng.normal(size=(count, 1)) * np.sqrt(scales.vote) + prejudice(scales)
        weights = heat * rng.normal(size=(count, len(self.columns))) * np.sqrt(scales.piece) + trust * self.votes
        own = heat * rng.normal(size=(count, len(self.names))) * np.sqrt(scales.own)
        noise = heat * rng.normal(size=(count, len(self.names))) @ self.root.T
        expected = (weights @ self.made_of.T + own) @ self.precision
        pull = (self.target + noise - expected) @ self.solved.T
        by_piece = pull @ self.made_of
        voted = (by_piece @ self.votes)[:, None] * self.votes
        return weights + scales.piece * by_piece + scales.vote * voted, own + scales.own * pull


@dataclass(frozen=True, slots=True)
class Evidence:
    """Trials as equations between templates, their tasks' difficulties integrated out. T trials, N templates, U tasks."""

    met: Array
    """(N, U): weight of each template's trials on each task: rollouts, faded by age."""
    told: Array
    """(N, U): the sum of rewards times weights, each reward less the mean of all."""
    squares: float
    """The sum of squared rewards times weights."""
    count: int
    """T"""

    def precision(self, spread: float) -> Array:
        """(N, N): how well the trials tell templates apart; `spread`: variance of a task's difficulty."""
        return np.diag(self.met.sum(axis=1)) - (self.met * self._shrink(spread)) @ self.met.T

    def target(self, spread: float) -> Array:
        """(N,): how far the trials pull each template, each task's own level taken out."""
        level = self.told.sum(axis=0) * self._shrink(spread)
        return self.told.sum(axis=1) - self.met @ level

    def energy(self, spread: float) -> float:
        """The sum of squares that templates could explain at most."""
        return self.squares - float((self.told.sum(axis=0) ** 2 * self._shrink(spread)).sum())

    def volume(self, spread: float) -> float:
        """log det of the trials' covariance when templates are all alike, but for what doesn't depend on `spread`."""
        return float(np.log1p(spread * self.met.sum(axis=0)).sum())

    def _shrink(self, spread: float) -> Array:
        """(U,): 1 / (weight of a task's trials + 1 / spread)."""
        return spread / (spread * self.met.sum(axis=0) + 1)


def learn(
    templates: Sequence[Template],
    trials: Sequence[Trial],
    now: int,
    *,
    discount: float = 1.0,
    drift: bool = False,
    shared: bool = True,
) -> Surrogate | None:
    """What the trials say at step `now`; None before the first. With `drift`, only trials of one step are compared.

    `discount`: how much a trial counts a step later. Templates without trials, and trials of others, are passed over.
    """
    known = {template.id: template for template in templates}
    told = [trial for trial in trials if trial.template in known and discount ** (now - trial.step) >= FAINT]
    if not told:
        return None
    weights = np.array([trial.count * discount ** (now - trial.step) for trial in told])
    names = _weightiest(told, weights, NODES)
    kept = [place for place, trial in enumerate(told) if trial.template in names]
    told, weights = [told[place] for place in kept], weights[kept]
    columns, made_of = _design([known[name] for name in names])
    votes = _votes(known, columns, _ages(told, now), discount)
    sizing = _weightiest(told, weights, SIZING)
    rows = [names[name] for name in sizing]
    parts = (PIECE, OWN) if shared else ((0.0,), ALONE)
    likely = [Scales(*one, vote=one[1] * TRUST**2 / 4) for one in itertools.product(ANEW if drift else TASK, *parts)]
    scales = _scales(likely, _evidence(told, weights, sizing, drift), made_of[rows], votes)
    evidence = _evidence(told, weights, names, drift)
    noise = _noise(evidence, _prior(made_of, votes, scales, _moment(scales)), scales.task)
    tried = _tried(told, weights)
    return _conditioned(tuple(names), columns, made_of, votes, evidence, scales, noise, tried)


def _conditioned(
    names: tuple[str, ...],
    columns: tuple[str, ...],
    made_of: Array,
    votes: Array,
    evidence: Evidence,
    scales: Scales,
    noise: float,
    tried: Mapping[str, float],
) -> Surrogate:
    """The posterior under given variances."""
    precision = evidence.precision(scales.task)
    prior = _prior(made_of, votes, scales, scales.vote)
    solved = np.asarray(np.linalg.inv(np.eye(len(names)) + precision @ prior), dtype=np.float64)
    target = evidence.target(scales.task) / np.sqrt(noise)
    root = _root(precision)
    return Surrogate(names, columns, made_of, votes, precision, target, solved, root, evidence, scales, noise, tried)


def prejudice(scales: Scales) -> float:
    """What a vote is worth before any trial, in the noise's unit."""
    return TRUST * float(np.sqrt(scales.piece))


def _moment(scales: Scales) -> float:
    """The mean square of what a vote is worth."""
    return scales.vote + prejudice(scales) ** 2


def _root(precision: Array) -> Array:
    """What times its transpose is the matrix; a little is added, for the last bits may have made it singular."""
    jitter = 1e-9 * float(precision.max()) * np.eye(len(precision))
    return np.asarray(np.linalg.cholesky(precision + jitter), dtype=np.float64)


def _ages(trials: Sequence[Trial], now: int) -> dict[str, int]:
    """Template id → how many steps ago it was first tried."""
    ages: dict[str, int] = {}
    for trial in trials:
        ages[trial.template] = max(ages.get(trial.template, 0), now - trial.step)
    return ages


def _votes(templates: Mapping[str, Template], columns: Sequence[str], ages: Mapping[str, int], fade: float) -> Array:
    """(D,): for each piece, votes for less votes against, over one more than all of them; old ones count less."""
    ayes: dict[str, float] = {}
    noes: dict[str, float] = {}
    for child in templates.values():
        parent = templates.get(child.parents[0]) if child.parents else None
        if parent is None or child.mutation not in REASONED:
            continue
        old, new, weight = set(pieces(parent)), set(pieces(child)), fade ** ages.get(child.id, 0)
        for piece in new - old:
            ayes[piece] = ayes.get(piece, 0.0) + weight
        for piece in old - new:
            noes[piece] = noes.get(piece, 0.0) + weight
    counts = np.array([(ayes.get(piece, 0.0), noes.get(piece, 0.0)) for piece in columns]).T
    return (counts[0] - counts[1]) / (1 + counts[0] + counts[1])


def _weightiest(trials: Sequence[Trial], weights: Array, most: int) -> dict[str, int]:
    """Template id → row, of those with most evidence."""
    total: dict[str, float] = {}
    for trial, weight in zip(trials, weights, strict=True):
        total[trial.template] = total.get(trial.template, 0.0) + float(weight)
    best = sorted(total, key=lambda name: (-total[name], name))[:most]
    return {name: row for row, name in enumerate(sorted(best))}


def _tried(trials: Sequence[Trial], weights: Array) -> dict[str, float]:
    tried: dict[str, float] = {}
    for trial, weight in zip(trials, weights, strict=True):
        tried[trial.template] = tried.get(trial.template, 0.0) + float(weight) / trial.count
    return tried


def _design(templates: Sequence[Template]) -> tuple[tuple[str, ...], Array]:
    """The pieces, every choice of every parameter among them, and which template has which."""
    choices = {f"{p.name}={choice.label}" for t in templates for p in t.parameters for choice in p.choices}
    columns = sorted(choices | {piece for template in templates for piece in pieces(template)})
    return tuple(columns), _membership(templates, columns)


def _membership(templates: Sequence[Template], columns: Sequence[str]) -> Array:
    """(templates, columns): 1 where a template has a piece; pieces that are no column are left out."""
    place = {piece: column for column, piece in enumerate(columns)}
    found = np.zeros((len(templates), len(columns)))
    for row, template in enumerate(templates):
        found[row, [place[piece] for piece in pieces(template) if piece in place]] = 1.0
    return found


def _evidence(trials: Sequence[Trial], weights: Array, names: Mapping[str, int], drift: bool) -> Evidence:
    """The trials of the named templates; tasks are met anew each step where things drift."""
    kept = [place for place, trial in enumerate(trials) if trial.template in names]
    keys = [(trials[place].task_type, trials[place].task, trials[place].step if drift else 0) for place in kept]
    tasks = {key: row for row, key in enumerate(sorted(set(keys)))}
    value, weight = np.array([trials[place].value for place in kept]), weights[kept]
    value = value - np.average(value, weights=weight)
    met, told = np.zeros((len(names), len(tasks))), np.zeros((len(names), len(tasks)))
    cells = [names[trials[place].template] for place in kept], [tasks[key] for key in keys]
    np.add.at(met, cells, weight)
    np.add.at(told, cells, weight * value)
    return Evidence(met, told, float((weight * value**2).sum()), len(kept))


def _prior(made_of: Array, votes: Array, scales: Scales, vote: float) -> Array:
    """(N, N): how far templates are expected to be alike; `vote`: the variance of what a vote is worth."""
    voted = made_of @ votes
    return scales.piece * made_of @ made_of.T + vote * np.outer(voted, voted) + scales.own * np.eye(len(made_of))


def _scales(likely: Sequence[Scales], evidence: Evidence, made_of: Array, votes: Array) -> Scales:
    """Those under which the trials are likeliest."""
    return max(likely, key=lambda one: _likelihood(evidence, _prior(made_of, votes, one, _moment(one)), one.task))


def _likelihood(evidence: Evidence, prior: Array, spread: float) -> float:
    """log p(trials), but for constants; the noise's variance is the likeliest one."""
    size = float(np.linalg.slogdet(np.eye(len(prior)) + evidence.precision(spread) @ prior)[1])
    noise = evidence.count * np.log(_noise(evidence, prior, spread))
    return -0.5 * (noise + size + evidence.volume(spread))


def _noise(evidence: Evidence, prior: Array, spread: float) -> float:
    """The likeliest variance of one rollout's reward about what is expected."""
    target = evidence.target(spread)
    system = np.eye(len(prior)) + evidence.precision(spread) @ prior
    rest = evidence.energy(spread) - float(target @ prior @ np.linalg.solve(system, target))
    return max(1e-6, rest / evidence.count)
