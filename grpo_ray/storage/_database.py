"""One PostgreSQL database from one process: a pool, transactions that survive a restart of the server, and locks."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, LiteralString, TypeVar, cast

from psycopg import AsyncConnection, OperationalError, conninfo
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from grpo_ray.errors import ConfigError, GrpoRayError, RunLocked, UnreachableError
from grpo_ray.storage._queries import QUERIES
from grpo_ray.storage._text import inward, outward
from grpo_ray.storage.migrations import POLL_S, migrate

T = TypeVar("T")
CONNECT_S = 10
PATIENCE_S = 60.0
"""How long a transaction waits for a server that went away, before it gives up."""
LOCK_S = 1.0
CONNECTIONS = 6
LOCK = "SELECT pg_try_advisory_lock(hashtextextended('grpo-ray run ' || %s::text, 0))"
KEEPALIVE: tuple[LiteralString, ...] = ("SET tcp_keepalives_idle = 30", "SET tcp_keepalives_interval = 10")
"""So that the lock of a machine that vanished is freed within two minutes."""
AGAIN = "40"
"""SQLSTATEs of transactions that another one got in the way of: a deadlock, a conflict."""
AWAY = ("08", "57P", "25P", AGAIN)
"""SQLSTATEs after which a transaction may be tried again: connection, shutdown and startup, idle timeout."""

# What it would say of lost connections, `transact` says when it gives up.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class Session:
    """The named statements, on one connection and in one transaction."""

    def __init__(self, connection: AsyncConnection[DictRow]) -> None:
        self.connection = connection

    async def all(self, name: str, /, **parameters: Any) -> list[dict[str, Any]]:
        cursor = await self.connection.execute(_statement(name), outward(parameters))
        return [inward(row) for row in await cursor.fetchall()]

    async def one(self, name: str, /, **parameters: Any) -> dict[str, Any] | None:
        return next(iter(await self.all(name, **parameters)), None)

    async def put(self, name: str, /, *rows: Mapping[str, Any]) -> None:
        """Run a statement that returns nothing once for each of the rows, in their order."""
        if rows:
            async with self.connection.cursor() as cursor:
                await cursor.executemany(_statement(name), [outward(row) for row in rows])


class Database:
    """Made in the process and the event loop that use it.

    `revive` is asked for the DSN before the first connection and whenever the server went away.
    """

    def __init__(self, revive: Callable[[], Awaitable[str]], patience: float = PATIENCE_S) -> None:
        self._revive = revive
        self._patience = patience
        self._pool: AsyncConnectionPool[AsyncConnection[DictRow]] | None = None
        self._renewing = asyncio.Lock()
        self._keeper: AsyncConnection[DictRow] | None = None
        self._held: list[str] = []
        self._closed = False
        self.where = ""

    async def open(self) -> None:
        """Connect and migrate. Raises UnreachableError, or ConfigError, naming the database but never its password."""
        dsn = await self._revive()
        self.where = describe(dsn)
        connection = await self._connect(dsn)
        try:
            await migrate(connection, self.where)
        finally:
            await connection.close()
        self._pool = await _pool(dsn)

    async def probe(self) -> None:
        """Connect, and leave again. Raises UnreachableError naming the database but never its password."""
        await (await self._connect(await self._revive())).close()

    async def transact(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Run `work` in one transaction; again, from its beginning, when the server went away meanwhile.

        So `work` must be safe to repeat: everything it writes keeps what came first.
        """
        deadline = asyncio.get_running_loop().time() + self._patience
        while True:
            pool = self._pool
            if pool is None or self._closed:
                raise UnreachableError(f"the database {self.where} is closed here")
            try:
                async with pool.connection() as connection:
                    return await work(Session(connection))
            except OperationalError as fault:
                if fault.sqlstate and not fault.sqlstate.startswith(AWAY):
                    raise UnreachableError(f"the database {self.where} refused: {_first_line(fault)}") from fault
                if asyncio.get_running_loop().time() > deadline:
                    raise explain(fault, self.where) from fault
                if (fault.sqlstate or "").startswith(AGAIN):
                    continue
                await self._renew(pool, deadline)

    async def lock(self, run: str) -> None:
        """Hold a session-level lock until `close` or the process's end. Raises RunLocked."""
        if run in self._held:
            return
        if self._keeper is None:
            self._keeper = await self._connect(await self._revive(), KEEPALIVE)
        await self._take(self._keeper, run, LOCK_S)

    async def close(self) -> None:
        """Give the locks and connections back; a server that is away has done so already."""
        self._closed = True
        if self._keeper is not None:
            with suppress(OperationalError):
                await self._keeper.execute("SELECT pg_advisory_unlock_all()")
            await self._keeper.close()
        if self._pool is not None:
            await self._pool.close()

    async def _connect(self, dsn: str, settings: tuple[LiteralString, ...] = ()) -> AsyncConnection[DictRow]:
        try:
            connection = await AsyncConnection[DictRow].connect(
                dsn, autocommit=True, row_factory=dict_row, connect_timeout=CONNECT_S, application_name="grpo-ray"
            )
            for setting in settings:
                await connection.execute(setting)
            return connection
        except OperationalError as fault:
            raise explain(fault, describe(dsn)) from fault

    async def _renew(self, broken: AsyncConnectionPool[AsyncConnection[DictRow]], deadline: float) -> None:
        """A new pool in place of one whose server went away; by whoever notices first."""
        async with self._renewing:
            if self._pool is not broken or self._closed:
                return
            dsn = await self._reach(deadline)
            self._pool = await _pool(dsn)
            await broken.close()
            await self._lock_again(deadline)

    async def _reach(self, deadline: float) -> str:
        """The DSN of a server that answers. Raises the last fault when the deadline passes."""
        delay = 0.1
        while True:
            try:
                dsn = await self._revive()
                await (await self._connect(dsn)).close()
                return dsn
            except GrpoRayError:
                if asyncio.get_running_loop().time() + delay > deadline:
                    raise
            await asyncio.sleep(delay)
            delay = min(2.0, 2 * delay)

    async def _lock_again(self, deadline: float) -> None:
        """The locks of a lost connection, on a new one."""
        held, self._held = self._held, []
        if self._keeper is not None:
            await self._keeper.close()
            self._keeper = await self._connect(await self._revive(), KEEPALIVE)
            for run in held:
                await self._take(self._keeper, run, deadline - asyncio.get_running_loop().time())

    async def _take(self, keeper: AsyncConnection[DictRow], run: str, seconds: float) -> None:
        """Raises RunLocked. The server needs a moment to notice that a holder has died, or that we lost touch."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not await _try_lock(keeper, run):
            if asyncio.get_running_loop().time() > deadline:
                raise RunLocked(f"another process is at work on run {run!r}; stop it first, or wait for it")
            await asyncio.sleep(POLL_S)
        self._held.append(run)


def describe(dsn: str) -> str:
    """host:port/database, without user and password."""
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except OperationalError:
        parts = {}
    host, port = parts.get("host", "localhost"), parts.get("port", 5432)
    return f"{host}:{port}/{parts.get('dbname') or parts.get('user') or ''}"


def explain(fault: OperationalError, where: str) -> GrpoRayError:
    """What a person can do about a failed connection."""
    text = str(fault)
    if "password" in text or "no pg_hba.conf entry" in text or (fault.sqlstate or "").startswith("28"):
        return UnreachableError(
            f"the database {where} refused this user or password; correct the DSN in placement.storage "
            "(postgresql://USER:PASSWORD@HOST:PORT/DATABASE)"
        )
    if "does not exist" in text:
        return ConfigError(f"the server answers, but {_first_line(fault)} ({where}); create it, e.g. with createdb")
    return UnreachableError(
        f"the database {where} does not answer: {_first_line(fault)}; start PostgreSQL there, correct "
        "placement.storage, or use `storage: embedded`"
    )


async def _pool(dsn: str) -> AsyncConnectionPool[AsyncConnection[DictRow]]:
    pool = AsyncConnectionPool(
        dsn,
        connection_class=AsyncConnection[DictRow],
        kwargs={"row_factory": dict_row, "connect_timeout": CONNECT_S, "application_name": "grpo-ray"},
        min_size=1,
        max_size=CONNECTIONS,
        timeout=PATIENCE_S,
        reconnect_timeout=1.0,
        configure=_configure,
        open=False,
    )
    await pool.open()
    return pool


async def _configure(connection: AsyncConnection[DictRow]) -> None:
    """Plans for any run, not for the one that is asked for: the statistics know nothing yet of a run that has just
    begun, and planned as if it had one row it is joined row by row (69 s for what takes 4 ms).
    """
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.commit()


async def _try_lock(connection: AsyncConnection[DictRow], run: str) -> bool:
    row = await (await connection.execute(f"{LOCK} AS held", [outward({"run": run})["run"]])).fetchone()
    return bool(row and row["held"])


def _statement(name: str) -> LiteralString:
    return cast(LiteralString, QUERIES[name])


def _first_line(fault: Exception) -> str:
    return str(fault).strip().splitlines()[0].split("FATAL:")[-1].strip() if str(fault).strip() else "no reason given"
