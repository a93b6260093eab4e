"""Who came from whom: the lives of a run's templates, their tree as plain data, and what tells two of them apart."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from grpo_ray.canonical import digest
from grpo_ray.recipe import RunState
from grpo_ray.types import Example, Population, Template

Node = dict[str, Any]
Tree = dict[str, list[dict[str, Any]]]
"""{"nodes", "edges"}; JSON can hold it."""
Gain = tuple[float, float]
"""Mean and standard deviation."""
_WORD = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Known:
    """What was known of a living template at the beginning of a step, in the reward's unit."""

    step: int
    fitness: float
    deviation: float | None
    """None where nobody kept it."""
    trials: float


@dataclass(frozen=True, slots=True)
class Life:
    """A template's time in the population."""

    template: str
    made: int
    """The step at whose beginning it first lived; 0 for what a run begins with."""
    retired: int | None = None
    """The step at whose beginning it lived no longer; None: it lives."""
    why: str = ""
    """Why it was retired."""
    course: tuple[Known, ...] = ()
    """By step."""


def text_hash(template: Template) -> str:
    """sha256 of what a template says and to which tasks, whatever it is called and wherever it comes from."""
    said = (template.task_type, template.system, template.text, template.parameters, template.settings)
    return digest([*said, template.examples])


# ── lives ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def named_in(state: RunState) -> list[Template]:
    """Every template a state names, once; what steps still to come explore with included."""
    populations = [policy.population for policy in state.policies] + [state.population]
    found = {template.id: template for population in populations for template in population.templates}
    return list(found.values())


def named(states: Iterable[RunState]) -> dict[str, Template]:
    """Id → every template that the states, given by step, name; in the order they came, and as they first were."""
    found: dict[str, Template] = {}
    for template in (template for state in states for template in named_in(state)):
        found.setdefault(template.id, template)
    return found


def lives(states: Iterable[RunState]) -> list[Life]:
    """The life of every template that the states, given by step, name; in the order they came."""
    found: dict[str, Life] = {}
    for state in states:
        for template in named_in(state):
            found.setdefault(template.id, Life(template.id, state.step))
        found = _grown(found, state)
    return list(found.values())


def _grown(found: Mapping[str, Life], state: RunState) -> dict[str, Life]:
    """The lives one state later: who lives is known a bit better, who lived before is retired now."""
    known = {
        member.template.id: Known(state.step, member.fitness, member.deviation, member.trials)
        for member in state.population.members
    }
    why = dict(state.population.retired)
    grown = {}
    for id, life in found.items():
        if id in known:
            grown[id] = replace(life, retired=None, why="", course=(*life.course, known[id]))
        elif life.retired is None:
            grown[id] = replace(life, retired=state.step, why=why.get(id, ""))
        else:
            grown[id] = life
    return grown


# ── the tree ──────────────────────────────────────────────────────────────────────────────────────────────────────


def tree(
    templates: Sequence[Template],
    lives: Sequence[Life],
    population: Population,
    gains: Mapping[str, Gain] | None = None,
) -> Tree:
    """The templates as nodes, in their order, and an edge for each parent that the run knows.

    A node: id, task_type, complexity, version, mutation, note, parents, settings, stand_in, text_hash; made, retired, why,
    living, pinned; fitness, deviation and trials as last known (None: never), against those it lived beside; gain and
    gain_deviation, against what the run began with; course: [[step, fitness, deviation, trials], …]. An edge: parent, child,
    mutation, first (whether the child is a change of this parent).
    """
    life = {one.template: one for one in lives}
    pinned = {member.template.id for member in population.members if member.pinned}
    known = {template.id for template in templates}
    nodes = [
        {**_node(template, life[template.id]), "pinned": template.id in pinned, **_gained(template, gains or {})}
        for template in templates
    ]
    edges = [
        {"parent": parent, "child": template.id, "mutation": template.mutation, "first": place == 0}
        for template in templates
        for place, parent in enumerate(template.parents)
        if parent in known
    ]
    return {"nodes": nodes, "edges": edges}


def _node(template: Template, life: Life) -> Node:
    names = ("id", "task_type", "complexity", "version", "mutation", "note", "stand_in")
    last = life.course[-1] if life.course else None
    return {name: getattr(template, name) for name in names} | {
        "parents": list(template.parents),
        "settings": dict(template.settings),
        "text_hash": text_hash(template),
        "made": life.made,
        "retired": life.retired,
        "why": life.why,
        "living": life.retired is None,
        "fitness": last.fitness if last else None,
        "deviation": last.deviation if last else None,
        "trials": last.trials if last else None,
        "course": [[one.step, one.fitness, one.deviation, one.trials] for one in life.course],
    }


def _gained(template: Template, gains: Mapping[str, Gain]) -> Node:
    mean, deviation = gains.get(template.id, (None, None))
    return {"gain": mean, "gain_deviation": deviation}


def ancestors(tree: Tree, ids: Iterable[str]) -> set[str]:
    """The ids and all that they came from, as far as the run knows."""
    parents = {node["id"]: node["parents"] for node in tree["nodes"]}
    found: set[str] = set()
    waiting = [id for id in ids if id in parents]
    while waiting:
        id = waiting.pop()
        if id not in found:
            found.add(id)
            waiting += [parent for parent in parents[id] if parent in parents]
    return found


def only(tree: Tree, ids: Collection[str]) -> Tree:
    """The part of a tree that lies between the ids."""
    return {
        "nodes": [node for node in tree["nodes"] if node["id"] in ids],
        "edges": [edge for edge in tree["edges"] if edge["parent"] in ids and edge["child"] in ids],
    }


def family(tree: Tree) -> Tree:
    """The living and all that they came from."""
    return only(tree, ancestors(tree, [node["id"] for node in tree["nodes"] if node["living"]]))


def forest(tree: Tree) -> list[tuple[int, Node]]:
    """(depth, node): each node after its first known parent, siblings in their order; depth 0 has no parent here."""
    nodes = {node["id"]: node for node in tree["nodes"]}
    children: dict[str | None, list[str]] = {}
    for id, node in nodes.items():
        first = next((parent for parent in node["parents"] if parent in nodes), None)
        children.setdefault(first, []).append(id)
    found: dict[str, int] = {}
    # Every node is a start too, the last to be looked at: none is lost, though a fork's rows may make a ring of parents.
    waiting = [(0, id) for id in reversed((*children.get(None, ()), *nodes))]
    while waiting:
        depth, id = waiting.pop()
        if id not in found:
            found[id] = depth
            waiting += [(depth + 1, child) for child in reversed(children.get(id, ()))]
    return [(depth, nodes[id]) for id, depth in found.items()]


def ranked(nodes: Iterable[Node]) -> list[Node]:
    """The living first, the fittest of them first; then the retired, the last retired first."""
    return sorted(nodes, key=lambda node: (not node["living"], -(node["retired"] or 0), -_fit(node), node["id"]))


def _fit(node: Node) -> float:
    return float("-inf") if node["fitness"] is None else node["fitness"]


# ── two templates ─────────────────────────────────────────────────────────────────────────────────────────────────

Piece = list[str]
"""["same" | "gone" | "new", text]"""


def diff(a: Template, b: Template) -> dict[str, Any]:
    """What changes from `a` to `b`, plain; what is the same in both is left out.

    text, system: pieces, word by word; settings: [{name, from, to}], None where there is no such parameter; choices: [{name,
    label, from, to}], their texts; examples: {gone, new, order: whether those of both stand in another order}; facts: {key:
    [a's, b's]}.
    """
    found: dict[str, Any] = {"from": a.id, "to": b.id, "same": text_hash(a) == text_hash(b)}
    for key, old, new in (("system", a.system, b.system), ("text", a.text, b.text)):
        if old != new:
            found[key] = words(old or "", new or "")
    if settings := _changed(dict(a.settings), dict(b.settings)):
        found["settings"] = [{"name": name, "from": old, "to": new} for name, old, new in settings]
    if choices := _changed(_choices(a), _choices(b)):
        found["choices"] = [{"name": key[0], "label": key[1], "from": old, "to": new} for key, old, new in choices]
    if a.examples != b.examples:
        found["examples"] = {
            "gone": _without(a.examples, b.examples),
            "new": _without(b.examples, a.examples),
            "order": [one for one in a.examples if one in b.examples]
            != [one for one in b.examples if one in a.examples],
        }
    keys = ("task_type", "complexity", "version", "mutation", "parents", "note", "stand_in")
    facts = {key: [_plain(getattr(a, key)), _plain(getattr(b, key))] for key in keys}
    found["facts"] = {key: pair for key, pair in facts.items() if pair[0] != pair[1]}
    return found


def words(old: str, new: str) -> list[Piece]:
    """The way from one text to another, word by word; all but the new pieces make the old text, all but the gone the new."""
    a, b = _WORD.findall(old), _WORD.findall(new)
    found: list[Piece] = []
    for _, i, to_i, j, to_j in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if a[i:to_i] == b[j:to_j]:
            found.append(["same", "".join(a[i:to_i])])
            continue
        found += [["gone", "".join(a[i:to_i])]] if to_i > i else []
        found += [["new", "".join(b[j:to_j])]] if to_j > j else []
    return found


def _changed(old: Mapping[Any, str], new: Mapping[Any, str]) -> list[tuple[Any, str | None, str | None]]:
    """(key, old value, new value) where they differ, the old one's keys first."""
    keys = dict.fromkeys((*old, *new))
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _choices(template: Template) -> dict[tuple[str, str], str]:
    return {(p.name, choice.label): choice.text for p in template.parameters for choice in p.choices}


def _without(some: Sequence[Example], others: Sequence[Example]) -> list[dict[str, str]]:
    return [{"question": one.question, "response": one.response} for one in some if one not in others]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
