"""Hosts the ASGI app (MCP and its like) on the head node, on loopback, behind a bearer token."""

import asyncio
import socket

import uvicorn

from grpo_ray.control.app import make_app, read_token
from grpo_ray.errors import ConfigError
from grpo_ray.launch import open_archive
from grpo_ray.recipe import Placement

HOST = "127.0.0.1"


class Control:
    """The server starts with the actor, so that it answers again after a restart without being called first."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._up = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def open(self) -> str:
        """Where it listens. Raises ConfigError when the port is taken."""
        return await self._up

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _serve(self) -> None:
        try:
            door = _door(self._placement.control_port)
            archive = await open_archive(self._placement)
        except Exception as fault:  # kept for whoever asks for the address: nobody awaits this task
            self._up.set_exception(fault)
            return
        port = door.getsockname()[1]
        app = make_app(archive, token=read_token(self._placement.home), host=HOST, port=port)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self._up.set_result(f"http://{HOST}:{port}")
        try:
            await server.serve([door])
        finally:
            await archive.close()

    def __repr__(self) -> str:
        return f"Control[{self._placement.control_port}]"


def _door(port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError when another process has it."""
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((HOST, port))
    except OSError as fault:
        door.close()
        raise ConfigError(
            f"port {port} of {HOST} is taken ({fault.strerror}); set placement.control_port to another"
        ) from fault
    return door
