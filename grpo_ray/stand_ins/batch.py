"""Files and batches of the bundled server: shapes and statuses as in `openai.types`, a day's wait in a few seconds.

Nothing runs in the background: how far a batch has come follows from the clock whenever somebody asks.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grpo_ray.canonical import digest_bytes
from grpo_ray.stand_ins.limits import Clock
from grpo_ray.stand_ins.replies import Answer, refusal

ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings")
LARGEST = 64 << 20
"""Bytes of an uploaded file that are taken."""
MOST_LINES = 50_000
DAY_S = 86_400
VALIDATED, RUN = 0.1, 0.9
"""After which part of its time a batch has been validated, and after which all of it has run."""
TURN = 20
"""Lines that are answered before other requests get their turn."""
OPEN = ("validating", "in_progress", "finalizing")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as `openai.types.FileObject` has it, with its bytes."""

    id: str
    name: str
    purpose: str
    content: bytes
    created_at: int

    def shown(self) -> dict[str, Any]:
        shape = {"id": self.id, "object": "file", "bytes": len(self.content), "created_at": self.created_at}
        return shape | {"filename": self.name, "purpose": self.purpose, "status": "processed", "expires_at": None}


@dataclass(slots=True)
class Batch:
    """One batch; times beside `created_at` (Unix time) are seconds since it began."""

    id: str
    file: str
    endpoint: str
    metadata: dict[str, str] | None
    created_at: int
    began: float
    lines: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    done: int = 0
    completed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    cancelled_s: float | None = None
    output_file: str | None = None
    error_file: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Desk:
    """The server's files and batches. `answer(endpoint, body)` answers a line; a batch takes `seconds`."""

    answer: Callable[[str, dict[str, Any]], Answer]
    seconds: float
    clock: Clock
    files: dict[str, StoredFile] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    made: int = 0
    """Files and batches so far, which makes their ids different."""

    def keep(self, name: str, purpose: str, content: bytes) -> StoredFile:
        """Store a file under a new id."""
        self.made += 1
        id = f"file-{digest_bytes(content, str(self.made).encode())[:24]}"
        self.files[id] = StoredFile(id, name, purpose, content, int(time.time()))
        return self.files[id]

    def begin(self, file: StoredFile, endpoint: str, metadata: dict[str, str] | None) -> Batch:
        """A new batch of a file's lines."""
        self.made += 1
        id = f"batch_{digest_bytes(file.id.encode(), str(self.made).encode())[:24]}"
        lines, errors = read_lines(file.content, endpoint)
        self.batches[id] = Batch(
            id, file.id, endpoint, metadata, int(time.time()), self.clock(), lines, errors
        )  # fmt: skip
        return self.batches[id]

    def part(self, batch: Batch) -> float:
        """How much of its time is over, 0 to 1; it stands still from where the batch was cancelled."""
        passed = self.clock() - batch.began if batch.cancelled_s is None else batch.cancelled_s
        return min(1.0, passed / self.seconds) if self.seconds > 0 else 1.0

    def status(self, batch: Batch) -> str:
        part = self.part(batch)
        if batch.cancelled_s is not None:
            return "cancelled"
        if part < VALIDATED:
            return "validating"
        if batch.errors:
            return "failed"
        return "in_progress" if part < RUN else "finalizing" if part < 1 else "completed"

    async def advance(self, batch: Batch) -> None:
        """Answer the lines that are due, and close the files when all is over."""
        part = self.part(batch)
        due = 0 if batch.errors else int(len(batch.lines) * min(1.0, max(0.0, part - VALIDATED) / (RUN - VALIDATED)))
        due = len(batch.lines) if part >= RUN and not batch.errors else due
        while batch.done < due:
            self._line(batch, batch.lines[batch.done])
            if batch.done % TURN == 0:
                await asyncio.sleep(0)
        if self.status(batch) in ("completed", "cancelled") and not (batch.output_file or batch.error_file):
            self._close(batch)

    def _line(self, batch: Batch, line: dict[str, Any]) -> None:
        batch.done += 1
        status, body = self.answer(batch.endpoint, line["body"])
        usage = body.get("usage", {})
        batch.prompt_tokens += usage.get("prompt_tokens", 0)
        batch.completion_tokens += usage.get("completion_tokens", 0)
        name = f"{batch.id}_{batch.done}"
        response = {"status_code": status, "request_id": f"req_{name}", "body": body}
        said = {"id": f"batch_req_{name}", "custom_id": line["custom_id"], "response": response, "error": None}
        (batch.completed if status == 200 else batch.failed).append(json.dumps(said))

    def _close(self, batch: Batch) -> None:
        for kind, lines in (("output", batch.completed), ("error", batch.failed)):
            if lines:
                content = "".join(f"{line}\n" for line in lines).encode()
                setattr(batch, f"{kind}_file", self.keep(f"{batch.id}_{kind}.jsonl", "batch_output", content).id)


def read_lines(content: bytes, endpoint: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The requests of a batch file, and what is wrong with it: then nothing of it is run, as at OpenAI."""
    lines: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    names: set[str] = set()
    texts = content.decode("utf-8", "replace").splitlines()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        line = _parsed(text)
        code, message = _fault_of_line(line, endpoint, names)
        if code:
            errors.append({"code": code, "line": number, "message": message, "param": None})
        elif isinstance(line, dict):
            names.add(line["custom_id"])
            lines.append(line)
    if not lines and not errors:
        errors.append({"code": "empty_file", "line": None, "message": "The input file is empty.", "param": None})
    if len(lines) > MOST_LINES:
        message = f"A batch may have {MOST_LINES} requests, this one has {len(lines)}."
        errors.append({"code": "too_many_requests", "line": None, "message": message, "param": None})
    return lines, errors


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _fault_of_line(line: Any, endpoint: str, names: set[str]) -> tuple[str, str]:
    if not isinstance(line, dict):
        return "invalid_json_line", "This line is not parseable as a JSON object."
    if not isinstance(line.get("custom_id"), str) or not isinstance(line.get("body"), dict):
        return "missing_required_parameter", "A line needs a custom_id and a body."
    if line["custom_id"] in names:
        return "duplicate_custom_id", f"The custom_id {line['custom_id']!r} is not unique in this file."
    if line.get("method") != "POST" or line.get("url") != endpoint:
        return "mismatched_endpoint", f"Every line must be a POST to {endpoint}, as the batch is."
    return "", ""


def shown(desk: Desk, batch: Batch, status: str = "") -> dict[str, Any]:
    """The batch as `openai.types.Batch`; `status` where it is not what the clock says."""
    status = status or desk.status(batch)
    counts = {"total": len(batch.lines), "completed": len(batch.completed), "failed": len(batch.failed)}
    used = {"input_tokens": batch.prompt_tokens, "output_tokens": batch.completion_tokens}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if status == "failed" else None,
        "input_file_id": batch.file,
        "completion_window": "24h",
        "status": status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created_at,
        "expires_at": batch.created_at + DAY_S,
        **_times(desk, batch, status),
        "request_counts": counts,
        "usage": used | details | {"total_tokens": batch.prompt_tokens + batch.completion_tokens},
        "metadata": batch.metadata,
    }


def _times(desk: Desk, batch: Batch, status: str) -> dict[str, int | None]:
    """When the batch reached what it has reached, in Unix time."""
    part, ended = desk.part(batch), batch.created_at + int(batch.cancelled_s or 0)
    reached = {"in_progress_at": VALIDATED, "finalizing_at": RUN, "completed_at": 1.0}
    times: dict[str, int | None] = {
        name: batch.created_at + int(desk.seconds * at) if part >= at and not batch.errors else None
        for name, at in reached.items()
    }
    times["failed_at"] = batch.created_at + int(desk.seconds * VALIDATED) if status == "failed" else None
    stopped = batch.cancelled_s is not None
    return times | {
        "completed_at": times["completed_at"] if status == "completed" else None,
        "cancelling_at": ended if stopped else None,
        "cancelled_at": ended if status == "cancelled" else None,
        "expired_at": None,
    }


# ── the routes ────────────────────────────────────────────────────────────────────────────────────────────────────


def routes(desk: Desk) -> list[Route]:
    """/v1/files and /v1/batches, over a desk."""

    def on(handler: Callable[[Desk, Request], Any]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            return await handler(desk, request)

        return handle

    return [
        Route("/v1/files", on(_upload), methods=["POST"]),
        Route("/v1/files", on(_list_files)),
        Route("/v1/files/{id}", on(_file)),
        Route("/v1/files/{id}", on(_delete), methods=["DELETE"]),
        Route("/v1/files/{id}/content", on(_content)),
        Route("/v1/batches", on(_create), methods=["POST"]),
        Route("/v1/batches", on(_list_batches)),
        Route("/v1/batches/{id}", on(_batch)),
        Route("/v1/batches/{id}/cancel", on(_cancel), methods=["POST"]),
    ]


async def _upload(desk: Desk, request: Request) -> Response:
    if int(request.headers.get("content-length") or 0) > LARGEST:
        return refusal(413, f"a file may have {LARGEST} bytes")
    async with request.form() as form:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile) or purpose != "batch":
            return refusal(400, "a multipart form with a 'file' and purpose 'batch' is wanted", "purpose")
        return JSONResponse(desk.keep(file.filename or "batch.jsonl", "batch", await file.read()).shown())


async def _list_files(desk: Desk, request: Request) -> Response:
    return _page(request, [file.shown() for file in reversed(desk.files.values())])


async def _file(desk: Desk, request: Request) -> Response:
    file = desk.files.get(request.path_params["id"])
    return JSONResponse(file.shown()) if file else _no_such("file", request)


async def _delete(desk: Desk, request: Request) -> Response:
    file = desk.files.pop(request.path_params["id"], None)
    return JSONResponse({"id": file.id, "object": "file", "deleted": True}) if file else _no_such("file", request)


async def _content(desk: Desk, request: Request) -> Response:
    file = desk.files.get(request.path_params["id"])
    return Response(file.content, media_type="application/octet-stream") if file else _no_such("file", request)


async def _create(desk: Desk, request: Request) -> Response:
    asked = _parsed((await request.body()).decode("utf-8", "replace"))
    if not isinstance(asked, dict):
        return refusal(400, "the body must be a JSON object")
    if asked.get("endpoint") not in ENDPOINTS:
        return refusal(400, f"a batch is for one of {', '.join(ENDPOINTS)}", "endpoint")
    if asked.get("completion_window") != "24h":
        return refusal(400, "the completion_window must be '24h'", "completion_window")
    file = desk.files.get(str(asked.get("input_file_id")))
    if file is None or file.purpose != "batch":
        return refusal(400, f"no file {asked.get('input_file_id')!r} with purpose 'batch'", "input_file_id")
    batch = desk.begin(file, asked["endpoint"], asked.get("metadata"))
    return JSONResponse(shown(desk, batch, "validating"))


async def _list_batches(desk: Desk, request: Request) -> Response:
    for batch in desk.batches.values():
        await desk.advance(batch)
    return _page(request, [shown(desk, batch) for batch in reversed(desk.batches.values())])


async def _batch(desk: Desk, request: Request) -> Response:
    batch = desk.batches.get(request.path_params["id"])
    if batch is None:
        return _no_such("batch", request)
    await desk.advance(batch)
    return JSONResponse(shown(desk, batch))


async def _cancel(desk: Desk, request: Request) -> Response:
    batch = desk.batches.get(request.path_params["id"])
    if batch is None:
        return _no_such("batch", request)
    await desk.advance(batch)
    if (status := desk.status(batch)) not in OPEN:
        return refusal(400, f"Cannot cancel a batch with status '{status}'.")
    batch.cancelled_s = desk.clock() - batch.began
    return JSONResponse(shown(desk, batch, "cancelling"))


def _no_such(kind: str, request: Request) -> Response:
    return refusal(404, f"No {kind} found with id '{request.path_params['id']}'.", "id")


def _page(request: Request, found: list[dict[str, Any]]) -> Response:
    """One page of a list, newest first, by OpenAI's cursor: `after` an id, `limit` of them."""
    limit, after = request.query_params.get("limit", "20"), request.query_params.get("after")
    if not limit.isdecimal():
        return refusal(400, "'limit' must be a number", "limit")
    ids = [one["id"] for one in found]
    start = ids.index(after) + 1 if after in ids else 0
    page = found[start : start + int(limit)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": page, **ends, "has_more": start + len(page) < len(found)})
