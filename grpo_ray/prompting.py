"""prompts.json to templates, and a template with its settings over a task to a prompt.

Templates may be written by models, so they are data too: Jinja2 in a sandbox, cut down to placeholders, conditions and
a few filters. No loops, calls or arithmetic, so a template can neither run for long nor grow beyond its own size.
A question or its metadata only ever fills a placeholder; it is never read as a template.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2 import Template as Compiled
from jinja2.sandbox import SandboxedEnvironment

from grpo_ray.canonical import digest, short
from grpo_ray.errors import ConfigError
from grpo_ray.registry import hint
from grpo_ray.types import ANY, Choice, Example, Message, Parameter, Prompt, Task, Template

COMPLEXITIES = ("recall", "single-step", "multi-step")
RESERVED = ("question", "examples", "metadata")
"""Placeholders that every template may use; a parameter can't have these names."""
FEW_SHOT = "few_shot"
"""The parameter that says how many worked examples `examples` shows; its labels are whole numbers."""
FILTERS = ("capitalize", "default", "first", "int", "join", "last", "length", "lower", "round", "string", "title", "trim", "upper")  # fmt: skip
MAX_CHARACTERS = 20_000
TOO_DEEP = "placeholders are nested too deep"
MAX_DEPTH = 40
_WORDS = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem)
_LOGIC = (nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test)
_OTHER = (nodes.Filter, nodes.Keyword, nodes.Concat)
_ALLOWED = (*_WORDS, *_LOGIC, *_OTHER)

T = TypeVar("T")
Problem = tuple[str, str]
"""(path inside the template or the library, what is wrong there)"""


class _DataOnly(SandboxedEnvironment):
    """A sandbox in which a dot reads a key of a mapping and never a Python attribute."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        try:
            return obj[argument]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=argument)


def _environment() -> SandboxedEnvironment:
    made = _DataOnly(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, cache_size=0)
    made.globals.clear()
    return made


_ENVIRONMENT = _environment()


# ── templates to prompts ──────────────────────────────────────────────────────────────────────────────────────────


def render(template: Template, task: Task, purpose: str | int) -> Prompt:
    """The prompt of one template over one task; `purpose` (a step's number, or "exam") is part of its id.

    Raises ConfigError when the template needs metadata that the task lacks.
    """
    values = _values(template, task)
    try:
        user = Message("user", _compiled(template.text).render(values))
        system = Message("system", _compiled(template.system).render(values)) if template.system else None
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigError(f"template {template.id!r} can't be rendered over task {task.id!r}: {error}") from error
    messages = (system, user) if system else (user,)
    return Prompt(short("p", template.id, task.id, purpose), template.id, task, messages)


def examples_block(template: Template) -> str:
    """The template's first `few_shot` worked examples (all of them where it has no such parameter)."""
    settings = dict(template.settings)
    count = int(settings[FEW_SHOT]) if FEW_SHOT in settings else len(template.examples)
    return "".join(f"Question: {e.question}\nResponse: {e.response}\n\n" for e in template.examples[:count])


def content_hash(template: Template) -> str:
    """Six hex digits of what a template says and to which tasks, whatever it is called and wherever it comes from."""
    said = (template.task_type, template.system, template.text, template.parameters, template.settings)
    return digest([*said, template.examples])[:6]


def uses_metadata(template: Template) -> bool:
    return "metadata" in placeholders(template.text) | placeholders(template.system or "")


def placeholders(text: str) -> set[str]:
    """The names a Jinja2 text looks up. Raises jinja2.TemplateSyntaxError."""
    try:
        return meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    except RecursionError as error:
        raise TemplateSyntaxError(TOO_DEEP, 1) from error


def _values(template: Template, task: Task) -> dict[str, Any]:
    chosen = dict(template.settings)
    texts = {p.name: next(c.text for c in p.choices if c.label == chosen[p.name]) for p in template.parameters}
    data = {"question": task.question, "examples": examples_block(template), "metadata": dict(task.metadata)}
    return texts | data


@lru_cache(maxsize=1024)
def _compiled(text: str) -> Compiled:
    return _ENVIRONMENT.from_string(text)


# ── what can be wrong with one template ───────────────────────────────────────────────────────────────────────────


def check_template(template: Template) -> list[str]:
    """Every problem of one template, each with its path inside it; none: it renders over any task it fits."""
    return [f"{where}: {what}" for where, what in _faults(template)]


def _faults(template: Template) -> list[Problem]:
    syntax = [*_syntax_faults("text", template.text), *_syntax_faults("system", template.system or "")]
    found = [*_identity_faults(template), *syntax, *_parameter_faults(template)]
    unread = ("text", TOO_DEEP) in syntax or ("system", TOO_DEEP) in syntax  # Jinja2 takes the cube of the depth
    if unread or not template.text.strip() or not (_parses(template.text) and _parses(template.system or "")):
        return found
    return [*found, *_placeholder_faults(template)]


def _parses(text: str) -> bool:
    try:
        return len(text) <= MAX_CHARACTERS and placeholders(text) is not None
    except TemplateSyntaxError:
        return False


def _identity_faults(template: Template) -> Iterator[Problem]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.~-]{0,99}", template.id):
        yield "id", f"{template.id!r} is no id; use letters, digits, '-', '_' and '.', at most 100"
    if not template.text.strip():
        yield "text", "is empty"
    if not template.task_type.strip():
        yield "task_type", f"is empty; {ANY!r} fits every task"
    if template.complexity not in COMPLEXITIES:
        yield "complexity", f"{template.complexity!r} is unknown{hint(template.complexity, list(COMPLEXITIES))}"


def _syntax_faults(where: str, text: str) -> Iterator[Problem]:
    if len(text) > MAX_CHARACTERS:
        yield where, f"has {len(text)} characters; {MAX_CHARACTERS} is the most"
        return
    try:
        tree = _ENVIRONMENT.parse(text)
    except TemplateSyntaxError as error:
        yield where, f"broken Jinja2 in line {error.lineno}: {error.message}"
        return
    except RecursionError:
        yield where, TOO_DEEP
        return
    yield from ((where, what) for what in dict.fromkeys(_forbidden(tree, 0)))


def _forbidden(node: nodes.Node, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        yield TOO_DEEP
        return
    if not isinstance(node, _ALLOWED):
        kind = type(node).__name__.lower()
        yield f"{kind!r} in line {node.lineno} is not allowed; placeholders, conditions and plain filters are"
    if isinstance(node, nodes.Filter) and node.name not in FILTERS:
        yield f"the filter {node.name!r} in line {node.lineno} is not allowed{hint(node.name, list(FILTERS))}"
    if isinstance(node, nodes.Test) and node.name not in _ENVIRONMENT.tests:
        yield f"the test {node.name!r} in line {node.lineno} is unknown"
    for child in node.iter_child_nodes():
        yield from _forbidden(child, depth + 1)


def _parameter_faults(template: Template) -> Iterator[Problem]:
    chosen = dict(template.settings)
    for parameter in template.parameters:
        where = f"parameters.{parameter.name}"
        labels = [choice.label for choice in parameter.choices]
        if not parameter.name.isidentifier() or parameter.name in RESERVED:
            yield where, f"{parameter.name!r} can't be a parameter's name"
        if not labels:
            yield f"{where}.choices", "a parameter needs at least one choice"
            continue
        if chosen.get(parameter.name) not in labels:
            yield (
                f"{where}.default",
                f"{chosen.get(parameter.name)!r} is no choice{hint(str(chosen.get(parameter.name)), labels)}",
            )
        yield from ((f"{where}.choices", f"{label!r} is repeated") for label in _repeated(labels))
        yield from _choice_faults(where, parameter)
    if FEW_SHOT in [parameter.name for parameter in template.parameters]:
        yield from _few_shot_faults(template)


def _choice_faults(where: str, parameter: Parameter) -> Iterator[Problem]:
    for choice in parameter.choices:
        if "{{" in choice.text or "{%" in choice.text:
            yield f"{where}.choices.{choice.label}", "a placeholder is not filled in here; put it into the text"


def _few_shot_faults(template: Template) -> Iterator[Problem]:
    labels = [c.label for p in template.parameters if p.name == FEW_SHOT for c in p.choices]
    where, count = f"parameters.{FEW_SHOT}.choices", len(template.examples)
    for label in labels:
        if not re.fullmatch(r"[0-9]{1,6}", label):
            yield where, f"{label!r} is no whole number"
        elif int(label) > count:
            yield where, f"{label} is more than the {count} examples of the template"


def _placeholder_faults(template: Template) -> Iterator[Problem]:
    used = {"text": placeholders(template.text), "system": placeholders(template.system or "")}
    names = [parameter.name for parameter in template.parameters]
    known = [*names, *RESERVED]
    for where, found in used.items():
        for name in sorted(found - set(known)):
            yield where, f"the placeholder {name!r} is unknown{hint(name, known)}"
    if "question" not in used["text"]:
        yield "text", "the placeholder {{ question }} is missing"
    everywhere = used["text"] | used["system"]
    for name in names:
        if name not in everywhere and not (name == FEW_SHOT and "examples" in everywhere):
            yield (
                f"parameters.{name}",
                f"is unused: {{{{ {'examples' if name == FEW_SHOT else name} }}}} stands nowhere",
            )
    if "examples" in everywhere and not template.examples:
        yield "examples", "{{ examples }} is used, but there are none"
    if "examples" not in everywhere and template.examples:
        yield "examples", "are unused: {{ examples }} stands nowhere"


def _repeated(labels: list[str]) -> list[str]:
    return sorted({label for label in labels if labels.count(label) > 1})


# ── prompts.json to templates ─────────────────────────────────────────────────────────────────────────────────────


class _Object(dict[str, Any]):
    """A JSON object that remembers the keys it was given twice."""

    repeated: tuple[str, ...] = ()


def load_library(path: Path) -> tuple[Template, ...]:
    """The seed templates of a prompts.json. Raises ConfigError with every problem found, each with its JSON path."""
    problems: list[Problem] = []
    library = _record("$", _read(path), ("version", "templates"), (), problems)
    if library.get("version", 1) != 1:
        problems.append(("$.version", f"{library['version']!r} is unknown; this release reads version 1"))
    entries = _of(list, "$.templates", library.get("templates", []), problems)
    if "templates" in library and not entries and isinstance(library["templates"], list):
        problems.append(("$.templates", "is empty; a run needs at least one template"))
    templates = [_template(f"$.templates[{index}]", entry, problems) for index, entry in enumerate(entries)]
    problems += _repeated_ids(templates)
    if problems:
        lines = "\n".join(f"  {where}: {what}" for where, what in problems)
        raise ConfigError(f"{path}: {len(problems)} problem{'s' * (len(problems) > 1)}\n{lines}")
    return tuple(templates)


def _read(path: Path) -> Any:
    def remember(pairs: list[tuple[str, Any]]) -> _Object:
        made = _Object(pairs)
        made.repeated = tuple(_repeated([key for key, _ in pairs]))
        return made

    try:
        return json.loads(path.read_text("utf-8"), object_pairs_hook=remember)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: broken JSON in line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deep") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error


def _template(where: str, raw: Any, problems: list[Problem]) -> Template:
    """The template an entry describes; what is malformed is reported and replaced, so that the rest is looked at."""
    own: list[Problem] = []
    optional = ("task_type", "complexity", "system", "parameters", "examples")
    entry = _record(where, raw, ("id", "text"), optional, own)

    def text(key: str, default: str) -> str:
        return _of(str, f"{where}.{key}", entry.get(key, default), own) or default

    settings: list[tuple[str, str]] = []
    raw_parameters = _of(dict, f"{where}.parameters", entry.get("parameters", {}), own)
    own += _twice(f"{where}.parameters", raw_parameters)
    parameters = [_parameter(f"{where}.parameters.{n}", n, p, settings, own) for n, p in raw_parameters.items()]
    examples = _of(list, f"{where}.examples", entry.get("examples", []), own)
    made = Template(
        id=text("id", ""),
        text=text("text", ""),
        task_type=text("task_type", ANY),
        complexity=text("complexity", "single-step"),
        system=text("system", "") or None,
        parameters=tuple(parameters),
        settings=tuple(settings),
        examples=tuple(_example(f"{where}.examples[{i}]", example, own) for i, example in enumerate(examples)),
    )
    said = {path for path, _ in own}
    faults = ((f"{where}.{path}", what) for path, what in _faults(made)) if isinstance(raw, dict) else ()
    problems += [*own, *(fault for fault in faults if fault[0] not in said)]
    return made


def _parameter(where: str, name: str, raw: Any, settings: list[tuple[str, str]], problems: list[Problem]) -> Parameter:
    entry = _record(where, raw, ("choices",), ("default",), problems)
    choices = _choices(f"{where}.choices", entry.get("choices", []), problems)
    default = entry.get("default", choices[0].label if choices else "")
    if not _is_scalar(default):
        problems.append((f"{where}.default", "is no label of a choice"))
    settings.append((name, _label(default)))
    return Parameter(name, choices)


def _choices(where: str, raw: Any, problems: list[Problem]) -> tuple[Choice, ...]:
    """A mapping of labels to texts, or a list of scalars that are both."""
    if not isinstance(raw, dict | list):
        problems.append((where, f"expected a list, or an object of labels and texts, got {_name(raw)}"))
        return ()
    if isinstance(raw, list):
        wrong = [index for index, item in enumerate(raw) if not _is_scalar(item)]
        problems += [(f"{where}[{index}]", f"expected text or a number, got {_name(raw[index])}") for index in wrong]
        return tuple(Choice(_label(item), _label(item)) for item in raw if _is_scalar(item))
    problems += _twice(where, raw)
    return tuple(Choice(label, _of(str, f"{where}.{label}", text, problems)) for label, text in raw.items())


def _example(where: str, raw: Any, problems: list[Problem]) -> Example:
    entry = _record(where, raw, ("question", "response"), (), problems)
    texts = {key: _of(str, f"{where}.{key}", entry.get(key, "?"), problems) for key in ("question", "response")}
    problems += [(f"{where}.{key}", "is empty") for key, value in entry.items() if key in texts and value == ""]
    return Example(**texts)


def _record(
    where: str, raw: Any, needed: tuple[str, ...], optional: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    """An object's known keys; what is unknown, missing or given twice is reported."""
    record = _of(dict, where, raw, problems)
    known = [*needed, *optional]
    problems += _twice(where, record)
    problems += [(f"{where}.{key}", f"is an unknown key{hint(key, known)}") for key in record if key not in known]
    if isinstance(raw, dict):
        problems += [(f"{where}.{key}", "is missing") for key in needed if key not in record]
    return {key: value for key, value in record.items() if key in known}


def _of(kind: type[T], where: str, raw: Any, problems: list[Problem]) -> T:
    """`raw` where it is of that kind; else an empty one, and a problem."""
    if isinstance(raw, kind):
        return raw
    problems.append((where, f"expected {_name(kind())}, got {_name(raw)}"))
    return kind()


def _twice(where: str, raw: dict[str, Any]) -> list[Problem]:
    return [(f"{where}.{key}", "is given twice") for key in raw.repeated] if isinstance(raw, _Object) else []


def _repeated_ids(templates: list[Template]) -> list[Problem]:
    first: dict[str, int] = {}
    for index, template in enumerate(templates):
        first.setdefault(template.id, index)
    return [
        (f"$.templates[{index}].id", f"{t.id!r} is the id of $.templates[{first[t.id]}] already")
        for index, t in enumerate(templates)
        if t.id and first[t.id] != index
    ]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _label(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _name(value: Any) -> str:
    names = {dict: "an object", _Object: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
