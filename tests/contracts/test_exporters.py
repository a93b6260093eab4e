"""What exporters write is read by the tools it is meant for, and is there whole or not at all."""

import asyncio
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_run import RECIPE, RUN, SEED, small_archive
from tiny_model import make_tiny_model

from grpo_ray import mlx_model, operations
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.exporters import adapter, chat, fused
from grpo_ray.exporters._folder import build
from grpo_ray.mlx_core import mx
from grpo_ray.recipe import RunState
from grpo_ray.types import Adapter, AdapterBytes, Member, Message, Policy, Population, Row

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


def test_a_folder_in_a_folder_is_ours_only_where_an_export_wrote_it(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text("ours")

    out = build(tmp_path / "out", fill, {})
    assert json.loads((out / "manifest.json").read_text())["files"].keys() == {"inner/a.txt"}
    build(out, fill, {})
    (out / "inner" / "mine.txt").write_text("do not lose this")
    with pytest.raises(ConfigError, match=r"inner/mine\.txt"):
        build(out, fill, {})


def test_what_fails_half_way_leaves_the_earlier_export(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "train.jsonl").write_text("half of a li")
        raise OSError(28, "No space left on device")

    out = chat.export(ROWS, tmp_path / "out")
    before = everything(out)
    with pytest.raises(OSError, match="No space"):
        build(out, fill, {})
    assert everything(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_but_the_fused_format_loads_mlx() -> None:
    """It takes seconds, and a row or a help text needs none of it."""
    script = (
        "import sys; from grpo_ray import cli, launch, operations, registry\n"
        "for name in ('chat', 'adapter'): registry.find('exporters', name, 'export')\n"
        "registry.names('exporters'); sys.exit('mlx' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# Fused weights


def adapted(folder: str, kind: mlx_model.Kind = "lora") -> mlx_model.Model:
    """The tiny model with an adapter that clearly changes what it says."""
    model = mlx_model.load(folder)
    mx.random.seed(3)
    mlx_model.wrap(model, mlx_model.Lora(rank=4, scale=2.0, kind=kind, keys=("self_attn.q_proj", "mlp.down_proj")))
    weights = mlx_model.adapter_weights(model).items()
    moved = [(name, array + 0.2 * mx.random.normal(array.shape)) for name, array in weights]
    model.network.load_weights(moved, strict=False)
    return model


def bytes_of(model: mlx_model.Model) -> AdapterBytes:
    return AdapterBytes(mlx_model.adapter_bytes(model), b"")


def state_of(model: str) -> RunState:
    seeds = Population((Member(SEED),))
    last = Adapter("b" * 64, 3, None, 2)
    return RunState("run-1", 3, replace(RECIPE, model=model), seeds, last, (Policy(seeds, last),))


def logits(folder: str | Path) -> mx.array:
    return mlx_lm_utils.load(str(folder))[0](IDS)


def converted(folder: str, out: Path, *, bits: int | None = None) -> str:
    """The model in bfloat16, or quantized by mlx-lm."""
    network, tokenizer, config = mlx_lm_utils.load(folder, return_config=True)
    if bits is None:
        network.set_dtype(mx.bfloat16)
    else:
        network, config = mlx_lm_utils.quantize_model(network, config, 32, bits)
    mlx_lm_utils.save(out, folder, network, tokenizer, config)
    return str(out)


def near(one: mx.array, other: mx.array) -> float:
    return float(mx.abs(one - other).mean())


IDS = mx.array([[5, 6, 7, 8, 30, 41]])


@pytest.mark.mlx
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_fused_model_says_what_base_and_adapter_say(tmp_path: Path, kind: mlx_model.Kind) -> None:
    folder = make_tiny_model(tmp_path / "model")
    ours = adapted(folder, kind)
    out = fused.export(ROWS, tmp_path / "fused", adapter=bytes_of(ours), state=state_of(folder))
    said = logits(out)
    assert mx.allclose(said, ours.network(IDS), rtol=1e-4, atol=1e-4)
    assert not mx.allclose(said, logits(folder), atol=1e-1)
    plain = mlx_model.load(str(out))
    assert mx.allclose(plain.network(IDS), said, rtol=1e-4, atol=1e-4), "and our own loading reads it"


@pytest.mark.mlx
def test_the_fused_folder_has_the_bases_tokenizer_and_says_what_it_is(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    (Path(folder) / "LICENSE").write_text("theirs")
    out = fused.export(ROWS, tmp_path / "fused", adapter=bytes_of(adapted(folder)), state=state_of(folder))
    (_, before), (_, after) = (mlx_lm_utils.load(str(where))[:2] for where in (folder, out))
    said = [{"role": "user", "content": "7 + 5?"}]
    assert after.apply_chat_template(said) == before.apply_chat_template(said)
    assert after.eos_token_ids == before.eos_token_ids and after.decode(after.encode("a b\n")) == "a b\n"
    copied = ("tokenizer.json", "tokenizer_config.json", "LICENSE")
    assert all((out / name).read_bytes() == (Path(folder) / name).read_bytes() for name in copied)
    card = (out / "README.md").read_text()
    for part in ("`run-1`", f"`{folder}`", "b" * 64, "LoRA of rank 4", "float32", "true for 1 of the 6 rows"):
        assert part in card
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["format"], manifest["adapter"], manifest["model"]) == ("fused", "b" * 64, folder)
    assert manifest["files"].keys() == {file.name for file in out.iterdir()} - {"manifest.json"}
    for name, about in manifest["files"].items():
        assert about["sha256"] == sha256((out / name).read_bytes()).hexdigest()


@pytest.mark.mlx
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_fused_model_keeps_the_bases_type(tmp_path: Path, kind: mlx_model.Kind) -> None:
    """DoRA's magnitudes are float32, and one float32 layer would make all that follow it compute in float32."""
    folder = converted(make_tiny_model(tmp_path / "model"), tmp_path / "half")
    ours = adapted(folder, kind)
    out = fused.export(ROWS, tmp_path / "fused", adapter=bytes_of(ours), state=state_of(folder))
    assert {array.dtype for array in mx.load(str(out / "model.safetensors")).values()} == {mx.bfloat16}
    assert "rounded to that" in (out / "README.md").read_text()
    told = ours.network(IDS)
    assert near(logits(out), told) < 0.1 * near(logits(folder), told)


@pytest.mark.mlx
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_quantized_base_is_quantized_again_or_unpacked(tmp_path: Path, kind: mlx_model.Kind) -> None:
    folder = converted(make_tiny_model(tmp_path / "model"), tmp_path / "four", bits=4)
    ours = adapted(folder, kind)
    told, content, state = ours.network(IDS), bytes_of(ours), state_of(folder)
    small = fused.export(ROWS, tmp_path / "small", adapter=content, state=state)
    large = fused.export(ROWS, tmp_path / "large", adapter=content, state=state, dequantize=True)
    assert near(logits(small), told) < 0.5 * near(logits(folder), told)
    assert mx.allclose(logits(large), told, rtol=1e-3, atol=1e-3)
    assert json.loads((small / "config.json").read_text())["quantization"]["bits"] == 4
    assert not {"quantization", "quantization_config"} & json.loads((large / "config.json").read_text()).keys()
    assert "quantized again** (to 4 bits)" in (small / "README.md").read_text()
    assert "float32, unpacked from the quantized base" in (large / "README.md").read_text()


@pytest.mark.mlx
def test_what_can_not_be_fused_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    folder, wide = make_tiny_model(tmp_path / "model"), make_tiny_model(tmp_path / "wide", hidden_size=64)
    content, out = bytes_of(adapted(folder)), tmp_path / "out" / "fused"
    with pytest.raises(MissingError, match=r"no model folder(.|\n)*--set model=FOLDER"):
        fused.export(ROWS, out, adapter=content, state=state_of(str(tmp_path / "gone")))
    with pytest.raises(MissingError, match=r"does not fit(.|\n)*--set model=FOLDER"):
        fused.export(ROWS, out, adapter=content, state=state_of(wide))
    with pytest.raises(ConfigError, match="mlx_lora"):
        fused.export(ROWS, out, adapter=AdapterBytes(b"canned", b""), state=state_of(folder))
    with pytest.raises(ConfigError, match="is the base model itself"):
        fused.export(ROWS, Path(folder), adapter=content, state=state_of(folder))
    assert list(out.parent.iterdir()) == []
    moved = fused.export(ROWS, out, adapter=content, state=state_of(str(tmp_path / "gone")), model=folder)
    assert f"`{folder}`" in (moved / "README.md").read_text()


@pytest.mark.mlx
def test_a_full_disk_leaves_nothing_half_fused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    content, out = bytes_of(adapted(folder)), tmp_path / "out"
    out.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a file may not grow beyond: the disk is full
    try:
        with pytest.raises(ConfigError, match="room on the disk"):
            fused.export(ROWS, out / "fused", adapter=content, state=state_of(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(out.iterdir()) == []


@pytest.mark.mlx
def test_a_runs_adapter_leaves_as_every_format_and_no_rows_are_claimed(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    ours = adapted(folder)

    async def main() -> None:
        archive = await small_archive()
        store = await archive.open(RUN)
        state = await store.load_state()
        assert state is not None
        last = Adapter("b" * 64, 2, None, 2)
        await store.save_adapter(last, bytes_of(ours), [])
        await store.save_state(replace(state.next(last, state.population), recipe=replace(RECIPE, model=folder)))
        told = await operations.export(archive, RUN, "adapter", tmp_path / "adapter", {"kind": "peft"})
        assert told["rows"] == 0
        told = await operations.export(archive, RUN, "fused", tmp_path / "fused", {"dequantize": True})
        assert told["rows"] == 0 and str(tmp_path / "fused" / "model.safetensors") in told["files"]
        with pytest.raises(ConfigError, match="takes adapter from the run"):
            await operations.export(archive, RUN, "fused", tmp_path / "fused", {"adapter": "mine"})
        with pytest.raises(ConfigError, match="did you mean 'dequantize'"):
            await operations.export(archive, RUN, "fused", tmp_path / "fused", {"dequantise": True})
        with pytest.raises(ConfigError, match=r"settings\.dequantize"):
            await operations.export(archive, RUN, "fused", tmp_path / "fused", {"dequantize": "maybe"})

    asyncio.run(main())
    assert mx.allclose(logits(tmp_path / "fused"), ours.network(IDS), rtol=1e-4, atol=1e-4)
