"""The named statements of queries.sql."""

import re
from pathlib import Path

NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(path: Path) -> dict[str, str]:
    """Name → statement; a `-- name:` line begins one, and comments stay in it, for whoever reads the server's log."""
    _, *parts = NAME.split(path.read_text("utf-8"))
    names, bodies = parts[::2], parts[1::2]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has two statements called {', '.join(repeated)}")
    return {name: body.strip() for name, body in zip(names, bodies, strict=True)}


QUERIES = load(Path(__file__).parent / "queries.sql")
