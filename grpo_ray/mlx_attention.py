"""Attention of ours in the layers of an mlx-lm model: a prompt read once for its whole group, and a fast softmax on a CPU.

mlx-lm's layers call `scaled_dot_product_attention` and `swiglu` by those names. `hasten` gives the layers of one model,
and of no other in the process, a class whose `__call__` finds ours under them; models that call anything else keep it.
"""

from collections.abc import Callable
from functools import cache as once
from types import FunctionType
from typing import Any

from grpo_ray.errors import ConfigError
from grpo_ray.mlx_core import mx
from grpo_ray.mlx_math import ON_CPU, exp_under, swiglu

from mlx_lm.models import base  # isort: skip
from mlx_lm.models.cache import BatchKVCache, ConcatenateKVCache  # isort: skip

Mask = mx.array | str | None
LOWEST = -3.4e38
OURS = "scaled_dot_product_attention"


class PromptCache(ConcatenateKVCache):
    """A prompt's keys and values (1, KV heads, P, D), which every row of a batch attends to before its own."""

    keys: Any
    values: Any

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(self, *args: Any, window_size: int | None = None, **kwargs: Any) -> Any:
        if window_size or kwargs.get("return_array"):
            raise ConfigError("this model's attention has a mask of its own; set share_prompts: false")
        return "causal"


def prompt_cache(read: ConcatenateKVCache) -> PromptCache:
    """What a cache holds after its prompt was read, for a batch to go on from."""
    cache = PromptCache()
    cache.state = read.state
    return cache


def hasten(network: Any) -> None:
    """Put our attention, and on a CPU our SwiGLU, into the network's layers; doing it again does nothing."""
    names: dict[str, Callable[..., mx.array]] = {OURS: attend} | ({"swiglu": swiglu} if ON_CPU else {})
    for _, module in network.named_modules():
        module.__class__ = _with(type(module), tuple(sorted(names.items())))


def attends(network: Any) -> bool:
    """Whether every layer of the network goes through our attention."""
    ours = [OURS in getattr(type(module), "hastened", ()) for _, module in network.named_modules()]
    return sum(ours) == len(network.layers)


@once
def _with(kind: type, names: tuple[tuple[str, Callable[..., mx.array]], ...]) -> type:
    """`kind`, whose call finds ours under these names; `kind` itself where it uses none of them."""
    call: Any = kind.__call__
    if not isinstance(call, FunctionType) or hasattr(kind, "hastened"):
        return kind
    used = {name: ours for name, ours in names if name in call.__code__.co_names}
    if not used:
        return kind
    own = FunctionType(call.__code__, call.__globals__ | used, call.__name__, call.__defaults__, call.__closure__)
    own.__kwdefaults__ = call.__kwdefaults__
    return type(kind.__name__, (kind,), {"__call__": own, "__module__": kind.__module__, "hastened": tuple(used)})


def attend(
    queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Mask, sinks: Any = None
) -> mx.array:
    """(B, heads, T, D) queries over (B, KV heads, S, D) keys and values, after a PromptCache's where `cache` is one."""
    if isinstance(cache, PromptCache):
        if sinks is not None or isinstance(mask, mx.array):
            raise ConfigError("this model's attention has sinks or a mask of its own; set share_prompts: false")
        return _after_prompt(queries * scale, keys, values, cache)
    if not ON_CPU or sinks is not None or hasattr(cache, "bits") or queries.dtype != mx.float32:
        whole: Any = mask  # mlx-lm takes "causal", too
        return base.scaled_dot_product_attention(queries, keys, values, cache, scale, whole, sinks)
    rows, kv_heads, _, size = keys.shape
    queries = queries * scale
    scores = _masked(queries.reshape(rows, kv_heads, -1, size) @ keys.swapaxes(-1, -2), queries, mask)
    powers = exp_under(scores, scores.max(axis=-1, keepdims=True))
    sums = (powers.reshape(rows, kv_heads, -1, keys.shape[2]) @ values).reshape(*queries.shape[:3], -1)
    attended = sums / powers.sum(axis=-1, keepdims=True)
    if isinstance(cache, BatchKVCache) and queries.shape[2] == 1:
        mx.async_eval(attended)  # MLX queues some 50 operations on a CPU: begun later, this layer would wait for Python
    return attended


def _masked(scores: mx.array, queries: mx.array, mask: Mask) -> mx.array:
    """The scores as (B, heads, T, S), as low as can be where the mask hides a token."""
    scores = scores.reshape(*queries.shape[:3], -1)
    length, whole = scores.shape[-2:]
    if isinstance(mask, str):
        mask = mx.arange(whole - length, whole)[:, None] >= mx.arange(whole)[None] if length > 1 else None
    if mask is None:
        return scores
    return mx.where(mask, scores, LOWEST) if mask.dtype == mx.bool_ else scores + mask


def _after_prompt(queries: mx.array, keys: mx.array, values: mx.array, prompt: PromptCache) -> mx.array:
    """Scaled queries over a prompt, all rows' at once, and causally over their own tokens, in one softmax."""
    rows, kv_heads, length, size = keys.shape

    def folded(x: mx.array) -> mx.array:
        """(B, heads, T, X) → (1, KV heads, B · heads / KV heads · T, X)"""
        return x.reshape(rows, kv_heads, -1, x.shape[-1]).swapaxes(0, 1).reshape(1, kv_heads, -1, x.shape[-1])

    def unfolded(x: mx.array) -> mx.array:
        return x.reshape(kv_heads, rows, -1, x.shape[-1]).swapaxes(0, 1).reshape(*queries.shape[:3], -1)

    far = (folded(queries) @ prompt.keys.swapaxes(-1, -2)).astype(mx.float32)
    near = queries.reshape(rows, kv_heads, -1, size) @ keys.swapaxes(-1, -2)
    near = _masked(near.astype(mx.float32), queries, "causal")
    top = mx.maximum(unfolded(far.max(axis=-1, keepdims=True)), near.max(axis=-1, keepdims=True))
    far, near = exp_under(far, folded(top)), exp_under(near, top)
    total = unfolded(far.sum(axis=-1, keepdims=True)) + near.sum(axis=-1, keepdims=True)
    own = near.astype(values.dtype).reshape(rows, kv_heads, -1, length) @ values
    sums = unfolded(far.astype(values.dtype) @ prompt.values) + own.reshape(*queries.shape[:3], -1)
    return (sums / total).astype(values.dtype)
