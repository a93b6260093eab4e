"""Rows hold what was good enough, once; a task has one split."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ray.curation import SPLITS, pairs, rows, split
from grpo_ray.types import (
    Evaluation,
    Group,
    Lesson,
    Message,
    Prompt,
    Reward,
    Rollout,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
    TaskSet,
)

Answer = tuple[str, float | None, float | None]
"""(text, reward, what the verifier said)"""


def lesson(task: str, answers: list[Answer], name: str = "") -> Lesson:
    id = name or f"g-{task}"
    prompt = Prompt(f"p-{id}", "t-1", Task(task, f"{task}?"), (Message("user", f"{task}?"),))
    drawn = tuple(Rollout(f"{id}-{i}", i, text, (1,), (-0.5,), "stop", i) for i, (text, _, _) in enumerate(answers))
    marked = tuple(
        ScoredRollout(one, (Evaluation(one.id, "verifier", "verified", said, "so"),), Reward(reward, ()))
        for one, (_, reward, said) in zip(drawn, answers, strict=True)
    )
    group = Group(id, prompt, drawn, (1,), Sampling(), "nano", None)
    return Lesson(ScoredGroup(group, marked), tuple(0.0 for _ in answers))


answers = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.none() | st.floats(0, 1), st.sampled_from([None, 0.0, 0.5, 1.0])),
    min_size=1,
    max_size=5,
)
some_lessons = st.dictionaries(st.text("xyz", min_size=1, max_size=3), answers, max_size=8).map(
    lambda found: [lesson(task, of) for task, of in found.items()]
)


@given(some_lessons, st.randoms(use_true_random=False))
def test_rows_are_good_unique_and_in_one_order(lessons: list[Lesson], random) -> None:
    found = rows(lessons, min_reward=0.4, per_task=2)
    shuffled = list(lessons)
    random.shuffle(shuffled)
    assert rows(shuffled, min_reward=0.4, per_task=2) == found
    assert all(row.reward >= 0.4 for row in found)
    assert len({row.id for row in found}) == len(found)
    assert all(count <= 2 for count in Counter(row.task_id for row in found).values())
    said = {one.rollout.id: one.evaluations[0].score for of in lessons for one in of.group.rollouts}
    assert all(said[row.rollout_id] in (None, 1.0) for row in found)


@given(st.sets(st.text(min_size=1), max_size=60))
@settings(max_examples=60)
def test_every_task_has_a_split_and_no_split_is_empty(tasks: set[str]) -> None:
    found = split(tasks)
    assert found.keys() == tasks
    assert set(found.values()) == (set(SPLITS) if len(tasks) >= 3 else {"train"} if tasks else set())


def test_splits_are_about_ninety_five_five_and_stay_when_tasks_are_added() -> None:
    many = split(f"task-{i}" for i in range(4000))
    shares = Counter(many.values())
    assert 3500 < shares["train"] < 3700 and 140 < shares["validation"] < 260 and 140 < shares["test"] < 260
    more = split(f"task-{i}" for i in range(5000))
    assert all(more[task] == of for task, of in many.items())


def test_the_best_of_a_task_comes_first_and_each_text_once() -> None:
    found = rows([lesson("sum", [("b", 0.7, 1.0), ("a", 0.9, None), ("a", 0.8, 1.0), ("c", 0.6, 1.0)])], per_task=2)
    assert [(row.messages[-1].content, row.reward) for row in found] == [("a", 0.9), ("b", 0.7)]
    assert found[0].messages == (Message("user", "sum?"), Message("assistant", "a"))


def test_a_well_rewarded_wrong_answer_is_no_row() -> None:
    assert rows([lesson("sum", [("a", 0.9, 0.0), ("b", 0.9, 0.99)])]) == []


def test_row_ids_hash_content_and_not_where_it_came_from() -> None:
    (one,), (two,) = (rows([lesson("sum", [("a", 0.9, 1.0)], name)]) for name in ("g-1", "g-2"))
    assert one.id == two.id and one.rollout_id != two.rollout_id


def test_tasks_kept_for_exams_make_no_rows() -> None:
    kept = Task("exam", "exam?")
    lessons = [lesson("sum", [("a", 0.9, 1.0)]), lesson("exam", [("a", 0.9, 1.0)])]
    found = rows(lessons, TaskSet((Task("sum", "sum?"),), (), (kept,)))
    assert [row.task_id for row in found] == ["sum"]


@given(some_lessons)
def test_pairs_are_of_one_prompt_and_far_enough_apart(lessons: list[Lesson]) -> None:
    by_id = {one.rollout.id: one for of in lessons for one in of.group.rollouts}
    for pair in pairs(lessons, margin=0.3):
        best, worst = by_id[pair.chosen_rollout], by_id[pair.rejected_rollout]
        assert best.reward.value is not None and worst.reward.value is not None
        assert best.reward.value - worst.reward.value == pair.margin >= 0.3
        assert pair.chosen != pair.rejected and best.evaluations[0].score in (None, 1.0)


def test_a_pair_is_the_best_against_the_worst() -> None:
    (pair,) = pairs([lesson("sum", [("b", 0.5, 1.0), ("a", 0.9, 1.0), ("c", 0.1, 0.0)])])
    assert (pair.chosen, pair.rejected, pair.messages) == ("a", "c", (Message("user", "sum?"),))
    assert pairs([lesson("sum", [("b", 0.5, 1.0), ("a", 0.6, 1.0)])]) == []
