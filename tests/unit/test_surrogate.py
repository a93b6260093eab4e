"""The surrogate beside the same model written down in full: every trial a row of one big Gaussian."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean

import numpy as np
import pytest
from evolving import CARE, HASTE, MATHS, every_setting, named, template, trial, tried, worth
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ray.evolution import surrogate
from grpo_ray.evolution.surrogate import Scales, Surrogate, learn, prejudice
from grpo_ray.pieces import pieces
from grpo_ray.trials import Trial
from grpo_ray.types import Choice, Parameter, Template

WIDE = Scales(task=0.5, piece=0.04, own=0.02, vote=0.01)
"""Scales under which nothing is left out."""


# ── the reference ─────────────────────────────────────────────────────────────────────────────────────────────────


def alike(one: Template, other: Template, votes: dict[str, float], scales: Scales, vote: float) -> float:
    """The prior covariance of two templates, in the noise's unit."""
    shared = set(pieces(one)) & set(pieces(other))
    voted = [sum(votes[piece] for piece in pieces(each)) for each in (one, other)]
    return scales.piece * len(shared) + scales.own * (one.id == other.id) + vote * float(np.prod(voted))


def covariances(
    known: Surrogate, templates: Sequence[Template], trials: Sequence[Trial], scales: Scales, vote: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of templates with each other, of templates with trials, and of trials; counts are weights, a task is a task."""
    votes = dict(zip(known.columns, known.votes, strict=True))
    by_id = {one.id: one for one in templates}
    told = [by_id[one.template] for one in trials]
    own = np.array([[alike(a, b, votes, scales, vote) for b in templates] for a in templates])
    across = np.array([[alike(a, b, votes, scales, vote) for b in told] for a in templates])
    among = np.array([[alike(a, b, votes, scales, vote) for b in told] for a in told])
    tasks = np.array([[scales.task * (a.task == b.task) for b in trials] for a in trials])
    return own, across, among + tasks + np.diag([1 / one.count for one in trials])


def centred(trials: Sequence[Trial]) -> np.ndarray:
    values, weights = np.array([one.value for one in trials]), np.array([one.count for one in trials])
    return values - (values * weights).sum() / weights.sum()


def dense(known: Surrogate, templates: Sequence[Template], trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of what each template is worth, in the reward's unit, by conditioning."""
    votes = dict(zip(known.columns, known.votes, strict=True))
    hoped = {one.id: prejudice(known.scales) * sum(votes[piece] for piece in pieces(one)) for one in templates}
    own, across, among = covariances(known, templates, trials, known.scales, known.scales.vote)
    rest = centred(trials) / np.sqrt(known.noise) - np.array([hoped[one.template] for one in trials])
    mean = np.array([hoped[one.id] for one in templates]) + across @ np.linalg.solve(among, rest)
    covariance = own - across @ np.linalg.solve(among, across.T)
    return mean * np.sqrt(known.noise), covariance * known.noise


def log_likelihood(
    known: Surrogate, templates: Sequence[Template], trials: Sequence[Trial], scales: Scales
) -> tuple[float, float]:
    """log p of the trials at the likeliest noise, but for what all scales share; and that noise."""
    vote = scales.vote + prejudice(scales) ** 2
    among, rest = covariances(known, templates, trials, scales, vote)[2], centred(trials)
    noise = float(rest @ np.linalg.solve(among, rest)) / len(trials)
    return -0.5 * (len(trials) * np.log(noise) + np.linalg.slogdet(among)[1]), noise


def rescaled(known: Surrogate, scales: Scales) -> Surrogate:
    """What would be known under other scales."""
    parts = (known.names, known.columns, known.made_of, known.votes, known.evidence)
    return surrogate._conditioned(*parts, scales, known.noise, known.trials)


def learnt(templates: Sequence[Template], trials: Sequence[Trial], now: int = 0, **how: float) -> Surrogate:
    known = learn(templates, trials, now, discount=how.get("discount", 1.0), drift=bool(how.get("drift", False)))
    assert known is not None
    return known


def world(seed: int, count: int = 12) -> tuple[list[Template], list[Trial]]:
    """A family with two rewrites, and trials of it here and there; every template has one."""
    chance = random.Random(seed)
    seeds = [template(f"s{i}", chance.choice("abc"), chance.choice("xyz")) for i in range(3)]
    seeds = [replace(one, text=f"{text} {one.text}") for one, text in zip(seeds, (CARE, HASTE, ""), strict=True)]
    rewrites = [
        named(template("r", "b", "y", (MATHS,)), seeds[0], "rewrite"),
        named(template("q", "c", "x", (MATHS, CARE)), seeds[1], "rewrite"),
    ]
    templates = [*seeds, *rewrites, template("s3", "c", "z")]
    drawn = [*templates, *(chance.choice(templates) for _ in range(count - len(templates)))]
    trials = [trial(one, chance.randrange(4), chance.random(), count=chance.choice((1, 4))) for one in drawn]
    return templates, trials


def expected(known: Surrogate, templates: Sequence[Template]) -> np.ndarray:
    draw = known.expected()
    return np.array([draw.value(one) for one in templates])


# ── beside the reference ──────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 40), st.booleans())
def test_what_is_expected_is_what_conditioning_on_every_trial_gives(seed: int, count: int, wide: bool) -> None:
    templates, trials = world(seed, count)
    known = learnt(templates, trials)
    known = rescaled(known, WIDE) if wide else known
    mean, _ = dense(known, templates, trials)
    assert expected(known, templates) == pytest.approx(mean, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 40))
def test_the_scales_are_those_of_the_grid_that_make_the_trials_likeliest(seed: int, count: int) -> None:
    templates, trials = world(seed, count)
    known = learnt(templates, trials)
    votes = surrogate.TRUST**2 / 4
    points = product(surrogate.TASK, surrogate.PIECE, surrogate.OWN)
    grid = [Scales(*point, vote=point[1] * votes) for point in points]
    likely = {scales: log_likelihood(known, templates, trials, scales)[0] for scales in grid}
    assert known.scales in grid
    assert likely[known.scales] == pytest.approx(max(likely.values()), abs=1e-6)
    assert known.noise == pytest.approx(log_likelihood(known, templates, trials, known.scales)[1], rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_samples_have_the_posteriors_mean_and_covariance(seed: int) -> None:
    templates, trials = world(seed, 15)
    known, count = rescaled(learnt(templates, trials), WIDE), 4000
    mean, covariance = dense(known, templates, trials)
    drawn = known.draws(count, np.random.default_rng(seed))
    sampled = np.array([[draw.value(one) for one in templates] for draw in drawn])
    for values in (sampled, known.worths(templates, count, np.random.default_rng(seed + 10))):
        variances = np.diag(covariance)
        assert np.all(abs(values.mean(axis=0) - mean) < 5 * np.sqrt(variances / count))
        errors = np.sqrt((np.outer(variances, variances) + covariance**2) / count)
        assert np.all(abs(np.cov(values.T) - covariance) < 5 * errors)


def test_a_template_without_trials_is_known_by_its_pieces_and_its_own_is_open() -> None:
    templates, trials = world(1, 15)
    known = rescaled(learnt(templates, trials), replace(WIDE, own=0.5))
    fresh = template("new", "b", "z", (MATHS, "Nobody ever said this."))
    values = known.worths([fresh], 4000, np.random.default_rng(3))[:, 0]
    draws = known.draws(4000, np.random.default_rng(4))
    by_pieces = np.array([draw.value(fresh) for draw in draws])
    variance = by_pieces.var() + 0.5 * known.noise
    assert by_pieces.var() < 0.7 * variance
    assert values.mean() == pytest.approx(by_pieces.mean(), abs=5 * np.sqrt(2 * variance / 4000))
    assert values.var() == pytest.approx(variance, rel=5 * np.sqrt(4 / 4000))
    assert "Nobody ever said this." not in draws[0].weights and fresh.id not in draws[0].own


def test_without_heat_every_draw_is_what_is_expected() -> None:
    templates, trials = world(2, 20)
    known = rescaled(learnt(templates, trials), WIDE)
    cold, warm = (known.draws(3, np.random.default_rng(7), heat) for heat in (0.0, 1.0))
    for draw in cold:
        assert dict(draw.weights) == pytest.approx(dict(known.expected().weights), abs=1e-12)
        assert dict(draw.own) == pytest.approx(dict(known.expected().own), abs=1e-12)
    values = [[draw.value(one) for one in templates] for draw in warm]
    assert len({round(value, 9) for value in np.array(values).T[0]}) == 3
    half = known.draws(3, np.random.default_rng(7), 0.5)
    middle = (np.array(values) + expected(known, templates)) / 2
    assert np.array([[draw.value(one) for one in templates] for draw in half]) == pytest.approx(middle, abs=1e-9)


def test_the_same_stream_draws_the_same() -> None:
    templates, trials = world(2, 20)
    known = learnt(templates, trials)
    one, other = (known.draws(2, np.random.default_rng(5)) for _ in range(2))
    assert [draw.weights for draw in one] == [draw.weights for draw in other]


# ── what counts ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_before_the_first_trial_nothing_is_known() -> None:
    assert learn(every_setting(), [], 0) is None
    assert learn(every_setting(), [trial("nobody", 0, 1.0)], 0) is None


@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_trials_and_templates_does_not_matter(seed: int, chance: random.Random) -> None:
    templates, trials = world(seed, 20)
    mixed = chance.sample(trials, len(trials))
    known, again = learnt(templates, trials), learnt(templates[::-1], mixed)
    assert (known.scales, known.noise) == (again.scales, pytest.approx(again.noise))
    assert expected(again, templates) == pytest.approx(expected(known, templates), abs=1e-9)


def test_a_trial_of_many_rollouts_is_as_many_trials() -> None:
    """But for what their spread tells of the noise."""
    templates, trials = world(4, 15)
    apart = [replace(one, count=1) for one in trials for _ in range(one.count)]
    together, split = (rescaled(learnt(templates, some), WIDE) for some in (trials, apart))
    same = replace(split, noise=together.noise, target=split.target * np.sqrt(split.noise / together.noise))
    assert expected(same, templates) == pytest.approx(expected(together, templates), abs=1e-9)


def test_old_trials_count_less() -> None:
    """A trial of four rollouts two steps ago, halved twice, is one of a single rollout now."""
    templates, trials = world(5, 20)
    plain = [replace(one, mutation="crossover") for one in templates]  # for votes fade as well
    old = [replace(one, step=3, count=4) for one in trials]
    now = [replace(one, step=5, count=1) for one in trials]
    faded, fresh = learnt(plain, old, 5, discount=0.5), learnt(plain, now, 5, discount=0.5)
    assert expected(faded, plain) == pytest.approx(expected(fresh, plain), abs=1e-9)
    assert faded.trials == {id: count / 4 for id, count in fresh.trials.items()}
    assert learn(plain, [replace(one, step=0) for one in trials], 20, discount=0.5) is None


def test_young_trials_outweigh_old_ones() -> None:
    one, other = template("one", "a"), template("other", "b")
    before = [trial(each, task, value) for task in range(8) for each, value in ((one, 0.9), (other, 0.1))]
    after = [replace(each, step=10, value=1 - each.value) for each in before]
    lead = [
        float(np.diff(expected(learnt([one, other], [*before, *after], 10, discount=d), [other, one]))[0])
        for d in (1.0, 0.7)
    ]
    assert lead[0] == pytest.approx(0.0, abs=0.02)
    assert lead[1] < -0.1


def test_how_much_a_template_was_tried_is_counted_in_tasks() -> None:
    known = learnt([template("one")], [trial("one", task, 0.5, count=8) for task in range(3)])
    assert known.trials == {"one": pytest.approx(3.0)}


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_as_tasks_may_differ_more_their_difficulty_cancels() -> None:
    """Where a task's own level is left open, a constant on all of its trials says nothing of templates."""
    templates, trials = world(6, 30)
    evidence = learnt(templates, trials).evidence
    (easy,) = [place for place, task in enumerate(sorted({one.task for one in trials})) if task == "t-1"]
    raised = np.zeros_like(evidence.met)
    raised[:, easy] = evidence.met[:, easy]
    level = replace(evidence, told=raised)
    left = [abs(level.target(spread)).max() for spread in (0.1, 1.0, 100.0, 1e6)]
    assert left[0] > left[1] > left[2] > left[3]
    assert left[3] == pytest.approx(0.0, abs=1e-4)
    assert evidence.precision(1e6).sum(axis=1) == pytest.approx(0.0, abs=1e-4)


def test_an_easy_task_is_no_merit_of_those_who_met_it() -> None:
    """Half of the templates met the easy tasks, the other half the hard ones; a few tasks all of them."""
    one, other = every_setting()[:2]
    met = {one.id: range(0, 14), other.id: range(10, 24)}
    trials = [trial(each, task, 0.9 if task < 10 else 0.1 if task >= 14 else 0.5) for each in met for task in met[each]]
    known = learnt([one, other], trials)
    plain = fmean(each.value for each in trials if each.template == one.id) - fmean(
        each.value for each in trials if each.template == other.id
    )
    assert plain > 0.5
    assert abs(float(np.diff(expected(known, [one, other]))[0])) < plain / 2


def test_a_harder_task_for_all_changes_little() -> None:
    templates, effects = every_setting(), {"tone=b": 0.1, "size=z": -0.1}
    trials = tried(templates, effects, 8)
    harder = [replace(one, value=one.value - 0.3) if one.task == "t-2" else one for one in trials]
    first, second = (expected(learnt(templates, some), templates) for some in (trials, harder))
    assert first - first.mean() == pytest.approx(second - second.mean(), abs=0.02)


def test_where_weights_drift_trials_of_one_step_are_compared() -> None:
    """Everything is easier in step 1, which only the newcomer and the anchor met; the newcomer is no better."""
    old, anchor, new = family = template("old", "a"), template("anchor", "b"), template("new", "c")
    trials = [trial(one, task, 0.3 + 0.01 * task, 0, 8) for task in range(10) for one in (old, anchor)]
    trials += [trial(one, task, 0.8 + 0.01 * task, 1, 8) for task in range(10) for one in (new, anchor)]
    still, drifting = (expected(learnt(family, trials, 1, drift=drift), family) for drift in (False, True))
    assert still[2] - still[0] > 0.3
    assert abs(drifting[2] - drifting[0]) < 0.05


# ── pieces and votes ──────────────────────────────────────────────────────────────────────────────────────────────


def test_planted_effects_are_found() -> None:
    effects = {"tone=a": -0.1, "tone=b": 0.15, "size=x": 0.05, "size=z": -0.15, CARE: 0.12, HASTE: -0.12}
    said = [(), (CARE,), (HASTE,), (CARE, HASTE)]
    every = [replace(one, id=f"{one.id}-{i}") for i, some in enumerate(said) for one in every_setting(some)]
    templates = random.Random(1).sample(every, 18)
    weights = learnt(templates, tried(templates, effects, 12, noise=0.4, seed=2)).expected().weights
    groups = (["tone=a", "tone=b", "tone=c"], ["size=x", "size=y", "size=z"], [CARE], [HASTE])
    level = {piece: fmean(effects.get(each, 0.0) for each in group) for group in groups for piece in group}
    true = [effects.get(piece, 0.0) - level[piece] * (len(group) > 1) for group in groups for piece in group]
    found = [weights[p] - fmean(weights[each] for each in g) * (len(g) > 1) for g in groups for p in g]
    assert np.corrcoef(true, found)[0, 1] > 0.8
    values = expected(learnt(templates, tried(templates, effects, 12, noise=0.4, seed=2)), every)
    assert np.corrcoef(values, [worth(one, effects) for one in every])[0, 1] > 0.8


def test_every_setting_of_a_template_is_a_piece_whether_it_was_tried_or_not() -> None:
    known = learnt([template("one")], [trial("one", 0, 0.5)])
    assert set(known.columns) == {*(f"tone={x}" for x in "abc"), *(f"size={x}" for x in "xyz"), "Solve it."}


def test_a_setting_named_as_in_other_templates_is_one_piece() -> None:
    """Though the second template has one label more."""
    wider = Parameter("tone", (*template("one").parameters[0].choices, Choice("d", "d tone")))
    other = replace(template("other"), parameters=(wider, template("one").parameters[1]))
    known = learnt([template("one"), other], [trial("one", 0, 0.5), trial("other", 0, 0.5)])
    assert known.columns.count("tone=a") == 1 and "tone=d" in known.columns


SEED = template("s", said=(HASTE,))
REWRITTEN = named(template("r", said=(CARE,)), SEED, "rewrite")


def test_what_rewrites_put_in_is_hoped_for_and_what_they_took_out_is_not() -> None:
    """Before the rewrite was compared with anything."""
    trials = [trial(SEED, 0, 0.5), trial(REWRITTEN, 1, 0.5), trial(SEED, 2, 0.4), trial(SEED, 3, 0.6)]
    weights = learnt([SEED, REWRITTEN], trials).expected().weights
    assert weights[CARE] > 0.0 > weights[HASTE]
    assert abs(weights["Solve it."]) < weights[CARE] / 4
    swapped = [SEED, replace(REWRITTEN, mutation="crossover")]
    assert learnt(swapped, trials).votes.tolist() == [0.0] * len(learnt(swapped, trials).columns)


def test_votes_are_counted_and_fade() -> None:
    second = named(template("r", "b", said=(CARE, MATHS)), REWRITTEN, "rewrite")
    against = named(template("r", "c", said=(HASTE, CARE)), REWRITTEN, "rewrite")
    family = [SEED, REWRITTEN, second, against]
    trials = [trial(one, 0, 0.5, step=place) for place, one in enumerate(family)]
    known = learnt(family, trials, 3)
    assert dict(zip(known.columns, known.votes, strict=True)) == {
        **{f"{name}={label}": 0.0 for name, labels in (("tone", "abc"), ("size", "xyz")) for label in labels},
        **{"tone=a": -2 / 3, "tone=b": 1 / 2, "tone=c": 1 / 2, "Solve it.": 0.0},
        **{CARE: 1 / 2, MATHS: 1 / 2, HASTE: 0.0},  # one for and one against HASTE
    }
    faded = learnt(family, trials, 3, discount=0.5)
    votes = dict(zip(faded.columns, faded.votes, strict=True))
    assert votes[CARE] == pytest.approx(0.25 / 1.25) and votes[MATHS] == pytest.approx(0.5 / 1.5)
    assert votes[HASTE] == pytest.approx((1 - 0.25) / 2.25)


def test_trials_overrule_votes() -> None:
    effects = {CARE: -0.2, HASTE: 0.2}
    family = [SEED, REWRITTEN, *(named(replace(SEED, settings=(("tone", x), ("size", "x"))), SEED) for x in "bc")]
    family += [named(replace(REWRITTEN, settings=(("tone", x), ("size", "x"))), REWRITTEN) for x in "bc"]
    weights = learnt(family, tried(family, effects, 12)).expected().weights
    assert weights[CARE] < -0.05 < 0.05 < weights[HASTE]


def test_more_templates_than_can_be_reckoned_with_leave_those_with_least_evidence_out() -> None:
    base = template("s")
    extra = surrogate.NODES + 5
    many = [replace(base, id=f"m{i:04}", text=f"Say {i}. {base.text}") for i in range(extra)]
    trials = [trial(one, 0, 0.5 + 0.001 * (place % 7), count=1 + (place >= 5)) for place, one in enumerate(many)]
    known = learnt(many, trials)
    assert len(known.names) == surrogate.NODES
    assert set(known.names) == {one.id for one in many[5:]}
