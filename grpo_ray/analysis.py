"""What a model can do with tasks before anything is learnt, from scored groups: how often it passes, how far tasks lie
apart, how it fails, what judges say; by task type, by the templates' complexity, and by the tasks' difficulty.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from grpo_ray.answers import marked_answer
from grpo_ray.curriculum import Belief, beliefs, weights
from grpo_ray.failures import Failure, failures
from grpo_ray.reports import VERIFIED
from grpo_ray.trials import Trial
from grpo_ray.trust.calibration import student_quantile
from grpo_ray.types import Evaluation, ScoredGroup, ScoredRollout, Task, Template

PASSED = 0.5
"""A mark from which an answer has passed; verifiers give 0 or 1."""
DIFFICULTY = ("difficulty", "level", "complexity", "grade", "dataset")
"""Keys of a task's metadata that tell how hard it is; the first that tells a type's tasks apart counts."""
LEVELS = 5
"""More different numbers than these are cut into thirds."""
EXAMPLES = 2
"""Rationales shown of each dimension, of the lowest marks; none of full marks."""
EXCERPT = 200
LEARNABLE = 0.5
"""The chance of a mixed group from which a task is learnable."""

Marked = tuple[ScoredGroup, tuple[float | None, ...]]
"""A group and the mark of each of its rollouts, 0 to 1; None: nobody could say."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cell:
    """Some rollouts together. Shares lie in 0 … 1; means are over what is there, None where nothing is."""

    name: str
    pass_rate: Estimate | None
    """Over tasks, each counting alike."""
    tasks: int
    rollouts: int
    unmarked: int
    """Rollouts that nobody could mark."""
    mixed: float | None
    """Share of tasks with 0 < pass rate < 1; `all_right` and `all_wrong` are the others."""
    all_right: float | None
    all_wrong: float | None
    teaching: float | None
    """Share of groups whose marks are not all alike."""
    tokens: float | None
    """A completion's mean length."""
    prompt_tokens: float | None
    cut_off: float
    """Share of rollouts that reached max_tokens."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """What one judge said on one dimension, with rationales of its lowest marks (or reasons, where it gave none)."""

    judge: str
    dimension: str
    mean: float | None
    scored: int
    missing: int
    stand_in: bool
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TypeReport:
    """All that was measured of one task type."""

    task_type: str
    marked_by: str
    """verifier, reward, or both: what marks are made of."""
    overall: Cell
    complexities: tuple[Cell, ...]
    difficulty: str
    """The key of the tasks' metadata that tells them apart, or ""."""
    difficulties: tuple[Cell, ...]
    failures: tuple[Failure, ...]
    dimensions: tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """A task in the curriculum."""

    task: str
    task_type: str
    pass_rate: float
    deviation: float
    weight: float


def analyse(groups: Sequence[ScoredGroup], templates: Sequence[Template], tasks: Sequence[Task]) -> list[TypeReport]:
    """One report a task type, by name. `templates` are those of the groups, `tasks` all that could have been met."""
    known = {template.id: template for template in templates}
    return [_report(kind, some, known, tasks) for kind, some in sorted(by_type(groups).items())]


def by_type(groups: Sequence[ScoredGroup]) -> dict[str, list[Marked]]:
    """Task type → its groups with their marks."""
    found: dict[str, list[ScoredGroup]] = defaultdict(list)
    for group in groups:
        found[_task(group).task_type].append(group)
    return {kind: marked(some) for kind, some in found.items()}


def marked(groups: Sequence[ScoredGroup]) -> list[Marked]:
    """One task type's groups with marks: what verifiers say, or, where none said anything of a group, the rewards.

    Rewards that leave 0 … 1 are stretched to it, from their least to their greatest.
    """
    checked = [_verdicts(group) for group in groups]
    rewards = [
        one.reward.value
        for group, verdicts in zip(groups, checked, strict=True)
        if not _any(verdicts)
        for one in group.rollouts
    ]
    known = [value for value in rewards if value is not None]
    low, high = (min(known), max(known)) if known and not 0 <= min(known) <= max(known) <= 1 else (0.0, 1.0)
    return [
        (
            group,
            verdicts if _any(verdicts) else tuple(_stretched(one.reward.value, low, high) for one in group.rollouts),
        )
        for group, verdicts in zip(groups, checked, strict=True)
    ]


def trials(groups: Iterable[Marked], step: int = 0) -> list[Trial]:
    """What the groups say of their tasks' pass rates; groups without a mark say nothing."""
    found = []
    for group, marks in groups:
        known, task = [mark for mark in marks if mark is not None], _task(group)
        if known:
            template = group.group.prompt.template_id
            found.append(Trial(template, task.id, task.task_type, step, fmean(known), len(known)))
    return found


def curriculum(found: Sequence[Trial], tasks: Sequence[Task], group_size: int) -> dict[str, Any]:
    """The tasks in buckets, those measured by pass rate from high to low, and every task's weight for sampling.

    `solved` and `too_hard` are those whose groups of `group_size` would come out alike more often than not.
    `unmeasured`: task type → how many tasks have no trial, and their weight.
    """
    known, weighed = beliefs(found, tasks), weights(found, tasks, group_size)
    met = {trial.task for trial in found}
    buckets: dict[str, list[Placed]] = {"solved": [], "learnable": [], "too_hard": []}
    for task in (task for task in tasks if task.id in met):
        belief = known[task.id]
        placed = Placed(task.id, task.task_type, belief.mean, belief.deviation, weighed[task.id])
        buckets[_bucket(belief, group_size)].append(placed)
    for bucket in buckets.values():
        bucket.sort(key=lambda one: (-one.pass_rate, one.task))
    unmeasured = [task for task in tasks if task.id not in met]
    kinds = sorted({task.task_type for task in unmeasured})
    left = {kind: [weighed[task.id] for task in unmeasured if task.task_type == kind] for kind in kinds}
    rest = {kind: {"tasks": len(some), "weight": some[0]} for kind, some in left.items()}
    return {"group_size": group_size, **buckets, "unmeasured": rest, "weights": weighed}


def _bucket(belief: Belief, group_size: int) -> str:
    if belief.mixed(group_size) >= LEARNABLE:
        return "learnable"
    return "solved" if belief.mean > PASSED else "too_hard"


# ── marks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _task(group: ScoredGroup) -> Task:
    return group.group.prompt.task


def _verdicts(group: ScoredGroup) -> tuple[float | None, ...]:
    return tuple(_verdict(one.evaluations) for one in group.rollouts)


def _verdict(evaluations: Sequence[Evaluation]) -> float | None:
    said = [e.score for e in evaluations if e.dimension == VERIFIED and not e.model and not e.audit]
    known = [score for score in said if score is not None]
    return fmean(known) if known else None


def _any(marks: Sequence[float | None]) -> bool:
    return any(mark is not None for mark in marks)


def _stretched(value: float | None, low: float, high: float) -> float | None:
    if value is None:
        return None
    return (value - low) / (high - low) if high > low else 0.5


# ── one task type ─────────────────────────────────────────────────────────────────────────────────────────────────


def _report(
    kind: str, groups: Sequence[Marked], templates: Mapping[str, Template], tasks: Sequence[Task]
) -> TypeReport:
    def complexity(group: ScoredGroup) -> str:
        return templates[group.group.prompt.template_id].complexity

    key, level = levels([task for task in tasks if task.task_type == kind])
    checked = [_any(_verdicts(group)) for group, _ in groups]
    return TypeReport(
        task_type=kind,
        marked_by="verifier" if all(checked) else "verifier, or else reward" if any(checked) else "reward",
        overall=cell(kind, groups),
        complexities=_cells(groups, complexity),
        difficulty=key,
        difficulties=_cells(groups, lambda group: level.get(_task(group).id, "?")) if key else (),
        failures=tuple(_failures(groups)),
        dimensions=tuple(dimensions(groups)),
    )


def _cells(groups: Sequence[Marked], name: Callable[[ScoredGroup], str]) -> tuple[Cell, ...]:
    found: dict[str, list[Marked]] = defaultdict(list)
    for group, marks in groups:
        found[name(group)].append((group, marks))
    return tuple(cell(key, some) for key, some in sorted(found.items()))


def cell(name: str, groups: Sequence[Marked]) -> Cell:
    """What the groups come to."""
    rollouts = [one for group, _ in groups for one in group.rollouts]
    by_task = task_marks(groups)
    spread = [(min(some), max(some)) for some in by_task.values()]
    lengths = [len(one.rollout.token_ids) for one in rollouts if one.rollout.token_ids]
    read = [len(group.group.prompt_token_ids) for group, _ in groups if group.group.prompt_token_ids]
    known = [{mark for mark in marks if mark is not None} for _, marks in groups]
    return Cell(
        name=name,
        pass_rate=share(by_task),
        tasks=len({_task(group).id for group, _ in groups}),
        rollouts=len(rollouts),
        unmarked=sum(mark is None for _, marks in groups for mark in marks),
        mixed=_mean([not (low >= 1 or high <= 0) for low, high in spread]),
        all_right=_mean([low >= 1 for low, _ in spread]),
        all_wrong=_mean([high <= 0 for _, high in spread]),
        teaching=_mean([len(marks) > 1 for marks in known if marks]),
        tokens=_mean(lengths),
        prompt_tokens=_mean(read),
        cut_off=_mean([one.rollout.finish_reason == "length" for one in rollouts]) or 0.0,
    )


def task_marks(groups: Sequence[Marked]) -> dict[str, list[float]]:
    """Task → the marks of all its rollouts; tasks without any are left out."""
    found: dict[str, list[float]] = defaultdict(list)
    for group, marks in groups:
        if known := [mark for mark in marks if mark is not None]:
            found[_task(group).id] += known
    return dict(found)


def share(by_task: Mapping[str, Sequence[float]]) -> Estimate | None:
    """The mean over tasks of their mean marks; None without any, and from one task without an interval.

    Wilson's interval with the sample size that would vary as the tasks' means do (Korn & Graubard 1998), at least the
    tasks' number and at most the rollouts', and with Student's quantile, for the tasks are few.
    """
    means = [fmean(marks) for marks in by_task.values()]
    if not means:
        return None
    value, tasks, rollouts = fmean(means), len(means), sum(map(len, by_task.values()))
    if tasks == 1:
        return Estimate(value, 0.0, 1.0)
    variance = stdev(means) ** 2 / tasks
    size = min(max(value * (1 - value) / variance, tasks), rollouts) if variance else tasks
    z = student_quantile(0.975, tasks - 1)
    centre, reach = value + z * z / (2 * size), z * sqrt(value * (1 - value) / size + (z / (2 * size)) ** 2)
    low, high = ((centre + side * reach) / (1 + z * z / size) for side in (-1, 1))
    return Estimate(value, max(0.0, low), min(1.0, high))


def gap(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> Estimate | None:
    """The mean difference of two lots of marks over the tasks both have, with Student's interval; None without one."""
    gaps = [fmean(marks) - fmean(theirs[task]) for task, marks in ours.items() if task in theirs]
    if not gaps:
        return None
    if len(gaps) == 1:
        return Estimate(gaps[0], -1.0, 1.0)
    reach = student_quantile(0.975, len(gaps) - 1) * stdev(gaps) / sqrt(len(gaps))
    return Estimate(fmean(gaps), max(-1.0, fmean(gaps) - reach), min(1.0, fmean(gaps) + reach))


def _failures(groups: Sequence[Marked]) -> list[Failure]:
    pairs = [
        (_task(group), one, mark)
        for group, marks in groups
        for one, mark in zip(group.rollouts, marks, strict=True)
        if mark is not None
    ]
    failed = [(task, one) for task, one, mark in pairs if mark < PASSED]
    marks = any(_says(one) for _, one, _ in pairs) or len(failed) == len(pairs)
    return failures(failed, len(pairs), marks=marks)


def _says(one: ScoredRollout) -> bool:
    return bool(marked_answer(one.rollout.text))


def dimensions(groups: Sequence[Marked]) -> list[Dimension]:
    """What each judge said on each dimension, in the recipe's order of judges."""
    found: dict[tuple[str, str], list[Evaluation]] = defaultdict(list)
    for evaluation in (e for group, _ in groups for one in group.rollouts for e in one.evaluations if not e.audit):
        found[evaluation.judge, evaluation.dimension].append(evaluation)
    return [_dimension(judge, name, some) for (judge, name), some in found.items()]


def _dimension(judge: str, name: str, said: Sequence[Evaluation]) -> Dimension:
    scored = sorted((e for e in said if e.score is not None), key=lambda e: e.score or 0.0)
    low = [e.rationale[:EXCERPT] for e in (scored or said) if e.rationale and (e.score is None or e.score < 1)]
    examples = tuple(dict.fromkeys(low))[:EXAMPLES]
    mean = _mean([e.score for e in scored if e.score is not None])
    return Dimension(judge, name, mean, len(scored), len(said) - len(scored), any(e.stand_in for e in said), examples)


# ── how hard tasks say that they are ──────────────────────────────────────────────────────────────────────────────


def levels(tasks: Sequence[Task]) -> tuple[str, dict[str, str]]:
    """The key of one type's metadata that tells its tasks apart, and task → its level there; ("", {}) without one."""
    for key in DIFFICULTY:
        said = {task.id: task.metadata[key] for task in tasks if _is_level(task.metadata.get(key))}
        if len(set(said.values())) > 1:
            return key, _named(said)
    return "", {}


def _is_level(value: Any) -> bool:
    return isinstance(value, str | int | float) and value != ""


def _named(said: Mapping[str, Any]) -> dict[str, str]:
    """Each level in words; many numbers as thirds of the tasks."""
    values = sorted(value for value in said.values() if isinstance(value, int | float))
    if len(values) < len(said) or len(set(values)) <= LEVELS:
        return {task: str(value) for task, value in said.items()}
    first, second = values[len(values) // 3], values[2 * len(values) // 3]
    names = (f"1: below {first:g}", f"2: {first:g} to below {second:g}", f"3: from {second:g}")
    return {task: names[(value >= first) + (value >= second)] for task, value in said.items()}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
