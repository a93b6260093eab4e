"""Whether prompt evolution finds better prompts than GEPA does on the same rollouts.

`python scripts/bench/evolution.py [--quick] [--worlds …] [--arms …]`. Worlds are drawn from the seed; every arm gets
the same rollouts, the same reflector and the same luck. GEPA, the peer, is installed as scripts/bench/requirements.txt
says; without it, no comparison with it. Differences are paired by seed, their intervals bootstrapped.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from evolution_arms import ABLATIONS, ARMS, EXTRA, chosen
from evolution_gepa import HINT, has_gepa
from evolution_machine import ARCHIVED, replays, timed
from evolution_worlds import KINDS, World
from rich.console import Console
from rich.table import Table
from rows import arguments, publish, row

from grpo_ray.canonical import digest

HERE = Path(__file__).parent
BUDGETS = (300, 800)
RESAMPLES = 10_000
SOURCES = ("words", "landscape", "worlds", "reflector", "meter", "blind", "gepa")
"""What the peers' results depend on."""
POOL = 2
PEERS = ("gepa tuned", "gepa default", "halving")
OURS, HARD = "ours", "poor_feedback"
SLACK = -0.01
"""How much worse than GEPA a world may be, at the lower bound."""
REAL_SLACK = -0.02
"""The same for the nano model on one kind of task."""


@dataclass(frozen=True, slots=True)
class Result:
    """One search of one world, by what its text is truly worth there."""

    world: str
    seed: int
    budget: int
    arm: str
    value: float
    start: float
    best: float
    rollouts: int
    replies: int
    seconds: float


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────


def search(world: World, budget: int, arm: str) -> Result:
    """Run one arm."""
    began = time.perf_counter()
    found = (ARMS | EXTRA)[arm](world, budget, world.seed)
    seconds = time.perf_counter() - began
    value, start, best = world.true(found.text), world.true(world.start), world.true(world.best)
    return Result(
        world.kind, world.seed, budget, arm, value, start, best, found.rollouts, found.replies, round(seconds, 3)
    )


def search_all(job: tuple[str, int, tuple[tuple[int, str], ...]]) -> list[Result]:
    """Every wanted (budget, arm) of one world."""
    kind, seed, wanted = job
    world = World(seed, kind)
    return [search(world, budget, arm) for budget, arm in wanted]


class Shelf:
    """Results of peers that were run before, as JSON lines; ours are always run anew."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.worlds = digest([(HERE / f"evolution_{name}.py").read_text() for name in SOURCES])[:12]
        lines = file.read_text().splitlines() if file and file.exists() else []
        kept = [json.loads(line) for line in lines]
        self.results = [Result(**one["result"]) for one in kept if one["worlds"] == self.worlds]

    def keep(self, results: Sequence[Result]) -> None:
        if self.file:
            with self.file.open("a") as file:
                for one in results:
                    if not one.arm.startswith(OURS):
                        file.write(json.dumps({"worlds": self.worlds, "result": asdict(one)}) + "\n")


def run(
    worlds: Sequence[str], seeds: Sequence[int], budgets: Sequence[int], arms: Sequence[str], shelf: Shelf
) -> list[Result]:
    """Every arm on every world, seed and budget, over a pool of processes."""
    wanted = set(product(worlds, seeds, budgets, arms))
    done = [one for one in shelf.results if (one.world, one.seed, one.budget, one.arm) in wanted]
    have = {(one.world, one.seed, one.budget, one.arm) for one in done}
    jobs = [
        (kind, seed, open_to)
        for kind, seed in product(worlds, seeds)
        if (open_to := tuple(pair for pair in product(budgets, arms) if (kind, seed, *pair) not in have))
    ]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(POOL, mp_context=get_context("spawn")) as pool:
        for number, found in enumerate(pool.map(search_all, jobs), 1):
            shelf.keep(found)
            done += found
            print(f"\r{number} of {len(jobs)} worlds", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return done


# ── reading the results ───────────────────────────────────────────────────────────────────────────────────────────


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean of paired differences, with the 95 % interval of 10,000 bootstrap resamples."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.quantile(differences[picks].mean(axis=1), [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def paired(results: Sequence[Result], world: str | None, budget: int, ours: str, peer: str) -> np.ndarray:
    """ours − peer for every seed; for no world in particular the mean over all worlds."""
    values = {(one.world, one.seed, one.arm): one.value for one in results if one.budget == budget}
    worlds = [world] if world else sorted({one.world for one in results})
    seeds = sorted({one.seed for one in results})
    pairs = [[values[w, s, ours] - values[w, s, peer] for w in worlds] for s in seeds]
    return np.array(pairs).mean(axis=1)


def difference_rows(results: Sequence[Result], ours: str, peers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The lower bounds of ours − peer, world by world and over all worlds, with their bars."""
    seeds = sorted({one.seed for one in results})
    worlds = [kind for kind in KINDS if kind in {one.world for one in results}]
    budgets = sorted({one.budget for one in results})
    arms = {one.arm for one in results}
    for peer, budget, world in product(peers, budgets, (*worlds, None)):
        name = f"{ours} − {peer}, {world or 'mean over worlds'}, {budget}: 95 % low"
        bar = 0.0 if peer == "halving" or world in (HARD, None) else SLACK
        if not {ours, peer} <= arms:
            missing = ", ".join(sorted({ours, peer} - arms))
            why = f"not run: {missing}" if has_gepa() or "gepa" not in missing else f"gepa is {HINT}"
            yield row(name, None, "", bar=bar, better="higher", how=why)
            continue
        mean, low, high = interval(paired(results, world, budget, ours, peer))
        how = f"mean {mean:+.3f}, 95 % {low:+.3f} to {high:+.3f}, {len(seeds)} seeds"
        yield row(name, low, "", bar=bar, better="higher", how=how, seeds=seeds)


def mean_rows(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """What each arm's text is worth on average, and what it used."""
    for world, budget, arm in dict.fromkeys((one.world, one.budget, one.arm) for one in results):
        some = [one for one in results if (one.world, one.budget, one.arm) == (world, budget, arm)]
        values = np.array([one.value for one in some])
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        used = f"{_span([one.rollouts for one in some])} rollouts, {fmean(one.replies for one in some):.0f} reflections"
        how = f"± {error:.3f}; {used}, {fmean(one.seconds for one in some):.2f} s"
        yield row(f"{arm}, {world}, {budget}", float(values.mean()), "", how=how, seeds=[one.seed for one in some])


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"


def show(results: Sequence[Result]) -> None:
    """The table of means: a line a world and budget, a column an arm."""
    arms = list(dict.fromkeys(one.arm for one in results))
    table = Table("world", "rollouts", "start", *arms, "best")
    for budget, world in product(sorted({one.budget for one in results}), (*KINDS, "mean")):
        some = [one for one in results if world in (one.world, "mean") and one.budget == budget]
        if some:
            ends = [f"{fmean(getattr(one, name) for one in some):.3f}" for name in ("start", "best")]
            means = [f"{fmean(one.value for one in some if one.arm == arm):.3f}" for arm in arms]
            table.add_row(world, str(budget), ends[0], *means, ends[1])
    Console(width=140).print(table)


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def world_rows(given: Any) -> list[dict[str, Any]]:
    """Simulated worlds: ours beside GEPA, random search and halving."""
    arms = [name for name in chosen(given.arms or ()) if has_gepa() or "gepa" not in name]
    seeds = range(given.first_seed, given.first_seed + (3 if given.quick else given.seeds))
    budgets: list[int] = list(given.budgets[:1] if given.quick else given.budgets)
    results = run(given.worlds or KINDS, seeds, budgets, arms, Shelf(given.keep))
    show(results)
    return [*mean_rows(results), *difference_rows(results, OURS, PEERS)]


def real_rows(given: Any) -> list[dict[str, Any]]:
    """The nano model on reasoning_gym tasks with the bundled judge."""
    from evolution_real import ARMS, BUDGET, DATASETS, measure  # loads MLX, which the other parts do without

    arms = [name for name in ARMS if has_gepa() or "gepa" not in name]
    seeds = range(given.first_seed, given.first_seed + (1 if given.quick else given.real_seeds))
    results = [
        Result(
            one.dataset, one.seed, BUDGET, one.arm, one.value, one.start, 1.0, one.rollouts, one.replies, one.seconds
        )
        for one in measure(DATASETS[:1] if given.quick else DATASETS, seeds, arms)
    ]
    return [*start_rows(results), *mean_rows(results), *real_difference_rows(results, "gepa tuned")]


def start_rows(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """What every search begins with."""
    for world in dict.fromkeys(one.world for one in results):
        starts = {one.seed: one.start for one in results if one.world == world}
        yield row(
            f"start, {world}", fmean(starts.values()), "", how="held-out tasks, temperature 0", seeds=list(starts)
        )


def real_difference_rows(results: Sequence[Result], peer: str) -> Iterator[dict[str, Any]]:
    """The lower bound of ours − peer on each dataset, and the mean over all of them, with their bars."""
    datasets, seeds = (list(dict.fromkeys(getattr(one, name) for one in results)) for name in ("world", "seed"))
    for dataset in (*datasets, None):
        name = f"{OURS} − {peer}, nano model, {dataset or 'mean over tasks'}: {'95 % low' if dataset else 'mean'}"
        bar = REAL_SLACK if dataset else 0.0
        if peer not in {one.arm for one in results}:
            yield row(name, None, "", bar=bar, better="higher", how=f"gepa is {HINT}")
            continue
        mean, low, high = interval(paired(results, dataset, results[0].budget, OURS, peer))
        how = f"mean {mean:+.3f}, 95 % {low:+.3f} to {high:+.3f}, {len(seeds)} seeds"
        yield row(name, low if dataset else mean, "", bar=bar, better="higher", how=how, seeds=seeds)


def ablation_rows(given: Any) -> list[dict[str, Any]]:
    """Ours less ours without a part, or with another one."""
    seeds = range(given.first_seed, given.first_seed + (2 if given.quick else given.seeds))
    budgets: list[int] = list(given.budgets[:1] if given.quick else given.budgets)
    results = run(given.worlds or KINDS, seeds, budgets, [OURS, *ABLATIONS], Shelf(None))
    rows = list(mean_rows(results))
    for arm, budget in product(ABLATIONS, budgets):
        mean, low, high = interval(paired(results, None, budget, OURS, arm))
        how = f"95 % {low:+.3f} to {high:+.3f}, {len(seeds)} seeds, mean over worlds"
        rows.append(row(f"ours − {arm}, {budget}", mean, "", how=how, seeds=seeds))
    return rows


def machine_rows(given: Any) -> list[dict[str, Any]]:
    """The same population from the same seed, and the algorithm's own time a generation."""
    kinds = KINDS[:2] if given.quick else KINDS
    runs = replays(kinds, range(given.first_seed, given.first_seed + (1 if given.quick else 2)))
    differ, count = sum(one.differ for one in runs), sum(len(one.digests) - 1 for one in runs)
    told = f"{len(runs)} searches, {sum(one.replies for one in runs)} recorded replies, {count} replays"
    how = f"{told}: population, archive, trials, text; one replay in the same process, the others in fresh ones"
    name = "replays of the same seed that come to another population"
    first, *rest = (1e3 * seconds for seconds in timed(1 + (5 if given.quick else 20)))
    spent = f"plan, surrogate, children, who leaves; {len(rest)} generations, without a first one of {first:.0f} ms"
    return [
        row(name, differ, "", bar=0, how=how, seeds=sorted({one.seed for one in runs})),
        row(f"a generation at {ARCHIVED} archived templates, median", float(np.median(rest)), "ms", bar=50, how=spent),
        row("the same, 95th percentile", float(np.quantile(rest, 0.95)), "ms", bar=50, how="one thread"),
    ]


PARTS: dict[str, Callable[[Any], list[dict[str, Any]]]] = {
    "worlds": world_rows,
    "real": real_rows,
    "ablations": ablation_rows,
    "machine": machine_rows,
}


def main() -> None:
    """Read the command line, measure, publish."""
    asks = arguments(__doc__ or "")
    asks.add_argument("--only", action="append", choices=PARTS, help="these parts alone")
    asks.add_argument("--seeds", type=int, default=40, help="how many")
    asks.add_argument("--first-seed", type=int, default=0, help="seeds from 1000 on are for development")
    asks.add_argument("--real-seeds", type=int, default=5, help="how many for the nano model")
    asks.add_argument("--worlds", nargs="+", choices=KINDS)
    asks.add_argument("--budgets", nargs="+", type=int, default=BUDGETS, help="rollouts of a search")
    asks.add_argument("--arms", nargs="+", choices=[*ARMS, *EXTRA])
    asks.add_argument("--keep", type=Path, metavar="FILE", help="keep the peers' results here, and use those kept")
    given = asks.parse_args()
    found = [one for name in given.only or PARTS for one in PARTS[name](given)]
    publish(found, given.json)


if __name__ == "__main__":
    main()
