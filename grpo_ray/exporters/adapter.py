"""The LoRA adapter as mlx-lm wants it: `mlx_lm.generate --adapter-path DIR`, `mlx_lm.fuse`, `mlx_lm.lora --resume…`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_ray.errors import ConfigError
from grpo_ray.exporters._folder import encoded, write
from grpo_ray.types import AdapterBytes, Row

NEEDED = ("fine_tune_type", "num_layers", "lora_parameters")


def export(rows: Sequence[Row], path: Path, *, adapter: AdapterBytes) -> Path:
    """Write `path`/adapters.safetensors, adapter_config.json and manifest.json; `rows` are not part of it.

    Raises ConfigError when the adapter's bytes do not say their shape, or `path` holds what no export wrote.
    """
    config = config_of(adapter.weights)
    files = {"adapters.safetensors": adapter.weights, "adapter_config.json": encoded(config) + b"\n"}
    return write(Path(path), files, {"format": "adapter"})


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
