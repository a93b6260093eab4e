"""The LoRA trainer on a node that can hold its model."""

from collections.abc import Sequence

from grpo_ray.backends import make_trainer
from grpo_ray.protocols import Trainer as Backend
from grpo_ray.recipe import Named
from grpo_ray.types import Adapter, AdapterBytes, Lesson, Slope, Update


class Trainer:
    """Keeps nothing between updates but the model: what it trains from comes along, what it makes goes back."""

    def __init__(self, model: str, named: Named) -> None:
        self._model, self._named = model, named
        self._backend: Backend | None = None

    def open(self) -> None:
        """Load the model. Raises GrpoRayError where it can't be."""
        if self._backend is None:
            self._backend = make_trainer(self._model, self._named)

    def update(
        self, adapter: Adapter | None, content: AdapterBytes | None, lessons: Sequence[Lesson], seed: int
    ) -> Update:
        return self._opened().update(adapter, content, lessons, seed)

    def begin(
        self,
        adapter: Adapter | None,
        content: AdapterBytes | None,
        lessons: Sequence[Lesson],
        seed: int,
        rank: int,
        of: int,
    ) -> int:
        return self._opened().begin(adapter, content, lessons, seed, rank, of)

    def slope(self, step: int) -> Slope:
        return self._opened().slope(step)

    def apply(self, slopes: Sequence[Slope]) -> str:
        return self._opened().apply(slopes)

    def end(self) -> Update:
        return self._opened().end()

    def _opened(self) -> Backend:
        self.open()
        assert self._backend is not None
        return self._backend

    def __repr__(self) -> str:
        return f"Trainer[{self._model}]"
