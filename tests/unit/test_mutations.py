import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.mutations import random_edit, set_parameter
from grpo_ray.prompting import check_template, content_hash
from grpo_ray.registry import check_settings
from grpo_ray.types import Choice, Parameter, Parent, Template

TONE = Parameter("tone", tuple(Choice(label, label * 2) for label in "abc"))
SIZE = Parameter("size", tuple(Choice(label, label * 3) for label in "xy"))
TEXT = "Add the numbers. {{ tone }}{% if size %} {{ size }}{% endif %}\n\nQuestion: {{ question }}"
SEED = Template("one", TEXT, parameters=(TONE, SIZE), settings=(("tone", "a"), ("size", "x")))
BARE = Template("bare", "{{ question }}")


def parent(template: Template, fitness: float = 0.0, rejected: tuple[tuple[str, str], ...] = ()) -> Parent:
    return Parent(template, fitness, (), (), rejected)


def child(mutation: Any, parents: list[Parent], seed: int, **settings: float) -> Template:
    mutate: Callable[..., Coroutine[Any, Any, Template]] = mutation.mutate
    return asyncio.run(mutate(parents, None, random.Random(seed), **settings))


def moved(before: Template, after: Template) -> int:
    return sum(a != b for a, b in zip(before.settings, after.settings, strict=True))


def with_tone(label: str) -> Template:
    return replace(SEED, settings=(("tone", label), ("size", "x")))


@given(st.integers(0, 10_000))
def test_set_parameter_moves_one_or_two_parameters_to_other_choices(seed: int) -> None:
    after = child(set_parameter, [parent(SEED)], seed)
    assert moved(SEED, after) in (1, 2)
    assert check_template(after) == []
    assert (after.text, after.parents, after.mutation) == (SEED.text, ("one",), "set_parameter")
    assert "→" in after.note


def test_how_many_parameters_move_is_a_setting() -> None:
    assert {moved(SEED, child(set_parameter, [parent(SEED)], seed, second=0.0)) for seed in range(20)} == {1}
    assert {moved(SEED, child(set_parameter, [parent(SEED)], seed, second=1.0)) for seed in range(20)} == {2}


def test_set_parameter_prefers_what_no_relative_has_tried() -> None:
    living = replace(with_tone("b"), id=f"one~{content_hash(with_tone('b'))}")
    rejected = ((f"one~{content_hash(with_tone('c'))}", "-0.3"), ("one~none-1-0", "the endpoint is down"))
    for seed in range(20):
        after = child(set_parameter, [parent(SEED, rejected=rejected), parent(living)], seed, second=0.0)
        assert dict(after.settings) == {"tone": "a", "size": "y"}


def test_set_parameter_leans_towards_what_did_well_elsewhere() -> None:
    mate = replace(with_tone("c"), id="other", text="Please. " + TEXT)
    parents = [parent(SEED, -0.3), parent(mate, 0.5)]
    tones = Counter(dict(child(set_parameter, parents, seed, second=0.0).settings)["tone"] for seed in range(100))
    assert tones["c"] > 60  # of 100; 33 by chance


def test_random_edit_is_blind_to_fitness() -> None:
    mate = replace(with_tone("c"), id="other")
    seen = [child(random_edit, [parent(SEED, -0.3), parent(mate, 0.5)], seed) for seed in range(20)]
    assert seen == [child(random_edit, [parent(SEED)], seed) for seed in range(20)]


@given(st.integers(0, 10_000))
def test_random_edit_never_breaks_a_template(seed: int) -> None:
    after = child(random_edit, [parent(SEED)], seed)
    assert check_template(after) == []
    assert content_hash(after) != content_hash(SEED)
    assert (after.parents, after.mutation) == (("one",), "random_edit")


def test_random_edit_drops_swaps_and_doubles_words() -> None:
    notes = [child(random_edit, [parent(SEED)], seed, parameter=0.0) for seed in range(60)]
    assert {edited.note.split()[0] for edited in notes} == {"drop", "swap", "double"}
    assert all(edited.settings == SEED.settings for edited in notes)
    parts = ("{{ tone }}", "{% if size %}", "{{ size }}", "{% endif %}", "{{ question }}")
    for edited in notes:
        places = [edited.text.index(part) for part in parts]
        assert places == sorted(places)


def test_random_edit_takes_the_way_that_is_open() -> None:
    words = replace(BARE, text="Go on: {{ question }}")
    assert child(random_edit, [parent(words)], 1, parameter=1.0).text != words.text
    chosen = Template("p", "{{ size }}{{ question }}", parameters=(SIZE,), settings=(("size", "x"),))
    assert dict(child(random_edit, [parent(chosen)], 1, parameter=0.0).settings) == {"size": "y"}


@pytest.mark.parametrize("mutation", [set_parameter, random_edit])
def test_a_parent_that_can_not_change_stays_what_it_is(mutation: Any) -> None:
    assert content_hash(child(mutation, [parent(BARE)], 3)) == content_hash(BARE)


@pytest.mark.parametrize("mutation", [set_parameter, random_edit])
def test_the_same_stream_makes_the_same_child(mutation: Any) -> None:
    assert [child(mutation, [parent(SEED)], n) for n in range(9)] == [
        child(mutation, [parent(SEED)], n) for n in range(9)
    ]


def test_settings_are_what_a_config_may_say() -> None:
    check_settings("mutations", "set_parameter", "mutate", {"second": 0.1, "noise": 0.0})
    check_settings("mutations", "random_edit", "mutate", {"parameter": 0.5})
