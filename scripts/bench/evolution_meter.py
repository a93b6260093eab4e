"""What every search of a simulated world is given: rollouts on a budget, counted one by one."""

from collections import Counter
from dataclasses import dataclass

from evolution_words import Candidate
from evolution_worlds import World


class Spent(Exception):
    """A rollout was asked for beyond the budget."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search returns: its best text, and what it used."""

    text: str
    rollouts: int
    replies: int
    """How often it asked the reflector."""


class Meter:
    """A world's rollouts on a budget."""

    def __init__(self, world: World, budget: int) -> None:
        self.world, self.budget, self.spent = world, budget, 0
        self._repeats: Counter[tuple[Candidate, int]] = Counter()

    @property
    def left(self) -> int:
        return self.budget - self.spent

    def roll(self, text: str, number: int) -> tuple[float, str]:
        """(score, feedback) of one rollout of a text on the task of that number. Raises Spent."""
        if self.spent >= self.budget:
            raise Spent(f"all {self.budget} rollouts are spent")
        candidate = self.world.parse(text)
        repeat = self._repeats[candidate, number]
        self._repeats[candidate, number] += 1
        at = self.spent / self.budget
        self.spent += 1
        return self.world.score(candidate, number, repeat, at)
