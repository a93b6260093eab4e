"""One sampler for the whole batch: every row with its own temperature, filters, penalty and random key.

The order is that of Hugging Face's generation: repetition penalty, temperature, top-k, top-p, min-p, each over what
the one before left (vLLM's differs in min-p alone, which it applies before top-k).
https://huggingface.co/docs/transformers/internal/generation_utils

Work that no row asks for is not done: no sort without top-k or top-p, no division at temperature 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from grpo_ray.mlx_model import mx
from grpo_ray.types import Sampling


@dataclass(frozen=True, slots=True)
class Controls:
    """How each row is drawn. The arrays are (rows, 1); a row that doesn't use a filter holds what filters nothing."""

    temperature: mx.array
    """1 where the row is greedy."""
    greedy: mx.array
    top_k: mx.array
    top_p: mx.array
    min_p: mx.array
    penalty: mx.array
    tempered: bool
    """Some row's temperature isn't 1; and so on: what has to be done at all."""
    some_greedy: bool
    all_greedy: bool
    penalised: bool
    filtered: bool
    widest: int | None
    """The likeliest tokens that have to be put in order: 0 none, None all of them."""

    @property
    def plain(self) -> bool:
        """Whether every row is drawn from the model's own distribution."""
        return not (self.tempered or self.some_greedy or self.penalised or self.filtered)


def controls_of(rows: Sequence[Sampling]) -> Controls:
    """The controls of a batch, from the sampling of each of its rows."""
    ordered = [row for row in rows if row.top_k > 0 or row.top_p < 1]
    whole = any(row.top_k <= 0 for row in ordered)
    return Controls(
        temperature=_column([row.temperature or 1.0 for row in rows]),
        greedy=_column([row.temperature == 0 for row in rows]),
        top_k=_column([float(row.top_k) if row.top_k > 0 else inf for row in rows]),
        top_p=_column([row.top_p if row.top_p < 1 else inf for row in rows]),
        min_p=_column([row.min_p for row in rows]),
        penalty=_column([row.repetition_penalty for row in rows]),
        tempered=any(row.temperature not in (0, 1) for row in rows),
        some_greedy=any(row.temperature == 0 for row in rows),
        all_greedy=all(row.temperature == 0 for row in rows),
        penalised=any(row.repetition_penalty != 1 for row in rows),
        filtered=bool(ordered) or any(row.min_p > 0 for row in rows),
        widest=None if whole else max((row.top_k for row in ordered), default=0),
    )


def gumbel(keys: mx.array, vocabulary: int) -> mx.array:
    """(rows, vocabulary) of noise, each row from its own key (rows, 2): so what shares a batch doesn't matter."""
    return mx.vmap(lambda key: mx.random.gumbel((vocabulary,), key=key))(keys)


def draw(
    logits: mx.array, noise: mx.array | None, controls: Controls, seen: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """One token a row (rows,), and the scaled and filtered logits (rows, vocabulary) that it was drawn from.

    `logits` (rows, vocabulary); `noise` as `gumbel` makes it, None where every row is greedy; `seen` (rows,
    vocabulary) is true for tokens that the prompt or the completion holds, needed where a row has a penalty.
    """
    logits = logits.astype(mx.float32)
    if controls.penalised and seen is not None:
        logits = mx.where(seen, mx.where(logits > 0, logits / controls.penalty, logits * controls.penalty), logits)
    if controls.all_greedy or noise is None:
        return mx.argmax(logits, axis=-1).astype(mx.uint32), logits
    scaled = logits / controls.temperature if controls.tempered else logits
    if controls.filtered:
        scaled = mx.where(scaled >= least_kept(scaled, controls), scaled, -mx.inf)
    tokens = mx.argmax(scaled + noise, axis=-1)
    if controls.some_greedy:
        tokens = mx.where(controls.greedy[:, 0], mx.argmax(logits, axis=-1), tokens)
    return tokens.astype(mx.uint32), scaled


def score(logits: mx.array, scaled: mx.array, tokens: mx.array, controls: Controls) -> tuple[mx.array, mx.array]:
    """The tokens' log-probabilities, each (rows,): under what they were drawn from, and under the bare model.

    A greedy row was drawn from all the weight on one token: 0.
    """
    model = _log_probability(logits.astype(mx.float32), tokens)
    if controls.plain:
        return model, model
    if controls.all_greedy:
        return mx.zeros_like(model), model
    drawn = _log_probability(scaled, tokens)
    return (mx.where(controls.greedy[:, 0], 0.0, drawn) if controls.some_greedy else drawn), model


def least_kept(scaled: mx.array, controls: Controls) -> mx.array:
    """(rows, 1): the least logit that a row's filters keep. Tokens that tie with it are kept too.

    Each filter keeps a beginning of the tokens in falling order, so that one bound a row is all three.
    """
    top = mx.max(scaled, axis=-1, keepdims=True)
    bound = top + mx.log(controls.min_p)  # -inf where there is no min-p
    if controls.widest == 0:
        return bound
    best = _falling(scaled, controls.widest)
    inside = mx.arange(best.shape[-1])[None] < controls.top_k
    weights = mx.where(inside, mx.exp(best - top), 0.0)
    upto = mx.cumsum(weights, axis=-1)
    kept = mx.logical_and(inside, upto - weights < controls.top_p * upto[:, -1:])
    last = mx.take_along_axis(best, mx.sum(kept, axis=-1, keepdims=True) - 1, axis=-1)
    filtering = mx.logical_or(controls.top_k < scaled.shape[-1], controls.top_p <= 1)
    return mx.maximum(bound, mx.where(filtering, last, -mx.inf))


def _falling(scaled: mx.array, widest: int | None) -> mx.array:
    """The `widest` largest of each row (None: all), largest first."""
    if widest is not None and widest < scaled.shape[-1]:
        scaled = mx.topk(scaled, widest, axis=-1)
    return -mx.sort(-scaled, axis=-1)


def _log_probability(logits: mx.array, tokens: mx.array) -> mx.array:
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - mx.logsumexp(logits, axis=-1)


def _column(values: list[float] | list[bool]) -> mx.array:
    return mx.array(values)[:, None]
