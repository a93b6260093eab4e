"""The template commands over an archive on disk: what they say, what they write, and how they refuse."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from small_run import RUN, small_archive
from typer.testing import CliRunner, Result

from grpo_ray.cli import app
from grpo_ray.storage import embedded

pytestmark = [pytest.mark.process, pytest.mark.postgres]
COMMANDS = ("list", "tree", "diff", "export", "import", "pin", "unpin", "retire")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home with the small run after its first step; kept open, so that the server does not start anew each time."""
    with tempfile.TemporaryDirectory() as folder:
        holder = embedded.Embedded(folder)
        asyncio.run(holder.revive())
        asyncio.run(_filled(Path(folder)))
        yield Path(folder)
        asyncio.run(holder.leave())
        embedded.remove(folder)


async def _filled(home: Path) -> None:
    archive = await small_archive(1, await embedded.make_storage(home=home))
    await archive.close()


def call(home: Path, *words: str | Path) -> Result:
    return CliRunner(env={"GRPO_RAY_HOME": str(home), "COLUMNS": "200"}).invoke(app, ["templates", *map(str, words)])


def told(home: Path, *words: str | Path) -> Any:
    found = call(home, *words, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, tmp_path: Path) -> None:
    assert call(tmp_path, name, "--help").exit_code == 0


def test_the_list_shows_the_fittest_first(home: Path) -> None:
    found = call(home, "list")
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert f"templates of {RUN} at the beginning of step 1" in lines[0]
    child, seed = (
        next(i for i, line in enumerate(lines) if line[2:].startswith(f"{id} ")) for id in ("t-child", "t-seed")
    )
    assert child < seed and "+0.250 ± 0.200" in lines[child] and "set_parameter of t-seed" in lines[child]
    assert [one["id"] for one in told(home, "list", RUN[:8])["templates"]] == ["t-child", "t-seed"]


def test_the_tree_is_drawn_and_told(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "tree.svg"
    found = call(home, "tree", "--svg", out)
    assert found.exit_code == 0 and found.stdout.index("t-seed") < found.stdout.index("t-child")
    assert ElementTree.parse(out).getroot().tag.endswith("svg")
    assert [edge["child"] for edge in told(home, "tree")["edges"]] == ["t-child"]
    refused = call(home, "tree", "--svg", tmp_path / "no" / "where.svg")
    assert refused.exit_code == 2 and "where.svg" in refused.stderr


def test_a_diff_shows_what_differs(home: Path) -> None:
    found = call(home, "diff", "t-seed", "t-child")
    assert "setting clarity: plain → terse" in found.stdout
    assert told(home, "diff", "t-seed", "t-child", "--run", RUN)["facts"]["mutation"] == ["seed", "set_parameter"]


def test_what_is_exported_can_be_imported_and_a_problem_changes_nothing(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert told(home, "export", out, "--best", "1")["templates"] == ["t-child"]
    assert call(home, "export", out).exit_code == 2
    assert told(home, "export", out, RUN, "--force")["templates"] == ["t-child", "t-seed"]
    assert call(home, "export", tmp_path / "x", "--all", "--best", "1").exit_code == 2
    library = json.loads(out.read_text())
    library["templates"][0]["text"] = "{{ clarity }} In short: {{ question }}"
    out.write_text(json.dumps(library))
    dry = told(home, "import", out, "--dry-run")
    assert len(dry["templates"]) == dry["known"] == 1 and told(home, "list")["waiting"] == []
    library["templates"][1]["text"] = "{{ qestion }}"
    out.write_text(json.dumps(library))
    refused = call(home, "import", out)
    assert refused.exit_code == 2 and "$.templates[1].text" in refused.stderr and told(home, "list")["waiting"] == []


def test_changes_wait_with_who_and_why(home: Path) -> None:
    assert told(home, "pin", "t-ch", "--why", "best so far")["template"] == "t-child"
    assert told(home, "unpin", "t-child", RUN)["change"] == "unpin"
    assert call(home, "retire", "t-seed").exit_code == 0
    waiting = told(home, "list")["waiting"]
    assert [(one["change"], one["why"]) for one in waiting] == [("pin", "best so far"), ("unpin", ""), ("retire", "")]
    shown = call(home, "list").stdout
    assert "waits for the next step's edge: pin t-child, said command line at 2" in shown and "(best so far)" in shown


def test_what_is_wrong_is_refused_with_the_way_out(home: Path) -> None:
    for words, said in (
        (("pin", "t-chidl"), "did you mean 't-child'"),
        (("retire", "t-child"), "is the last template"),
        (("pin", "t-seed"), "is retired: retired by command line"),
        (("list", "smull"), "there is no run 'smull'"),
    ):
        found = call(home, *words)
        assert found.exit_code == 2 and said in found.stderr, found.output
        assert "Traceback" not in found.output
