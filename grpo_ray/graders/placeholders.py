"""OpenAI's small mustache: `{{ item.answer }}` and `{{ sample.output_text }}` in graders.

Placeholders are filled in one pass by looking up a path: nothing in them is run, and what fills one is never itself
filled, so that an answer with placeholders in it stays as it is.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from grpo_ray.answers import THOUGHT, spoken
from grpo_ray.canonical import canonical
from grpo_ray.types import Task

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"(item|sample)((?:\.[\w-]+|\[\d+\]|\['[^']*'\]|\[\"[^\"]*\"\])*)")
_KEY = re.compile(r"\.([\w-]+)|\[(\d+)\]|\['([^']*)'\]|\[\"([^\"]*)\"\]")


class Unfilled(LookupError):
    """A placeholder names what this item or this sample doesn't have."""


def check_template(text: str) -> str:
    """`text`, where every placeholder is a path from `item` or `sample`; else ValueError."""
    for inside in _PLACEHOLDER.findall(text):
        if not _PATH.fullmatch(inside.strip()):
            raise ValueError(f"{{{{{inside}}}}} names nothing; write {{{{ item.NAME }}}} or {{{{ sample.NAME }}}}")
    return text


def fill(text: str, scope: Mapping[str, Any], show: Callable[[Any], str] | None = None) -> str:
    """`text` with its placeholders filled from `scope`, in one pass; `show` writes a value. Raises Unfilled."""
    write = show or _written
    return _PLACEHOLDER.sub(lambda found: write(look_up(found[1].strip(), scope)), text)


def look_up(path: str, scope: Mapping[str, Any]) -> Any:
    """What a path such as `item.choices[0].text` leads to; raises Unfilled where it ends before, or at null."""
    found = _PATH.fullmatch(path)
    assert found, f"{path!r} was never checked"
    value: Any = scope[found[1]]
    for name, place, *quoted in _KEY.findall(found[2]):
        if isinstance(value, list) and place and int(place) < len(value):
            value = value[int(place)]
        elif isinstance(value, Mapping) and (key := name or "".join(quoted) or place) in value:
            value = value[key]
        else:
            raise Unfilled(f"there is no {path} here")
    if value is None:
        raise Unfilled(f"{path} is empty here")
    return value


def scope_of(task: Task, text: str) -> dict[str, Any]:
    """What placeholders and python graders see of one answer.

    item: the task's metadata, `question` and `answer`, and, unless the metadata has them, `input`, `ideal`,
    `reference` and `reference_answer` for the same. sample: `output_text` (without a thinking model's thoughts),
    `output_json` (null where it is none), `output_tools` (none) and `choices`.
    """
    said = spoken(text).lstrip() if THOUGHT in text else text
    same = {"input": task.question, **dict.fromkeys(("ideal", "reference", "reference_answer"), task.answer)}
    item = same | dict(task.metadata) | {"question": task.question, "answer": task.answer}
    choice = {"index": 0, "message": {"role": "assistant", "content": said}}
    sample = {"output_text": said, "output_json": _json(said), "output_tools": [], "choices": [choice]}
    return {"item": item, "sample": sample}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
