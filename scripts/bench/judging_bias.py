"""Whether biases that were planted in a simulated judge are found, with their sign and their size."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rows import row

from grpo_ray.trust.bias import Finding, alarms, biases, noisy_dimensions, position_preference

SIGMA = 0.12
"""The judge's own noise, in marks."""
GROUPS, SIZE = 60, 8
COMPARED = 1600
"""Comparisons: half of those that the groups' pairs give in both orders."""
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Planted:
    """The biases of a judge, each in its Finding's unit."""

    length: float = 0.0
    phrase: float = 0.0
    first: float = 0.5
    noise: float = 1.0

    @property
    def sizes(self) -> dict[Key, tuple[float, float]]:
        """Finding → (what was planted, what there is without it)."""
        return {
            ("length", "length"): (self.length, 0.0),
            ("feature", "phrase 0"): (self.phrase, 0.0),
            ("preference", "first place"): (self.first, 0.5),
            ("noise", "clarity"): (self.noise, 1.0),
        }


BIASED = Planted(length=0.5, phrase=0.8, first=0.6, noise=4.0)


def judge(seed: int, planted: Planted) -> list[Finding]:
    """What is found in one run of a judge: 12 tests. A harder task has fewer right answers, and longer ones."""
    rng = np.random.default_rng([29, seed])
    group = np.repeat(np.arange(GROUPS), SIZE)
    right = (rng.random(len(group)) < rng.beta(2, 2, GROUPS)[group]).astype(float)
    stretch = rng.normal(size=len(group))
    length = 6 + 0.6 * rng.normal(size=GROUPS)[group] + 0.4 * stretch
    phrases = {f"phrase {i}": (rng.random(len(group)) < 0.2).astype(float) for i in range(5)}
    pull = planted.length * stretch + planted.phrase * phrases["phrase 0"]
    score = 0.4 + 0.3 * right + 0.1 * rng.normal(size=GROUPS)[group] + SIGMA * (pull + rng.normal(size=len(group)))
    place = np.tile(np.arange(SIZE), GROUPS)
    found = biases(score, group, truth={"verifier": right}, length=length, position=place, features=phrases)
    sizes = {"clarity": np.sqrt(planted.noise), "logic": 1.0, "facts": 1.0, "relevance": 1.0}
    repeats = {name: 0.5 + 0.05 * size * rng.normal(size=(3, 60)) for name, size in sizes.items()}
    return [
        *found,
        position_preference(int(rng.binomial(COMPARED, planted.first)), COMPARED),
        *noisy_dimensions(repeats),
    ]


def bias_rows(seeds: int) -> list[dict[str, Any]]:
    """Each planted bias: how often it is found with its sign, how often its interval holds the truth."""
    runs = [judge(seed, BIASED) for seed in range(seeds)]
    raised = [{(a.finding.kind, a.finding.name) for a in alarms(run)} for run in runs]
    how = f"{GROUPS} groups of {SIZE}, {seeds} seeds, 12 tests a judge"
    found = []
    for key, (size, none) in BIASED.sizes.items():
        hits = [next(one for one in run if (one.kind, one.name) == key) for run in runs]
        signed = [(one.effect or none) > none and key in alarmed for one, alarmed in zip(hits, raised, strict=True)]
        covered = [one.low is not None and one.high is not None and one.low <= size <= one.high for one in hits]
        name = f"planted {key[0]} of {size:g}"
        found.append(
            row(f"{name}: found with its sign", 100 * float(np.mean(signed)), "%", bar=100, better="higher", how=how)
        )
        found.append(
            row(f"{name}: 95 % interval holds it", 100 * float(np.mean(covered)), "%", bar=90, better="higher", how=how)
        )
    clean = [bool(alarms(judge(seed, Planted()))) for seed in range(max(200, seeds))]
    how = f"{len(clean)} seeds of a judge without bias"
    return [*found, row("clean judges that raise an alarm", 100 * float(np.mean(clean)), "%", bar=5, how=how)]
