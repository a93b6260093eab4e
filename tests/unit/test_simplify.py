"""Making a template shorter where that costs nothing."""

import asyncio
import random
from dataclasses import replace
from typing import Any

from grpo_ray.mutations.simplify import mutate
from grpo_ray.pieces import jinja
from grpo_ray.prompting import check_template, content_hash
from grpo_ray.types import Choice, Example, Parameter, Parent, Template

TONE = Parameter("tone", (Choice("short", "Go."), Choice("long", "Go on as you like.")))
SHOTS = Parameter("few_shot", tuple(Choice(label, label) for label in "012"))
EXAMPLES = (Example("1 + 1?", "2"), Example("2 + 2?", "4"))
TEXT = "Add the numbers. Be a good pupil. {{ tone }}\n\n{{ examples }}Question: {{ question }}"
SEED = Template(
    "one", TEXT, parameters=(TONE, SHOTS), settings=(("tone", "long"), ("few_shot", "2")), examples=EXAMPLES
)
HOPES = (
    *(("Add the numbers.", 0.5), ("Be a good pupil.", 0.3), ("tone=short", 0.0), ("tone=long", 0.4)),
    *(("few_shot=0", 0.0), ("few_shot=1", 0.1), ("few_shot=2", 0.4)),
)


def shorter(template: Template = SEED, seed: int = 1, rejected: Any = (), **hopes: float) -> Template:
    told = {**dict(HOPES), **{key.replace("__", "="): value for key, value in hopes.items()}} if hopes else {}
    parent = Parent(template, 0.0, (), (), tuple(rejected), tuple(told.items()))
    return asyncio.run(mutate([parent], None, random.Random(seed)))  # type: ignore[arg-type]


def test_what_adds_least_for_its_length_goes() -> None:
    assert shorter(tone__long=0.01).settings[0] == ("tone", "short")
    assert dict(shorter(few_shot__0=0.39).settings)["few_shot"] == "0"
    assert dict(shorter(few_shot__1=0.39).settings)["few_shot"] == "1"
    child = shorter(**{"Be a good pupil.": 0.001})
    assert child.text == TEXT.replace("Be a good pupil. ", "")
    assert (child.parents, child.mutation) == (("one",), "simplify")
    assert child.note == "without 'Be a good pupil.': 17 characters less"
    assert shorter(**{"Be a good pupil.": 0.01, "Add the numbers.": -0.1}).text.startswith("Be a good pupil.")


def test_what_is_needed_stays() -> None:
    assert content_hash(shorter(tone__short=0.0)) == content_hash(SEED)  # everything else costs more than the loss


def test_without_hopes_chance_decides_and_only_words_go() -> None:
    found = [shorter(seed=seed) for seed in range(40)]
    assert (
        len({content_hash(child) for child in found}) == 5
    )  # two sentences, one shorter text, one example less or two
    assert all(jinja(child.text) == jinja(TEXT) and not check_template(child) for child in found)
    assert found == [shorter(seed=seed) for seed in range(40)]


def test_what_was_tried_is_not_tried_again() -> None:
    tried: list[Template] = []
    for _ in range(5):
        tried.append(shorter(rejected=[(f"one~{content_hash(one)}", "no") for one in tried]))
    assert len({content_hash(one) for one in tried}) == 5
    last = shorter(rejected=[(f"one~{content_hash(one)}", "no") for one in tried])
    assert content_hash(last) == content_hash(SEED) and last.note == "nothing can go"


def test_examples_that_no_parameter_counts_go_one_by_one_but_for_the_last() -> None:
    bare = Template("two", "{{ examples }}{{ question }}", examples=EXAMPLES)
    child = shorter(bare)
    assert child.examples == EXAMPLES[:1]
    assert content_hash(shorter(child)) == content_hash(child)


def test_a_system_text_that_is_said_away_is_none() -> None:
    child = shorter(replace(SEED, text="{{ question }}", system="Sir.", parameters=(), settings=(), examples=()))
    assert child.system is None and child.text == "{{ question }}"
