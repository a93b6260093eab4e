"""A character-level tokenizer that transformers and mlx-lm read like any other."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>")
PAD, UNKNOWN, TURN_START, TURN_END = range(4)
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)))
VOCABULARY = {token: index for index, token in enumerate((*SPECIALS, *CHARACTERS))}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: one token for each printable ASCII character and newline, and four specials."""
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(list(SPECIALS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the chat template inside) into a folder."""
    make_tokenizer().save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) | {
        "chat_template": CHAT_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",  # older transformers know no other name
    }
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def encode(text: str) -> list[int]:
    """Return the token ids of plain text (specials are not looked for; unknown characters become <unk>)."""
    return [VOCABULARY.get(character, UNKNOWN) for character in text]


def encode_chat(messages: Iterable[tuple[str, str]]) -> list[int]:
    """Return the ids of (role, content) messages as the chat template writes them, up to the assistant's turn."""
    ids: list[int] = []
    for role, content in messages:
        ids += [TURN_START, *encode(f"{role}\n{content}"), TURN_END, *encode("\n")]
    return [*ids, TURN_START, *encode("assistant\n")]


def decode(ids: Iterable[int]) -> str:
    """Return the text of token ids, specials left out."""
    tokens = (*SPECIALS, *CHARACTERS)
    return "".join(tokens[index] for index in ids if index >= len(SPECIALS))
