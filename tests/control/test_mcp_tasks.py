"""What an agent is told of a run's tasks."""

import asyncio
import json
from typing import Any

from mcp import Client
from small_run import RUN, small_archive

from grpo_ray.control.mcp import make_mcp


def asked(steps: int = 2, **arguments: Any) -> Any:
    async def main() -> Any:
        server = make_mcp(await small_archive(steps), token="t", url="http://127.0.0.1:1/mcp")
        async with Client(server) as client:
            return await client.call_tool("task_report", arguments)

    return asyncio.run(main())


def test_the_tool_tells_of_tasks_briefly() -> None:
    found = asked(run=RUN[:5]).structured_content
    assert found["types"][0]["overall"]["pass_rate"]["value"] == 0.5
    assert found["curriculum"]["counts"] == {"solved": 0, "learnable": 1, "too_hard": 0}
    assert "weights" not in found["curriculum"]
    json.dumps(found, allow_nan=False)


def test_what_it_can_t_tell_is_an_error_with_the_way_out() -> None:
    none_yet = asked(steps=0)
    assert none_yet.is_error and "let it take a step" in none_yet.content[0].text
    assert asked(run="nobody's").is_error
    assert asked(rum=RUN).is_error
