"""Which tasks to sample: rather those whose groups come out mixed than those that are always solved or never, and never
any of them not at all, for what was too hard may have become learnable.

A group of G rollouts teaches where some are right and some are not: 1 − p^G − (1 − p)^G of them, p being the task's pass
rate. What is known of p is a Beta distribution: the type's tasks before it, its own trials after.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, prod
from random import Random

from grpo_ray.trials import Trial
from grpo_ray.types import Task

FLOOR = 0.2
"""The least weight of a task: one that is settled is drawn at least a fifth as often as the best."""
DISCOUNT = 0.9
"""What a trial counts less for each step that it is older."""
STRENGTH = 2.0
"""Rollouts that a type's tasks count as before a task's own, where too few of them say how alike they are."""
STRENGTHS = (0.25, 32.0)
TELLING = 4
"""Tasks of a type that must have trials before their differences are looked at."""
BLENDED = 0.5
"""How far apart a type's rewards must lie before the least is taken for none right, and the greatest for all."""


@dataclass(frozen=True, slots=True)
class Belief:
    """What is known of a task's pass rate: Beta(right, wrong), in rollouts."""

    right: float
    wrong: float

    @property
    def mean(self) -> float:
        return self.right / (self.right + self.wrong)

    @property
    def deviation(self) -> float:
        total = self.right + self.wrong
        return (self.right * self.wrong / (total * total * (total + 1))) ** 0.5

    def mixed(self, size: int) -> float:
        """The chance that `size` rollouts are neither all right nor all wrong: E[1 − p^G − (1 − p)^G], in closed form."""
        total = self.right + self.wrong
        alike = [prod((part + i) / (total + i) for i in range(size)) for part in (self.right, self.wrong)]
        return max(0.0, 1.0 - sum(alike))


def weights(
    trials: Sequence[Trial],
    tasks: Sequence[Task],
    group_size: int,
    *,
    floor: float = FLOOR,
    prior: float | None = None,
    discount: float = DISCOUNT,
) -> dict[str, float]:
    """Task id → how much it is to be preferred: the chance that its next group is mixed, at least `floor`.

    `prior`: in how many rollouts what is known of a task's type counts; None: as many as its tasks are alike.
    """
    found = beliefs(trials, tasks, prior=prior, discount=discount)
    return {id: max(floor, belief.mixed(group_size)) for id, belief in found.items()}


def beliefs(
    trials: Sequence[Trial], tasks: Sequence[Task], *, prior: float | None = None, discount: float = DISCOUNT
) -> dict[str, Belief]:
    """Task id → what is known of its pass rate, from trials under any template; untouched: what its type is like."""
    counts = _counts(trials, discount)
    kinds = {task.task_type for task in tasks}
    known = {kind: _prior(list(counts.get(kind, {}).values()), prior) for kind in kinds}
    found = {}
    for task in tasks:
        right, wrong = counts.get(task.task_type, {}).get(task.id, (0.0, 0.0))
        before = known[task.task_type]
        found[task.id] = Belief(before.right + right, before.wrong + wrong)
    return found


def pass_rates(trials: Sequence[Trial]) -> list[float]:
    """The share of right rollouts that each trial's mean reward stands for, by type.

    Rewards of 0 and 1 are that share. Of others the type's least is taken for none right and its greatest for all, where
    they lie outside 0 … 1, or are blends (a wrong answer earns something for its form) that lie far enough apart.
    """
    by_kind: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        by_kind[trial.task_type].append(trial)
    ends = {kind: _ends(some) for kind, some in by_kind.items()}
    return [_between(trial.value, *ends[trial.task_type]) for trial in trials]


def prefer(tasks: Sequence[Task], weights: Mapping[str, float], count: int, stream: Random) -> list[Task]:
    """`count` tasks (or all there are), none twice: a weighted draw inside each type, the types in proportion.

    Efraimidis & Spirakis 2006: the largest u^(1/w), u uniform, are a weighted draw without replacement.
    """
    kinds: dict[str, list[tuple[float, Task]]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: task.id):
        wait = -log(1.0 - stream.random())
        kinds[task.task_type].append((wait / weights[task.id] if weights[task.id] > 0 else inf, task))
    ordered = {kind: [task for _, task in sorted(some, key=_wait)] for kind, some in kinds.items()}
    return interleaved(ordered, stream)[:count]


def interleaved(kinds: Mapping[str, Sequence[Task]], stream: Random) -> list[Task]:
    """The tasks of all kinds, each kind in its order, so that every stretch holds the kinds in proportion.

    Each kind begins at a place of its own by chance, so that over many draws even the rarest comes as often as it should.
    """
    placed: list[tuple[float, str, Task]] = []
    for kind, some in sorted(kinds.items()):
        start = stream.random()
        placed += [((index + start) / len(some), kind, task) for index, task in enumerate(some)]
    return [task for *_, task in sorted(placed, key=lambda place: place[:2])]


def _wait(pair: tuple[float, Task]) -> tuple[float, str]:
    return pair[0], pair[1].id


def _counts(trials: Sequence[Trial], discount: float) -> dict[str, dict[str, tuple[float, float]]]:
    """Task type → task → rollouts (right, wrong), old ones faded."""
    newest = max((trial.step for trial in trials), default=0)
    found: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for trial, rate in zip(trials, pass_rates(trials), strict=True):
        right, wrong = found[trial.task_type].get(trial.task, (0.0, 0.0))
        count = trial.count * discount ** (newest - trial.step)
        found[trial.task_type][trial.task] = (right + count * rate, wrong + count * (1 - rate))
    return found


def _ends(trials: Sequence[Trial]) -> tuple[float, float]:
    """The rewards that stand for none right, and for all."""
    values = [trial.value for trial in trials]
    low, high = min(values), max(values)
    if low < 0 or high > 1:
        return low, high
    plain = all(abs(trial.value * trial.count - round(trial.value * trial.count)) < 1e-6 for trial in trials)
    return (0.0, 1.0) if plain or high - low < BLENDED else (low, high)


def _between(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _prior(counts: Sequence[tuple[float, float]], strength: float | None) -> Belief:
    """What a task of the type is like before it is met: as those that were, each counting alike, and one half right.

    Alike, for preferred tasks have more trials than others of their type.
    """
    rates = [right / (right + wrong) for right, wrong in counts if right + wrong > 0]
    mean = (sum(rates) + 0.5) / (len(rates) + 1)
    known = _strength(counts) if strength is None else strength
    return Belief(known * mean, known * (1 - mean))


def _strength(counts: Sequence[tuple[float, float]]) -> float:
    """In how many rollouts the type counts: the fewer, the more its tasks differ.

    From the correlation of rollouts of one task, by the method of moments (Kleinman 1973, JASA 68, weights n_i).
    """
    sizes = [right + wrong for right, wrong in counts if right + wrong > 0]
    total, tasks = sum(sizes), len(sizes)
    mean = sum(right for right, _ in counts) / total if total else 0.0
    room = mean * (1 - mean) * (total - sum(n * n for n in sizes) / total - (tasks - 1)) if total else 0.0
    if tasks < TELLING or room <= 0:
        return STRENGTH
    rates = [(right / (right + wrong), right + wrong) for right, wrong in counts if right + wrong > 0]
    spread = sum(n * (rate - mean) ** 2 for rate, n in rates)
    alike = (spread - mean * (1 - mean) * (tasks - 1)) / room
    least, most = STRENGTHS
    return most if alike <= 1 / (most + 1) else max(least, 1 / alike - 1)
