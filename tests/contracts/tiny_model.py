"""A random two-layer model with a character tokenizer, written as files that mlx-lm loads: no download, no training."""

import json
from importlib import import_module
from pathlib import Path

from grpo_ray.mlx_core import mx  # first: it puts the fast BLAS in place
from grpo_ray.mlx_model import pack

from mlx.utils import tree_flatten  # isort: skip
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers  # isort: skip

CHAT = (
    "{% for message in messages %}{% if message['content'] == 'refuse' %}{{ raise_exception('refused') }}{% endif %}"
    "{{ '<s>' + message['role'] + '\\n' + message['content'] + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)))
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": len(SPECIALS) + len(CHARACTERS),
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 3,
}


def make_tiny_model(folder: Path, *, chat: bool = True, sharpness: float = 3.0, **changes: object) -> str:
    """Write the model into `folder` (made if need be); `changes` go into its config. Returns the folder.

    Its weights are `sharpness` times the usual ones: at 3 it has clear likes, and rounding grows on the way through it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changes
    mx.random.seed(7)
    kind = import_module(f"mlx_lm.models.{config['model_type']}")
    network = kind.Model(kind.ModelArgs.from_dict(config))
    weights = {name: sharpness * array for name, array in tree_flatten(network.parameters())}
    (folder / "model.safetensors").write_bytes(pack(weights, config))
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder, chat)
    return str(folder)


def _write_tokenizer(folder: Path, chat: bool) -> None:
    words = {token: index for index, token in enumerate((*SPECIALS, *CHARACTERS))}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(list(SPECIALS))
    core.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    settings |= {"unk_token": "<unk>", "clean_up_tokenization_spaces": False}
    settings |= {"chat_template": CHAT} if chat else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
