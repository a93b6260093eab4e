"""The cut: disjoint, in proportion, the same whatever the order, and clear when there is too little."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ray.errors import ConfigError
from grpo_ray.recipe import Named, Recipe, Splits
from grpo_ray.splits import cut, load, normalised
from grpo_ray.types import Task, TaskSet


def tasks(kind: str, count: int) -> list[Task]:
    return [Task(f"{kind}-{i}", f"{kind} question {i}?", task_type=kind) for i in range(count)]


def parts(found: TaskSet) -> list[tuple[Task, ...]]:
    return [found.train, found.validation, found.heldout]


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 3))
def test_splits_never_overlap_and_lose_nothing(counts: list[int], seed: int) -> None:
    sources = [tasks(f"k{i}", count) for i, count in enumerate(counts)]
    if sum(counts) < 3:
        return
    found = cut(sources, Splits(), seed)
    questions = [normalised(task.question) for part in parts(found) for task in part]
    assert len(questions) == len(set(questions)) == sum(counts)


@settings(deadline=None)
@given(st.lists(st.integers(11, 40), min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_every_source_is_shared_in_proportion_and_order_does_not_matter(counts: list[int], random: Random) -> None:
    sources = [tasks(f"k{i}", count) for i, count in enumerate(counts)]
    found = cut(sources, Splits(train=6, validation=7, heldout=8), 1)
    for part in (found.heldout, found.validation, found.train):
        have = Counter(task.task_type for task in part)
        for i, count in enumerate(counts):
            assert abs(have[f"k{i}"] - len(part) * count / sum(counts)) < 2
    for source in sources:
        random.shuffle(source)
    assert cut(sources, Splits(train=6, validation=7, heldout=8), 1) == found


def test_a_question_asked_twice_is_one_task() -> None:
    first = [Task("a", "What is  2 + 2?"), Task("b", "Why?")]
    second = [Task("c", "what is 2 + 2?"), Task("d", "When?")]
    found = cut([first, second], Splits(train=1, validation=1, heldout=1), 0)
    assert {task.id for part in parts(found) for task in part} == {"a", "b", "d"}


def test_seeds_cut_differently() -> None:
    assert cut([tasks("k", 50)], Splits(), 1) != cut([tasks("k", 50)], Splits(), 2)


def test_a_tenth_is_the_default() -> None:
    found = cut([tasks("k", 50)], Splits(heldout=20), 0)
    assert [len(part) for part in parts(found)] == [25, 5, 20]


def test_too_few_tasks_are_counted() -> None:
    with pytest.raises(
        ConfigError,
        match=r"`tasks` hold 10 different questions, but the splits take 24 \(train 4, validation 10, heldout 10",
    ):
        cut([tasks("k", 10)], Splits(train=4, validation=10, heldout=10), 0)
    with pytest.raises(
        ConfigError, match=r"hold 2 different questions.* set splits\.train, splits\.validation and splits\.heldout"
    ):
        cut([tasks("k", 2)], Splits(), 0)
    with pytest.raises(ConfigError, match=r"splits\.train is -1"):
        cut([tasks("k", 9)], Splits(train=-1), 0)


def test_load_lists_the_problems_of_all_sources(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "x"}\n{')
    sources = (
        Named(name="jsonl", settings={"path": str(tmp_path / "bad.jsonl")}),
        Named(name="reasoning_gim", settings={}),
        Named(name="jsonl", settings={"pth": "x"}),
        Named(name="reasoning_gym", settings={"dataset": "chain_sum", "size": "many"}),
    )
    with pytest.raises(ConfigError) as caught:
        load(Recipe(tasks=sources))
    problems = str(caught.value).splitlines()
    assert problems[0].startswith(f"tasks.0: {tmp_path}/bad.jsonl:2: not JSON")
    assert "tasks.1: no tasks file is called 'reasoning_gim'; did you mean 'reasoning_gym'?" in problems
    assert "tasks.2: tasks 'jsonl' has no setting 'pth'; did you mean 'path'?" in problems
    assert "tasks.2: tasks 'jsonl' needs the setting 'path'" in problems
    assert any(line == "tasks.3.settings.size: expected a whole number, got 'many'" for line in problems)


def test_load_cuts_what_the_recipe_names() -> None:
    settings = {"dataset": "chain_sum", "size": 40, "parameters": {"min_terms": 2, "max_terms": 2}}
    found = load(Recipe(tasks=(Named(name="reasoning_gym", settings=settings),), splits=Splits(heldout=10)))
    assert len(found.heldout) == 10 and found.train and found.validation
