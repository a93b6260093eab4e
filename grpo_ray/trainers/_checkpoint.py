"""Gradient checkpointing: a layer's activations are made again on the way back instead of being kept.

mlx-lm's `grad_checkpoint` patches a class, for every model of the process, and once more at each call. Here the layers
of one model change their own class, to one that knows it is such; doing it again does nothing.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from grpo_ray.errors import ConfigError
from grpo_ray.mlx_core import mx

from mlx.utils import tree_flatten, tree_map  # isort: skip  (mlx_core comes first)
from mlx_lm.models.cache import ConcatenateKVCache, KVCache  # isort: skip


def checkpoint_layers(network: Any) -> None:
    """Let each of the network's layers recompute itself in the backward pass.

    Such a layer takes whatever it took before; it raises ConfigError for a cache that can't be filled twice.
    """
    for layer in network.layers:
        if not hasattr(type(layer), "checkpointed"):
            layer.__class__ = _checkpointed(type(layer))


@cache
def _checkpointed(kind: type) -> type:
    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        """As `kind` does it; a cache's keys and values go in and out as arrays, so that doing it twice is the same."""
        given = (args, kwargs)
        caches = [leaf for leaf in _leaves(given) if _holds_state(leaf)]
        held = layer.trainable_parameters()

        def again(held: Any, floats: Sequence[mx.array], states: Sequence[Any]) -> Any:
            layer.update(held)
            own = [_filled(type(one), state) for one, state in zip(caches, states, strict=True)]
            args, kwargs = _with(given, iter(floats), iter(own))
            return kind.__call__(layer, *args, **kwargs), [one.state for one in own]

        # What a function under mx.checkpoint finds outside its arguments gets no gradient, and an argument that is no
        # float may have none to give.
        floats = [leaf for leaf in _leaves(given) if _is_float(leaf)]
        states = [None if one.empty() else one.state for one in caches]
        out, states = mx.checkpoint(again)(held, floats, states)
        layer.update(held)
        for one, state in zip(caches, states, strict=True):
            one.state = state
        return out

    return type(f"Checkpointed{kind.__name__}", (kind,), {"__call__": call, "checkpointed": True})


def _leaves(tree: Any) -> list[Any]:
    pairs: Any = tree_flatten(tree)
    return [leaf for _, leaf in pairs]


def _with(given: Any, floats: Iterator[mx.array], caches: Iterator[Any]) -> Any:
    """`given` with these in the places of its own floats and caches, in order."""

    def instead(leaf: Any) -> Any:
        if _is_float(leaf):
            return next(floats)
        return next(caches) if _holds_state(leaf) else leaf

    return tree_map(instead, given)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)


def _holds_state(leaf: Any) -> bool:
    """Whether this is a cache; other kinds of mlx-lm's hold more than their `state` says. Raises ConfigError for those."""
    if isinstance(leaf, ConcatenateKVCache | KVCache):
        return True
    if hasattr(leaf, "state") and hasattr(leaf, "empty"):
        raise ConfigError(
            f"the model's layers keep a {type(leaf).__name__}, which can't be filled twice: "
            "set gradient_checkpointing: false"
        )
    return False


def _filled(kind: type, state: Any) -> Any:
    cache = kind()
    if state is not None:
        cache.state = state
    return cache
