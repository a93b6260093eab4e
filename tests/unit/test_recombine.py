import asyncio
import random
from dataclasses import replace

import pytest
from evolving import CARE, HASTE, MATHS, template
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.errors import ConfigError
from grpo_ray.mutations.recombine import check_settings, mutate
from grpo_ray.pieces import loose
from grpo_ray.prompting import check_template, content_hash
from grpo_ray.types import Parent, Template

FIRST = template("one", "a", "x", (HASTE,))
FRAME = "\n\n{{ tone }} {{ size }}\n{{ question }}"
HOPES = {
    "tone=a": 0.0,
    "tone=b": 0.1,
    "tone=c": 0.3,
    "size=x": 0.2,
    "size=y": 0.1,
    CARE: 0.25,
    MATHS: 0.05,
    HASTE: -0.1,
}


def child(
    first: Template = FIRST,
    hopes: dict[str, float] = HOPES,
    known: tuple[Template, ...] = (),
    living: tuple[Template, ...] = (),
    **settings: int,
) -> Template:
    rejected = tuple((f"one~{content_hash(one)}", "") for one in known)
    parents = [Parent(first, 0.0, (), (), rejected, tuple(hopes.items())), *(Parent(o, 0.0, (), ()) for o in living)]
    return asyncio.run(mutate(parents, None, random.Random(1), **settings))  # type: ignore[arg-type]


def test_what_promises_most_is_changed_all_at_once() -> None:
    made = child()
    assert made.settings == (("tone", "c"), ("size", "x"))
    assert made.text == f"Solve it. {CARE} {MATHS}{FRAME}"
    assert (made.mutation, made.parents) == ("recombine", ("one",))
    assert made.note == f"tone: a → c, + '{CARE}', + '{MATHS}', − '{HASTE}'"
    assert check_template(made) == []


def test_moves_bounds_how_much_is_changed() -> None:
    assert child(moves=1).note == "tone: a → c"
    assert child(moves=2).note == f"tone: a → c, + '{CARE}'"
    assert child(moves=3).note == f"tone: a → c, + '{CARE}', − '{HASTE}'"
    assert child(moves=99) == child()


def test_what_the_family_knows_gives_way_to_something_else_that_promises() -> None:
    found = [child(moves=2)]
    for _ in range(3):
        found.append(child(moves=2, known=tuple(found)))
    assert len({content_hash(one) for one in (FIRST, *found)}) == 5
    assert content_hash(child(moves=2, living=(found[0],))) == content_hash(found[1])
    assert all("→ b" not in one.note and "size" not in one.note for one in found)


def test_where_everything_is_known_the_parent_stays_as_it_is() -> None:
    only = {"tone=a": 0.0, "tone=b": 0.1}
    made = child(hopes=only, known=(child(hopes=only),))
    assert content_hash(made) == content_hash(FIRST)
    assert made.note == "nothing promises more"


@pytest.mark.parametrize("hopes", [{}, {"tone=a": 0.2, "tone=b": 0.1, "tone=c": 0.0, CARE: -0.1, HASTE: 0.1}])
def test_without_a_better_prospect_the_parent_stays_as_it_is(hopes: dict[str, float]) -> None:
    made = child(hopes=hopes)
    assert replace(made, id="one", note="", parents=(), mutation="seed") == FIRST


def test_what_grows_too_long_is_passed_over() -> None:
    long = f"Think of {'everything and ' * 15}all."
    hopes = {CARE: 0.1, long: 0.5}
    assert child(hopes=hopes, moves=1).text == f"Solve it. {HASTE} {long}{FRAME}"
    assert child(hopes=hopes, moves=1, max_characters=len(FIRST.text) + 30).note == f"+ '{CARE}'"
    assert child(hopes={HASTE: -0.1}, max_characters=1).note == f"− '{HASTE}'"  # as long as its parent it may be


def test_a_label_that_no_trial_has_met_counts_as_nothing() -> None:
    assert child(hopes={"tone=a": -0.1}).settings[0] != ("tone", "a")
    assert content_hash(child(hopes={"tone=a": 0.1})) == content_hash(FIRST)


def test_a_sentence_of_the_system_text_can_go() -> None:
    first = replace(FIRST, system=f"You are a clerk. {HASTE}")
    made = child(first, {HASTE: -0.2})
    assert (made.system, HASTE in made.text) == ("You are a clerk.", False)


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_every_child_is_valid_and_hoped_to_be_better(seed: int, moves: int) -> None:
    chance = random.Random(seed)
    hopes = {piece: round(chance.gauss(0, 0.2), 3) for piece in HOPES}
    made = child(hopes=hopes, moves=moves)

    def hoped(of: Template) -> float:
        said = [f"{name}={label}" for name, label in of.settings] + list(loose(of))
        return sum(hopes.get(piece, 0.0) for piece in said)

    assert check_template(made) == []
    assert hoped(made) >= hoped(FIRST) - 1e-9
    if content_hash(made) != content_hash(FIRST):
        assert hoped(made) > hoped(FIRST)


def test_a_child_needs_a_move() -> None:
    check_settings(moves=1)
    with pytest.raises(ConfigError, match="moves is 0; a child needs at least 1"):
        check_settings(moves=0)
