"""The house rules that neither ruff nor import-linter knows."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = sorted([*(ROOT / "grpo_ray").rglob("*.py"), *(ROOT / "actors").rglob("*.py")])
CODE = sorted([*ROOMS, *(ROOT / "scripts").rglob("*.py")])
IMPORTS_INSIDE = {"cli.py", "cli_parts.py", "cli_judges.py", "cli_tasks.py", "cli_templates.py", "registry.py"}
"""The command line imports what a command needs, the registry what a config names."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CODE, ids=name)
def test_no_file_is_over_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", CODE, ids=name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert not tree(path).body or ast.get_docstring(tree(path)), f"{name(path)} has no docstring"


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_imports_stand_at_the_top(path: Path) -> None:
    if path.name in IMPORTS_INSIDE:
        return
    inside = [n.lineno for f in functions(path) for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not inside, f"{name(path)} imports inside a function at lines {inside}"


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_functions_are_short_and_flat(path: Path) -> None:
    long = {
        f.name: f.end_lineno - f.lineno + 1 for f in functions(path) if f.end_lineno and f.end_lineno - f.lineno >= 60
    }
    deep = {f.name: depth(f) for f in functions(path) if depth(f) > 4}
    assert not long and not deep, f"{name(path)}: long {long}, deep {deep}"


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_nothing_is_swallowed(path: Path) -> None:
    handlers = [n for n in ast.walk(tree(path)) if isinstance(n, ast.ExceptHandler)]
    silent = [h.lineno for h in handlers if len(h.body) == 1 and isinstance(h.body[0], ast.Pass)]
    assert not silent, f"{name(path)} swallows an exception at lines {silent}"


def test_there_is_no_utils_and_no_re_export() -> None:
    assert not [name(path) for path in CODE if path.stem in {"utils", "helpers", "common", "misc"}]
    full = [name(path) for path in ROOMS if path.name == "__init__.py" and tree(path).body]
    assert not full, f"packages hold files, not names: {full}"


def test_no_test_replaces_the_code_it_tests() -> None:
    patched = [
        name(p) for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__) and "mock" + ".patch" in p.read_text()
    ]
    assert not patched


def depth(node: ast.AST) -> int:
    """How deep loops, branches and handlers nest in a function; an `elif` is no deeper than its `if`."""
    nested = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try)
    inner = [depth(child) - _is_elif(node, child) for child in ast.iter_child_nodes(node)]
    return max(inner, default=0) + isinstance(node, nested)


def _is_elif(node: ast.AST, child: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]


def test_the_readme_shows_every_file() -> None:
    shown = (ROOT / "README.md").read_text()
    missing = [name(path) for path in ROOMS if path.name != "__init__.py" and f"  {path.name}  " not in shown]
    assert not missing, f"run scripts/tree.py --write for {missing}"
