"""The model that the engine is measured on: random weights, 4 layers, 128 wide, 4,096 words, and no word that ends a text."""

import json
from pathlib import Path
from random import Random
from typing import Any

from grpo_ray.mlx_core import mx  # first: it puts the fast BLAS in place
from grpo_ray.mlx_model import pack

from mlx.utils import tree_flatten  # isort: skip
from mlx_lm.models.qwen3 import Model, ModelArgs  # isort: skip
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # isort: skip

WORDS = 4096


def make_model(folder: Path, words: int = WORDS) -> str:
    """Write the model into `folder` and return it. Token ids are words; the end-of-text token has an id it never draws."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(words)
    mx.random.seed(7)
    network = Model(ModelArgs.from_dict(config))
    weights: Any = dict(tree_flatten(network.parameters()))
    (folder / "model.safetensors").write_bytes(pack(weights, config))
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, words)
    return str(folder)


def make_config(words: int) -> dict[str, Any]:
    """A small Qwen3."""
    return {
        "model_type": "qwen3",
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "vocab_size": words,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }


def write_tokenizer(folder: Path, words: int) -> None:
    """One token a word: `w17` is token 17."""
    names = {f"w{number}": number for number in range(words)} | {"<end>": words}
    core = Tokenizer(models.WordLevel(names, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.Fuse()
    core.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<end>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def words(count: int, seed: int, of: int = WORDS) -> list[int]:
    """A prompt of `count` random tokens."""
    draw = Random(seed)
    return [draw.randrange(of) for _ in range(count)]


def spoken(tokens: list[int]) -> str:
    """The text that the tokenizer reads as these tokens."""
    return " ".join(f"w{token}" for token in tokens)
