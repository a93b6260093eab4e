"""Every advantage of a whole run can be explained from what is stored, and comes out again."""

import asyncio
from typing import Any

import pytest
from little import stage

from grpo_ray import loop, oversight
from grpo_ray.crew import StoreControl
from grpo_ray.recipe import RewardSpec

REWARDS = (RewardSpec(name="verified", gate=1.0), RewardSpec(name="format", weight=0.5, cap=0.7))


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("advantages", ["standardized", "leave_one_out"])
def test_what_a_run_stored_comes_out_again(aggregation: str, advantages: str) -> None:
    async def main() -> list[dict[str, Any]]:
        state = stage.beginning(
            stage.recipe(steps=2, lag=1, rewards=REWARDS, aggregation=aggregation, advantages=advantages)
        )
        archive = await stage.archive_with(state)
        async with stage.crew_over(archive, state) as crew:
            await loop.run(state, crew, StoreControl(archive, state.run))
        lessons = await (await archive.open(state.run)).lessons()
        ids = [one.rollout.id for lesson in lessons for one in lesson.group.rollouts]
        return [await oversight.explain(archive, id, state.run) for id in ids]

    found = asyncio.run(main())
    assert len(found) == 2 * 4 * 3 * 4 and any(one["advantage"] for one in found)
    assert not [line for one in found for line in one["disagreements"]]
    assert {one["step"] for one in found} == {0, 1}
