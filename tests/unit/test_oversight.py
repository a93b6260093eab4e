"""What people ask and decide about a run's judges and money."""

import asyncio
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from small_run import RUN, SEED, lesson, small_archive

from grpo_ray import attended, operations, oversight
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.llm.gate import BUDGET, BUDGET_SPENT
from grpo_ray.protocols import Archive
from grpo_ray.storage.memory import make_storage
from grpo_ray.trust.alarms import ALARM, Alarm
from grpo_ray.trust.page import page, words
from grpo_ray.types import Attempt

DOUBT = asdict(Alarm("canaries", "rubric", "rubric took 3 of 9 canaries for good answers"))


def test_money_is_allowed_at_the_only_door_and_kept_as_an_event() -> None:
    async def main() -> None:
        archive = await small_archive()
        found = await oversight.budget(archive, None, 3.5, who="a test")
        assert (found["door"], found["max_usd"], found["spent_usd"]) == ("bundled stand-in", 3.5, 0.0)
        (event,) = [one for one in await archive.events(RUN) if one["kind"] == BUDGET]
        assert event["detail"]["max_usd"] == 3.5 and event["detail"]["who"] == "a test"
        with pytest.raises(MissingError, match="has no door 'openai'; known: bundled stand-in"):
            await oversight.budget(archive, None, 3.5, "openai", who="a test")

    asyncio.run(main())


def test_whoever_watches_a_run_is_told_once_a_cap_that_calls_wait_for_money(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        archive = await small_archive()
        store = await archive.open(RUN)
        spent = {"door": "bundled stand-in", "max_usd": 0.5, "since": 0}
        await store.save_event(0, BUDGET_SPENT, spent | {"max_usd": 0.25})  # before this process
        async with attended.watched(archive, RUN):
            await store.save_event(0, BUDGET_SPENT, spent)
            await store.save_event(0, BUDGET_SPENT, spent | {"since": 1})  # as another process says
            heard = ""
            while "calls wait" not in heard:
                await asyncio.sleep(0)
                heard += capsys.readouterr().err
        heard += capsys.readouterr().err
        assert heard.count("is spent") == 1
        assert (
            f"$0.5 for bundled stand-in is spent, and calls wait; allow more: grpo-ray budget {RUN} --usd MORE" in heard
        )

    asyncio.run(main())


def test_less_than_is_spent_can_not_be_allowed() -> None:
    async def main() -> None:
        archive = await small_archive()
        paid = Attempt("hash", "bundled stand-in", "0/g/0-rubric", 1, "ok", 0.0, 0.5, 10, 10, 2.0)
        await (await archive.open(RUN)).save_attempts([paid])
        for usd in (1.5, float("nan"), float("inf")):
            with pytest.raises(ConfigError, match=r"spent \$2\.000000 at bundled stand-in"):
                await oversight.budget(archive, None, usd, who="a test")
        assert not [one for one in await archive.events(RUN) if one["kind"] == BUDGET]
        assert (await oversight.budget(archive, None, 2.0, who="a test"))["spent_usd"] == 2.0

    asyncio.run(main())


def test_a_person_s_label_is_seen_by_the_queue_and_the_report_and_by_no_reward() -> None:
    async def main() -> None:
        archive = await judged_archive()
        store = await archive.open(RUN)
        before = await store.scored_groups()
        first = (await oversight.review(archive))["items"][0]["rollout_id"]
        given = await oversight.label(archive, None, first, "overall", 0.25, "ada", "half of it")
        assert (given["rollout_id"], given["judge"], given["score"]) == (first, "person:ada", 0.25)
        await oversight.label(archive, RUN, first, "overall", 0.5, "ada", "more of it")
        assert first not in {one["rollout_id"] for one in (await oversight.review(archive))["items"]}
        report = await oversight.judge_report(archive)
        (ada,) = [one for one in report["others"] if one["judge"] == "person:ada"]
        assert [(one["dimension"], one["marks"], one["mean"]) for one in ada["dimensions"]] == [("overall", 1, 0.5)]
        (rubric,) = report["judges"]
        assert rubric["people"]["map"] == [{"mark": 0.0, "label": 0.5}]
        for other in ("r-0-0", "r-0-1", "r-1-0", "r-1-1"):
            await oversight.label(archive, None, other, "overall", float(other.endswith("0")), "bob")
        (rubric,) = (await oversight.judge_report(archive))["judges"]
        assert rubric["people"]["labels"] == 4
        assert await store.scored_groups() == before

    asyncio.run(main())


def test_what_is_no_label_is_refused() -> None:
    async def main() -> None:
        archive = await small_archive()
        for score, dimension, who in ((1.5, "x", "ada"), (float("nan"), "x", "ada"), (0.5, " ", "ada"), (0.5, "x", "")):
            with pytest.raises(ConfigError, match="label"):
                await oversight.label(archive, None, "r-0-0", dimension, score, who)
        with pytest.raises(ConfigError, match="several fit"):
            await oversight.label(archive, None, "r-0", "overall", 0.5, "ada")
        with pytest.raises(MissingError, match="no rollout has the id"):
            await oversight.label(archive, None, "r-7", "overall", 0.5, "ada")
        assert await (await archive.open(RUN)).added_evaluations() == []

    asyncio.run(main())


async def judged_archive() -> Archive:
    """The small run, with a model's marks in the place of missing ones."""
    archive = await make_storage()
    source = await small_archive()
    states = await (await source.open(RUN)).states()
    await archive.create_run(states[0])
    store = await archive.open(RUN)
    for step in range(2):
        made = lesson(step, SEED)
        rollouts = tuple(
            replace(one, evaluations=(one.evaluations[0], replace(one.evaluations[1], score=place / 2 + step / 4)))
            for place, one in enumerate(made.group.rollouts)
        )
        group = replace(made.group, rollouts=rollouts)
        await store.save_group(step, group.group)
        await store.save_scored(step, group)
        await store.save_lessons(step, [replace(made, group=group)])
        await store.save_state(states[step + 1])
    return archive


def test_an_export_waits_for_a_person_while_the_judges_are_in_doubt(tmp_path: Path) -> None:
    async def main() -> None:
        archive = await small_archive()
        store = await archive.open(RUN)
        await store.save_event(1, ALARM, DOUBT)
        with pytest.raises(ConfigError, match=rf"3 of 9 canaries.*grpo-ray accept-judges {RUN}"):
            await operations.export(archive, None, "chat", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert (await operations.status(archive))["judges"]["alarms"] == [DOUBT["words"]]
        accepted = await oversight.accept_judges(archive, None, who="a test")
        assert accepted["accepted"] == [DOUBT["words"]]
        assert (await oversight.accept_judges(archive, None, who="a test"))["accepted"] == []
        await operations.export(archive, None, "chat", tmp_path / "out")

    asyncio.run(main())


def test_a_report_and_a_queue_come_of_any_run() -> None:
    async def main() -> None:
        archive = await small_archive()
        report = await oversight.judge_report(archive)
        assert report["run_id"] == RUN and words(report)
        assert page(report).startswith("<!doctype html>") or page(report).startswith("<!DOCTYPE html>")
        queue = await oversight.review(archive, limit=2)
        assert queue["run_id"] == RUN and len(queue["items"]) <= 2

    asyncio.run(main())
