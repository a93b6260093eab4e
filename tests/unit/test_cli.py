"""The command line in this process: help, wrong usage, wrong configs, dry runs, and a whole small run with stand-ins."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import stand_in
from typer.testing import CliRunner, Result

from grpo_ray.cli import app

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
COMMANDS = ["preview", "run", "runs", "status", "show", "eval", "export", "doctor", "serve", "mock-openai"]


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def config(folder: Path, **changes: Any) -> Path:
    """A config whose parts are all stand-ins, in memory and in this process, over 40 sums of the file beside it."""
    sums = [{"question": f"What is {n} + {n + 1}?", "answer": str(2 * n + 1)} for n in range(40)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    values: dict[str, Any] = {
        "name": "little",
        "steps": 2,
        "tasks": [{"name": "jsonl", "settings": {"path": "sums.jsonl"}}],
        "splits": {"validation": 6, "heldout": 10},
        "sampling": {"group_size": 4},
        "plan": {"tasks": 3, "templates": 2, "wave": 3},
        "generator": {"name": "canned"},
        "trainer": {"name": "canned"},
        "evolution": {"children": 1, "mutations": [{"name": "set_parameter"}]},
        "placement": {"ray": "off", "storage": "memory", "home": str(folder / "home")},
    }
    path = folder / "little.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_help_names_every_command() -> None:
    found = call("--help")
    assert found.exit_code == 0
    assert all(re.search(rf"^\W*{name}\s", found.stdout, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    assert call(name, "--help").exit_code == 0


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'ray', 'mlx', 'mcp', 'openai', 'psycopg', 'reasoning_gym', 'rich.table'}"
    code = f"import sys, grpo_ray.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("words", [["rum"], ["run"], ["run", "-c"], ["show", "leaf", "x"], ["export", "x"]])
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    found = call(*words)
    assert found.exit_code == 2
    assert "Traceback" not in found.output


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    found = call("run", "-c", tmp_path / "no.yaml")
    assert found.exit_code == 2
    assert "no.yaml: there is no such file" in found.stderr
    assert found.stdout == ""


def test_a_misspelt_key_names_the_nearest_right_one(tmp_path: Path) -> None:
    found = call("run", "-c", config(tmp_path, stepz=3), "--dry-run")
    assert found.exit_code == 2
    assert "stepz" in found.stderr
    assert "did you mean 'steps'" in found.stderr


def test_a_broken_line_in_a_task_file_is_named_by_its_number(tmp_path: Path) -> None:
    path = config(tmp_path)
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write("\n{broken")
    found = call("run", "-c", path)
    assert found.exit_code == 2
    assert "sums.jsonl:41:" in found.stderr


def test_a_model_that_is_nowhere_is_named_before_anything_starts(tmp_path: Path) -> None:
    found = call("run", "-c", config(tmp_path, model=str(tmp_path / "nowhere"), generator={"name": "mlx"}))
    assert found.exit_code == 2
    assert f"no folder {tmp_path / 'nowhere'}" in found.stderr
    assert "run little-" not in found.stderr


def test_an_endpoint_that_does_not_answer_is_named_before_anything_starts(tmp_path: Path) -> None:
    found = call("run", "-c", config(tmp_path, oracle={"base_url": "http://127.0.0.1:9/v1"}))
    assert found.exit_code == 1
    assert "http://127.0.0.1:9/v1/models" in found.stderr
    assert "start the server" in found.stderr


@pytest.mark.parametrize("scheme", ["postgresql://", "postgres:/", "mysql://"])
def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path, scheme: str) -> None:
    dsn = f"{scheme}somebody:secretpw@127.0.0.1:1/rollouts"
    for found in (
        call("run", "-c", config(tmp_path), "--set", f"placement.storage={dsn}"),
        call("run", "-c", config(tmp_path), "--set", f"placement.storage.deeper={dsn}"),
        call("runs", "--storage", dsn, "--json"),
    ):
        assert found.exit_code in (1, 2)
        assert "placement.storage" in found.stderr
        assert "secretpw" not in found.output
        assert found.stdout == ""
        assert "run little-" not in found.stderr


@pytest.mark.parametrize("home", ["/proc/nobody", "in-the-way"])
def test_a_home_that_can_not_be_written_is_named_before_anything_starts(tmp_path: Path, home: str) -> None:
    (tmp_path / "in-the-way").touch()
    folder = str(tmp_path / home)
    placement = {"ray": "off", "storage": "embedded", "home": folder}
    words = [["run", "-c", config(tmp_path, placement=placement)], ["serve", "--port", "0", "--home", folder]]
    for found in [call(*one) for one in words]:
        assert found.exit_code == 2
        assert f"in {folder}: " in found.stderr
        assert "folder" in found.stderr
        assert "run little-" not in found.stderr


def test_an_empty_task_file_is_named(tmp_path: Path) -> None:
    path = config(tmp_path)
    (tmp_path / "sums.jsonl").write_text("\n\n")
    found = call("run", "-c", path)
    assert found.exit_code == 2
    assert f"{tmp_path}/sums.jsonl holds no tasks" in found.stderr


def test_every_problem_of_a_prompt_library_is_told_at_once(tmp_path: Path) -> None:
    library = {"version": 1, "templates": [{"id": "a", "text": "{{ question"}, {"id": "a", "text": "{{ wrong }}"}]}
    (tmp_path / "mine.json").write_text(json.dumps(library))
    found = call("run", "-c", config(tmp_path, prompts="mine.json"))
    assert found.exit_code == 2
    assert "$.templates[0].text: broken Jinja2" in found.stderr
    assert "$.templates[1].text: the placeholder 'wrong' is unknown" in found.stderr
    assert "$.templates[1].id: 'a' is the id of $.templates[0] already" in found.stderr


@pytest.mark.parametrize(
    ("placeholder", "where"),
    [
        ("{{ question.no_such }}", "$.templates[{place}].text: can't be rendered"),
        ("{{ metadata.no_such }}", "template {id!r} can't be rendered"),
    ],
)
def test_a_template_that_can_not_be_rendered_is_told_before_anything_starts(
    tmp_path: Path, placeholder: str, where: str
) -> None:
    library = json.loads((ROOT / "prompts.json").read_text())
    place, odd = next((i, one) for i, one in enumerate(library["templates"]) if one["task_type"] == "any")
    odd["text"] += placeholder
    (tmp_path / "mine.json").write_text(json.dumps(library))
    found = call("run", "-c", config(tmp_path, prompts="mine.json"), "--dry-run")
    assert found.exit_code == 2
    assert where.format(place=place, id=odd["id"]) in found.stderr
    assert "no_such" in found.stderr


def test_memory_storage_needs_one_process(tmp_path: Path) -> None:
    found = call("run", "-c", config(tmp_path), "--set", "placement.ray=local")
    assert found.exit_code == 2
    assert "placement.ray: off" in found.stderr


def test_resume_and_fork_exclude_each_other(tmp_path: Path) -> None:
    assert call("run", "-c", config(tmp_path), "--resume", "a", "--fork", "b").exit_code == 2


def test_a_dry_run_plans_and_starts_nothing(tmp_path: Path) -> None:
    judges = [{"name": "verifier"}, {"name": "rubric"}]
    with stand_in() as url:
        oracle = {"base_url": url, "usd_per_million": [1.0, 10.0]}
        found = call("run", "-c", config(tmp_path, judges=judges, oracle=oracle), "--dry-run", "--json")
    assert found.exit_code == 0
    plan = json.loads(found.stdout)
    assert (plan["steps"], plan["prompts"], plan["rollouts"], plan["judge_calls"]) == (2, 12, 48, 48)
    assert plan["tasks"] == {"train": 24, "validation": 6, "heldout": 10}
    assert plan["estimated_usd"] > 0
    assert not (tmp_path / "home").exists()


def test_a_whole_run_ends_with_one_object(tmp_path: Path) -> None:
    found = call("run", "-c", config(tmp_path), "--json")
    assert found.exit_code == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["run_id"].startswith("little-")
    assert (result["steps"], result["rollouts"], len(result["reward_per_step"])) == (2, 48, 2)
    arms = ("start_mean", "start_best", "best_template", "last_adapter", "both")
    assert all(result["heldout"][arm]["tasks"] == 10 for arm in arms)
    assert re.fullmatch("[0-9a-f]{64}", result["state_hash"])
    assert set(result["seconds"]) == {"sample", "judge", "train", "steps", "outcome"}
    assert result["exported_rows"] > 0


def test_the_outcome_is_drawn_for_people(tmp_path: Path) -> None:
    found = call("run", "-c", config(tmp_path, steps=1))
    assert found.exit_code == 0, found.stderr
    assert "held-out tasks, temperature 0" in found.stdout
    assert "--set placement.storage=embedded" in found.stderr


def test_a_preview_shows_every_template_and_stores_nothing(tmp_path: Path) -> None:
    found = call("preview", "-c", config(tmp_path))
    assert found.exit_code == 0, found.stderr
    assert "any-plain" in found.stdout
    assert "verified" in found.stdout
    assert not (tmp_path / "home").exists()


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(tmp_path: Path) -> None:
    slow = config(tmp_path, steps=500, generator={"name": "canned", "settings": {"seconds": 0.05}})
    command = [sys.executable, "-m", "grpo_ray.cli", "run", "-c", str(slow), "--json"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    watchdog = threading.Timer(60, run.kill)
    watchdog.start()
    assert run.stderr is not None
    try:
        assert next(line for line in run.stderr if line.startswith("run little-"))
        os.kill(run.pid, signal.SIGINT)
        out, err = run.communicate()
    finally:
        watchdog.cancel()
        run.kill()
    assert run.returncode == 130, err
    assert json.loads(out)["steps"] < 500
    assert re.search(rf"to go on: grpo-ray run -c {slow} --resume little-", err)


def test_a_bundled_server_answers_while_it_is_needed(tmp_path: Path) -> None:
    from grpo_ray.attended import bundled_server
    from grpo_ray.doctor import check_endpoint
    from grpo_ray.recipe import OracleSpec
    from grpo_ray.settings import load_config

    with bundled_server(load_config(config(tmp_path))) as url:
        spec = OracleSpec(base_url=url, model="stand-in")
        assert asyncio.run(check_endpoint(spec)).ok
    assert not asyncio.run(check_endpoint(spec)).ok
