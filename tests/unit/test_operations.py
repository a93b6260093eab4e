"""Operations over an archive in memory."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import ADAPTER, CHILD, CONTENT, OUTCOME, RECIPE, RUN, SEED, small_archive

from grpo_ray import launch, operations, terminal
from grpo_ray.errors import ConfigError, MissingError, RecipeChanged
from grpo_ray.recipe import Config


def test_status_has_a_results_keys_before_there_is_one() -> None:
    async def main() -> None:
        archive = await small_archive(steps=1)
        found = await operations.status(archive, "small")
        assert found["run_id"] == RUN
        assert (found["steps"], found["planned_steps"], found["rollouts"]) == (1, 2, 2)
        assert found["heldout"] is None
        assert found["reward_per_step"] == [0.5]
        assert [one["id"] for one in found["best_templates"]] == [CHILD.id, SEED.id]
        assert json.loads(json.dumps(found, allow_nan=False)) == found

    asyncio.run(main())


def test_status_of_a_finished_run_tells_its_outcome() -> None:
    async def main() -> None:
        archive = await small_archive()
        await (await archive.open(RUN)).save_outcome(OUTCOME)
        found = await operations.status(archive)
        assert found["heldout"]["both"] == {"accuracy": 0.5, "low": 0.4, "high": 0.6, "tasks": 200}
        assert found["heldout"]["paired"] == {"both - start_best": {"mean": 0.3, "low": 0.2, "high": 0.4}}
        assert [(one["task_type"], one["id"]) for one in found["best_templates"]] == [("arithmetic", CHILD.id)]
        assert found["seconds"] == {"steps": 10.0, "outcome": 5.0}

    asyncio.run(main())


def test_a_chosen_template_that_was_retired_is_told_all_the_same() -> None:
    async def main() -> None:
        archive = await small_archive()
        store = await archive.open(RUN)
        state = await store.load_state()
        assert state is not None
        kept = tuple(member for member in state.population.members if member.template.id != CHILD.id)
        await store.save_state(replace(state, step=state.step + 1, population=replace(state.population, members=kept)))
        await store.save_outcome(OUTCOME)
        (best,) = (await operations.status(archive))["best_templates"]
        assert (best["id"], best["text"], best["fitness"]) == (CHILD.id, CHILD.text, None)
        assert best["settings"] == dict(CHILD.settings) and best["task_type"] == "arithmetic"

    asyncio.run(main())


def test_the_state_hash_does_not_see_the_runs_name() -> None:
    async def main() -> None:
        state = await (await (await small_archive()).open(RUN)).load_state()
        assert state is not None
        assert operations.state_hash(state) == operations.state_hash(replace(state, run="other"))
        assert operations.state_hash(state) != operations.state_hash(replace(state, step=7))

    asyncio.run(main())


def test_a_run_that_is_not_there_is_missed_by_its_nearest_name() -> None:
    async def main() -> None:
        archive = await small_archive()
        with pytest.raises(MissingError, match=f"did you mean '{RUN}'"):
            await operations.status(archive, "smell-20261122-101500-ab12")

    asyncio.run(main())


def test_without_any_run_the_way_to_one_is_named() -> None:
    async def main() -> None:
        archive = await launch.open_archive(replace(Config(recipe=RECIPE).placement, storage="memory"))
        with pytest.raises(MissingError, match="grpo-ray run -c FILE"):
            await operations.status(archive)

    asyncio.run(main())


def test_pausing_resuming_and_stopping_are_heard() -> None:
    async def main() -> None:
        archive = await small_archive(steps=1)
        assert (await operations.pause(archive, RUN, who="test"))["wanted"] == "pause"
        assert await archive.wanted(RUN) == "pause"
        await operations.resume(archive, who="test")
        assert await archive.wanted(RUN) == "run"
        await operations.stop(archive, RUN[:8], who="test")
        assert await archive.wanted(RUN) == "stop"

    asyncio.run(main())


def test_a_finished_run_can_not_be_paused() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="finished"):
            await operations.pause(await small_archive(), RUN, who="test")

    asyncio.run(main())


def test_a_rollout_brings_its_ancestry() -> None:
    async def main() -> None:
        row = await operations.show(await small_archive(), "rollout", "r-1-0")
        assert [one["id"] for one in row["templates"]] == [CHILD.id, SEED.id]
        assert row["adapters"][0]["id"] == ADAPTER.hash
        assert row["adapters"][0]["version"] == 1
        assert [one["rationale"] for one in row["evaluations"]] == ["compared", "the judge left this out"]
        assert row["reward"]["value"] == 1.0
        assert row["advantage"] == 1.0

    asyncio.run(main())


def test_an_ancestry_does_not_hold_further_ancestries() -> None:
    async def main() -> None:
        archive = await small_archive()
        template = await operations.show(archive, "template", CHILD.id)
        adapter = await operations.show(archive, "adapter", ADAPTER.hash)
        assert [one["id"] for one in template["ancestry"]] == [CHILD.id, SEED.id]
        assert not any("ancestry" in one for one in template["ancestry"] + adapter["ancestry"])
        assert terminal.template(template).label

    asyncio.run(main())


def test_search_without_an_embedder_goes_by_words() -> None:
    async def main() -> None:
        found = await operations.search_rollouts(await small_archive(), "answer: 12")
        assert found["by"] == "words"
        assert [one["rollout"] for one in found["results"][:2]] == ["r-0-0", "r-1-0"]
        assert found["results"][0]["reward"] == 1.0

    asyncio.run(main())


def test_search_with_an_embedder_goes_by_meaning_and_keeps_the_embeddings() -> None:
    asked: list[int] = []

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        asked.append(len(texts))
        return [[1.0, 0.0] if "Answer" in text else [0.0, 1.0] for text in texts]

    async def main() -> None:
        archive = await small_archive()
        first = await operations.search_rollouts(archive, "Answer", embed=embed, model="two-d", limit=2)
        assert (first["by"], first["complete"]) == ("meaning", True)
        assert {one["rollout"] for one in first["results"]} == {"r-0-0", "r-1-0"}
        await operations.search_rollouts(archive, "Answer", embed=embed, model="two-d")
        assert asked == [4, 1, 1]

    asyncio.run(main())


def test_a_fork_goes_on_from_the_old_runs_state_with_its_adapter() -> None:
    async def main() -> None:
        archive = await small_archive()
        longer = Config(recipe=replace(RECIPE, steps=5, lag=1))
        state = await launch.fork(archive, RUN, longer)
        assert (state.step, state.recipe.steps, len(state.policies)) == (2, 5, 2)
        store = await archive.open(state.run)
        assert await store.load_state() == state
        assert (await store.load_adapter(ADAPTER.hash)) == CONTENT
        assert (await store.states())[0].population.templates == (SEED,)

    asyncio.run(main())


def test_a_fork_that_has_no_step_left_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="--set steps="):
            await launch.fork(await small_archive(), RUN, Config(recipe=RECIPE))

    asyncio.run(main())


def test_a_fork_to_another_model_leaves_the_adapter_behind() -> None:
    async def main() -> None:
        other = Config(recipe=replace(RECIPE, steps=5, model="other"))
        assert (await launch.fork(await small_archive(), RUN, other)).adapter is None

    asyncio.run(main())


def test_resuming_under_another_recipe_names_what_changed() -> None:
    async def main() -> None:
        archive = await small_archive()
        changed = replace(RECIPE, seed=3, sampling=replace(RECIPE.sampling, temperature=0.5))
        with pytest.raises(RecipeChanged, match=r"changed: sampling.temperature, seed\..*--fork"):
            await launch.take_up(archive, RUN, Config(recipe=changed))

    asyncio.run(main())


def test_resuming_may_change_how_oracles_are_reached_and_paid_and_nothing_they_say() -> None:
    async def main() -> None:
        archive = await small_archive(steps=1)
        how = {"base_url": "http://127.0.0.1:9/v1", "max_usd": 9.0, "usd_per_million": (1.0, 2.0), "concurrency": 2}
        config = Config(recipe=replace(RECIPE, oracle=replace(RECIPE.oracle, **how)))
        state = await launch.take_up(archive, RUN, config)
        assert state.recipe == RECIPE
        assert launch.reached(config, state).recipe == config.recipe
        other = replace(config.recipe, oracle=replace(config.recipe.oracle, model="another", temperature=0.5))
        with pytest.raises(RecipeChanged, match=r"changed: oracle.model, oracle.temperature\."):
            await launch.take_up(archive, RUN, Config(recipe=other))

    asyncio.run(main())


def test_resuming_takes_back_an_earlier_stop() -> None:
    async def main() -> None:
        archive = await small_archive(steps=1)
        await archive.want(RUN, "stop", "test")
        state = await launch.take_up(archive, RUN, Config(recipe=RECIPE))
        assert state.step == 1
        assert await archive.wanted(RUN) == "run"

    asyncio.run(main())


def test_exporting_in_an_unknown_format_names_the_known() -> None:
    async def main() -> None:
        with pytest.raises(MissingError, match="there is no export format 'chatt'; did you mean 'chat'"):
            await operations.export(await small_archive(), RUN, "chatt", "out")

    asyncio.run(main())


def test_an_export_holds_the_right_answers_once(tmp_path: Path) -> None:
    async def main() -> None:
        found = await operations.export(await small_archive(), RUN, "chat", tmp_path / "data")
        assert found["rows"] == 2
        rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
        assert {row["rollout_id"] for row in rows} == {"r-0-0", "r-1-0"}
        assert str(tmp_path / "data" / "train.jsonl") in found["files"]

    asyncio.run(main())


def test_an_export_refuses_unknown_settings_and_files_in_its_way(tmp_path: Path) -> None:
    async def main() -> None:
        archive = await small_archive()
        with pytest.raises(ConfigError, match="did you mean 'title'"):
            await operations.export(archive, RUN, "chat", tmp_path, {"titel": "x"})
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="file"):
            await operations.export(archive, RUN, "chat", tmp_path / "file" / "below")

    asyncio.run(main())


def test_an_adapter_can_not_leave_a_run_that_has_none(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(MissingError, match="no adapter yet"):
            await operations.export(await small_archive(steps=0), RUN, "adapter", tmp_path / "adapter")

    asyncio.run(main())


def test_run_ids_are_readable_and_safe_in_paths() -> None:
    assert launch.new_id("my run/../x").startswith("my-run----x-20")
    assert launch.new_id("") != launch.new_id("")
