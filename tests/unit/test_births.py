import asyncio
import json
from dataclasses import replace

import pytest
from generations import LABELS, PARAMETRIC, SOME, SilentOracle, live, recipe, tasks, template, worth

from grpo_ray.evolution.births import REMEMBERED
from grpo_ray.evolution.knowledge import gather, informed
from grpo_ray.population import begin, evolve
from grpo_ray.recipe import EvolutionSpec, Weighted
from grpo_ray.trials import Trial
from grpo_ray.types import ANY, Choice, Parameter, Template

# ── children that may not live ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mutation", "why"),
    [
        ("silent", "came to nothing: the endpoint is down"),
        ("broken", "it has {{ no_such }} anew"),
        ("same", "it says the same as"),
        ("greedy", "it has {{ metadata.answer | default('') }} anew"),
    ],
)
def test_a_child_that_may_not_live_is_remembered_with_the_reason(mutation: str, why: str) -> None:
    chosen = recipe(evolution=EvolutionSpec(children=1, mutations=(Weighted(name=f"odd_mutations.{mutation}"),)))
    after = live(begin(SOME, chosen), chosen, 1, tasks(8))[-1]
    assert after.templates == SOME
    ((_, reason),) = after.retired
    assert why in reason


def test_a_child_that_says_what_was_tried_before_is_refused() -> None:
    """Its parent is all that lives, and both other labels are in the archive."""
    tone = Parameter("tone", tuple(Choice(label, label) for label in "abc"))
    seed = Template("s", "{{ tone }} {{ question }}", parameters=(tone,), settings=(("tone", "a"),))
    gone = [replace(seed, id=f"gone-{label}", settings=(("tone", label),)) for label in "bc"]
    chosen = recipe(evolution=EvolutionSpec(children=1, mutations=PARAMETRIC))
    known = gather([seed, *gone], [], 0, chosen)
    after = asyncio.run(evolve(begin([seed], chosen), [], known, SilentOracle(), 0, chosen))
    assert after.templates == (seed,)
    assert "it says what was tried before" in after.retired[0][1]


def test_what_is_remembered_is_bounded() -> None:
    chosen = recipe(evolution=EvolutionSpec(children=9, size=99, mutations=(Weighted(name="odd_mutations.broken"),)))
    assert len(live(begin(SOME, chosen), chosen, 8, tasks(8))[-1].retired) == REMEMBERED


TELLING = (Weighted(name="odd_mutations.telling"),)


def test_mutations_read_the_best_and_worst_of_the_step_and_name_nothing() -> None:
    chosen = recipe(evolution=EvolutionSpec(children=4, mutations=TELLING))
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


def test_mutations_are_told_what_a_draw_hopes_and_who_lived_before() -> None:
    seed = template("s")
    gone = replace(seed, id="s~gone", text=f"Take your time. {seed.text}")
    chosen = recipe(evolution=EvolutionSpec(children=1, mutations=TELLING))
    trials = [Trial(id, f"t-{i}", ANY, 0, value, 4) for i in range(9) for id, value in (("s", 0.2), ("s~gone", 0.8))]
    known = gather([seed, gone], trials, 0, chosen)
    after = asyncio.run(evolve(begin([seed], chosen), [], known, SilentOracle(), 0, chosen))
    (first,) = json.loads(after.templates[-1].note)
    hoped = dict(first["hopes"])
    assert {piece for piece in hoped if "=" in piece} == {f"{n}={label}" for n in ("tone", "size") for label in LABELS}
    assert hoped["Take your time."] > 0
    assert first["rejected"] == [["s~gone", ""]]


def test_where_nothing_was_tried_there_are_no_hopes() -> None:
    chosen = recipe(evolution=EvolutionSpec(children=1, mutations=TELLING))
    known = gather(SOME, [], 0, chosen)
    after = asyncio.run(evolve(begin(SOME, chosen), [], known, SilentOracle(), 0, chosen))
    first, *_ = json.loads(after.templates[-1].note)
    assert (first["hopes"], first["best"], first["worst"]) == ([], [], [])


def test_heat_makes_parents_bolder() -> None:
    """Cold, every child is of the template that is expected to be best."""
    some = [replace(template(name), settings=(("tone", tone), ("size", "a"))) for name, tone in zip("pqrs", "abcd", strict=True)]  # fmt: skip
    trials = [Trial(one.id, f"t-{i}", ANY, 0, worth(one) / 4 + (i % 3) / 3, 1) for i in range(4) for one in some]

    def firsts(heat: float) -> set[str]:
        chosen = recipe(evolution=EvolutionSpec(children=12, size=9, heat=heat, mutations=TELLING))
        known = gather(some, trials, 0, chosen)
        after = asyncio.run(evolve(informed(begin(some, chosen), known), [], known, SilentOracle(), 0, chosen))
        return {json.loads(one.note)[0]["template"]["id"] for one in after.templates[4:]}

    assert firsts(0.0) == {"s"}
    assert len(firsts(2.0)) > 1
