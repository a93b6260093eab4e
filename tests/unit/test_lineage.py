"""Who came from whom: lives, the tree, the picture of it, what each template gained, and the words in which two differ."""

import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as some
from rich.console import Console

from grpo_ray import lineage, template_tables
from grpo_ray.gains import gains
from grpo_ray.lineage import Known, Life, ancestors, diff, family, forest, lives, ranked, text_hash, tree, words
from grpo_ray.lineage_picture import _asides, _ticks, picture
from grpo_ray.prompting import content_hash
from grpo_ray.recipe import Named, Recipe, RunState
from grpo_ray.trials import Trial
from grpo_ray.types import Choice, Example, Member, Parameter, Policy, Population, Template

RECIPE = Recipe(tasks=(Named(name="jsonl"),), trainer=None)
MANNER = Parameter("manner", (Choice("plain", "Say it."), Choice("terse", "Quick.")))
A = Template("a", "Add. {{ manner }} {{ question }}", "sum", parameters=(MANNER,), settings=(("manner", "plain"),))
B = Template("b", "Sum up. {{ question }}", "sum")
C = replace(
    A, id="a~c", text="Add with care. {{ manner }} {{ question }}", parents=("a",), mutation="rewrite", version=2
)
D = replace(C, id="a~d", parents=("a~c", "b"), mutation="crossover", version=3, note="<both> & more")
E = replace(B, id="b~e", text="Sum. {{ question }}", parents=("b",), mutation="simplify", version=2)
ALL = (A, B, C, D, E)


def state(step: int, *members: Member, retired: tuple[tuple[str, str], ...] = ()) -> RunState:
    people = Population(members, retired=retired)
    return RunState("run", step, RECIPE, people, None, (Policy(people, None),))


STATES = (
    state(0, Member(A, 0.1), Member(B, -0.1)),
    state(1, Member(A, 0.2, 0.1, 3.0), Member(C), Member(E), retired=(("b", "too long"),)),
    state(2, Member(C, 0.4, 0.05, 4.0, pinned=True), Member(D), retired=(("b", "too long"), ("a", "beaten"))),
)


def grown(gained: dict[str, tuple[float, float]] | None = None) -> lineage.Tree:
    return tree(list(lineage.named(STATES).values()), lives(STATES), STATES[-1].population, gained)


def test_a_life_is_what_the_states_say() -> None:
    found = {life.template: life for life in lives(STATES)}
    assert list(found) == ["a", "b", "a~c", "b~e", "a~d"]
    assert found["a"] == Life("a", 0, 2, "beaten", (Known(0, 0.1, 0.3, 0.0), Known(1, 0.2, 0.1, 3.0)))
    assert (found["b"].retired, found["b"].why) == (1, "too long")
    assert (found["b~e"].made, found["b~e"].retired, found["b~e"].why) == (1, 2, "")
    assert found["a~d"] == Life("a~d", 2, course=(Known(2, 0.0, 0.3, 0.0),))


def test_what_says_the_same_has_one_hash_that_the_ids_begin() -> None:
    assert text_hash(A) == text_hash(replace(A, id="z", version=9, parents=("b",), note="x", mutation="import"))
    changed = (
        replace(A, text="x"),
        replace(A, system="x"),
        replace(A, settings=()),
        replace(A, examples=(Example("", ""),)),
    )
    assert len({text_hash(one) for one in (A, *changed, replace(A, task_type="any"))}) == 6
    assert text_hash(A).startswith(content_hash(A)) and len(text_hash(A)) == 64


def test_the_tree_is_plain_and_whole() -> None:
    found = grown({"a": (0.0, 0.01), "a~c": (0.3, 0.02)})
    nodes = {node["id"]: node for node in found["nodes"]}
    assert list(nodes) == ["a", "b", "a~c", "b~e", "a~d"]
    expected = {
        "made": 1,
        "living": True,
        "pinned": True,
        "retired": None,
        "why": "",
        "gain": 0.3,
        "gain_deviation": 0.02,
    }
    expected |= {"fitness": 0.4, "deviation": 0.05, "trials": 4.0, "settings": {"manner": "plain"}, "parents": ["a"]}
    assert {key: nodes["a~c"][key] for key in expected} == expected
    assert nodes["a~c"]["course"] == [[1, 0.0, 0.3, 0.0], [2, 0.4, 0.05, 4.0]]
    assert (nodes["a"]["living"], nodes["a"]["why"], nodes["b"]["gain"]) == (False, "beaten", None)
    assert [(edge["parent"], edge["child"], edge["mutation"], edge["first"]) for edge in found["edges"]] == [
        ("a", "a~c", "rewrite", True), ("b", "b~e", "simplify", True),
        ("a~c", "a~d", "crossover", True), ("b", "a~d", "crossover", False),
    ]  # fmt: skip


def test_parents_of_another_run_are_told_but_no_edge_leads_to_them() -> None:
    states = (state(0, Member(D), Member(E)),)
    found = tree([D, E], lives(states), states[0].population)
    assert found["edges"] == [] and found["nodes"][0]["parents"] == ["a~c", "b"]
    assert [(depth, node["id"]) for depth, node in forest(found)] == [(0, "a~d"), (0, "b~e")]


def test_the_forest_puts_each_below_the_one_it_is_a_change_of() -> None:
    assert [(depth, node["id"]) for depth, node in forest(grown())] == [
        (0, "a"), (1, "a~c"), (2, "a~d"), (0, "b"), (1, "b~e"),
    ]  # fmt: skip
    assert [node["id"] for node in ranked(grown()["nodes"])] == ["a~c", "a~d", "a", "b~e", "b"]


def test_a_ring_of_parents_loses_nobody() -> None:
    ring = [replace(A, parents=("b",)), replace(B, parents=("a",)), replace(C, parents=("a~c",))]
    found = tree(ring, [Life(one.id, 0) for one in ring], Population(()))
    assert sorted(node["id"] for _, node in forest(found)) == ["a", "a~c", "b"]
    assert ancestors(found, ["a"]) == {"a", "b"}
    ElementTree.fromstring(str(picture(found)))


def test_the_family_is_the_living_and_all_they_came_from() -> None:
    found = family(grown())
    assert [node["id"] for node in found["nodes"]] == ["a", "b", "a~c", "a~d"]
    assert len(found["edges"]) == 3


def test_a_gain_is_against_the_first_templates_however_old_the_trials_are() -> None:
    """The steps are as far apart as a discount would forget."""
    trials = [
        Trial(name, f"task-{task}", "sum", step, level + 0.05 * (task % 3), 8)
        for task in range(12)
        for name, level, step in (("a", 0.2, 0), ("b", 0.3, 0), ("a~c", 0.6, 90), ("a", 0.2, 90))
    ]
    found = gains(ALL, {"a", "b"}, trials, 91, RECIPE)
    assert found["a"][0] + found["b"][0] == pytest.approx(0.0, abs=1e-5)
    assert found["a~c"][0] == pytest.approx(0.35, abs=0.08) and found["b"][0] > found["a"][0]
    assert found["a~c"][1] < found["b~e"][1], "what has no trials of its own is known less well"
    assert found == gains(ALL, {"a", "b"}, trials, 91, RECIPE)
    assert gains(ALL, {"a", "b"}, [], 91, RECIPE) == {}
    verse = replace(B, id="v", task_type="verse")
    assert "v" not in gains((*ALL, verse), {"a", "b", "v"}, trials, 91, RECIPE)


# ── two templates ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(some.text(max_size=60), some.text(max_size=60))
def test_a_word_diff_holds_both_texts(old: str, new: str) -> None:
    pieces = words(old, new)
    assert "".join(text for kind, text in pieces if kind != "new") == old
    assert "".join(text for kind, text in pieces if kind != "gone") == new
    assert all(text for _, text in pieces)


def test_a_word_diff_leaves_what_is_common() -> None:
    assert words("Add them up.", "Add all up!") == [
        ["same", "Add "], ["gone", "them"], ["new", "all"], ["same", " up"], ["gone", "."], ["new", "!"],
    ]  # fmt: skip


def test_a_diff_tells_settings_choices_examples_and_descent() -> None:
    shots = tuple(Example(f"{n}+1", str(n + 1)) for n in range(3))
    old = replace(A, examples=shots[:2], system="Be exact.")
    louder = Parameter("manner", (MANNER.choices[0], Choice("terse", "Quick!")))
    new = replace(C, examples=(shots[1], shots[0]), parameters=(louder,), settings=(("manner", "terse"),))
    found = diff(old, new)
    assert (found["from"], found["to"], found["same"]) == ("a", "a~c", False)
    assert found["system"] == [["gone", "Be exact."]]
    assert found["settings"] == [{"name": "manner", "from": "plain", "to": "terse"}]
    assert found["choices"] == [{"name": "manner", "label": "terse", "from": "Quick.", "to": "Quick!"}]
    assert found["examples"] == {"gone": [], "new": [], "order": True}
    assert found["facts"] == {"version": [1, 2], "mutation": ["seed", "rewrite"], "parents": [[], ["a"]]}
    swapped = diff(old, replace(old, examples=(shots[0], shots[2])))["examples"]
    assert swapped["gone"] == [{"question": "1+1", "response": "2"}] and not swapped["order"]
    alike = diff(old, replace(old, id="z", version=4))
    assert alike == {"from": "a", "to": "z", "same": True, "facts": {"version": [1, 4]}}


# ── how they look ─────────────────────────────────────────────────────────────────────────────────────────────────


def seen(value: Any) -> str:
    console = Console(width=160, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(value)
    return console.export_text()


def test_a_tree_on_a_terminal_shows_descent_gain_and_end() -> None:
    found = grown({"a~c": (0.25, 0.04)})
    lines = seen(template_tables.tree({"run_id": "run", "step": 2, **found})).splitlines()
    at = {name: next(i for i, line in enumerate(lines) if f" {name}  " in line) for name in ("a", "a~c", "a~d", "b")}
    assert at["a"] < at["a~c"] < at["a~d"] < at["b"]
    assert "+0.250 ± 0.040  rewrite at step 1  pinned" in lines[at["a~c"]]
    assert "crossover, with b at step 2" in lines[at["a~d"]]
    assert "retired at step 2: beaten" in lines[at["a"]]


def test_a_diff_on_a_terminal_needs_no_colours() -> None:
    shown = seen(template_tables.diff(diff(A, C)))
    assert "Add{+ with care+}. {{ manner }} {{ question }}" in shown
    assert "mutation: seed → rewrite" in shown
    assert "say the same" in seen(template_tables.diff(diff(A, replace(A, id="z"))))


def marks(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_the_picture_has_every_node_and_edge_and_tells_of_each() -> None:
    svg = str(picture(grown({"a": (-0.05, 0.01), "b": (0.05, 0.01), "a~c": (0.3, 0.02)}), "Who & whom"))
    root, name = marks(svg), "{http://www.w3.org/2000/svg}"
    assert root.attrib["aria-label"] == "Who & whom"
    tips = [title.text or "" for title in root.iter(f"{name}title")]
    assert len(tips) == len(ALL)
    tip = next(tip for tip in tips if tip.startswith("a~d, version 3 (sum)"))
    assert "crossover at step 2 of a~c, b" in tip and "<both> & more" in tip and "lives" in tip
    assert any("gain +0.300 ± 0.020, 4.0 trials" in tip and "pinned" in tip for tip in tips)
    classes = [path.attrib["class"].split() for path in root.iter(f"{name}path")]
    assert len(classes) == 4 and sum("further" in one for one in classes) == 1
    assert sum("way" in one for one in classes) == 1, "to a~c, the best that lives, from a"
    filled = re.findall(r'class="node m\d living"', svg)
    assert len(filled) == 2 + 4, "two live, and four mutations stand in the key"
    assert svg.count('class="ring"') == 1


def test_the_picture_is_right_with_any_number_of_templates() -> None:
    assert marks(str(picture({"nodes": [], "edges": []}))).tag.endswith("svg")
    many = [
        replace(A, id=f"a~{place}", mutation=f"kind-{place % 11}", parents=(f"a~{place // 2}",) if place else ())
        for place in range(300)
    ]
    told = [Life(one.id, place // 20, None, "", (Known(place // 20, 0.0, 0.1, 1.0),)) for place, one in enumerate(many)]
    big = tree(many, told, Population(()), {one.id: (place / 100, 0.1) for place, one in enumerate(many)})
    root = marks(str(picture(big)))
    assert len([one for one in root.iter() if "edge" in one.attrib.get("class", "")]) == 299
    width, height = (float(root.attrib[key]) for key in ("width", "height"))
    points = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in root.iter() if "cx" in one.attrib]
    assert points and all(0 < x < width and 0 < y < height for x, y in points)


def test_hostile_words_do_nothing_in_a_picture() -> None:
    evil = replace(A, id="</svg><script>x</script>", mutation='"><script>', note="\x00\ud800 &lt;")
    svg = str(picture(tree([evil], [Life(evil.id, 0)], Population(())), "<script>"))
    assert "<script" not in svg
    marks(svg)
    svg.encode("utf-8")


def test_nodes_that_would_lie_on_each_other_move_aside() -> None:
    twins = [replace(A, id=f"twin-{place}") for place in range(5)]
    svg = str(picture(tree(twins, [Life(one.id, 0) for one in twins], Population(()))))
    places = re.findall(r'<circle class="node m0 living" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert len(set(places[:5])) == 5
    assert list(_asides(10.0, 20.0)) == [0.0]


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.1), (-0.02, 1.3), (0.0, 7.5), (-3e-7, 2e-7)])
def test_ticks_are_few_round_and_between(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert 0.0 in ticks and 2 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)
