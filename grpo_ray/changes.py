"""What people change in a run's population: events that take effect at the next step's edge, each of them once.

A step that is done again takes in what it took in the first time, and no more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from grpo_ray.canonical import typed
from grpo_ray.evolution.births import remember, unrenderable
from grpo_ray.lineage import text_hash
from grpo_ray.prompting import check_template, fits
from grpo_ray.protocols import Store
from grpo_ray.recipe import RunState
from grpo_ray.types import Member, Population, Task, TaskSet, Template

CHANGE, APPLIED = "change", "changes_applied"
"""Events: a person wants the population changed (a Change without its id, and `at`: when); what came of such wishes at a
step's edge: {"through": the last one's event id, "refused": [[event id, why], …]}."""


@dataclass(frozen=True, slots=True)
class Change:
    """One wish. `id` is its event's, and grows."""

    id: int
    kind: Literal["pin", "unpin", "retire", "import"]
    who: str
    template: str = ""
    """Whom it is about; empty for an import."""
    why: str = ""
    templates: tuple[Template, ...] = ()
    """What comes in with an import, whole."""


Refusal = tuple[int, str]
"""(the change's id, what could not be done and why)"""


def read(events: Sequence[Mapping[str, Any]]) -> list[Change]:
    """The changes among a run's events, in order."""
    return [_read(event) for event in events if event["kind"] == CHANGE]


def _read(event: Mapping[str, Any]) -> Change:
    said = {key: value for key, value in event["detail"].items() if key != "at"}
    return typed(Change, {**said, "id": event["id"]})


# ── at a step's edge ──────────────────────────────────────────────────────────────────────────────────────────────


async def settle(state: RunState, store: Store, tasks: TaskSet) -> RunState:
    """The state with what people wished since the edge before, which the store then knows to be done."""
    events = await store.events()
    if not (due := due_at(state.step, events)):
        return state
    population, refused = applied(state.population, due, (*tasks.train, *tasks.validation))
    await store.save_event(state.step, APPLIED, {"through": due[-1].id, "refused": [list(one) for one in refused]})
    policies = (*state.policies[:-1], replace(state.policies[-1], population=population))
    return replace(state, population=population, policies=policies)


def due_at(step: int, events: Sequence[Mapping[str, Any]]) -> list[Change]:
    """What takes effect at the beginning of a step: all since the edges before; where it did so already, no more than then."""
    done = {event["step"]: event["detail"]["through"] for event in events if event["kind"] == APPLIED}
    after = max((through for edge, through in done.items() if edge < step), default=0)
    return [one for one in read(events) if after < one.id and (step not in done or one.id <= done[step])]


def waiting(events: Sequence[Mapping[str, Any]]) -> list[Change]:
    """What no step has taken in yet."""
    done = max((event["detail"]["through"] for event in events if event["kind"] == APPLIED), default=0)
    return [one for one in read(events) if one.id > done]


# ── what they do ──────────────────────────────────────────────────────────────────────────────────────────────────


def applied(
    population: Population, changes: Sequence[Change], tasks: Sequence[Task] = ()
) -> tuple[Population, list[Refusal]]:
    """The population with the changes, one after the other, and what of them could not be done.

    Where `tasks` are given, no change may leave one of them without a template, nor bring in one that suits none.
    """
    refused: list[Refusal] = []
    for change in changes:
        if change.kind == "import":
            population, said = _with_imported(population, change, tasks)
        elif change.kind == "retire":
            population, said = _without(population, change, tasks)
        else:
            population, said = _pinned(population, change)
        refused += [(change.id, why) for why in said]
    return population, refused


def _pinned(population: Population, change: Change) -> tuple[Population, list[str]]:
    if why := _unknown(population, change.template):
        return population, [why]
    pinned = change.kind == "pin"
    members = (replace(m, pinned=pinned) if m.template.id == change.template else m for m in population.members)
    return replace(population, members=tuple(members)), []


def _without(population: Population, change: Change, tasks: Sequence[Task]) -> tuple[Population, list[str]]:
    """Without a template, pinned or not: whoever retires it has the last word."""
    if why := _unknown(population, change.template) or _needed(population, change.template, tasks):
        return population, [why]
    rest = tuple(member for member in population.members if member.template.id != change.template)
    said = f"retired by {change.who}" + (f": {change.why}" if change.why else "")
    return remember(replace(population, members=rest), change.template, said), []


def _unknown(population: Population, id: str) -> str:
    if any(template.id == id for template in population.templates):
        return ""
    why = next((f": {why}" for gone, why in reversed(population.retired) if gone == id), "")
    return f"{id} does not live any more{why}" if why else f"no template {id} lives"


def _needed(population: Population, id: str, tasks: Sequence[Task]) -> str:
    """Why a living template can't be done without, or ""."""
    one = next(template for template in population.templates if template.id == id)
    others = [template for template in population.templates if template.id != id]
    kinds = {task.task_type for task in tasks} or {template.task_type for template in population.templates}
    served = sorted(kind for kind in kinds if fits(one, kind))
    lonely = [kind for kind in served if not any(fits(other, kind) for other in others)]
    if lonely or not others:
        return f"{id} is the last template for tasks of type {', '.join(lonely) or one.task_type}"
    return ""


def _with_imported(population: Population, change: Change, tasks: Sequence[Task]) -> tuple[Population, list[str]]:
    """With what is new of an import; what says the same as a living template is left out without a word."""
    refused = []
    for template in change.templates:
        same = [other for other in population.templates if text_hash(other) == text_hash(template)]
        if why := "" if same else _strange(template, population, tasks):
            refused.append(f"{template.id} did not come in: {why}")
        elif not same:
            population = _with(population, template)
    return population, refused


def _strange(template: Template, population: Population, tasks: Sequence[Task]) -> str:
    """Why a template may not come in, or ""."""
    if any(other.id == template.id for other in population.templates):
        return "another template of this name lives"
    if problems := check_template(template):
        return "; ".join(problems)
    suited = [task for task in tasks if fits(template, task)]
    if tasks and not suited:
        return f"the run has no tasks of type {template.task_type!r}"
    return next((why for task in suited if (why := unrenderable(template, task))), "")


def _with(population: Population, template: Template) -> Population:
    """A template that was retired before lives again, and its failure is forgotten."""
    retired = tuple((id, why) for id, why in population.retired if id != template.id)
    members = (*population.members, Member(template, born=population.generation))
    return replace(population, members=members, retired=retired)
