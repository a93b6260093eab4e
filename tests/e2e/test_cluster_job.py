"""`ray job submit -- grpo-ray run …` on a cluster that runs already, as its users would."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_ray.storage.embedded import remove

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
SMALL = ["steps=1", "splits.train=20", "splits.validation=6", "splits.heldout=6", "plan.tasks=2", "plan.templates=2"]
SMALL += ["sampling.group_size=4", "sampling.max_tokens=40", "gate.tasks=0", "placement.generators=1"]
SMALL += ["placement.ray=auto", "placement.control_port=0"]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def free_ports(count: int) -> list[int]:
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    return ports


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    user = tmp_path_factory.mktemp("user")
    made = {"HOME": str(user), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    made |= {"GRPO_RAY_HOME": str(user / "home"), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | made
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    return environment


@pytest.fixture(scope="module")
def dashboard(environment: dict[str, str]) -> Iterator[str]:
    """A head node of its own, ended as a process group: `ray stop` would end every Ray of the machine."""
    port, page = free_ports(2)
    words = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={page}", "--num-cpus=3"]
    words += ["--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", '--resources={"mlx": 2}']
    head = subprocess.Popen(
        words, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(page, head)
        yield f"http://127.0.0.1:{page}"
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)


def wait_for(port: int, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert head.poll() is None, "the head node ended"
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the head node's dashboard did not come up in 120 s")


def test_a_submitted_job_runs_to_its_end(environment: dict[str, str], dashboard: str) -> None:
    home = environment["GRPO_RAY_HOME"]
    sets = [part for one in [*SMALL, f"placement.home={home}"] for part in ("--set", one)]
    entry = [
        sys.executable,
        "-m",
        "grpo_ray.cli",
        "run",
        "-c",
        str(ROOT / "configs" / "quickstart.yaml"),
        "--json",
        *sets,
    ]
    submit = [RAY, "job", "submit", "--address", dashboard, "--", *entry]
    done = subprocess.run(submit, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=300, check=False)
    try:
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        result = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
        assert result["steps"] == 1
        assert result["heldout"]["both"]["tasks"] == 6
    finally:
        remove(home)
