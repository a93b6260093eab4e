"""The embedded server: one for all processes of a home, alive as long as they need it, whatever is killed."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from grpo_ray.errors import ConfigError, MissingError, RunLocked, UnreachableError
from grpo_ray.recipe import Named, Recipe, RunState
from grpo_ray.storage import _server, embedded, postgres
from grpo_ray.types import Population

pytestmark = pytest.mark.postgres

HOLD = """
import asyncio, sys
from grpo_ray.storage import embedded
async def main():
    archive = await embedded.make_storage(home=sys.argv[1])
    await archive.lock("held")
    print(len(await archive.runs()), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await archive.close()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home for the tests that need not be its first users; each closes what it opens, so the server stops between."""
    yield from new_home()


@pytest.fixture
def fresh() -> Iterator[Path]:
    """A home without a server."""
    yield from new_home()


def new_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        if (Path(folder) / "postgres").exists():
            embedded.remove(folder)


def state(run: str) -> RunState:
    return RunState(run, 0, Recipe(tasks=(Named(name="jsonl"),)), Population(()), None, ())


def postmaster(home: Path) -> int | None:
    """The pid in the server's pid file, while there is one."""
    file = home / "postgres" / "data" / "postmaster.pid"
    return int(file.read_text().split()[0]) if file.exists() else None


def holder(home: Path) -> subprocess.Popen[str]:
    """Another process that holds the home open until its stdin closes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(home)], **pipes)
    assert process.stdout is not None and process.stdout.readline().strip().isdigit()
    return process


def test_it_starts_stops_and_keeps(home: Path) -> None:
    async def main() -> None:
        archive = await embedded.make_storage(home=home)
        await archive.create_run(state("kept"))
        await archive.close()
        assert postmaster(home) is None
        again = await embedded.make_storage(home=home)
        assert [row["run"] for row in await again.runs()] == ["kept"]
        await again.close()

    asyncio.run(main())


def test_the_password_is_needed_and_is_nobody_elses_to_read(home: Path) -> None:
    async def main() -> None:
        archive = await embedded.make_storage(home=home)
        secret = home / "postgres" / "password"
        assert secret.stat().st_mode & 0o777 == 0o600
        assert (home / "postgres" / "data").stat().st_mode & 0o077 == 0
        dsn = embedded.dsn(home)
        assert secret.read_text().strip() in dsn and "@127.0.0.1:" in dsn
        wrong = dsn.replace(secret.read_text().strip(), "guess")
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:\d+/grpo_ray refused this user or password") as found:
            await postgres.make_storage(dsn=wrong)
        assert "guess" not in str(found.value)
        with pytest.raises(ConfigError, match='database "nowhere" does not exist'):
            await postgres.make_storage(dsn=dsn.removesuffix("grpo_ray") + "nowhere")
        await archive.close()

    asyncio.run(main())


def test_a_killed_server_comes_back_under_its_users(home: Path) -> None:
    """kill -9 of the postmaster: what was saved is there, the next call starts it again, and the lock is held again."""

    async def main() -> None:
        archive = await embedded.make_storage(home=home)
        other = await postgres.make_storage(dsn=embedded.dsn(home))
        await archive.lock("one")
        await archive.create_run(state("one"))
        store = await archive.open("one")
        killed = postmaster(home)
        assert killed
        os.kill(killed, signal.SIGKILL)
        await asyncio.gather(*(store.save_event(0, "after", {"n": n}) for n in range(8)))
        assert postmaster(home) not in (None, killed)
        assert len(await archive.events("one")) == 8 and len(await other.events("one")) == 8
        with pytest.raises(RunLocked):
            await other.lock("one")
        await other.close()
        await archive.close()

    asyncio.run(main())


def test_killed_users_leave_no_lock_and_a_server_to_use(home: Path) -> None:
    async def main() -> None:
        first = holder(home)
        archive = await embedded.make_storage(home=home)
        running = postmaster(home)
        with pytest.raises(RunLocked):
            await archive.lock("held")
        first.kill()
        first.communicate()
        await archive.lock("held")
        assert postmaster(home) == running
        await archive.close()
        assert postmaster(home) is None, "the last one that closes stops it"

    asyncio.run(main())


def test_two_processes_use_one_server_and_the_last_stops_it(fresh: Path) -> None:
    one, two = holder_at_once(fresh)
    running = postmaster(fresh)
    one.communicate("")
    assert one.returncode == 0 and postmaster(fresh) == running
    two.communicate("")
    assert two.returncode == 0 and postmaster(fresh) is None


def holder_at_once(home: Path) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Two processes that come to an empty home in the same moment."""
    code = HOLD.replace('"held"', "sys.argv[2]")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    one, two = (subprocess.Popen([sys.executable, "-c", code, str(home), name], **pipes) for name in "ab")
    for process in (one, two):
        assert process.stdout is not None and process.stdout.readline() == "0\n"
    return one, two


def test_of_two_links_to_a_folder_the_first_stays(tmp_path: Path) -> None:
    system, folder = tmp_path / "system", tmp_path / "postgres"
    _server.link_in(system, folder)
    first = folder.readlink()
    _server.link_in(system, folder)
    assert folder.readlink() == first and list(system.iterdir()) == [first]


def test_a_pid_file_of_another_program_does_not_keep_it_from_starting(home: Path) -> None:
    async def main() -> None:
        await (await embedded.make_storage(home=home)).close()
        (home / "postgres" / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n/elsewhere\n0\n1\n\n\n")
        archive = await embedded.make_storage(home=home)
        assert isinstance(await archive.runs(), list) and postmaster(home) != os.getpid()
        await archive.close()

    asyncio.run(main())


def test_a_taken_port_is_left_alone(home: Path) -> None:
    async def main() -> None:
        await (await embedded.make_storage(home=home)).close()
        taken = int((home / "postgres" / "port").read_text())
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", taken)
        archive = await embedded.make_storage(home=home)
        assert f":{taken}/" not in embedded.dsn(home) and isinstance(await archive.runs(), list)
        await archive.close()
        server.close()

    asyncio.run(main())


def test_a_home_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=str(tmp_path / "file" / "below")):
        asyncio.run(embedded.make_storage(home=tmp_path / "file" / "below"))
    with pytest.raises(MissingError, match="no embedded database"):
        embedded.dsn(tmp_path)


def test_an_unreachable_server_is_named_without_its_password() -> None:
    dsn = "postgresql://me:very-secret@127.0.0.1:1/rollouts"
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1/rollouts does not answer") as found:
        asyncio.run(postgres.make_storage(dsn=dsn))
    assert "very-secret" not in str(found.value) and "start PostgreSQL" in str(found.value)
    with pytest.raises(ConfigError, match="no PostgreSQL DSN"):
        asyncio.run(postgres.make_storage(dsn="not a dsn"))


def test_databases_that_can_not_be_ours_are_refused(home: Path) -> None:
    """Of a user who may not make anything, of a newer grpo-ray, and of another schema than ours."""

    async def main() -> None:
        archive = await embedded.make_storage(home=home)
        with psycopg.connect(embedded.dsn(home), autocommit=True) as connection:
            connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
            connection.execute("CREATE DATABASE spare")
        spare = embedded.dsn(home).removesuffix("grpo_ray") + "spare"
        with pytest.raises(ConfigError, match="CREATE EXTENSION vector"):
            await postgres.make_storage(dsn=f"postgresql://guest:guest@{spare.split('@')[1]}")
        await (await postgres.make_storage(dsn=spare)).close()
        with psycopg.connect(spare, autocommit=True) as connection:
            connection.execute("UPDATE migration SET sha256 = 'x' WHERE number = 1")
            with pytest.raises(ConfigError, match=r"0001_tables\.sql"):
                await postgres.make_storage(dsn=spare)
            connection.execute("INSERT INTO migration (number, name, sha256) VALUES (9000, 'x', 'x')")
            with pytest.raises(ConfigError, match="newer grpo-ray"):
                await postgres.make_storage(dsn=spare)
        await archive.close()

    asyncio.run(main())
