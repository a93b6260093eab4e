"""The control server over HTTP on loopback, as an agent's client sees it."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from small_run import RUN, small_archive

from grpo_ray.control.app import TOKEN_FILE, make_app, open_door, read_token
from grpo_ray.errors import ConfigError
from grpo_ray.protocols import Archive

pytestmark = pytest.mark.process

TOKEN = "a-token-for-tests"


def served(visit: Callable[[str, Archive], Awaitable[None]], steps: int = 1) -> None:
    """Call `visit` with the server's address and its archive, while it is up."""

    async def main() -> None:
        archive = await small_archive(steps)
        with open_door(0) as door:
            port = door.getsockname()[1]
            app = make_app(archive, token=TOKEN, port=port)
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
            up = asyncio.create_task(server.serve([door]))
            try:
                await visit(f"http://127.0.0.1:{port}", archive)
            finally:
                server.should_exit = True
                await up

    asyncio.run(main())


@asynccontextmanager
async def connected(url: str, mode: Any = "auto") -> AsyncIterator[Client]:
    """An agent's client with the token."""
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


async def called(url: str, tool: str, mode: str = "auto", **arguments: Any) -> Any:
    async with connected(url, mode) as client:
        return await client.call_tool(tool, arguments)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_status_is_told_in_both_eras(mode: str) -> None:
    async def visit(url: str, _: Archive) -> None:
        answer = await called(url, "status", mode)
        assert not answer.is_error
        assert answer.structured_content["run_id"] == RUN
        assert answer.structured_content["steps"] == 1

    served(visit)


def test_the_tools_and_what_they_say_of_themselves() -> None:
    async def visit(url: str, _: Archive) -> None:
        async with connected(url) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == [
            "list_runs", "status", "explain_rollout", "review_queue", "judge_report", "task_report",
            "search_rollouts",
            "list_templates", "template_tree", "diff_templates", "export_templates",
            "pause", "resume", "stop", "label_rollout",
            "pin_template", "unpin_template", "retire_template", "import_templates",
        ]  # fmt: skip
        reads = {name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint}
        assert reads == set(list(tools)[:11])
        assert all(tool.input_schema["additionalProperties"] is False for tool in tools.values())
        assert all(tool.description for tool in tools.values())

    served(visit)


def test_pause_resume_and_stop_reach_the_run() -> None:
    async def visit(url: str, archive: Archive) -> None:
        for tool, wanted in (("pause", "pause"), ("resume", "run"), ("stop", "stop")):
            answer = await called(url, tool, run=RUN)
            assert answer.structured_content["wanted"] == wanted
            assert await archive.wanted(RUN) == wanted

    served(visit)


def test_a_label_is_kept_and_one_off_the_scale_is_not() -> None:
    async def visit(url: str, archive: Archive) -> None:
        answer = await called(url, "label_rollout", rollout="r-0-0", score=0.5, why="half of it")
        assert answer.structured_content["judge"] == "person:mcp"
        assert (await called(url, "label_rollout", rollout="r-0-0", score=1.5)).is_error
        assert (await called(url, "label_rollout", rollout="r-7", score=0.5)).is_error
        (kept,) = await (await archive.open(RUN)).added_evaluations()
        assert (kept.rollout_id, kept.dimension, kept.score, kept.rationale) == ("r-0-0", "overall", 0.5, "half of it")

    served(visit)


def test_templates_and_rollouts_are_found() -> None:
    async def visit(url: str, _: Archive) -> None:
        templates = (await called(url, "list_templates", limit=1)).structured_content["templates"]
        assert [one["id"] for one in templates] == ["t-child"]
        results = (await called(url, "search_rollouts", query="Answer")).structured_content["results"]
        assert [one["rollout"] for one in results] == ["r-0-0"]
        assert [one["run"] for one in (await called(url, "list_runs")).structured_content["runs"]] == [RUN]

    served(visit)


def test_who_came_from_whom_and_what_changed_is_told() -> None:
    async def visit(url: str, _: Archive) -> None:
        tree = (await called(url, "template_tree")).structured_content
        assert [edge["child"] for edge in tree["edges"]] == ["t-child"] and "course" not in tree["nodes"][0]
        found = (await called(url, "diff_templates", a="t-seed", b="t-c")).structured_content
        assert found["settings"] == [{"name": "clarity", "from": "plain", "to": "terse"}]
        assert "did you mean" in (await called(url, "diff_templates", a="t-seed", b="t-chidl")).content[0].text

    served(visit)


def test_changes_of_templates_are_kept_and_one_that_can_not_be_is_not() -> None:
    async def visit(url: str, archive: Archive) -> None:
        assert not (await called(url, "pin_template", template="t-ch", why="best")).is_error
        assert not (await called(url, "unpin_template", template="t-child")).is_error
        prompts = (await called(url, "export_templates", best=1)).structured_content["prompts"]
        prompts["templates"][0]["text"] += " Now."
        found = (await called(url, "import_templates", prompts=prompts)).structured_content
        assert len(found["templates"]) == 1
        assert (await called(url, "import_templates", prompts={"templates": []})).is_error
        assert not (await called(url, "retire_template", template="t-seed")).is_error
        assert (await called(url, "retire_template", template="t-seed")).is_error
        waiting = (await called(url, "list_templates")).structured_content["waiting"]
        said = [(one["change"], one["who"]) for one in waiting]
        assert said == [(kind, "mcp") for kind in ("pin", "unpin", "import", "retire")]

    served(visit)


def test_an_unknown_argument_is_refused_and_nothing_happens() -> None:
    async def visit(url: str, archive: Archive) -> None:
        answer = await called(url, "stop", run=RUN, dryrun=True)
        assert answer.is_error
        assert "dryrun" in answer.content[0].text
        assert await archive.wanted(RUN) == "run"

    served(visit)


def test_a_fault_reaches_the_agent_with_the_way_out() -> None:
    async def visit(url: str, _: Archive) -> None:
        answer = await called(url, "status", run="smull")
        assert answer.is_error
        assert "there is no run 'smull'" in answer.content[0].text

    served(visit)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer ü".encode()}])
def test_without_the_token_there_is_no_way_in(headers: dict[str, Any]) -> None:
    async def visit(url: str, _: Archive) -> None:
        async with httpx2.AsyncClient() as http:
            answer = await http.post(f"{url}/mcp", headers=headers, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
            assert answer.status_code == 401
            assert (await http.get(f"{url}/health")).json() == {"ok": True}

    served(visit)


def test_a_foreign_host_name_or_origin_is_refused() -> None:
    async def visit(url: str, _: Archive) -> None:
        key = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx2.AsyncClient(headers=key) as http:
            body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            rebound = await http.post(f"{url}/mcp", headers={"Host": "evil.example"}, json=body)
            crossed = await http.post(f"{url}/mcp", headers={"Origin": "http://evil.example"}, json=body)
        assert (rebound.status_code, crossed.status_code) == (421, 403)

    served(visit)


def test_the_token_is_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    token = read_token(home)
    assert read_token(home) == token
    assert len(token) >= 32
    assert stat.S_IMODE(os.stat(home / TOKEN_FILE).st_mode) == 0o600
    (home / TOKEN_FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(home)
    with pytest.raises(ConfigError, match="choose another home folder"):
        read_token(home / TOKEN_FILE / "inside")


def test_a_port_that_is_taken_is_named() -> None:
    with open_door(0) as door:
        port = door.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            open_door(port)
