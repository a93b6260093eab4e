import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.errors import ConfigError
from grpo_ray.prompting import check_template, content_hash, load_library, render
from grpo_ray.types import Choice, Example, Parameter, Task, Template

LIBRARY = Path(__file__).parents[2] / "prompts.json"
GENERAL = LIBRARY.parent / "configs" / "general-prompts.json"
TASK = Task("t-1", "What is 2 + 3?", metadata={"topic": "sums", "items": ["a", "b"]})


def seed(**changes: Any) -> dict[str, Any]:
    """One well-formed entry of a library, with changes."""
    return {
        "id": "one",
        "text": "{{ clarity }}\n\n{{ examples }}Question: {{ question }}",
        "parameters": {
            "clarity": {"choices": {"terse": "Go.", "plain": "Please solve."}, "default": "plain"},
            "few_shot": {"choices": [0, 1], "default": 0},
        },
        "examples": [{"question": "1+1", "response": "Answer: 2"}],
    } | changes


def written(tmp_path: Path, library: Any) -> Path:
    path = tmp_path / "prompts.json"
    path.write_text(library if isinstance(library, str) else json.dumps(library), "utf-8")
    return path


def load(tmp_path: Path, *entries: dict[str, Any]) -> tuple[Template, ...]:
    return load_library(written(tmp_path, {"version": 1, "templates": list(entries)}))


def refusal(tmp_path: Path, *entries: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *entries)
    return str(caught.value)


def test_a_library_becomes_templates_with_their_default_settings(tmp_path: Path) -> None:
    (template,) = load(tmp_path, seed(task_type="arithmetic", complexity="recall", system="Be {{ clarity }}"))
    assert template.settings == (("clarity", "plain"), ("few_shot", "0"))
    assert (template.task_type, template.complexity, template.mutation) == ("arithmetic", "recall", "seed")
    assert [choice.label for choice in template.parameters[1].choices] == ["0", "1"]


def test_a_prompt_shows_settings_examples_and_question(tmp_path: Path) -> None:
    (template,) = load(tmp_path, seed(system="Topic: {{ metadata.topic }}."))
    shown = replace(template, settings=(("clarity", "terse"), ("few_shot", "1")))
    prompt = render(shown, TASK, 3)
    assert [message.role for message in prompt.messages] == ["system", "user"]
    assert prompt.messages[0].content == "Topic: sums."
    assert prompt.messages[1].content == "Go.\n\nQuestion: 1+1\nResponse: Answer: 2\n\nQuestion: What is 2 + 3?"
    assert prompt.template_id == "one"


def test_a_prompts_id_names_template_task_and_purpose(tmp_path: Path) -> None:
    (template,) = load(tmp_path, seed())
    ids = {render(template, TASK, purpose).id for purpose in (0, 1, "exam")}
    assert len(ids) == 3
    assert render(template, TASK, 0).id == render(template, TASK, 0).id


@given(st.text())
def test_a_question_is_never_run_as_a_template(question: str) -> None:
    template = Template("x", "Question: {{ question }} / {{ metadata.hint }}")
    for text in (question, "{{ 7 * 7 }}" + question, "{% for x in (1,) %}" + question):
        (message,) = render(template, Task("t", text, metadata={"hint": text}), 0).messages
        assert message.content == f"Question: {text} / {text}"


def test_metadata_gives_its_keys_and_no_python_attributes() -> None:
    template = Template("x", "{{ question }} {{ metadata.items | join('-') }}")
    assert render(template, TASK, 0).messages[0].content.endswith("a-b")
    for text in ("{{ metadata.keys }}", "{{ question.__class__ }}", "{{ question.upper }}"):
        with pytest.raises(ConfigError, match="can't be rendered over task 't-1'"):
            render(Template("x", "{{ question }}" + text), TASK, 0)


@pytest.mark.parametrize(
    "text",
    [
        "{{ question }}{% for x in question %}{{ x }}{% endfor %}",
        "{{ question * 100000 }}",
        "{{ question.upper() }}",
        "{{ range(9) }}{{ question }}",
        "{{ question | center(1000000000) }}",
        "{{ question | attr('__class__') }}",
        "{% set x = question %}{{ question }}",
        "{% include 'x' %}{{ question }}",
        "{% macro m() %}{% endmacro %}{{ question }}",
        "{{ " + "(" * 500 + "question" + ")" * 500 + " }}",
        "{{ " + "not " * 200 + "question }}",
        "{{ question }}" + "x" * 30_000,
    ],
)
def test_what_could_run_for_long_or_reach_out_is_refused(text: str) -> None:
    assert check_template(Template("x", text))


def test_conditions_and_plain_filters_are_allowed() -> None:
    text = "{% if metadata.topic == 'sums' %}Add. {% else %}Think. {% endif %}{{ question | trim | upper }}"
    assert check_template(Template("x", text)) == []
    assert render(Template("x", text), TASK, 0).messages[0].content == "Add. WHAT IS 2 + 3?"


def test_every_problem_is_listed_with_its_json_path(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        seed(id="a", text="{{ clarity }} {{ examples }} {{ question }"),
        seed(id="b", text="{{ clarty }} {{ examples }}"),
        seed(id="a", parameters={"clarity": {"choices": {}}, "few_shot": {"choices": [0, 2]}}),
        seed(id="c", parameters={"clarity": {"choices": ["x", "y"], "default": "z"}, "few_shot": {"choices": ["no"]}}),
        seed(id="d", text="{{ question }}"),
        seed(id="e", txet="x", complexity="recal", examples=[]),
        seed(id="f", parameters={"clarity": {"choices": {"x": "{{ question }}"}}, "few_shot": {"choices": [1]}}),
    )
    for expected in (
        "$.templates[0].text: broken Jinja2 in line 1",
        "$.templates[1].text: the placeholder 'clarty' is unknown; did you mean 'clarity'?",
        "$.templates[1].text: the placeholder {{ question }} is missing",
        "$.templates[1].parameters.clarity: is unused",
        "$.templates[2].id: 'a' is the id of $.templates[0] already",
        "$.templates[2].parameters.clarity.choices: a parameter needs at least one choice",
        "$.templates[2].parameters.few_shot.choices: 2 is more than the 1 examples",
        "$.templates[3].parameters.clarity.default: 'z' is no choice",
        "$.templates[3].parameters.few_shot.choices: 'no' is no whole number",
        "$.templates[4].parameters.clarity: is unused",
        "$.templates[4].parameters.few_shot: is unused",
        "$.templates[4].examples: are unused",
        "$.templates[5].txet: is an unknown key; did you mean 'text'?",
        "$.templates[5].complexity: 'recal' is unknown; did you mean 'recall'?",
        "$.templates[5].examples: {{ examples }} is used, but there are none",
        "$.templates[6].parameters.clarity.choices.x: a placeholder is not filled in here",
    ):
        assert expected in message
    assert f"{len(message.splitlines()) - 1} problems" in message


def test_one_slip_is_one_problem(tmp_path: Path) -> None:
    for entry, path in (
        (seed(id=7), "$.templates[0].id"),
        (seed(text=None), "$.templates[0].text"),
        (seed(parameters=[]), "$.templates[0].parameters"),
        (seed(examples=[{"question": "1+1"}]), "$.templates[0].examples[0].response"),
        (seed(complexity=3), "$.templates[0].complexity"),
    ):
        message = refusal(tmp_path, entry)
        assert path + ": " in message
    assert "1 problem\n" in refusal(tmp_path, seed(id=7))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"version": 1,\n "templates": [}', "broken JSON in line 2, column 16"),
        ('{"version": 2, "templates": []}', "$.version: 2 is unknown"),
        ('{"version": 1, "templates": []}', "$.templates: is empty"),
        ('{"version": 1}', "$.templates: is missing"),
        ("[]", "$: expected an object, got a list"),
        ('{"version": 1, "templates": [7]}', "$.templates[0]: expected an object, got a number"),
        ('{"version": 1, "templates": {}}', "$.templates: expected a list, got an object"),
        (
            '{"version": 1, "templates": [{"id": "a", "id": "b", "text": "{{ question }}"}]}',
            "$.templates[0].id: is given",
        ),
        ("[" * 100_000, "broken JSON|nested too deep"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_library(written(tmp_path, text))
    assert any(part in str(caught.value) for part in expected.split("|"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: can't be read: No such file"):
        load_library(tmp_path / "nowhere.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["id", "text", "task_type", "complexity", "system", "parameters", "examples"])


@given(st.dictionaries(keys, json_values), st.dictionaries(st.sampled_from(["choices", "default"]), json_values))
def test_any_json_is_either_loaded_or_refused(tmp_path_factory: Any, entry: Any, parameter: Any) -> None:
    path = tmp_path_factory.mktemp("library") / "prompts.json"
    entries = [seed(**entry), seed(id="two", parameters={"clarity": parameter, "few_shot": {"choices": [0]}})]
    path.write_text(json.dumps({"version": 1, "templates": entries}), "utf-8")
    try:
        assert all(check_template(template) == [] for template in load_library(path))
    except ConfigError as error:
        assert "$.templates[" in str(error)


def test_the_content_hash_does_not_depend_on_name_or_descent() -> None:
    template = Template("a", "{{ question }}")
    assert content_hash(template) == content_hash(replace(template, id="b", version=4, parents=("x",), note="y"))
    assert content_hash(template) != content_hash(replace(template, text="Now: {{ question }}"))


def test_settings_must_name_a_choice() -> None:
    clarity = Parameter("clarity", (Choice("terse", "Go."),))
    template = Template("a", "{{ clarity }} {{ question }}", parameters=(clarity,), settings=(("clarity", "long"),))
    assert check_template(template) == ["parameters.clarity.default: 'long' is no choice; known: terse"]
    assert check_template(replace(template, settings=(("clarity", "terse"),))) == []


def test_without_a_few_shot_parameter_all_examples_are_shown() -> None:
    template = Template("a", "{{ examples }}{{ question }}", examples=(Example("p", "q"), Example("r", "s")))
    text = render(template, TASK, 0).messages[0].content
    assert text == "Question: p\nResponse: q\n\nQuestion: r\nResponse: s\n\nWhat is 2 + 3?"


def test_the_bundled_library_is_what_the_readme_promises() -> None:
    templates = load_library(LIBRARY)
    assert len(templates) >= 8
    assert len({template.task_type for template in templates}) >= 3
    assert {template.complexity for template in templates} == {"recall", "single-step", "multi-step"}
    for template in templates:
        assert {parameter.name for parameter in template.parameters} == {"clarity", "context", "reasoning", "few_shot"}
        assert dict(template.settings)["few_shot"] == "0"


def test_the_general_library_asks_any_question_in_every_setting() -> None:
    templates = load_library(GENERAL)
    assert len(templates) >= 6 and {template.task_type for template in templates} == {"any"}
    for template in templates:
        names = [parameter.name for parameter in template.parameters]
        for labels in product(*([choice.label for choice in parameter.choices] for parameter in template.parameters)):
            prompt = render(replace(template, settings=tuple(zip(names, labels, strict=True))), TASK, 0)
            text = prompt.messages[-1].content
            assert TASK.question in text and '"Answer:"' in text and "  " not in text


def test_bundled_prompts_are_short_in_every_setting() -> None:
    question = "Solve the following multiplication: 13 * 61. Give only the result as your final answer."
    for template in load_library(LIBRARY):
        names = [parameter.name for parameter in template.parameters]
        for labels in product(*([choice.label for choice in parameter.choices] for parameter in template.parameters)):
            settings = tuple(zip(names, labels, strict=True))
            if dict(settings)["few_shot"] == "0":
                prompt = render(replace(template, settings=settings), Task("t", question), 0)
                assert sum(len(message.content) for message in prompt.messages) <= 300


def test_a_forbidden_word_hides_no_wrong_placeholder() -> None:
    found = check_template(Template("x", "{% for a in question %}{{ a }}{% endfor %}{{ qestion }}"))
    assert any("'for' in line 1 is not allowed" in line for line in found)
    assert any("the placeholder 'qestion' is unknown; did you mean 'question'?" in line for line in found)
    assert check_template(Template("x", "{{ qestion")) == [
        "text: broken Jinja2 in line 1: unexpected end of template, expected 'end of print statement'."
    ]
