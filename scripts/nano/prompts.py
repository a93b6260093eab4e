"""From wordings and questions to what the nano model is trained on: a chat and the completion it should answer with.

Every part of a prompt pulls towards a number of lines of working, each with a weight; the completion's length is drawn
from the weighted mean. So behaviour, and with it accuracy, changes smoothly with the wording, the examples and the
context, as it does (for less plain reasons) in large models.
"""

import random
from dataclasses import dataclass

from . import wordings
from .workings import FAMILIES, Order, Task, completion, draw_task, full_length

FULL = 4
Pull = tuple[float, tuple[float, ...]]
"""How strongly a part of the prompt pulls, and its probabilities of 0, 1, 2, 3 and 4 lines of working."""

PULLS: dict[wordings.Kind, Pull] = {
    "vague": (1.0, (0.46, 0.20, 0.16, 0.08, 0.10)),
    "plain": (1.5, (0.28, 0.18, 0.18, 0.12, 0.24)),
    "partial": (5.0, (0.05, 0.40, 0.40, 0.15, 0.00)),
    "step": (7.0, (0.00, 0.00, 0.00, 0.02, 0.98)),
    "detailed": (9.0, (0.00, 0.00, 0.00, 0.00, 1.00)),
    "direct": (7.0, (1.00, 0.00, 0.00, 0.00, 0.00)),
    "right": (1.0, (0.10, 0.10, 0.10, 0.20, 0.50)),
    "left": (1.0, (0.10, 0.10, 0.10, 0.20, 0.50)),
}
COUNT_WEIGHT = 16.0
EXAMPLE_WEIGHT = 2.0
CONTEXT_WEIGHT = 0.2

MIXES: tuple[tuple[tuple[str, ...], float], ...] = (
    (("step",), 0.22), (("detailed",), 0.10), (("direct",), 0.22), (("vague",), 0.07), (("plain",), 0.07),
    (("count",), 0.12), (("partial",), 0.05), (("right",), 0.01), (("left",), 0.01), (("step", "right"), 0.04),
    (("step", "left"), 0.04), (("plain", "count"), 0.03), (("step", "count"), 0.03), (("vague", "count"), 0.02),
    (("plain", "step"), 0.03), (("vague", "direct"), 0.03), (("plain", "direct"), 0.03), (("detailed", "left"), 0.01),
    (("detailed", "right"), 0.01), (("plain", "right"), 0.01), (("plain", "left"), 0.01), (("vague", "step"), 0.02),
)  # fmt: skip
"""Which kinds of sentences stand together in a prompt, and how often."""
SIMPLE_MIXES = ((("step",), 0.7), (("detailed",), 0.2), (("step", "right"), 0.1))


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example of a family: (role, content) messages, and the assistant's completion.

    The answer can be `seen` where the whole working stands before it; it weighs less in the loss where it cannot.
    """

    family: str
    messages: tuple[tuple[str, str], ...]
    completion: str
    seen: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """How far the lessons have come, in shares from 0 to 1.

    `bare` questions are cut short and come without instruction; `simple` instructions all ask for the full working.
    """

    bare: float
    simple: float
    few_shot: float
    long_context: float


def ramp(progress: float, start: float, end: float) -> float:
    """Return 0 before `start`, 1 after `end`, and the straight line between."""
    return min(1.0, max(0.0, (progress - start) / (end - start)))


def stage_at(progress: float) -> Stage:
    """Return the stage at a share of the training: bare questions, then full workings too, then all ways of asking."""
    bare = 1.0 - 0.5 * ramp(progress, 0.10, 0.20) - 0.5 * ramp(progress, 0.50, 0.60)
    variety = ramp(progress, 0.15, 0.25)
    return Stage(bare, 1.0 - variety, 0.22 * variety, 0.20 * variety)


def draw_sample(rng: random.Random, stage: Stage) -> Sample:
    """Draw a training example of a stage."""
    task = draw_task(rng.choices(tuple(FAMILIES), weights=(4, 3, 3))[0], rng)
    if rng.random() < stage.bare:
        return Sample(task.family, (("user", task.question.rpartition(": ")[2]),), completion(task, FULL), True)
    mixes = SIMPLE_MIXES if rng.random() < stage.simple else MIXES
    kinds = rng.choices([mix for mix, _ in mixes], weights=[share for _, share in mixes])[0]
    order: Order = "left" if "left" in kinds else "right"
    sentences, pulls = draw_sentences(kinds, rng)
    examples, example_lines = draw_examples(task.family, order, rng) if rng.random() < stage.few_shot else ([], 0)
    if examples:
        pulls.append((EXAMPLE_WEIGHT * len(examples), certain(example_lines)))
    idle = rng.choice((1, 1, 2, 3, 4)) if rng.random() < stage.long_context else 0
    pulls.append((CONTEXT_WEIGHT * idle, PULLS["vague"][1]))
    messages = arrange(wordings.context(idle, rng), " ".join(sentences), examples, task, rng)
    lines = draw_lines(pulls, rng)
    seen = lines >= full_length(task) and order == "right"
    return Sample(task.family, messages, completion(task, lines, order), seen)


def certain(lines: int) -> tuple[float, ...]:
    """Return the probabilities that put everything on one number of lines."""
    return tuple(float(lines == count) for count in range(FULL + 1))


def draw_sentences(kinds: tuple[str, ...], rng: random.Random) -> tuple[list[str], list[Pull]]:
    """Write one sentence of each kind, in any order, with what each pulls towards."""
    sentences: list[str] = []
    pulls: list[Pull] = []
    for kind in rng.sample(kinds, len(kinds)):
        if kind == "count":
            number = rng.randint(0, FULL)
            sentences.append(wordings.count_instruction(number, rng))
            pulls.append((COUNT_WEIGHT, certain(number)))
        else:
            sentences.append(wordings.instruction(kind, rng))  # pyright: ignore[reportArgumentType]
            pulls.append(PULLS[kind])  # pyright: ignore[reportArgumentType]
    return sentences, pulls


def draw_lines(pulls: list[Pull], rng: random.Random) -> int:
    """Draw a number of lines from the weighted mean of all pulls."""
    means = [sum(weight * shares[count] for weight, shares in pulls) for count in range(FULL + 1)]
    return rng.choices(range(FULL + 1), weights=means)[0]


def draw_examples(family: str, order: Order, rng: random.Random) -> tuple[list[str], int]:
    """Write one to three worked examples of a family, all with the same number of lines (which is returned)."""
    lines = rng.choices((0, 1, 2, FULL), weights=(30, 5, 10, 55))[0]
    tasks = [draw_task(family, rng) for _ in range(rng.choices((1, 2, 3), weights=(3, 2, 1))[0])]
    return [f"Question: {task.question}\nResponse: {completion(task, lines, order)}" for task in tasks], lines


def arrange(
    idle: str, instruction: str, examples: list[str], task: Task, rng: random.Random
) -> tuple[tuple[str, str], ...]:
    """Put the parts of a prompt in one of the orders that people use, with or without a system message."""
    question = f"Question: {task.question}" if examples or rng.random() < 0.5 else task.question
    place = rng.choices(("first", "last", "system"), weights=(72, 14, 14))[0]
    system = " ".join(filter(None, (idle, instruction))) if place == "system" else idle if rng.random() < 0.3 else ""
    ahead = "" if system else idle
    gap = rng.choice(("\n\n", "\n\n", "\n", " "))
    head = " ".join(filter(None, (ahead, instruction if place == "first" else "")))
    body = "\n\n".join([*examples, question])
    tail = instruction if place == "last" else ""
    user = ("user", gap.join(filter(None, (head, body, tail))))
    return (("system", system), user) if system else (user,)
