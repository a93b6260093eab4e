"""Folders that are there whole or not at all, with a manifest by which they are known as ours."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from hashlib import sha256
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
    """Write `files` (name → bytes) and their manifest into a new folder, and put it in place of `path` at once.

    A folder of an earlier export is replaced. Raises ConfigError for one that holds anything else.
    """
    path = path.resolve()
    _refuse_others(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for name, content in files.items():
            _write(half / name, content)
        _write(half / MANIFEST, encoded(_manifest(files, about)) + b"\n")
        half.chmod(0o755)
        _sync(half)
        _put(half, path)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return path


def _manifest(files: Mapping[str, bytes], about: Mapping[str, Any]) -> dict[str, Any]:
    listed = {
        name: {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
        | ({"rows": content.count(b"\n")} if name.endswith(".jsonl") else {})
        for name, content in files.items()
    }
    return {"made_by": MADE_BY, **about, "files": listed}


def _refuse_others(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"{path} is a file; choose a folder for the export")
    present = {file.name for file in path.iterdir()}
    foreign = sorted(present - _ours(path / MANIFEST))
    if foreign:
        raise ConfigError(f"{path} holds {', '.join(foreign[:3])}, which no export wrote; choose another folder")


def _ours(manifest: Path) -> set[str]:
    """The names in a folder that an export wrote."""
    try:
        known = json.loads(manifest.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return set()
    ours = isinstance(known, dict) and known.get("made_by") == MADE_BY
    return {MANIFEST, *known["files"]} if ours else set()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


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


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
