"""The rewriting mutation: what it shows, what it accepts, what it makes."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from serving import Canned, group, said, stand_in, template

from grpo_ray.checker import Checker
from grpo_ray.errors import OracleError
from grpo_ray.fenced import unfenced
from grpo_ray.llm.endpoint import schema_of
from grpo_ray.llm.shapes import accepted
from grpo_ray.mutations._texts import problems
from grpo_ray.mutations.rewrite import Rewritten, contrasts, evidence, mutate
from grpo_ray.oracle import make_oracle
from grpo_ray.prompting import check_template, content_hash
from grpo_ray.recipe import OracleSpec
from grpo_ray.storage.memory import MemoryStore
from grpo_ray.types import Choice, Parameter, Parent, Reward, ScoredRollout, Template

TEXT = "Have a look at this. {{ clarity }}\n\nQuestion: {{ question }}"
CLARITY = Parameter("clarity", (Choice("plain", "Reckon it."), Choice("full", "Note every step of the working.")))
SEED = Template("sums", TEXT, parameters=(CLARITY,), settings=(("clarity", "plain"),))


def parent(one: Template = SEED, rationale: str = "No working is shown before the answer.") -> Parent:
    made = group("Answer: 12", "Answer: 1023")
    low, high = (
        (made.prompt, ScoredRollout(r, (said(r.id, rationale, 0.25),), Reward(value, ())))
        for r, value in zip(made.rollouts, (0.0, 1.0), strict=True)
    )
    return Parent(one, 0.1, best=(high,), worst=(low,), rejected=(("sums~1", "-0.2 over 9 trials"),))


def reply(text: str, settings: Any = ()) -> dict[str, Any]:
    return {"diagnosis": "It lets the answer come\nwithout working.", "settings": settings, "text": text}


def born(oracle: Canned, one: Parent | None = None) -> Template:
    return asyncio.run(mutate([one or parent()], oracle, random.Random(1)))


def test_the_child_keeps_everything_but_the_words() -> None:
    text = "Write it all down.\n{{clarity}}\n{{ question }}"
    child = born(Canned(reply(text), stand_in=True))
    assert (child.text, child.parents, child.mutation) == (text, ("sums",), "rewrite")
    assert (child.parameters, child.settings) == (SEED.parameters, SEED.settings)
    assert child.note == "It lets the answer come without working." and child.stand_in
    assert not check_template(child)


def test_the_oracle_is_shown_the_evidence_as_data() -> None:
    oracle = Canned(reply("New words. {{ clarity }} {{ question }}"))
    born(oracle)
    data = unfenced(oracle.asked[0][1].content)
    assert data["template"] == TEXT and data["settings"] == [["clarity", "plain"]]
    assert data["mean_reward"] == 0.5 and data["tried_without_success"] == ["-0.2 over 9 trials"]
    assert data["worst"][0]["answer"] == "Answer: 12" and data["best"][0]["reward"] == 1.0
    assert "No working is shown" in data["worst"][0]["feedback"][0]["rationale"]
    assert data["choices"] == {"clarity": ["plain", "full"]}
    assert data["choice_texts"]["clarity"]["full"] == "Note every step of the working."


def test_answers_to_one_prompt_are_set_against_each_other() -> None:
    made = parent()
    assert contrasts(made.worst, made.best) == [{"better": "best-1", "worse": "worst-1"}]
    elsewhere = tuple((replace(prompt, id="p-2"), scored) for prompt, scored in made.best)
    assert contrasts(made.worst, (*elsewhere, *made.best)) == [{"better": "best-2", "worse": "worst-1"}]
    assert contrasts(made.best, made.best) == []  # as good as each other


def test_what_statistics_say_is_told_of_what_is_near() -> None:
    far = tuple((f"Far {n}.", n / 100) for n in range(100))
    hopes = (("clarity=plain", -0.12345), ("clarity=full", 0.2), ("Have a look at this.", 0.0), *far, ("Bad.", -1.0))
    told = evidence(replace(parent(), hopes=hopes))
    assert told[0] == ["Far 99.", 0.99] and len(told) <= 60
    assert ["clarity=plain", -0.123] in told and ["Have a look at this.", 0.0] in told
    assert not any(piece == "Bad." for piece, _ in told)


@pytest.mark.parametrize(
    "settings", [[{"name": "clarity", "label": "full"}], {"clarity": "full"}], ids=["as asked", "a mapping"]
)
def test_settings_may_move_with_the_text_or_alone(settings: Any) -> None:
    both = born(Canned(reply("Do it. {{ clarity }} {{ question }}", settings)))
    assert both.settings == (("clarity", "full"),) and both.text.startswith("Do it.")
    alone = born(
        Canned(reply(TEXT.upper().replace("CLARITY", "clarity").replace("QUESTION }}", "question }}"), settings))
    )
    assert alone.settings == (("clarity", "full"),) and alone.text == TEXT


def test_labels_may_be_numbers_and_settings_missing() -> None:
    shots = Parameter("few_shot", (Choice("0", "0"), Choice("1", "1")))
    one = replace(SEED, text="{{ examples }}{{ question }}", parameters=(shots,), settings=(("few_shot", "0"),))
    assert born(Canned(reply(one.text, {"few_shot": 1})), parent(one)).settings == (("few_shot", "1"),)
    bare = {"diagnosis": "d", "text": "New. {{ clarity }} {{ question }}"}
    assert born(Canned(bare)).settings == SEED.settings


def test_the_schema_is_one_that_strict_endpoints_take() -> None:
    schema = schema_of(Rewritten)
    assert schema["required"] == ["diagnosis", "settings", "text"]
    for part in (schema, schema["$defs"]["Setting"]):
        assert part["additionalProperties"] is False and part["required"] == list(part["properties"])
        assert not any("default" in one for one in part["properties"].values())
    assert accepted(Rewritten, '{"diagnosis": "", "settings": {"a": 1}, "text": ""}') == (
        '{"diagnosis":"","settings":[{"name":"a","label":"1"}],"text":""}'
    )


@pytest.mark.parametrize(
    ("text", "settings", "complaint"),
    [
        (TEXT + " ", {}, "it changes nothing"),
        (TEXT, {"clarity": "plain"}, "it changes nothing"),
        (TEXT, {"tone": "plain"}, "no parameter 'tone'; known: clarity"),
        (TEXT, {"clarity": "ful"}, "'ful' is no choice of 'clarity'; did you mean 'full'?"),
        (TEXT, [{"name": "clarity", "label": "full"}] * 2, "'clarity' is named twice"),
        ("Do it. {{ question }}", {"clarity": "full"}, "placeholders"),
        ("{{ clarity }} {{ question }} {{ question.__class__ }}", {}, "placeholders"),
        ("{{ clarity }} {{ question }} {% for x in y %}", {}, "no Jinja2 template"),
        ("x" * 3000 + "{{ clarity }} {{ question }}", {}, "2000 are allowed"),
        ("What is 345 + 678? {{ clarity }} {{ question }}", {}, "one of the questions"),
        ("{{ clarity }} {{ question }} {{", {}, "no Jinja2 template"),
    ],
)
def test_a_reply_that_will_not_do_is_sent_back_once(text: str, settings: Any, complaint: str) -> None:
    good = "Show it. {{ clarity }} {{ question }}"
    oracle = Canned(reply(text, settings), reply(good))
    assert born(oracle).text == good
    assert complaint in oracle.asked[1][-1].content
    with pytest.raises(OracleError, match="twice wrote what can't be used"):
        born(Canned(reply(text, settings), reply(text, settings)))


def test_what_was_tried_is_sent_back_too() -> None:
    first, second = reply("One. {{ clarity }} {{ question }}"), reply("Two. {{ clarity }} {{ question }}")
    known = content_hash(replace(SEED, text=first["text"]))
    oracle = Canned(first, second)
    assert born(oracle, replace(parent(), rejected=((f"sums~{known}", "-0.1"),))).text == second["text"]
    assert "tried before" in oracle.asked[1][-1].content


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
        shown = [asyncio.run(main(url, parent(), draw)) for draw in (1, 1, 2, 3, 4, 5, 6, 7)]
        plain = asyncio.run(main(url, parent(template("{{ question }}")), 1))
    assert shown[0] == shown[1] and len({child.text for child in shown}) > 1
    assert all(not check_template(child) and child.stand_in for child in shown)
    assert all(child.settings == (("clarity", "full"),) for child in shown)  # it asks for the working that was missed
    assert all("{{ clarity }}" in child.text for child in shown)
    assert {child.text == TEXT for child in shown} == {True, False}
    assert plain.text.endswith("\n\n{{ question }}")
