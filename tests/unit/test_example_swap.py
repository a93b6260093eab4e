"""Worked examples from the run's own rollouts."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from grpo_ray.mutations.example_swap import mutate
from grpo_ray.prompting import check_template, content_hash, examples_block
from grpo_ray.types import (
    Choice,
    Evaluation,
    Example,
    Message,
    Parameter,
    Parent,
    Prompt,
    Reward,
    Rollout,
    ScoredRollout,
    Task,
    Template,
)

SHOTS = Parameter("few_shot", tuple(Choice(label, label) for label in "0123"))
OLD = tuple(Example(f"{n} + {n}?", str(2 * n)) for n in (1, 2, 3))
TEXT = "Add.\n\n{{ examples }}Question: {{ question }}"
SEED = Template("one", TEXT, task_type="sums", parameters=(SHOTS,), settings=(("few_shot", "2"),), examples=OLD)
Shown = tuple[Prompt, ScoredRollout]


def shown(
    question: str, value: float | None = 1.0, *, verified: float | None = 1.0, text: str = " so: 9\n", kind: str = "sums",
    finish: Any = "stop", audit: str = "",
) -> Shown:  # fmt: skip
    prompt = Prompt(f"p-{question}", "one", Task(question, question, None, kind), (Message("user", question),))
    rollout = Rollout(f"r-{question}", 0, text, (1,), (0.0,), finish, 1)
    said = (Evaluation(rollout.id, "verifier", "verified", verified, "", audit=audit),)
    return prompt, ScoredRollout(rollout, said, Reward(value, ()))


def swapped(*best: Shown, template: Template = SEED, rejected: Any = (), kin: tuple[Shown, ...] = (), seed: int = 1, **settings: Any) -> Template:  # fmt: skip
    parents = [Parent(template, 0.1, best, (), tuple(rejected)), Parent(SEED, 0.0, kin, ())]
    return asyncio.run(mutate(parents, None, random.Random(seed), **settings))  # type: ignore[arg-type]


def questions(template: Template) -> list[str]:
    return [example.question for example in template.examples]


def test_the_best_rollout_takes_the_place_of_the_example_shown_last() -> None:
    child = swapped(shown("4 + 5?", 0.8), shown("6 + 3?", 0.9))
    assert child.examples[0] == Example("6 + 3?", "so: 9")
    assert questions(child) == ["6 + 3?", "1 + 1?", "3 + 3?"] and child.settings == SEED.settings
    assert (child.parents, child.mutation) == (("one",), "example_swap")
    assert "'2 + 2?' replaced by '6 + 3?', reward 0.90" in child.note
    assert check_template(child) == []


def test_where_no_example_is_shown_one_is() -> None:
    child = swapped(shown("4 + 5?"), template=replace(SEED, settings=(("few_shot", "0"),)))
    assert child.settings == (("few_shot", "1"),) and questions(child) == ["4 + 5?", "1 + 1?", "2 + 2?"]
    assert examples_block(child).count("Question") == 1 and "few_shot: 0 → 1" in child.note


def test_without_a_parameter_the_examples_grow_to_most() -> None:
    bare = replace(SEED, parameters=(), settings=())
    assert questions(swapped(shown("4 + 5?"), template=bare, most=4)) == ["4 + 5?", "1 + 1?", "2 + 2?", "3 + 3?"]
    assert questions(swapped(shown("4 + 5?"), template=bare)) == ["4 + 5?", "1 + 1?", "2 + 2?"]
    assert questions(swapped(shown("4 + 5?"), template=bare, most=1)) == ["4 + 5?"]


@pytest.mark.parametrize(
    "poor",
    [
        shown("4 + 5?", 0.6),  # under the floor
        shown("4 + 5?", None),
        shown("4 + 5?", verified=0.5),  # a good reward, and yet wrong
        shown("4 + 5?", finish="length"),
        shown("4 + 5?", text="  "),
        shown("4 + 5?", text="x" * 800),
        shown("2  + 2?"),  # there is an example with this question
        shown("4 + 5?", kind="words"),
    ],
)
def test_what_makes_no_example(poor: Shown) -> None:
    child = swapped(poor)
    assert content_hash(child) == content_hash(SEED) and child.mutation == "example_swap"


def test_what_nobody_could_check_counts_by_its_reward() -> None:
    assert questions(swapped(shown("4 + 5?", 0.7, verified=None)))[0] == "4 + 5?"
    assert questions(swapped(shown("4 + 5?", verified=0.0, audit="repeat")))[0] == "4 + 5?"
    assert questions(swapped(shown("4 + 5?", 0.6), floor=0.5))[0] == "4 + 5?"


def test_kin_lend_their_best_and_equals_take_turns() -> None:
    found = {questions(swapped(shown("4 + 5?"), kin=(shown("6 + 3?"),), seed=seed))[0] for seed in range(20)}
    assert found == {"4 + 5?", "6 + 3?"}


def test_what_was_tried_is_passed_over() -> None:
    first = swapped(shown("4 + 5?"))
    second = swapped(shown("4 + 5?"), shown("6 + 3?", 0.8), rejected=[(f"one~{content_hash(first)}", "no")])
    assert questions(second)[0] == "6 + 3?"


def test_a_template_that_shows_no_examples_stays_as_it_is() -> None:
    bare = Template("two", "{{ question }}", task_type="sums")
    none = replace(SEED, parameters=(Parameter("few_shot", (Choice("0", "0"),)),), settings=(("few_shot", "0"),))
    for template in (bare, none):
        assert content_hash(swapped(shown("4 + 5?"), template=template)) == content_hash(template)
