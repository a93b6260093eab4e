"""A stand-in trainer for tests and benchmarks: no model, only bytes that name what they were made from."""

import time
from collections.abc import Sequence

from grpo_ray.canonical import canonical, digest
from grpo_ray.protocols import Trainer
from grpo_ray.types import Adapter, AdapterBytes, Lesson, Slope, Update


def make_trainer(*, model: str, seconds: float = 0.0) -> Trainer:
    """An update takes `seconds`."""
    return Canned(model, seconds)


class Canned:
    def __init__(self, model: str, seconds: float) -> None:
        self.model = model
        self.seconds = seconds

    def update(
        self, adapter: Adapter | None, content: AdapterBytes | None, lessons: Sequence[Lesson], seed: int
    ) -> Update:
        if adapter and content is None:
            raise ValueError(f"the bytes of adapter {adapter.hash} did not come with the lessons")
        time.sleep(self.seconds)
        before = content.weights.decode() if content else self.model
        taught = [
            (scored.rollout.id, a)
            for one in lessons
            for scored, a in zip(one.group.rollouts, one.advantages, strict=True)
        ]
        weights = canonical({"before": digest(before), "taught": digest(taught), "seed": seed})
        optimizer = canonical({"updates": adapter.version + 1 if adapter else 1})
        size = sum(abs(a) for _, a in taught) / max(1, len(taught))
        return Update(AdapterBytes(weights.encode(), optimizer.encode()), (("advantage_size", size),))

    def begin(
        self,
        adapter: Adapter | None,
        content: AdapterBytes | None,
        lessons: Sequence[Lesson],
        seed: int,
        rank: int = 0,
        of: int = 1,
    ) -> int:
        self.work = (adapter, content, lessons, seed)
        return 1

    def slope(self, step: int) -> Slope:
        return Slope(b"", 0.0, (), 0)

    def apply(self, slopes: Sequence[Slope]) -> str:
        return ""

    def end(self) -> Update:
        return self.update(*self.work)

    def close(self) -> None:
        """Nothing to give back."""
