from collections.abc import Sequence
from dataclasses import replace

import pytest
from evolving import every_setting, template, trial
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ray.evolution.births import REMEMBERED
from grpo_ray.evolution.culling import FLOOR, best_chances, culled
from grpo_ray.evolution.knowledge import Knowledge, gather, informed
from grpo_ray.recipe import EvolutionSpec, Named, Recipe
from grpo_ray.types import ANY, Member, Population, Template

RECIPE = Recipe(tasks=(Named(name="jsonl"),), trainer=None)
GOOD, FAIR, POOR = template("good", "a"), template("fair", "b"), template("poor", "c")


def known_of(values: dict[str, float], templates: Sequence[Template], tasks: int = 10, kind: str = ANY) -> Knowledge:
    trials = [
        trial(id, task, value + 0.05 * (task % 2), kind=kind) for task in range(tasks) for id, value in values.items()
    ]
    return gather(templates, trials, 0, RECIPE)


def people(known: Knowledge, *members: Member | Template) -> Population:
    return informed(Population(tuple(m if isinstance(m, Member) else Member(m) for m in members)), known)


def ids(population: Population) -> list[str]:
    return [one.id for one in population.templates]


THREE = known_of({"good": 0.9, "fair": 0.5, "poor": 0.1}, [GOOD, FAIR, POOR])


def test_the_worst_leaves_and_is_remembered_with_what_is_known_of_it() -> None:
    worded = replace(POOR, note="tried to be brief")
    after = culled(people(THREE, GOOD, worded, FAIR), THREE, EvolutionSpec(size=2), [ANY])
    assert ids(after) == ["good", "fair"]
    ((id, why),) = after.retired
    assert id == "poor"
    assert why.startswith("-0.") and "over 10.0 trials" in why and "tried to be brief; tone=c, size=x" in why


def test_nobody_leaves_while_there_is_room() -> None:
    everyone = people(THREE, GOOD, POOR, FAIR)
    assert culled(everyone, THREE, EvolutionSpec(size=3), [ANY]) == everyone


def test_what_people_pinned_and_what_was_never_tried_stays() -> None:
    newcomer = template("new", "c", "z")
    everyone = people(THREE, GOOD, FAIR, Member(POOR, pinned=True), newcomer)
    after = culled(everyone, THREE, EvolutionSpec(size=1), [ANY])
    assert ids(after) == ["poor", "new"]
    assert [member.pinned for member in after.members] == [True, False]
    assert [id for id, _ in after.retired] == ["fair", "good"]


def test_two_stay_for_each_task_type_however_unfit() -> None:
    words = [template(f"w{i}", tone, kind="words") for i, tone in enumerate("abc")]
    sums = [template(f"s{i}", tone, kind="sums") for i, tone in enumerate("abc")]
    trials = [
        trial(one, task, 0.9 - 0.3 * i, kind=one.task_type)
        for task in range(9)
        for some in (words, sums)
        for i, one in enumerate(some)
    ]
    known = gather([*words, *sums], trials, 0, RECIPE)
    after = culled(people(known, *words, *sums), known, EvolutionSpec(size=1), ["words", "sums"])
    assert ids(after) == ["w0", "w1", "s0", "s1"]


def test_a_type_that_has_no_templates_of_its_own_keeps_two_that_fit_it() -> None:
    """What a step met counts, though every template is for any type."""
    after = culled(people(THREE, GOOD, FAIR, POOR), THREE, EvolutionSpec(size=1), ["sums"])
    assert ids(after) == ["good", "fair"]


@pytest.mark.parametrize(("one", "other"), [("words", "sums"), ("sums", "words")])
def test_the_best_of_one_type_stays_though_it_is_poor_elsewhere(one: str, other: str) -> None:
    some = special, broad, middling = template("special", "a"), template("broad", "b"), template("middling", "c")
    quality = {one: (0.95, 0.6, 0.5), other: (0.0, 0.9, 0.6)}
    trials = [
        trial(each, task, value, kind=kind)
        for kind, values in quality.items()
        for task in range(12)
        for each, value in zip(some, values, strict=True)
    ]
    known = gather(some, trials, 0, RECIPE)
    everyone = people(known, special, broad, middling)
    fitness = {member.template.id: member.fitness for member in everyone.members}
    assert fitness["special"] < fitness["middling"] < fitness["broad"]
    assert ids(culled(everyone, known, EvolutionSpec(size=2), ["sums", "words"])) == ["special", "broad"]


def test_the_chances_of_being_the_best_are_shares_of_draws() -> None:
    chances = best_chances(people(THREE, GOOD, FAIR, POOR), THREE)
    assert sum(chances.values()) == pytest.approx(1.0)
    assert chances["good"] > 0.9 and chances["poor"] < 0.05
    alike = known_of({"good": 0.5, "fair": 0.5, "poor": 0.5}, [GOOD, FAIR, POOR])
    assert all(chance > 0.1 for chance in best_chances(people(alike, GOOD, FAIR, POOR), alike).values())


def test_where_nothing_is_known_fitness_decides_and_then_the_name() -> None:
    nothing = gather([GOOD, FAIR, POOR], [], 0, RECIPE)
    members = (Member(GOOD, 0.1, trials=1.0), Member(FAIR, 0.1, trials=1.0), Member(POOR, 0.3, trials=1.0))
    assert ids(culled(Population(members), nothing, EvolutionSpec(size=2), [ANY])) == ["good", "poor"]


def test_what_is_remembered_is_bounded() -> None:
    full = tuple((f"old-{i}", "") for i in range(REMEMBERED))
    before = replace(people(THREE, GOOD, FAIR, POOR), retired=full)
    after = culled(before, THREE, EvolutionSpec(size=2), [ANY])
    assert len(after.retired) == REMEMBERED and after.retired[-1][0] == "poor" and after.retired[0][0] == "old-1"


KINDS = st.sampled_from([ANY, "words", "sums"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(KINDS, st.booleans(), st.booleans(), st.floats(0, 1)), min_size=1, max_size=9),
    st.integers(1, 6),
)
def test_whoever_leaves_was_tried_and_not_pinned_and_enough_stay(
    given: list[tuple[str, bool, bool, float]], size: int
) -> None:
    some = [replace(one, task_type=kind) for one, (kind, *_) in zip(every_setting(), given, strict=False)]
    met = {one.id: value for one, (_, _, tried, value) in zip(some, given, strict=True) if tried}
    trials = [
        trial(one, task, met[one.id], kind=kind)
        for one in some
        if one.id in met
        for task in range(3)
        for kind in ("words", "sums")
        if one.task_type in (ANY, kind)
    ]
    known = gather(some, trials, 0, RECIPE)
    before = people(known, *(Member(one, pinned=pinned) for one, (_, pinned, *_) in zip(some, given, strict=True)))
    after = culled(before, known, EvolutionSpec(size=size), ["sums", "words"])
    gone = [member for member in before.members if member not in after.members]
    assert all(member.trials and not member.pinned for member in gone)
    assert len(after.members) >= min(size, len(before.members))
    assert sorted(id for id, _ in after.retired) == sorted(member.template.id for member in gone)
    for kind in ("words", "sums"):
        fit = [sum(one.task_type in (ANY, kind) for one in each.templates) for each in (before, after)]
        assert fit[1] >= min(FLOOR, fit[0])


def test_the_last_template_for_any_task_stays_for_types_that_were_not_met() -> None:
    typed_ones = [replace(one, task_type="sums") for one in (GOOD, FAIR)]
    known = known_of({"good": 0.9, "fair": 0.5, "poor": 0.1}, [*typed_ones, POOR], kind="sums")
    after = culled(people(known, *typed_ones, POOR), known, EvolutionSpec(size=2), ["sums"])
    assert "poor" in ids(after)
