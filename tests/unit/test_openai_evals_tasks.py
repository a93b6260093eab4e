"""openai/evals samples as tasks, and how their answers are checked."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_ray.canonical import canonical, typed
from grpo_ray.errors import ConfigError
from grpo_ray.tasks.openai_evals import load_tasks, verify
from grpo_ray.types import Task

CHAT = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "2 + 2?"}]
REGISTRY = """
sums:
  id: sums.dev.v0
  metrics: [accuracy]
sums.dev.v0:
  class: evals.elsuite.basic.{kind}
  args:
    samples_jsonl: sums/samples.jsonl
    ignore_case: true
"""


def written(folder: Path, *samples: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "samples.jsonl"
    file.write_text("\n".join(s if isinstance(s, str) else json.dumps(s) for s in samples) + "\n", "utf-8")
    return str(file)


def task(check: str, *ideals: str, **about: Any) -> Task:
    more = {"ideals": len(ideals)} if len(ideals) > 1 else {}
    answer = ideals[0] if len(ideals) == 1 else json.dumps(ideals)
    return Task("t", "?", answer, metadata={"evals": {"check": check, **more, **about}})


def test_samples_become_tasks_and_ideals_never_metadata(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"input": CHAT, "ideal": "4", "topic": "sums"},
        {"input": "Name a primary colour.", "ideal": ["red", "blue", "red"]},
        {"input": [{"role": "user", "content": "Why?"}]},
        {
            "input": [*CHAT, {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 3 + 3?"}],
            "ideal": 6,
        },
    )
    chat, colour, why, long = load_tasks(path=path, task_type="x")
    assert chat.question == "Be exact.\n\n2 + 2?" and chat.answer == "4" and chat.metadata["topic"] == "sums"
    assert chat.verifier == "openai_evals" and chat.task_type == "x"
    assert json.loads(colour.answer or "") == ["red", "blue"] and colour.metadata == {
        "evals": {"check": "match", "ideals": 2}
    }
    assert why.question == "Why?" and why.answer is None and why.verifier is None
    assert long.question.split("\n\n") == ["System: Be exact.", "User: 2 + 2?", "Assistant: 4", "User: And 3 + 3?"]
    assert long.answer == "6"
    assert load_tasks(path=path, task_type="x") == (chat, colour, why, long)
    stored = typed(Task, json.loads(canonical(colour)))
    assert verify("Answer: blue", stored) == 1.0 and verify("Answer: green", stored) == 0.0


@pytest.mark.parametrize(
    ("kind", "check"),
    [("match:Match", "match"), ("includes:Includes", "includes"), ("fuzzy_match:FuzzyMatch", "fuzzy_match")],
)
def test_a_registry_says_where_and_how(tmp_path: Path, kind: str, check: str) -> None:
    (tmp_path / "evals").mkdir()
    registry = tmp_path / "evals" / "sums.yaml"
    registry.write_text(REGISTRY.format(kind=kind))
    written(tmp_path / "data" / "sums", {"input": "2 + 2?", "ideal": "Four"})
    (found,) = load_tasks(registry=str(registry))
    assert found.metadata["evals"] == {"check": check, "ignore_case": True}
    assert load_tasks(registry=str(registry), eval="sums.dev.v0", data=str(tmp_path / "data")) == (found,)
    (other,) = load_tasks(registry=str(registry), check="json_match")
    assert other.metadata["evals"]["check"] == "json_match"


def test_an_eval_that_a_model_grades_has_no_verifier(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    registry = tmp_path / "evals" / "sums.yaml"
    registry.write_text(REGISTRY.format(kind="x:ModelBasedClassify"))
    written(tmp_path / "data" / "sums", {"input": "2 + 2?", "ideal": "4"})
    (found,) = load_tasks(registry=str(registry), eval="sums")
    assert found.verifier is None and found.answer == "4"


def test_a_wrong_registry_is_named(tmp_path: Path) -> None:
    registry = tmp_path / "sums.yaml"
    registry.write_text(REGISTRY.format(kind="x:Debate"))
    for settings, said in (
        ({"registry": str(registry)}, "class Debate are not known"),
        ({"registry": str(registry), "eval": "products"}, "no eval 'products'; it has sums, sums.dev.v0"),
        ({"registry": str(registry), "check": "match"}, "can't read"),
        ({"registry": str(tmp_path / "none.yaml")}, "can't read"),
        ({}, "one of two settings"),
        ({"registry": "a", "path": "b"}, "one of two settings"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_tasks(**settings)
    registry.write_text("a: {id: b}\nb: {id: a}\n")
    with pytest.raises(ConfigError, match="no eval 'a'"):
        load_tasks(registry=str(registry))


def test_every_broken_line_is_named(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        *("{", {"ideal": "4"}, {"input": "x", "ideal": True}, {"input": [{"role": "user"}]}),
        *({"input": " "}, {"input": "x", "ideal": ["a", " "]}, '{"input": "x", "ideal": NaN}'),
    )
    with pytest.raises(ConfigError) as fault:
        load_tasks(path=path)
    lines = str(fault.value).splitlines()
    assert [line.split(":")[1] for line in lines] == list("1234567")
    for line, said in zip(
        lines, ("not JSON", "input", "ideal", "content", "`input` is empty", "every answer", "NaN"), strict=True
    ):
        assert said in line
    with pytest.raises(ConfigError, match="no samples"):
        load_tasks(path=written(tmp_path))


@pytest.mark.parametrize(
    ("ideal", "answer", "score"),
    [
        ("4", "4", 1), ("4", "4 apples", 1), ("4", "2 + 2 is\nAnswer: 4.", 1), ("4", "It is 4", 0), ("1", "12", 0),
        ("12", "12.5", 0), ("12", "12.", 1), ("Paris", "Parisian", 0), ("(a)", "(a)b", 1), ("4", "<think>5</think>4", 1),
    ],
)  # fmt: skip
def test_match_ends_where_a_word_ends(ideal: str, answer: str, score: float) -> None:
    assert verify(answer, task("match", ideal)) == score


def test_the_other_checks() -> None:
    assert verify("It is Paris.", task("includes", "Rome", "Paris")) == 1.0
    assert verify("it is paris", task("includes", "Paris")) == 0.0
    assert verify("it is paris", task("includes", "Paris", ignore_case=True)) == 1.0
    assert verify("Answer: the Eiffel tower!", task("fuzzy_match", "Eiffel Tower")) == 1.0
    assert verify("Answer: tower", task("fuzzy_match", "The Eiffel Tower, Paris")) == 1.0
    assert verify("Answer: e", task("fuzzy_match", "The Eiffel Tower")) == 0.0
    assert verify("the", task("fuzzy_match", "The Eiffel Tower")) == 0.0
    assert verify('```json\n{"b": 1, "a": [2]}\n```', task("json_match", '{"a": [2], "b": 1}')) == 1.0
    assert verify("no json", task("json_match", "neither")) == 0.0 and verify("null", task("json_match", "x")) == 0.0


def test_a_task_without_an_answer_gets_no_verdict() -> None:
    with pytest.raises(ValueError, match="no reference answer"):
        verify("4", Task("t", "Why?"))
