"""The command line from end to end, in processes of its own: run, look, export, and a killed run that ends the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_ray.storage.embedded import remove

ROOT = Path(__file__).parents[2]
SMALL = ["steps=3", "splits.train=40", "splits.validation=9", "splits.heldout=12", "plan.tasks=3", "plan.templates=2"]
SMALL += ["plan.wave=3", "sampling.group_size=4", "sampling.max_tokens=40", "evolution.children=1", "gate.tasks=0"]
ROLES = ("Generator", "Judge", "Trainer")

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def command(home: Path, *words: str, settings: tuple[str, ...] = ()) -> list[str]:
    sets = [*SMALL, f"placement.home={home}", *settings] if words[0] in ("run", "preview") else []
    return [sys.executable, "-m", "grpo_ray.cli", *words, *(part for one in sets for part in ("--set", one))]


def call(home: Path, *words: str, settings: tuple[str, ...] = (), code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"GRPO_RAY_HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        command(home, *words, settings=settings),
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, done.stderr[-4000:]
    return done


def run(home: Path, *words: str, settings: tuple[str, ...] = ()) -> dict[str, Any]:
    return json.loads(call(home, "run", "-c", "configs/quickstart.yaml", "--json", *words, settings=settings).stdout)


def exported(home: Path, run_id: str, folder: Path) -> dict[str, bytes]:
    call(home, "export", run_id, "--format", "chat", "--out", str(folder))
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.jsonl"))}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    yield folder
    remove(folder)


@pytest.fixture(scope="module", params=[0, 1], ids=["lag0", "lag1"])
def unbroken(request: pytest.FixtureRequest, home: Path) -> tuple[int, dict[str, Any]]:
    return request.param, run(home, settings=(f"lag={request.param}",))


def test_a_run_ends_with_one_object_that_says_what_it_came_to(unbroken: tuple[int, dict[str, Any]], home: Path) -> None:
    _, result = unbroken
    assert result["steps"] == 3
    arms = ("start_mean", "start_best", "best_template", "last_adapter", "both")
    assert all(set(result["heldout"][arm]) >= {"accuracy", "low", "high", "tasks"} for arm in arms)
    assert len(result["reward_per_step"]) == 3
    assert result["rollouts"] == 3 * 3 * 2 * 4
    status = json.loads(call(home, "status", result["run_id"], "--json").stdout)
    assert status["state_hash"] == result["state_hash"]
    assert status["heldout"] == result["heldout"]


def begun(home: Path, lag: int) -> tuple[subprocess.Popen[str], str]:
    """A run in a process of its own, and its id, as soon as its first step is saved and its second has begun."""
    environment = os.environ | {"GRPO_RAY_HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    words = command(home, "run", "-c", "configs/quickstart.yaml", "--json", settings=(f"lag={lag}",))
    before = {one["run"] for one in json.loads(call(home, "runs", "--json").stdout)}
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        return process, wait_for_first_step(home, before, process)
    except BaseException:
        process.kill()
        raise


def actors_of(role: str) -> set[int]:
    """The processes that Ray has named after an actor's class."""
    table = subprocess.run(["ps", "-eo", "pid=,args="], text=True, capture_output=True, check=True).stdout
    return {int(line.split()[0]) for line in table.splitlines() if line.split()[1].startswith(f"ray::{role}")}


def test_a_killed_run_resumes_to_the_same_state_and_the_same_bytes(
    unbroken: tuple[int, dict[str, Any]], home: Path, tmp_path: Path
) -> None:
    lag, expected = unbroken
    victim, broken = begun(home, lag)
    victim.kill()
    victim.communicate()
    resumed = run(home, "--resume", broken, settings=(f"lag={lag}",))
    assert resumed["run_id"] == broken
    assert resumed["state_hash"] == expected["state_hash"]
    whole, mended = (exported(home, one["run_id"], tmp_path / name) for name, one in (("a", expected), ("b", resumed)))
    assert whole == mended
    assert whole["train.jsonl"]


def test_killed_actors_change_neither_the_state_nor_the_bytes(
    unbroken: tuple[int, dict[str, Any]], home: Path, tmp_path: Path
) -> None:
    lag, expected = unbroken
    strangers = {role: actors_of(role) for role in ROLES}
    process, name = begun(home, lag)
    victims = {role: min(actors_of(role) - strangers[role]) for role in ROLES}
    for victim in victims.values():
        os.kill(victim, signal.SIGKILL)
    result = json.loads(process.communicate(timeout=280)[0])
    assert process.returncode == 0
    assert result["state_hash"] == expected["state_hash"]
    assert exported(home, name, tmp_path / "a") == exported(home, expected["run_id"], tmp_path / "b")


def wait_for_first_step(home: Path, before: set[str], victim: subprocess.Popen[str]) -> str:
    """The new run's id, as soon as its first step is saved and its second has begun."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert victim.poll() is None, "the run ended before it could be killed"
        for one in json.loads(call(home, "runs", "--json").stdout):
            if one["run"] not in before and one["step"] >= 1:
                return one["run"]
        time.sleep(0.2)
    raise AssertionError("no step was saved in 200 s")
