"""One generator backend on a node that can hold its model."""

from collections.abc import Iterator

from grpo_ray.backends import make_generator
from grpo_ray.protocols import Generator as Backend
from grpo_ray.protocols import Tunable
from grpo_ray.recipe import Recipe
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, SlotsFound, Wave


class Generator:
    """The backend is made at the first call, not in `__init__`, whose faults Ray would wrap into "the actor died".

    After a restart it is made again, and the adapter comes with the wave: nothing has to be told to a new process.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._backend: Backend | None = None

    def open(self) -> None:
        """Load the model. Raises GrpoRayError where it can't be."""
        if self._backend is None:
            self._backend = make_generator(self._recipe)

    def sample(self, wave: Wave, adapter: Adapter | None, content: AdapterBytes | None) -> Iterator[Group | LostGroup]:
        """The wave's groups, one by one (a streaming call)."""
        self.open()
        assert self._backend is not None
        yield from self._backend.sample(wave, adapter, content)

    def find_slots(self, wave: Wave) -> SlotsFound:
        """The slots that suit this node; the wave's own where the backend can't measure any."""
        self.open()
        return self._backend.find_slots(wave) if isinstance(self._backend, Tunable) else SlotsFound(wave.sampling.slots)

    def __repr__(self) -> str:
        return f"Generator[{self._recipe.model}]"
