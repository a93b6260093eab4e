import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.errors import ConfigError
from grpo_ray.prompting import check_template, content_hash, render
from grpo_ray.types import Choice, Example, Parameter, Task, Template

TASK = Task("t-1", "What is 2 + 3?", metadata={"topic": "sums", "items": ["a", "b"]})


CLARITY = Parameter("clarity", (Choice("terse", "Go."), Choice("plain", "Please solve.")))
FEW = Parameter("few_shot", (Choice("0", "0"), Choice("1", "1")))
TEMPLATE = Template(
    "one",
    "{{ clarity }}\n\n{{ examples }}Question: {{ question }}",
    parameters=(CLARITY, FEW),
    settings=(("clarity", "plain"), ("few_shot", "0")),
    examples=(Example("1+1", "Answer: 2"),),
)


def test_a_prompt_shows_settings_examples_and_question() -> None:
    template = replace(TEMPLATE, system="Topic: {{ metadata.topic }}.")
    assert check_template(template) == []
    shown = replace(template, settings=(("clarity", "terse"), ("few_shot", "1")))
    prompt = render(shown, TASK, 3)
    assert [message.role for message in prompt.messages] == ["system", "user"]
    assert prompt.messages[0].content == "Topic: sums."
    assert prompt.messages[1].content == "Go.\n\nQuestion: 1+1\nResponse: Answer: 2\n\nQuestion: What is 2 + 3?"
    assert prompt.template_id == "one"


def test_a_prompts_id_names_template_task_and_purpose() -> None:
    ids = {render(TEMPLATE, TASK, purpose).id for purpose in (0, 1, "exam")}
    assert len(ids) == 3
    assert render(TEMPLATE, TASK, 0).id == render(TEMPLATE, TASK, 0).id


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


def test_a_forbidden_word_hides_no_wrong_placeholder() -> None:
    found = check_template(Template("x", "{% for a in question %}{{ a }}{% endfor %}{{ qestion }}"))
    assert any("'for' in line 1 is not allowed" in line for line in found)
    assert any("the placeholder 'qestion' is unknown; did you mean 'question'?" in line for line in found)
    assert check_template(Template("x", "{{ qestion")) == [
        "text: broken Jinja2 in line 1: unexpected end of template, expected 'end of print statement'."
    ]


# ── conditions ────────────────────────────────────────────────────────────────────────────────────────────────────

REASONING = Parameter("reasoning", (Choice("none", ""), Choice("one", "One step. "), Choice("all", "Every step. ")))
STEPS = Parameter("steps", tuple(Choice(str(number), "") for number in range(1, 6)))


def conditional(text: str, reasoning: str = "none", steps: str = "2") -> Template:
    """A template with two parameters, both of them in use."""
    used = "{% if settings.steps %}{{ reasoning }}{% endif %}{{ question }}"
    return Template(
        "x", text + used, parameters=(REASONING, STEPS), settings=(("reasoning", reasoning), ("steps", steps))
    )


def shown(template: Template) -> str:
    assert check_template(template) == []
    return render(template, TASK, 0).messages[0].content.removesuffix(TASK.question)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ('settings.reasoning == "all"', {"all"}),
        ('settings["reasoning"] != "all"', {"none", "one"}),
        ('"all" == settings.reasoning', {"all"}),
        ('settings.reasoning in ("one", "all")', {"one", "all"}),
        ('settings.reasoning not in ["one", "all"]', {"none"}),
        ("settings.steps | int > 3", set()),
        ('settings.steps | int == 2 and settings.reasoning == "one"', {"one"}),
        ("reasoning", {"one", "all"}),
        ('reasoning == "One step. "', {"one"}),
        ('reasoning == ""', {"none"}),
        ('"step" in reasoning', {"one", "all"}),
        ('"l" in settings.reasoning', {"all"}),
        ("settings.reasoning == settings.steps", set()),
    ],
)
def test_conditions_ask_for_labels_and_for_texts(condition: str, holds: set[str]) -> None:
    for label in ("none", "one", "all"):
        text = shown(conditional(f"{{% if {condition} %}}yes {{% else %}}no {{% endif %}}", label))
        assert text.startswith("yes " if label in holds else "no ")


def test_a_label_can_be_shown() -> None:
    assert shown(conditional("{{ settings.steps }} ", "one", "4")) == "4 One step. "


@pytest.mark.parametrize(
    ("condition", "fault"),
    [
        ('settings.reasoning == "al"', "settings.reasoning is never 'al'; did you mean 'all'?"),
        ('"al" != settings.reasoning', "settings.reasoning is never 'al'; did you mean 'all'?"),
        ('settings["reasoning"] in ("one", "two")', "settings.reasoning is never 'two'; known: none, one, all"),
        ("settings.steps == 2", 'settings.steps is text; compare it with "2", in quotes'),
        ("settings.steps == 9", "settings.steps is never 9; known: 1, 2, 3, 4, 5"),
        ("settings.steps > 2", "settings.steps is text; compare numbers as settings.steps | int"),
        ('settings.resoning == "all"', "settings.resoning is unknown; did you mean 'reasoning'?"),
        ("settings", "'settings' needs a parameter's name after it: settings.reasoning"),
        ("settings[question]", "'settings' needs a parameter's name after it: settings.reasoning"),
        (
            'reasoning == "all"',
            "reasoning is the chosen text, and never 'all'; compare the label: settings.reasoning",
        ),
        ('reasoning == "Every step."', "reasoning is the chosen text, and never 'Every step.'"),
    ],
)
def test_a_condition_that_can_never_hold_is_told(condition: str, fault: str) -> None:
    template = conditional(f"{{% if {condition} %}}yes {{% endif %}}")
    assert check_template(template) == [f"text: {fault}"]
    system = replace(conditional(""), system=f"{{{{ 'a' if {condition} else 'b' }}}}")
    assert check_template(system) == [f"system: {fault}"]


def test_settings_is_a_reserved_name() -> None:
    named = Parameter("settings", (Choice("a", "A"),))
    template = Template("x", "{{ settings.a }}{{ question }}", parameters=(named,), settings=(("settings", "a"),))
    assert "parameters.settings: 'settings' can't be a parameter's name" in check_template(template)


def test_a_parameter_that_a_condition_alone_asks_for_is_used() -> None:
    template = Template(
        "x",
        '{% if settings.steps == "1" %}One step. {% endif %}{{ question }}',
        parameters=(STEPS,),
        settings=(("steps", "1"),),
    )
    assert check_template(template) == []
    idle = replace(template, text="{{ question }}")
    assert check_template(idle) == ["parameters.steps: is unused: {{ steps }} stands nowhere"]


def test_a_setting_that_loses_the_question_is_told() -> None:
    lost = replace(conditional(""), text='{{ reasoning }}{% if settings.steps != "4" %}{{ question }}{% endif %}')
    (fault,) = check_template(lost)
    assert fault.startswith("text: {{ question }} is left out under the settings {") and "'steps': '4'" in fault
    kept = lost.text + "{% if settings.steps == '4' %}Now: {{ question }}{% endif %}"
    assert check_template(replace(lost, text=kept)) == []


def test_what_no_setting_can_render_is_told_without_a_task() -> None:
    (fault,) = check_template(Template("x", "{{ question }}{{ question | round }}"))
    assert fault.startswith("text: can't be rendered under the settings {}: ")


@pytest.mark.parametrize(
    "text", ["{{ ('a', 'b') }}", "{{ ['a'] | string }}", "{% if question in (question,) %}{% endif %}"]
)
def test_a_list_may_only_be_asked_in(text: str) -> None:
    assert "is not allowed" in check_template(Template("x", "{{ question }}" + text))[0]


@given(
    st.sampled_from(["==", "!=", "in", "not in", "<"]),
    st.sampled_from(["none", "one", "all", "al"]) | st.text(max_size=5),
    st.booleans(),
)
def test_a_comparison_is_told_exactly_where_no_choice_has_the_label(sign: str, label: str, listed: bool) -> None:
    given_label = json.dumps(label) if "\\" not in label and '"' not in label else '"?"'
    asked = f"settings.reasoning {sign} " + (f"({given_label},)" if listed and "in" in sign else given_label)
    texts = [conditional(f"{{% if {asked} %}}yes {{% else %}}no {{% endif %}}", one) for one in ("none", "one", "all")]
    faults = {line for template in texts for line in check_template(template)}
    if sign in ("==", "!=") or (listed and "in" in sign):
        assert bool(faults) == (json.loads(given_label) not in ("none", "one", "all"))
    else:
        assert not faults
