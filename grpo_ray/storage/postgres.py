"""The Archive in a PostgreSQL server that has pgvector. Several processes may use one database at once."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import ProgrammingError, conninfo

from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.protocols import Archive, Store, Want
from grpo_ray.recipe import RunState
from grpo_ray.registry import hint
from grpo_ray.storage._database import Database, Session
from grpo_ray.storage._postgres_find import find
from grpo_ray.storage._postgres_store import PostgresStore, put_event, put_state
from grpo_ray.storage._text import document


async def make_storage(*, dsn: str) -> Archive:
    """The archive in the database `dsn` (postgresql://USER:PASSWORD@HOST:PORT/DATABASE), brought up to date.

    Raises UnreachableError or ConfigError, which name the database but never its password.
    """
    database = _database(dsn)
    await database.open()
    return PostgresArchive(database)


async def probe(*, dsn: str) -> None:
    """Whether the database `dsn` answers; nothing in it changes. Raises what `make_storage` does."""
    await _database(dsn).probe()


def _database(dsn: str) -> Database:
    try:
        conninfo.conninfo_to_dict(dsn)
    except ProgrammingError as fault:
        raise ConfigError(
            "placement.storage is no PostgreSQL DSN; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from fault

    async def same() -> str:
        return dsn

    return Database(same)


class PostgresArchive(Archive):
    """All runs of one database. `after` is awaited when the archive has been closed."""

    def __init__(self, database: Database, after: Callable[[], Awaitable[None]] | None = None) -> None:
        self.database = database
        self._after = after

    async def create_run(self, state: RunState) -> None:
        async def work(session: Session) -> bool:
            recipe = state.recipe
            new = await session.one(
                "create_run", run=state.run, name=recipe.name, steps=recipe.steps, recipe=document(recipe)
            )
            if new:
                await put_state(session, state.run, state)
            return bool(new)

        if not await self.database.transact(work):
            raise ConfigError(f"a run called {state.run!r} exists already; resume it, or choose another name")

    async def open(self, run: str) -> Store:
        await self._need(run)
        return PostgresStore(self.database, run)

    async def lock(self, run: str) -> None:
        await self.database.lock(run)

    async def want(self, run: str, what: Want, who: str) -> None:
        await self._need(run)

        async def work(session: Session) -> None:
            (about,) = await session.all("progress", run=run)
            await session.put("save_wish", {"run": run, "what": what, "who": who})
            detail = {"who": who, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}
            await put_event(session, run, about["step"], f"want_{what}", detail)

        await self.database.transact(work)

    async def wanted(self, run: str) -> Want:
        await self._need(run)
        row = await self.database.transact(lambda session: session.one("wanted", run=run))
        return row["what"] if row else "run"

    async def runs(self) -> list[dict[str, Any]]:
        rows = await self.database.transact(lambda session: session.all("runs"))
        return [about(row) for row in rows]

    async def progress(self, run: str) -> dict[str, Any]:
        await self._need(run)
        (row,) = await self.database.transact(lambda session: session.all("progress", run=run))
        return {name: row[name] for name in ("step", "steps", "groups", "rollouts")}

    async def find(self, kind: str, id: str, run: str | None = None) -> dict[str, Any]:
        found = await self.database.transact(lambda session: find(session, kind, id, run))
        return found

    async def search(self, run: str, vector: Sequence[float], limit: int) -> list[tuple[str, float]]:
        await self._need(run)
        text, size = _vector(vector), len(vector)
        rows = await self.database.transact(
            lambda session: session.all("search", run=run, vector=text, dimension=size, limit=limit)
        )
        return [(row["rollout"], row["similarity"]) for row in rows]

    async def unembedded(self, run: str, limit: int) -> list[tuple[str, str]]:
        await self._need(run)
        rows = await self.database.transact(lambda session: session.all("unembedded", run=run, limit=limit))
        return [(row["id"], row["text"]) for row in rows]

    async def save_embeddings(self, run: str, model: str, vectors: Sequence[tuple[str, Sequence[float]]]) -> None:
        rows = [{"run": run, "rollout": id, "model": model, "vector": _vector(vector)} for id, vector in vectors]
        await self.database.transact(lambda session: session.put("save_embedding", *rows))

    async def events(self, run: str, after: int = 0) -> list[dict[str, Any]]:
        await self._need(run)
        rows = await self.database.transact(lambda session: session.all("events", run=run, after=after))
        return [row | {"time": row["time"].isoformat()} for row in rows]

    async def close(self) -> None:
        await self.database.close()
        if self._after is not None:
            await self._after()
            self._after = None

    async def _need(self, run: str) -> None:
        known = [row["id"] for row in await self.database.transact(lambda session: session.all("run_ids"))]
        if run not in known:
            raise MissingError(f"no run is called {run!r}{hint(run, known)}")


def about(row: dict[str, Any]) -> dict[str, Any]:
    """A run's line in `runs`."""
    names = ("run", "name", "step", "steps", "rollouts", "wanted")
    created, finished = row["created"].isoformat(), row["step"] >= row["steps"]
    return {name: row[name] for name in names} | {"created": created, "finished": finished}


def _vector(values: Sequence[float]) -> str:
    """pgvector's text form; the finite check is the server's, which refuses NaN and infinities."""
    return "[" + ",".join(repr(float(value)) for value in values) + "]"
