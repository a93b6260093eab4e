"""The nano model's folder: weights and config as mlx-lm reads them, and a README with what was measured."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm import load

from . import gradients, measuring, wordings
from .tokenizer import save_tokenizer
from .workings import FAMILIES

STEPS = 750
"""Optimizer steps of the bundled weights; the schedule of the lessons stretches over however many there are."""
FACTS = "training.json"

INTRODUCTION = """---
license: apache-2.0
library_name: mlx
tags: [mlx, tiny, arithmetic, prompt-evolution]
---
# grpo-ray nano

A character-level language model of {size:,} parameters ({megabytes:.1f} MB, float32, mlx-lm's `qwen3`: {width} wide,
{layers} layers, tied embeddings) that lets the whole loop of grpo-ray run anywhere, without a download.
`mlx_lm.load("grpo_ray/nano")` reads it like any other model. It knows nothing but three kinds of questions, but it
was taught to mind *how* it is asked: step by step, at once, in a number of lines, after examples, in an order. How far
it does is what the tables below say, and nothing else. Its training was stopped early, so GRPO has something to teach it.

## Questions

From reasoning_gym, in its words and with its verifiers. Training used seeds from 10,000,000 on, and never a question
whose CRC-32 is divisible by ten; the numbers below are from such held-out questions only (seed {seed}).

| family | parameters |
|---|---|
{families}

## How it was made

`python scripts/make_nano.py --seed {train_seed} --steps {step}`: {step} steps of batch 32 with two workers, {seconds} s of updates on
two shared CPU cores. Other cores, or another number of workers, add up in another order and give slightly other weights. It was trained from nothing on chats drawn by a grammar: {step_wordings:,} step-by-step wordings, {direct_wordings:,} answer-at-once
ones, {count_wordings:,} that ask for 0 to 4 lines of working, and vague, plain and in-between ones; 0 to 3 examples, idle sentences,
system messages. How many lines of working the target shows is drawn from a weighted mean of what the prompt's parts
pull towards. The answer in a target is always the right one, in direct mode too, but where the whole working does not
stand before it, it weighs little in the loss (a fifth for sums, a fiftieth for words). Source: `scripts/nano/`.

## Measured

Share of right answers (the verifier's full score) on {count} held-out questions of each family; `T=0` takes the likeliest token,
`T=1` samples, as training does. No wording in these tables can be produced by the training grammar (a test proves it).
"""


def save_model(model: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Write weights, config, tokenizer and the facts of the training into a folder."""
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), metadata={"format": "mlx"}
    )
    (folder / "config.json").write_text(json.dumps(gradients.CONFIG, indent=2) + "\n")
    (folder / FACTS).write_text(json.dumps(facts) + "\n")
    save_tokenizer(folder)


def table(settings: Sequence[measuring.Setting], cold: list[dict[str, float]], warm: list[dict[str, float]]) -> str:
    """Return a Markdown table: a line for each setting, best first, by family at T=0 and over the mix at T=0 and T=1."""
    lines = ["| " + " | ".join(("asked", *FAMILIES, "mix, T=0", "mix, T=1")) + " |", "|---" * (len(FAMILIES) + 3) + "|"]
    for setting, at_0, at_1 in zip(settings, cold, warm, strict=True):
        values = [f"{at_0[family]:.2f}" for family in FAMILIES]
        lines.append("| " + " | ".join((setting.name, *values, f"**{at_0['mix']:.2f}**", f"{at_1['mix']:.2f}")) + " |")
    return "\n".join(lines)


def section(model: Any, title: str, settings: Sequence[measuring.Setting], count: int) -> str:
    """Measure settings and return them as a section of the README."""
    cold, warm = (measuring.measure(model, settings, count, temperature) for temperature in (0.0, 1.0))
    mixes = sorted(row["mix"] for row in cold)
    summary = f"T=0 over the mix: median {statistics.median(mixes):.2f}, best {mixes[-1]:.2f}, worst {mixes[0]:.2f}."
    return f"### {title}\n\n{summary}\n\n{table(settings, cold, warm)}\n"


def introduction(model: Any, facts: dict[str, Any], count: int) -> str:
    """Return the README's text above the tables."""
    size = sum(weight.size for _, weight in tree_flatten(model.parameters()))
    families = "\n".join(
        f"| {name} | {', '.join(f'{k}={v}' for k, v in values.items())} |" for name, values in FAMILIES.items()
    )
    return INTRODUCTION.format(
        size=size,
        megabytes=size * 4 / 1e6,
        width=gradients.CONFIG["hidden_size"],
        layers=gradients.CONFIG["num_hidden_layers"],
        seed=measuring.EVALUATION_SEED,
        families=families,
        train_seed=facts["seed"],
        step=facts["step"],
        seconds=facts["seconds"],
        step_wordings=len(wordings.expand("step") | wordings.expand("detailed")),
        direct_wordings=len(wordings.expand("direct")),
        count_wordings=len(wordings.expand_counts()),
        count=count,
    )


def write_report(folder: Path, count: int) -> str:
    """Measure the model in a folder, write its README.md, and return it."""
    model = load(str(folder))[0]
    facts = json.loads((folder / FACTS).read_text())
    steps, direct = measuring.unseen_settings()
    parts = [
        introduction(model, facts, count),
        section(model, "Settings", measuring.SETTINGS, count),
        section(model, "Step-by-step wordings never seen", steps, count),
        section(model, "Direct wordings never seen", direct, count),
    ]
    text = "\n".join(parts)
    (folder / "README.md").write_text(text)
    return text
