"""How the bundled server misbehaves on demand: which request meets which fault, and what the fault looks like.

Which one it is follows from the seed, the request's content and how often that same request has come: never from a
clock or from the order of different requests. So two runs meet the same faults, and a retry may succeed.
"""

import asyncio
import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from grpo_ray.errors import ConfigError
from grpo_ray.stand_ins.replies import refusal

KINDS: dict[str, str] = {
    "limited": "a 429 at once, with Retry-After",
    "no_quota": "a 429 at once, with the code insufficient_quota",
    "failed": "a 500",
    "hung": "no answer ever, until the client leaves",
    "cut": "the headers and half the body, then a closed connection",
    "garbled": "a 200 whose body is no JSON",
    "slow": "a good answer, after so many seconds more as --slow says",
    "malformed": "a completion whose text is broken JSON",
    "truncated": "a completion cut in half, with finish_reason length",
    "refused": "a completion with a refusal and no content",
}
"""What a client meets, by the fields of `Faults`."""
CONTENT = ("malformed", "truncated", "refused")
"""The faults of a completion's content; only chat can have them."""
IN_BATCH = ("failed", *CONTENT)
"""The faults that a line of a batch can meet."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares of requests, each 0 to 1, together at most 1; a request meets one fault or none. Raises ConfigError."""

    limited: float = 0.0
    no_quota: float = 0.0
    failed: float = 0.0
    hung: float = 0.0
    cut: float = 0.0
    garbled: float = 0.0
    slow: float = 0.0
    malformed: float = 0.0
    truncated: float = 0.0
    refused: float = 0.0
    seed: int = 0
    slow_s: float = 10.0

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in KINDS}
        wrong = [f"{name}={share}" for name, share in shares.items() if not 0 <= share <= 1]
        if wrong:
            raise ConfigError(f"a fault's share is from 0 to 1, got {', '.join(wrong)}")
        if math.fsum(shares.values()) > 1 + 1e-9:
            raise ConfigError(f"the faults' shares add up to {math.fsum(shares.values()):g}; make that 1 or less")
        if not 0 <= self.slow_s < math.inf:
            raise ConfigError(f"a slow answer takes 0 or more seconds more, got {self.slow_s}")


def fault_of(faults: Faults, key: str, occurrence: int) -> str:
    """The fault that the `occurrence`th request of content hash `key` meets, or ""."""
    drawn = uniform(faults.seed, "fault", key, occurrence)
    for name in KINDS:
        drawn -= getattr(faults, name)
        if drawn < 0:
            return name
    return ""


def latency(median_s: float, tail: float, seed: int, key: str, occurrence: int) -> float:
    """Seconds before a reply: `median_s`, times a log-normal factor of sigma `tail` (1: one in a hundred takes 10x)."""
    if not tail:
        return median_s
    return median_s * math.exp(tail * NormalDist().inv_cdf(uniform(seed, "latency", key, occurrence)))


def uniform(*parts: object) -> float:
    """A number inside (0, 1) that depends on the parts alone."""
    hashed = hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return ((int.from_bytes(hashed, "big") >> 12) + 0.5) / 2**52


async def client_stays(request: Request, seconds: float | None) -> bool:
    """Wait so long (None: for ever); False as soon as the client has left. The request's body must have been read."""
    if seconds is not None and seconds <= 0:
        return True
    try:
        async with asyncio.timeout(seconds):
            while (await request.receive())["type"] != "http.disconnect":
                continue
    except TimeoutError:
        return True
    return False


def limited(retry_after_s: float, message: str = "Too many requests") -> JSONResponse:
    """A 429 that asks to wait."""
    response = refusal(429, message, code="rate_limit_exceeded")
    response.headers["retry-after-ms"] = str(math.ceil(retry_after_s * 1000))
    response.headers["retry-after"] = str(math.ceil(retry_after_s))
    return response


def no_quota() -> JSONResponse:
    """A 429 that no waiting helps against."""
    return refusal(429, "You exceeded your current quota", code="insufficient_quota")


def broken(response: Response, fault: str) -> Response:
    """`response` as it leaves with a fault of the wire: "cut" or "garbled"; with any other it is as it was."""
    whole = bytes(response.body)
    if fault == "cut":
        return Cut(whole, media_type="application/json")
    if fault == "garbled":
        return Response(whole[: len(whole) // 2], media_type="application/json")
    return response


class Cut(Response):
    """Announces its whole length and sends half of it; the server then closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: len(self.body) // 2], "more_body": True})
