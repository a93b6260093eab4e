"""What the bundled server has served, in counts: what tests and benchmarks ask at /v1/_stats."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Record:
    """Counts since the start, or since they were last cleared. Only touched from the server's one thread."""

    requests: int = 0
    """What came with a body that could be read, for a model that is served; lines of batches too."""
    answered: int = 0
    """Whole answers sent, which a real server would have been paid for: 200, whatever their content is worth."""
    duplicates: int = 0
    """Good answers to a body that had had a good answer before: what was paid for twice."""
    abandoned: int = 0
    """Requests whose client left before the reply."""
    in_flight: int = 0
    most_in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    """How often each body has come past the rate limits, by content hash."""
    good: set[str] = field(default_factory=set)

    def arrived(self, model: str) -> None:
        """A request is here; `left` must follow."""
        self.requests += 1
        self.models[model] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def left(self) -> None:
        """Its reply is made, or its client gone."""
        self.in_flight -= 1

    def occurrence(self, key: str) -> int:
        """How often the body of content hash `key` had come before; from now on once more."""
        before = self.seen[key]
        self.seen[key] = before + 1
        return before

    def met(self, fault: str) -> None:
        """A request meets a fault ("": none)."""
        if fault:
            self.faults[fault] += 1

    def replied(self, key: str, status: int, fault: str, usage: dict[str, int]) -> None:
        """A reply goes out; one that a fault of the wire or of the content spoils is no good answer."""
        self.status[status] += 1
        if status != 200 or fault in ("cut", "garbled"):
            return
        self.answered += 1
        self.prompt_tokens += usage.get("prompt_tokens", 0)
        self.completion_tokens += usage.get("completion_tokens", 0)
        if fault in ("", "slow"):
            self.duplicates += key in self.good
            self.good.add(key)

    def clear(self) -> None:
        """Begin anew, also with what was seen how often; what is in flight stays counted."""
        fresh = Record(in_flight=self.in_flight, most_in_flight=self.in_flight)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))

    def counts(self) -> dict[str, Any]:
        """Everything as JSON."""
        names = ("requests", "answered", "duplicates", "abandoned", "in_flight", "most_in_flight")
        return {
            **{name: getattr(self, name) for name in names},
            "distinct": len(self.good),
            "status": {str(status): number for status, number in sorted(self.status.items())},
            "faults": dict(sorted(self.faults.items())),
            "models": dict(sorted(self.models.items())),
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
        }
