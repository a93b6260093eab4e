"""Samples of openai/evals as tasks: JSON lines with `input` (text or chat) and `ideal` (one right answer or several).

With a registry YAML, the eval's class says how answers are checked: Match (it begins with an ideal), Includes,
FuzzyMatch, JsonMatch; evals graded by a model get no verifier: judge those with `model_graded`.
https://github.com/openai/evals/blob/main/docs/build-eval.md
"""

import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grpo_ray.answers import final_answer, spoken
from grpo_ray.canonical import short
from grpo_ray.errors import ConfigError
from grpo_ray.graders.specs import read_yaml
from grpo_ray.types import ANY, Task

Check = Literal["match", "includes", "fuzzy_match", "json_match"]
CLASSES: dict[str, Check | None] = {
    "Match": "match",
    "Includes": "includes",
    "FuzzyMatch": "fuzzy_match",
    "JsonMatch": "json_match",
    "ModelBasedClassify": None,
}
"""The name of an eval's class → how `verify` checks."""
SHOWN = 20
"""Problems listed before the rest is only counted."""
_GOES_ON = re.compile(r"\w|[.,]\d")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Turn(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: str
    content: str


class Sample(BaseModel):
    """One line; what else stands in it becomes the task's metadata."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)
    input: str | list[Turn] = Field(min_length=1)
    ideal: str | list[str] | None = None


def load_tasks(
    *,
    path: str | None = None,
    registry: str | None = None,
    eval: str = "",
    data: str | None = None,
    check: Check | None = None,
    task_type: str = ANY,
) -> tuple[Task, ...]:
    """The tasks of the samples in `path`, or of the eval `eval` in the registry YAML `registry`.

    A registry's `samples_jsonl` lie under `data` (its own: `data` beside the folder of the YAML). `check` says how
    answers are checked (match where nothing says it). Of a chat the question is every message, each under its role
    where there are several; few-shot samples are not put into it. Raises ConfigError that lists every broken line.
    """
    if (path is None) == (registry is None):
        raise ConfigError("openai_evals needs one of two settings: `path` to samples, or `registry` to an eval's YAML")
    if registry is None:
        assert path is not None
        return _tasks(Path(path).expanduser(), check or "match", False, task_type)
    home = Path(registry).expanduser()
    found = eval_of(read_yaml(registry), eval, str(home))
    kind, args = str(found["class"]).rpartition(":")[2], found["args"]
    if check is None and kind not in CLASSES:
        raise ConfigError(f"{registry}: evals of class {kind} are not known here; say how to check with `check`")
    samples = (Path(data).expanduser() if data else home.parent.parent / "data") / str(args["samples_jsonl"])
    return _tasks(samples, check or CLASSES[kind], bool(args.get("ignore_case")), task_type)


def verify(answer: str, task: Task) -> float:
    """1 where the answer fits one of the ideals by the task's check, else 0. Raises ValueError without an ideal.

    match, stricter than in openai/evals: the text or its final answer begins with the ideal *and a word ends there*
    (12 does not fit 1). fuzzy_match: one holds the other word by word, without case, punctuation and articles.
    """
    if task.answer is None:
        raise ValueError(f"task {task.id} has no reference answer")
    about = task.metadata.get("evals", {})
    ideals = json.loads(task.answer) if about.get("ideals") else [task.answer]
    said, final = spoken(answer).strip(), final_answer(answer)
    match about.get("check", "match"):
        case "match":
            return float(any(_begins(text, ideal.strip()) for ideal in ideals for text in (said, final)))
        case "includes":
            fold = str.casefold if about.get("ignore_case") else str
            return float(any(fold(ideal) in fold(said) for ideal in ideals))
        case "fuzzy_match":
            return float(any(_holds(said, ideal) or _holds(ideal, final) for ideal in ideals))
        case "json_match":
            value = _json(said)
            return float(value is not None and any(value == _json(ideal) for ideal in ideals))
    raise ValueError(f"task {task.id} has an unknown check {about['check']!r}")


def eval_of(registry: Any, name: str, where: str) -> dict[str, Any]:
    """The entry of an eval with its class and args, through the names that stand for it. Raises ConfigError."""
    entries = registry if isinstance(registry, Mapping) else {}
    first = name or next((key for key, entry in entries.items() if "id" in (entry or {})), "")
    seen: list[str] = []
    entry = entries.get(first)
    while isinstance(entry, Mapping) and "class" not in entry and entry.get("id") not in (None, *seen):
        seen.append(str(entry["id"]))
        entry = entries.get(seen[-1])
    if not isinstance(entry, Mapping) or "class" not in entry:
        raise ConfigError(f"{where} has no eval {first!r}; it has {', '.join(map(str, entries)) or 'nothing'}")
    args = entry.get("args") or {}
    if not isinstance(args, Mapping) or "samples_jsonl" not in args:
        raise ConfigError(f"{where}: the eval {first!r} names no samples_jsonl")
    return {"class": entry["class"], "args": dict(args)}


def question_of(said: str | Sequence[Turn]) -> str:
    """A text as it is; of a chat the one message, or all of them, each after its role."""
    if isinstance(said, str):
        return said
    spoken_for = [turn for turn in said if turn.content.strip()]
    if len(spoken_for) == 1:
        return spoken_for[0].content
    if [turn.role for turn in spoken_for] == ["system", "user"]:
        return "\n\n".join(turn.content for turn in spoken_for)
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in spoken_for)


def _tasks(samples: Path, check: Check | None, ignore_case: bool, task_type: str) -> tuple[Task, ...]:
    tasks: list[Task] = []
    problems: list[str] = []
    for number, line in enumerate(_read(samples).split("\n"), 1):
        if not line.strip():
            continue
        try:
            tasks.append(_task(line, check, ignore_case, task_type))
        except (ValueError, RecursionError) as fault:
            problems.append(f"{samples}:{number}: {_brief(fault)}")
    if problems:
        more = [f"… and {len(problems) - SHOWN} more"] if problems[SHOWN:] else []
        raise ConfigError("\n".join(problems[:SHOWN] + more))
    if not tasks:
        raise ConfigError(f'{samples} holds no samples; a line is such as {{"input": "2 + 2?", "ideal": "4"}}')
    return tuple(tasks)


def _task(line: str, check: Check | None, ignore_case: bool, task_type: str) -> Task:
    """Raises ValueError that says what is wrong with the line. The ideals never enter the metadata."""
    sample = Sample.model_validate(json.loads(line, parse_constant=_no_constant))
    asked, rest = question_of(sample.input), dict(sample.model_extra or {})
    if not asked.strip():
        raise ValueError("`input` is empty")
    several = sample.ideal if isinstance(sample.ideal, list) else [] if sample.ideal is None else [sample.ideal]
    ideals = list(dict.fromkeys(several))
    if "" in (ideal.strip() for ideal in ideals):
        raise ValueError("an empty `ideal` would fit every answer")
    about = {"check": check} | ({"ideals": len(ideals)} if ideals[1:] else {})
    about |= {"ignore_case": True} if ignore_case else {}
    return Task(
        id=short("t", "openai_evals", asked, rest),
        question=asked,
        answer=None if not ideals else ideals[0] if not ideals[1:] else json.dumps(ideals, ensure_ascii=False),
        task_type=task_type,
        verifier="openai_evals" if ideals and check else None,
        metadata=rest | {"evals": about},
    )


def _begins(text: str, ideal: str) -> bool:
    goes_on = ideal[-1].isalnum() and _GOES_ON.match(text[len(ideal) :])
    return text.startswith(ideal) and not goes_on


def _holds(text: str, part: str) -> bool:
    whole, piece = (_plain(one) for one in (text, part))
    return bool(piece) and f" {piece} " in f" {whole} "


def _plain(text: str) -> str:
    bare = "".join(c for c in text.casefold() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _json(text: str) -> Any:
    """The value of a JSON text, with or without a Markdown fence; None where it is none."""
    bare = re.sub(r"\A```\w*\n|\n?```\s*\Z", "", text.strip())
    try:
        return json.loads(bare, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as fault:
        raise ConfigError(f"can't read {path}: {fault.strerror}") from fault
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{path} is not UTF-8; save it as UTF-8") from fault


def _brief(fault: Exception) -> str:
    if isinstance(fault, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in fault.errors()[:3])
    return f"not JSON: {fault.msg}" if isinstance(fault, json.JSONDecodeError) else str(fault)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
