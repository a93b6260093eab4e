"""One sampler for the whole batch: every row with its own temperature, filters, penalty and random key.

The order is that of Hugging Face's generation: repetition penalty, temperature, top-k, top-p, min-p, each over what
the one before left (vLLM's differs in min-p alone, which it applies before top-k).
https://huggingface.co/docs/transformers/internal/generation_utils

Work that no row asks for is not done: no sort without top-k or top-p, no division at temperature 1. One exp a logit
gives the draw, by the inverse of the distribution function, and the log-probability of what was drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log2

from grpo_ray.mlx_core import mx
from grpo_ray.mlx_math import exp_under
from grpo_ray.types import Sampling

BELOW_ONE = 1 - 2**-23


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


def uniforms(keys: mx.array) -> mx.array:
    """(rows, 2) numbers in [0, 1), each row's from its own key (rows, 2): so what shares a batch doesn't matter."""
    return mx.vmap(lambda key: mx.random.uniform(shape=(2,), key=key))(keys)


def draw(
    logits: mx.array, chances: mx.array | None, controls: Controls, seen: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """One token a row, and its log-probability under what it was drawn from; both (rows,). A greedy row's is 0.

    `logits` (rows, vocabulary); `chances` as `uniforms` makes them, None where every row is greedy; `seen` (rows,
    vocabulary) is true for tokens that the prompt or the completion holds, needed where a row has a penalty.
    """
    logits = logits.astype(mx.float32)
    if controls.penalised and seen is not None:
        logits = mx.where(seen, mx.where(logits > 0, logits / controls.penalty, logits * controls.penalty), logits)
    if controls.all_greedy or chances is None:
        return mx.argmax(logits, axis=-1).astype(mx.uint32), mx.zeros(logits.shape[:1])
    scaled = logits / controls.temperature if controls.tempered else logits
    top = largest(scaled)
    weights = exp_under(scaled, top)
    if controls.filtered:
        weights = mx.where(scaled >= least_kept(scaled, controls), weights, 0.0)
    tokens, total = pick(weights, chances)
    logprobs = _chosen(scaled, tokens) - top[:, 0] - mx.log(total)
    if controls.some_greedy:
        greedy = controls.greedy[:, 0]
        tokens, logprobs = mx.where(greedy, mx.argmax(logits, axis=-1), tokens), mx.where(greedy, 0.0, logprobs)
    return tokens.astype(mx.uint32), logprobs


def pick(weights: mx.array, chances: mx.array) -> tuple[mx.array, mx.array]:
    """An index a row, as likely as its share of the row's (rows, words) weights, and the weights' sum; both (rows,).

    A block of words is drawn first, by the first of the two chances, then a word of it, by the second.
    """
    rows, words = weights.shape
    width = 1 << round(log2(words) / 2)
    whole = mx.pad(weights, [(0, 0), (0, -words % width)]) if words % width else weights
    blocks = whole.reshape(rows, -1, width)
    upto = mx.cumsum(mx.sum(blocks, axis=-1), axis=-1)
    block = _passed(upto, chances[:, :1])
    inside = mx.cumsum(blocks[mx.arange(rows), block], axis=-1)
    return block * width + _passed(inside, chances[:, 1:]), upto[:, -1]


def largest(values: mx.array) -> mx.array:
    """(rows, 1): each row's largest value. Over columns first, which a CPU does with vector instructions."""
    rows, words = values.shape
    width = 1 << round(log2(words) / 2)
    columns = values.reshape(rows, -1, width) if words % width == 0 else values[:, None]
    return mx.max(mx.max(columns, axis=1), axis=-1, keepdims=True)


def _passed(upto: mx.array, chance: mx.array) -> mx.array:
    """(rows,): the first place at which a running sum is above its chance's share of the whole."""
    whole = upto[:, -1:]
    return mx.sum(upto <= mx.minimum(chance * whole, BELOW_ONE * whole), axis=-1)


def model_logprobs(logits: mx.array, tokens: mx.array) -> mx.array:
    """The tokens' log-probabilities (rows,) under the bare model."""
    logits = logits.astype(mx.float32)
    top = largest(logits)
    return _chosen(logits, tokens) - top[:, 0] - mx.log(mx.sum(exp_under(logits, top), axis=-1))


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
    weights = mx.where(inside, exp_under(best, top), 0.0)
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


def _chosen(values: mx.array, tokens: mx.array) -> mx.array:
    return mx.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]


def _column(values: list[float] | list[bool]) -> mx.array:
    return mx.array(values)[:, None]
