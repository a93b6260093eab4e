import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.population import REMEMBERED, begin, evolve, fits, plan_waves, unfit, with_fitness
from grpo_ray.prompting import check_template
from grpo_ray.protocols import Oracle
from grpo_ray.recipe import EvolutionSpec, Named, PlanSpec, Recipe, SamplingSpec, Weighted
from grpo_ray.types import (
    ANY,
    Choice,
    Group,
    Member,
    Message,
    Parameter,
    Policy,
    Population,
    Reply,
    Reward,
    Rollout,
    ScoredGroup,
    ScoredRollout,
    Task,
    Template,
    Wave,
)

LABELS = ("a", "b", "c", "d", "e", "f")


@dataclass(frozen=True)
class SilentOracle(Oracle):
    """An endpoint that is down."""

    def within(self, scope: str) -> "SilentOracle":
        return self

    def at(self, name: str) -> "SilentOracle":
        return self

    def again(self, times: int) -> "SilentOracle":
        return self

    async def complete(
        self, messages: Sequence[Message], *, shape: type | None = None, nth: int | None = None
    ) -> Reply:
        raise OracleError("the endpoint is down")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise OracleError("the endpoint is down")

    async def nearest(self, text: str, *, limit: int = 10) -> list[tuple[str, float]]:
        return []

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        return [None for _ in answers]


def template(name: str, kind: str = ANY) -> Template:
    tone = Parameter("tone", tuple(Choice(label, label * 3) for label in LABELS))
    size = Parameter("size", tuple(Choice(label, label * 2) for label in LABELS))
    chosen = (("tone", "a"), ("size", "a"))
    return Template(
        name,
        f"{name}: {{{{ tone }}}} {{{{ size }}}} {{{{ question }}}}",
        kind,
        parameters=(tone, size),
        settings=chosen,
    )


def tasks(count: int, *kinds: str) -> list[Task]:
    kinds = kinds or ("sums",)
    return [Task(f"t-{i:03}", f"{i}?", task_type=kinds[i % len(kinds)]) for i in range(count)]


def recipe(**changes: object) -> Recipe:
    return replace(Recipe(tasks=(Named(name="jsonl"),)), **changes)


def answered(waves: Sequence[Wave], quality: dict[str, float], size: int = 4) -> list[ScoredGroup]:
    """Groups with rewards that come from the template's quality and nothing else."""
    found = []
    for prompt in (prompt for wave in waves for prompt in wave.prompts):
        rollouts = tuple(Rollout(f"r-{prompt.id}-{i}", i, "x", (1,), (0.0,), "stop", i) for i in range(size))
        group = Group(f"g-{prompt.id}", prompt, rollouts, (1,), waves[0].sampling, "canned", None)
        value = quality.get(prompt.template_id, 0.5)
        found.append(ScoredGroup(group, tuple(ScoredRollout(r, (), Reward(value, ())) for r in rollouts)))
    return found


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


def test_every_template_gets_about_equal_trials() -> None:
    chosen = recipe(plan=PlanSpec(tasks=8, templates=3))
    population = begin([template(name) for name in "abcdefgh"], chosen)
    met = Counter(name for name, _ in prompts(0, population, tasks(40), chosen))
    assert set(met.values()) == {3}


def test_new_templates_come_first_beside_one_that_is_known() -> None:
    known = tuple(Member(template(name), 0.0, 50.0) for name in "abcd")
    population = Population((*known, *(Member(template(name)) for name in "xyz")))
    chosen = recipe(plan=PlanSpec(tasks=2, templates=3))
    met = Counter(name for name, _ in prompts(0, population, tasks(40), chosen))
    assert met["x"] + met["y"] + met["z"] == 4
    assert sum(met[name] for name in "abcd") == 2


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


# ── fitness ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fitness_is_what_a_template_is_above_the_others_and_fades() -> None:
    chosen = recipe(plan=PlanSpec(tasks=4, templates=2), evolution=EvolutionSpec(discount=0.5))
    population = begin([template("a"), template("b")], chosen)
    groups = answered(plan_waves(0, Policy(population, None), tasks(9), chosen), {"a": 0.9, "b": 0.4})
    once = with_fitness(population, groups, chosen)
    assert [member.trials for member in once.members] == [4, 4]
    assert once.members[0].total == pytest.approx(2.0)
    assert once.members[1].total == pytest.approx(-2.0)
    faded = with_fitness(once, [], chosen)
    assert [(member.total, member.trials) for member in faded.members] == [
        (once.members[0].total / 2, 2),
        (once.members[1].total / 2, 2),
    ]


# ── evolution ─────────────────────────────────────────────────────────────────────────────────────────────────────


def live(start: Population, chosen: Recipe, steps: int, some: Sequence[Task], best: str = "d") -> list[Population]:
    """Populations over steps in a world in which templates are the better the nearer their tone is to `best`."""
    history = [start]
    for step in range(steps):
        population = history[-1]
        quality = {
            t.id: 1 - abs(LABELS.index(dict(t.settings)["tone"]) - LABELS.index(best)) / len(LABELS)
            for t in population.templates
        }
        groups = answered(plan_waves(step, Policy(population, None), some, chosen), quality)
        population = with_fitness(population, groups, chosen)
        history.append(asyncio.run(evolve(population, groups, SilentOracle(), step, chosen)))
    return history


PARAMETRIC = (Weighted(name="set_parameter"),)
SOME = tuple(
    template(name, kind)
    for name, kind in (("s1", "sums"), ("s2", "sums"), ("w1", "words"), ("w2", "words"), ("x", ANY))
)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 8), st.integers(0, 50))
def test_a_population_keeps_its_bounds(size: int, children: int, min_trials: int, seed: int) -> None:
    spec = EvolutionSpec(size=size, children=children, min_trials=min_trials, mutations=PARAMETRIC)
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
    best = max(last.members, key=Member.fitness).template
    assert dict(best.settings)["tone"] in ("c", "d", "e")
    assert best.version > 1 and best.mutation == "set_parameter" and best.parents
    assert best.id.startswith(("s1~", "s2~", "w1~", "w2~", "x~"))
    assert last.retired and all(id not in {t.id for t in last.templates} for id, _ in last.retired)
    assert len(last.retired) <= REMEMBERED


def test_children_not_tried_yet_are_kept() -> None:
    chosen = recipe(evolution=EvolutionSpec(size=5, children=2, min_trials=1, mutations=PARAMETRIC))
    history = live(begin(SOME, chosen), chosen, 6, tasks(30, "sums", "words"))
    for before, after in pairwise(history):
        born = [member for member in after.members if member.template.id not in {t.id for t in before.templates}]
        assert len(after.members) >= 5
        assert all(member.trials == 0 for member in born)
    assert any("~" in t.id for t in history[1].templates)


def test_no_children_means_no_change() -> None:
    chosen = recipe(evolution=EvolutionSpec(size=1, children=0))
    population = begin(SOME, chosen)
    assert asyncio.run(evolve(population, [], SilentOracle(), 0, chosen)) == population


# ── children that may not live ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mutation", "why"),
    [
        ("silent", "came to nothing: the endpoint is down"),
        ("broken", "the placeholder 'no_such' is unknown"),
        ("same", "it says the same as"),
        ("greedy", "uses metadata that its parents do without"),
    ],
)
def test_a_child_that_may_not_live_is_remembered_with_the_reason(mutation: str, why: str) -> None:
    chosen = recipe(evolution=EvolutionSpec(children=1, mutations=(Weighted(name=f"odd_mutations.{mutation}"),)))
    after = live(begin(SOME, chosen), chosen, 1, tasks(8))[-1]
    assert after.templates == SOME
    ((_, reason),) = after.retired
    assert why in reason


def test_what_is_remembered_is_bounded() -> None:
    chosen = recipe(evolution=EvolutionSpec(children=9, size=99, mutations=(Weighted(name="odd_mutations.broken"),)))
    assert len(live(begin(SOME, chosen), chosen, 8, tasks(8))[-1].retired) == REMEMBERED


def test_mutations_read_the_best_and_worst_of_the_step_and_name_nothing() -> None:
    chosen = recipe(evolution=EvolutionSpec(children=4, mutations=(Weighted(name="odd_mutations.telling"),)))
    start = replace(begin(SOME, chosen), retired=(("s1~abcdef", "-0.2"), ("x~123456", "-0.1"), ("s2~aa", "no")))
    children = live(start, chosen, 1, tasks(8))[-1].templates[len(SOME) :]
    assert len(children) == 4
    for child in children:
        first, *others = json.loads(child.note)
        parent = first["template"]
        assert (child.version, child.parents, child.mutation) == (2, (parent["id"],), "odd_mutations.telling")
        assert child.id.startswith(f"{parent['id']}~") and child.task_type == parent["task_type"]
        assert (len(first["best"]), len(first["worst"])) == (2, 3)
        assert {prompt["template_id"] for prompt, _ in first["best"] + first["worst"]} == {parent["id"]}
        assert first["rejected"] == [[id, why] for id, why in start.retired if id.startswith(f"{parent['id']}~")]
        assert others and all(other["template"]["task_type"] in ("sums", ANY) for other in others)
