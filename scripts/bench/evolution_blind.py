"""Searches without a memory, on a simulated world: random search, and random candidates with successive halving."""

import random
from statistics import fmean

from evolution_meter import Meter, Outcome
from evolution_reflector import Reflector
from evolution_words import Candidate
from evolution_worlds import TASKS, World

LOOK = 20
"""Tasks that random search sees of each candidate."""
MOST_WHIMS = 6
RULES_DRAWN = 0.25


def random_search(world: World, budget: int, seed: int) -> Outcome:
    """The best of the start and of independent random candidates, each seen on the same 20 tasks."""
    meter, reflector, rng = Meter(world, budget), Reflector(world, seed), random.Random(f"random {seed}")
    tasks = rng.sample(range(TASKS), LOOK)
    means: dict[str, float] = {}
    while meter.left:
        text = _blind(world, reflector, rng) if means else world.seed_text()
        means[text] = fmean(meter.roll(text, number)[0] for number in tasks[: meter.left])
        if len(means) * LOOK > budget:
            del means[text]  # seen on fewer tasks than the others
    return Outcome(max(means, key=means.__getitem__), meter.spent, reflector.replies)


def halving(world: World, budget: int, seed: int) -> Outcome:
    """Successive halving of random candidates and of the reflector's edits of the start, on common tasks."""
    meter, reflector, rng = Meter(world, budget), Reflector(world, seed), random.Random(f"halving {seed}")
    size = 32 if budget < 600 else 64
    tasks = rng.sample(range(TASKS), TASKS)
    pool = _pool(world, meter, reflector, size, rng)
    scores: dict[str, list[float]] = {text: [] for text in pool}
    rounds = size.bit_length() - 1
    for turn in range(rounds):
        share = meter.left // (rounds - turn)
        for number in range(share):
            text = pool[number % len(pool)]
            scores[text].append(meter.roll(text, tasks[len(scores[text]) % TASKS])[0])
        seen = [text for text in pool if scores[text]]
        pool = sorted(seen, key=lambda text: -fmean(scores[text]))[: max(1, len(pool) // 2)]
    return Outcome(pool[0], meter.spent, reflector.replies)


def _pool(world: World, meter: Meter, reflector: Reflector, size: int, rng: random.Random) -> list[str]:
    """The start, and different candidates: half of them drawn blindly, half edits of the start by its feedback."""
    start = world.seed_text()
    evidence = [meter.roll(start, number) for number in rng.sample(range(TASKS), 6)]
    found = [start]
    while len(found) < size:
        if len(found) % 2:
            text = _blind(world, reflector, rng)
        else:
            text = reflector.reflect(start, rng.sample(evidence, 3))
            for _ in range(rng.randrange(MOST_WHIMS - 1)):
                text = reflector.whim(text)
        found += [] if text in found else [text]
    return found


def _blind(world: World, reflector: Reflector, rng: random.Random) -> str:
    """Uniform settings with a random quarter of all rules, or the start after some random edits."""
    if rng.random() < 0.5:
        text = world.seed_text()
        for _ in range(rng.randint(1, MOST_WHIMS)):
            text = reflector.whim(text, rng)
        return text
    settings = tuple(rng.randrange(len(labels)) for labels in world.words.values)
    rules = frozenset(index for index in range(len(world.words.topics)) if rng.random() < RULES_DRAWN)
    return world.words.text(Candidate(settings, rules))
