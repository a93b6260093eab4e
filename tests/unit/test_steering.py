"""What people ask and decide about a run's templates, over a small run in memory."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import CHILD, RUN, SEED, small_archive

from grpo_ray import steering
from grpo_ray.changes import CHANGE, read, settle
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.library import load_library, write_library
from grpo_ray.protocols import Archive
from grpo_ray.types import Policy, Population, TaskSet, Template

VERSE = Template("t-verse", "In verse: {{ question }}")


def told(visit: Callable[[Archive], Awaitable[None]], steps: int = 1) -> None:
    async def main() -> None:
        await visit(await small_archive(steps))

    asyncio.run(main())


async def stepped(archive: Archive, **changes: Any) -> Population:
    """The run a step later, with what people wished; it has more steps to go."""
    store = await archive.open(RUN)
    state = await store.load_state()
    assert state is not None
    after = replace(state, step=state.step + 1, recipe=replace(state.recipe, steps=9), **changes)
    settled = await settle(after, store, TaskSet((), (), ()))
    await store.save_state(settled)
    return settled.population


def names(found: dict[str, Any]) -> list[str]:
    return [one["id"] for one in found["templates"]]


def file_of(folder: Path, *templates: Template) -> Path:
    return write_library(folder / "mine.json", templates)


def test_the_living_come_first_and_the_retired_with_why() -> None:
    async def visit(archive: Archive) -> None:
        found = await steering.templates(archive)
        assert (found["run_id"], found["step"], names(found)) == (RUN, 1, ["t-child", "t-seed"])
        child = found["templates"][0]
        expected = {"fitness": 0.25, "deviation": 0.2, "trials": 2.0, "made": 1, "born": 0, "mutation": "set_parameter"}
        expected |= {"living": True, "pinned": False, "parents": ["t-seed"], "text": CHILD.text, "task_type": "any"}
        assert {key: child[key] for key in expected} == expected
        await steering.retire(archive, "t-seed", who="ada", why="it rambles")
        waiting = (await steering.templates(archive))["waiting"]
        assert [(one["change"], one["templates"], one["who"], one["why"]) for one in waiting] == [
            ("retire", ["t-seed"], "ada", "it rambles")
        ]
        await stepped(archive)
        assert names(await steering.templates(archive)) == ["t-child"]
        found = await steering.templates(archive, everything=True)
        assert names(found) == ["t-child", "t-seed"] and found["waiting"] == found["refused"] == []
        seed = found["templates"][1]
        assert (seed["retired"], seed["why"], seed["born"]) == (2, "retired by ada: it rambles", None)

    told(visit)


def test_pins_hold_until_they_are_taken_back() -> None:
    async def visit(archive: Archive) -> None:
        answer = await steering.pin(archive, "t-ch", who="ada")
        assert answer == {
            "run_id": RUN, "change": "pin", "template": "t-child", "takes_effect": "at the next step's edge",
        }  # fmt: skip
        assert [member.pinned for member in (await stepped(archive)).members] == [False, True]
        (event,) = [one for one in await archive.events(RUN) if one["kind"] == CHANGE]
        assert event["detail"]["who"] == "ada" and event["detail"]["at"].startswith("20")

    told(visit)


def test_ids_that_are_wrong_are_told_with_near_ones() -> None:
    async def visit(archive: Archive) -> None:
        for change in (steering.pin, steering.unpin, steering.retire):
            with pytest.raises(MissingError, match=f"run {RUN} has no template 't-chidl'; did you mean 't-child'"):
                await change(archive, "t-chidl", who="ada")
            with pytest.raises(ConfigError, match="'t-' fits several templates: t-seed, t-child; write more of it"):
                await change(archive, "t-", who="ada")
        with pytest.raises(MissingError, match="did you mean 't-seed'"):
            await steering.diff(archive, "t-child", "t-sed")
        await steering.retire(archive, "t-seed", who="ada", why="it rambles")
        with pytest.raises(ConfigError, match=r"t-seed of run .* is retired: retired by ada: it rambles; .* --again"):
            await steering.pin(archive, "t-seed", who="bob")
        with pytest.raises(ConfigError, match="t-child is the last template for tasks of type any"):
            await steering.retire(archive, "t-child", who="bob")
        assert len(read(await archive.events(RUN))) == 1

    told(visit)


def test_a_finished_run_keeps_its_templates(tmp_path: Path) -> None:
    async def visit(archive: Archive) -> None:
        with pytest.raises(ConfigError, match="is finished: its templates stay"):
            await steering.pin(archive, "t-seed", who="ada")
        with pytest.raises(ConfigError, match="is finished"):
            await steering.import_templates(archive, file_of(tmp_path, VERSE), who="ada")
        assert names(await steering.templates(archive)) == ["t-child", "t-seed"]

    told(visit, steps=2)


def test_what_no_longer_can_be_done_at_the_edge_is_refused_there() -> None:
    async def visit(archive: Archive) -> None:
        await steering.pin(archive, "t-child", who="ada")
        store = await archive.open(RUN)
        state = await store.load_state()
        assert state is not None
        left = replace(state.population, members=state.population.members[:1], retired=(("t-child", "beaten"),))
        await stepped(archive, population=left, policies=(Policy(left, None),))
        (one,) = (await steering.templates(archive))["refused"]
        assert (one["change"], one["templates"], one["step"]) == ("pin", ["t-child"], 2)
        assert one["refused"] == "t-child does not live any more: beaten"

    told(visit)


# ── prompts.json ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_export_starts_another_run_and_overwrites_only_when_told(tmp_path: Path) -> None:
    async def visit(archive: Archive) -> None:
        out = tmp_path / "out.json"
        found = await steering.export(archive, out)
        assert found == {"run_id": RUN, "path": str(out), "templates": ["t-child", "t-seed"]}
        assert load_library(out) == (CHILD, SEED)
        with pytest.raises(ConfigError, match=r"out\.json is there already; .*--force"):
            await steering.export(archive, out)
        assert (await steering.export(archive, out, best=1, overwrite=True))["templates"] == ["t-child"]
        assert load_library(out) == (CHILD,)
        with pytest.raises(ConfigError, match="can't be written"):
            await steering.export(archive, tmp_path / "no" / "where.json")
        await steering.retire(archive, "t-seed", who="ada")
        await stepped(archive)
        assert (await steering.export(archive, out, overwrite=True))["templates"] == ["t-child"]
        assert (await steering.export(archive, out, everything=True, overwrite=True))["templates"] == [
            "t-seed",
            "t-child",
        ]
        prompts = (await steering.library(archive))["prompts"]
        (tmp_path / "value.json").write_text(json.dumps(prompts))
        assert load_library(tmp_path / "value.json") == (CHILD,)

    told(visit)


def test_the_best_are_the_best_of_each_task_type(tmp_path: Path) -> None:
    async def visit(archive: Archive) -> None:
        words = replace(VERSE, id="t-words", task_type="words")
        await steering.import_templates(archive, file_of(tmp_path, words), who="ada")
        await stepped(archive)
        assert (await steering.export(archive, tmp_path / "a", best=1))["templates"] == ["t-child", "t-words"]

    told(visit)


def test_an_import_brings_in_what_is_new_and_a_changed_one_as_a_child(tmp_path: Path) -> None:
    changed = replace(SEED, text="{{ clarity }} Now: {{ question }}")

    async def visit(archive: Archive) -> None:
        path = file_of(tmp_path, changed, CHILD, VERSE)
        dry = await steering.import_templates(archive, path, who="ada", dry_run=True)
        assert dry["takes_effect"] == "never: this was a dry run" and read(await archive.events(RUN)) == []
        found = await steering.import_templates(archive, path, who="ada", why="shorter")
        assert {**dry, "takes_effect": found["takes_effect"]} == found
        edited, verse = found["templates"]
        assert edited.startswith("t-seed~") and verse == "t-verse" and found["known"] == 1
        population = await stepped(archive)
        child, fresh = (member.template for member in population.members[2:])
        assert (child.parents, child.version, child.text) == (("t-seed",), 2, changed.text)
        assert (fresh.mutation, fresh.note) == ("import", "imported by ada: shorter")
        again = await steering.import_templates(archive, path, who="ada")
        assert (again["templates"], again["known"], again["takes_effect"]) == ([], 3, "never: nothing is new")
        tree = await steering.tree(archive)
        assert {"parent": "t-seed", "child": edited, "mutation": child.mutation, "first": True} in tree["edges"]

    told(visit)


def test_an_import_that_waits_is_known_to_the_next_one(tmp_path: Path) -> None:
    async def visit(archive: Archive) -> None:
        await steering.import_templates(archive, file_of(tmp_path, VERSE), who="ada")
        assert (await steering.import_templates(archive, file_of(tmp_path, VERSE), who="bob"))["templates"] == []
        await steering.pin(archive, "t-verse", who="ada")
        louder = replace(VERSE, text="In verse! {{ question }}")
        found = await steering.import_templates(archive, file_of(tmp_path, louder), who="bob")
        assert found["templates"][0].startswith("t-verse~")
        population = await stepped(archive)
        assert [m.template.id for m in population.members][2:] == ["t-verse", *found["templates"]]
        assert [m.pinned for m in population.members][2:] == [True, False]

    told(visit)


def test_the_retired_stay_so_unless_they_shall_live_again(tmp_path: Path) -> None:
    async def visit(archive: Archive) -> None:
        path = file_of(tmp_path, SEED, VERSE)
        await steering.retire(archive, "t-seed", who="ada", why="it rambles")
        await stepped(archive)
        found = await steering.import_templates(archive, path, who="ada", dry_run=True)
        assert (found["templates"], found["known"]) == (["t-verse"], 1)
        found = await steering.import_templates(archive, path, who="ada", again=True)
        assert (found["templates"], found["known"]) == (["t-verse", "t-seed"], 0)
        population = await stepped(archive)
        assert [member.template for member in population.members] == [CHILD, population.members[1].template, SEED]
        assert "t-seed" not in dict(population.retired)
        seed = (await steering.tree(archive))["nodes"][0]
        assert (seed["id"], seed["made"], seed["living"], seed["why"]) == ("t-seed", 0, True, "")
        assert [known[0] for known in seed["course"]] == [0, 1, 3]

    told(visit)


def test_nothing_comes_in_from_a_file_with_a_problem(tmp_path: Path) -> None:
    bad = {"version": 1, "templates": [{"id": "x", "text": "{{ question }}"}, {"id": "y", "text": "{{ wrong }}"}]}
    (tmp_path / "bad.json").write_text(json.dumps(bad))

    async def visit(archive: Archive) -> None:
        with pytest.raises(ConfigError, match=r"\$\.templates\[1\]\.text: the placeholder 'wrong' is unknown"):
            await steering.import_templates(archive, tmp_path / "bad.json", who="ada")
        with pytest.raises(ConfigError, match="can't be read"):
            await steering.import_templates(archive, tmp_path / "none.json", who="ada")
        assert read(await archive.events(RUN)) == []

    told(visit)


# ── to look ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tree_is_plain_json_with_gains() -> None:
    async def visit(archive: Archive) -> None:
        found = await steering.tree(archive)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert [node["id"] for node in found["nodes"]] == ["t-seed", "t-child"]
        assert [(edge["parent"], edge["child"]) for edge in found["edges"]] == [("t-seed", "t-child")]
        assert all(node["gain"] is not None for node in found["nodes"])
        assert [node["course"][0][0] for node in found["nodes"]] == [0, 1]

    told(visit, steps=2)


def test_without_everything_the_tree_is_the_livings_family() -> None:
    async def visit(archive: Archive) -> None:
        await steering.retire(archive, "t-child", who="ada")
        await stepped(archive)
        assert [node["id"] for node in (await steering.tree(archive, everything=False))["nodes"]] == ["t-seed"]
        assert len((await steering.tree(archive))["nodes"]) == 2

    told(visit)


def test_a_diff_is_of_one_run_and_takes_beginnings_of_ids() -> None:
    async def visit(archive: Archive) -> None:
        found = await steering.diff(archive, "t-s", "t-c")
        assert (found["run_id"], found["from"], found["to"]) == (RUN, "t-seed", "t-child")
        assert found["settings"] == [{"name": "clarity", "from": "plain", "to": "terse"}]

    told(visit)
