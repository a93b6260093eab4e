"""prompts.json to templates: the whole file, pools, lineage, and a file that was changed."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import ROOT, entry, load, problems, refusal, seed, written

from grpo_ray.errors import ConfigError
from grpo_ray.library import load_library, reload, write_library
from grpo_ray.prompting import check_template, content_hash, render
from grpo_ray.types import Task

LIBRARY = ROOT / "prompts.json"
GENERAL = ROOT / "configs" / "general-prompts.json"
TASK = Task("t-1", "What is 2 + 3?")


def test_a_library_becomes_templates_with_their_default_settings(tmp_path: Path) -> None:
    (template,) = load(tmp_path, seed(task_type="arithmetic", complexity="recall", system="Be {{ clarity }}"))
    assert template.settings == (("clarity", "plain"), ("few_shot", "0"))
    assert (template.task_type, template.complexity, template.mutation) == ("arithmetic", "recall", "seed")
    assert [choice.label for choice in template.parameters[1].choices] == ["0", "1"]


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
    for slip, path in (
        (seed(id=7), "$.templates[0].id"),
        (seed(text=None), "$.templates[0].text"),
        (seed(parameters=[]), "$.templates[0].parameters"),
        (seed(examples=[{"question": "1+1"}]), "$.templates[0].examples[0].response"),
        (seed(complexity=3), "$.templates[0].complexity"),
    ):
        message = refusal(tmp_path, slip)
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
keys = st.sampled_from(["id", "text", "task_type", "complexity", "system", "parameters", "examples", "lineage"])
parts = st.sampled_from(
    ["choices", "default", "type", "texts", "minimum", "maximum", "step", "text", "pool", "count", "version", "parents"]
)
kinds = st.sampled_from(["choice", "texts", "integer"])


@given(
    st.dictionaries(keys, json_values | st.dictionaries(parts, json_values)),
    st.dictionaries(parts, json_values | kinds),
)
def test_any_json_is_either_loaded_or_refused(tmp_path_factory: Any, first: Any, parameter: Any) -> None:
    folder = tmp_path_factory.mktemp("library")
    second = seed(id="two", parameters={"clarity": parameter, "few_shot": {"choices": [0]}})
    pools = {"a": [parameter], **({"b": first["examples"]} if "examples" in first else {})}
    for library in ({}, {"pools": pools}):
        try:
            loaded = load(folder, seed(**first), second, **library)
            assert all(check_template(template) == [] for template in loaded)
            assert load_library(write_library(folder / "again.json", loaded)) == loaded
        except ConfigError as error:
            assert "$.templates[" in str(error) or "$.pools." in str(error)


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


# ── pools ──────────────────────────────────────────────────────────────────────────────────────────────────────────

POOLS = {
    "worked": [
        {"question": "1+1", "response": "2", "task_type": "sums"},
        {"question": "sun", "response": "nus", "task_type": "words"},
        {"question": "ok?", "response": "yes"},
        {"question": "2+2", "response": "4", "task_type": "sums"},
    ]
}


def asked(folder: Path, examples: Any, **changes: Any) -> list[str]:
    """The questions of the examples that a template takes."""
    (template,) = load(folder, entry(text="{{ examples }}{{ question }}", examples=examples) | changes, pools=POOLS)
    return [example.question for example in template.examples]


def test_a_template_takes_what_fits_it_from_a_pool(tmp_path: Path) -> None:
    assert asked(tmp_path, {"pool": "worked"}) == ["1+1", "sun", "ok?", "2+2"]
    assert asked(tmp_path, {"pool": "worked"}, task_type="sums") == ["1+1", "ok?", "2+2"]
    assert asked(tmp_path, {"pool": "worked", "count": 2}, task_type="sums") == ["1+1", "ok?"]
    assert asked(tmp_path, {"pool": "worked", "task_type": "words"}) == ["sun", "ok?"]
    assert asked(tmp_path, {"pool": "worked", "task_type": "any"}, task_type="sums") == ["1+1", "sun", "ok?", "2+2"]


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ({"pool": "work"}, ".pool: there is no pool 'work'; did you mean 'worked'?"),
        ({"pool": 7}, ".pool: there is no pool 7; known: worked, lone"),
        ({}, ".pool: is missing"),
        ({"pool": "worked", "cuont": 2}, ".cuont: is an unknown key; did you mean 'count'?"),
        ({"pool": "worked", "count": 5}, ".count: 5 is more than the 4 examples that fit"),
        ({"pool": "worked", "count": 0}, ".count: 0 is less than 1"),
        ({"pool": "lone", "task_type": "x"}, ".pool: 'lone' has no examples for tasks of type 'x'; it has sums"),
        ({"pool": "worked", "task_type": 3}, ".task_type: expected text, got a number"),
        ("worked", ": expected a list, or an object that names a pool, got text"),
    ],
)
def test_one_slip_in_naming_a_pool_is_one_problem(tmp_path: Path, examples: Any, expected: str) -> None:
    few = {"few_shot": {"choices": [0, 4]}}
    raw = entry(text="{{ examples }}{{ question }}", parameters=few, examples=examples)
    pools = POOLS | {"lone": POOLS["worked"][:1]}
    assert problems(tmp_path, raw, pools=pools) == [f"$.templates[0].examples{expected}"]


def test_a_pools_problems_have_their_places(tmp_path: Path) -> None:
    taken = entry(text="{{ examples }}{{ question }}", examples={"pool": "b"})
    pools = {"a": [], "b": [{"question": "1+1"}, {"question": "", "response": "2", "kind": "x"}], "c": {}}
    assert problems(tmp_path, taken, pools=pools) == [
        "$.pools.a: is empty; a pool needs at least one example",
        "$.pools.b[0].response: is missing",
        "$.pools.b[1].kind: is an unknown key; known: question, response, task_type",
        "$.pools.b[1].question: is empty",
        "$.pools.c: expected a list, got an object",
    ]
    assert problems(tmp_path, entry(), pools=[]) == ["$.pools: expected an object, got a list"]


# ── lineage ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lineage_is_kept(tmp_path: Path) -> None:
    told = {"version": 3, "parents": ["a", "b~123456"], "mutation": "rewrite", "note": "why", "stand_in": True}
    (template,) = load(tmp_path, entry(lineage=told))
    assert (template.version, template.parents, template.mutation) == (3, ("a", "b~123456"), "rewrite")
    assert (template.note, template.stand_in) == ("why", True)
    assert load(tmp_path, entry()) == load(tmp_path, entry(lineage={}))


@pytest.mark.parametrize(
    ("lineage", "expected"),
    [
        ([], ": expected an object, got a list"),
        ({"version": 0}, ".version: 0 is less than 1"),
        ({"version": "2"}, ".version: expected a whole number, got text"),
        ({"parents": "a"}, ".parents: expected a list, got text"),
        ({"parents": ["a", 3]}, ".parents[1]: expected text, got a number"),
        ({"mutation": 3}, ".mutation: expected text, got a number"),
        ({"stand_in": 1}, ".stand_in: expected true or false, got a number"),
        ({"parent": "a"}, ".parent: is an unknown key; did you mean 'parents'?"),
    ],
)
def test_a_slip_in_lineage_has_its_place(tmp_path: Path, lineage: Any, expected: str) -> None:
    assert problems(tmp_path, entry(lineage=lineage)) == [f"$.templates[0].lineage{expected}"]


# ── a changed file ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_says_what_is_known_changes_nothing(tmp_path: Path) -> None:
    loaded = load(tmp_path, entry(), entry(id="two", text="Now: {{ question }}"))
    living = [replace(loaded[0], id="other", version=4), *loaded[1:]]
    assert reload(tmp_path / "prompts.json", living).new == ()
    assert reload(tmp_path / "prompts.json", living).same == 2


def test_new_templates_join_and_changed_ones_are_children_of_what_they_were(tmp_path: Path) -> None:
    old = load(tmp_path, entry(), entry(id="two~123456", text="Now: {{ question }}", lineage={"version": 3}))
    changed = entry(id="two~123456", text="Then: {{ question }}", task_type="sums")
    path = written(tmp_path, {"version": 1, "templates": [entry(id="new", text="New: {{ question }}"), changed]})
    found = reload(path, old)
    new, child = found.new
    assert (new.id, new.version, new.mutation, found.same) == ("new", 1, "seed", 0)
    assert child.id == f"two~{content_hash(child)}"
    assert (child.version, child.parents, child.mutation) == (4, ("two~123456",), "edit")
    assert child.note == "changed by hand: text, task_type"
    assert check_template(child) == []
    again = reload(path, [*old, *found.new])
    assert (again.new, again.same) == ((), 2)


def test_the_same_words_twice_in_a_file_are_one_new_template(tmp_path: Path) -> None:
    load(tmp_path, entry(), entry(id="two"))
    found = reload(tmp_path / "prompts.json", [])
    assert ([template.id for template in found.new], found.same) == (["one"], 1)


def test_an_invalid_file_changes_nothing_and_tells_all(tmp_path: Path) -> None:
    path = written(tmp_path, {"version": 1, "templates": [entry(text="a"), entry(id="x y"), entry(id="fine")]})
    with pytest.raises(ConfigError) as caught:
        reload(path, [])
    assert "$.templates[0].text: the placeholder {{ question }} is missing" in str(caught.value)
    assert "$.templates[1].id: 'x y' is no id" in str(caught.value)
