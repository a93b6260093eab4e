"""The schema, step by step: numbered SQL files, each applied once, in order, and never changed afterwards."""

import asyncio
import hashlib
from pathlib import Path

from psycopg import AsyncConnection, errors
from psycopg.rows import DictRow

from grpo_ray.errors import ConfigError

FOLDER = Path(__file__).parent / "schema"
LOCK = 0x6772706F_72617901
"""The advisory lock's number: only one process migrates a database at a time."""
POLL_S = 0.1
OLDEST = 150000
"""PostgreSQL 15: the first with `UNIQUE NULLS NOT DISTINCT`."""
TABLE = """
CREATE TABLE IF NOT EXISTS migration (
    number integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, applied timestamptz NOT NULL DEFAULT now())
"""


async def migrate(connection: AsyncConnection[DictRow], where: str) -> None:
    """Bring the database up to date. `connection` is in autocommit; `where` names the database in messages.

    Raises ConfigError when pgvector is missing, the server is too old, or a newer grpo-ray made the database.
    """
    if connection.info.server_version < OLDEST:
        raise ConfigError(
            f"the database {where} is PostgreSQL {connection.info.server_version // 10000}; use 15 or newer"
        )
    # Polled, because a waiter inside pg_advisory_lock deadlocks with CREATE INDEX CONCURRENTLY.
    while not await _locked(connection):  # noqa: ASYNC110 - the event is another process's
        await asyncio.sleep(POLL_S)
    try:
        await _extend(connection, where)
        await _apply(connection, where)
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


async def _locked(connection: AsyncConnection[DictRow]) -> bool:
    row = await (await connection.execute("SELECT pg_try_advisory_lock(%s) AS held", [LOCK])).fetchone()
    return bool(row and row["held"])


async def _extend(connection: AsyncConnection[DictRow], where: str) -> None:
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except (errors.FeatureNotSupported, errors.UndefinedFile) as fault:
        raise ConfigError(
            f"the database {where} has no pgvector: install it on that server "
            "(Debian: postgresql-NN-pgvector; Docker: the image pgvector/pgvector), or use `storage: embedded`"
        ) from fault
    except errors.InsufficientPrivilege as fault:
        raise ConfigError(
            f"this user may not enable pgvector in the database {where}: "
            "let its owner run `CREATE EXTENSION vector` there once"
        ) from fault


async def _apply(connection: AsyncConnection[DictRow], where: str) -> None:
    try:
        await connection.execute(TABLE)
    except errors.InsufficientPrivilege as fault:
        raise ConfigError(
            f"this user may not make tables in the database {where}: use a database that it owns"
        ) from fault
    rows = await (await connection.execute("SELECT number, sha256 FROM migration ORDER BY number")).fetchall()
    applied = {row["number"]: row["sha256"] for row in rows}
    steps = {int(file.name.split("_")[0]): file for file in sorted(FOLDER.glob("[0-9]*.sql"))}
    _refuse_strangers(applied, steps, where)
    for number in sorted(steps.keys() - applied.keys()):
        async with connection.transaction():
            await connection.execute(steps[number].read_bytes())
            await connection.execute(
                "INSERT INTO migration (number, name, sha256) VALUES (%s, %s, %s)",
                [number, steps[number].name, _sha256(steps[number])],
            )


def _refuse_strangers(applied: dict[int, str], steps: dict[int, Path], where: str) -> None:
    newer = sorted(applied.keys() - steps.keys())
    if newer:
        raise ConfigError(f"a newer grpo-ray made the database {where} (its migration {newer[0]}); update this one")
    changed = [steps[number].name for number in applied if _sha256(steps[number]) != applied[number]]
    if changed:
        raise ConfigError(
            f"the database {where} was made with another {', '.join(changed)} than this grpo-ray has; "
            "use the version that made it, or another database"
        )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
