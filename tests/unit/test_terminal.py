"""How results look: untrusted text stays text."""

import unicodedata
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from grpo_ray import terminal
from grpo_ray.doctor import check_disk, check_home, check_key, check_model
from grpo_ray.recipe import OracleSpec, Placement


def drawn(what: Any) -> str:
    console = Console(width=200, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


@given(st.text())
def test_no_control_character_reaches_the_terminal(text: str) -> None:
    shown = terminal.shown(text).plain
    controls = {letter for letter in shown if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert controls <= {"\n", "\t"}


def test_markup_in_model_output_is_shown_as_it_is() -> None:
    page = drawn(terminal.table("t", ("text",), [("[bold red]x[/] \x1b[31m",)]))
    assert "[bold red]x[/] \\x1b[31m" in page


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=30))
def test_a_sparkline_has_a_mark_a_value(values: list[float | None]) -> None:
    line = terminal.sparkline(values)
    assert len(line) == len(values)
    assert [mark == "·" for mark in line] == [value is None for value in values]


def test_a_sparkline_rises_with_its_values() -> None:
    assert terminal.sparkline([0.0, 0.5, 1.0, None]) == "▁▅█·"


def test_a_folder_open_to_others_is_told_with_its_mending(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    found = check_home(str(tmp_path))
    assert not found.ok
    assert found.fix == f"chmod 700 {tmp_path}"
    tmp_path.chmod(0o700)
    assert check_home(str(tmp_path)).ok


def test_a_home_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "placement.home" in check_home(str(tmp_path / "file" / "home")).fix


def test_too_small_a_disk_is_told(tmp_path: Path) -> None:
    assert check_disk(str(tmp_path / "not" / "yet"), need=0.0).ok
    assert "free" in check_disk(str(tmp_path), need=1e9).fix


def test_a_model_folder_without_weights_is_told(tmp_path: Path) -> None:
    assert "config.json" in check_model(str(tmp_path)).detail
    assert "no folder" in check_model("./nowhere").detail


def test_a_key_is_asked_for_only_where_one_is_needed() -> None:
    elsewhere = OracleSpec(base_url="https://judge.example/v1", api_key_env="NO_SUCH_KEY_FOR_TESTS")
    assert "export NO_SUCH_KEY_FOR_TESTS" in check_key(elsewhere).fix
    assert check_key(OracleSpec(base_url="http://127.0.0.1:1/v1", api_key_env="NO_SUCH_KEY_FOR_TESTS")).ok
    assert check_key(OracleSpec()).ok


def test_what_comes_next_names_the_home_and_only_what_there_is() -> None:
    result = {"run_id": "r-1", "exported_rows": 0, "adapter": {"version": 1}}
    told = terminal.next_steps(result, Placement(home="/my runs", storage="postgresql://me:secretpw@h/db"))
    assert "--format chat" not in told
    assert "grpo-ray export r-1 --format adapter --out adapter --home '/my runs' --storage" in told
    assert "secretpw" not in told
    bare = terminal.next_steps({**result, "exported_rows": 3}, Placement())
    assert "grpo-ray export r-1 --format chat --out data\n" in bare


def test_a_runs_id_stays_in_one_piece_in_a_narrow_window() -> None:
    id = "quickstart-20261122-102208-e737"
    row = {
        "run": id,
        "step": 1,
        "steps": 2,
        "rollouts": 9,
        "wanted": "run",
        "created": "2026-11-22T10:22",
        "finished": False,
    }
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(terminal.runs([row]))
    assert id in capture.get()
