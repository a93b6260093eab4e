"""The bundled server's rate limits: requests and tokens per minute and model, in token buckets, with OpenAI's headers."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.responses import JSONResponse

from grpo_ray.errors import ConfigError
from grpo_ray.stand_ins.replies import error

Clock = Callable[[], float]


@dataclass(slots=True)
class Bucket:
    """Fills at `limit` a minute, up to what `burst_s` seconds bring in; it begins full."""

    limit: int
    burst_s: float
    level: float = 0.0
    at: float = 0.0

    def refill(self, now: float) -> None:
        """Bring the level up to the time `now`, in seconds."""
        self.level = min(self.size, self.level + (now - self.at) * self.limit / 60)
        self.at = now

    @property
    def size(self) -> float:
        """The most that it holds; one request always fits."""
        return max(1.0, self.limit * self.burst_s / 60)

    def wait_s(self, cost: float) -> float:
        """Seconds until `cost` can be taken; infinite where it never can."""
        if cost > self.size:
            return math.inf
        return max(0.0, (cost - self.level) * 60 / self.limit)


@dataclass(slots=True)
class Limits:
    """One pair of buckets a model; a limit of 0 is none. Only used from the server's one thread."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    burst_s: float = 60.0
    clock: Clock = time.monotonic
    buckets: dict[str, dict[str, Bucket]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.requests_per_minute < 0 or self.tokens_per_minute < 0 or not 0 < self.burst_s < math.inf:
            raise ConfigError("limits per minute are 0 (none) or more, and the burst is more than 0 seconds")

    def take(self, model: str, tokens: int) -> JSONResponse | None:
        """Count one request of so many tokens, or say in a 429 how long to wait; then nothing is counted."""
        buckets, costs = self._of(model), {"requests": 1, "tokens": tokens}
        waits = {kind: bucket.wait_s(costs[kind]) for kind, bucket in buckets.items()}
        kind = max(waits, key=waits.__getitem__, default="")
        if kind and waits[kind] > 0:
            return _over(model, kind, buckets[kind], costs[kind], waits[kind])
        for kind, bucket in buckets.items():
            bucket.level -= costs[kind]
        return None

    def headers(self, model: str) -> dict[str, str]:
        """What is left of each limit, and when it will be whole again, as OpenAI says it."""
        said: dict[str, str] = {}
        for kind, bucket in self._of(model).items():
            said[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
            said[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(bucket.level)))
            said[f"x-ratelimit-reset-{kind}"] = duration((bucket.size - bucket.level) * 60 / bucket.limit)
        return said

    def _of(self, model: str) -> dict[str, Bucket]:
        now = self.clock()
        if model not in self.buckets:
            limits = {"requests": self.requests_per_minute, "tokens": self.tokens_per_minute}
            made = {kind: Bucket(limit, self.burst_s, at=now) for kind, limit in limits.items() if limit}
            for bucket in made.values():
                bucket.level = bucket.size
            self.buckets[model] = made
        for bucket in self.buckets[model].values():
            bucket.refill(now)
        return self.buckets[model]


def duration(seconds: float) -> str:
    """Seconds as OpenAI's headers write them: 120ms, 8.64s, 6m0s, 1h0m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole, rest = divmod(round(seconds, 3), 60)
    hours, minutes = divmod(int(whole), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if whole else "") + f"{round(rest, 3):g}s"


def _over(model: str, kind: str, bucket: Bucket, cost: float, wait_s: float) -> JSONResponse:
    what = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}[kind]
    used = max(0, math.floor(bucket.size - bucket.level))
    say = f"Rate limit reached for {model} on {what}: Limit {bucket.limit}, Used {used}, Requested {cost:g}."
    if math.isinf(wait_s):
        too_large = f"Request too large for {model} on {what}: Limit {bucket.size:g}, Requested {cost:g}."
        return JSONResponse(error(429, too_large, None, "rate_limit_exceeded", kind), 429)
    response = JSONResponse(
        error(429, f"{say} Please try again in {duration(wait_s)}.", None, "rate_limit_exceeded", kind), 429
    )
    response.headers["retry-after-ms"] = str(math.ceil(wait_s * 1000))
    response.headers["retry-after"] = str(math.ceil(wait_s))
    return response
