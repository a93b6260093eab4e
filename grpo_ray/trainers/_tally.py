"""What an update measures, and the bounds it must stay within to be kept."""

import math
import time
from dataclasses import dataclass, field, fields

from grpo_ray.errors import ConfigError
from grpo_ray.trainers.losses import STATS

SUMS = (*STATS, "entropy", "mismatch")
"""Sums over tokens that every group's pass returns, in order."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Means over a batch's tokens beyond which an update has diverged; None: no bound."""

    kl: float | None = 1e3
    ratio: float | None = 1e3
    entropy: float | None = None
    """The least."""
    grad_norm: float | None = None

    def __post_init__(self) -> None:
        wrong = [f.name for f in fields(self) if (value := getattr(self, f.name)) is not None and value < 0]
        if wrong:
            raise ConfigError(f"the bound on {', '.join(wrong)} is negative; give a number from 0 on, or null for none")

    def fault(self, loss: float, grad_norm: float, means: dict[str, float]) -> str:
        """Why a batch's numbers can't be learnt from, or ""."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"the update diverged: loss {loss}, gradient norm {grad_norm}"
        seen = {"kl": means["kl"], "ratio": means["ratio"], "grad_norm": grad_norm}
        over = [
            f"{name} {value:g} above {most:g}"
            for name, value in seen.items()
            if (most := getattr(self, name)) is not None and not value <= most
        ]
        if self.entropy is not None and not means["entropy"] >= self.entropy:
            over.append(f"entropy {means['entropy']:g} below {self.entropy:g}")
        return f"the update diverged: {', '.join(over)}" if over else ""


@dataclass(slots=True)
class Batch:
    """Sums over one batch's tokens."""

    loss: float = 0.0
    sums: list[float] = field(default_factory=lambda: [0.0] * len(SUMS))
    tokens: int = 0

    def add(self, loss: float, sums: list[float], tokens: int) -> None:
        self.loss += loss
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)]
        self.tokens += tokens

    def means(self) -> dict[str, float]:
        return {name: total / self.tokens for name, total in zip(SUMS, self.sums, strict=True)}


@dataclass(slots=True)
class Tally:
    """The batches of an update and the means they come to."""

    mean_length: float
    began: float = field(default_factory=time.monotonic)
    batches: list[Batch] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def step(self, batch: Batch, grad_norm: float) -> None:
        self.batches.append(batch)
        self.norms.append(grad_norm)

    def metrics(self) -> tuple[tuple[str, float], ...]:
        """Means over steps (loss, grad_norm) and tokens; `mismatch`, trainer against sampler, is the first batch's,
        before anything moved."""
        whole = Batch()
        for batch in self.batches:
            whole.add(batch.loss, batch.sums, batch.tokens)
        means = whole.means()
        steps, seconds = len(self.batches), time.monotonic() - self.began
        return (
            ("loss", whole.loss / steps),
            ("grad_norm", sum(self.norms) / steps),
            ("clip_share", means["clip_low"] + means["clip_high"]),
            *((name, means[name]) for name in (*STATS, "entropy")),
            ("mismatch", self.batches[0].means()["mismatch"]),
            ("mean_length", self.mean_length),
            ("tokens", float(whole.tokens)),
            ("tokens_per_s", whole.tokens / seconds),
            ("seconds", seconds),
        )
