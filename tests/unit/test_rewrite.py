"""The rewriting mutation: what it shows, what it accepts, what it makes."""

import asyncio
import random
from typing import Any

import pytest
from serving import Canned, group, said, stand_in, template

from grpo_ray.checker import Checker
from grpo_ray.errors import OracleError
from grpo_ray.fenced import unfenced
from grpo_ray.mutations.rewrite import mutate, problems
from grpo_ray.oracle import make_oracle
from grpo_ray.prompting import check_template
from grpo_ray.recipe import OracleSpec
from grpo_ray.storage.memory import MemoryStore
from grpo_ray.types import Choice, Parameter, Parent, Reward, ScoredRollout, Template

TEXT = "Have a look at this. {{ clarity }}\n\nQuestion: {{ question }}"
SEED = Template(
    "sums", TEXT, parameters=(Parameter("clarity", (Choice("plain", "Reckon it."),)),), settings=(("clarity", "plain"),)
)


def parent(one: Template = SEED, rationale: str = "No working is shown before the answer.") -> Parent:
    made = group("Answer: 12", "Answer: 1023")
    low, high = (
        (made.prompt, ScoredRollout(r, (said(r.id, rationale, 0.25),), Reward(value, ())))
        for r, value in zip(made.rollouts, (0.0, 1.0), strict=True)
    )
    return Parent(one, 0.1, best=(high,), worst=(low,), rejected=(("sums~1", "-0.2 over 9 trials"),))


def reply(text: str) -> dict[str, Any]:
    return {"diagnosis": "It lets the answer come\nwithout working.", "text": text}


def born(oracle: Canned, one: Parent | None = None) -> Template:
    return asyncio.run(mutate([one or parent()], oracle, random.Random(1)))


def test_the_child_keeps_everything_but_the_words() -> None:
    text = "Write it all down.\n{{clarity}}\n{{ question }}"
    child = born(Canned(reply(text), stand_in=True))
    assert (child.text, child.version, child.parents, child.mutation) == (text, 2, ("sums",), "rewrite")
    assert (child.parameters, child.settings) == (SEED.parameters, SEED.settings)
    assert child.note == "It lets the answer come without working." and child.stand_in
    assert child.id != SEED.id and not check_template(child)


def test_the_oracle_is_shown_the_evidence_as_data() -> None:
    oracle = Canned(reply("New words. {{ clarity }} {{ question }}"))
    born(oracle)
    data = unfenced(oracle.asked[0][1].content)
    assert data["template"] == TEXT and data["settings"] == [["clarity", "plain"]]
    assert data["mean_reward"] == 0.5 and data["tried_without_success"] == ["-0.2 over 9 trials"]
    assert data["worst"][0]["answer"] == "Answer: 12" and data["best"][0]["reward"] == 1.0
    assert "No working is shown" in data["worst"][0]["feedback"][0]["rationale"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (TEXT + " ", "already"),
        ("Do it. {{ question }}", "placeholders"),
        ("{{ clarity }} {{ question }} {{ question.__class__ }}", "placeholders"),
        ("{{ clarity }} {{ question }} {% for x in y %}", "no Jinja2 template"),
        ("x" * 3000 + "{{ clarity }} {{ question }}", "2000 are allowed"),
        ("What is 345 + 678? {{ clarity }} {{ question }}", "one of the questions"),
        ("{{ clarity }} {{ question }} {{", "no Jinja2 template"),
    ],
)
def test_a_text_that_will_not_do_is_sent_back_once(text: str, complaint: str) -> None:
    good = "Show it. {{ clarity }} {{ question }}"
    oracle = Canned(reply(text), reply(good))
    assert born(oracle).text == good
    assert complaint in oracle.asked[1][-1].content
    with pytest.raises(OracleError, match="twice wrote a text that can't be used"):
        born(Canned(reply(text), reply(text)))


def test_no_problem_with_a_text_that_moves_things() -> None:
    assert problems("{{ question }}\n\nMind this: {{  clarity }}", parent(), 100) == []


def test_the_bundled_server_rewrites_by_what_judges_wrote() -> None:
    async def main(url: str, one: Parent, draw: int) -> Template:
        store = MemoryStore("run", "now")
        oracle = make_oracle(OracleSpec(), store, base_url=url, gate=None, checker=Checker())
        try:
            return await mutate([one], oracle, random.Random(draw))
        finally:
            await oracle.close()

    with stand_in() as url:
        shown = [asyncio.run(main(url, parent(), draw)) for draw in (1, 1, 2, 3, 4)]
        plain = asyncio.run(main(url, parent(template("{{ question }}")), 1))
    assert shown[0] == shown[1] and len({child.text for child in shown}) > 1
    assert all(not check_template(child) and child.stand_in for child in shown)
    assert all("Have a look" not in child.text and "{{ clarity }}" in child.text for child in shown)
    assert plain.text.endswith("\n\n{{ question }}")
