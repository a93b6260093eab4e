"""The command line and where things are: keys in a file, a home and a storage in the environment, faults before Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from test_cli import config
from typer.testing import CliRunner, Result

from grpo_ray import terminal
from grpo_ray.cli import app
from grpo_ray.doctor import check_key, check_secrets
from grpo_ray.errors import ConfigError
from grpo_ray.launch import placed
from grpo_ray.recipe import OracleSpec
from grpo_ray.secrets_file import read_secrets
from grpo_ray.settings import load_config

pytestmark = pytest.mark.process

KEY = "KEY_OF_THESE_TESTS"
UNSET = {KEY: None, "GRPO_RAY_HOME": None, "GRPO_RAY_STORAGE": None}
AWAY = "postgresql://somebody:secretpw@127.0.0.1:1/rollouts"
runner = CliRunner(env=UNSET)


def call(*words: str | Path, **environment: str) -> Result:
    """In an environment of its own: what a command puts into it is gone afterwards."""
    return runner.invoke(app, [str(word) for word in words], env={**UNSET, **environment})


async def models(request: Request) -> Response:
    right = request.headers.get("authorization") == "Bearer sk-right"
    return JSONResponse({"data": [{"id": "judge"}]} if right else {}, 200 if right else 401)


LOCKED = Starlette(routes=[Route("/v1/models", models)])
"""An endpoint that asks for a key."""


def keep(home: Path, text: str, mode: int = 0o600) -> Path:
    home.mkdir(exist_ok=True)
    file = home / "secrets.env"
    file.write_text(text)
    file.chmod(mode)
    return file


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_and_the_doctor_take_the_key_from_the_homes_file(tmp_path: Path) -> None:
    with running(LOCKED) as url:
        path = config(tmp_path, oracle={"base_url": url, "model": "judge", "api_key_env": KEY})
        refused = call("run", "-c", path, "--dry-run")
        assert (refused.exit_code, "refuses the key" in refused.stderr) == (1, True)
        keep(tmp_path / "home", f"# mine\nexport {KEY}='sk-right'\n")
        assert call("run", "-c", path, "--dry-run").exit_code == 0
        assert call("preview", "-c", path, "--json").exit_code == 0
        checks = {one["name"]: one for one in json.loads(call("doctor", "-c", path, "--json").stdout)}
    assert checks["endpoint"]["ok"] and checks["secrets"]["ok"]
    assert "sk-right" not in json.dumps(checks)


def test_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    keep(tmp_path, f"{KEY}=from-file\n{KEY}_2 = 'of two words' \nno sign\n")
    code = f"from grpo_ray.secrets_file import read_secrets; import os; read_secrets({str(tmp_path)!r}); "
    code += f"print(os.environ['{KEY}'], os.environ['{KEY}_2'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, KEY: "mine"}, text=True, capture_output=True, check=True
    )
    assert done.stdout == "mine of two words\n"


def test_a_file_of_keys_that_others_read_is_refused(tmp_path: Path) -> None:
    file = keep(tmp_path, f"{KEY}=x", 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_secrets(str(tmp_path))
    found = check_secrets(str(tmp_path))
    assert (found.ok, str(file) in found.fix) == (False, True)
    assert KEY not in os.environ
    assert "secrets.env" in check_key(OracleSpec(base_url="https://judge.example/v1", api_key_env=KEY)).fix


# ── before anything starts ────────────────────────────────────────────────────────────────────────────────────────


def test_a_database_that_is_away_is_told_before_ray_is_asked(tmp_path: Path) -> None:
    words = ["--set", f"placement.storage={AWAY}", "--set", "placement.ray=127.0.0.1:9"]
    found = call("run", "-c", config(tmp_path), *words)
    assert found.exit_code == 1
    assert "127.0.0.1:1" in found.stderr
    assert "Ray" not in found.stderr


def test_a_dry_run_finds_what_a_run_would(tmp_path: Path) -> None:
    endpoint = call("run", "-c", config(tmp_path, oracle={"base_url": "http://127.0.0.1:9/v1"}), "--dry-run")
    assert (endpoint.exit_code, "start the server" in endpoint.stderr) == (1, True)
    path = config(tmp_path)
    database = call("run", "-c", path, "--dry-run", "--set", f"placement.storage={AWAY}")
    assert (database.exit_code, "secretpw" in database.output) == (1, False)
    (tmp_path / "file").touch()
    sets = ["--set", "placement.storage=embedded", "--set", f"placement.home={tmp_path / 'file'}"]
    home = call("run", "-c", path, "--dry-run", *sets)
    assert (home.exit_code, "--home or placement.home" in home.stderr) == (2, True)
    assert database.stdout == home.stdout == endpoint.stdout == ""


def test_a_hub_that_is_away_is_no_wrong_usage(tmp_path: Path) -> None:
    path = config(tmp_path, model="nobody/no-such-model", generator={"name": "mlx"})
    command = [sys.executable, "-m", "grpo_ray.cli", "run", "-c", str(path), "--dry-run"]
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, env={**os.environ, **away}, text=True, capture_output=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "the hub can't be asked" in done.stderr
    assert "check the network" in done.stderr


# ── homes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [["runs"], ["status"], ["show", "run", "x"], ["eval", "x"]])
def test_looking_for_runs_makes_no_database(tmp_path: Path, words: list[str]) -> None:
    found = call(*words, "--home", tmp_path / "mistyped")
    assert found.exit_code == 2
    assert f"there is no run in {tmp_path / 'mistyped'} yet" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_resuming_in_a_wrong_home_makes_no_database(tmp_path: Path) -> None:
    found = call("run", "-c", config(tmp_path), "--resume", "x", "--set", "placement.storage=embedded")
    assert found.exit_code == 2
    assert f"there is no run in {tmp_path / 'home'} yet" in found.stderr
    assert not (tmp_path / "home").exists()


def test_serving_a_wrong_home_makes_no_database(tmp_path: Path) -> None:
    found = call("serve", "--port", "0", "--home", tmp_path / "mistyped")
    assert found.exit_code == 2
    assert f"there is no run in {tmp_path / 'mistyped'} yet" in found.stderr
    assert not (tmp_path / "mistyped" / "postgres").exists()


def test_a_home_that_is_a_file_names_both_ways_to_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = call("runs", "--home", tmp_path / "file")
    assert found.exit_code == 2
    assert "--home or placement.home" in found.stderr


def test_the_environments_home_is_the_default_of_a_config_that_names_none(tmp_path: Path) -> None:
    silent = config(tmp_path, placement={"ray": "off", "storage": "embedded"})
    there = str(tmp_path / "there")
    plan = json.loads(call("run", "-c", silent, "--dry-run", "--json", GRPO_RAY_HOME=there).stdout)
    assert plan["storage"] == f"embedded PostgreSQL under {there}"
    said = ["--set", f"placement.home={tmp_path / 'said'}"]
    plan = json.loads(call("run", "-c", silent, "--dry-run", "--json", *said, GRPO_RAY_HOME=there).stdout)
    assert plan["storage"] == f"embedded PostgreSQL under {tmp_path / 'said'}"
    bare = config(tmp_path, placement={"ray": "off", "home": there})
    database = call("run", "-c", bare, "--dry-run", GRPO_RAY_STORAGE=AWAY)
    assert (database.exit_code, "127.0.0.1:1" in database.stderr) == (1, True)


def test_a_storage_in_the_environment_that_is_none_is_told(tmp_path: Path) -> None:
    found = call("run", "-c", config(tmp_path, placement={"ray": "off"}), "--dry-run", GRPO_RAY_STORAGE="embeded")
    assert found.exit_code == 2
    assert "$GRPO_RAY_STORAGE" in found.stderr


def test_the_next_commands_look_where_the_run_is_kept(tmp_path: Path) -> None:
    result = {"run_id": "r-1", "exported_rows": 0, "adapter": None}
    silent = config(tmp_path, placement={"ray": "off"})
    usual = load_config(silent)
    with runner.isolation(env={**UNSET, "GRPO_RAY_HOME": "/elsewhere"}):
        there = terminal.next_steps(result, placed(usual, silent, []).placement)
        here = terminal.next_steps(result, usual.placement)
    assert there == "next: grpo-ray status r-1"
    assert here == "next: grpo-ray status r-1 --home '~/.grpo-ray'"


# ── preview ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_preview_is_one_list_for_programs(tmp_path: Path) -> None:
    found = call("preview", "-c", config(tmp_path), "--json")
    assert found.exit_code == 0, found.stderr
    groups = json.loads(found.stdout)
    assert "any-plain" in {one["template"] for one in groups}
    assert {len(one["rollouts"]) for one in groups} == {4}
    rollout = groups[0]["rollouts"][0]
    assert isinstance(rollout["text"], str)
    assert rollout["evaluations"][0]["judge"] == "verifier"
    assert [part["name"] for part in rollout["reward"]["parts"]] == ["verified"]


def test_a_preview_that_lost_every_group_failed(tmp_path: Path) -> None:
    found = call("preview", "-c", config(tmp_path, generator={"name": "canned", "settings": {"lost": 1.0}}), "--json")
    assert found.exit_code == 1
    groups = json.loads(found.stdout)
    assert groups and not any(one["rollouts"] for one in groups)
    assert {one["lost"] for one in groups} == {"lost on purpose, by the setting `lost`"}
