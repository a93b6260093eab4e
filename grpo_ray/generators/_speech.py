"""Messages into tokens and tokens into text: chat templates, stop sequences, thinking models' marks."""

from collections.abc import Sequence

from grpo_ray.mlx_model import Model
from grpo_ray.types import Message

WIDEST = 4
"""Tokens that a character may be cut into: the bytes of UTF-8."""


def encode(model: Model, messages: Sequence[Message]) -> list[int]:
    """A conversation's token ids, up to where the answer begins.

    Where the template knows no system role (Gemma's raises), the system text leads the first user turn. A model
    without a template is a base model: it goes on with the plain contents, joined, which is how such models are
    prompted, and no fault. Raises whatever the template raises.
    """
    tokenizer = model.tokenizer
    if not tokenizer.has_chat_template:
        return list(tokenizer.encode("\n\n".join(message.content for message in messages)))
    try:
        return _templated(model, messages)
    except Exception:  # the model's own program: it may raise anything, and does for roles it doesn't know
        folded = fold_system(messages)
        if len(folded) == len(messages):
            raise
        return _templated(model, folded)


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation without system messages: their text leads the first user turn."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system or not rest or rest[0].role != "user":
        return list(messages)
    return [Message("user", f"{system}\n\n{rest[0].content}"), *rest[1:]]


def _templated(model: Model, messages: Sequence[Message]) -> list[int]:
    said = [{"role": message.role, "content": message.content} for message in messages]
    return list(model.tokenizer.apply_chat_template(said, add_generation_prompt=True))


class Speech:
    """The text of completions, for one model and one set of stop sequences."""

    def __init__(self, model: Model, stops: Sequence[str]) -> None:
        self.tokenizer = model.tokenizer
        self.stops = tuple(stops)
        self.window = WIDEST * max((len(stop.encode()) for stop in stops), default=0) + WIDEST
        thinking = (self.tokenizer.think_start, self.tokenizer.think_end) if self.tokenizer.has_thinking else ()
        special = dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))
        self.marks = {special[mark] for mark in thinking if mark in special}
        self.hidden = set(special.values()) - self.marks

    def text(self, tokens: Sequence[int]) -> str:
        """What the tokens say, up to the first stop sequence; a thinking model's marks stay, other specials don't."""
        whole = self._decode(tokens)
        return whole[: min((at for stop in self.stops if (at := whole.find(stop)) >= 0), default=len(whole))]

    def stopped(self, tokens: Sequence[int]) -> bool:
        """Whether the last token completes a stop sequence."""
        if not self.stops:
            return False
        tail = self._decode(tokens[-self.window :])
        return any(stop in tail for stop in self.stops)

    def _decode(self, tokens: Sequence[int]) -> str:
        if not self.marks:
            return self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return self.tokenizer.decode([token for token in tokens if token not in self.hidden])
