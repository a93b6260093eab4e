"""The control server: MCP at /mcp and a sign of life at /health, in one ASGI app on loopback."""

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from grpo_ray.control.mcp import make_mcp
from grpo_ray.errors import ConfigError
from grpo_ray.operations import Embed
from grpo_ray.protocols import Archive

TOKEN_FILE = "control.token"


def make_app(
    archive: Archive,
    *,
    token: str,
    host: str = "127.0.0.1",
    port: int = 8765,
    embed: Embed | None = None,
    embedding_model: str = "",
) -> Starlette:
    """The ASGI app over `archive`. /mcp needs `Authorization: Bearer token`; /health tells nothing but that it lives.

    With `embed` (and the name its vectors are kept under) rollouts are searched by meaning, else by words.

    Requests are answered only under the names this server is reached by (`host`, localhost), so that a web page
    can't reach it through a name of its own.
    """
    names = [f"{name}:{port}" for name in dict.fromkeys([host, "127.0.0.1", "localhost"])]
    doors = TransportSecuritySettings(allowed_hosts=names, allowed_origins=[f"http://{name}" for name in names])
    mcp = make_mcp(archive, token=token, url=f"http://{host}:{port}/mcp", embed=embed, embedding_model=embedding_model)
    inner = mcp.streamable_http_app(streamable_http_path="/mcp", transport_security=doors)

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        async with mcp.session_manager.run():
            yield

    return Starlette(routes=[Route("/health", health), Mount("/", inner)], lifespan=life)


def open_door(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError when it can't be had."""
    try:
        return socket.create_server((host, port))
    except OSError as fault:
        raise ConfigError(f"can't listen on {host}:{port}: {fault.strerror}; choose another port") from fault


async def health(_: Request) -> JSONResponse:
    return JSONResponse({"ok": True})


def read_token(home: str | Path) -> str:
    """The bearer token of the control server, made on first use in a file that only its owner can read.

    Raises ConfigError when others can read the file, it is empty, or it can't be made.
    """
    path = Path(home).expanduser() / TOKEN_FILE
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _kept(path)
    except OSError as fault:
        raise ConfigError(f"can't write in {path.parent}: {fault.strerror}; choose another home folder") from fault
    token = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w") as file:
        file.write(token + "\n")
    return token


def _kept(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"others can read {path}; delete it (a new token is made), or: chmod 600 {path}")
    if not (token := path.read_text().strip()):
        raise ConfigError(f"{path} is empty; delete it, and a new token is made")
    return token
