"""Every loss, schedule and kind of adapter through the trainer itself, on a tiny model's real rollouts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lessons import FIRST, SETTINGS, preference, prepared, sample_lessons, trained
from tiny_model import make_tiny_model

from grpo_ray import mlx_model
from grpo_ray.errors import ConfigError
from grpo_ray.mlx_core import mx
from grpo_ray.trainers._checkpoint import checkpoint_layers
from grpo_ray.trainers._head import find_head
from grpo_ray.trainers._pupil import Reader, pupil_of, read_plain, read_shared
from grpo_ray.trainers.losses import Objective, token_weights
from grpo_ray.trainers.mlx_lora import gradient_of, make_trainer
from grpo_ray.types import Lesson, Sampling

from mlx import nn  # isort: skip
from mlx.utils import tree_flatten  # isort: skip

pytestmark = pytest.mark.mlx
LOSSES = ["dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo", "sft", "dpo"]
MISMATCHES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@pytest.fixture(scope="module")
def first(folder, lessons):
    return make_trainer(model=folder, **SETTINGS).update(None, None, lessons, 11)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_raises_what_was_better(folder, lessons, loss):
    trainer = make_trainer(model=folder, **SETTINGS, loss=loss)
    update = trainer.update(None, None, lessons, 11)
    assert not update.skipped
    assert preference(trained(folder, update.content), lessons) > preference(trained(folder, None), lessons)
    assert trainer.update(None, None, list(reversed(lessons)), 11).content == update.content


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_a_sampler_that_agrees_needs_no_correction(folder, lessons, mismatch):
    """ρ is 1 where the sampler says what the trainer says, and is felt where it does not."""
    plain = make_trainer(model=folder, **SETTINGS).update(None, None, lessons, 11)
    trainer = make_trainer(model=folder, **SETTINGS | {"mismatch": mismatch})
    same = trainer.update(None, None, lessons, 11)
    pairs = zip(
        mlx_model.unpack(same.content.weights)[0].values(),
        mlx_model.unpack(plain.content.weights)[0].values(),
        strict=True,
    )
    assert max(mx.abs(a - b).max().item() for a, b in pairs) < 1e-3
    off = [biased(lesson, -0.5) for lesson in lessons]
    moved = trainer.update(None, None, off, 11)
    assert moved.content.weights != same.content.weights
    assert abs(dict(moved.metrics)["mismatch"] - 0.5) < 1e-3


def biased(lesson: Lesson, shift: float) -> Lesson:
    """The lesson as a sampler would have it whose log-probabilities are off by `shift`."""
    rollouts = tuple(
        replace(one.rollout, logprobs=tuple(value + shift for value in one.rollout.logprobs))
        for one in lesson.group.rollouts
    )
    scored = tuple(replace(one, rollout=r) for one, r in zip(lesson.group.rollouts, rollouts, strict=True))
    return replace(
        lesson, group=replace(lesson.group, group=replace(lesson.group.group, rollouts=rollouts), rollouts=scored)
    )


def test_a_schedule_goes_on_from_the_optimizers_step(folder, lessons, first):
    """Four steps of a linear schedule of eight, then the other four: nothing is left of the rate at the end."""
    settings = {**SETTINGS, "schedule": "linear", "warmup_steps": 2, "schedule_steps": 8}
    trainer = make_trainer(model=folder, **settings)
    half = trainer.update(None, None, lessons, 11)
    assert half.content.weights != first.content.weights
    rest = trainer.update(FIRST, half.content, lessons, 12)
    again = make_trainer(model=folder, **settings).update(FIRST, half.content, lessons, 12)
    assert again.content == rest.content != half.content
    assert trainer.update(FIRST, rest.content, lessons, 13).content.weights == rest.content.weights


def test_weight_decay_shrinks_what_nothing_teaches(folder, lessons, first):
    idle = [replace(lesson, advantages=(0.0,) * 4) for lesson in lessons]
    trainer = make_trainer(model=folder, **SETTINGS, weight_decay=1.0)
    forgotten = replace(first.content, optimizer=b"")
    after = mlx_model.unpack(trainer.update(FIRST, forgotten, idle, 1).content.weights)[0]
    before = mlx_model.unpack(first.content.weights)[0]
    assert all(mx.allclose(after[name], before[name] * 0.995**4, rtol=1e-4, atol=1e-7).item() for name in before)


def test_cut_off_rollouts_may_be_left_out(folder, lessons):
    trainer = make_trainer(model=folder, **SETTINGS, mask_truncated=True)
    cut = [all(one.rollout.finish_reason == "length" for one in lesson.group.rollouts) for lesson in lessons]
    assert all(cut)
    assert "take part" in trainer.update(None, None, lessons, 11).skipped
    pupil = pupil_of(ended(lessons[0], 1), mask_truncated=True)
    assert pupil and pupil.lengths == (0, 14, 0, 0)
    assert not trainer.update(None, None, [ended(lesson, 1) for lesson in lessons], 11).skipped


def ended(lesson: Lesson, row: int) -> Lesson:
    """The lesson with one rollout that ended by itself."""
    group = lesson.group.group
    rollouts = [replace(r, finish_reason="stop") if r.index == row else r for r in group.rollouts]
    return replace(lesson, group=replace(lesson.group, group=replace(group, rollouts=tuple(rollouts))))


def test_length_is_punished_in_the_advantages(lessons):
    group = lessons[0].group.group
    rollouts = [replace(r, token_ids=r.token_ids[:n]) for r, n in zip(group.rollouts, (14, 12, 10, 4), strict=True)]
    short = replace(lessons[0], group=replace(lessons[0].group, group=replace(group, rollouts=tuple(rollouts))))
    short = replace(short, advantages=(0.0,) * 4)
    pupil = pupil_of(short, overlong=4)
    assert pupil and pupil.advantages_G.tolist() == [-0.625, -0.125, 0.375, 0.375]


@pytest.mark.parametrize(
    "stop", [{"stop_kl": 0.0}, {"stop_ratio": 0.5}, {"stop_entropy": 99.0}, {"stop_grad_norm": 0.0}]
)
def test_leaving_the_bounds_stops_the_update(folder, lessons, first, stop):
    update = make_trainer(model=folder, **SETTINGS, **stop).update(FIRST, first.content, lessons, 12)
    assert "diverged" in update.skipped and update.content == first.content


def test_dora_learns_and_goes_on(folder, lessons):
    trainer = make_trainer(model=folder, **SETTINGS, kind="dora", kl=0.01)
    once = trainer.update(None, None, lessons, 1)
    names, config = mlx_model.unpack(once.content.weights)
    assert config["fine_tune_type"] == "dora" and {name.rsplit(".", 1)[-1] for name in names} == {
        "lora_a",
        "lora_b",
        "m",
    }
    assert preference(trained(folder, once.content), lessons) > preference(trained(folder, None), lessons)
    other = make_trainer(model=folder, **SETTINGS, kind="dora", kl=0.01)
    again = [one.update(FIRST, once.content, lessons, 2).content for one in (trainer, other)]
    assert again[0] == again[1] != once.content


def test_unwrapping_gives_the_base_model_back(folder, lessons):
    pupil = pupil_of(lessons[0])
    model = mlx_model.load(folder)
    bare = read_plain(model.network, pupil)
    for kind in ("dora", "lora", "dora"):
        mlx_model.wrap(model, mlx_model.Lora(rank=4, kind=kind))
        assert not any("lora_a" in m.get("linear", {}) for _, m in model.network.named_modules() if "lora_a" in m)
    mlx_model.unwrap(model)
    assert mx.array_equal(read_plain(model.network, pupil), bare).item()


def test_a_four_bit_base_learns(tmp_path):
    folder = four_bit(Path(make_tiny_model(tmp_path / "tiny", intermediate_size=64)))
    lessons = sample_lessons(folder, Sampling(group_size=4, temperature=0.9, max_tokens=14, slots=8))
    update = make_trainer(model=folder, **SETTINGS).update(None, None, lessons, 11)
    assert not update.skipped
    assert preference(trained(folder, update.content), lessons) > preference(trained(folder, None), lessons)


def four_bit(folder: Path) -> str:
    """Quantize a tiny model's files in place."""
    model = mlx_model.load(str(folder))
    nn.quantize(model.network, group_size=32, bits=4)
    config = json.loads((folder / "config.json").read_text()) | {"quantization": {"group_size": 32, "bits": 4}}
    weights = dict(tree_flatten(model.network.parameters()))
    (folder / "model.safetensors").write_bytes(mlx_model.pack(weights, config))
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("read", [read_shared, read_plain])
def test_checkpointed_layers_have_the_same_gradient_and_do_not_nest(folder, lessons, first, read):
    pupil = pupil_of(lessons[0])
    network, other = prepared(folder, first.content).network, prepared(folder, first.content).network
    weights = mx.array(token_weights([pupil.lengths], "dapo")[0])
    (expected, _), slopes = gradient_of(Reader(network, read), pupil, weights, Objective())
    for _ in range(3):
        checkpoint_layers(network)
    assert type(network.layers[0]).__mro__[1] is type(other.layers[0])
    (loss, _), again = gradient_of(Reader(network, read), pupil, weights, Objective())
    assert loss.item() == expected.item()
    pairs = zip(dict(tree_flatten(slopes)).items(), dict(tree_flatten(again)).items(), strict=True)
    assert all(a == b and mx.allclose(x, y, atol=1e-6).item() for (a, x), (b, y) in pairs)


def test_checkpointing_trains(folder, lessons, first):
    update = make_trainer(model=folder, **SETTINGS, gradient_checkpointing=True).update(None, None, lessons, 11)
    ours, theirs = mlx_model.unpack(update.content.weights)[0], mlx_model.unpack(first.content.weights)[0]
    assert ours.keys() == theirs.keys()
    assert all(mx.allclose(ours[name], theirs[name], atol=1e-3).item() for name in ours)


@pytest.mark.parametrize("read", [read_shared, read_plain])
def test_the_chunked_head_has_the_plain_loss_and_gradient(folder, lessons, first, read):
    network = prepared(folder, first.content).network
    head = find_head(network)
    for lesson in lessons:
        pupil = pupil_of(lesson)
        weights = mx.array(token_weights([pupil.lengths], "dapo")[0])
        plain, chunked = (gradient_of(Reader(network, read, h), pupil, weights, Objective()) for h in (None, head))
        assert mx.allclose(plain[0][1], chunked[0][1], rtol=1e-4, atol=1e-3).item()
        slopes, expected = dict(tree_flatten(chunked[1])), dict(tree_flatten(plain[1]))
        largest = max(mx.abs(slope).max().item() for slope in expected.values())
        assert max(mx.abs(slopes[name] - expected[name]).max().item() for name in slopes) <= 1e-5 * largest


def test_a_large_vocabulary_takes_the_chunked_head_and_a_trained_head_does_not(tmp_path):
    folder = make_tiny_model(tmp_path / "large", vocab_size=2000, tie_word_embeddings=False)
    lessons = sample_lessons(folder, Sampling(group_size=4, max_tokens=6, slots=8))
    trainer = make_trainer(model=folder, rank=4)
    assert not trainer.update(None, None, lessons, 1).skipped and trainer.reader().head is not None
    trainer = make_trainer(model=folder, rank=4, keys=["self_attn.q_proj", "lm_head"])
    assert not trainer.update(None, None, lessons, 1).skipped and trainer.reader().head is None


@pytest.mark.parametrize(
    "wrong",
    [{"loss": "ppo"}, {"kind": "full"}, {"schedule": "linear"}, {"epochs": 0}, {"stop_kl": -1.0}],
)
def test_settings_that_cannot_be_are_refused(folder, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).removeprefix("stop_")):
        make_trainer(model=folder, **wrong)
