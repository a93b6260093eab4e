import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.errors import ConfigError
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


# ── set_parameter with hopes ──────────────────────────────────────────────────────────────────────────────────────

HOPES = (
    ("tone=a", 0.0),
    ("tone=b", 0.2),
    ("tone=c", 0.1),
    ("size=x", 0.0),
    ("size=y", 0.05),
    ("Add the numbers.", 9.0),
)


def hopeful(template: Template = SEED, hopes: tuple[tuple[str, float], ...] = HOPES, **more: Any) -> Parent:
    return replace(parent(template), hopes=hopes, **more)


def labels(template: Template) -> str:
    return "".join(label for _, label in template.settings)


def named(template: Template) -> str:
    return f"one~{content_hash(template)}"


def test_with_hopes_every_parameter_moves_to_its_best_label() -> None:
    after = child(set_parameter, [hopeful()], 1)
    assert labels(after) == "by" and after.note == "tone: a → b, size: x → y"
    assert labels(child(set_parameter, [hopeful()], 1, moves=1)) == "bx"
    assert labels(child(set_parameter, [hopeful(hopes=(*HOPES[:3], ("size=y", -0.1)))], 1)) == "bx"


def test_what_the_family_has_tried_gives_way_to_the_next_best() -> None:
    order = ["by", "bx", "cy", "cx", "ay"]  # by hopes 0.25, 0.2, 0.15, 0.1, 0.05
    found: list[Template] = []
    for _ in order:
        found.append(child(set_parameter, [hopeful(rejected=tuple((named(one), "-0.1") for one in found))], 1))
    assert [labels(one) for one in found] == order
    living = [replace(one, id=named(one)) for one in found[:2]]
    assert labels(child(set_parameter, [hopeful(), *(parent(one) for one in living)], 1)) == "cy"
    everything = tuple((named(one), "no") for one in found)
    assert labels(child(set_parameter, [hopeful(rejected=everything)], 1)) == "by"


def test_a_parent_at_its_best_takes_the_step_that_costs_least() -> None:
    best = replace(SEED, settings=(("tone", "b"), ("size", "y")))
    assert labels(child(set_parameter, [hopeful(best)], 1)) == "bx"


@given(st.integers(0, 10_000), st.integers(0, 12), st.integers(1, 4))
def test_the_best_new_combination_is_found_exactly(seed: int, refused: int, moves: int) -> None:
    stream = random.Random(seed)
    parameters = tuple(
        Parameter(f"p{i}", tuple(Choice(label, label) for label in "abc"[: stream.randint(1, 3)])) for i in range(4)
    )
    first = Template("one", "{{ question }}", parameters=parameters, settings=tuple((p.name, "a") for p in parameters))
    hopes = tuple((f"{p.name}={c.label}", stream.gauss(0, 1)) for p in parameters for c in p.choices)
    combos = product(*([(p.name, c.label) for c in p.choices] for p in parameters))
    others = [
        replace(first, settings=combo) for combo in combos if 1 <= moved(first, replace(first, settings=combo)) <= moves
    ]
    if not others:
        return
    worth = {content_hash(one): sum(dict(hopes)[f"{n}={label}"] for n, label in one.settings) for one in others}
    ranked = sorted(worth, key=lambda key: -worth[key])
    rejected = tuple((f"one~{key}", "no") for key in ranked[:refused])
    found = content_hash(child(set_parameter, [Parent(first, 0.0, (), (), rejected, hopes)], seed, moves=moves))
    assert found == (ranked[refused] if refused < len(ranked) else ranked[0])


def test_many_parameters_are_climbed_at_once() -> None:
    parameters = tuple(Parameter(f"p{i}", tuple(Choice(str(n), str(n)) for n in range(8))) for i in range(20))
    first = Template("one", "{{ question }}", parameters=parameters, settings=tuple((p.name, "0") for p in parameters))
    hopes = tuple((f"{p.name}={n}", n / 10) for p in parameters for n in range(8))
    after = child(set_parameter, [hopeful(first, hopes)], 1)
    assert {label for _, label in after.settings} == {"7"}


# ── random_edit ───────────────────────────────────────────────────────────────────────────────────────────────────


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
    check_settings("mutations", "set_parameter", "mutate", {"second": 0.1, "noise": 0.0, "moves": None})
    check_settings("mutations", "crossover", "mutate", {"most_sentences": 0, "max_characters": 500})
    check_settings("mutations", "example_swap", "mutate", {"floor": 0.9, "longest": 200, "most": 1})
    check_settings("mutations", "random_edit", "mutate", {"parameter": 0.5})


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("set_parameter", {"moves": 0}, "moves is 0; a child needs at least 1"),
        ("set_parameter", {"second": 2.0}, "probability"),
        ("crossover", {"most_sentences": -1}, "most_sentences is -1"),
        ("simplify", {"loss": -0.1}, "0 or more"),
        ("example_swap", {"most": 0}, "1 or more"),
    ],
)
def test_settings_that_could_do_nothing_are_refused(name: str, settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_settings("mutations", name, "mutate", settings)
