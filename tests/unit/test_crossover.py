"""Crossing two templates: what is taken over, what goes, and what happens where nothing is known."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

from grpo_ray.mutations.crossover import mutate
from grpo_ray.pieces import jinja, loose
from grpo_ray.prompting import check_template, content_hash
from grpo_ray.types import Choice, Parameter, Parent, Template

TONE = Parameter("tone", tuple(Choice(label, label * 2) for label in "abc"))
SIZE = Parameter("size", tuple(Choice(label, label * 3) for label in "xy"))
FRAME = "{{ tone }} {{ size }}\n\nQuestion: {{ question }}"
FIRST = Template("one", f"Add. Hurry up. {FRAME}", parameters=(TONE, SIZE), settings=(("tone", "a"), ("size", "x")))
OTHER = Template(
    "two", f"Add. Show it. Be kind. {FRAME}", parameters=(TONE, SIZE), settings=(("tone", "b"), ("size", "y"))
)
HOPES = (
    *(("tone=a", 0.0), ("tone=b", 0.2), ("tone=c", 0.9), ("size=x", 0.0), ("size=y", -0.1)),
    *(("Add.", 0.1), ("Hurry up.", -0.3), ("Show it.", 0.4), ("Be kind.", -0.2)),
)
FAR = Template("far", "{{ question }}. Never mind.", system="Clerk. Sir.")


def crossed(*others: Template, hopes: Any = HOPES, rejected: Any = (), seed: int = 1, first: Template = FIRST, **settings: Any) -> Template:  # fmt: skip
    parents = [Parent(first, 0.1, (), (), tuple(rejected), tuple(hopes)), *(Parent(one, 0.0, (), ()) for one in others)]
    return asyncio.run(mutate(parents, None, random.Random(seed), **settings))  # type: ignore[arg-type]


def test_what_promises_more_is_taken_and_what_does_harm_goes() -> None:
    child = crossed(OTHER)
    assert child.text == f"Add. Show it. {FRAME}"
    assert child.settings == (("tone", "b"), ("size", "x"))
    assert (child.parents, child.mutation) == (("one", "two"), "crossover")
    assert child.note == "with two: tone: a → b, + 'Show it.', − 'Hurry up.'"


def test_what_was_tried_gives_way_to_the_next_best() -> None:
    found = [crossed(OTHER)]
    for _ in range(5):
        found.append(crossed(OTHER, rejected=[(f"one~{content_hash(one)}", "no") for one in found]))
    assert len({content_hash(one) for one in found}) == 6
    assert found[1].text == found[0].text and found[1].settings == (("tone", "b"), ("size", "y"))  # it costs 0.1


def test_the_partner_that_promises_most_is_crossed_with() -> None:
    poor = replace(OTHER, id="poor", text=f"Be kind. {FRAME}", settings=(("tone", "a"), ("size", "y")))
    assert crossed(poor, OTHER).parents == ("one", "two")
    assert crossed(poor, OTHER, hopes=()).parents == ("one", "poor")  # the runner-up


def test_without_hopes_coins_decide_and_nothing_goes() -> None:
    found = [crossed(OTHER, hopes=(), seed=seed) for seed in range(200)]
    assert all({"Add.", "Hurry up."} <= set(loose(child)) for child in found)
    taken = Counter(piece for child in found for piece in (*child.settings, *loose(child)))
    for piece in (("tone", "b"), ("size", "y"), "Show it.", "Be kind."):
        assert 60 < taken[piece] < 140  # type: ignore[index]
    assert all(content_hash(child) != content_hash(FIRST) for child in found)


def test_no_more_sentences_come_than_were_asked_for() -> None:
    rich = replace(OTHER, text=f"S one. S two. S three. {FRAME}")
    hopes = (*HOPES, ("S one.", 0.1), ("S two.", 0.3), ("S three.", 0.2))
    assert loose(crossed(rich, hopes=hopes)) == ("Add.", "S two.", "S three.")
    assert loose(crossed(rich, hopes=hopes, most_sentences=0)) == ("Add.",)
    short = crossed(rich, hopes=hopes, max_characters=len(FIRST.text) - 1)
    assert len(short.text) <= len(FIRST.text) and short.parents == ("one", "two")


def test_labels_that_the_first_does_not_know_stay_away() -> None:
    strange = replace(
        OTHER, parameters=(Parameter("tone", (Choice("z", "z"),)), SIZE), settings=(("tone", "z"), ("size", "y"))
    )
    assert dict(crossed(strange).settings)["tone"] == "a"
    assert check_template(crossed(strange)) == []


def test_a_template_of_another_make_gives_its_loose_sentences_alone() -> None:
    child = crossed(FAR, hopes=(("Clerk.", 0.1), ("Never mind.", 0.2)))
    assert jinja(child.text) == jinja(FIRST.text)
    assert loose(child) == ("Add.", "Hurry up.", "Never mind.", "Clerk.")
    first = crossed(FIRST, first=replace(FAR, examples=()), hopes=(("Clerk.", -1.0), ("Sir.", -1.0), ("Add.", 0.1)))
    assert first.system is None and check_template(first) == []


def test_nobody_to_cross_with() -> None:
    assert content_hash(crossed()) == content_hash(FIRST)
    assert content_hash(crossed(replace(FIRST, id="twin"))) == content_hash(FIRST)
    assert crossed().parents == ("one",)
