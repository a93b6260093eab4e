"""What the nano model is asked, and how each question is worked out on paper, line by line.

Questions are worded by reasoning_gym itself. A working is a list of short lines; "from the right" (the last digit or
letters first) is the good order, because carries are then known when they are needed.
"""

import functools
import random
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import reasoning_gym

Order = Literal["right", "left"]

FAMILIES: dict[str, dict[str, int]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    "spell_backward": {"min_word_len": 7, "max_word_len": 8},
}
TRAINING_SEED = 10_000_000
"""Training questions come from reasoning_gym seeds at and above this number; everything else stays below 1,000,000."""
HELD_OUT_SHARE = 10
"""One question in this many (by a hash of its text) is never trained on; the evaluation asks only those."""


@dataclass(frozen=True, slots=True)
class Task:
    """One question, its right answer, and the things its working is made of (two numbers and a sign, or a word)."""

    family: str
    question: str
    answer: str
    parts: tuple[str, ...]


@functools.cache
def dataset(family: str, seed: int) -> Any:
    """Return reasoning_gym's endless list of questions of one family (size is virtual)."""
    return reasoning_gym.create_dataset(family, seed=seed, size=2_000_000_000, **FAMILIES[family])


def is_held_out(question: str) -> bool:
    """Say whether a question is kept out of training."""
    return zlib.crc32(question.encode()) % HELD_OUT_SHARE == 0


def make_task(family: str, entry: dict[str, Any]) -> Task:
    """Turn one entry of reasoning_gym into a Task."""
    metadata = entry["metadata"]
    parts = (metadata["word"],) if family == "spell_backward" else tuple(metadata["expression"].split(" "))
    return Task(family, entry["question"], entry["answer"], parts)


def draw_task(family: str, rng: random.Random) -> Task:
    """Draw one training question."""
    while True:
        entry = dataset(family, TRAINING_SEED)[rng.randrange(1_000_000_000)]
        if not is_held_out(entry["question"]):
            return make_task(family, entry)


def held_out_tasks(family: str, count: int, seed: int) -> list[Task]:
    """Return `count` different questions of a family that training never saw."""
    found: dict[str, Task] = {}
    index = 0
    while len(found) < count:
        entry = dataset(family, seed)[index]
        if is_held_out(entry["question"]):
            found.setdefault(entry["question"], make_task(family, entry))
        index += 1
    return list(found.values())


def score(task: Task, completion: str) -> float:
    """Return reasoning_gym's score (0 to 1) of what stands after the completion's last `Answer:`."""
    _, found, answer = completion.rpartition("Answer:")
    if not found:
        return 0.0
    return float(dataset(task.family, 0).score_answer(answer.strip(), {"answer": task.answer}))


def full_length(task: Task) -> int:
    """Return how many lines the whole working of a task has (3 or 4)."""
    return 3 if task.family == "chain_sum" else 4


def working(task: Task, order: Order = "right") -> list[str]:
    """Return the whole working of a task as lines, without the answer line."""
    if task.family == "spell_backward":
        return spelling_lines(task.parts[0], order)
    left, sign, right = task.parts
    if sign == "*":
        return product_lines(left, right, order)
    return sum_lines(left, right, order) if sign == "+" else difference_lines(left, right, order)


def completion(task: Task, lines: int, order: Order = "right") -> str:
    """Return a completion that shows the first `lines` lines of the working, then the right answer."""
    return "\n".join([*working(task, order)[:lines], f"Answer: {task.answer}"])


def sum_lines(left: str, right: str, order: Order) -> list[str]:
    """Add digit by digit, with the carry: 345 + 678 gives 5+8+0=13, 4+7+1=12, 3+6+1=10.

    All lines of a kind are equally wide, so that what they need stands at the same distance: a small model learns this
    several times faster. From the left no carry is known, and the answer must find it out.
    """
    lines, carry = [], 0
    for a, b in zip(reversed(left), reversed(right), strict=True):
        total = int(a) + int(b) + carry
        lines.append(f"{a}+{b}+{carry}={total:02}")
        carry = total // 10
    if order == "right":
        return lines
    return [f"{a}+{b}+?={int(a) + int(b):02}" for a, b in zip(left, right, strict=True)]


def difference_lines(left: str, right: str, order: Order) -> list[str]:
    """Take the smaller number from the larger: 914 - 377 gives 14-7-0=7, 11-7-1=3, 09-3-1=5 (what is borrowed is shown)."""
    high, low = (left, right) if int(left) >= int(right) else (right, left)
    if order == "left":
        return [f"{int(a) + 10 * (a < b):02}-{b}-?={(int(a) - int(b)) % 10}" for a, b in zip(high, low, strict=True)]
    lines, borrow = [], 0
    for a, b in zip(reversed(high), reversed(low), strict=True):
        short = int(a) - int(b) - borrow < 0
        top = int(a) + 10 * short
        lines.append(f"{top:02}-{b}-{borrow}={top - int(b) - borrow}")
        borrow = int(short)
    return lines


def product_lines(left: str, right: str, order: Order) -> list[str]:
    """Multiply two two-digit numbers crosswise; every line but the first adds what is carried so far.

    43 * 14 gives 3*4=12, 4*4+1=16+1=17, 3*1+17=03+17=020, 4*1+02=04+02=06: the answer is 6, then the last digits of the
    third and the first line. From the left nothing is carried, and the answer must do all the adding.
    """
    (a, b), (c, d) = (map(int, left), map(int, right))
    if order == "left":
        return [f"{x}*{y}={x * y:02}" for x, y in ((a, c), (a, d), (b, c), (b, d))]
    ones = b * d
    middle = a * d + ones // 10
    tens = b * c + middle
    top = a * c + tens // 10
    return [
        f"{b}*{d}={ones:02}",
        f"{a}*{d}+{ones // 10}={a * d:02}+{ones // 10}={middle:02}",
        f"{b}*{c}+{middle:02}={b * c:02}+{middle:02}={tens:03}",
        f"{a}*{c}+{tens // 10:02}={a * c:02}+{tens // 10:02}={top:02}",
    ]


def spelling_lines(word: str, order: Order) -> list[str]:
    """Turn a word round two letters at a time, from its end: foreknow gives ow>wo, kn>nk, re>er, fo>of."""
    ends = range(len(word), 0, -2)
    lines = [f"{chunk}>{chunk[::-1]}" for chunk in (word[max(end - 2, 0) : end] for end in ends)]
    return lines if order == "right" else lines[::-1]
