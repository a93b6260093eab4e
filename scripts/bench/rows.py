"""What every benchmark prints and writes: rows {name, value, unit, bar, better, holds, how, seeds}."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def row(
    name: str,
    value: float | None,
    unit: str,
    *,
    how: str,
    bar: float | None = None,
    better: str = "lower",
    seeds: Sequence[int] = (),
) -> dict[str, Any]:
    """One result. `holds` is None where there is no bar or no value."""
    holds = None if bar is None or value is None else (value <= bar if better == "lower" else value >= bar)
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "bar": bar,
        "better": better,
        "holds": holds,
        "how": how,
        "seeds": list(seeds),
    }


def arguments(about: str) -> argparse.ArgumentParser:
    """The options every benchmark takes."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="a short version, for a look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    return parser


def publish(rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Print the table; write the rows to `file`."""
    table = Table("what", "value", "bar", "holds", "how")
    for one in rows:
        value = "not run" if one["value"] is None else f"{one['value']:.3f} {one['unit']}"
        bar = "" if one["bar"] is None else f"{'≤' if one['better'] == 'lower' else '≥'} {one['bar']:g}"
        table.add_row(one["name"], value, bar, {True: "yes", False: "NO", None: ""}[one["holds"]], one["how"])
    Console(width=140).print(table)
    if file:
        file.write_text(json.dumps(rows, indent=1) + "\n")
