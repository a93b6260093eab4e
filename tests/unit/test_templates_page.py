"""What docs/templates.md shows is so."""

import json
import re
from pathlib import Path

import pytest
from libraries import ROOT, entry, load, problems, written

from grpo_ray.library import load_library

PAGE = ROOT / "docs" / "templates.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", blocks("json"))
def test_every_example_of_the_page_loads(tmp_path: Path, block: str) -> None:
    """A file as it stands, a template as the only one, parameters in a template that shows them."""
    found = json.loads(block)
    if "templates" in found:
        load_library(written(tmp_path, found))
    elif "text" in found:
        load(tmp_path, found)
    else:
        shown = "".join(f"{{{{ {name} }}}}" for name in found)
        load(tmp_path, entry(text=shown + "{{ question }}", parameters=found))


def test_the_page_has_an_example_of_every_key() -> None:
    said = " ".join(blocks("json"))
    keys = {
        "version", "templates", "pools", "id", "text", "system", "task_type", "complexity", "parameters", "examples",
        "lineage", "type", "choices", "default", "texts", "minimum", "maximum", "step", "pool", "count", "question",
        "response", "parents", "mutation", "note", "few_shot",
    }  # fmt: skip
    assert not [key for key in sorted(keys) if f'"{key}":' not in said]


def test_the_page_shows_problems_as_they_are_told(tmp_path: Path) -> None:
    reasoning = {"choices": {"none": "", "all": "Work. "}}
    slips = (
        entry(id="a", text="{{ reasonng }}{{ question }}", parameters={"reasoning": reasoning}),
        entry(
            id="b",
            text='{{ steps }}{{ question }}{% if settings.reasoning == "al" %}!{% endif %}',
            parameters={"reasoning": reasoning, "steps": {"type": "integer", "minimum": 1, "maximum": 100}},
        ),
    )
    shown = [line.strip() for line in blocks("text")[0].splitlines()[1:]]
    assert sorted(problems(tmp_path, *slips)) == sorted(shown)
