"""A template with its settings over a task to a prompt, and what can be wrong with a template.

Templates may be written by models, so they are data too: Jinja2 in a sandbox, cut down to placeholders, conditions and
a few filters. No loops, calls or arithmetic, so a template can neither run for long nor grow beyond its own size.
A question or its metadata only ever fills a placeholder; it is never read as a template.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2 import Template as Compiled
from jinja2.sandbox import SandboxedEnvironment

from grpo_ray.canonical import short
from grpo_ray.conditions import SETTINGS, condition_faults, constants, settings_read
from grpo_ray.errors import ConfigError
from grpo_ray.lineage import text_hash
from grpo_ray.registry import hint
from grpo_ray.types import ANY, Message, Parameter, Prompt, Task, Template

COMPLEXITIES = ("recall", "single-step", "multi-step")
RESERVED = ("question", "examples", "metadata", SETTINGS)
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

Settings = tuple[tuple[str, str], ...]
"""(parameter name, label), one pair a parameter, in the parameters' order."""
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
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"template {template.id!r} can't be rendered over task {task.id!r}: {error}") from error
    messages = (system, user) if system else (user,)
    return Prompt(short("p", template.id, task.id, purpose), template.id, task, messages)


def examples_block(template: Template, question: str = "") -> str:
    """The template's first `few_shot` worked examples (all of them where it has no such parameter).

    One that has the very question is passed over for the next, for it would give the answer away.
    """
    settings = dict(template.settings)
    count = int(settings[FEW_SHOT]) if FEW_SHOT in settings else len(template.examples)
    shown = [example for example in template.examples if example.question != question][:count]
    return "".join(f"Question: {e.question}\nResponse: {e.response}\n\n" for e in shown)


@lru_cache(maxsize=4096)
def content_hash(template: Template) -> str:
    """Six hex digits of what a template says and to which tasks, whatever it is called and wherever it comes from."""
    return text_hash(template)[:6]


def uses_metadata(template: Template) -> bool:
    return "metadata" in placeholders(template.text) | placeholders(template.system or "")


@lru_cache(maxsize=4096)
def placeholders(text: str) -> frozenset[str]:
    """The names a Jinja2 text looks up. Raises jinja2.TemplateSyntaxError."""
    try:
        return frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(text)))
    except RecursionError as error:
        raise TemplateSyntaxError(TOO_DEEP, 1) from error


def fits(template: Template, task: Task | str) -> bool:
    """Whether a template is meant for a task, or a task type."""
    return template.task_type in (ANY, task.task_type if isinstance(task, Task) else task)


def root(id: str) -> str:
    """The seed template that an id goes back to."""
    return id.split("~", maxsplit=1)[0]


def _values(template: Template, task: Task) -> dict[str, Any]:
    chosen = dict(template.settings)
    texts = {p.name: next(c.text for c in p.choices if c.label == chosen[p.name]) for p in template.parameters}
    data = {
        "question": task.question,
        "examples": examples_block(template, task.question),
        "metadata": dict(task.metadata),
    }
    return texts | data | {SETTINGS: chosen}


@lru_cache(maxsize=1024)
def _compiled(text: str) -> Compiled:
    return _ENVIRONMENT.from_string(text)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> nodes.Template:
    """The syntax tree, to read: Jinja2's own passes, which may change a tree, get one of their own."""
    return _ENVIRONMENT.parse(text)


# ── what can be wrong with one template ───────────────────────────────────────────────────────────────────────────


def check_template(template: Template) -> list[str]:
    """Every problem of one template, each with its path inside it; none: it renders over any task it fits."""
    return [f"{where}: {what}" for where, what in faults(template)]


def faults(template: Template) -> list[Problem]:
    """The same, each as (path inside the template, what is wrong there)."""
    syntax = [*_syntax_faults("text", template.text), *_syntax_faults("system", template.system or "")]
    found = [*_identity_faults(template), *syntax, *_parameter_faults(template)]
    unread = ("text", TOO_DEEP) in syntax or ("system", TOO_DEEP) in syntax  # Jinja2 takes the cube of the depth
    if unread or not template.text.strip() or not (_parses(template.text) and _parses(template.system or "")):
        return found
    found += [*_placeholder_faults(template), *_condition_faults(template)]
    return found or list(_lost_question(template))


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
    if template.system == "":
        yield "system", "is empty; leave it out"
    if not template.task_type.strip():
        yield "task_type", f"is empty; {ANY!r} fits every task"
    for index, example in enumerate(template.examples):
        empty = [name for name in ("question", "response") if not getattr(example, name)]
        yield from ((f"examples[{index}].{name}", "is empty") for name in empty)
    if template.complexity not in COMPLEXITIES:
        yield "complexity", f"{template.complexity!r} is unknown{hint(template.complexity, list(COMPLEXITIES))}"


def _syntax_faults(where: str, text: str) -> Iterator[Problem]:
    if len(text) > MAX_CHARACTERS:
        yield where, f"has {len(text)} characters; {MAX_CHARACTERS} is the most"
        return
    try:
        tree = _parsed(text)
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
    if isinstance(node, nodes.Operand) and constants(node.expr):
        return  # `in ("a", "b")`: its outcome is yes or no, so that nothing can grow by it
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
    numbers = [label for label in labels if re.fullmatch(r"[0-9]{1,6}", label)]
    yield from ((where, f"{label!r} is no whole number") for label in labels if label not in numbers)
    if numbers and (most := max(map(int, numbers))) > count:
        yield where, f"{most} is more than the {count} examples of the template"


def _placeholder_faults(template: Template) -> Iterator[Problem]:
    used = {"text": placeholders(template.text), "system": placeholders(template.system or "")}
    names = [parameter.name for parameter in template.parameters]
    known = [*names, *RESERVED]
    for where, found in used.items():
        for name in sorted(found - set(known)):
            yield where, f"the placeholder {name!r} is unknown{hint(name, known)}"
    if "question" not in used["text"]:
        yield "text", "the placeholder {{ question }} is missing"
    read = settings_read(_parsed(template.text), _parsed(template.system or ""))
    everywhere = used["text"] | used["system"] | read
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


def _condition_faults(template: Template) -> Iterator[Problem]:
    for where, text in (("text", template.text), ("system", template.system or "")):
        yield from ((where, what) for what in condition_faults(_parsed(text), template.parameters))


def _lost_question(template: Template) -> Iterator[Problem]:
    """A setting under which a prompt can't be made, or doesn't show its question; metadata might decide otherwise."""
    if uses_metadata(template) or all(_is_plain(text) for text in (template.text, template.system or "")):
        return
    tried = [(p.name, choice.label) for p in template.parameters for choice in p.choices]
    for settings in dict.fromkeys([template.settings, *(_with(template.settings, *pair) for pair in tried)]):
        shown = replace(template, settings=settings)
        try:
            one, other = (render(shown, Task("probe", question), "probe").messages for question in "12")
        except ConfigError as error:
            yield "text", f"can't be rendered under the settings {dict(settings)}: {error.__cause__}"
            return
        if one == other:
            yield "text", f"{{{{ question }}}} is left out under the settings {dict(settings)}"
            return


def _is_plain(text: str) -> bool:
    """Whether a text is made of words and bare placeholders alone, so that every setting shows all of them."""
    parts = (part for piece in _parsed(text).body for part in piece.iter_child_nodes())
    return all(isinstance(part, nodes.TemplateData | nodes.Name) for part in parts)


def _with(settings: Settings, name: str, label: str) -> Settings:
    return tuple((other, label if other == name else old) for other, old in settings)


def _repeated(labels: Sequence[str]) -> list[str]:
    return sorted({label for label in labels if labels.count(label) > 1})
