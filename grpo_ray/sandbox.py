"""Runs one of our scripts around untrusted code, cut off from the network, the home folder and other processes.

`run` starts a *warden* (this file as a program, standard library only): it makes a temporary folder, isolates a child
in it, starts the script there, ends it in time, and removes the folder, also when whoever started it is gone.

Linux: namespaces of its own for network (not even loopback), processes, mounts and IPC; a root of its own that holds
only the system's programs and Python, all read-only, and one small folder in memory to write to. Needs user namespaces
that ordinary users may make (or root), and Linux 5.14. macOS: `sandbox-exec`, which denies the network, writing
outside the folder, and reading file contents in home folders; it can't bound memory, and a process of the code's may
outlive the run if it leaves its process group, so the script must forbid forks. Elsewhere there is no sandbox.

What it is not: a virtual machine. A hole in the kernel is a hole in it; and on macOS other processes' names show.
"""

import contextlib
import ctypes
import json
import os
import pwd
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

SAID = 1 << 20
"""Bytes that a script may report."""
GRACE_S = 2.0
"""What the start and the end of a script may take beside its time."""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store",
          "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")  # fmt: skip
SANDBOX_EXEC = "/usr/bin/sandbox-exec"
WORK, SCRIPT = "/.grpo-ray/work", "/.grpo-ray/script.py"
"""Inside Linux's sandbox; nobody's Python lives there."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
NOBODY = 64321
"""The user and group that root becomes: an id that nobody has, so that limits on its processes count only these."""
_NEW_USER, _NEW_NETWORK, _NEW_REST = 0x10000000, 0x40000000, 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000
"""Of unshare(2); the rest are NEWNS, NEWUTS, NEWIPC and NEWPID."""
_READONLY, _NOSUID, _NODEV, _BIND, _REC, _PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES = 1, 38
_MOUNT_SETATTR, _RECURSIVE, _HERE = 442, 0x8000, -100


class NoSandbox(RuntimeError):
    """The script could not be run cut off, or came to no end of its own; the message says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`memory_mb` and `files` are per process, `disk_mb` per file (on Linux: of all files together)."""

    seconds: float = 8.0
    memory_mb: int = 1024
    processes: int = 16
    disk_mb: int = 16
    files: int = 64
    allow_network: bool = False
    """Run even where nothing can be cut off."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """What the warden hands down: which script, the folder to write to (or to build a root in), where Python is."""

    script: str
    folder: str
    python: tuple[str, ...]
    limits: Limits


def run(script: Path, payload: Any, limits: Limits) -> list[Any]:
    """The JSON lines that `script` (standard library only) wrote to its stdout, given `payload` as JSON on its stdin.

    The last line must be null: it says that the script, and nothing else, ended. Raises NoSandbox.
    """
    asked = json.dumps(
        {"script": str(script.resolve()), "limits": asdict(limits), "python": python_places(), "payload": payload}
    )
    command = [sys.executable, "-I", "-S", "-B", __file__]
    kept = {"PATH": os.defpath} | {name: os.environ[name] for name in ("TMPDIR",) if name in os.environ}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept, start_new_session=True
    ) as warden:
        assert warden.stdin and warden.stdout
        try:
            warden.stdin.write(asked.encode() + b"\n")
            warden.stdin.flush()  # and not closed: its end tells the warden that nobody waits any more
            said = warden.stdout.read(SAID + 1)
        except BrokenPipeError as fault:
            raise NoSandbox("the sandbox's warden ended at once") from fault
        finally:
            with contextlib.suppress(BrokenPipeError):
                warden.stdin.close()
    return _lines(said)


def python_places() -> list[str]:
    """Folders that this Python needs: its installation, its virtual environment, and the links between them."""
    places, place = [sys.prefix, sys.base_prefix], sys.executable
    while os.path.islink(place):
        place = os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))
        places.append(os.path.dirname(place))
    return list(dict.fromkeys([*places, *map(os.path.realpath, places)]))


def _lines(said: bytes) -> list[Any]:
    if len(said) > SAID:
        raise NoSandbox("the sandboxed script reported too much")
    try:
        lines = [json.loads(line) for line in said.splitlines()]
    except ValueError as fault:
        raise NoSandbox("the sandboxed script reported something that is not JSON") from fault
    refused = next((line["refused"] for line in lines if isinstance(line, dict) and "refused" in line), None)
    if refused is not None:
        raise NoSandbox(refused)
    if not lines or lines[-1] is not None:
        raise NoSandbox("the sandboxed script was ended before it was done: out of memory or time?")
    return lines[:-1]


# ── the warden: a process of its own ──────────────────────────────────────────────────────────────────────────────


def _warden() -> None:
    asked = json.loads(sys.stdin.buffer.readline())
    limits = Limits(**asked["limits"])
    folder = os.path.realpath(tempfile.mkdtemp(prefix="grpo-ray-"))
    with tempfile.TemporaryFile() as given:
        given.write(json.dumps(asked["payload"]).encode())
        given.flush()
        try:
            cell = _Cell(asked["script"], folder, asked["python"], limits)
            _watch(_fork(lambda: _isolated(cell, given.fileno())), limits.seconds + GRACE_S)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _watch(child: int, seconds: float) -> None:
    """Until the child ends, its time is over, or nobody waits any more; then nothing of its group is left."""
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    if os.waitpid(child, os.WNOHANG)[0] == 0:
        select.select([sys.stdin, ended], [], [], seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def _fork(work: Any) -> int:
    """A child, leader of its own group, that does `work` and never comes back; a fault is told as `refused`."""
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # the child does so too: whoever is first
            os.setpgid(child, child)
        return child
    try:
        os.setpgid(0, 0)
        work()
    except BaseException as fault:  # the boundary: what went wrong becomes a value, and no code of the parent's runs
        os.write(1, json.dumps({"refused": f"no sandbox: {fault or type(fault).__name__}"}).encode() + b"\n")
    os._exit(1)


def _isolated(cell: _Cell, given: int) -> None:
    os.dup2(given, 0)
    os.lseek(0, 0, os.SEEK_SET)
    open_ = cell.limits.allow_network
    if sys.platform == "linux" and _separated(open_):
        _in_namespaces(cell)
    if sys.platform == "darwin" and (os.path.exists(SANDBOX_EXEC) or not open_):
        _start(
            cell, cell.script, cell.folder, (SANDBOX_EXEC, "-p", profile(cell.folder, cell.script, cell.python, open_))
        )
    if not open_:
        raise OSError(f"none is known for {sys.platform}; the setting `allow_network: true` runs without")
    _start(cell, cell.script, cell.folder)


def _start(cell: _Cell, script: str, work: str, before: Sequence[str] = ()) -> NoReturn:
    """Become the script, bounded, with an empty environment."""
    os.chdir(work)
    _bound(cell.limits)
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    home = {"PATH": "/usr/bin:/bin", "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8"}
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    command = (*before, sys.executable, "-I", "-B", script)
    os.execve(command[0], command, home | threads)


def _bound(limits: Limits) -> None:
    bounds = {
        resource.RLIMIT_AS: limits.memory_mb << 20,
        resource.RLIMIT_FSIZE: limits.disk_mb << 20,
        resource.RLIMIT_NOFILE: limits.files,
        resource.RLIMIT_CPU: int(limits.seconds) + 2,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS counts all processes of the user, and knows no RLIMIT_AS
        bounds[resource.RLIMIT_NPROC] = limits.processes
    for what, amount in bounds.items():
        hard = resource.getrlimit(what)[1]
        most = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        with contextlib.suppress(*(() if sys.platform == "linux" else (ValueError, OSError))):
            resource.setrlimit(what, (most, most))


def profile(folder: str, script: str, python: Sequence[str], allow_network: bool) -> str:
    """The rules for macOS's sandbox-exec; of several that fit, the last counts."""
    homes = ("/Users", "/var/root", "/private/var/root", os.path.realpath(pwd.getpwuid(os.getuid()).pw_dir))
    hidden = " ".join(f"(subpath {json.dumps(home)})" for home in dict.fromkeys(homes))
    needed = " ".join(f"(subpath {json.dumps(place)})" for place in (*python, folder))
    return (
        f"(version 1)(allow default){'' if allow_network else '(deny network*)'}(deny file-write*)"
        f'(allow file-write* (subpath {json.dumps(folder)}) (literal "/dev/null"))'
        f"(deny file-read-data {hidden})(allow file-read-data {needed} (literal {json.dumps(script)}))"
    )


# ── Linux ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _separated(allow_network: bool) -> bool:
    """Whether this process now has namespaces of its own. Raises OSError where it can't, unless nothing is needed."""
    user, group = os.getuid(), os.getgid()
    try:
        _call("unshare", _NEW_REST | (0 if user == 0 else _NEW_USER) | (0 if allow_network else _NEW_NETWORK))
    except OSError:
        if allow_network:
            return False
        raise
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def _in_namespaces(cell: _Cell) -> NoReturn:
    _call("prctl", _DIE_WITH_PARENT, signal.SIGKILL)
    os.waitpid(_fork(lambda: _as_first(cell)), 0)
    os._exit(0)


def _as_first(cell: _Cell) -> NoReturn:
    """As process 1 of the new namespace: when it ends, the kernel ends every process in it."""
    _root_of_its_own(cell)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _call("prctl", _DIE_WITH_PARENT, signal.SIGKILL)  # after the change of user, which forgets it
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _start(cell, SCRIPT, WORK)


def _root_of_its_own(cell: _Cell) -> None:
    """See nothing but the system's programs and Python, read-only, and WORK to write to."""
    os.umask(0o022)
    root, script = cell.folder, Path(cell.script).read_bytes()
    _mount("", "/", "", _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    shown: list[str] = []
    for place in sorted({*SYSTEM, *cell.python, *DEVICES}, key=len):
        if os.path.lexists(place) and not any(place.startswith(above + "/") for above in shown):
            shown.append(place)
            _show(place, root + place)
    for name in ("/proc", WORK):
        os.makedirs(root + name)
    Path(root + SCRIPT).write_bytes(script)
    with contextlib.suppress(OSError):  # a container may forbid it; Python does without
        _mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV)
    _read_only(root)
    _mount("tmpfs", root + WORK, "tmpfs", _NOSUID | _NODEV, f"size={cell.limits.disk_mb}m,mode=1777")
    os.chroot(root)


def _show(place: str, target: str) -> None:
    """The same folder, file or link at `target`."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(place):
        os.symlink(os.readlink(place), target)
    elif os.path.isdir(place):
        os.mkdir(target)
        _mount(place, target, "", _BIND | _REC)
    else:
        Path(target).touch()
        _mount(place, target, "", _BIND)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def _read_only(root: str) -> None:
    """This mount and all below it, without touching what else is set (mount_setattr(2), Linux 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(_READONLY, 0, 0, 0)
    number, size = ctypes.c_long(_MOUNT_SETATTR), ctypes.c_size_t(ctypes.sizeof(attributes))
    _call("syscall", number, _HERE, root.encode(), _RECURSIVE, ctypes.byref(attributes), size)


def _call(name: str, *arguments: Any) -> None:
    """A function of the C library. Raises OSError that names it."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        number = ctypes.get_errno()
        way = "; are user namespaces forbidden here? The setting `allow_network: true` runs without" * (
            name == "unshare"
        )
        raise OSError(f"{name}: {os.strerror(number)}{way}")


if __name__ == "__main__":
    _warden()
