"""Gradient checkpointing: a layer's activations are made again on the way back instead of being kept.

mlx-lm's `grad_checkpoint` patches a class, for every model of the process, and once more at each call. Here the layers
of one model change their own class, to one that knows it is such; doing it again does nothing.
"""

from functools import cache
from typing import Any

from grpo_ray.mlx_core import mx


def checkpoint_layers(network: Any) -> None:
    """Let each of the network's layers recompute itself in the backward pass."""
    for layer in network.layers:
        if not hasattr(type(layer), "checkpointed"):
            layer.__class__ = _checkpointed(type(layer))


@cache
def _checkpointed(kind: type) -> type:
    def call(layer: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """As `kind` does it; a cache's keys and values go in and out as arrays, so that doing it twice is the same."""
        held = layer.trainable_parameters()

        def again(held: Any, x: mx.array, state: Any) -> Any:
            layer.update(held)
            if cache is None:
                return kind.__call__(layer, x, mask, None), None
            own = type(cache)()
            if state is not None:
                own.state = state
            return kind.__call__(layer, x, mask, own), own.state

        out, state = mx.checkpoint(again)(held, x, None if cache is None or cache.empty() else cache.state)
        layer.update(held)
        if cache is not None:
            cache.state = state
        return out

    return type(f"Checkpointed{kind.__name__}", (kind,), {"__call__": call, "checkpointed": True})
