from dataclasses import replace

import numpy as np
import pytest
from evolving import CARE, HASTE, every_setting, named, template, trial, tried

from grpo_ray.evolution.knowledge import DRAWS, Knowledge, each_kind, gather, informed
from grpo_ray.prompting import content_hash
from grpo_ray.recipe import EvolutionSpec, Named, Recipe
from grpo_ray.types import ANY, Member, Population

RECIPE = Recipe(tasks=(Named(name="jsonl"),), trainer=None)
EFFECTS = {"tone=b": 0.2, "size=z": -0.2}
BEST, WORST, NEW = template("by", "b", "y"), template("az", "a", "z"), template("cx", "c", "x")


def population(*templates: object) -> Population:
    return Population(tuple(Member(one) for one in templates))  # pyright: ignore[reportArgumentType]


def known_of(tasks: int = 12, recipe: Recipe = RECIPE) -> Knowledge:
    return gather(every_setting(), tried(every_setting(), EFFECTS, tasks), 0, recipe)


def test_what_is_known_is_told_to_every_member() -> None:
    before = Population((Member(BEST, pinned=True, born=3), Member(WORST), Member(NEW)), 5, (("gone", "why"),))
    after = informed(before, known_of())
    best, worst, middle = after.members
    assert best.fitness > 0.1 > middle.fitness > worst.fitness
    assert sum(member.fitness for member in after.members) == pytest.approx(0.0, abs=1e-5)
    assert all(0 < member.deviation < 0.2 and member.trials == 12 for member in after.members)
    assert (best.pinned, best.born, after.generation, after.retired) == (True, 3, 5, before.retired)
    assert after.templates == before.templates


def test_what_was_never_tried_is_known_by_its_pieces_and_less_surely() -> None:
    told = every_setting()[:-1]
    fresh = every_setting()[-1]
    known = gather([*told, fresh], tried(told, EFFECTS, 12), 0, RECIPE)
    *others, member = informed(population(*told, fresh), known).members
    assert member.trials == 0
    assert member.fitness < 0  # "size=z" is bad, whatever it stands beside
    assert member.deviation > max(other.deviation for other in others)


def test_more_trials_make_what_is_known_surer() -> None:
    few, many = (informed(population(BEST, WORST), known_of(tasks)).members for tasks in (2, 40))
    assert many[0].deviation < few[0].deviation
    assert many[0].fitness > few[0].fitness > 0


def test_where_nothing_is_known_nothing_is_told() -> None:
    before = Population((Member(BEST, 0.25, 0.125, 7.0), Member(WORST)))
    none = gather([BEST, WORST], [], 0, RECIPE)
    assert none.kinds == {} and none.draw(ANY, 1.0) is None
    after = informed(before, none)
    assert (after.members[0].fitness, after.members[0].deviation, after.members[0].trials) == (0.25, 0.125, 0)


def test_numbers_are_rounded_so_that_last_bits_do_not_matter() -> None:
    for member in informed(population(*every_setting()), known_of()).members:
        assert member.fitness == round(member.fitness, 6) and member.deviation == round(member.deviation, 6)


# ── task types ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_task_types_are_known_apart_and_templates_meet_their_own() -> None:
    words, sums, both = template("w", "a", kind="words"), template("s", "a", kind="sums"), template("x", "b")
    trials = [trial(one, task, 0.9, kind="words") for task in range(9) for one in (words,)]
    trials += [trial(both, task, 0.1, kind="words") for task in range(9)]
    trials += [trial(one, task, value, kind="sums") for task in range(9) for one, value in ((sums, 0.1), (both, 0.9))]
    known = gather([words, sums, both], trials, 0, RECIPE)
    assert set(known.kinds) == {"words", "sums"}
    people = population(words, sums, both)
    assert {kind: values.shape for kind, values in each_kind(people, known).items()} == {
        "words": (DRAWS, 2),
        "sums": (DRAWS, 2),
    }
    good, bad, mixed = informed(people, known).members
    assert good.fitness > 0.1 and bad.fitness < -0.1
    assert mixed.fitness == pytest.approx(0.0, abs=0.05)  # the mean of both types
    assert (good.trials, mixed.trials) == (9, 18)
    assert known.draw("words", 1.0, 0) is not None and known.draw("riddles", 1.0, 0) is None


def test_a_type_whose_templates_are_all_gone_is_passed_over() -> None:
    gone, here = template("w", kind="words"), template("s", kind="sums")
    known = gather([gone, here], [trial(gone, 0, 1.0, kind="words"), trial(here, 0, 1.0, kind="sums")], 0, RECIPE)
    assert set(each_kind(population(here), known)) == {"sums"}
    assert informed(population(here), known).members[0].trials == 1


# ── chance ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_draw_depends_on_the_seed_and_its_purpose_alone() -> None:
    known, other = known_of(), known_of(recipe=replace(RECIPE, seed=1))

    def drawn(of: Knowledge, heat: float, *purpose: int) -> float:
        draw = of.draw(ANY, heat, *purpose)
        assert draw is not None
        return draw.value(BEST)

    assert drawn(known, 1.0, 3, 0) == drawn(known, 1.0, 3, 0)
    assert len({drawn(known, 1.0, 3, 0), drawn(known, 1.0, 3, 1), drawn(other, 1.0, 3, 0)}) == 3
    assert drawn(known, 0.0, 3, 0) == pytest.approx(drawn(known, 0.0, 4, 1), abs=1e-9)
    far = [np.mean([abs(drawn(known, heat, i) - drawn(known, 0.0, 0)) for i in range(20)]) for heat in (0.5, 1.0)]
    assert far[1] == pytest.approx(2 * far[0])
    assert informed(population(BEST, WORST), known) == informed(population(BEST, WORST), known_of())


# ── the recipe, and the family ────────────────────────────────────────────────────────────────────────────────────


def test_the_discount_is_the_recipes() -> None:
    fading = replace(RECIPE, evolution=EvolutionSpec(discount=0.5))
    trials = [trial(BEST, task, 0.5, step=task) for task in range(3)]
    assert gather([BEST], trials, 2, fading).trials(BEST) == pytest.approx(1.75)
    assert gather([BEST], trials, 3, fading).trials(BEST) == pytest.approx(0.875)


def test_only_where_weights_are_trained_a_task_is_another_one_each_step() -> None:
    trials = [trial(one, 0, 0.5, step=step) for step in range(3) for one in (BEST, WORST)]
    for trainer, tasks in ((None, 1), (Named(name="canned"), 3)):
        known = gather([BEST, WORST], trials, 2, replace(RECIPE, trainer=trainer))
        assert known.kinds[ANY].evidence.met.shape[1] == tasks


def test_a_family_remembers_its_sentences_and_its_dead() -> None:
    first, stranger = template("s", said=(CARE,)), template("x", said=("From another house.",))
    child = named(template("c", "b", said=(HASTE,)), first, "rewrite")
    known = gather([first, child, stranger], [], 0, RECIPE)
    assert known.sentences["s"] == {"Solve it.", CARE, HASTE}
    assert known.sentences["x"] == {"Solve it.", "From another house."}
    assert known.archive == {"s": ("s", child.id), "x": ("x",)}
    assert known.hashes == {content_hash(one) for one in (first, child, stranger)}


def test_sentences_that_only_a_stand_in_brought_are_known_as_such() -> None:
    plain = template("plain", said=("People wrote this.",))
    doubtful = replace(template("doubtful", said=("People wrote this.", "A rule wrote this.")), stand_in=True)
    assert gather([plain, doubtful], [], 0, RECIPE).invented == {"A rule wrote this."}
