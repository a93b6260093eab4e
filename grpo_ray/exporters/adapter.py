"""The LoRA adapter as mlx-lm wants it (`mlx_lm.generate --adapter-path DIR`, `mlx_lm.fuse`), or as PEFT does."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from grpo_ray.errors import ConfigError
from grpo_ray.exporters._folder import encoded, write
from grpo_ray.types import AdapterBytes, Row

Kind = Literal["mlx", "peft"]
KINDS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
"""How a safetensors file names its numbers; bfloat16 is moved, never read."""
PEFT = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
NEEDED = ("fine_tune_type", "num_layers", "lora_parameters")


def export(rows: Sequence[Row], path: Path, *, adapter: AdapterBytes, kind: Kind = "mlx") -> Path:
    """Write an adapter folder with its manifest.json; `rows` are not part of it.

    mlx: adapters.safetensors and adapter_config.json of mlx-lm. peft: adapter_model.safetensors and the
    adapter_config.json that `peft.PeftModel.from_pretrained` reads. Raises ConfigError when the adapter's bytes do not
    say their shape, for an unknown kind, or where `path` holds what no export wrote.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind is {kind!r}: it must be one of {', '.join(get_args(Kind))}")
    config = config_of(adapter.weights)
    if kind == "mlx":
        files = {"adapters.safetensors": adapter.weights, "adapter_config.json": encoded(config) + b"\n"}
    else:
        weights, paths = peft_weights(adapter.weights)
        files = {
            "adapter_model.safetensors": weights,
            "adapter_config.json": encoded(peft_config(config, paths)) + b"\n",
        }
    return write(Path(path), files, {"format": "adapter"} | ({} if kind == "mlx" else {"kind": kind}))


def peft_config(config: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """PEFT's adapter_config.json. mlx-lm's scale multiplies directly, PEFT's is lora_alpha / r."""
    lora = config["lora_parameters"]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora["rank"],
        "lora_alpha": lora["scale"] * lora["rank"],
        "lora_dropout": lora.get("dropout", 0.0),
        "use_dora": config["fine_tune_type"] == "dora",
        "target_modules": sorted(paths),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def peft_weights(weights: bytes) -> tuple[bytes, list[str]]:
    """The same numbers under PEFT's names, transposed ((in, r) → (r, in)); and the paths of the layers they sit in."""
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + size])
    blobs: list[bytes] = []
    named: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end, paths = 0, set()
    for name, entry in sorted((name, entry) for name, entry in header.items() if name != "__metadata__"):
        first, last = (8 + size + offset for offset in entry["data_offsets"])
        array = np.frombuffer(weights[first:last], KINDS[entry["dtype"]]).reshape(entry["shape"]).T
        path, leaf = name.rsplit(".", 1)
        if array.ndim > 2:
            raise ConfigError(f"{path} is a mixture of experts, which PEFT keeps in another way; export kind: mlx")
        paths.add(path)
        blobs.append(np.ascontiguousarray(array).tobytes())
        start, end = end, end + len(blobs[-1])
        moved = {"dtype": entry["dtype"], "shape": list(array.shape), "data_offsets": [start, end]}
        named[f"base_model.model.{path}.{PEFT[leaf]}"] = moved
    text = json.dumps(named, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *blobs]), sorted(paths)


def config_of(weights: bytes) -> dict[str, Any]:
    """The LoRA's shape, from the `config` in the file's metadata.

    A safetensors file begins with its header's length (8 bytes, little endian) and the header (JSON).
    https://huggingface.co/docs/safetensors
    """
    try:
        size = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + size])
        config = json.loads(header["__metadata__"]["config"])
        return {name: config[name] for name in NEEDED}
    except (ValueError, KeyError, TypeError) as fault:
        raise ConfigError(
            "this adapter is no LoRA that mlx-lm can load (its file does not say its shape): "
            "only the trainer mlx_lora makes one"
        ) from fault
