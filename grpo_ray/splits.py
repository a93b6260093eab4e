"""Tasks cut three ways, never overlapping: by question, over all sources together, each source in its proportion."""

from collections.abc import Sequence

from pydantic import ValidationError, validate_call

from grpo_ray.canonical import digest
from grpo_ray.errors import ConfigError, GrpoRayError
from grpo_ray.recipe import Named, Recipe, Splits
from grpo_ray.registry import check_settings, find, placed
from grpo_ray.types import Task, TaskSet


def load(recipe: Recipe) -> TaskSet:
    """The recipe's tasks, cut. Raises one ConfigError with every problem of every source."""
    sources: list[tuple[Task, ...]] = []
    problems: list[str] = []
    for place, named in enumerate(recipe.tasks):
        try:
            sources.append(_source(named))
        except GrpoRayError as fault:
            problems += [placed(f"tasks.{place}", line) for line in str(fault).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    return cut(sources, recipe.splits, recipe.seed)


def cut(tasks_by_source: Sequence[Sequence[Task]], splits: Splits, seed: int) -> TaskSet:
    """De-duplicate by question, shuffle by `seed`, and cut: held-out first, then validation, then train.

    Whichever order the sources list their tasks in, the cut is the same; each split holds each source in proportion,
    to within one task. Raises ConfigError where there are too few.
    """
    sources = [_shuffled(source, seed) for source in distinct(tasks_by_source)]
    places = [((i + 0.5) / len(source), s, task) for s, source in enumerate(sources) for i, task in enumerate(source)]
    tasks = tuple(task for _, _, task in sorted(places, key=lambda place: place[:2]))
    train, validation, heldout = sizes(len(tasks), splits)
    return TaskSet(
        heldout=tasks[:heldout],
        validation=tasks[heldout : heldout + validation],
        train=tasks[heldout + validation : heldout + validation + train],
    )


def sizes(total: int, splits: Splits) -> tuple[int, int, int]:
    """How many of `total` tasks go to train, validation and held-out. Raises ConfigError where they don't suffice."""
    tenth = max(1, total // 10)
    validation = tenth if splits.validation is None else splits.validation
    heldout = tenth if splits.heldout is None else splits.heldout
    train = max(1, total - validation - heldout) if splits.train is None else splits.train
    asked = {"train": train, "validation": validation, "heldout": heldout}
    wrong = [f"splits.{name} is {count}; it can't be negative" for name, count in asked.items() if count < 0]
    if wrong:
        raise ConfigError("\n".join(wrong))
    if sum(asked.values()) > total:
        listed = ", ".join(f"{name} {count}" for name, count in asked.items())
        raise ConfigError(
            f"the config's `tasks` hold {total} different question{'s' * (total != 1)}, but the splits take "
            f"{sum(asked.values())} ({listed}); add tasks, or set splits.train, splits.validation and splits.heldout "
            f"so that they come to {total} at most"
        )
    return train, validation, heldout


def distinct(tasks_by_source: Sequence[Sequence[Task]]) -> list[list[Task]]:
    """Each source without questions that it or an earlier source has asked already."""
    seen: set[str] = set()
    kept: list[list[Task]] = []
    for source in tasks_by_source:
        kept.append([])
        for task in source:
            if (question := normalised(task.question)) not in seen:
                seen.add(question)
                kept[-1].append(task)
    return kept


def normalised(question: str) -> str:
    """What makes two questions one: neither case nor blanks tell them apart."""
    return " ".join(question.casefold().split())


def _shuffled(source: Sequence[Task], seed: int) -> list[Task]:
    return sorted(source, key=lambda task: digest(["split", seed, normalised(task.question)]))


def _source(named: Named) -> tuple[Task, ...]:
    """One source's tasks, its settings checked by name and by type, and every verifier that they name found."""
    check_settings("tasks", named.name, "load_tasks", named.settings)
    load_tasks = validate_call(find("tasks", named.name, "load_tasks"))
    try:
        tasks = tuple(load_tasks(**named.settings))
    except ValidationError as fault:
        lines = [f"setting {'.'.join(map(str, e['loc']))!r} of {named.name!r}: {e['msg']}" for e in fault.errors()]
        raise ConfigError("\n".join(lines)) from fault
    for verifier in sorted({task.verifier for task in tasks if task.verifier}):
        find("tasks", verifier, "verify")
    return tasks
