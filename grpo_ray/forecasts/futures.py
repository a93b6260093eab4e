"""A few thousand futures of a run, drawn from a few measured groups. Pure; the first future is the central one.

Chance enters in four places. The groups measured are few: a Gaussian multiplier bootstrap over their tasks (van der
Vaart & Wellner 1996, section 2.9), widened as Student's t is. Those to come differ too: the same again, for as many
tasks as will be visited. Templates and weights change on the way. And some phases were not measured at all. Deviations
are multiplied, not added: nothing falls below 0, and the upper side is the wider one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 4000
FIELDS = ("tokens", "calls", "tokens_in", "tokens_out", "usd", "sample_s", "judge_s")
DRIFT = {"tokens": 0.1, "tokens_in": 0.1, "tokens_out": 0.05, "usd": 0.075, "sample_s": 0.1, "judge_s": 0.075}
"""Log-deviation of a run's groups from those of its beginning: templates evolve, the model learns; judges feel half."""
PACED = ("sample_s", "judge_s")
PACE = 0.1
"""Log-deviation of a run's speed from that of a short measurement: what else the machine does, warm and cold caches."""
UNKNOWN_SPREAD = 0.5
"""Relative deviation between tasks, where a single task was measured."""
UNMEASURED = {"training": 0.7, "exam": 0.3, "rewriting": 0.5}
"""Log-deviation of a phase that no measured group shows: 0.7 is a factor of two either way."""
RARE = 0.2
"""Faults seen beforehand, so to speak, in one look: lost groups, and calls that need a second try."""
REWRITE_TOKENS = (3000, 800)
"""A guess at what a call to rewrite a template reads and writes."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls to one endpoint: how many, what they read and wrote, USD, and their seconds, each call's own added up."""

    count: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class GroupCost:
    """What one group took. A lost one has no rollouts, and `lost`."""

    task: str
    rollouts: int
    accepted: int = 0
    """Different texts among them that are good enough for rows."""
    useful: bool = False
    """Whether any advantage is not 0."""
    tokens: int = 0
    """Sampled."""
    calls: tuple[tuple[str, Calls], ...] = ()
    """Judges', by door."""
    sample_s: float = 0.0
    """Its share of the wall time during which one generator sampled."""
    judge_s: float = 0.0
    """Its share of the wall time during which judges were at work."""
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """A few groups, and what else was measured beside them."""

    groups: tuple[GroupCost, ...] = ()
    train_s: float | None = None
    """Seconds of training a useful group; None: not measured."""
    rewrites: Calls = Calls()


@dataclass(frozen=True, slots=True)
class Door:
    """What an endpoint lets through: calls at once, requests and tokens a minute (None: no known limit)."""

    concurrency: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a recipe plans, in numbers."""

    steps: int
    prompts: int
    """A step's, before any refill."""
    templates: int
    """On each of a step's tasks."""
    group_size: int
    train_tasks: int
    refill: int = 0
    waves: int = 1
    """A step's, and how many generators share them; 0 where they are shared without waiting for whole waves."""
    generators: int = 1
    lag: int = 0
    trains: bool = False
    gate_answers: int = 0
    """A step's."""
    exam_answers: tuple[int, int] = (0, 0)
    """The fewest and the most."""
    exam_judged: float = 0.0
    """Share of the exam's answers that judges, not verifiers, look at."""
    rewrites: float = 0.0
    """Calls a step."""
    rewrite_usd_per_million: tuple[float, float] = (0.0, 0.0)
    rejudged: float = 0.0
    """Calls of audits and canaries a call of the judges, as far as the measured groups don't show them."""
    rows_per_task: int = 4
    doors: Mapping[str, Door] = field(default_factory=dict)


class Chance:
    """Random numbers for so many futures, and before them the central one, without chance."""

    def __init__(self, seed: int, draws: int) -> None:
        self._rng, self._size = np.random.default_rng(seed), draws + 1

    def normal(self, *shape: int) -> Array:
        """Deviations; central 0."""
        return self._central(self._rng.standard_normal((self._size, *shape)), 0.0)

    def uniform(self, low: float, high: float) -> Array:
        return self._central(self._rng.uniform(low, high, self._size), (low + high) / 2)

    def share(self, hits: int, misses: int, prior: float = 0.5) -> Array:
        """A share of which so many were seen (0.5 is Jeffreys' prior; less: hits are rare); central the share seen."""
        drawn = self._rng.beta(hits + prior, misses + 1 - prior, self._size)
        return self._central(drawn, hits / (hits + misses) if hits + misses else 0.0)

    def unseen(self, looks: float) -> Array:
        """The rate, a look, of faults that were not seen in so many; central 0."""
        return self._central(self._rng.gamma(RARE, 1.0, self._size) / max(1.0, looks), 0.0)

    def widening(self, degrees: int) -> Array:
        """By how much normal deviations grow into Student's t with so many degrees of freedom; central 1."""
        return self._central(np.sqrt(degrees / self._rng.chisquare(degrees, self._size)), 1.0)

    def _central(self, drawn: Array, value: float) -> Array:
        drawn[0] = value
        return drawn


def futures(measured: Measured, planned: Planned, *, seed: int = 0, draws: int = DRAWS) -> dict[str, Array]:
    """Each quantity in the central future and in `draws` others; in one future all of them go together."""
    kept = [group for group in measured.groups if not group.lost]
    if not kept:
        raise ValueError("no measured group has rollouts: nothing can be forecast from them")
    chance = Chance(seed, draws)
    lost = chance.share(len(measured.groups) - len(kept), len(kept), RARE)
    useful = chance.share(sum(group.useful for group in kept), sum(not group.useful for group in kept))
    sampled = planned.steps * planned.prompts * _rounds(useful * (1 - lost), planned, chance)
    unlucky = chance.normal() * np.sqrt(lost * (1 - lost) / np.maximum(1, sampled))
    landed = sampled * np.clip(1 - lost + unlucky, 0, 1)
    means = _means(kept, planned, chance)
    asked = _asked(measured, planned, means, landed, chance)
    return {
        "rollouts": landed * planned.group_size,
        "rows": _rows(kept, landed, planned, chance),
        **asked,
        "sampled_tokens": landed * means["tokens"],
        **_seconds(measured, planned, means, sampled, landed, useful, asked, chance),
    }


def _rounds(teaching: Array, planned: Planned, chance: Chance) -> Array:
    """How often a step's prompts are sampled: each refill replaces the groups that taught nothing."""
    many = max(1, planned.steps * planned.prompts)
    share = np.clip(teaching + chance.normal() * np.sqrt(teaching * (1 - teaching) / many), 0, 1)
    return sum(((1 - share) ** turn for turn in range(1, planned.refill + 1)), np.ones_like(share))


def _means(kept: list[GroupCost], planned: Planned, chance: Chance) -> dict[str, Array]:
    """The mean over all groups to come, of each field of a group that isn't lost.

    Groups on one task are alike, so tasks are what is resampled, and a task's groups count as one.
    """
    table = np.array([_values(group, planned) for group in kept], float)
    tasks = sorted({group.task for group in kept})
    by_task = np.array([table[[group.task == task for group in kept]].mean(0) for task in tasks])
    centre = by_task.mean(0)
    off = np.divide(by_task - centre, centre, out=np.zeros_like(by_task), where=centre > 0)
    visits = max(1.0, planned.steps * planned.prompts / planned.templates)
    drift = np.array([DRIFT.get(name, 0.0) for name in FIELDS])
    if (count := len(tasks)) > 1:
        deviation = chance.normal(count) @ off / math.sqrt(count * (count - 1)) * chance.widening(count - 1)[:, None]
        deviation = deviation + chance.normal(count) @ off / math.sqrt((count - 1) * visits)
    else:
        deviation = chance.normal()[:, None] * UNKNOWN_SPREAD * (drift > 0)
    deviation = deviation + chance.normal()[:, None] * drift
    deviation = deviation + chance.normal()[:, None] * PACE * np.array([name in PACED for name in FIELDS], float)
    drawn = centre * np.exp(np.clip(deviation, -5, 5))
    return {name: drawn[:, place] for place, name in enumerate(FIELDS)}


def _values(group: GroupCost, planned: Planned) -> tuple[float, ...]:
    calls = [made for _, made in group.calls]
    sums = [sum(getattr(made, name) for made in calls) for name in ("count", "tokens_in", "tokens_out", "usd")]
    load = max((_load(made, planned.doors.get(door)) for door, made in group.calls), default=group.judge_s)
    return (group.tokens, *sums, group.sample_s, load)


def _load(calls: Calls, door: Door | None) -> float:
    """The seconds for which so many calls keep a door busy."""
    if door is None:
        return calls.seconds
    requests = 60 * calls.count / door.requests_per_minute if door.requests_per_minute else 0.0
    tokens = calls.tokens_in + calls.tokens_out
    read = 60 * tokens / door.tokens_per_minute if door.tokens_per_minute else 0.0
    return max(calls.seconds / door.concurrency, requests, read)


def _rows(kept: list[GroupCost], landed: Array, planned: Planned, chance: Chance) -> Array:
    """A task gives as many rows as it has different good texts, up to the most that it may give."""
    good = np.array([group.accepted for group in kept], float)
    visited = np.minimum(planned.train_tasks, landed / planned.templates)
    further = np.maximum(0, np.divide(landed, visited, out=np.zeros_like(landed), where=visited > 0) - 1)
    if good.any() and len(good) > 1:
        off = (good - good.mean()) / good.mean()
        spread = chance.normal(len(good)) @ off / math.sqrt(len(good) * (len(good) - 1))
        lift = np.exp(np.clip(spread * chance.widening(len(good) - 1), -5, 5))
    else:
        lift = np.exp(chance.normal() * UNKNOWN_SPREAD)
    fresh = chance.uniform(0, 1) * further * good.mean()
    per_task = np.minimum(planned.rows_per_task, (good[None, :] + fresh[:, None]) * lift[:, None]).mean(1)
    return visited * per_task


def _asked(
    measured: Measured, planned: Planned, means: Mapping[str, Array], landed: Array, chance: Chance
) -> dict[str, Array]:
    """What endpoints are asked: judges' calls, in steps and in the exam, and rewriting. `answers` are the exam's, `judged` the groups that
    judging them comes to."""
    seen = sum(made.count for group in measured.groups for _, made in group.calls)
    answers = chance.uniform(*planned.exam_answers)
    judged = answers * planned.exam_judged * chance.uniform(1 / planned.group_size, 1)
    judgings = landed * (1 + planned.rejudged) + judged
    again = 1 + chance.unseen(seen)  # tries that none of the calls measured needed
    rewrites = np.full_like(landed, planned.steps * planned.rewrites)
    read, wrote, paid = _rewrite(measured, planned, chance)
    return {
        "judge_calls": judgings * means["calls"] * again,
        "rewrite_calls": rewrites * again,
        "tokens_in": judgings * means["tokens_in"] + rewrites * read,
        "tokens_out": judgings * means["tokens_out"] + rewrites * wrote,
        "usd": judgings * means["usd"] + rewrites * paid,
        "answers": answers,
        "judged": judged,
    }


def _rewrite(measured: Measured, planned: Planned, chance: Chance) -> tuple[Array, Array, Array]:
    """Tokens in and out, and USD, of one call to rewrite a template."""
    if known := measured.rewrites.count:
        made = measured.rewrites
        each = (made.tokens_in / known, made.tokens_out / known, made.usd / known)
        spread = chance.normal() * UNKNOWN_SPREAD / math.sqrt(known)
    else:
        prices = planned.rewrite_usd_per_million
        each = (*REWRITE_TOKENS, sum(n * price for n, price in zip(REWRITE_TOKENS, prices, strict=True)) / 1e6)
        spread = chance.normal() * UNMEASURED["rewriting"]
    read, wrote, paid = (value * np.exp(spread) for value in each)
    return read, wrote, paid


def _seconds(
    measured: Measured,
    planned: Planned,
    means: Mapping[str, Array],
    sampled: Array,
    landed: Array,
    useful: Array,
    asked: Mapping[str, Array],
    chance: Chance,
) -> dict[str, Array]:
    """Wall time of the steps, of the exam, and of both."""
    steps = max(1, planned.steps)
    sampling = sampled / steps * means["sample_s"] * _share(planned)
    judging = landed / steps * means["judge_s"] * (1 + planned.rejudged)
    answer = means["sample_s"] / planned.group_size / planned.generators
    answer = answer * np.exp(chance.normal() * UNMEASURED["exam"])
    gate = planned.gate_answers * answer
    training = _training(measured, planned, sampling, landed / steps * useful, chance)
    tail = _latency(measured)
    rewriting = min(1.0, planned.rewrites) * _rewrite_s(measured, tail)
    rewriting = rewriting * np.exp(chance.normal() * UNMEASURED["rewriting"])
    improving = np.maximum(training + gate, rewriting)
    whole = np.maximum(sampling, judging) + tail + improving
    cycle = np.maximum.reduce([sampling + (gate if planned.lag else 0), judging, improving, whole / (planned.lag + 1)])
    taken = planned.steps * cycle + (whole - cycle if planned.steps else 0.0)
    exam = np.maximum(asked["answers"] * answer, asked["judged"] * means["judge_s"])
    return {"seconds_steps": taken, "seconds_exam": exam, "seconds": taken + exam}


def _share(planned: Planned) -> float:
    """The part of a step's sampling that the busiest generator does; whole waves don't always share out evenly."""
    if not planned.waves:
        return 1 / planned.generators
    return math.ceil(planned.waves / planned.generators) / planned.waves


def _training(measured: Measured, planned: Planned, sampling: Array, useful: Array, chance: Chance) -> Array:
    """Seconds of a step's update."""
    if not planned.trains:
        return np.zeros_like(sampling)
    if measured.train_s is None:
        return sampling * np.exp(chance.normal() * UNMEASURED["training"])
    return useful * measured.train_s * np.exp(chance.normal() * math.hypot(PACE, DRIFT["sample_s"]))


def _latency(measured: Measured) -> float:
    """Seconds of a judge's call, on average: the last group of a step waits for its own."""
    made = [calls for group in measured.groups for _, calls in group.calls]
    return sum(calls.seconds for calls in made) / max(1, sum(calls.count for calls in made))


def _rewrite_s(measured: Measured, tail: float) -> float:
    """Seconds of a call to rewrite a template; unmeasured, as long as a judge's."""
    made = measured.rewrites
    return made.seconds / made.count if made.count else tail
