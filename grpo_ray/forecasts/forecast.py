"""What a run will take, from a few measured groups: rollouts, rows, calls, tokens, money and time, with intervals; and
how many steps fit into an amount of money and a stretch of time. Pure: counts in, numbers out (`futures` draws them).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from grpo_ray.forecasts.futures import (
    DRAWS,
    DRIFT,
    PACE,
    REWRITE_TOKENS,
    UNKNOWN_SPREAD,
    Array,
    Measured,
    Planned,
    futures,
)

Limit = Literal["", "money", "time"]
INNER = ("answers", "judged")
"""Of the futures, what a forecast doesn't show."""
MOST_STEPS = 4096
"""More are not looked for."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A quantity's central forecast with its 80 % and its 95 % interval."""

    mean: float
    low80: float
    high80: float
    low95: float
    high95: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """`quantities`: rollouts, rows, judge_calls, rewrite_calls, tokens_in, tokens_out (the endpoints'), sampled_tokens,
    usd, seconds_steps, seconds_exam, seconds. Where nothing was measured it is a guess: upper bounds, and no time."""

    steps: int
    groups: int
    """Measured."""
    guess: bool
    quantities: Mapping[str, Expected]
    assumed: tuple[str, ...] = ()
    """What was not measured, and what stands in its place."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The most steps that stay within the money and the time with probability `chance`, and which of the two ends them.

    `limit` is empty where neither does. `affordable` is False where not even the exams of no step do.
    """

    steps: int
    limit: Limit
    chance: float
    affordable: bool
    quantities: Mapping[str, Expected]
    """Of so many steps."""


def forecast(measured: Measured, planned: Planned, *, seed: int = 0, draws: int = DRAWS) -> Forecast:
    """What `planned` will take. Raises ValueError where no group was measured: see `guess`."""
    quantities = _summaries(futures(measured, planned, seed=seed, draws=draws))
    return Forecast(planned.steps, len(measured.groups), False, quantities, assumed(measured, planned))


def guess(steps: int, upper: Mapping[str, float]) -> Forecast:
    """Upper bounds in place of a forecast, where nothing was measured."""
    quantities = {name: Expected(most, 0.0, most, 0.0, most) for name, most in upper.items()}
    return Forecast(steps, 0, True, quantities, ("everything: no group was measured; these are upper bounds",))


def fit(
    measured: Measured,
    planned: Planned,
    *,
    money: float | None = None,
    seconds: float | None = None,
    chance: float = 0.9,
    most: int = MOST_STEPS,
    seed: int = 0,
) -> Fit:
    """How many steps, up to `most`, fit into `money` USD and `seconds` with probability `chance`."""

    def within(steps: int, money: float | None, seconds: float | None) -> bool:
        drawn = futures(measured, replace(planned, steps=steps), seed=seed)
        held = np.ones(len(drawn["usd"]), bool)
        for bound, name in ((money, "usd"), (seconds, "seconds")):
            held &= True if bound is None else drawn[name] <= bound
        return float(held[1:].mean()) >= chance

    def largest(money: float | None, seconds: float | None) -> int:
        low, high = -1, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if within(middle, money, seconds) else (low, middle)
        return low

    steps, rich, quick = largest(money, seconds), largest(money, None), largest(None, seconds)
    limit: Limit = "" if steps >= most else "money" if rich <= quick else "time"
    taken = max(0, steps)
    return Fit(
        taken, limit, chance, steps >= 0, _summaries(futures(measured, replace(planned, steps=taken), seed=seed))
    )


def assumed(measured: Measured, planned: Planned) -> tuple[str, ...]:
    """What the measured groups don't show, in words."""
    tasks = len({group.task for group in measured.groups if not group.lost})
    said = {
        f"one task alone was measured: others differ by {UNKNOWN_SPREAD:.0%}": tasks == 1,
        f"templates and weights change lengths by {DRIFT['tokens']:.0%}": planned.steps > 0,
        f"the machine's speed differs by {PACE:.0%} from the measured one": True,
        "training was not measured: a step's takes as long as its sampling, give or take a factor of two": (
            planned.trains and measured.train_s is None
        ),
        "exams were not measured: an answer takes as long as a rollout, give or take a third": (
            planned.exam_answers[1] + planned.gate_answers > 0
        ),
        f"rewriting was not measured: {REWRITE_TOKENS[0]} tokens read and {REWRITE_TOKENS[1]} written a call": (
            planned.rewrites > 0 and not measured.rewrites.count
        ),
        "audits and canaries were not measured: each call of them costs what a judge's does": planned.rejudged > 0,
        "all generators are as fast as the measured one": planned.generators > 1,
        "rows: texts of further groups on a task are new to an unknown share": True,
    }
    return tuple(line for line, holds in said.items() if holds)


def _summaries(drawn: Mapping[str, Array]) -> dict[str, Expected]:
    return {name: _summary(values) for name, values in drawn.items() if name not in INNER}


def _summary(values: Array) -> Expected:
    """The central value, with intervals that always hold it."""
    mean = float(values[0])
    low95, low80, high80, high95 = (float(q) for q in np.quantile(values[1:], (0.025, 0.1, 0.9, 0.975)))
    return Expected(mean, min(mean, low80), max(mean, high80), min(mean, low95), max(mean, high95))
