"""What every trial so far says of any template: a Bayesian regression on the pieces that templates are made of.

A trial's mean reward is taken to be the sum of its task's difficulty, of what each piece of the template adds (a setting,
a sentence), of what each pair of settings adds, of what is the template's own, and of noise. All are random effects
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

NODES = 400
"""Templates that are reckoned with: those with most evidence."""
SIZING = 150
"""Templates that the variances are found on."""
FAINT = 0.01
"""Trials that count less than this are left out."""
TASK, PIECE, PAIR, OWN = (0.1, 0.6), (0.01, 0.04), (0.0,), (0.005,)
"""The grid: variances of a task's difficulty, a piece, a pair of settings, a template's own; the noise's is 1."""
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
    pair: float
    own: float
    vote: float


@dataclass(frozen=True, slots=True)
class Draw:
    """One way things may be: a sample of every effect from what the trials leave open."""

    weights: Mapping[str, float]
    """Piece → what it adds, in the reward's unit. A piece no trial has met is not there."""
    pairs: Array
    """(S, S): what two settings add together, zero diagonal, symmetric."""
    settings: Mapping[str, int]
    """Setting → its row in `pairs`."""
    own: Mapping[str, float]
    """Template id → what is its own."""

    def value(self, template: Template) -> float:
        """What it takes the template's reward to be, less what is common to all."""
        made_of = pieces(template)
        return sum(self.weights.get(piece, 0.0) for piece in made_of) + self._together(made_of) + self._own(template)

    def _together(self, made_of: Sequence[str]) -> float:
        rows = [self.settings[piece] for piece in made_of if piece in self.settings]
        return float(self.pairs[np.ix_(rows, rows)].sum()) / 2

    def _own(self, template: Template) -> float:
        return self.own.get(template.id, 0.0)


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The trials, boiled down. `draws` and `moments` are all that others ask of it."""

    names: tuple[str, ...]
    """The N templates with trials."""
    columns: tuple[str, ...]
    """The D pieces."""
    settings: int
    """The first so many of the pieces are settings."""
    made_of: Array
    """(N, D): 1 where a template has a piece."""
    votes: Array
    """(D,): how far those who reasoned about answers wanted a piece, -1 … 1."""
    system: Array
    """(N, N): I + L K, L the trials' precision between templates, K the templates' prior covariance."""
    target: Array
    """(N,): what the trials say, in L's unit."""
    evidence: "Evidence"
    scales: Scales
    noise: float
    """Variance of one rollout's reward about what is expected."""
    trials: Mapping[str, float]
    """Template id → how many tasks it was tried on; old ones count less."""

    def draws(self, count: int, rng: np.random.Generator, heat: float = 1.0) -> list[Draw]:
        """`count` samples from the posterior; `heat` scales how far they are from its mean."""
        return [self._draw(*parts) for parts in zip(*self._sampled(count, rng, heat), strict=True)]

    def worths(self, templates: Sequence[Template], count: int, rng: np.random.Generator) -> Array:
        """(count, templates): samples of what each may be worth, less what is common to all. Without trials, its own is open."""
        weights, together, own = self._sampled(count, rng, 1.0)
        made_of = _membership(templates, self.columns)
        chosen, rows = made_of[:, : self.settings], {name: row for row, name in enumerate(self.names)}
        found = weights @ made_of.T + _together(chosen, together) / 2
        fresh = rng.normal(size=(count, len(templates))) * np.sqrt(self.scales.own)
        for place, template in enumerate(templates):
            found[:, place] += own[:, rows[template.id]] if template.id in rows else fresh[:, place]
        return found * np.sqrt(self.noise)

    def _sampled(self, count: int, rng: np.random.Generator, heat: float) -> tuple[Array, Array, Array]:
        """Matheron's rule: prior samples of pieces (C, D), pairs (C, S, S) and owns (C, N), corrected by what was seen.

        `heat` scales how far they are from the mean.
        """
        pairs, chosen, scales = self.settings, self.made_of[:, : self.settings], self.scales
        trust = rng.normal(size=(count, 1)) * np.sqrt(scales.vote)
        weights = rng.normal(size=(count, len(self.columns))) * np.sqrt(scales.piece)
        weights = heat * (weights + trust * self.votes) + prejudice(scales) * self.votes
        together = heat * np.triu(rng.normal(size=(count, pairs, pairs)), 1) * np.sqrt(scales.pair)
        together = together + together.transpose(0, 2, 1)
        own = heat * rng.normal(size=(count, len(self.names))) * np.sqrt(scales.own)
        prior = weights @ self.made_of.T + own + _together(chosen, together) / 2
        imagined = heat * self.evidence.imagined(count, rng)
        missed = self.target[:, None] + imagined - self.evidence.precision @ prior.T
        return self._corrected(weights, together, own, np.linalg.solve(self.system, missed).T)

    def _corrected(self, weights: Array, together: Array, own: Array, pull: Array) -> tuple[Array, Array, Array]:
        """Samples drawn towards the trials; `pull` (C, N)."""
        chosen = self.made_of[:, : self.settings]
        by_piece = pull @ self.made_of
        voted = (by_piece @ self.votes)[:, None] * self.votes
        weights = weights + self.scales.piece * by_piece + self.scales.vote * voted
        seen = (chosen.T[None] * pull[:, None]) @ chosen  # (C, S, S)
        together = together + self.scales.pair * seen * (1 - np.eye(self.settings))
        return weights, together, own + self.scales.own * pull

    def expected(self) -> Draw:
        """The posterior mean of every effect."""
        return self.draws(1, np.random.default_rng(0), heat=0.0)[0]

    def _draw(self, weights: Array, together: Array, own: Array) -> Draw:
        unit = float(np.sqrt(self.noise))
        rows = {piece: row for row, piece in enumerate(self.columns[: self.settings])}
        by_piece = {piece: float(weight) * unit for piece, weight in zip(self.columns, weights, strict=True)}
        by_name = {name: float(value) * unit for name, value in zip(self.names, own, strict=True)}
        return Draw(by_piece, together * unit, rows, by_name)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Trials as equations between templates, their tasks' difficulties integrated out. T trials, N templates, U tasks."""

    template: NDArray[np.intp]
    """(T,)"""
    task: NDArray[np.intp]
    """(T,)"""
    weight: Array
    """(T,): rollouts, faded by age."""
    value: Array
    """(T,): reward less the mean of all."""
    spread: float
    """Variance of a task's difficulty, as a share of the noise's."""
    precision: Array
    """(N, N)"""

    def pulled(self, value: Array) -> Array:
        """(T, …) values of trials → (N, …): how far they pull each template, each task's own level taken out."""
        weighted = value * self.weight.reshape(-1, *[1] * (value.ndim - 1))
        tasks = np.zeros((self.task.max(initial=-1) + 1, *value.shape[1:]))
        np.add.at(tasks, self.task, weighted)
        level = tasks * _shrink(self.task, self.weight, self.spread).reshape(-1, *[1] * (value.ndim - 1))
        pulled = np.zeros((len(self.precision), *value.shape[1:]))
        np.add.at(pulled, self.template, weighted - level[self.task] * self.weight.reshape(-1, *[1] * (value.ndim - 1)))
        return pulled

    def imagined(self, count: int, rng: np.random.Generator) -> Array:
        """(N, count): what as many trials would say of templates that are all alike; noise, to sample by."""
        tasks = rng.normal(size=(self.task.max(initial=-1) + 1, count)) * np.sqrt(self.spread)
        noise = rng.normal(size=(len(self.weight), count)) / np.sqrt(self.weight)[:, None]
        return self.pulled(tasks[self.task] + noise)

    def energy(self) -> float:
        """The sum of squares that templates could explain at most."""
        tasks = np.zeros(self.task.max(initial=-1) + 1)
        np.add.at(tasks, self.task, self.weight * self.value)
        explained = tasks**2 * _shrink(self.task, self.weight, self.spread)
        return float((self.weight * self.value**2).sum() - explained.sum())

    def volume(self) -> float:
        """log det of the trials' covariance when templates are all alike, but for what doesn't depend on `spread`."""
        tasks = np.zeros(self.task.max(initial=-1) + 1)
        np.add.at(tasks, self.task, self.weight)
        return float(np.log1p(self.spread * tasks).sum())


def _shrink(task: NDArray[np.intp], weight: Array, spread: float) -> Array:
    """(U,): 1 / (weight of a task's trials + 1 / spread)."""
    tasks = np.zeros(task.max(initial=-1) + 1)
    np.add.at(tasks, task, weight)
    return spread / (spread * tasks + 1)


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
    columns, settings, made_of = _design([known[name] for name in names])
    votes = _votes(known, columns, _ages(told, now), discount)
    sizing = _weightiest(told, weights, SIZING)
    rows = [names[name] for name in sizing]
    parts = (PIECE, PAIR, OWN) if shared else ((0.0,), (0.0,), ALONE)
    grid = itertools.product(ANEW if drift else TASK, *parts)
    likely = [Scales(*point, vote=point[1] * TRUST**2 / 4) for point in grid]
    scales = _scales(likely, _evidence(told, weights, sizing, drift), made_of[rows], settings, votes)
    evidence = _gathered(_evidence(told, weights, names, drift), scales.task)
    noise = _noise(evidence, _prior(made_of, settings, votes, scales, scales.vote + prejudice(scales) ** 2))
    system = np.eye(len(names)) + evidence.precision @ _prior(made_of, settings, votes, scales, scales.vote)
    target = evidence.pulled(evidence.value) / np.sqrt(noise)
    tried = _tried(told, weights)
    return Surrogate(tuple(names), columns, settings, made_of, votes, system, target, evidence, scales, noise, tried)


def prejudice(scales: Scales) -> float:
    """What a vote is worth before any trial, in the noise's unit."""
    return TRUST * float(np.sqrt(scales.piece))


def _ages(trials: Sequence[Trial], now: int) -> dict[str, int]:
    """Template id → how many steps ago it was first tried."""
    ages: dict[str, int] = {}
    for trial in trials:
        ages[trial.template] = max(ages.get(trial.template, 0), now - trial.step)
    return ages


def _votes(templates: Mapping[str, Template], columns: Sequence[str], ages: Mapping[str, int], fade: float) -> Array:
    """(D,): for each piece, votes for less votes against, over one more than all of them; old ones count less."""
    ayes, noes = np.zeros(len(columns)), np.zeros(len(columns))
    place = {piece: column for column, piece in enumerate(columns)}
    for child in templates.values():
        parent = templates.get(child.parents[0]) if child.parents else None
        if parent is None or child.mutation not in REASONED:
            continue
        old, new, weight = set(pieces(parent)), set(pieces(child)), fade ** ages.get(child.id, 0)
        ayes[[place[piece] for piece in new - old if piece in place]] += weight
        noes[[place[piece] for piece in old - new if piece in place]] += weight
    return (ayes - noes) / (1 + ayes + noes)


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


def _design(templates: Sequence[Template]) -> tuple[tuple[str, ...], int, Array]:
    """The pieces, settings first, how many settings there are, and which template has which."""
    made_of = [pieces(template) for template in templates]
    choices = (
        (parameter.name, choice.label) for t in templates for parameter in t.parameters for choice in parameter.choices
    )
    settings = sorted({f"{name}={label}" for name, label in choices})
    chosen = set(settings)
    columns = [*settings, *sorted({piece for some in made_of for piece in some} - chosen)]
    return tuple(columns), len(settings), _membership(templates, columns)


def _membership(templates: Sequence[Template], columns: Sequence[str]) -> Array:
    """(templates, columns): 1 where a template has a piece; pieces that are no column are left out."""
    place = {piece: column for column, piece in enumerate(columns)}
    found = np.zeros((len(templates), len(columns)))
    for row, template in enumerate(templates):
        found[row, [place[piece] for piece in pieces(template) if piece in place]] = 1.0
    return found


def _together(chosen: Array, together: Array) -> Array:
    """(C, M): twice what the pairs of settings of each of M templates add, under each of C samples (C, S, S)."""
    return ((chosen @ together) * chosen).sum(axis=2)


def _evidence(trials: Sequence[Trial], weights: Array, names: Mapping[str, int], drift: bool) -> Evidence:
    """The trials of the named templates; tasks are met anew each step where things drift."""
    kept = [place for place, trial in enumerate(trials) if trial.template in names]
    keys = [(trials[place].task_type, trials[place].task, trials[place].step if drift else 0) for place in kept]
    tasks = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    value, weight = np.array([trials[place].value for place in kept]), weights[kept]
    centred = value - np.average(value, weights=weight)
    template = np.array([names[trials[place].template] for place in kept], dtype=np.intp)
    task = np.array([tasks[key] for key in keys], dtype=np.intp)
    return Evidence(template, task, weight, centred, 0.0, np.zeros((len(names), len(names))))


def _gathered(evidence: Evidence, spread: float) -> Evidence:
    """The same for one spread of the tasks' difficulties."""
    size, tasks = len(evidence.precision), evidence.task.max(initial=-1) + 1
    met = np.zeros((size, tasks))
    np.add.at(met, (evidence.template, evidence.task), evidence.weight)
    shrink = _shrink(evidence.task, evidence.weight, spread)
    precision = np.diag(met.sum(axis=1)) - (met * shrink) @ met.T
    return Evidence(evidence.template, evidence.task, evidence.weight, evidence.value, spread, precision)


def _prior(made_of: Array, settings: int, votes: Array, scales: Scales, vote: float) -> Array:
    """(N, N): how far templates are expected to be alike; `vote`: the variance of what a vote is worth."""
    chosen, voted = made_of[:, :settings], made_of @ votes
    shared = chosen @ chosen.T
    pairs = shared * (shared - 1) / 2
    alike = scales.piece * made_of @ made_of.T + vote * np.outer(voted, voted)
    return alike + scales.pair * pairs + scales.own * np.eye(len(made_of))


def _scales(likely: Sequence[Scales], evidence: Evidence, made_of: Array, settings: int, votes: Array) -> Scales:
    """Those under which the trials are likeliest."""
    gathered = {task: _gathered(evidence, task) for task in {one.task for one in likely}}

    def likelihood(one: Scales) -> float:
        return _likelihood(gathered[one.task], _prior(made_of, settings, votes, one, one.vote + prejudice(one) ** 2))

    return max(likely, key=likelihood)


def _likelihood(evidence: Evidence, prior: Array) -> float:
    """log p(trials), but for constants; the noise's variance is the likeliest one."""
    count = len(evidence.weight)
    size = float(np.linalg.slogdet(np.eye(len(prior)) + evidence.precision @ prior)[1])
    return -0.5 * (count * np.log(_noise(evidence, prior)) + size + evidence.volume())


def _noise(evidence: Evidence, prior: Array) -> float:
    """The likeliest variance of one rollout's reward about what is expected."""
    target = evidence.pulled(evidence.value)
    system = np.eye(len(prior)) + evidence.precision @ prior
    rest = evidence.energy() - float(target @ prior @ np.linalg.solve(system, target))
    return max(1e-6, rest / len(evidence.weight))
