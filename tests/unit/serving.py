"""What tests of rooms that ask share: the stand-in server on loopback, nouns made short, a canned oracle."""

import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from grpo_ray.errors import OracleError
from grpo_ray.mock_openai import Behaviour, make_app
from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group, Message, Prompt, Reply, Rollout, Sampling, Task, Template


class Announced(uvicorn.Server):
    """Tells another thread when it listens."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """Serve `app` on a free port of 127.0.0.1 from a thread; yields its /v1 URL."""
    server = Announced(app)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.ready.wait(30), "the server did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def stand_in(behaviour: Behaviour | None = None) -> Iterator[str]:
    with running(make_app(behaviour)) as url:
        yield url


class Canned(Oracle):
    """An oracle that says, in turn, what it was given: values become JSON, errors are raised."""

    def __init__(self, *replies: Any, verdicts: Sequence[float | None] = (), stand_in: bool = False) -> None:
        self.replies, self.verdicts, self.stand_in = list(replies), list(verdicts), stand_in
        self.asked: list[list[Message]] = []
        self.checked: list[list[str]] = []

    def within(self, scope: str) -> "Canned":
        return self

    def at(self, name: str) -> "Canned":
        return self

    def again(self, times: int) -> "Canned":
        return self

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        self.asked.append(list(messages))
        reply = self.replies.pop(0)
        if isinstance(reply, OracleError):
            raise reply
        text = shape.model_validate(reply).model_dump_json() if shape else json.dumps(reply)
        return Reply(text, "canned-judge", self.stand_in)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise OracleError("nothing canned")

    async def nearest(self, text: str, *, limit: int = 10) -> list[tuple[str, float]]:
        raise OracleError("nothing canned")

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        self.checked.append(list(answers))
        return list(self.verdicts)


def group(*texts: str, task: Task | None = None) -> Group:
    task = task or Task("t-1", "What is 345 + 678?", "1023", verifier="jsonl")
    prompt = Prompt("p-1", "tpl", task, (Message("user", task.question),))
    rollouts = tuple(Rollout(f"r-{i}", i, text, (1, 2), (-0.1, -0.2), "stop", i) for i, text in enumerate(texts))
    return Group("g-1", prompt, rollouts, (1,), Sampling(group_size=len(texts)), "nano", None)


def said(rollout_id: str, dimension: str, score: float | None, judge: str = "rubric") -> Evaluation:
    return Evaluation(rollout_id, judge, dimension, score, f"{dimension} of {rollout_id}")


def template(text: str = "Do it.\n\nQuestion: {{ question }}") -> Template:
    return Template("tpl", text)
