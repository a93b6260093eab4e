"""A run that has just begun is read by its indexes, though the planner's statistics know nothing of it."""

import asyncio
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from grpo_ray.storage import embedded
from grpo_ray.storage._database import Database, Session
from grpo_ray.storage._queries import QUERIES

pytestmark = pytest.mark.postgres
KNOWN, NEW = [f"old-{number}" for number in range(8)], "new"
GROUPS, SIZE, MARKS = 60, 8, 4
FILL = """
INSERT INTO rollout (run, id, sample_group, index, text, token_ids, logprobs, finish_reason, seed)
    SELECT '{run}', 'r-' || g || '-' || i, 'g-' || g, i, '', '{{}}', '{{}}', 'stop', 0
    FROM generate_series(1, {groups}) g, generate_series(0, {size} - 1) i;
INSERT INTO evaluation (run, rollout, index, judge, dimension, score, rationale, model, stand_in)
    SELECT run, id, i, 'judge', 'd', 0, '', '', true FROM rollout, generate_series(0, {marks} - 1) i WHERE run = '{run}';
INSERT INTO reward (run, rollout, value, evaluations) SELECT run, id, 0, {marks} FROM rollout WHERE run = '{run}';
INSERT INTO reward_part (run, rollout, index, name, value, weight)
    SELECT run, id, i, 'p', 0, 1 FROM rollout, generate_series(0, 1) i WHERE run = '{run}';
INSERT INTO advantage (run, rollout, step, value) SELECT run, id, 0, 1 FROM rollout WHERE run = '{run}';
"""
HOT = ("evaluations", "rewards", "reward_parts")


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        embedded.remove(folder)


@pytest.mark.parametrize("name", HOT)
def test_what_was_said_of_a_group_is_found_by_its_rollouts(name: str, home: Path) -> None:
    async def main() -> list[str]:
        archive = await embedded.make_storage(home=home)
        database = Database(lambda: asyncio.sleep(0, embedded.dsn(home)))
        await database.open()
        try:
            return await database.transact(lambda session: plan(session, name))
        finally:
            await database.close()
            await archive.close()

    lines = asyncio.run(main())
    scans = [(line, cond) for line, cond in pairwise(lines) if " on " in line and " on rollout" not in line]
    assert scans
    assert all("Index Scan" in line and "rollout = " in cond for line, cond in scans), "\n".join(lines)
    assert not [line for line in lines if "Join Filter" in line], "\n".join(lines)


async def plan(session: Session, name: str) -> list[str]:
    """How the statement is carried out for the newest run, where only the others have been looked at."""
    run = session.connection.execute
    await run("SET LOCAL session_replication_role = replica")  # no foreign keys: only these tables are filled
    for known in KNOWN:
        await run(FILL.format(run=known, groups=GROUPS, size=SIZE, marks=MARKS).encode())
    await run("ANALYZE")
    await run(FILL.format(run=NEW, groups=GROUPS, size=SIZE, marks=MARKS).encode())
    statement = QUERIES[name].replace("%(run)s", "$1").replace("%(ids)s", "$2")
    await run(f"PREPARE hot (text, text[]) AS {statement}".encode())
    rows = await (await run(f"EXPLAIN EXECUTE hot ('{NEW}', '{{g-1,g-2}}')".encode())).fetchall()
    return [row["QUERY PLAN"] for row in rows]
