"""The learning rate over optimizer steps: a warm-up, then constant, a line or a half cosine down to nothing.

A pure function of the optimizer's own step count, so that an update done again is the same update.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from grpo_ray.errors import ConfigError

Shape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """`warmup` and `steps` count optimizer steps of the whole run; `steps` is where linear and cosine reach 0."""

    shape: Shape = "constant"
    warmup: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ConfigError(f"schedule is {self.shape!r}: it must be one of {', '.join(get_args(Shape))}")
        if self.warmup < 0:
            raise ConfigError(f"warmup_steps is {self.warmup}: it must be at least 0")
        if self.shape != "constant" and self.steps <= self.warmup:
            raise ConfigError(
                f"schedule_steps is {self.steps}: a {self.shape} schedule needs more steps than its warm-up's "
                f"{self.warmup}; give the number of optimizer steps of the whole run"
            )

    @property
    def flat(self) -> bool:
        return self.shape == "constant" and not self.warmup

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at optimizer step `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.shape == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return 1.0 - done if self.shape == "linear" else (1.0 + math.cos(math.pi * done)) / 2
