"""The types of parameters in a prompts.json: ways to write choices, to read them and to write them again."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_ray.json_fields import Problem, kind_name, of_kind, record, twice, whole
from grpo_ray.registry import hint
from grpo_ray.types import Choice, Parameter

MOST_VALUES = 50
"""Choices that a range of integers may have."""
KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "choice": (("choices",), ()),
    "texts": (("texts",), ()),
    "integer": (("minimum", "maximum"), ("step", "text")),
}
"""Type of a parameter → the keys it needs, and those it may have besides `type` and `default`."""


def read_parameter(
    where: str, name: str, raw: Any, settings: list[tuple[str, str]], problems: list[Problem]
) -> Parameter:
    """A parameter of any type; its default joins `settings`, what is wrong `problems`."""
    before = len(problems)
    kind, entry = _typed(where, raw, problems)
    choices = {"choice": _choices, "texts": _texts, "integer": _range}[kind](where, entry, problems)
    default = entry.get("default", choices[0].label if choices else "")
    if not _is_scalar(default):
        problems.append((f"{where}.default", "is no label of a choice"))
    if kind != "choice" and not choices and len(problems) > before:
        choices = (Choice(_label(default), ""),)  # one slip is one problem
    settings.append((name, _label(default)))
    return Parameter(name, choices)


def where_written(path: str, raw: Any) -> str:
    """Where a file says what was found at `path`, among the choices that a parameter became."""
    kind = raw.get("type") if isinstance(raw, dict) else None
    label = re.fullmatch(r"choices(?:\.(.*))?", path, re.DOTALL)
    if label is None or kind not in ("integer", "texts"):
        return path
    if kind == "integer":
        return "maximum" if label[1] is None else "text"
    return "texts" if label[1] is None else f"texts[{label[1]}]"


def dump_parameter(parameter: Parameter, default: str) -> dict[str, Any]:
    """The shortest type that says just these choices."""
    labels = [choice.label for choice in parameter.choices]
    if found := _range_of(parameter.choices):
        return {"type": "integer", **found, "default": int(default) if default in labels else default}
    if all(choice.label == choice.text for choice in parameter.choices):
        return {"choices": labels, "default": default}
    if labels == [str(index) for index in range(len(labels))]:
        texts = [choice.text for choice in parameter.choices]
        return {"type": "texts", "texts": texts, "default": int(default) if default in labels else default}
    return {"choices": {choice.label: choice.text for choice in parameter.choices}, "default": default}


def _typed(where: str, raw: Any, problems: list[Problem]) -> tuple[str, dict[str, Any]]:
    """A parameter's type and keys. Without `type` it is a choice."""
    given = raw.get("type", "choice") if isinstance(raw, dict) else "choice"
    meant = [kind for kind, (needed, _) in KINDS.items() if isinstance(raw, dict) and any(key in raw for key in needed)]
    kind = given if isinstance(given, str) and given in KINDS else next(iter(meant), "choice")
    if given != kind:
        problems.append((f"{where}.type", f"{given!r} is unknown{hint(str(given), list(KINDS))}"))
    elif isinstance(raw, dict) and "type" not in raw and meant and kind not in meant:
        kind = meant[0]
        problems.append((f"{where}.type", f'is missing; with {KINDS[kind][0][0]!r} it is "{kind}"'))
    needed, optional = KINDS[kind]
    return kind, record(where, raw, needed, (*optional, "type", "default"), problems)


def _choices(where: str, entry: Mapping[str, Any], problems: list[Problem]) -> tuple[Choice, ...]:
    """A mapping of labels to texts, or a list of scalars that are both."""
    where, raw = f"{where}.choices", entry.get("choices", [])
    if not isinstance(raw, dict | list):
        problems.append((where, f"expected a list, or an object of labels and texts, got {kind_name(raw)}"))
        return ()
    if isinstance(raw, list):
        wrong = [index for index, item in enumerate(raw) if not _is_scalar(item)]
        problems += [
            (f"{where}[{index}]", f"expected text or a number, got {kind_name(raw[index])}") for index in wrong
        ]
        return tuple(Choice(_label(item), _label(item)) for item in raw if _is_scalar(item))
    problems += twice(where, raw)
    return tuple(Choice(label, of_kind(str, f"{where}.{label}", text, problems)) for label, text in raw.items())


def _texts(where: str, entry: Mapping[str, Any], problems: list[Problem]) -> tuple[Choice, ...]:
    """A list of texts; their labels are their places, from "0"."""
    raw = of_kind(list, f"{where}.texts", entry.get("texts", []), problems)
    if raw == [] and isinstance(entry.get("texts"), list):
        problems.append((f"{where}.texts", "is empty; a parameter needs at least one text"))
    return tuple(Choice(str(i), of_kind(str, f"{where}.texts[{i}]", text, problems)) for i, text in enumerate(raw))


def _range(where: str, entry: Mapping[str, Any], problems: list[Problem]) -> tuple[Choice, ...]:
    """The integers from minimum to maximum; each one's text is `text` with the number for every {}."""
    first = whole(f"{where}.minimum", entry.get("minimum", 0), problems)
    last = whole(f"{where}.maximum", entry.get("maximum", 0), problems)
    step = whole(f"{where}.step", entry.get("step", 1), problems, least=1)
    text = of_kind(str, f"{where}.text", entry.get("text", "{}"), problems)
    if not _is_pattern(text):
        problems.append((f"{where}.text", 'has no {} to put the number in; "" shows nothing, for conditions alone'))
    if first is None or last is None or step is None or "minimum" not in entry or "maximum" not in entry:
        return ()
    count = (last - first) // step + 1
    if last < first:
        problems.append((f"{where}.maximum", f"{last} is less than the minimum, {first}"))
    elif count > MOST_VALUES:
        problems.append((f"{where}.maximum", f"makes {count} values, and {MOST_VALUES} is the most; raise the step"))
    return _counted(range(first, last + 1, step), text) if 0 < count <= MOST_VALUES else ()


def _is_pattern(text: str) -> bool:
    return "{}" in text or not text


def _counted(numbers: Sequence[int], text: str) -> tuple[Choice, ...]:
    return tuple(Choice(str(number), text.replace("{}", str(number))) for number in numbers)


def _range_of(choices: Sequence[Choice]) -> dict[str, Any] | None:
    """The range of integers that would become just these choices; three of them at least."""
    labels = [choice.label for choice in choices]
    if not 3 <= len(labels) <= MOST_VALUES or not all(re.fullmatch(r"-?[0-9]{1,9}", label) for label in labels):
        return None
    first, second, last = int(labels[0]), int(labels[1]), int(labels[-1])
    if second <= first:
        return None
    numbers = range(first, last + 1, second - first)
    if len(numbers) != len(labels):
        return None
    patterns = (choice.text.replace(choice.label, "{}") for choice in choices)
    text = next((one for one in patterns if _counted(numbers, one) == tuple(choices) and _is_pattern(one)), None)
    if text is None:
        return None
    step = {"step": second - first} if second - first != 1 else {}
    return {"minimum": first, "maximum": last, **step, **({"text": text} if text != "{}" else {})}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _label(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
