"""Models whose parts are called in other ways than most: training and sampling work with them, or say what does not."""

from dataclasses import replace

import pytest
from lessons import prepared, sample_lessons
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache
from tiny_model import make_tiny_model

from grpo_ray import mlx_model
from grpo_ray.errors import ConfigError
from grpo_ray.generators.mlx import make_generator
from grpo_ray.mlx_core import mx
from grpo_ray.mlx_model import Lora
from grpo_ray.trainers._checkpoint import checkpoint_layers
from grpo_ray.trainers._head import find_head
from grpo_ray.trainers._pupil import Reader, pupil_of, read_plain
from grpo_ray.trainers.losses import Objective, token_weights
from grpo_ray.trainers.mlx_lora import gradient_of, make_trainer
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, Message, Prompt, Sampling, Task, Wave

pytestmark = pytest.mark.mlx
SAMPLING = Sampling(group_size=4, temperature=0.9, max_tokens=6, slots=8)
NEEDS_CACHE = {
    "phi": {"num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "use_qkv_bias": False},
}
OTHER_CALLS = {
    "ministral3": {"rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 8,
    }},
    "gemma4_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "global_head_dim": 16, "sliding_window": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 99,
    },
    "falcon_h1": {
        "mamba_d_ssm": 32, "mamba_d_head": 16, "mamba_n_heads": 2, "mamba_d_state": 8, "mamba_expand": 1,
    },
    "hunyuan": {
        "num_experts": 1, "num_shared_expert": 1, "moe_topk": 1, "use_mixed_mlp_moe": False, "use_qk_norm": True,
        "use_cla": True, "cla_share_factor": 2, "attention_bias": False,
        "rope_scaling": {"alpha": 1.0, "factor": 1.0, "type": "dynamic"},
    },
    "baichuan_m1": {"sliding_window": 8, "sliding_window_layers": [1], "conv_window": 2, "tie_word_embeddings": False},
    "longcat_flash": {
        "attention_method": "MLA", "zero_expert_type": "identity", "ffn_hidden_size": 64, "moe_topk": 2,
        "expert_ffn_hidden_size": 16, "n_routed_experts": 4, "zero_expert_num": 2, "num_layers": 2, "kv_lora_rank": 16,
        "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "routed_scaling_factor": 1.0,
        "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "attention_bias": False,
    },
}  # fmt: skip
SPARSE = {
    "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 2, "mlp_only_layers": [],
    "moe_intermediate_size": 16, "norm_topk_prob": True,
}  # fmt: skip


def family(tmp_path, name: str, changes: dict) -> str:
    return make_tiny_model(tmp_path / name, sharpness=1.0, model_type=name, **changes)


@pytest.mark.parametrize("name", NEEDS_CACHE)
def test_a_body_that_needs_a_cache_is_trained_by_its_whole_logits(tmp_path, name):
    folder = family(tmp_path, name, NEEDS_CACHE[name])
    assert find_head(mlx_model.load(folder).network) is None
    trainer = make_trainer(model=folder, rank=4, epochs=1, groups_per_batch=8)
    update = trainer.update(None, None, sample_lessons(folder, SAMPLING), 1)
    assert not update.skipped
    assert abs(dict(update.metrics)["ratio"] - 1) < 1e-3


def stirred(folder: str) -> AdapterBytes:
    """An adapter that does something, so that gradients reach all of its weights."""
    model = mlx_model.load(folder)
    mx.random.seed(3)
    mlx_model.wrap(model, Lora(rank=2))
    weights = {name: 0.3 * mx.random.normal(one.shape) for name, one in mlx_model.adapter_weights(model).items()}
    return AdapterBytes(mlx_model.pack(weights, Lora(rank=2).config()), b"")


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_checkpointed_layers_take_what_they_took_before(tmp_path, name):
    """Gradients that go from layer to layer beside the hidden states, as gemma4's and hunyuan's keys do, are kept."""
    folder = family(tmp_path, name, OTHER_CALLS[name])
    network = prepared(folder, stirred(folder)).network
    pupil = pupil_of(sample_lessons(folder, SAMPLING)[0])
    weights = mx.array(token_weights([pupil.lengths], "dapo")[0])
    (loss, _), slopes = gradient_of(Reader(network, read_plain), pupil, weights, Objective())
    mx.eval(loss, slopes)
    checkpoint_layers(network)
    (again, _), others = gradient_of(Reader(network, read_plain), pupil, weights, Objective())
    assert again.item() == pytest.approx(loss.item(), abs=1e-6)
    expected, found = dict(tree_flatten(slopes)), dict(tree_flatten(others))
    largest = max(mx.abs(one).max().item() for one in expected.values())
    assert found.keys() == expected.keys() and largest > 1e-4
    assert max(mx.abs(found[key] - expected[key]).max().item() for key in expected) < 1e-4 * largest


@pytest.mark.parametrize("name", ["ministral3", "falcon_h1"])
def test_checkpointing_trains_other_families(tmp_path, name):
    folder = family(tmp_path, name, OTHER_CALLS[name])
    settings = {"model": folder, "rank": 4, "epochs": 1, "groups_per_batch": 8, "gradient_checkpointing": True}
    assert not make_trainer(**settings).update(None, None, sample_lessons(folder, SAMPLING), 1).skipped


def test_a_cache_that_cannot_be_filled_twice_is_refused(tmp_path):
    network = mlx_model.load(make_tiny_model(tmp_path / "tiny")).network
    checkpoint_layers(network)
    with pytest.raises(ConfigError, match=r"ArraysCache.*gradient_checkpointing: false"):
        network.layers[0](mx.zeros((1, 2, 32)), None, ArraysCache(2))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> str:
    return family(tmp_path_factory.mktemp("models"), "qwen3_moe", SPARSE)


def names_of(model: mlx_model.Model) -> list[str]:
    return [name for name, _ in tree_flatten(model.network.parameters())]


@pytest.mark.parametrize(
    ("lora", "words"),
    [(Lora(rank=2, kind="dora"), "SwitchLinear.*set kind: lora"), (Lora(rank=2, keys=("mlp",)), "MLP.*self_attn")],
)
def test_what_cannot_be_wrapped_is_said_and_leaves_the_model_bare(sparse, lora, words):
    model = mlx_model.load(sparse)
    bare, answer = names_of(model), model.network(mx.array([[1, 2, 3]]))
    with pytest.raises(ConfigError, match=words):
        mlx_model.wrap(model, lora)
    assert names_of(model) == bare and model.lora is None
    assert mx.array_equal(model.network(mx.array([[1, 2, 3]])), answer)


def test_a_model_half_wrapped_by_something_else_is_unwrapped(sparse):
    model = mlx_model.load(sparse)
    bare = names_of(model)
    mlx_model.wrap(model, Lora(rank=2, num_layers=1))
    model.lora = None
    mlx_model.unwrap(model)
    assert names_of(model) == bare


def test_a_good_adapter_is_sampled_after_one_that_cannot_be_wrapped(sparse):
    prompt = Prompt("p", "t", Task("k", "one"), (Message("user", "one"),))
    wave = Wave("w", (prompt,), replace(SAMPLING, seed=5))
    good, bad = stirred(sparse), mlx_model.pack({"x": mx.zeros(1)}, Lora(rank=2, kind="dora").config())
    adapter = Adapter("good", 1, None, 0)
    expected = list(make_generator(model=sparse).sample(wave, adapter, good))
    generator = make_generator(model=sparse)
    (lost,) = generator.sample(wave, Adapter("bad", 1, None, 0), AdapterBytes(bad, b""))
    assert isinstance(lost, LostGroup) and "kind: lora" in lost.reason
    found = list(generator.sample(wave, adapter, good))
    assert isinstance(found[0], Group) and found == expected
    assert isinstance(next(iter(generator.sample(wave, None, None))), Group)
