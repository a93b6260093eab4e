"""The LoRA trainer keeps the Trainer protocol: the same bytes for the same lessons, and it does learn."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
from lessons import FIRST, SETTINGS, preference, prepared, sample_lessons, trained
from mlx.utils import tree_flatten
from mlx_lm import load as load_with_mlx_lm
from tiny_model import make_tiny_model

from grpo_ray import mlx_model
from grpo_ray.crew import share_update
from grpo_ray.mlx_core import mx
from grpo_ray.trainers._pupil import Reader, pupil_of, read_plain, read_shared
from grpo_ray.trainers.losses import Objective, token_logprobs, token_weights
from grpo_ray.trainers.mlx_lora import gradient_of, make_trainer
from grpo_ray.types import Sampling

pytestmark = pytest.mark.mlx
METRICS = {
    *("loss", "grad_norm", "kl", "clip_share", "clip_low", "clip_high", "ratio", "entropy", "mismatch"),
    *("mean_length", "tokens", "tokens_per_s", "seconds"),
}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A model without strong likes, on which rounding doesn't grow: its folder, lessons, and a first update."""
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "calm", sharpness=1.0)
    lessons = sample_lessons(folder, Sampling(group_size=4, temperature=0.9, max_tokens=14, slots=8))
    return folder, lessons, make_trainer(model=folder, **SETTINGS).update(None, None, lessons, 11)


@pytest.fixture(scope="module")
def trainer(folder):
    return make_trainer(model=folder, **SETTINGS)


@pytest.fixture(scope="module")
def first(trainer, lessons):
    return trainer.update(None, None, lessons, 11)


def test_an_update_raises_what_was_better(folder, lessons, first):
    assert not first.skipped
    assert preference(trained(folder, first.content), lessons) > preference(trained(folder, None), lessons) + 0.05


def test_metrics_are_complete_and_finite(first, lessons):
    metrics = dict(first.metrics)
    assert set(metrics) == METRICS
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["tokens"] == 2 * sum(len(r.token_ids) for lesson in lessons for r in lesson.group.group.rollouts)
    assert 0 < metrics["entropy"] < np.log(100) and 0 <= metrics["clip_share"] < 1
    assert metrics["clip_share"] == metrics["clip_low"] + metrics["clip_high"]
    lengths = [len(r.token_ids) for lesson in lessons for r in lesson.group.group.rollouts]
    assert metrics["mean_length"] == sum(lengths) / len(lengths)


def test_the_same_arguments_give_the_same_bytes(folder, trainer, lessons, first):
    assert trainer.update(None, None, lessons, 11).content == first.content
    second = trainer.update(FIRST, first.content, lessons, 12)
    assert second.content != first.content
    other = make_trainer(model=folder, **SETTINGS)
    assert other.update(FIRST, first.content, list(reversed(lessons)), 12).content == second.content


def test_the_seed_chooses_fresh_weights_and_order(trainer, lessons, first):
    assert trainer.update(None, None, lessons, 12).content != first.content


def test_optimizer_state_goes_on(trainer, lessons, first):
    moments, config = mlx_model.unpack(first.content.optimizer)
    assert config == {"optimizer": "adam", "step": 4}
    assert {name.rsplit(".", 1)[-1] for name in moments} == {"m", "v"}
    later = trainer.update(FIRST, first.content, lessons, 12)
    assert mlx_model.unpack(later.content.optimizer)[1]["step"] == 8
    amnesia = replace(first.content, optimizer=b"")
    assert trainer.update(FIRST, amnesia, lessons, 12).content.weights != later.content.weights


def test_the_gate_scales_the_rate(trainer, lessons, first):
    still = trainer.update(replace(FIRST, rate_scale=0.0), first.content, lessons, 12)
    assert still.content.weights == first.content.weights

    def moved(scale: float) -> float:
        new = trainer.update(replace(FIRST, rate_scale=scale), first.content, lessons, 12).content.weights
        pairs = zip(mlx_model.unpack(new)[0].values(), mlx_model.unpack(first.content.weights)[0].values(), strict=True)
        return sum(mx.abs(a - b).sum().item() for a, b in pairs)

    assert moved(0.25) < 0.5 * moved(1.0)


def test_the_first_ratio_is_one(folder, lessons):
    """The sampler's stored log-probabilities and the trainer's own pass agree, at a temperature that isn't 1."""
    once = make_trainer(model=folder, rank=4, epochs=1, groups_per_batch=len(lessons))
    metrics = dict(once.update(None, None, lessons, 1).metrics)
    assert abs(metrics["ratio"] - 1) < 1e-4 and abs(metrics["kl"]) < 1e-6 and metrics["clip_share"] == 0
    assert metrics["mismatch"] < 1e-4


@pytest.mark.parametrize("weighting", ["dapo", "grpo"])
def test_a_shared_prompt_gives_the_plain_loss_and_gradient(calm, weighting):
    folder, lessons, first = calm
    network = prepared(folder, first.content).network
    for pupil in (taught for lesson in lessons if (taught := pupil_of(lesson))):
        weights = mx.array(token_weights([pupil.lengths], weighting)[0])
        readers = (Reader(network, read) for read in (read_shared, read_plain))
        shared, plain = (gradient_of(reader, pupil, weights, Objective()) for reader in readers)
        assert abs(shared[0][0].item() - plain[0][0].item()) < 1e-5
        assert np.allclose(shared[0][1].tolist(), plain[0][1].tolist(), atol=1e-3)
        slopes, expected = dict(tree_flatten(shared[1])), dict(tree_flatten(plain[1]))
        assert slopes.keys() == expected.keys() and all(name.endswith(("lora_a", "lora_b")) for name in slopes)
        largest = max(mx.abs(slope).max().item() for slope in slopes.values())
        assert largest > 1e-3
        assert max(mx.abs(slopes[name] - expected[name]).max().item() for name in slopes) < 1e-5 * largest


def test_a_prompt_of_one_token_trains(folder, lessons):
    network = trained(folder, None).network
    pupil = replace(pupil_of(lessons[0]), prompt_1_P=mx.array([[7]]))
    assert mx.allclose(read_shared(network, pupil), read_plain(network, pupil), atol=1e-4).item()


def test_other_caches_fall_back_to_whole_sequences(tmp_path):
    changes = {"model_type": "llama", "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    sliding = make_tiny_model(tmp_path / "sliding", **changes)
    lessons = sample_lessons(sliding, Sampling(group_size=4, max_tokens=6, slots=8))
    trainer = make_trainer(model=sliding, rank=4, epochs=1, groups_per_batch=8)
    assert trainer.read is read_plain
    assert abs(dict(trainer.update(None, None, lessons, 1).metrics)["ratio"] - 1) < 1e-4


def test_divergence_is_refused_and_leaves_nothing_behind(trainer, lessons, first):
    wild = [replace(lesson, advantages=(3e38, -3e38, 3e38, -3e38)) for lesson in lessons]
    update = trainer.update(FIRST, first.content, wild, 3)
    assert "diverged" in update.skipped
    assert update.content == first.content
    assert trainer.update(None, None, lessons, 11).content == first.content


def test_greedy_lessons_teach_nothing(folder, trainer, lessons):
    greedy = sample_lessons(folder, Sampling(group_size=2, temperature=0.0, max_tokens=4))
    assert "temperature" in trainer.update(None, None, greedy, 1).skipped
    assert (
        trainer.update(None, None, [*lessons, *greedy], 11).content == trainer.update(None, None, lessons, 11).content
    )


def test_the_penalty_alone_leads_back_to_the_base_model(calm):
    """Advantages of zero leave only the penalty: what an earlier update moved, it moves back."""
    folder, lessons, first = calm
    pupils = [taught for lesson in lessons if (taught := pupil_of(lesson))]
    base = [
        token_logprobs(read_plain(trained(folder, None).network, p), p.tokens_G_T, p.temperature)[0] for p in pupils
    ]

    def distance(content) -> float:
        network = trained(folder, content).network
        ours = [token_logprobs(read_plain(network, p), p.tokens_G_T, p.temperature)[0] for p in pupils]
        parts = zip(pupils, base, ours, strict=True)
        return sum(mx.where(p.active_G_T, mx.abs(ref - new), 0.0).sum().item() for p, ref, new in parts)

    idle = [replace(lesson, advantages=(0.0,) * 4) for lesson in lessons]
    trainer = make_trainer(model=folder, **SETTINGS, epochs=4, kl=1.0, kl_bias_correction=False)
    afterwards = trainer.update(FIRST, replace(first.content, optimizer=b""), idle, 5).content
    assert distance(afterwards) < 0.5 * distance(first.content)


def test_fresh_weights_change_nothing_until_trained(folder, lessons):
    still = make_trainer(model=folder, rank=4, learning_rate=1e-30).update(None, None, lessons, 1)
    pupil = pupil_of(lessons[0])
    bare, wrapped = trained(folder, None).network, trained(folder, still.content).network
    assert mx.array_equal(read_plain(bare, pupil), read_plain(wrapped, pupil)).item()


def test_mlx_lm_loads_the_adapter_as_its_own(folder, lessons, first, tmp_path):
    (tmp_path / "adapters.safetensors").write_bytes(first.content.weights)
    _, config = mlx_model.unpack(first.content.weights)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    theirs = load_with_mlx_lm(folder, adapter_path=str(tmp_path))[0]
    pupil = pupil_of(lessons[0])
    ours = trained(folder, first.content).network
    assert mx.allclose(read_plain(theirs, pupil), read_plain(ours, pupil), atol=1e-4).item()
    assert not mx.allclose(
        read_plain(theirs, pupil), read_plain(trained(folder, None).network, pupil), atol=1e-2
    ).item()


@pytest.mark.parametrize("kind", [mx.float32, mx.bfloat16, mx.float16, mx.int32])
def test_packed_arrays_come_back(kind):
    arrays = {"b": mx.arange(6).reshape(2, 3).astype(kind), "a": mx.array([1.5]).astype(kind)}
    content = mlx_model.pack(arrays, {"x": [1, None]})
    again, config = mlx_model.unpack(content)
    assert config == {"x": [1, None]} and set(again) == {"a", "b"}
    assert all(again[name].dtype == kind and mx.array_equal(again[name], arrays[name]).item() for name in arrays)
    assert mlx_model.pack(dict(reversed(again.items())), config) == content


@pytest.mark.parametrize("shape", [{"num_layers": 1}, {"keys": ["self_attn.v_proj", "mlp.up_proj"]}])
def test_an_adapter_of_any_shape_goes_on(folder, lessons, shape):
    trainer = make_trainer(model=folder, **SETTINGS, **shape)
    once = trainer.update(None, None, lessons[:2], 1)
    again = make_trainer(model=folder, **SETTINGS, **shape).update(FIRST, once.content, lessons[2:], 2)
    assert not again.skipped
    assert again.content == trainer.update(FIRST, once.content, lessons[2:], 2).content
    names = mlx_model.unpack(again.content.weights)[0]
    assert len(names) == (14 if "num_layers" in shape else 8)


@pytest.mark.parametrize(
    "settings",
    [{"loss": loss} for loss in ("dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo", "sft", "dpo")]
    + [{"mismatch": "token_truncate"}, {"kl": 0.1}],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_trainers_that_share_an_update_come_to_that_of_one(calm, settings):
    """Three trainers, more than some steps have groups, and moved weights, so that ratios aren't 1."""
    folder, lessons, first = calm
    settings = {**SETTINGS, "groups_per_batch": 3, **settings}
    alone, *several = [make_trainer(model=folder, **settings) for _ in range(4)]
    expected = alone.update(FIRST, first.content, lessons, 5)
    shared = asyncio.run(share_update([asking(one) for one in several], FIRST, first.content, lessons, 5))
    ours, theirs = (mlx_model.unpack(one.content.weights)[0] for one in (shared, expected))
    start = mlx_model.unpack(first.content.weights)[0]
    moved = max(mx.abs(theirs[name] - start[name]).max().item() for name in theirs)
    assert max(mx.abs(ours[name] - theirs[name]).max().item() for name in theirs) < 1e-4 * moved
    timed = ("tokens_per_s", "seconds")
    pairs = [(dict(shared.metrics)[name], value) for name, value in expected.metrics if name not in timed]
    assert np.allclose(*zip(*pairs, strict=True), rtol=1e-4, atol=1e-6)


def asking(trainer):
    """The trainer's verbs, as the crew asks for them."""

    async def ask(verb: str, *given):
        return getattr(trainer, verb)(*given)

    return ask


def test_a_shared_update_that_diverges_leaves_what_was(folder, lessons, first):
    wild = [replace(lesson, advantages=(3e38, -3e38, 3e38, -3e38)) for lesson in lessons]
    several = [asking(make_trainer(model=folder, **SETTINGS)) for _ in range(2)]
    update = asyncio.run(share_update(several, FIRST, first.content, wild, 3))
    assert "diverged" in update.skipped and update.content == first.content
