"""What people change in a population: each change once, at an edge, and never so that tasks are left without a template."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from small_run import RUN, SEED, small_archive

from grpo_ray.canonical import plain
from grpo_ray.changes import APPLIED, CHANGE, Change, applied, due_at, read, settle, waiting
from grpo_ray.protocols import Archive, Store
from grpo_ray.types import Member, Population, Task, TaskSet, Template

SUM, WORD, ANYTHING = (
    Template(name, f"{name}: {{{{ question }}}}", kind)
    for name, kind in (("t-sum", "sum"), ("t-word", "word"), ("t-any", "any"))
)
PEOPLE = Population((Member(SUM, 0.2), Member(WORD), Member(ANYTHING)), 5, (("t-gone", "no better"),))
NONE = TaskSet((), (), ())
TASKS = (Task("a", "1+1?", task_type="sum"), Task("b", "which?", task_type="word"))


def wish(kind: Any, template: str = "", *templates: Template, id: int = 1, why: str = "") -> Change:
    return Change(id, kind, "ada", template, why, templates)


def names(population: Population) -> list[str]:
    return [template.id for template in population.templates]


def test_pins_come_and_go_and_nothing_else_changes() -> None:
    pinned, refused = applied(PEOPLE, [wish("pin", "t-word"), wish("pin", "t-sum"), wish("unpin", "t-sum")])
    assert [member.pinned for member in pinned.members] == [False, True, False] and not refused
    assert applied(pinned, [wish("unpin", "t-word")]) == (PEOPLE, [])


@pytest.mark.parametrize("kind", ["pin", "unpin", "retire"])
def test_what_does_not_live_is_refused_with_its_end(kind: str) -> None:
    same, refused = applied(PEOPLE, [wish(kind, "t-gone"), wish(kind, "t-none", id=2)])
    assert same == PEOPLE
    assert refused == [(1, "t-gone does not live any more: no better"), (2, "no template t-none lives")]


def test_who_is_retired_is_remembered_with_who_said_so_and_why() -> None:
    left, refused = applied(PEOPLE, [wish("pin", "t-sum"), wish("retire", "t-sum", why="too long")], TASKS)
    assert names(left) == ["t-word", "t-any"] and not refused
    assert left.retired[-1] == ("t-sum", "retired by ada: too long")


def test_the_last_template_for_a_task_type_stays() -> None:
    left, refused = applied(PEOPLE, [wish("retire", "t-any"), wish("retire", "t-sum", id=2)], TASKS)
    assert names(left) == ["t-sum", "t-word"]
    assert refused == [(2, "t-sum is the last template for tasks of type sum")]
    left, refused = applied(PEOPLE, [wish("retire", "t-sum"), wish("retire", "t-any", id=2)], TASKS)
    assert names(left) == ["t-word", "t-any"]
    assert refused == [(2, "t-any is the last template for tasks of type sum")]


def test_without_tasks_the_templates_say_which_types_there_are() -> None:
    left, refused = applied(PEOPLE, [wish("retire", "t-sum"), wish("retire", "t-any", id=2)])
    assert names(left) == ["t-word", "t-any"] and len(refused) == 1
    lone = Population((Member(WORD),))
    assert applied(lone, [wish("retire", "t-word")], TASKS[:1])[1] == [
        (1, "t-word is the last template for tasks of type word")
    ]


def test_imports_bring_in_what_is_new_and_right() -> None:
    fresh, twin = replace(SUM, id="t-new", text="Now: {{ question }}"), replace(SUM, id="t-twin")
    broken = replace(fresh, id="t-broken", text="{{ qestion }}")
    clash = replace(fresh, id="t-word", text="Or: {{ question }}")
    stranger = replace(fresh, id="t-verse", task_type="verse")
    needy = replace(fresh, id="t-needy", text="{{ metadata.hint }} {{ question }}")
    grown, refused = applied(PEOPLE, [wish("import", "", fresh, twin, broken, clash, stranger, needy)], TASKS)
    assert names(grown) == [*names(PEOPLE), "t-new"]
    assert grown.members[-1] == Member(fresh, born=5)
    said = dict(why.split(" did not come in: ") for _, why in refused)
    assert list(said) == ["t-broken", "t-word", "t-verse", "t-needy"]
    assert "the placeholder 'qestion' is unknown" in said["t-broken"]
    assert said["t-word"] == "another template of this name lives"
    assert said["t-verse"] == "the run has no tasks of type 'verse'"
    assert "can't be rendered over task 'a'" in said["t-needy"]


def test_what_was_retired_may_come_back() -> None:
    gone = replace(SUM, id="t-gone", text="Gone: {{ question }}")
    back, refused = applied(PEOPLE, [wish("import", "", gone)])
    assert names(back)[-1] == "t-gone" and back.retired == () and not refused


def event(id: int, named: str, step: int, **detail: Any) -> dict[str, Any]:
    return {"id": id, "kind": named, "step": step, "detail": detail, "time": ""}


def test_each_edge_takes_what_is_new_and_one_done_again_takes_the_same() -> None:
    said = plain(wish("pin", "t-sum", ANYTHING, why="good"))
    said.pop("id")
    events = [
        event(3, CHANGE, 0, at="now", **said),
        event(4, "loss", 0),
        event(5, CHANGE, 0, at="now", **said),
        event(6, APPLIED, 1, through=5, refused=[]),
        event(8, CHANGE, 1, at="now", **said),
    ]
    assert read(events)[0] == wish("pin", "t-sum", ANYTHING, id=3, why="good")
    assert [one.id for one in due_at(1, events)] == [3, 5]
    assert [one.id for one in due_at(2, events)] == [one.id for one in waiting(events)] == [8]
    assert [one.id for one in due_at(1, events[:3])] == [3, 5]
    assert waiting(events[:4]) == [] and due_at(2, events[:4]) == []


async def _opened() -> tuple[Archive, Store]:
    archive = await small_archive(1)
    return archive, await archive.open(RUN)


async def _say(store: Store, kind: str, template: str) -> None:
    await store.save_event(
        1, CHANGE, {"kind": kind, "who": "ada", "template": template, "why": "", "templates": [], "at": ""}
    )


def test_an_edge_settles_what_waits_in_the_state_and_in_what_comes_next() -> None:
    async def main() -> None:
        _, store = await _opened()
        before = await store.load_state()
        assert before is not None and await settle(before, store, NONE) == before
        assert not [one for one in await store.events() if one["kind"] == APPLIED]
        await _say(store, "pin", "t-child")
        await _say(store, "retire", "t-other")
        after = await settle(before, store, NONE)
        assert [member.pinned for member in after.population.members] == [False, True]
        assert after.policies[-1].population == after.population and after.policies[:-1] == before.policies[:-1]
        (done,) = [one for one in await store.events() if one["kind"] == APPLIED]
        assert done["detail"] == {"through": 2, "refused": [[2, "no template t-other lives"]]}
        await _say(store, "retire", SEED.id)
        assert await settle(before, store, NONE) == after, "done again before the state was saved"
        later = await settle(replace(after, step=2), store, NONE)
        assert names(later.population) == ["t-child"] and later.population.members[0].pinned
        assert waiting(await store.events()) == []

    asyncio.run(main())
