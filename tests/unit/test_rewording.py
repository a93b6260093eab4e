"""How the bundled server says a template in other words, and which setting it moves."""

import random
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.library import load_library
from grpo_ray.pieces import jinja, loose
from grpo_ray.stand_ins import rules
from grpo_ray.stand_ins.rewording import LEADS, PHRASES, rephrase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from nano import unseen, wordings

SEEDS = load_library(Path(__file__).parents[2] / "prompts.json")
BITS = [
    "{{ a }}",
    "{% if b %}",
    "{% endif %}",
    "Do it. ",
    "Please solve it. ",
    "Question: ",
    "\n",
    "word ",
    "- Go\n",
    ": ",
]


@given(st.lists(st.sampled_from(BITS)).map("".join), st.text(max_size=3))
def test_any_text_is_said_otherwise_and_its_placeholders_stay(text: str, seed: str) -> None:
    new = rephrase(text, seed)
    assert jinja(new) == jinja(text) and new != text
    assert new == rephrase(text, seed)


@pytest.mark.parametrize(
    ("old", "found"),
    [
        ("Please solve it.", {"Kindly resolve it.", "Kindly find the solution of it."}),
        ("Use {{ a }} words, please.\nQuestion:", {"Use {{ a }} words, please.\nQuestion:"}),
        ("- Turn it.", {f"- {lead}Turn it." for lead in LEADS}),
        (f"{LEADS[0]}Turn it.", {f"{lead}Turn it." for lead in LEADS[1:]}),
    ],
)
def test_phrases_stand_for_phrases_and_the_frame_stays(old: str, found: set[str]) -> None:
    said = {rephrase(old, str(seed)) for seed in range(40)}
    if "{{" in old:  # nothing in it is loose: an opening comes before it
        said = {text.split("\n\n", 1)[1] for text in said}
    assert found <= said


def test_phrases_are_small_letters_and_never_their_own() -> None:
    assert all(phrase == phrase.lower() and phrase not in others for phrase, others in PHRASES.items())


def test_nothing_it_says_is_a_training_wording() -> None:
    taught = frozenset().union(*(wordings.expand(kind) for kind in wordings.PATTERNS), wordings.expand_counts())
    measured = {wordings.plain_form(text) for text in (*unseen.STEP_BY_STEP, *unseen.DIRECT)}
    own = {sentence for template in SEEDS for sentence in loose(template)}
    own |= {choice.text.strip() for template in SEEDS for p in template.parameters for choice in p.choices}
    own |= set(random.Random(1).sample([one for need in get_args(rules.Need) for one in rules.instructions(need)], 100))
    said = {rephrase(sentence, str(seed)) for sentence in own if sentence for seed in range(8)}
    forms = {wordings.plain_form(one) for text in said for one in (text, *text.split("\n\n"))}
    assert len(said) > 500 and not forms & taught and not forms & measured


WORKING = "No working is shown before the answer, so nothing can be checked."


def asked(rationale: str, seed: int = 1, *, again: bool = False, **settings: str) -> dict[str, Any]:
    template = next(template for template in SEEDS if template.id == "arithmetic-recall")
    feedback = [{"dimension": "d", "score": 0.0, "rationale": rationale}]
    data = {
        "template": template.text,
        "settings": [[name, settings.get(name, label)] for name, label in template.settings],
        "choices": {p.name: [choice.label for choice in p.choices] for p in template.parameters},
        "choice_texts": {p.name: {c.label: c.text for c in p.choices} for p in template.parameters},
        "worst": [{"feedback": feedback}],
    }
    return rules.rewrite(data, str(seed), again=again)


def test_missing_working_moves_the_setting_that_asks_for_it() -> None:
    assert all(asked(WORKING, seed)["settings"] == [{"name": "reasoning", "label": "all"}] for seed in range(20))
    assert asked(WORKING, reasoning="all")["settings"] == []
    assert asked("Line 2 says 8+5=14, which is wrong.")["settings"] == []


def test_the_text_stays_now_and_then_but_not_where_that_was_refused() -> None:
    old = asked(WORKING)["text"], next(t for t in SEEDS if t.id == "arithmetic-recall").text
    stays = [asked(WORKING, seed)["text"] == old[1] for seed in range(90)]
    assert 15 < sum(stays) < 45
    assert not any(asked(WORKING, seed, again=True)["text"] == old[1] for seed in range(90))
    assert all(asked(WORKING, seed, reasoning="all")["text"] != old[1] for seed in range(30))
