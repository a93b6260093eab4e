"""What every mutation keeps, whatever its parents bring."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from grpo_ray.asking import Silent
from grpo_ray.canonical import canonical
from grpo_ray.pieces import jinja
from grpo_ray.prompting import check_template, content_hash
from grpo_ray.registry import find, names
from grpo_ray.stand_ins.replies import reply_to
from grpo_ray.types import (
    Choice,
    Evaluation,
    Example,
    Message,
    Parameter,
    Parent,
    Prompt,
    Reply,
    Reward,
    Rollout,
    ScoredRollout,
    Task,
    Template,
)

MUTATIONS = names("mutations")
WORDS = "Add them up. Be a good pupil."
STEPS = Parameter("steps", (Choice("none", ""), Choice("one", " Keep one note."), Choice("all", " Keep every note.")))
SHOTS = Parameter("few_shot", tuple(Choice(label, label) for label in "012"))
EXAMPLES = (Example("1 + 1?", "Answer: 2"), Example("2 + 2?", "Answer: 4"))
SEEDS = {
    "bare": Template("bare", "{{ question }}"),
    "words": Template("words", f"{WORDS}\n\nQuestion: {{{{ question }}}}", system="You are a clerk."),
    "conditions": Template(
        "conditions",
        f"{WORDS}{{{{ steps }}}}{{% if settings.steps == 'all' %}} Mind the order.{{% endif %}}\n\n{{{{ question }}}}",
        parameters=(STEPS,),
        settings=(("steps", "one"),),
    ),
    "examples": Template("examples", f"{WORDS}\n{{{{ examples }}}}{{{{ question }}}}", examples=EXAMPLES),
    "all": Template(
        "all",
        f"{WORDS}{{{{ steps }}}}\n\n{{{{ examples }}}}Question: {{{{ question }}}}",
        task_type="sums",
        parameters=(STEPS, SHOTS),
        settings=(("steps", "none"), ("few_shot", "1")),
        examples=EXAMPLES,
    ),
}
MATE = replace(SEEDS["all"], id="mate", text=SEEDS["all"].text.replace("Be a", "Write it down. Be a"), settings=(("steps", "all"), ("few_shot", "0")))  # fmt: skip
HOPES = (
    *(("steps=none", -0.1), ("steps=one", 0.0), ("steps=all", 0.2), ("few_shot=0", 0.01), ("few_shot=1", 0.02)),
    *(("few_shot=2", 0.0), ("Add them up.", 0.1), ("Be a good pupil.", -0.05), ("Write it down.", 0.2)),
)


class Answering(Silent):
    """The bundled stand-in, without its server."""

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        said = [{"role": message.role, "content": message.content} for message in messages]
        form = (
            {"type": "json_schema", "json_schema": {"schema": shape.model_json_schema()}} if shape else {"type": "text"}
        )
        text = reply_to(said, form)
        return Reply(shape.model_validate_json(text).model_dump_json() if shape else text, "stand-in", True)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0, 0.0] for _ in texts]

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        return [1.0 for _ in answers]


def rollout(question: str, text: str, value: float) -> tuple[Prompt, ScoredRollout]:
    prompt = Prompt(f"p {question}", "t", Task(question, question, None, "sums"), (Message("user", question),))
    made = Rollout(f"{question} {value}", 0, text, (1,), (0.0,), "stop", 1)
    said = Evaluation(made.id, "rubric", "clarity", value, "No working is shown before the answer.")
    return prompt, ScoredRollout(made, (said,), Reward(value, ()))


def parents(seed: str, *, hopes: bool, alone: bool = False, shown: bool = True) -> list[Parent]:
    best, worst = (rollout("4 + 5?", "4+5=9\nAnswer: 9", 1.0),), (rollout("4 + 5?", "Answer: 8", 0.0),)
    first = Parent(SEEDS[seed], 0.1, best if shown else (), worst if shown else (), (("all~0ab0ab", "-0.2"),))
    first = replace(first, hopes=HOPES if hopes else ())
    return [first] if alone else [first, Parent(MATE, 0.2, best, worst), Parent(SEEDS["words"], 0.0, (), ())]


def born(mutation: str, family: Sequence[Parent], seed: int = 1) -> Template:
    return asyncio.run(find("mutations", mutation, "mutate")(family, Answering(), random.Random(seed)))


@pytest.mark.parametrize("hopes", [True, False], ids=["hopes", "none"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_child_is_valid_and_keeps_its_placeholders(mutation: str, seed: str, hopes: bool) -> None:
    family = parents(seed, hopes=hopes)
    before = canonical(family)
    for number in range(5):
        child = born(mutation, family, number)
        first = family[0].template
        assert check_template(child) == []
        assert jinja(f"{child.text} {child.system}") == jinja(f"{first.text} {first.system}")
        assert (child.parameters, child.task_type) == (first.parameters, first.task_type)
        assert child.mutation == mutation and child.parents[0] == first.id
        assert {*child.parents} <= {parent.template.id for parent in family}
        assert 0 < len(child.note) <= 500 or content_hash(child) == content_hash(first)
        assert child == born(mutation, family, number)
    assert canonical(family) == before


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_where_much_can_change_something_does(mutation: str) -> None:
    for hopes in (True, False):
        family = parents("all", hopes=hopes)
        lost = mutation == "recombine" and not hopes  # it has nothing else to go by
        assert (content_hash(born(mutation, family)) == content_hash(family[0].template)) == lost


@pytest.mark.parametrize("mutation", sorted({*MUTATIONS} - {"rewrite"}))
def test_where_nothing_can_change_the_parent_stays_as_it_is(mutation: str) -> None:
    family = parents("bare", hopes=False, alone=True, shown=False)
    child = born(mutation, family)
    assert content_hash(child) == content_hash(family[0].template) and child.mutation == mutation
