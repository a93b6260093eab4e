"""Folders that are there whole or not at all, with a manifest by which they are known as ours."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from grpo_ray.canonical import canonical
from grpo_ray.errors import ConfigError

MANIFEST = "manifest.json"
MADE_BY = "grpo-ray"
SURROGATE = re.compile("[\ud800-\udfff]")


def encoded(value: Any) -> bytes:
    """Canonical JSON as UTF-8. Lone surrogates, which UTF-8 can't hold and a model may write, become U+FFFD."""
    return SURROGATE.sub("\ufffd", canonical(value)).encode("utf-8")


def write(path: Path, files: Mapping[str, bytes], about: Mapping[str, Any]) -> Path:
    """Write `files` (name → bytes) as `build` does."""

    def fill(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return build(path, fill, about)


def build(path: Path, fill: Callable[[Path], None], about: Mapping[str, Any]) -> Path:
    """Let `fill` write files into a new folder, add their manifest, and put it in place of `path` at once.

    A folder of an earlier export is replaced. Raises ConfigError for one that holds anything else, before `fill`.
    """
    path = path.resolve()
    _refuse_others(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        fill(half)
        manifest = encoded({"made_by": MADE_BY, **about, "files": _listed(half)}) + b"\n"
        (half / MANIFEST).write_bytes(manifest)
        half.chmod(0o755)
        for written in (*half.rglob("*"), half):
            _sync(written)
        _put(half, path)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return path


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file by its path in the folder; hashed piece by piece, for weights may be larger than the memory left."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: _facts(file) for name, file in files.items()}


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        facts = {"sha256": file_digest(content, "sha256").hexdigest(), "bytes": file.stat().st_size}
    return facts | ({"rows": file.read_bytes().count(b"\n")} if file.suffix == ".jsonl" else {})


def _refuse_others(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"{path} is a file; choose a folder for the export")
    present = {file.relative_to(path).as_posix() for file in path.rglob("*")}
    foreign = sorted(present - _ours(path / MANIFEST))
    if foreign:
        raise ConfigError(f"{path} holds {', '.join(foreign[:3])}, which no export wrote; choose another folder")


def _ours(manifest: Path) -> set[str]:
    """The paths in a folder that an export wrote, with the folders that they are in."""
    try:
        known = json.loads(manifest.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return set()
    ours = isinstance(known, dict) and known.get("made_by") == MADE_BY
    names = {MANIFEST, *known["files"]} if ours else set()
    return {part.as_posix() for name in names for part in (Path(name), *Path(name).parents)}


def _put(half: Path, path: Path) -> None:
    if not path.exists():
        half.rename(path)
    else:
        old = half.with_name(f"{half.name}-old")
        path.rename(old)
        try:
            half.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """See that a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
