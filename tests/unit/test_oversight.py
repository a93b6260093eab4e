"""What people ask and decide about a run's judges and money."""

import asyncio
from dataclasses import asdict
from pathlib import Path

import pytest
from small_run import RUN, small_archive

from grpo_ray import operations, oversight
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.llm.gate import BUDGET
from grpo_ray.trust.alarms import ALARM, Alarm
from grpo_ray.trust.page import page, words

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
