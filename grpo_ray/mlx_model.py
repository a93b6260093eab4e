"""An mlx-lm model: loading it, wrapping it in LoRA, swapping adapters, and the bytes an adapter is kept as.

MLX arrays belong to the thread that made them: load, use and `release` a model on one thread.
"""

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grpo_ray.canonical import canonical
from grpo_ray.errors import ConfigError, MissingError, UnreachableError
from grpo_ray.mlx_attention import hasten
from grpo_ray.mlx_core import mx

from mlx.utils import tree_flatten, tree_unflatten  # isort: skip  (mlx_core comes first)
from mlx_lm import load as load_with_mlx_lm  # isort: skip
from mlx_lm.tokenizer_utils import TokenizerWrapper  # isort: skip
from mlx_lm.tuner.utils import linear_to_lora_layers  # isort: skip

_here = threading.local()
"""`loads`: models loaded on this thread and not released yet."""
BUNDLED = {"bundled:nano": Path(__file__).parent / "nano"}
Kind = Literal["lora", "dora"]
LEAVES: Mapping[Kind, tuple[str, ...]] = {"lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m")}
"""What is trained of a wrapped layer: DoRA (arXiv 2402.09353) learns its rows' magnitudes, `m`, too."""
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
"""Where a config says how many tokens a sequence may have."""
DTYPES: Mapping[mx.Dtype, tuple[str, Any]] = {
    mx.float32: ("F32", np.float32),
    mx.float16: ("F16", np.float16),
    mx.bfloat16: ("BF16", np.uint16),
    mx.int32: ("I32", np.int32),
    mx.uint32: ("U32", np.uint32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The shape of an adapter, in mlx-lm's own words: `scale` multiplies directly; -1 layers are all of them."""

    rank: int = 16
    scale: float = 2.0
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None
    """Paths inside a block, e.g. `self_attn.q_proj`; None: every linear layer."""
    num_layers: int = -1
    kind: Kind = "lora"

    def __post_init__(self) -> None:
        wrong = [] if self.kind in LEAVES else [f"kind is {self.kind!r}: it must be one of {', '.join(LEAVES)}"]
        if self.rank < 1:
            wrong.append(f"rank is {self.rank}: it must be at least 1")
        if not 0 < self.scale < math.inf:
            wrong.append(f"scale is {self.scale}: it must be above 0")
        if self.num_layers < 1 and self.num_layers != -1:
            wrong.append(f"num_layers is {self.num_layers}: it must be at least 1, or -1 for all layers")
        if wrong:
            raise ConfigError("\n".join(wrong))

    def config(self) -> dict[str, Any]:
        """What mlx-lm keeps in adapter_config.json."""
        parameters: dict[str, Any] = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout}
        if self.keys is not None:
            parameters["keys"] = list(self.keys)
        return {"fine_tune_type": self.kind, "num_layers": self.num_layers, "lora_parameters": parameters}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Lora":
        """The way back from `config()`."""
        parameters = dict(config["lora_parameters"])
        keys = parameters.pop("keys", None)
        keys = None if keys is None else tuple(keys)
        return cls(**parameters, keys=keys, num_layers=config["num_layers"], kind=config["fine_tune_type"])


@dataclass(slots=True)
class Model:
    """A loaded model. `lora` is the shape it is wrapped in, None where it is bare."""

    name: str
    network: Any
    tokenizer: TokenizerWrapper
    context: int
    """Tokens a sequence may have, prompt and completion together."""
    lora: Lora | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """What config.json says of the part that reads text, with what mlx-lm takes where it says nothing."""


def resolve(model: str) -> str:
    """The folder or Hugging Face name that mlx-lm loads for a recipe's `model`.

    Raises MissingError for a path that isn't there.
    """
    folder = BUNDLED.get(model) or Path(model).expanduser()
    if model in BUNDLED and not (folder / "config.json").exists():
        raise MissingError(f"the bundled model {model!r} is not in {folder}; run scripts/make_nano.py, or reinstall")
    if folder.is_dir():
        return str(folder)
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or model.startswith("bundled:"):
        known = ", ".join(BUNDLED)
        raise MissingError(
            f"there is no model folder {model!r}; give a folder with config.json and model*.safetensors, "
            f"a Hugging Face name such as mlx-community/Qwen3-0.6B-4bit, or {known}"
        )
    return model


def load(model: str) -> Model:
    """Load a recipe's `model`, whole and at once, on this thread.

    Raises MissingError where there is nothing to load, UnreachableError where it can't be fetched.
    """
    path = resolve(model)
    try:
        network, tokenizer, config = load_with_mlx_lm(path, return_config=True)  # pyright: ignore[reportAssignmentType]
    except (OSError, ValueError, KeyError, RuntimeError) as fault:
        raise _cannot_load(model, path, fault) from fault
    hasten(network)
    mx.eval(network.parameters())
    _here.loads = getattr(_here, "loads", 0) + 1
    text = text_config(config, network)
    return Model(model, network, tokenizer, text_context(text), config=text)


def text_context(config: Mapping[str, Any]) -> int:
    """Tokens that a sequence may have; as good as no bound where a config says nothing."""
    return next((int(config[key]) for key in CONTEXT if config.get(key)), 1 << 20)


def text_config(config: Mapping[str, Any], network: Any) -> dict[str, Any]:
    """See `Model.config`. mlx-lm keeps the part that reads text of some models under `language_model`."""
    text = config.get("text_config") or config
    args = getattr(getattr(network, "language_model", network), "args", None)
    taken = {one.name: getattr(args, one.name) for one in fields(args)} if is_dataclass(args) else {}
    return {**text, **{name: value for name, value in taken.items() if value is not None}}


def _cannot_load(model: str, path: str, fault: Exception) -> MissingError | UnreachableError:
    if Path(path).is_dir():
        return MissingError(f"the model {model!r} can't be loaded from {path}: {fault}; is it one that mlx-lm knows?")
    return UnreachableError(
        f"the model {model!r} can't be fetched: {fault}; check the name and the network, or give a local folder"
    )


def wrap(model: Model, lora: Lora) -> None:
    """Wrap the linear layers in LoRA of this shape; what was wrapped before is unwrapped first, so nothing nests.

    Fresh weights come from MLX's global random state; `lora_b` is zero, so the model answers as before.
    Raises ConfigError, and leaves the model bare, where a layer can't be wrapped.
    """
    unwrap(model)
    config = lora.config()
    try:
        linear_to_lora_layers(model.network, lora.num_layers, config["lora_parameters"], use_dora=lora.kind == "dora")
    except ValueError as fault:
        unwrap(model)  # layers before that one are wrapped already
        way_out = "or set kind: lora" if lora.kind == "dora" else "such as self_attn.q_proj"
        raise ConfigError(
            f"{model.name!r} can't be wrapped in {lora.kind}: {fault}; name in keys the linear layers to wrap, {way_out}"
        ) from fault
    model.network.train(model.network.training)  # new layers come in training mode, whatever the model's is
    mx.eval(model.network.parameters())
    model.lora = lora


def unwrap(model: Model) -> None:
    """Back to the bare base model, whatever of it is wrapped."""
    bare = [(name, _base(module)) for name, module in model.network.named_modules() if "lora_a" in module]
    if bare:
        model.network.update_modules(tree_unflatten(bare))
    model.lora = None


def _base(module: Any) -> Any:
    return module.linear if "linear" in module else module.embedding


def unfreeze(module: Any) -> None:
    """Let a wrapped layer's own weights, and only those, be trained."""
    if "lora_a" in module:
        kind: Kind = "dora" if "m" in module else "lora"
        module.unfreeze(keys=list(LEAVES[kind]), recurse=False)


def swap(model: Model, weights: bytes | None) -> None:
    """Put an adapter in place of the present one; None is the base model.

    The layers are wrapped anew only where the shape differs. Raises MissingError for weights of another model.
    """
    if weights is None:
        return unwrap(model)
    arrays, config = unpack(weights)
    lora = Lora.of(config)
    if model.lora != lora:
        wrap(model, lora)
    present = {name: array.shape for name, array in adapter_weights(model).items()}
    if present != {name: array.shape for name, array in arrays.items()}:
        raise MissingError(f"the adapter does not fit the model {model.name!r}: it was trained on another one")
    model.network.load_weights(list(arrays.items()), strict=False)
    mx.eval(model.network.parameters())


def adapter_weights(model: Model) -> dict[str, mx.array]:
    """The LoRA weights by mlx-lm's own names, sorted."""
    assert model.lora is not None
    leaves: Any = tree_flatten(model.network.parameters())
    ours = LEAVES[model.lora.kind]
    return dict(sorted((name, array) for name, array in leaves if name.rsplit(".", 1)[-1] in ours))


def adapter_bytes(model: Model) -> bytes:
    """The adapter in place as one safetensors file that says what it is: `adapters.safetensors` of mlx-lm."""
    assert model.lora is not None
    return pack(adapter_weights(model), model.lora.config())


def pack(arrays: Mapping[str, mx.array], config: Mapping[str, Any]) -> bytes:
    """A safetensors file, sorted by name, with `config` as JSON in its metadata: same values, same bytes.

    (The libraries' own writers promise no order.) https://huggingface.co/docs/safetensors
    """
    header: dict[str, Any] = {"__metadata__": {"config": canonical(config), "format": "mlx"}}
    blobs: list[bytes] = []
    end = 0
    for name, array in sorted(arrays.items()):
        kind, numpy_kind = DTYPES[array.dtype]
        raw = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        blobs.append(np.array(raw, dtype=numpy_kind).tobytes())
        start, end = end, end + len(blobs[-1])
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *blobs])


def unpack(content: bytes) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """The way back from `pack`: the arrays, in memory, and the config."""
    arrays, metadata = mx.load(BytesIO(content), format="safetensors", return_metadata=True)  # pyright: ignore
    mx.eval(arrays)
    return dict(arrays), json.loads(metadata["config"])  # pyright: ignore


def release() -> None:
    """Give back one `load` of this thread. With its last one, a thread other than the main one is done with MLX.

    Without that the process may abort at exit (8 of 17 runs); after it, MLX can't be used on that thread any more.
    """
    _here.loads = getattr(_here, "loads", 0) - 1
    mx.synchronize()
    mx.clear_cache()
    if _here.loads <= 0 and threading.current_thread() is not threading.main_thread():
        mx.clear_streams()
