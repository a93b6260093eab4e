"""Every file of a registry folder has its entry, in the shape that the registry and the loop count on."""

import inspect

import pytest

from grpo_ray.registry import find, names

ENTRIES = {
    "tasks": ("load_tasks", [], False),
    "judges": ("judge", ["group", "oracle"], True),
    "rewards": ("reward", ["rollout", "evaluations", "group"], False),
    "verifiers": ("verify", ["answer", "task"], False),
    "mutations": ("mutate", ["parents", "oracle", "rng"], True),
    "exporters": ("export", ["rows", "path"], False),
}
"""Folder → (entry, the arguments before the settings, whether it is async)."""
FILES = [(folder, name) for folder in ENTRIES for name in names(folder)]


@pytest.mark.parametrize(("folder", "name"), FILES)
def test_the_entry_has_its_shape(folder: str, name: str) -> None:
    entry, before, asynchronous = ENTRIES[folder]
    found = find(folder, name, entry)
    parameters = inspect.signature(found).parameters.values()
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == before
    assert inspect.iscoroutinefunction(found) == asynchronous
    assert inspect.getdoc(found), f"{folder}/{name}.py: {entry} says nothing of itself"


@pytest.mark.parametrize(("folder", "name"), FILES)
def test_settings_are_typed(folder: str, name: str) -> None:
    signature = inspect.signature(find(folder, name, ENTRIES[folder][0]))
    settings = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert all(p.annotation is not p.empty for p in settings)
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", names("tasks"))
def test_every_task_source_brings_its_verifier(name: str) -> None:
    verify = find("tasks", name, "verify")
    assert list(inspect.signature(verify).parameters) == ["answer", "task"]


def test_the_bundled_parts_are_there() -> None:
    assert {"reasoning_gym", "jsonl"} <= set(names("tasks"))
    assert {"rubric", "verifier"} <= set(names("judges"))
    assert {"verified", "judge_score", "format"} <= set(names("rewards"))
    assert "rewrite" in names("mutations")
    assert {"exact", "numeric", "regex", "json_schema", "math", "python_tests"} <= set(names("verifiers"))
