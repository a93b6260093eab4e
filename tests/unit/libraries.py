"""A prompts.json in a test: written, loaded, and what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_ray.errors import ConfigError
from grpo_ray.library import load_library
from grpo_ray.types import Parameter, Template

ROOT = Path(__file__).parents[2]


def entry(**changes: Any) -> dict[str, Any]:
    return {"id": "one", "text": "{{ question }}"} | changes


def written(folder: Path, library: Any) -> Path:
    path = folder / "prompts.json"
    path.write_text(library if isinstance(library, str) else json.dumps(library), "utf-8")
    return path


def load(folder: Path, *entries: dict[str, Any], **library: Any) -> tuple[Template, ...]:
    return load_library(written(folder, {"version": 1, "templates": list(entries)} | library))


def parameter(folder: Path, raw: Any) -> tuple[Parameter, str]:
    """The one parameter of a template, and its default."""
    (template,) = load(folder, entry(text="{{ x }}{{ question }}", parameters={"x": raw}))
    return template.parameters[0], template.settings[0][1]


def problems(folder: Path, *entries: dict[str, Any], **library: Any) -> list[str]:
    """What is wrong with the entries' file, line by line, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, *entries, **library)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith(f": {len(lines)} problem{'s' * (len(lines) > 1)}")
    return [line.strip() for line in lines]


def wrong(folder: Path, raw: Any) -> list[str]:
    """What is wrong with one parameter, without its path."""
    found = problems(folder, entry(text="{{ x }}{{ question }}", parameters={"x": raw}))
    assert all(line.startswith("$.templates[0].parameters.x") for line in found)
    return [line.removeprefix("$.templates[0].parameters.x") for line in found]


def seed(**changes: Any) -> dict[str, Any]:
    """One well-formed entry of a library, with changes."""
    return {
        "id": "one",
        "text": "{{ clarity }}\n\n{{ examples }}Question: {{ question }}",
        "parameters": {
            "clarity": {"choices": {"terse": "Go.", "plain": "Please solve."}, "default": "plain"},
            "few_shot": {"choices": [0, 1], "default": 0},
        },
        "examples": [{"question": "1+1", "response": "Answer: 2"}],
    } | changes


def refusal(folder: Path, *entries: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, *entries)
    return str(caught.value)
