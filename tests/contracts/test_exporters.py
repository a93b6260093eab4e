"""What exporters write is read by the tools it is meant for, and is there whole or not at all."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_model import make_tiny_model

from grpo_ray import mlx_model
from grpo_ray.errors import ConfigError
from grpo_ray.exporters import adapter, chat
from grpo_ray.mlx_core import mx
from grpo_ray.types import AdapterBytes, Message, Row

from mlx_lm.tuner.datasets import load_local_dataset  # isort: skip
from mlx_lm import utils as mlx_lm_utils  # isort: skip

pytestmark = pytest.mark.process

SPLITS = ("train", "train", "train", "validation", "test")
HOSTILE = 'nul \x00 quote " \\ line\nbreak \u2028 \x85 half \ud800 snow ☃ {"messages": []}'
READ = """
import json, sys, datasets
found = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])
print(json.dumps({split: rows.to_list() for split, rows in found.items()}))
"""


def row(i: int, text: str = "4") -> Row:
    messages = (Message("system", "Be exact."), Message("user", f"{i}+1?"), Message("assistant", text))
    hash = "aa11" if i % 2 else None
    return Row(f"row-{i}", SPLITS[i % 5], messages, 1 if i else 0.5, f"sum-{i}", "sum", "t-1", f"r-{i}", hash, i == 2)


ROWS = [row(i) for i in (4, 2, 0, 1, 3)] + [row(5, HOSTILE)]


def everything(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").split("\n") if line]


def test_chat_writes_sorted_lines_with_the_way_back(tmp_path: Path) -> None:
    out = chat.export(ROWS, tmp_path / "out")
    assert [line["id"] for line in lines(out, "train.jsonl")] == ["row-0", "row-1", "row-2", "row-5"]
    assert lines(out, "valid.jsonl")[0] == {
        "messages": [
            {"role": "system", "content": "Be exact."},
            {"role": "user", "content": "3+1?"},
            {"role": "assistant", "content": "4"},
        ],
        "id": "row-3",
        "reward": 1.0,
        "task_id": "sum-3",
        "task_type": "sum",
        "template_id": "t-1",
        "rollout_id": "r-3",
        "adapter": "aa11",
        "stand_in": False,
    }
    assert b'"reward":1.0' in (out / "valid.jsonl").read_bytes()
    assert lines(out, "train.jsonl")[-1]["messages"][-1]["content"] == HOSTILE.replace("\ud800", "\ufffd")


def test_the_card_says_which_splits_are_empty_and_why(tmp_path: Path) -> None:
    whole, part = chat.export(ROWS, tmp_path / "whole"), chat.export(ROWS[1:3], tmp_path / "part")
    assert "Empty" not in (whole / "README.md").read_text()
    card = (part / "README.md").read_text()
    assert "Empty, and so without a file: validation (valid.jsonl), test (test.jsonl)." in card
    assert "wants train.jsonl and valid.jsonl" in card
    assert not (part / "valid.jsonl").exists()


def test_chat_writes_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    one, two = chat.export(ROWS, tmp_path / "one"), chat.export(ROWS[::-1], tmp_path / "two")
    assert everything(one) == everything(two)


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    out = chat.export(ROWS, tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows"] == 6 and manifest["files"]["train.jsonl"]["rows"] == 4
    assert manifest["files"].keys() == {"train.jsonl", "valid.jsonl", "test.jsonl", "README.md"}
    for name, about in manifest["files"].items():
        content = (out / name).read_bytes()
        assert about["sha256"] == sha256(content).hexdigest() and about["bytes"] == len(content)


def test_datasets_reads_the_folder_offline(tmp_path: Path) -> None:
    """In a process of its own, for the library looks for its settings once."""
    out = chat.export(ROWS, tmp_path / "out")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(out), str(tmp_path / "cache")],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"train", "validation", "test"}
    assert found["train"] == lines(out, "train.jsonl") and found["validation"] == lines(out, "valid.jsonl")


@pytest.mark.mlx
def test_mlx_lm_reads_the_folder(tmp_path: Path) -> None:
    out = chat.export(ROWS, tmp_path / "out")
    _, tokenizer = mlx_lm_utils.load(make_tiny_model(tmp_path / "model"))
    train, valid, test = load_local_dataset(out, tokenizer, SimpleNamespace(mask_prompt=True))
    assert (len(train), len(valid), len(test)) == (4, 1, 1)
    tokens, offset = valid.process(valid[0])
    assert 0 < offset < len(tokens) and tokenizer.decode(tokens[offset:]).startswith("4")


@pytest.mark.mlx
def test_mlx_lm_puts_the_adapter_in_place(tmp_path: Path) -> None:
    """The model that mlx-lm loads with the exported folder has our weights, and says the same."""
    folder = make_tiny_model(tmp_path / "model")
    ours = mlx_model.load(folder)
    mlx_model.wrap(ours, mlx_model.Lora(rank=4, scale=3.0, keys=("self_attn.q_proj",)))
    ours.network.load_weights(
        [(name, array + 0.5) for name, array in mlx_model.adapter_weights(ours).items()], strict=False
    )
    out = adapter.export([], tmp_path / "adapter", adapter=AdapterBytes(mlx_model.adapter_bytes(ours), b""))
    theirs, _ = mlx_lm_utils.load(folder, adapter_path=str(out))[:2]
    ids = mx.array([[5, 6, 7, 8]])
    assert mx.allclose(theirs(ids), ours.network(ids), rtol=1e-5, atol=1e-4)
    bare, _ = mlx_lm_utils.load(folder)[:2]
    assert not mx.allclose(theirs(ids), bare(ids), atol=1e-3)


def test_an_adapter_without_a_shape_is_refused(tmp_path: Path) -> None:
    for weights in (b"", b"canned", (2).to_bytes(8, "little") + b"{}"):
        with pytest.raises(ConfigError, match="mlx_lora"):
            adapter.export([], tmp_path / "adapter", adapter=AdapterBytes(weights, b""))
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_its_like_and_nothing_else(tmp_path: Path) -> None:
    out = chat.export(ROWS, tmp_path / "out")
    chat.export(ROWS[:1], out)
    assert not (out / "train.jsonl").exists() and (out / "test.jsonl").exists()
    before = everything(out)
    (out / "mine.txt").write_text("do not lose this")
    with pytest.raises(ConfigError, match=r"mine\.txt"):
        chat.export(ROWS, out)
    assert everything(out) == before | {"mine.txt": b"do not lose this"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing half-done is left"


def test_folders_of_other_people_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "manifest.json").write_text('{"made_by": "somebody"}')
    with pytest.raises(ConfigError, match="no export wrote"):
        chat.export(ROWS, tmp_path / "theirs")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        chat.export(ROWS, tmp_path / "file")
    with pytest.raises(ConfigError, match="nothing to export"):
        chat.export([], tmp_path / "none")
    assert not (tmp_path / "none").exists()
