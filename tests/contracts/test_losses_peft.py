"""An adapter exported for PEFT says the same as the one that was trained: read back by PEFT's own formula."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_model import make_tiny_model

from grpo_ray import mlx_model
from grpo_ray.errors import ConfigError
from grpo_ray.exporters.adapter import export
from grpo_ray.mlx_core import mx
from grpo_ray.types import AdapterBytes

pytestmark = pytest.mark.mlx


def adapted(folder: str) -> mlx_model.Model:
    model = mlx_model.load(folder)
    mx.random.seed(3)
    mlx_model.wrap(model, mlx_model.Lora(rank=4, scale=2.5, keys=("self_attn.q_proj", "mlp.down_proj")))
    moved = [(name, mx.random.normal(array.shape)) for name, array in mlx_model.adapter_weights(model).items()]
    model.network.load_weights(moved, strict=False)
    return model


def test_the_base_with_pefts_deltas_has_the_adapters_logits(tmp_path):
    folder = make_tiny_model(tmp_path / "tiny")
    model = adapted(folder)
    out = export([], tmp_path / "out", adapter=AdapterBytes(mlx_model.adapter_bytes(model), b""), kind="peft")
    config = json.loads((out / "adapter_config.json").read_text())
    weights = load_file(out / "adapter_model.safetensors")
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (4, 10.0, False)
    assert "model.layers.1.mlp.down_proj" in config["target_modules"] and len(weights) == 8
    base = mlx_model.load(folder)
    linears = dict(base.network.named_modules())
    for path in config["target_modules"]:
        a, b = (weights[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
        layer = linears[path]
        assert a.shape == (4, layer.weight.shape[1]) and b.shape == (layer.weight.shape[0], 4)
        layer.weight = layer.weight + mx.array(config["lora_alpha"] / config["r"] * (b @ a))
    ids = mx.array([[5, 9, 4, 30]])
    assert np.allclose(np.array(base.network(ids)), np.array(model.network(ids)), atol=1e-3)


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="kind is 'gguf'"):
        export([], tmp_path / "out", adapter=AdapterBytes(b"", b""), kind="gguf")  # pyright: ignore
