"""With which templates and settings to begin, by what a few rollouts showed: candidates compared on the same tasks, and
the library that puts the proposed ones first.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from grpo_ray.analysis import Cell, Estimate, Marked, cell, gap, task_marks
from grpo_ray.prompting import fits
from grpo_ray.types import ANY, Template

FINALISTS = 2
"""Templates of a task type, the best as they are, that are tried with other settings."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A seed template with its settings as they are, or others, on one task type."""

    template: str
    """The seed's id."""
    complexity: str
    settings: tuple[tuple[str, str], ...]
    changed: tuple[tuple[str, str], ...]
    """Those of the settings that are not the seed's own."""
    cell: Cell
    behind: Estimate | None
    """Its pass rate less the best candidate's, on the same tasks; None for the best."""
    close: bool
    """Whether it may well be as good as the best: it is, or 0 lies in the interval of the difference."""


@dataclass(frozen=True, slots=True)
class Start:
    """What to begin one task type with: candidates, best first."""

    task_type: str
    candidates: tuple[Candidate, ...]


def finalists(groups: Sequence[Marked], templates: Sequence[Template]) -> list[Template]:
    """The templates of one task type to try with other settings: the best as they are, of those that have some."""
    known = {template.id: template for template in templates}
    ranked = [known[found.template] for found in start("", groups, templates).candidates]
    return [template for template in ranked if has_others(template)][:FINALISTS]


def has_others(template: Template) -> bool:
    """Whether a template can be set otherwise."""
    return any(len(parameter.choices) > 1 for parameter in template.parameters)


def start(kind: str, groups: Sequence[Marked], templates: Sequence[Template]) -> Start:
    """One task type's candidates by pass rate, the shorter prompt first among equals; without a mark, they are left out.

    `templates`: those of the groups: seeds, and children of theirs with other settings.
    """
    known = {template.id: template for template in templates}
    found: dict[str, list[Marked]] = defaultdict(list)
    for group, marks in groups:
        found[group.group.prompt.template_id].append((group, marks))
    marks = {id: task_marks(some) for id, some in found.items()}
    able = sorted((id for id in found if marks[id]), key=lambda id: (-_rate(marks[id]), _length(found[id]), id))
    return Start(kind, tuple(_candidate(known[id], known, found[id], marks, able[0]) for id in able))


def _candidate(
    template: Template,
    known: Mapping[str, Template],
    groups: Sequence[Marked],
    marks: Mapping[str, Mapping[str, Sequence[float]]],
    best: str,
) -> Candidate:
    seed = known[template.parents[0]] if template.parents else template
    behind = None if template.id == best else gap(marks[template.id], marks[best])
    return Candidate(
        template=seed.id,
        complexity=template.complexity,
        settings=template.settings,
        changed=tuple(pair for pair in template.settings if pair not in seed.settings),
        cell=cell(template.id, groups),
        behind=behind,
        close=behind is None or behind.high >= 0,
    )


def _rate(marks: Mapping[str, Sequence[float]]) -> float:
    """Rounded, so that equal rates are equal whatever the order in which they were added up."""
    return round(fmean(fmean(some) for some in marks.values()), 9)


def _length(groups: Sequence[Marked]) -> float:
    """A prompt's mean length in characters: tokens are not always told."""
    return fmean(sum(len(one.content) for one in group.group.prompt.messages) for group, _ in groups)


def library(starts: Sequence[Start], templates: Sequence[Template]) -> tuple[Template, ...]:
    """The seed templates, those proposed first, with the settings that did best as their defaults.

    Each type's best come before the types' others that are close; the rest follow as they are. A template that fits
    several of the types keeps its own settings, and a copy for the one type is put before it.
    """
    kinds = [one.task_type for one in starts]
    proposed = [_written(kind, candidate, templates, kinds) for kind, candidate in _proposals(starts)]
    distinct = {template.id: template for template in reversed([*proposed, *templates])}
    order = dict.fromkeys(template.id for template in (*proposed, *templates))
    return tuple(distinct[id] for id in order)


def _proposals(starts: Sequence[Start]) -> Iterator[tuple[str, Candidate]]:
    """(task type, candidate): the types' best, then their second templates, and so on; each template as it did best."""
    close = {one.task_type: _once([found for found in one.candidates if found.close]) for one in starts}
    for place in range(max(map(len, close.values()), default=0)):
        yield from ((kind, some[place]) for kind, some in close.items() if place < len(some))


def _once(ranked: Sequence[Candidate]) -> list[Candidate]:
    """The first of each template."""
    best: dict[str, Candidate] = {}
    for found in ranked:
        best.setdefault(found.template, found)
    return list(best.values())


def _written(kind: str, found: Candidate, templates: Sequence[Template], kinds: Sequence[str]) -> Template:
    seed = next(template for template in templates if template.id == found.template)
    if not found.changed:
        return seed
    changed = replace(seed, settings=found.settings)
    if sum(fits(seed, other) for other in kinds) <= 1:
        return changed
    taken = {template.id for template in templates}
    return replace(changed, id=_free(f"{seed.id}-{_plainly(kind)}", taken), task_type=kind)


def _plainly(kind: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", kind).strip("-")[:40] or ANY


def _free(id: str, taken: set[str]) -> str:
    return next(name for name in (id, *(f"{id}-{n}" for n in range(2, len(taken) + 3))) if name not in taken)
