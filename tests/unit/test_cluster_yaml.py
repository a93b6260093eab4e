"""cluster.yaml against the checks that `ray up` itself makes, and against what it must not forget."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "cluster.yaml"


def written() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def starts(kind: str) -> str:
    """The command that starts Ray on nodes of a kind."""
    return written()[f"{kind}_start_ray_commands"][-1]


def test_ray_up_accepts_it_and_keeps_every_worker() -> None:
    prepared = prepare_config(written())
    validate_config(prepared)
    count = len(written()["provider"]["worker_ips"])
    (kind,) = prepared["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"], prepared["max_workers"]) == (count, count, count)


def test_a_misspelt_key_would_be_refused() -> None:
    with pytest.raises(ValidationError, match="worker_start_rays"):
        validate_config(prepare_config(written() | {"worker_start_rays": []}))


@pytest.mark.parametrize("kind", ["head", "worker"])
@pytest.mark.parametrize(
    "token",
    [
        "RAY_AUTH_MODE=token",
        "RAY_USAGE_STATS_ENABLED=0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1",
        "unset OMP_NUM_THREADS",
        ". ~/.grpo-ray/node.env;",
        '--resources="$NODE_RESOURCES"',
        "--node-ip-address=$NODE_IP",
        "--min-worker-port=",
    ],
)
def test_every_node_starts_with(kind: str, token: str) -> None:
    assert token in starts(kind)


@pytest.mark.parametrize(
    "token",
    [
        "--head",
        "RAY_enable_autoscaler_v2=0",
        "--dashboard-host=127.0.0.1",
        "--port=6379",
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
    ],
)
def test_the_head_starts_with(token: str) -> None:
    assert token in starts("head")


def test_workers_join_the_head_that_ray_names() -> None:
    assert "--address=$RAY_HEAD_IP:6379" in starts("worker")


def test_nodes_are_stopped_and_the_head_forgets_before_it_starts() -> None:
    commands = written()
    assert all("ray stop --force" in commands[f"{kind}_start_ray_commands"][0] for kind in ("head", "worker"))
    assert "rm -f /tmp/ray/cluster-*.state" in commands["head_start_ray_commands"][1]


def test_it_holds_no_key_and_protects_the_token() -> None:
    commands = yaml.safe_dump(written())
    assert "API_KEY" not in commands
    assert "chmod 600 ~/.ray/auth_token" in written()["setup_commands"]
