"""The types of parameters in a prompts.json, read and written again; templates to prompts.json and back."""

import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import ROOT, entry, load, parameter, problems, written, wrong

from grpo_ray.errors import ConfigError
from grpo_ray.library import dump_library, load_library, write_library
from grpo_ray.prompting import check_template, content_hash, render
from grpo_ray.types import Choice, Example, Parameter, Task, Template

TASK = Task("t-1", "What is 2 + 3?")


def test_a_range_of_integers_becomes_a_choice_a_number(tmp_path: Path) -> None:
    raw = {"type": "integer", "minimum": 1, "maximum": 5, "step": 2, "default": 3, "text": "{} steps, not {}+1. "}
    found, default = parameter(tmp_path, raw)
    texts = ("1 steps, not 1+1. ", "3 steps, not 3+1. ", "5 steps, not 5+1. ")
    assert found.choices == tuple(map(Choice, ("1", "3", "5"), texts))
    assert default == "3"


def test_a_range_says_its_numbers_and_begins_at_its_minimum_where_nothing_else_is_said(tmp_path: Path) -> None:
    found, default = parameter(tmp_path, {"type": "integer", "minimum": -1, "maximum": 1})
    assert found.choices == (Choice("-1", "-1"), Choice("0", "0"), Choice("1", "1"))
    assert default == "-1"


def test_a_list_of_texts_has_its_places_as_labels(tmp_path: Path) -> None:
    found, default = parameter(tmp_path, {"type": "texts", "texts": ["", "Think. "], "default": 1})
    assert found.choices == (Choice("0", ""), Choice("1", "Think. "))
    assert default == "1"


def test_choice_is_the_type_where_none_is_given(tmp_path: Path) -> None:
    raw = {"choices": {"a": "A.", "b": "B."}, "default": "b"}
    assert parameter(tmp_path, raw) == parameter(tmp_path, raw | {"type": "choice"})


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"type": "integr", "minimum": 1, "maximum": 3}, [".type: 'integr' is unknown; did you mean 'integer'?"]),
        ({"type": ["integer"], "minimum": 1, "maximum": 3}, [".type: ['integer'] is unknown; did you mean 'integer'?"]),
        ({"minimum": 1, "maximum": 3}, [""".type: is missing; with 'minimum' it is "integer\""""]),
        ({"texts": ["a"]}, [""".type: is missing; with 'texts' it is "texts\""""]),
        ({"type": "integer", "minimum": 1}, [".maximum: is missing"]),
        ({"type": "integer", "minimum": 1, "maximum": 2.5}, [".maximum: expected a whole number, got a number"]),
        ({"type": "integer", "minimum": True, "maximum": 2}, [".minimum: expected a whole number, got true or false"]),
        ({"type": "integer", "minimum": 3, "maximum": 1}, [".maximum: 1 is less than the minimum, 3"]),
        ({"type": "integer", "minimum": 1, "maximum": 51, "step": 0}, [".step: 0 is less than 1"]),
        (
            {"type": "integer", "minimum": 0, "maximum": 10**30},
            [f".maximum: makes {10**30 + 1} values, and 50 is the most; raise the step"],
        ),
        (
            {"type": "integer", "minimum": 1, "maximum": 3, "text": "steps"},
            ['.text: has no {} to put the number in; "" shows nothing, for conditions alone'],
        ),
        (
            {"type": "integer", "minimum": 1, "maximum": 3, "text": "{{ question }} {}"},
            [".text: a placeholder is not filled in here; put it into the text"],
        ),
        ({"type": "integer", "minimum": 1, "maximum": 3, "default": 4}, [".default: '4' is no choice; known: 1, 2, 3"]),
        (
            {"type": "integer", "minimum": 1, "maximum": 3, "choices": []},
            [".choices: is an unknown key; known: minimum, maximum, step, text, type, default"],
        ),
        ({"type": "texts", "texts": []}, [".texts: is empty; a parameter needs at least one text"]),
        ({"type": "texts", "texts": ["a", 7]}, [".texts[1]: expected text, got a number"]),
        ({"type": "texts", "texts": "a"}, [".texts: expected a list, got text"]),
        ({"type": "texts", "texts": ["", "{% x"]}, [".texts[1]: a placeholder is not filled in here; put it into the text"]),
        ({"type": "choice", "choices": []}, [".choices: a parameter needs at least one choice"]),
    ],
)  # fmt: skip
def test_one_slip_in_a_parameter_is_one_problem_at_its_place(tmp_path: Path, raw: Any, expected: list[str]) -> None:
    assert wrong(tmp_path, raw) == expected


def test_fifty_values_are_allowed(tmp_path: Path) -> None:
    found, _ = parameter(tmp_path, {"type": "integer", "minimum": 1, "maximum": 50})
    assert len(found.choices) == 50


def test_a_range_may_say_how_many_examples_are_shown(tmp_path: Path) -> None:
    examples = [{"question": "1+1", "response": "2"}, {"question": "2+2", "response": "4"}]
    few = {"type": "integer", "minimum": 0, "maximum": 2, "default": 1}
    shown = entry(text="{{ examples }}{{ question }}", parameters={"few_shot": few}, examples=examples)
    (template,) = load(tmp_path, shown)
    text = render(template, TASK, 0).messages[0].content
    assert text == "Question: 1+1\nResponse: 2\n\nWhat is 2 + 3?"
    assert problems(tmp_path, shown | {"parameters": {"few_shot": few | {"maximum": 9}}}) == [
        "$.templates[0].parameters.few_shot.maximum: 9 is more than the 2 examples of the template"
    ]


def test_a_number_too_long_for_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="broken JSON"):
        load_library(written(tmp_path, '{"version": ' + "1" * 10_000 + ', "templates": []}'))


# ── there and back ─────────────────────────────────────────────────────────────────────────────────────────────────

words = st.text(max_size=12).filter(lambda text: "{" not in text)
labels = st.lists(st.one_of(words, st.integers(-3, 12).map(str)), min_size=1, max_size=5, unique=True)
numbers = st.builds(range, st.integers(-3, 3), st.integers(4, 60), st.integers(1, 40))
patterns = st.one_of(st.just(""), st.tuples(words, words).map("{}".join))


@st.composite
def choices(draw: st.DrawFn) -> tuple[Choice, ...]:
    """Of every shape that a type could take for its own, and of none."""
    shape = draw(st.sampled_from(["labels", "same", "range", "places"]))
    if shape == "range":
        text = draw(patterns)
        found = list(draw(numbers))[: draw(st.integers(1, 60))]
        return tuple(Choice(str(number), text.replace("{}", str(number))) for number in found)
    names = draw(labels)
    if shape == "places":
        names = [str(place) for place in range(len(names))]
    return tuple(Choice(label, label if shape == "same" else draw(words)) for label in names)


@st.composite
def templates(draw: st.DrawFn) -> Template:
    names = draw(st.lists(st.sampled_from(["a", "clarity", "größe", "_x"]), max_size=3, unique=True))
    parameters = [Parameter(name, draw(choices())) for name in names]
    examples = tuple(draw(st.lists(st.builds(Example, words.filter(bool), words.filter(bool)), max_size=3)))
    if examples and draw(st.booleans()):
        parameters.append(Parameter("few_shot", tuple(Choice(str(n), str(n)) for n in range(len(examples) + 1))))
    shown = "".join(f"{{{{ {name} }}}}" for name in [*names, *(["examples"] if examples else [])])
    return Template(
        id=draw(st.text(string.ascii_letters + string.digits, min_size=1, max_size=5)) + draw(st.sampled_from(["", "~1f"])),
        text=draw(words) + shown + "{{ question }}",
        task_type=draw(words.filter(str.strip)),
        complexity=draw(st.sampled_from(["recall", "single-step", "multi-step"])),
        system=draw(st.none() | words.filter(bool)),
        parameters=tuple(parameters),
        settings=tuple((p.name, draw(st.sampled_from(p.choices)).label) for p in parameters),
        examples=examples,
        version=draw(st.integers(1, 9)),
        parents=tuple(draw(st.lists(words, max_size=2))),
        mutation=draw(words),
        note=draw(words),
        stand_in=draw(st.booleans()),
    )  # fmt: skip


@given(st.lists(templates(), min_size=1, max_size=4, unique_by=lambda template: template.id), st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory: Any, some: list[Template], shared: bool) -> None:
    twin = replace(some[0], id="twin", settings=tuple((p.name, p.choices[0].label) for p in some[0].parameters))
    kept = [*some, twin] if shared else some
    assert [check_template(template) for template in kept] == [[]] * len(kept)
    path = write_library(tmp_path_factory.mktemp("library") / "prompts.json", kept)
    assert load_library(path) == tuple(kept)
    assert [content_hash(one) for one in load_library(path)] == [content_hash(one) for one in kept]


def test_types_survive_the_round_trip(tmp_path: Path) -> None:
    parameters = {
        "a": {"type": "integer", "minimum": 1, "maximum": 9, "step": 2, "text": "1 or {} steps. ", "default": 3},
        "b": {"type": "integer", "minimum": 0, "maximum": 3, "default": 0},
        "c": {"type": "texts", "texts": ["", "Think. "], "default": 1},
        "d": {"choices": ["x", "y"], "default": "y"},
        "e": {"choices": {"x": "X.", "1": "one"}, "default": "1"},
    }
    shown = "".join(f"{{{{ {name} }}}}" for name in parameters)
    loaded = load(tmp_path, entry(text=shown + "{{ question }}", parameters=parameters))
    assert dump_library(loaded)["templates"][0]["parameters"] == parameters


def test_examples_that_are_shared_become_a_pool(tmp_path: Path) -> None:
    shown = {"text": "{{ examples }}{{ question }}", "examples": [{"question": "1+1", "response": "2"}]}
    lone = entry(id="c", text=shown["text"], examples=[{"question": "3+3", "response": "6"}])
    loaded = load(tmp_path, entry(id="a", **shown), entry(id="b", task_type="sums", **shown), lone)
    library = dump_library(loaded)
    assert library["pools"] == {"examples-1": shown["examples"]}
    assert [one["examples"] for one in library["templates"][:2]] == [{"pool": "examples-1"}] * 2
    assert library["templates"][2]["examples"] == lone["examples"]
    assert load_library(write_library(tmp_path / "again.json", loaded)) == loaded


def test_a_broken_character_is_written_as_json_escapes_it(tmp_path: Path) -> None:
    template = Template("a", "\ud800 \u2028 ü {{ question }}")
    assert load_library(write_library(tmp_path / "x.json", [template])) == (template,)
    assert "ü" in (tmp_path / "x.json").read_text("utf-8")


@pytest.mark.parametrize("name", ["prompts.json", "configs/general-prompts.json"])
def test_the_bundled_libraries_come_back(tmp_path: Path, name: str) -> None:
    loaded = load_library(ROOT / name)
    assert load_library(write_library(tmp_path / "x.json", loaded)) == loaded


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for some, expected in (
        ([], r"\$\.templates: would be empty"),
        ([Template("a", "{{ question }}")] * 2, r"\$\.templates\[1\]\.id: 'a' is the id of \$\.templates\[0\] already"),
        ([Template("a", "no")], r"\$\.templates\[0\]\.text: the placeholder {{ question }} is missing"),
        (
            [Template("a", "{{ examples }}{{ question }}", examples=(Example("q", ""),))],
            r"\$\.templates\[0\]\.examples\[0\]\.response: is empty",
        ),
        ([Template("a", "{{ question }}", system="")], r"\$\.templates\[0\]\.system: is empty; leave it out"),
    ):
        with pytest.raises(ConfigError, match=expected):
            write_library(path, some)
        assert not path.exists()
    with pytest.raises(ConfigError, match=r"x\.json: can't be written: No such file"):
        write_library(tmp_path / "nowhere" / "x.json", [Template("a", "{{ question }}")])
