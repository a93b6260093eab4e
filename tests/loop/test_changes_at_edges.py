"""What people change while the real loop runs takes effect at an edge, once; a run that is taken up again does the same."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from little import stage

from grpo_ray import loop
from grpo_ray.canonical import plain
from grpo_ray.changes import APPLIED, CHANGE
from grpo_ray.protocols import Archive, Store
from grpo_ray.recipe import EvolutionSpec, RunState
from grpo_ray.types import Template

FRESH = Template("t-fresh", "Afresh: {{ question }}", mutation="import", note="imported by ada")
LATE = Template("t-late", "At last: {{ question }}", mutation="import", note="imported by bob")
WISHES: dict[int, list[dict[str, Any]]] = {
    1: [{"kind": "pin", "template": "seed-3"}],
    2: [{"kind": "retire", "template": "seed-0", "why": "dull"}, {"kind": "import", "templates": plain([FRESH])}],
    3: [{"kind": "pin", "template": "seed-0"}],
}


@dataclass
class Person:
    """Says something just before some edges, once each, and may leave after a step."""

    store: Store
    wishes: dict[int, list[dict[str, Any]]] = field(default_factory=lambda: dict(WISHES))
    last: int = 99

    async def proceed(self, state: RunState) -> bool:
        return state.step < self.last

    async def approve(self, state: RunState) -> RunState:
        for wish in self.wishes.pop(state.step, ()):
            said = {"who": "ada", "template": "", "why": "", "templates": [], "at": "now", **wish}
            await self.store.save_event(state.step, CHANGE, said)
        return state


async def run(archive: Archive, state: RunState, person: Person) -> RunState:
    async with stage.crew_over(archive, state) as crew:
        return await loop.run(state, crew, person)


def ids(state: RunState) -> list[str]:
    return [template.id for template in state.population.templates]


@pytest.mark.parametrize("lag", [0, 1])
def test_changes_take_effect_at_the_edge_after_which_they_were_said(lag: int) -> None:
    async def main() -> None:
        begun = stage.beginning(stage.recipe(lag=lag, evolution=EvolutionSpec(children=0)))
        archive = await stage.archive_with(begun)
        store = await archive.open("run")
        await run(archive, begun, Person(store))
        states = await store.states()
        pinned = [[m.template.id for m in state.population.members if m.pinned] for state in states]
        assert pinned == [[], ["seed-3"], ["seed-3"], ["seed-3"], ["seed-3"]]
        assert ["seed-0" in ids(state) for state in states] == [True, True, False, False, False]
        assert ["t-fresh" in ids(state) for state in states][:3] == [False, False, True]
        assert all(state.policies[-1].population == state.population for state in states)
        assert ("seed-0", "retired by ada: dull") in states[2].population.retired
        done = [(one["step"], one["detail"]["refused"]) for one in await store.events() if one["kind"] == APPLIED]
        assert [step for step, _ in done] == [1, 2, 3] and done[0][1] == done[1][1] == []
        assert done[2][1][0][1].startswith("seed-0 does not live any more: retired by ada")
        asked = {trial.template for trial in await store.trials(2 + lag)}
        assert "seed-0" not in asked and "t-fresh" in asked

    asyncio.run(main())


@pytest.mark.parametrize("broken", [1, 2, 3])
def test_a_run_that_is_taken_up_again_comes_to_the_same(broken: int) -> None:
    """It ends after an edge was settled and before its state was saved; what was said since waits for the next edge."""

    async def main() -> None:
        begun = stage.beginning(stage.recipe())
        whole = await stage.archive_with(begun)
        expected = await run(whole, begun, Person(await whole.open("run")))
        archive = await stage.archive_with(begun)
        store = await archive.open("run")
        person = Person(store, last=broken)
        await run(archive, begun, person)
        states: dict[int, RunState] = store.kept  # pyright: ignore[reportAttributeAccessIssue]
        del states[broken]
        late = {"kind": "import", "who": "bob", "template": "", "why": "", "templates": plain([LATE]), "at": "later"}
        await store.save_event(broken, CHANGE, late)
        newest = await store.load_state()
        assert newest is not None and newest.step == broken - 1
        again = Person(store, person.wishes)
        ended = await run(archive, newest, again)
        states_of = {state.step: state for state in await store.states()}
        assert states_of[broken] == (await _states(whole))[broken]
        assert "t-late" not in ids(states_of[broken]) and "t-late" in ids(states_of[broken + 1])
        assert ended.step == expected.step
        assert any("t-fresh" in ids(state) for state in states_of.values())

    asyncio.run(main())


async def _states(archive: Archive) -> dict[int, RunState]:
    return {state.step: state for state in await (await archive.open("run")).states()}
