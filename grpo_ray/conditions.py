"""What the conditions of a template ask for, and which of them could never hold.

Where a parameter has the choices {"none": "", "all": " Add every step."}, a text sees `reasoning`, the chosen text, and
`settings.reasoning`, its label. A condition on one that names the other would never hold, and nobody would notice.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import nodes

from grpo_ray.registry import hint
from grpo_ray.types import Parameter

SETTINGS = "settings"
"""`settings.NAME` is the label that the parameter NAME is set to; `NAME` is that choice's text."""
_ORDERED = ("lt", "lteq", "gt", "gteq")
_IN = ("in", "notin")
_READS = (nodes.Getattr, nodes.Getitem)
_LISTED = (nodes.Tuple, nodes.List)

Known = Mapping[str, Sequence[str]]
"""Parameter name → its labels, or its texts."""


def settings_read(*trees: nodes.Template) -> set[str]:
    """The parameters whose label a text asks for."""
    found = (_setting(node) for tree in trees for node in tree.find_all(_READS))
    return {name for name in found if name}


def constants(node: nodes.Node) -> list[Any]:
    """The values of a constant, or of a list of nothing but constants; else none."""
    items = node.items if isinstance(node, _LISTED) else [node]
    values = [item.value for item in items if isinstance(item, nodes.Const)]
    return values if len(values) == len(items) else []


def condition_faults(tree: nodes.Template, parameters: Sequence[Parameter]) -> Iterator[str]:
    """Labels and texts that a text asks for and no choice has; settings of parameters that there are not."""
    names = [parameter.name for parameter in parameters]
    for name in sorted(settings_read(tree) - set(names)):
        yield f"{SETTINGS}.{name} is unknown{hint(name, names)}"
    reads = sum(_setting(node) is not None for node in tree.find_all(_READS))
    if reads < sum(node.name == SETTINGS for node in tree.find_all(nodes.Name)):
        yield f"{SETTINGS!r} needs a parameter's name after it: {SETTINGS}.{names[0] if names else 'NAME'}"
    labels = {parameter.name: [choice.label for choice in parameter.choices] for parameter in parameters}
    texts = {parameter.name: [choice.text for choice in parameter.choices] for parameter in parameters}
    faults = (what for node in tree.find_all(nodes.Compare) for what in _compare_faults(node, labels, texts))
    yield from dict.fromkeys(faults)


def _compare_faults(node: nodes.Compare, labels: Known, texts: Known) -> Iterator[str]:
    """Of one `a == b`; chains are left alone, and so is `in` a text, which asks for a part of it."""
    if len(node.ops) != 1:
        return
    left, right, how = node.expr, node.ops[0].expr, node.ops[0].op
    for asked, given in ((left, right), (right, left)):
        listed = isinstance(given, _LISTED)
        if listed != (how in _IN) or (listed and given is left):
            continue
        for value in constants(given):
            yield from _label_faults(_setting(asked), value, how, labels)
            yield from _text_faults(asked.name if isinstance(asked, nodes.Name) else None, value, labels, texts)


def _label_faults(name: str | None, value: Any, how: str, labels: Known) -> Iterator[str]:
    known = labels.get(name or "", [])
    if not known or value in known:
        return
    if how in _ORDERED and not isinstance(value, str):
        yield f"{SETTINGS}.{name} is text; compare numbers as {SETTINGS}.{name} | int"
    elif how not in _ORDERED and not isinstance(value, str) and str(value) in known:
        yield f'{SETTINGS}.{name} is text; compare it with "{value}", in quotes'
    elif how not in _ORDERED:
        yield f"{SETTINGS}.{name} is never {value!r}{hint(str(value), list(known))}"


def _text_faults(name: str | None, value: Any, labels: Known, texts: Known) -> Iterator[str]:
    known = texts.get(name or "", [])
    if not known or value in known:
        return
    asked = f"; compare the label: {SETTINGS}.{name}" if str(value) in labels[name or ""] else ""
    yield f"{name} is the chosen text, and never {value!r}{asked}"


def _setting(node: nodes.Node) -> str | None:
    """NAME, where a node is `settings.NAME` or `settings["NAME"]`."""
    if not isinstance(node, nodes.Getattr | nodes.Getitem) or not isinstance(node.node, nodes.Name):
        return None
    if node.node.name != SETTINGS:
        return None
    if isinstance(node, nodes.Getattr):
        return node.attr
    return str(node.arg.value) if isinstance(node.arg, nodes.Const) else None
