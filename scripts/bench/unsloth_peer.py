"""Unsloth's MLX GRPO step in a process of its own: `unsloth_peer.py PEERS MODEL`, a case, then `step` lines on stdin.

Its package refuses to be imported on a machine without PyTorch, though its MLX part needs none, so the part is
imported alone.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_ray.mlx_core import mx  # first: it puts the fast BLAS in place

from mlx.nn.utils import value_and_grad  # isort: skip

from peers import with_lora


def load_grpo(peers: str) -> Any:
    """`unsloth_zoo.mlx.grpo` without its package's own start."""
    sys.path.append(peers)
    package = ModuleType("unsloth_zoo")
    package.__path__ = [str(Path(peers) / "unsloth_zoo")]
    sys.modules["unsloth_zoo"] = package
    return importlib.import_module("unsloth_zoo.mlx.grpo")


def make_steps(grpo: Any, folder: str, case: dict[str, Any]) -> list[Callable[[], None]]:
    """One optimizer step over the case: as it is written, and compiled as a whole."""
    model, optimizer = with_lora(folder)
    prompt, completions = case["prompt"], case["completions"]
    tokens = mx.array([[*prompt, *completion] for completion in completions])
    lengths = mx.array([[len(prompt), len(prompt) + len(completion)] for completion in completions])
    total = float(sum(map(len, completions)))
    objective = grpo.GRPOObjective(loss_type="dapo", beta=0.0, max_completion_length=len(completions[0]))
    slope = value_and_grad(model, grpo.make_grpo_loss_fn(objective))
    given = (tokens, lengths, mx.array([1.0, total]), mx.array(case["advantages"]), mx.ones(len(completions)))
    state = [model.state, optimizer.state]

    def update() -> tuple[mx.array, mx.array]:
        (loss, _, stats), gradient = slope(model, *given)
        optimizer.update(model, gradient)
        return loss, stats

    compiled = mx.compile(update, inputs=state, outputs=state)
    return [lambda: mx.eval(update(), state), lambda: mx.eval(compiled(), state)]


def seconds(step: Callable[[], None]) -> float:
    """How long the second call takes."""
    step()
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    """Serve the faster of the two steps until the other end closes; an answer is `done`."""
    grpo = load_grpo(sys.argv[1])
    step = min(make_steps(grpo, sys.argv[2], json.loads(sys.stdin.readline())), key=seconds)
    print("done", flush=True)
    for line in sys.stdin:
        assert line.strip() == "step", line
        step()
        print("done", flush=True)


if __name__ == "__main__":
    main()
