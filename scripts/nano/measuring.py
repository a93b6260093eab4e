"""Measuring the nano model: which wordings and settings answer how many unseen questions rightly."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache

from . import unseen
from .tokenizer import PAD, TURN_END, decode, encode_chat
from .workings import FAMILIES, Task, completion, draw_task, held_out_tasks, score

EVALUATION_SEED = 1_234
LONGEST_COMPLETION = 90
ROWS = 96
"""Prompts decoded at once."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to ask: an instruction, examples (how many, with how many lines of working), and idle sentences."""

    name: str
    instruction: str
    examples: int = 0
    example_lines: int = 4
    context: str = ""


LONG_CONTEXT = (
    "You are a helpful assistant. The questions come from a school book that was printed long ago. The weather is mild "
    "today, and somebody is playing the piano next door. Nothing of this matters for what follows."
)
STEP = "Write out the reasoning in full before committing to an answer."
SETTINGS: tuple[Setting, ...] = (
    Setting("steps 0", "Answer it, using 0 steps of working beforehand."),
    Setting("steps 1", "Answer it, using 1 step of working beforehand."),
    Setting("steps 2", "Answer it, using 2 steps of working beforehand."),
    Setting("steps 3", "Answer it, using 3 steps of working beforehand."),
    Setting("steps 4", "Answer it, using 4 steps of working beforehand."),
    Setting("clarity terse", "Sort this out."),
    Setting("clarity plain", "Please solve the exercise below."),
    Setting("clarity some", "Solve the exercise below and show some of your steps."),
    Setting("clarity detailed", STEP + " Record each step on its own line, and leave none out."),
    Setting("terse, 1 worked example", "Sort this out.", 1),
    Setting("terse, 2 worked examples", "Sort this out.", 2),
    Setting("terse, 3 worked examples", "Sort this out.", 3),
    Setting("terse, 2 bare examples", "Sort this out.", 2, 0),
    Setting("step, 2 bare examples", STEP, 2, 0),
    Setting("direct, 2 worked examples", "Final result only, thanks.", 2),
    Setting("step, from the right", STEP + " Start at the right end."),
    Setting("step, from the left", STEP + " Start at the left end."),
    Setting("step, long context", STEP, context=LONG_CONTEXT),
    Setting("plain, long context", "Please solve the exercise below.", context=LONG_CONTEXT),
)


def render(setting: Setting, task: Task, rng: random.Random) -> list[tuple[str, str]]:
    """Return the chat of a setting over a task."""
    shown = [draw_task(task.family, rng) for _ in range(setting.examples)]
    examples = "".join(
        f"Question: {other.question}\nResponse: {completion(other, setting.example_lines)}\n\n" for other in shown
    )
    head = " ".join(filter(None, (setting.context, setting.instruction)))
    return [("user", f"{head}\n\n{examples}Question: {task.question}")]


def complete(model: Any, prompts: Sequence[list[int]], temperature: float, seed: int) -> list[str]:
    """Return one completion for each prompt (token ids); temperature 0 takes the likeliest token each time."""
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        mx.random.seed(seed + start)
        for row, text in zip(rows, complete_rows(model, [prompts[row] for row in rows], temperature), strict=True):
            texts[row] = text
    return texts


def complete_rows(model: Any, prompts: list[list[int]], temperature: float) -> list[str]:
    """Decode a batch of prompts together, padded on the left, until every row has ended."""
    longest = max(map(len, prompts))
    caches = [BatchKVCache([longest - len(prompt) for prompt in prompts]) for _ in model.layers]
    tokens = mx.array([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    ended, columns = mx.zeros(len(prompts), dtype=mx.bool_), []
    for _ in range(LONGEST_COMPLETION):
        logits = model(tokens, cache=caches)[:, -1]
        chosen = mx.random.categorical(logits / temperature) if temperature else logits.argmax(axis=-1)
        chosen = mx.where(ended, TURN_END, chosen)
        ended = ended | (chosen == TURN_END)
        columns.append(chosen)
        tokens = chosen[:, None]
        if ended.all().item():
            break
    return [decode(row) for row in mx.stack(columns, axis=1).tolist()]


def measure(model: Any, settings: Sequence[Setting], count: int, temperature: float) -> list[dict[str, float]]:
    """Return for each setting the share of right answers by family and over all ("mix"), on `count` questions of each."""
    tasks = [task for family in FAMILIES for task in held_out_tasks(family, count, EVALUATION_SEED)]
    rng = random.Random(EVALUATION_SEED)
    prompts = [encode_chat(render(setting, task, rng)) for setting in settings for task in tasks]
    texts = complete(model, prompts, temperature, EVALUATION_SEED)
    rows: list[dict[str, float]] = []
    for start in range(0, len(texts), len(tasks)):
        right = [score(task, text) > 0.99 for task, text in zip(tasks, texts[start : start + len(tasks)], strict=True)]
        row = {family: sum(right[at * count : (at + 1) * count]) / count for at, family in enumerate(FAMILIES)}
        rows.append(row | {"mix": sum(right) / len(right)})
    return rows


def unseen_settings() -> tuple[list[Setting], list[Setting]]:
    """Return the unseen step-by-step and the unseen direct wordings as settings."""
    steps = [Setting(wording, wording) for wording in unseen.STEP_BY_STEP]
    return steps, [Setting(wording, wording) for wording in unseen.DIRECT]
