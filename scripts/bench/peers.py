"""The other engines, as engine.py asks them: mlx-lm (always there), mlx-lm-lora and Unsloth's MLX trainer (where they are).

A training peer is a function that takes one optimizer step over one group and returns when it is done.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo_ray.mlx_core import mx, numbers  # first: it puts the fast BLAS in place

import mlx.optimizers as optim  # isort: skip
from mlx.nn.utils import value_and_grad  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from mlx_lm import batch_generate, load  # isort: skip
from mlx_lm.generate import BatchGenerator  # isort: skip
from mlx_lm.sample_utils import make_sampler  # isort: skip
from mlx_lm.tuner.utils import linear_to_lora_layers  # isort: skip

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".venv" / "peers"
HINT = f"absent: pip install --no-deps --target {FOLDER.relative_to(HERE.parents[1])} -r scripts/bench/requirements.txt"
LORA = {"rank": 16, "scale": 2.0, "dropout": 0.0}
RATE = 4e-4
Step = Callable[[], None]
Case = dict[str, Any]
"""A group as JSON: prompt (token ids), completions (token ids each), advantages."""


def has(name: str) -> bool:
    """Whether a peer is installed beside us."""
    return (FOLDER / name).is_dir()


def sample_batch(model: Any, tokenizer: Any, prompts: Sequence[list[int]], tokens: int, batch: int) -> None:
    """mlx-lm's batch_generate with one sampler for all, temperature 1."""
    sampler = make_sampler(1.0)
    sizes: dict[str, Any] = {"completion_batch_size": batch, "prefill_batch_size": min(8, batch)}
    batch_generate(model, tokenizer, list(prompts), max_tokens=tokens, sampler=sampler, **sizes)


def sample_rows(model: Any, tokenizer: Any, prompts: Sequence[list[int]], tokens: int, batch: int) -> None:
    """mlx-lm's BatchGenerator with a sampler of its own for every row."""
    engine = BatchGenerator(model, stop_tokens=[[id] for id in tokenizer.eos_token_ids], completion_batch_size=batch)
    engine.insert(list(prompts), [tokens] * len(prompts), samplers=[make_sampler(1.0) for _ in prompts])
    while engine.next_generated():
        pass
    engine.close()


def load_mlx_lm(folder: str) -> tuple[Any, Any]:
    model, tokenizer = load(folder)[:2]
    return model, tokenizer


def with_lora(folder: str) -> tuple[Any, Any]:
    """The model in LoRA of the shape that ours has, and Adam."""
    model, _ = load_mlx_lm(folder)
    model.freeze()
    linear_to_lora_layers(model, -1, LORA)
    model.train()
    optimizer = optim.Adam(learning_rate=RATE, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    mx.eval(model.parameters(), optimizer.state)
    return model, optimizer


def mlx_lm_lora_step(folder: str, case: Case, rows: int) -> Step:
    """mlx-lm-lora's GRPO loss and step, without a reference model, `rows` rollouts a micro-batch."""
    sys.path.append(str(FOLDER))
    from mlx_lm_lora.trainer import grpo_trainer as theirs  # pyright: ignore[reportMissingImports]

    model, optimizer = with_lora(folder)
    slope = value_and_grad(model, theirs.grpo_loss)
    given = {
        "batch": ([case["prompt"]], [[]], [""], [""], None),
        "completions": [mx.array(tokens, mx.int32) for tokens in case["completions"]],
        "completion_texts": [""] * len(case["completions"]),
        "batch_indices": [0] * len(case["completions"]),
        "advantages": mx.array(case["advantages"]),
        "ref_model": None,
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "max_tokens": len(case["completions"][0]),
        "grpo_loss_type": "bnpo",
    }

    def step() -> None:
        (loss, _, _), gradient = theirs._grpo_value_and_grad(slope, model, rows, **given)
        leaves: Any = tree_flatten(gradient)
        finite = mx.isfinite(loss) & mx.all(mx.stack([mx.isfinite(leaf).all() for _, leaf in leaves]))
        assert numbers(finite)
        optimizer.update(model, gradient)
        mx.eval(model.state, optimizer.state)

    return step


@contextmanager
def unsloth_step(folder: str, case: Case) -> Iterator[Step]:
    """Unsloth's GRPO loss and step, in a process of its own: its licence is not ours."""
    command = [sys.executable, str(HERE / "unsloth_peer.py"), str(FOLDER), folder]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdin and process.stdout

        def ask(line: str) -> None:
            process.stdin.write(line + "\n")  # pyright: ignore[reportOptionalMemberAccess]
            process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
            answer = process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
            if answer != "done\n":
                raise RuntimeError(f"the peer's process said {answer!r}")

        ask(json.dumps(case))
        yield lambda: ask("step")
        process.stdin.close()
