"""A template in other words: what is asked, what is accepted, and what the bundled server says."""

import asyncio
import random
from dataclasses import replace

import pytest
from serving import Canned, stand_in

from grpo_ray.checker import Checker
from grpo_ray.errors import OracleError
from grpo_ray.fenced import unfenced
from grpo_ray.mutations.rephrase import MANNERS, mutate
from grpo_ray.oracle import make_oracle
from grpo_ray.prompting import check_template, content_hash
from grpo_ray.recipe import OracleSpec
from grpo_ray.storage.memory import MemoryStore
from grpo_ray.types import Choice, Parameter, Parent, Template

SIZE = Parameter("size", (Choice("s", "Be brief."),))
TEXT = "Please work through the problem. {{ size }}\n\nQuestion: {{ question }}"
SEED = Template("one", TEXT, parameters=(SIZE,), settings=(("size", "s"),))
GOOD = "Take the exercise apart. {{ size }}\n\nQuestion: {{ question }}"


def born(oracle: Canned, template: Template = SEED, rejected: tuple[tuple[str, str], ...] = ()) -> Template:
    return asyncio.run(mutate([Parent(template, 0.1, (), (), rejected)], oracle, random.Random(1)))


def test_other_words_make_a_child() -> None:
    oracle = Canned({"text": GOOD}, stand_in=True)
    child = born(oracle)
    assert child == replace(SEED, text=GOOD, mutation="rephrase", parents=("one",), note=child.note, stand_in=True)
    data = unfenced(oracle.asked[0][1].content)
    assert data["rephrase"] == TEXT and data["keep"] == ["{{ question }}", "{{ size }}"]
    assert data["manner"] == child.note in MANNERS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (TEXT.replace(" ", "  "), "the text that there is already"),
        ("Take the exercise apart. {{ question }}", "placeholders"),
        (GOOD + "x" * 2000, "2000 are allowed"),
    ],
)
def test_what_will_not_do_is_sent_back_once(text: str, complaint: str) -> None:
    oracle = Canned({"text": text}, {"text": GOOD})
    assert born(oracle).text == GOOD
    assert complaint in oracle.asked[1][-1].content
    with pytest.raises(OracleError, match="twice"):
        born(Canned({"text": text}, {"text": text}))


def test_words_that_were_tried_are_sent_back() -> None:
    known = content_hash(replace(SEED, text=GOOD))
    oracle = Canned({"text": GOOD}, {"text": "Once more. " + GOOD})
    assert born(oracle, rejected=((f"one~{known}", "no"),)).text == "Once more. " + GOOD
    assert "tried before" in oracle.asked[1][-1].content


def test_nobody_is_asked_where_there_are_no_words() -> None:
    bare = Template("bare", "{{ question }}")
    oracle = Canned()
    assert content_hash(born(oracle, bare)) == content_hash(bare) and not oracle.asked


def test_the_bundled_server_says_it_in_other_words() -> None:
    async def main(url: str, template: Template, draw: int) -> Template:
        oracle = make_oracle(OracleSpec(), MemoryStore("run", "now"), base_url=url, gate=None, checker=Checker())
        try:
            return await mutate([Parent(template, 0.1, (), ())], oracle, random.Random(draw))
        finally:
            await oracle.close()

    with stand_in() as url:
        found = [asyncio.run(main(url, SEED, draw)) for draw in (1, 1, 2, 3, 4, 5)]
        again = asyncio.run(main(url, found[0], 1))
    assert found[0] == found[1] and len({child.text for child in found}) > 1
    assert all(not check_template(child) and child.stand_in for child in (*found, again))
    assert all(child.text.endswith(" {{ size }}\n\nQuestion: {{ question }}") for child in (*found, again))
