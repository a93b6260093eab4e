"""How fast judging is, what faults and limits do to it, what a kill costs, and whether a judge's biases are found.

`python scripts/bench/judging.py [--only calls --only faults …]`. The bundled server stands for the endpoint, in a
process of its own. bespokelabs-curator, the peer, needs an environment of its own:
`python -m venv .venv/curator && .venv/curator/bin/pip install bespokelabs-curator==0.1.31`; without it, no row.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from judging_bias import bias_rows
from judging_crew import RUN, SIZE, group
from judging_talk import injection_rows
from rows import arguments, publish, row

from grpo_ray.judges import rubric
from grpo_ray.launch import open_archive
from grpo_ray.recipe import Placement
from grpo_ray.storage.embedded import remove

HERE = Path(__file__).parent
CURATOR = HERE.parents[1] / ".venv" / "curator" / "bin" / "python"
DELAY, AT_ONCE = "0.2", 32
FAULTS = ("limited", "failed", "hung", "malformed", "refused")
PARTS = ("calls", "faults", "limits", "kills", "biases", "injections")


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def server(*options: str) -> Iterator[str]:
    """The bundled server's address."""
    command = [sys.executable, "-m", "grpo_ray.mock_openai", "--port", "0", "--with-parent", *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"]
    finally:
        process.terminate()
        process.communicate()


def stats(url: str) -> dict[str, Any]:
    """What the server has served so far."""
    with urllib.request.urlopen(f"{url}/_stats") as answer:
        return json.load(answer)


@contextmanager
def home() -> Iterator[str]:
    """A folder for a database that is stopped and removed afterwards."""
    folder = tempfile.mkdtemp()
    try:
        yield folder
    finally:
        remove(folder)
        shutil.rmtree(folder, ignore_errors=True)


def child(script: str, *options: object) -> tuple[dict[str, Any], float]:
    """The last JSON line that a script of this folder prints, and its whole wall time."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, HERE / script, *map(str, options)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1]), seconds


# ── calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def call_rows(rows: int, pairs: int) -> list[dict[str, Any]]:
    """800 evaluations of 0.2 s, 32 at once: ours beside AsyncOpenAI alone and curator, in turns."""
    ours, raw, whole, curator = [], [], [], []
    with server("--delay", DELAY) as url:
        for _ in range(pairs):
            raw.append(child("judging_raw.py", "--url", url, "--rows", rows)[0]["seconds"])
            with home() as folder:
                said, seconds = child("judging_crew.py", "--url", url, "--home", folder, "--rows", rows)
            ours.append(said["seconds"])
            whole.append(seconds)
            if CURATOR.exists():
                curator.append(_curator(url, rows))
    how = f"{rows} of {DELAY} s, {AT_ONCE} at once, {pairs} pairs: {median(ours):.2f} s to {median(raw):.2f} s"
    found = [row("in the run, to raw AsyncOpenAI", median(ours) / median(raw), "×", bar=1.15, how=how)]
    peer = f"whole process {median(whole):.2f} s to {median(curator):.2f} s" if curator else f"no {CURATOR}"
    ratio = median(whole) / median(curator) if curator else None
    return [*found, row("whole process, to curator", ratio, "×", bar=1.0, how=peer)]


def _curator(url: str, rows: int) -> float:
    """The wall time of curator's whole process on the same requests."""
    rules = [{"name": name, "asks": asks, "scale": rubric.ANCHORS[name]} for name, asks in rubric.DIMENSIONS.items()]
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            json.dumps([{"role": m.role, "content": m.content} for m in rubric.request(question, {"A1": text}, rules)])
            for question, text in (
                (whole.prompt.task.question, one.text)
                for whole in map(group, range(rows // SIZE))
                for one in whole.rollouts
            )
        ]
        requests = Path(folder) / "requests.jsonl"
        requests.write_text("\n".join(lines) + "\n", "utf-8")
        command = [CURATOR, HERE / "judging_curator.py", requests, url, str(AT_ONCE)]
        began = time.perf_counter()
        done = subprocess.run(
            command, env={**os.environ, "CURATOR_CACHE_DIR": folder}, capture_output=True, text=True, check=True
        )
        seconds = time.perf_counter() - began
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == rows, done.stdout[-500:]
    return seconds


# ── faults and limits ─────────────────────────────────────────────────────────────────────────────────────────────


def fault_rows(rows: int, pairs: int) -> list[dict[str, Any]]:
    """The same with 4 % each of five faults: nothing lost, nothing twice, not much slower."""
    good, bad, unended, twice, scored = [], [], 0, 0, 0
    broken = [part for kind in FAULTS for part in ("--fault", f"{kind}=0.04")]
    for seed in range(pairs):
        with server("--delay", DELAY) as url, home() as folder:
            good.append(child("judging_crew.py", "--url", url, "--home", folder, "--rows", rows)[0]["seconds"])
        misbehaved = ("--delay", DELAY, *broken, "--retry-after", "1", "--seed", str(seed))
        options = ("--rows", rows, "--timeout", 2, "--hedge", 3)
        with server(*misbehaved) as url, home() as folder:
            said, _ = child("judging_crew.py", "--url", url, "--home", folder, *options)
            bad.append(said["seconds"])
            unended += len(rubric.DIMENSIONS) * rows - said["ended"]
            twice += stats(url)["duplicates"]
            scored += said["scored"]
    how = f"4 % each of {', '.join(FAULTS)}: {median(bad):.2f} s to {median(good):.2f} s; {scored} of {pairs * rows} scored"
    return [
        row("with faults, to without", median(bad) / median(good), "×", bar=1.6, how=how),
        row("evaluations lost", unended, "", bar=0, how="neither a score nor missing with a reason"),
        row("good answers paid for twice", twice, "", bar=0, how="by the server's count; a hedge may cost one"),
    ]


def limit_rows(minutes: float) -> list[dict[str, Any]]:
    """A server that allows 600 a minute, and twice as many wanted; nobody told the client."""
    wanted = int(1200 * minutes)
    with server("--delay", "0.05", "--rpm", "600", "--burst", "1") as url, home() as folder:
        command = [sys.executable, HERE / "judging_crew.py", "--url", url, "--home", folder, "--rows", str(wanted)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # ready
        time.sleep(60)
        first, began = stats(url), time.perf_counter()
        time.sleep(60 * (minutes - 1))
        last, seconds = stats(url), time.perf_counter() - began
        process.kill()
        process.communicate()
    asked, answered = (last[key] - first[key] for key in ("requests", "answered"))
    refused = last["status"].get("429", 0) - first["status"].get("429", 0)
    how = f"{answered} answered in {seconds:.0f} s after the first minute, {refused} refused"
    return [
        row("429s after the first minute", 100 * refused / max(1, asked), "%", bar=2.0, how=how),
        row("of the limit used", 100 * answered / (600 * seconds / 60), "%", bar=95.0, better="higher", how=how),
    ]


# ── kills ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def kill_rows(rows: int) -> list[dict[str, Any]]:
    """SIGKILL for the judge actor after a third, for the driver after two thirds; then the same command again."""
    with server("--delay", DELAY) as url, home() as folder:
        command = [sys.executable, HERE / "judging_ray.py", "--url", url, "--home", folder, "--rows", str(rows)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        judge = json.loads(process.stdout.readline())["ready"]
        air = _killed(url, folder, rows // 3, judge)
        air += _killed(url, folder, 2 * rows // 3, process.pid)
        process.communicate()
        said, _ = child("judging_ray.py", "--url", url, "--home", folder, "--rows", rows)
        served = stats(url)
    how = f"{rows} rows; judge actor and driver killed; {air} calls not stored yet then, {served['duplicates']} answered twice"
    return [
        row("paid for twice, beyond those in the air", max(0, served["duplicates"] - air), "", bar=0, how=how),
        row("rows without a score after it", rows - said["scored"], "", bar=0, how=how),
    ]


def _killed(url: str, folder: str, answered: int, pid: int) -> int:
    """Wait for so many answers, kill, and say how many calls had been sent whose reply was not in the store yet."""
    while (now := stats(url))["answered"] < answered:
        time.sleep(0.05)
    moment = time.time()
    os.kill(pid, signal.SIGKILL)
    return now["requests"] - asyncio.run(_stored(folder, moment))


async def _stored(folder: str, moment: float) -> int:
    """The calls begun before a moment whose replies are stored."""
    archive = await open_archive(Placement(home=folder))
    try:
        return sum(one.time <= moment for one in await (await archive.open(RUN)).attempts())
    finally:
        await archive.close()


def main() -> None:
    """Read the command line, measure, publish."""
    asks = arguments(__doc__ or "")
    asks.add_argument("--only", action="append", choices=PARTS, help="these parts alone")
    asks.add_argument("--pairs", type=int, default=3)
    given = asks.parse_args()
    wanted, quick = given.only or PARTS, given.quick
    pairs = 1 if quick else given.pairs
    parts = {
        "calls": lambda: call_rows(160 if quick else 800, pairs),
        "faults": lambda: fault_rows(160 if quick else 800, pairs),
        "limits": lambda: limit_rows(1.5 if quick else 3),
        "kills": lambda: kill_rows(600 if quick else 3000),
        "biases": lambda: bias_rows(20 if quick else 100),
        "injections": injection_rows,
    }
    found: list[dict[str, Any]] = []
    for name in PARTS:
        if name in wanted:
            found += parts[name]()
            print(f"{name}: done", file=sys.stderr, flush=True)
            if given.json:
                given.json.write_text(json.dumps(found, indent=1) + "\n")
    publish(found, given.json)


if __name__ == "__main__":
    main()
