"""What a config may say of sampling, and how it reaches the rollouts."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from grpo_ray.canonical import plain, typed
from grpo_ray.errors import ConfigError
from grpo_ray.recipe import SamplingSpec
from grpo_ray.settings import load_config
from grpo_ray.types import Rollout, Sampling


def config(folder: Path, *overrides: str) -> SamplingSpec:
    (folder / "sums.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}))
    path = folder / "run.yaml"
    path.write_text("tasks: [{name: jsonl, settings: {path: sums.jsonl}}]\ngenerator: {name: canned}\ntrainer: null\n")
    return load_config(path, overrides).recipe.sampling


def test_filters_and_stop_sequences_can_be_set(tmp_path: Path) -> None:
    spec = config(tmp_path, "sampling.min_p=0.1", "sampling.repetition_penalty=1.2", "sampling.stop=[END, '###']")
    assert (spec.min_p, spec.repetition_penalty, spec.stop) == (0.1, 1.2, ("END", "###"))
    assert Sampling(**asdict(spec), seed=3).stop == ("END", "###")


@pytest.mark.parametrize(
    "override",
    ["min_p=1.5", "min_p=-0.1", "repetition_penalty=0", "repetition_penalty=11", "stop=['']", "stop=END", "stop=[1]"],
)
def test_what_is_out_of_bounds_is_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=rf"sampling\.{override.partition('=')[0]}"):
        config(tmp_path, f"sampling.{override}")


def test_what_was_saved_before_reads_as_neutral() -> None:
    kept = plain(Sampling(top_k=3))
    for name in ("min_p", "repetition_penalty", "stop"):
        del kept[name]
    assert typed(Sampling, kept) == Sampling(top_k=3)
    old = {"id": "r", "index": 0, "text": "", "token_ids": [], "logprobs": [], "finish_reason": "stop", "seed": 1}
    assert typed(Rollout, old).model_logprobs == ()
