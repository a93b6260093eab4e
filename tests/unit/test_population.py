import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest
from generations import PARAMETRIC, SOME, SilentOracle, answered, live, recipe, tasks, template, worth
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ray.errors import ConfigError
from grpo_ray.evolution.births import REMEMBERED
from grpo_ray.evolution.knowledge import gather
from grpo_ray.population import begin, evolve, plan_refill, plan_waves, unfit
from grpo_ray.prompting import check_template, content_hash, fits
from grpo_ray.recipe import EvolutionSpec, PlanSpec, Recipe, SamplingSpec, Weighted
from grpo_ray.types import Member, Policy, Population, Task


def prompts(step: int, population: Population, some: Sequence[Task], chosen: Recipe) -> list[tuple[str, str]]:
    waves = plan_waves(step, Policy(population, None), some, chosen)
    return [(prompt.template_id, prompt.task.id) for wave in waves for prompt in wave.prompts]


# ── the plan ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_a_plan_covers_each_drawn_task_under_each_of_its_templates_once(n: int, size: int, k: int, seed: int) -> None:
    chosen = recipe(seed=seed, plan=PlanSpec(tasks=size, templates=k, wave=5))
    population = begin([template("a"), template("b"), template("c")], chosen)
    for step in range(3):
        pairs = prompts(step, population, tasks(n), chosen)
        assert len(pairs) == len(set(pairs)) == min(n, size) * min(k, 3)
        assert set(Counter(task for _, task in pairs).values()) == {min(k, 3)}


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 25), st.integers(0, 99))
def test_no_task_is_met_twice_before_all_others_are_met_once(n: int, size: int, steps: int, seed: int) -> None:
    chosen = recipe(seed=seed, plan=PlanSpec(tasks=size, templates=1))
    population = begin([template("a")], chosen)
    met: Counter[str] = Counter({task.id: 0 for task in tasks(n)})
    for step in range(steps):
        met.update(task for _, task in prompts(step, population, tasks(n), chosen))
    assert max(met.values()) - min(met.values()) <= 1


def test_task_types_are_drawn_in_proportion() -> None:
    some = [*tasks(30, "sums"), *(Task(f"w-{i}", "?", task_type="words") for i in range(10))]
    chosen = recipe(plan=PlanSpec(tasks=8, templates=1))
    population = begin([template("a")], chosen)
    for step in range(5):
        words = sum(task.startswith("w") for _, task in prompts(step, population, some, chosen))
        assert 1 <= words <= 3


def test_templates_only_meet_tasks_they_fit() -> None:
    population = begin([template("s", "sums"), template("w", "words"), template("x")], recipe())
    kinds = {task.id: task.task_type for task in tasks(12, "sums", "words")}
    for name, task in prompts(0, population, tasks(12, "sums", "words"), recipe()):
        assert name == "x" or kinds[task].startswith(name)
    assert fits(template("s", "sums"), "sums")
    assert not fits(template("s", "sums"), Task("t", "?", task_type="words"))


def test_waves_have_fixed_content_and_seeded_order() -> None:
    chosen = recipe(plan=PlanSpec(tasks=7, templates=3, wave=4), sampling=SamplingSpec(group_size=3, temperature=0.7))
    policy = Policy(begin([template(name) for name in "abcd"], chosen), None)
    waves = plan_waves(2, policy, tasks(20), chosen)
    assert [len(wave.prompts) for wave in waves] == [4, 4, 4, 4, 4, 1]
    assert len({wave.id for wave in waves}) == 6
    assert {(wave.sampling.group_size, wave.sampling.temperature) for wave in waves} == {(3, 0.7)}
    assert waves == plan_waves(2, policy, tasks(20)[::-1], chosen)
    assert waves != plan_waves(2, policy, tasks(20), replace(chosen, seed=1))
    assert waves[0].sampling.seed != plan_waves(3, policy, tasks(20), chosen)[0].sampling.seed


def test_where_nothing_is_known_every_template_is_met_once_before_any_twice() -> None:
    chosen = recipe(plan=PlanSpec(tasks=8, templates=3))
    population = begin([template(name) for name in "abcdefgh"], chosen)
    pairs = prompts(0, population, tasks(40), chosen)
    met = Counter(name for name, _ in pairs)
    assert sum(met.values()) == 24 and set(met) == set("abcdefgh")
    few = replace(chosen, plan=PlanSpec(tasks=4, templates=2))
    assert set(Counter(name for name, _ in prompts(0, population, tasks(40), few)).values()) == {1}


def test_new_templates_come_first_and_once_beside_one_that_is_known() -> None:
    known = tuple(Member(template(name), 0.0, 0.1, 50.0) for name in "abcd")
    population = Population((*known, *(Member(template(name)) for name in "xyz")))
    chosen = recipe(plan=PlanSpec(tasks=2, templates=3))
    met = Counter(name for name, _ in prompts(0, population, tasks(40), chosen))
    assert (met["x"], met["y"], met["z"]) == (1, 1, 1)
    assert sum(met[name] for name in "abcd") == 3
    pairs = prompts(0, population, tasks(40), recipe(plan=PlanSpec(tasks=1, templates=3)))
    assert sum(name in "xyz" for name, _ in pairs) == 2  # the third gives way to one that is known


def test_what_is_likely_to_be_good_is_tried_more_and_nothing_is_given_up() -> None:
    fitness = {"a": 0.2, "b": 0.1, "c": 0.0, "d": -0.3}
    population = Population(tuple(Member(template(name), value, 0.15, 9.0) for name, value in fitness.items()))
    chosen = recipe(plan=PlanSpec(tasks=300, templates=2))
    met = Counter(name for name, _ in prompts(0, population, tasks(300), chosen))
    assert met["a"] > met["b"] > met["c"] > met["d"] > 0
    assert met["a"] > 200 and met["d"] < 40
    alike = Population(tuple(Member(template(name), 0.0, 0.15, 9.0) for name in fitness))
    assert all(110 < count < 190 for count in Counter(n for n, _ in prompts(0, alike, tasks(300), chosen)).values())
    sure = Population(tuple(Member(template(name), value, 0.0, 9.0) for name, value in fitness.items()))
    assert {name for name, _ in prompts(0, sure, tasks(300), chosen)} == {"a", "b"}


def test_a_refill_meets_other_tasks_under_as_many_templates() -> None:
    chosen = recipe(plan=PlanSpec(tasks=3, templates=2))
    policy = Policy(begin([template(name) for name in "abc"], chosen), None)
    first = plan_waves(0, policy, tasks(20), chosen)
    alike = answered(first, {})
    second = plan_refill(0, policy, [first], alike, tasks(20), chosen)
    met, more = ([prompt.task.id for wave in waves for prompt in wave.prompts] for waves in (first, second))
    assert len(more) == 6 and set(Counter(more).values()) == {2} and not set(met) & set(more)
    assert second == plan_refill(0, policy, [first], alike, tasks(20)[::-1], chosen)
    assert plan_refill(0, policy, [first], answered(first, {}, spread=0.1), tasks(20), chosen) == []


def test_a_task_without_a_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="no template fits tasks of type 'sums'"):
        prompts(0, begin([template("w", "words")], recipe()), tasks(3), recipe())
    with pytest.raises(ConfigError, match="has no templates"):
        begin([], recipe())


def test_what_does_not_go_together_is_known_before_a_run() -> None:
    needy = replace(template("n", "sums"), text="{{ tone }} {{ size }} {{ metadata.hint }} {{ question }}")
    assert unfit([needy], [Task("t", "?", task_type="sums", metadata={"hint": "carry"})]) == []
    (missing,) = unfit([needy], tasks(3))
    assert "'n'" in missing and "hint" in missing
    assert unfit([needy], [Task("t", "?", task_type="words")]) == [
        "no template fits tasks of type 'words'; add one of that type, or of type 'any'"
    ]


# ── who lives on ──────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 50))
def test_a_population_keeps_its_bounds(size: int, children: int, seed: int) -> None:
    spec = EvolutionSpec(size=size, children=children, mutations=PARAMETRIC)
    chosen = recipe(seed=seed, evolution=spec, plan=PlanSpec(tasks=6, templates=3))
    for before, after in pairwise(live(begin(SOME, chosen), chosen, 8, tasks(30, "sums", "words"))):
        ids = [t.id for t in after.templates]
        assert len(ids) == len(set(ids)) <= max(len(before.members), size + children)
        assert after.generation == before.generation + 1
        for kind in ("sums", "words"):
            assert sum(fits(t, kind) for t in after.templates) >= 2
        assert all(check_template(t) == [] for t in after.templates)


def test_the_same_seed_leads_to_the_same_population() -> None:
    chosen = recipe(evolution=EvolutionSpec(size=7, mutations=PARAMETRIC), plan=PlanSpec(tasks=6, templates=3))
    some = tasks(30, "sums", "words")
    assert live(begin(SOME, chosen), chosen, 6, some) == live(begin(SOME, chosen), chosen, 6, some)
    other = replace(chosen, seed=5)
    assert live(begin(SOME, other), other, 6, some)[-1] != live(begin(SOME, chosen), chosen, 6, some)[-1]


def test_evolution_finds_the_better_setting_and_forgets_the_worse() -> None:
    chosen = recipe(
        evolution=EvolutionSpec(size=10, children=3, mutations=PARAMETRIC), plan=PlanSpec(tasks=8, templates=5)
    )
    last = live(begin(SOME, chosen), chosen, 25, tasks(40, "sums", "words"))[-1]
    best = max(last.members, key=lambda member: member.fitness).template
    assert dict(best.settings)["tone"] == "d"
    assert best.version > 1 and best.mutation == "set_parameter" and best.parents
    assert best.id.startswith(("s1~", "s2~", "w1~", "w2~", "x~"))
    assert fmean(worth(one) for one in last.templates) > fmean(worth(one) for one in SOME) + 0.2
    assert last.retired and all(id not in {t.id for t in last.templates} for id, _ in last.retired)
    assert len(last.retired) <= REMEMBERED


def test_children_not_tried_yet_are_kept() -> None:
    chosen = recipe(evolution=EvolutionSpec(size=5, children=2, mutations=PARAMETRIC))
    history = live(begin(SOME, chosen), chosen, 6, tasks(30, "sums", "words"))
    for before, after in pairwise(history):
        born = [member for member in after.members if member.template.id not in {t.id for t in before.templates}]
        assert len(after.members) >= 5
        assert all(member.trials == 0 and member.born == after.generation for member in born)
    assert any("~" in t.id for t in history[1].templates)


def test_what_was_tried_is_told_to_those_who_stay() -> None:
    chosen = recipe(evolution=EvolutionSpec(size=9, children=2, mutations=PARAMETRIC))
    first, second = live(begin(SOME, chosen), chosen, 1, tasks(30, "sums", "words"))
    assert all(member.trials == 0 for member in first.members)
    stayed = [member for member in second.members if member.template in first.templates]
    assert any(member.trials for member in stayed) and len({member.fitness for member in second.members}) > 1
    assert all(member.deviation > 0 for member in second.members)


def test_what_is_pinned_stays() -> None:
    chosen = recipe(evolution=EvolutionSpec(size=4, children=3, mutations=PARAMETRIC))
    start = Population(tuple(Member(one, pinned=one.id == "x") for one in SOME))
    last = live(start, chosen, 10, tasks(30, "sums", "words"))[-1]
    assert "x" in {one.id for one in last.templates} and len(last.retired) > 3


def test_what_once_lived_is_not_born_again() -> None:
    """There are 36 settings of each seed; what left does not come back under the same name, nor under another."""
    chosen = recipe(evolution=EvolutionSpec(size=4, children=4, mutations=PARAMETRIC))
    history = live(begin([template("s")], chosen), chosen, 8, tasks(9))
    lives = [id for before, after in pairwise(history) for id in {t.id for t in after.templates} - {t.id for t in before.templates}]  # fmt: skip
    assert len(lives) == len(set(lives)) > 15
    archive = {one.id: content_hash(one) for population in history for one in population.templates}
    assert len(set(archive.values())) == len(archive)


def test_no_children_means_no_change() -> None:
    chosen = recipe(evolution=EvolutionSpec(size=1, children=0))
    population, known = begin(SOME, chosen), gather(SOME, [], 0, chosen)
    assert asyncio.run(evolve(population, [], known, SilentOracle(), 0, chosen)) == population


def test_mutations_take_turns_by_their_shares() -> None:
    shares = (Weighted(name="odd_mutations.broken", weight=3.0), Weighted(name="odd_mutations.silent"))
    chosen = recipe(evolution=EvolutionSpec(children=2, size=9, mutations=shares))
    reasons = [why for _, why in live(begin(SOME, chosen), chosen, 4, tasks(8))[-1].retired]
    assert Counter(why.split()[0] for why in reasons) == {"odd_mutations.broken": 6, "odd_mutations.silent": 2}
