"""The bundled rewards, one by one."""

from dataclasses import replace
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import group, said

from grpo_ray.answers import final_answer, marked_answer
from grpo_ray.rewards import format, judge_score, verified

ONE = group("5+8=13\nAnswer: 13")
ROLLOUT = ONE.rollouts[0]


def test_verified_is_the_verifiers_word_or_missing() -> None:
    assert verified.reward(ROLLOUT, [said("r-0", "verified", 1.0), said("r-0", "clarity", 0.0)], ONE) == 1.0
    assert verified.reward(ROLLOUT, [said("r-0", "verified", None)], ONE) is None
    assert verified.reward(ROLLOUT, [], ONE) is None
    assert verified.reward(ROLLOUT, [said("r-0", "tests", 0.5)], ONE, dimension="tests") == 0.5


def test_judge_score_averages_what_one_judge_scored() -> None:
    heard = [said("r-0", "a", 1.0), said("r-0", "b", 0.0), said("r-0", "c", None), said("r-0", "a", 0.0, "other")]
    assert judge_score.reward(ROLLOUT, heard, ONE) == 0.5
    assert judge_score.reward(ROLLOUT, heard, ONE, dimensions={"a": 3.0, "b": 1.0}) == 0.75
    assert judge_score.reward(ROLLOUT, heard, ONE, dimensions={"c": 1.0}) is None
    assert judge_score.reward(ROLLOUT, heard, ONE, judge="nobody") is None


@pytest.mark.parametrize(
    ("text", "finish", "value"),
    [("Answer: 13", "stop", 1.0), ("Answer: 13", "length", 0.5), ("13", "stop", 0.5), ("Answer:", "length", 0.0)],
)
def test_format_wants_a_marked_answer_and_an_end(text: str, finish: str, value: float) -> None:
    rollout = replace(ROLLOUT, text=text, finish_reason=finish)  # pyright: ignore[reportArgumentType]
    assert format.reward(rollout, [], ONE) == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5+8=13\nAnswer: 13", "13"),
        ("Answer: 1\nNo.\nAnswer: 2 ", "2"),
        ("so the final answer: **42**.", "42**."),
        ("**Answer:** 42", "42"),
        ("Answer:\n\n  $7$\n", "7"),
        ("thinking\n\n  12 \n\n", "12"),
        ("<think>Answer: 3? No.</think>\nIt is 4.", "It is 4."),
        ("<think>7?</think>Answer: 8", "8"),
        ("ANSWER: yes", "yes"),
        ("", ""),
        ("Answer:", ""),
    ],
)
def test_the_final_answer_is_what_a_reader_would_take(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@settings(deadline=None)
@given(st.text(), st.text(alphabet="abc123").filter(bool))
def test_what_stands_after_the_last_mark_is_the_answer(before: str, answer: str) -> None:
    assert final_answer(f"{before}\nAnswer: {answer}") == marked_answer(f"{before}\nAnswer: {answer}") == answer


@pytest.mark.parametrize(("name", "reward"), [("verified", verified), ("judge_score", judge_score), ("format", format)])
def test_the_working_of_a_reward_ends_in_its_value(name: str, reward: ModuleType) -> None:
    heard = [said("r-0", "verified", 1.0, "verifier"), said("r-0", "a", 0.25), said("r-0", "b", 1.0)]
    expected = {
        "verified": ("mean of verifier 1", 1.0),
        "judge_score": ("(1·1 (verified) + 3·0.5 (a)) / 4", 0.625),
        "format": ("0.5·1 (an answer) + 0.5·1 (came to its end)", 1.0),
    }
    if name == "judge_score":
        heard = [said("r-0", "verified", 1.0), said("r-0", "a", 0.5), said("r-0", "b", None), said("r-0", "c", 0.1)]
        chosen = {"dimensions": {"verified": 1.0, "a": 3.0}}
    else:
        chosen = {}
    assert (reward.working(ROLLOUT, heard, ONE, **chosen), reward.reward(ROLLOUT, heard, ONE, **chosen)) == expected[
        name
    ]


def test_the_working_of_nothing_says_so() -> None:
    assert verified.working(ROLLOUT, [], ONE) == "nobody scored 'verified'"
    assert judge_score.working(ROLLOUT, [], ONE, judge="panel") == "panel scored nothing that counts"
