"""Task sources: reasoning_gym by name and parameters, JSON lines with every broken line named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ray.canonical import canonical, typed
from grpo_ray.errors import ConfigError
from grpo_ray.tasks import jsonl, reasoning_gym
from grpo_ray.types import Task

SUMS: dict[str, Any] = {"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3}


def test_the_same_settings_make_the_same_tasks() -> None:
    first = reasoning_gym.load_tasks(dataset="chain_sum", size=20, seed=3, parameters=SUMS)
    assert first == reasoning_gym.load_tasks(dataset="chain_sum", size=20, seed=3, parameters=SUMS)
    assert first != reasoning_gym.load_tasks(dataset="chain_sum", size=20, seed=4, parameters=SUMS)
    assert len({task.id for task in first}) == 20


@pytest.mark.parametrize(
    "dataset", ["chain_sum", "products", "spell_backward", "rearc", "arc_agi", "calendar_arithmetic"]
)
def test_right_answers_pass_and_others_do_not_after_a_trip_through_json(dataset: str) -> None:
    for task in reasoning_gym.load_tasks(dataset=dataset, size=3, task_type="x"):
        stored = typed(Task, json.loads(canonical(task)))
        assert reasoning_gym.verify(f"some working\nAnswer: {task.answer}", stored) == 1.0
        assert reasoning_gym.verify("Answer: zzz", stored) == 0.0
        assert stored.task_type == "x"


def test_partial_credit_is_no_credit_and_a_full_stop_is_no_fault() -> None:
    (task,) = reasoning_gym.load_tasks(dataset="chain_sum", size=1, parameters=SUMS)
    assert reasoning_gym.verify(f"Answer: {task.answer}.", task) == 1.0
    assert reasoning_gym.verify(f"Answer: about {task.answer} or so", task) == 0.0
    assert reasoning_gym.verify(str(task.answer), task) == 1.0


def test_a_task_that_is_not_made_here_any_more_gets_no_verdict() -> None:
    (task,) = reasoning_gym.load_tasks(dataset="chain_sum", size=1, parameters=SUMS)
    with pytest.raises(ValueError, match="another question"):
        reasoning_gym.verify("1", replace(task, question="What?"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "chain_sums", "size": 3}, "did you mean 'chain_sum'"),
        ({"dataset": "chain_sum", "size": 0}, "size is 0"),
        ({"dataset": "chain_sum", "size": 3, "parameters": {"min_term": 2}}, "did you mean 'min_terms'"),
        ({"dataset": "chain_sum", "size": 3, "parameters": {"min_terms": 9, "max_terms": 2}}, "refuses"),
        ({"dataset": "chain_sum", "size": 3, "parameters": {"seed": 2}}, "no parameter 'seed'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reasoning_gym.load_tasks(**settings)


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines), "utf-8")
    return str(path)


def test_lines_become_tasks_with_their_fields(tmp_path: Path) -> None:
    lines = ['{"q": "2+2?", "a": 4, "level": 1}', "", '{"q": "Why?", "level": 2}']
    first, second = jsonl.load_tasks(
        path=write(tmp_path / "t.jsonl", *lines), question="q", answer="a", task_type="sums"
    )
    assert (first.question, first.answer, first.verifier, first.task_type) == ("2+2?", "4", "jsonl", "sums")
    assert dict(first.metadata) == {"level": 1}
    assert (second.answer, second.verifier) == (None, None)


def test_every_broken_line_is_listed_with_its_number(tmp_path: Path) -> None:
    lines = [
        '{"question": "fine?"}', "{broken", '["no object"]', '{"text": "x"}', '{"question": ""}', '{"question": 3}',
        '{"question": "x", "answer": [1]}', '{"question": NaN}',
    ]  # fmt: skip
    path = write(tmp_path / "t.jsonl", *lines)
    with pytest.raises(ConfigError) as caught:
        jsonl.load_tasks(path=path)
    problems = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in problems] == [f"{path}:{n}" for n in range(2, 9)]
    assert "not JSON" in problems[0] and "no field 'question'; it has 'text'" in problems[2]


def test_many_broken_lines_are_counted(tmp_path: Path) -> None:
    """The same problem is told once; of many different ones, the first."""
    with pytest.raises(ConfigError, match=r"t\.jsonl:1: not JSON: .* \(and 49 more such lines\)$"):
        jsonl.load_tasks(path=write(tmp_path / "t.jsonl", *["{"] * 50))
    with pytest.raises(ConfigError, match=r"and 30 more$"):
        jsonl.load_tasks(path=write(tmp_path / "u.jsonl", *[f'{{"text{n}": 1}}' for n in range(50)]))


def test_files_that_hold_nothing_or_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no tasks"):
        jsonl.load_tasks(path=write(tmp_path / "empty.jsonl", "", "  "))
    with pytest.raises(ConfigError, match=r"can't read the task file .*No such file"):
        jsonl.load_tasks(path=str(tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "a"}\n{"question": "\xe9"}\n')
    with pytest.raises(ConfigError, match=r"latin.jsonl:2: not UTF-8"):
        jsonl.load_tasks(path=str(tmp_path / "latin.jsonl"))


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "w.jsonl").write_bytes(b'\xef\xbb\xbf{"question": "a"}\r\n{"question": "b"}\r\n')
    assert [task.question for task in jsonl.load_tasks(path=str(tmp_path / "w.jsonl"))] == ["a", "b"]


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        ("Answer: 1,234", "1234", 1.0), ("Answer: 12.50", "12.5", 1.0), ("Answer: 1/2", "0.5", 1.0),
        ("Answer: $5", "5", 1.0), ("Answer: Paris.", "paris", 1.0), ("The  Big   Apple", "the big apple", 1.0),
        ("Answer: London", "Paris", 0.0), ("Answer: 12", "13", 0.0), ("Answer: 1 2", "12", 0.0), ("", "0", 0.0),
        ("Answer: 1e3", "1000", 1.0), ("Answer: inf", "nan", 0.0), ("Answer: 1/0", "0", 0.0),
    ],
)  # fmt: skip
def test_answers_are_compared_as_numbers_or_as_words(answer: str, reference: str, verdict: float) -> None:
    assert jsonl.verify(answer, Task("t", "?", reference, verifier="jsonl")) == verdict


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_a_number_is_itself_however_it_is_written(value: int) -> None:
    task = Task("t", "?", str(value), verifier="jsonl")
    assert jsonl.verify(f"Answer: {value:,}", task) == jsonl.verify(f"Answer: {value}.0", task) == 1.0
    assert jsonl.verify(f"Answer: {value + 1}", task) == 0.0


def test_the_example_of_an_empty_file_is_a_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no tasks") as caught:
        jsonl.load_tasks(path=write(tmp_path / "t.jsonl", ""), question='the "question"')
    example = str(caught.value).partition("such as ")[2]
    (task,) = jsonl.load_tasks(path=write(tmp_path / "t.jsonl", example), question='the "question"')
    assert task.answer == "4"
