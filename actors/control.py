"""Hosts the ASGI app (MCP and its like) on the head node, on loopback, behind a bearer token."""

import asyncio
import logging
import socket

import uvicorn

from grpo_ray.control.app import make_app, open_door, read_token
from grpo_ray.errors import ConfigError
from grpo_ray.launch import open_archive
from grpo_ray.recipe import Placement

HOST = "127.0.0.1"
log = logging.getLogger("grpo_ray.actors")


class Control:
    """The server starts with the actor, so that it answers again after a restart without being called first."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._up = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def open(self) -> str:
        """Where it listens."""
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
    """A listening socket. Any control server serves all runs of the home: where one has the port, a free one will do."""
    try:
        return open_door(port)
    except ConfigError as fault:
        log.warning("%s; taking a free port instead", fault)
        return open_door(0)
