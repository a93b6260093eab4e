"""A whole model with the adapter in its weights: `mlx_lm.generate --model DIR` and everything else of MLX reads it.

A format of its own, and not a kind of `adapter`: it needs MLX, which takes seconds to import.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_ray import mlx_fuse
from grpo_ray.errors import ConfigError, MissingError, UnreachableError
from grpo_ray.exporters._folder import build, encoded
from grpo_ray.exporters.adapter import config_of
from grpo_ray.recipe import RunState
from grpo_ray.types import AdapterBytes, Row


def export(
    rows: Sequence[Row],
    path: Path,
    *,
    adapter: AdapterBytes,
    state: RunState,
    model: str | None = None,
    dequantize: bool = False,
) -> Path:
    """Write a model folder with README.md and manifest.json; of `rows` it only says how many a stand-in judged.

    `model` is where the base model is, if it is not where the recipe says. A quantized base is quantized again, which
    rounds away part of what was learnt; with `dequantize` the weights are plain numbers. Raises ConfigError when the
    adapter's bytes do not say their shape or where `path` holds what no export wrote, MissingError or UnreachableError
    where the base model can't be loaded or is not the one that the adapter was trained on.
    """
    base, path, shape = model or state.recipe.model, Path(path), config_of(adapter.weights)
    assert state.adapter is not None
    if Path(base).expanduser().resolve() == path.resolve():
        raise ConfigError(f"{path} is the base model itself; choose another folder for the export")

    def fill(folder: Path) -> None:
        done = _save(folder, base, adapter.weights, dequantize)
        card = _card(base, state, shape, done, rows)
        (folder / "README.md").write_text(card, "utf-8")

    about = {"format": "fused", "model": base, "adapter": state.adapter.hash, "dequantize": dequantize}
    return build(path, fill, about)


def _save(folder: Path, base: str, weights: bytes, dequantize: bool) -> mlx_fuse.Fused:
    try:
        return mlx_fuse.save(folder, base, weights, dequantize=dequantize)
    except (MissingError, UnreachableError) as fault:
        raise type(fault)(f"{fault}\nIf the run's base model is elsewhere now, say so: --set model=FOLDER") from fault


def _card(base: str, state: RunState, shape: dict[str, Any], done: mlx_fuse.Fused, rows: Sequence[Row]) -> str:
    adapter, lora = state.adapter, shape["lora_parameters"]
    assert adapter is not None
    kind = {"lora": "LoRA", "dora": "DoRA"}.get(shape["fine_tune_type"], shape["fine_tune_type"])
    lines = [
        "---",
        "library_name: mlx",
        "pipeline_tag: text-generation",
        "tags:",
        "- mlx",
        "- grpo-ray",
        "---",
        "# A model tuned by grpo-ray",
        "",
        f"A whole model: a base with the {kind} adapter that a run of grpo-ray trained fused into its weights.",
        "",
        '`mlx_lm.generate --model THIS_FOLDER --prompt "…"` and `mlx_lm.load` read it as it is.',
        "",
        f"- base model: {_code(base)}; its licence holds for this one, too",
        f"- run: {_code(state.run)}",
        f"- adapter: `{adapter.hash}`, version {adapter.version}, trained in step {adapter.step}",
        f"- its shape: {kind} of rank {lora['rank']}, scale {lora['scale']}, in {done.layers} layers",
        f"- weights: {_weights(done)}",
        "- tokenizer, chat template and other small files: the base model's, copied",
        "",
        _judged(rows),
        "",
    ]
    return "\n".join(lines)


def _code(text: str) -> str:
    """A name as Markdown code on one line, as UTF-8 can hold it."""
    return f"`{encoded(' '.join(text.split())).decode()[1:-1]}`"


def _weights(done: mlx_fuse.Fused) -> str:
    if done.bits is not None:
        return (
            f"quantized as the base. The fused layers were **quantized again** (to {done.bits} bits), which rounds "
            "away part of what was learnt: this model is near the base with its adapter, and not the same. An export "
            "with `--set dequantize=true` has plain, larger weights; `--format adapter` loses nothing"
        )
    again = ", unpacked from the quantized base" if done.unpacked else ""
    rounded = "" if done.dtype == "float32" else "; the sum of base and adapter is rounded to that"
    return f"{done.dtype}{again}{rounded}"


def _judged(rows: Sequence[Row]) -> str:
    """Where the adapter's rewards came from, as far as the run's rows tell."""
    stand_ins = sum(row.stand_in for row in rows)
    return (
        f"`stand_in` is true for {stand_ins} of the {len(rows)} rows that the same run exports as a dataset: a "
        "stand-in, and no real model, judged those, and the adapter learnt from such rewards."
        if stand_ins
        else f"No stand-in judged any of the {len(rows)} rows that the same run exports as a dataset."
    )
