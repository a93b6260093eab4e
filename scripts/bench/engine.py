"""The engine beside its peers: sampling, training, memory, and what the loop and Ray add. Pairs in one run, medians.

Everything runs on a Qwen3 of random weights (4 layers, 128 wide, 4,096 words) that never ends a text early, with the same
BLAS for all. Peers come from scripts/bench/requirements.txt; a row whose peer is absent says so.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import bench_model
import engine_loop
import peers
from rows import arguments, publish, row

from grpo_ray.generators.mlx import make_generator
from grpo_ray.mlx_core import mx
from grpo_ray.trainers.mlx_lora import make_trainer
from grpo_ray.types import (
    Adapter,
    Group,
    Lesson,
    Message,
    Prompt,
    Reward,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
    Wave,
)

Row = dict[str, Any]
Run = Callable[[], object]
ADVANTAGES = (1.2, -0.8, 0.4, -0.4, 0.9, -1.3, 0.6, -0.6)
FIRST = Adapter("first", 1, None, 0)


def seconds(run: Run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compare(name: str, ours: Run, theirs: Run, pairs: int, bar: float, how: str) -> Row:
    """The ratio of the medians of `pairs` runs of each, taken in turns after one of each to warm up."""
    for run in (ours, theirs):
        run()
    times = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    mine, other = (median(column) for column in zip(*times, strict=True))
    return row(name, mine / other, "×", bar=bar, how=f"{how}: {mine:.2f} s to {other:.2f} s, {pairs} pairs")


def absent(name: str, bar: float) -> Row:
    return row(name, None, "×", bar=bar, how=peers.HINT)


def wave(groups: int, size: int, prompt: int, tokens: int) -> Wave:
    """Groups of `size` rollouts of `tokens` tokens each, over random prompts of `prompt` tokens."""
    texts = [bench_model.spoken(bench_model.words(prompt, seed)) for seed in range(groups)]
    prompts = tuple(Prompt(f"p{i}", "t", Task(f"t{i}", text), (Message("user", text),)) for i, text in enumerate(texts))
    return Wave("w", prompts, Sampling(group_size=size, max_tokens=tokens, slots=64))


def sampled(generator: Any, of: Wave) -> list[Group]:
    groups = list(generator.sample(of, None, None))
    assert all(isinstance(group, Group) for group in groups), groups[0]
    assert all(len(one.token_ids) == of.sampling.max_tokens for group in groups for one in group.rollouts)
    return groups


def sampling_rows(folder: str, pairs: int) -> list[Row]:
    """The three rows of sampling."""
    generator, (model, tokenizer) = make_generator(model=folder), peers.load_mlx_lm(folder)
    shared, single = wave(8, 8, 512, 64), wave(64, 1, 32, 64)
    long = [tokens for seed in range(8) for tokens in [bench_model.words(512, seed)] * 8]
    short = [bench_model.words(32, seed) for seed in range(64)]

    def best(sample: Any, prompts: list[list[int]]) -> int:
        """Their fastest number of sequences at once."""
        return min((8, 16, 32, 64), key=lambda size: seconds(lambda: sample(model, tokenizer, prompts, 64, size)))

    def against(sample: Any, prompts: list[list[int]]) -> tuple[Run, str]:
        size = best(sample, prompts)
        return lambda: sample(model, tokenizer, prompts, 64, size), f"at its fastest batch, {size}"

    theirs, how = against(peers.sample_batch, long)
    name = "sample 8 groups × 8, prompt 512, 64 tokens"
    found = [compare(name, lambda: sampled(generator, shared), theirs, pairs, 0.40, f"mlx-lm's batch_generate {how}")]
    theirs, how = against(peers.sample_rows, short)
    name = "sample 64 × 1, prompt 32, a sampler a row"
    found += [
        compare(
            name,
            lambda: sampled(generator, single),
            theirs,
            pairs,
            0.40,
            f"all rows at temperature 1; mlx-lm's BatchGenerator {how}",
        )
    ]
    theirs, how = against(peers.sample_batch, short)
    name = "sample 64 × 1, prompt 32, one sampler"
    found += [compare(name, lambda: sampled(generator, single), theirs, pairs, 1.0, f"mlx-lm's batch_generate {how}")]
    took = median(seconds(lambda: sampled(generator, single)) for _ in range(3))
    found += [
        row("sampling, one node", 64 * 64 / took, "tokens/s", better="higher", how="64 × 1, prompt 32, 64 tokens")
    ]
    return found


def lesson_of(folder: str, prompt: int, tokens: int) -> Lesson:
    """A sampled group of eight with advantages."""
    (group,) = sampled(make_generator(model=folder), wave(1, 8, prompt, tokens))
    scored = tuple(ScoredRollout(rollout, (), Reward(0.5, ())) for rollout in group.rollouts)
    return Lesson(ScoredGroup(group, scored), ADVANTAGES)


def case_of(lesson: Lesson) -> peers.Case:
    group = lesson.group.group
    completions = [list(rollout.token_ids) for rollout in group.rollouts]
    return {"prompt": list(group.prompt_token_ids), "completions": completions, "advantages": list(lesson.advantages)}


def our_step(folder: str, lesson: Lesson, whole_logits: bool = False) -> Run:
    """A whole update of one optimizer step: adapter bytes in, adapter and optimizer bytes out."""
    trainer: Any = make_trainer(model=folder, epochs=1, clip_high=0.28, mismatch="none")  # as the peers
    trainer.head = None if whole_logits else trainer.head
    start = trainer.update(None, None, [lesson], 0).content

    def step() -> None:
        update = trainer.update(FIRST, start, [lesson], 1)
        assert not update.skipped, update.skipped

    return step


def training_rows(folder: str, pairs: int) -> list[Row]:
    """A GRPO step of two shapes, beside mlx-lm-lora and Unsloth."""
    found: list[Row] = []
    for prompt, tokens, bar in ((512, 64, 0.22), (32, 128, 0.9)):
        lesson = lesson_of(folder, prompt, tokens)
        ours, case = our_step(folder, lesson), case_of(lesson)
        shape = f"GRPO step, G 8, prompt {prompt}, completion {tokens}"
        found.append(beside_mlx_lm_lora(shape, ours, folder, case, pairs, bar))
        found.append(beside_unsloth(shape, ours, folder, case, pairs))
    return found


def beside_mlx_lm_lora(shape: str, ours: Run, folder: str, case: peers.Case, pairs: int, bar: float) -> Row:
    name = f"{shape}, to mlx-lm-lora"
    if not peers.has("mlx_lm_lora"):
        return absent(name, bar)
    steps = {rows: peers.mlx_lm_lora_step(folder, case, rows) for rows in (1, 8)}
    for step in steps.values():
        step()
    rows = min(steps, key=lambda rows: seconds(steps[rows]))
    return compare(name, ours, steps[rows], pairs, bar, f"its loss and step, {rows} rollouts at once (its faster)")


def beside_unsloth(shape: str, ours: Run, folder: str, case: peers.Case, pairs: int) -> Row:
    name = f"{shape}, to Unsloth"
    if not peers.has("unsloth_zoo"):
        return absent(name, 1.0)
    with peers.unsloth_step(folder, case) as step:
        return compare(name, ours, step, pairs, 1.0, "its MLX loss and step, compiled or not (its faster)")


def memory_rows(place: Path) -> list[Row]:
    """Peak memory of one step over a vocabulary of 150,000."""
    folder = bench_model.make_model(place / "wide", 150_000)
    lesson = lesson_of(folder, 512, 128)
    ours, plain = peak(our_step(folder, lesson)), peak(our_step(folder, lesson, whole_logits=True))
    how = f"{ours / 1e9:.2f} GB in chunks, {plain / 1e9:.2f} GB with plain logits"
    name = "peak memory of a step, G 8, prompt 512, completion 128, 150k words"
    return [row(name, ours / plain, "×", bar=0.4, how=how)]


def peak(step: Run) -> int:
    """Bytes that MLX held at once during a step, beyond what it held before."""
    step()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    step()
    return mx.get_peak_memory() - before


SECTIONS = ("sampling", "training", "memory", "loop", "ray")


def measure(section: str, folder: str, place: Path, pairs: int) -> list[Row]:
    if section == "sampling":
        return sampling_rows(folder, pairs)
    if section == "training":
        return training_rows(folder, pairs)
    if section == "memory":
        return memory_rows(place)
    return engine_loop.loop_rows() if section == "loop" else engine_loop.ray_rows()


def main(given: Sequence[str]) -> None:
    """Measure the sections and print the table."""
    parser = arguments("The engine beside its peers.")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a part of it")
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args(given)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        folder = bench_model.make_model(Path(place) / "model")
        for section in options.only or SECTIONS:
            print(f"{section} …", file=sys.stderr, flush=True)
            rows = measure(section, folder, Path(place), 2 if options.quick else options.pairs)
            publish(rows, None)
            found += rows
    publish(found, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
