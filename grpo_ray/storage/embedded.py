"""The Archive in a PostgreSQL server of our own, below `home`: started by whoever comes first, stopped by the last.

Whoever uses the server holds a shared lock on a file; the lock goes with its process, however that ends, so the last
one that closes cleanly knows itself to be the last, and stops the server. A server left running by killed processes
is used by the next one that comes.
"""

import asyncio
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.protocols import Archive
from grpo_ray.storage._database import Database
from grpo_ray.storage._server import Server, folder_in
from grpo_ray.storage.postgres import PostgresArchive


async def make_storage(*, home: str | Path) -> Archive:
    """The archive below the folder `home`, its server started if need be.

    Raises ConfigError naming `home` when it can't be written, UnreachableError when the server does not start.
    """
    embedded = await asyncio.to_thread(Embedded, home)
    database = Database(embedded.revive)
    archive = PostgresArchive(database, embedded.leave)
    try:
        await database.open()
    except BaseException:
        await archive.close()
        raise
    return archive


def dsn(home: str | Path) -> str:
    """The DSN of `home`'s server, for other processes of this machine while somebody holds it open.

    Raises MissingError when there never was one.
    """
    try:
        return Server((Path(home).expanduser() / "postgres").resolve()).dsn()
    except FileNotFoundError:
        raise MissingError(f"there is no embedded database in {home} yet; a run makes it") from None
    except PermissionError as fault:
        raise ConfigError(_not_ours(home)) from fault


def exists(home: str | Path) -> bool:
    """Whether `home` has a database, or something in its place that opening it will explain. Makes nothing."""
    place = Path(home).expanduser() / "postgres"
    try:
        (place / "data").stat()
    except FileNotFoundError:
        return place.is_symlink() and not place.exists()
    except OSError:
        return True
    return True


def probe(home: str | Path) -> None:
    """Whether a database could be kept in `home`, as far as that shows without making anything. Raises ConfigError."""
    folder = Path(home).expanduser()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"can't keep the database in {home}: {folder} is no folder that we may write; choose a folder of yours "
            "with --home or placement.home"
        )


def remove(home: str | Path) -> None:
    """Stop `home`'s server, whoever uses it, and delete everything in it; the folder it may link to as well."""
    place = Path(home).expanduser() / "postgres"
    server = Server(place.resolve())
    server.stop()
    shutil.rmtree(server.folder)
    if place.is_symlink():
        place.unlink()


class Embedded:
    """This process's hold on the server of a home."""

    def __init__(self, home: str | Path) -> None:
        self.folder = folder_in(Path(home).expanduser())
        self.server = Server(self.folder)
        try:
            with self._turn():
                self._holder = _open(self.folder / "holders.lock")
                fcntl.flock(self._holder, fcntl.LOCK_SH)
        except PermissionError as fault:
            raise ConfigError(_not_ours(home)) from fault

    async def revive(self) -> str:
        """The DSN of a server that answers; starts it when it is down, or was killed."""
        await asyncio.to_thread(self._ensure)
        return self.server.dsn()

    async def leave(self) -> None:
        """Let go; the last one stops the server."""
        await asyncio.to_thread(self._leave)

    def _ensure(self) -> None:
        with self._turn():
            self.server.ensure()

    def _leave(self) -> None:
        with self._turn(), suppress(BlockingIOError):
            try:
                fcntl.flock(self._holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.server.stop()
            finally:
                os.close(self._holder)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time looks after the server."""
        lock = _open(self.folder / "turn.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _not_ours(home: str | Path) -> str:
    return (
        f"the database in {home} belongs to another user; run as that user, or choose another folder "
        "with --home or placement.home"
    )
