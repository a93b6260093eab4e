"""An adapter made part of its base model's weights, and the model folder that comes of it."""

from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

from grpo_ray import mlx_model
from grpo_ray.errors import ConfigError
from grpo_ray.mlx_core import mx

from mlx.utils import tree_unflatten  # isort: skip  (mlx_core comes first)
from mlx_lm.utils import dequantize_model, hf_repo_to_path, load_model, save_config, save_model  # isort: skip

COPIED = (
    *("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"),
    *("LICENSE*", "NOTICE*"),
)
"""What mlx-lm fetches of a model beside its weights (so the tokenizer is whole), and what its licence asks to keep."""
NOT_COPIED = ("config.json", "*.index.json", "hf_quant_config.json", "manifest.json")
"""What a fused model has of its own, or must not have: NVIDIA's quantization of weights that are others now."""


@dataclass(frozen=True, slots=True)
class Fused:
    """What was done."""

    layers: int
    """How many were fused."""
    bits: int | None
    """What they were rounded to again, at the least; None where they are plain."""
    dtype: str
    """What they compute in."""
    unpacked: bool
    """Whether plain numbers were made of a quantized base."""


def save(folder: Path, name: str, weights: bytes, *, dequantize: bool) -> Fused:
    """Write the base model `name` with the adapter `weights` in it into `folder`: weights, config and tokenizer.

    A quantized base is quantized again layer by layer, or, with `dequantize`, written as plain numbers. Raises
    MissingError or UnreachableError where the base can't be loaded or is not the adapter's, ConfigError where the disk
    takes no more.
    """
    model = mlx_model.load(name)
    try:
        source = _folder(name)
        mlx_model.swap(model, weights)
        done = _fuse(model.network, dequantize)
        _, config = load_model(source, lazy=True)  # nothing is read but its config, in the form that mlx-lm made of it
        _write(folder, model.network, _plain(config) if dequantize else config)
        _copy(source, folder)
    finally:
        mlx_model.release()
    return done


def _folder(name: str) -> Path:
    found = Path(mlx_model.resolve(name))
    return found if found.is_dir() else hf_repo_to_path(name)


def _fuse(network: Any, dequantize: bool) -> Fused:
    quantized = _quantized(network)
    wrapped = [(name, module) for name, module in network.named_modules() if "lora_a" in module]
    fused = [(name, _fused(module, _base(module), dequantize)) for name, module in wrapped]
    network.update_modules(tree_unflatten(fused))
    if dequantize:
        dequantize_model(network)
        if left := _quantized(network):
            raise ConfigError(f"mlx-lm can't dequantize {left[0]} of this model; leave `dequantize` out")
    mx.eval(network.parameters())
    bits = [layer.bits for _, layer in fused if "scales" in layer]
    dtype = str(_dtype(fused[0][1])).removeprefix("mlx.core.")
    return Fused(len(fused), min(bits, default=None), dtype, dequantize and bool(quantized))


def _quantized(network: Any) -> list[str]:
    return [name for name, module in network.named_modules() if "scales" in module]


def _fused(module: Any, base: Any, dequantize: bool) -> Any:
    """mlx-lm's fusing, in the base's own type: its DoRA magnitudes are float32, and so would all that follows be."""
    plain = module.fuse(dequantize=True)
    plain.weight = plain.weight.astype(_dtype(base))
    if dequantize or "scales" not in base:
        return plain
    return plain.to_quantized(group_size=base.group_size, bits=base.bits, mode=base.mode)


def _base(module: Any) -> Any:
    return module.linear if "linear" in module else module.embedding


def _dtype(layer: Any) -> mx.Dtype:
    """What the layer computes in; the scales of mxfp4 and its like are no numbers, MLX unpacks those to bfloat16."""
    kept = layer.scales.dtype if "scales" in layer else layer.weight.dtype
    return kept if mx.issubdtype(kept, mx.floating) else mx.bfloat16


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config without a word of quantization, which mlx-lm also looks for inside."""
    kept = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
    return {key: _plain(value) if key == "text_config" else value for key, value in kept.items()}


def _write(folder: Path, network: Any, config: dict[str, Any]) -> None:
    try:
        save_model(folder, network)
    except RuntimeError as fault:  # everything is computed by now: what fails is MLX's writing
        raise ConfigError(
            f"the weights can't be written: {fault} Is there room on the disk of {folder.parent}?"
        ) from fault
    has_eyes = "vision_tower" in getattr(network, "model", {})
    save_config(config, folder / "config.json", keep_vision_config=has_eyes)


def _copy(source: Path, folder: Path) -> None:
    for pattern in COPIED:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not any(file.match(name) for name in NOT_COPIED):
                copy = folder / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                copyfile(file, copy)
