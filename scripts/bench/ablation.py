"""What each half of the loop is worth: whole runs of the quickstart, with a part replaced or left out.

Arms: `whole` (as configured), `random` (the rewriter replaced by random edits), `prompts` (weights stay), `weights`
(templates stay). Every run samples the same number of training rollouts. Pooled differences are stratified by seed.
"""

import json
import subprocess
import sys
from math import sqrt
from pathlib import Path
from typing import Any

from rows import arguments, publish, row

ROOT = Path(__file__).parents[2]
ARMS: dict[str, list[str]] = {
    "whole": [],
    "random": ["evolution.mutations=[{name: random_edit}]"],
    "prompts": ["trainer=null"],
    "weights": ["evolution.children=0"],
}
HELDOUT = ["start_mean", "start_best", "best_template", "last_adapter", "both"]
PAIRS = {"c - b": "best_template - start_best", "d - b": "last_adapter - start_best", "e - b": "both - start_best"}
PAIRS |= {"e - c": "both - best_template", "e - d": "both - last_adapter"}


def run(arm: str, seed: int, config: Path, extra: list[str], cache: Path | None) -> dict[str, Any]:
    """One whole run through the command line; a result kept in `cache` is not made again."""
    kept = cache / f"{arm}-{seed}.json" if cache else None
    if kept and kept.exists():
        return json.loads(kept.read_text())
    settings = [f"seed={seed}", f"name={arm}-{seed}", *ARMS[arm], *extra]
    command = [sys.executable, "-m", "grpo_ray.cli", "run", "-c", str(config), "--json"]
    command += [part for setting in settings for part in ("--set", setting)]
    print(f"running {arm}, seed {seed} …", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    result = json.loads(done.stdout)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(result, indent=1))
    return result


def pooled(runs: list[dict[str, Any]], pair: str) -> tuple[float, float, float]:
    """Mean paired difference over the runs' tasks with its 95 % interval, each run a stratum."""
    parts = [(r["heldout"]["paired"][pair], r["heldout"]["both"]["tasks"]) for r in runs]
    total = sum(tasks for _, tasks in parts)
    mean = sum(part["mean"] * tasks for part, tasks in parts) / total
    half = sqrt(sum(((part["mean"] - part["low"]) * tasks) ** 2 for part, tasks in parts)) / total
    return mean, mean - half, mean + half


def whole_rows(results: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars of the whole loop: seed by seed, then pooled."""
    rows = []
    for seed, result in results.items():
        held = result["heldout"]
        gap = held["paired"]["both - start_best"]
        how = f"{held['both']['tasks']} held-out tasks, temperature 0"
        rows.append(
            row(
                f"seed {seed}: b, best starting template",
                held["start_best"]["accuracy"],
                "",
                bar=0.45,
                how=how,
                seeds=[seed],
            )
        )
        rows.append(row(f"seed {seed}: e - b", gap["mean"], "", bar=0.20, better="higher", how="paired", seeds=[seed]))
        rows.append(
            row(f"seed {seed}: e - b, 95 % low", gap["low"], "", bar=0.10, better="higher", how="paired", seeds=[seed])
        )
    for name, pair in PAIRS.items():
        mean, low, high = pooled(list(results.values()), pair)
        how = f"pooled, mean {mean:.3f}, 95 % {low:.3f} to {high:.3f}"
        if name in ("c - b", "d - b"):
            rows.append(row(f"{name}, 95 % low", low, "", bar=0.0, better="higher", how=how, seeds=list(results)))
        else:
            rows.append(row(f"{name}", mean, "", bar=0.0, better="higher", how=how, seeds=list(results)))
    return rows


def arm_rows(arm: str, results: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean held-out accuracies of one arm over its seeds, and its rollouts."""
    rows = []
    for name in HELDOUT:
        values = [r["heldout"][name]["accuracy"] for r in results.values()]
        how = "by seed: " + ", ".join(f"{value:.3f}" for value in values)
        rows.append(row(f"{arm}: {name}", sum(values) / len(values), "", how=how, seeds=list(results)))
    mean, low, high = pooled(list(results.values()), "both - start_best")
    rows.append(row(f"{arm}: e - b", mean, "", how=f"pooled, 95 % {low:.3f} to {high:.3f}", seeds=list(results)))
    rollouts = [r["rollouts"] for r in results.values()]
    rows.append(
        row(f"{arm}: training rollouts", sum(rollouts) / len(rollouts), "", how="mean a run", seeds=list(results))
    )
    return rows


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--cache", type=Path, help="keep each run's result here, and use what is there")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    extra = [*options.settings, *(["steps=1", "splits.heldout=30"] if options.quick else [])]
    seeds = options.seeds[:1] if options.quick else options.seeds
    rows: list[dict[str, Any]] = []
    for arm in options.arms:
        results = {seed: run(arm, seed, options.config, extra, options.cache) for seed in seeds}
        rows += whole_rows(results) if arm == "whole" else []
        rows += arm_rows(arm, results)
    publish(rows, options.json)


if __name__ == "__main__":
    main()
