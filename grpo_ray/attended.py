"""A run with a person in front of it: a progress bar, Ctrl-C that ends at a step's edge, and the stand-in server beside."""

import asyncio
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from grpo_ray import operations, terminal
from grpo_ray.errors import ConfigError, UnreachableError
from grpo_ray.llm.gate import BUDGET_SPENT
from grpo_ray.protocols import Archive
from grpo_ray.recipe import Config
from grpo_ray.settings import masked

LOOK_S = 0.5
ENDING = (signal.SIGINT, signal.SIGTERM)


async def attend(
    config: Config, archive: Archive, run: str, resume_line: str, work: Callable[[str], Awaitable[None]]
) -> dict[str, Any]:
    """What a run came to; `work`, given the address that judges ask at, is the run itself."""
    with resumable(resume_line) as ended:
        async with interruptible(archive, run):
            print(f"run {run}", file=sys.stderr)
            with bundled_server(config) as base_url:
                async with watched(archive, run):
                    await work(base_url)
            result = await operations.status(archive, run)
        ended(bool(result["finished"]))
    return result


@asynccontextmanager
async def interruptible(archive: Archive, run: str) -> AsyncIterator[None]:
    """Inside, the first Ctrl-C (or SIGTERM) asks the run to stop at the step's edge; the second drops the step."""
    loop, asking = asyncio.get_running_loop(), []

    def interrupted() -> None:
        _leave(loop)
        print("finishing this step, then stopping (Ctrl-C again drops the step) …", file=sys.stderr)
        asking.append(loop.create_task(archive.want(run, "stop", "Ctrl-C")))

    for number in ENDING:
        loop.add_signal_handler(number, interrupted)
    try:
        yield
    finally:
        _leave(loop)
        await asyncio.gather(*asking)


def _leave(loop: asyncio.AbstractEventLoop) -> None:
    for number in ENDING:
        loop.remove_signal_handler(number)


@asynccontextmanager
async def watched(archive: Archive, run: str) -> AsyncIterator[None]:
    """A progress bar on stderr, drawn from what has been saved."""
    before = max((event["id"] for event in await archive.events(run)), default=0)
    with terminal.bar() as draw:
        watcher = asyncio.create_task(_watch(archive, run, draw, before))
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])


async def _watch(archive: Archive, run: str, draw: Callable[[dict[str, Any], float | None], None], seen: int) -> None:
    store, rewarded, reward, caps = await archive.open(run), 0, None, set[tuple[str, float]]()
    while True:
        for event in await archive.events(run, seen):
            seen = event["id"]
            if event["kind"] == BUDGET_SPENT:
                _tell_of_money(run, event["detail"], caps)
        now = await archive.progress(run)
        if now["step"] > rewarded:
            rewarded, reward = now["step"], await operations.mean_reward(store, now["step"] - 1)
        draw(now, reward)
        await asyncio.sleep(LOOK_S)


def _tell_of_money(run: str, detail: Mapping[str, Any], told: set[tuple[str, float]]) -> None:
    """Say that calls wait for money, once a door and cap: several processes may have told of it."""
    door, usd = cap = detail["door"], detail["max_usd"]
    if cap not in told:
        told.add(cap)
        allow = f"grpo-ray budget {run} --usd MORE --door {shlex.quote(door)}"
        line = f"${usd:g} for {door} is spent, and calls wait; allow more: {allow}; or Ctrl-C, and resume with a larger max_usd"
        print(line, file=sys.stderr)


def again(config: Path, sets: Sequence[str]) -> str:
    """The command that `run` was called by; a password in it is left out, to be filled in."""
    words = ["grpo-ray", "run", "-c", str(config), *(part for one in sets for part in ("--set", masked(one)))]
    return shlex.join(words)


@contextmanager
def kept_in(home: str) -> Iterator[None]:
    """Inside, a file of `home` that can't be written is a ConfigError that says so."""
    try:
        yield
    except OSError as fault:
        raise ConfigError(f"can't write in {home}: {fault.strerror}; choose another folder with --home") from fault


@contextmanager
def resumable(command: str) -> Iterator[Callable[[bool], None]]:
    """Unless told that the run has finished, say how to go on with it: after Ctrl-C, a stop, and a crash."""
    finished: list[bool] = []
    try:
        yield finished.append
    finally:
        if not any(finished):
            print(f"to go on: {command}", file=sys.stderr)


@contextmanager
def bundled_server(config: Config) -> Iterator[str]:
    """The stand-in server's address, which lives as long as the block; the config's own where it needs no stand-in."""
    recipe = config.recipe
    if all(spec.base_url != "bundled" for spec in (recipe.oracle, *recipe.oracles.values())):
        yield recipe.oracle.base_url
        return
    command = [sys.executable, "-m", "grpo_ray.cli", "mock-openai", "--with-parent", "--port", "0"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield _address(server)
    finally:
        server.terminate()
        server.communicate()


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    if not (line := server.stdout.readline().strip()):
        raise UnreachableError("the bundled stand-in server did not start; try: grpo-ray mock-openai")
    return json.loads(line)["base_url"]
