"""The memory guard and `slots: auto` of the MLX generator, on the tiny model."""

from collections.abc import Iterator
from importlib import import_module

import numpy as np
import pytest
from test_generators_mlx import SAMPLING, TEXTS, by_prompt, prompt_of, sample, some_adapter, wave_of
from tiny_model import CONFIG

from grpo_ray import mlx_model
from grpo_ray.errors import ConfigError
from grpo_ray.generators._decoder import Decoder, Job, growing
from grpo_ray.generators._memory import Room, kv_bytes, rounded
from grpo_ray.generators._speech import encode
from grpo_ray.generators.mlx import GIB, MlxGenerator, make_generator, make_room
from grpo_ray.mlx_core import mx
from grpo_ray.mlx_model import Lora
from grpo_ray.protocols import Tunable
from grpo_ray.types import Group, LostGroup, Sampling

from mlx_lm.models.cache import make_prompt_cache  # isort: skip  (mlx_core comes first)

pytestmark = pytest.mark.mlx
A_TOKEN = 2 * 2 * 1 * 16 * 4
"""Of the tiny model: layers, keys and values, heads, width, bytes of a float32."""
LATENT = {
    "model_type": "deepseek_v3",
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": None,
}


@pytest.fixture(scope="module")
def plain(folder) -> MlxGenerator:
    generator = make_generator(model=folder)
    assert isinstance(generator, MlxGenerator)
    return generator


def within(plain: MlxGenerator, rows: int, *texts: str, sampling: Sampling = SAMPLING) -> MlxGenerator:
    """The same model with memory for so many rows of a batch of the longest of the texts, one prompt of theirs each."""
    long = max(len(encode(plain.model, prompt_of(text).messages)) for text in texts)
    taken = Room(0, plain.room.a_token).takes(rows, long, sampling.max_tokens, rows * rounded(long))
    return MlxGenerator(plain.model, plain.prefill, Room(taken, plain.room.a_token))


def decoding(generator: MlxGenerator, *texts: str) -> Iterator[Decoder]:
    """The decoder of a wave after each token, until all is whole."""
    decoder = Decoder(generator.model, SAMPLING, generator.prefill, generator.side, generator.room)
    prompts = [(prompt, encode(generator.model, prompt.messages)) for prompt in map(prompt_of, texts)]
    decoder.take([Job(prompt, tokens, SAMPLING.max_tokens, SAMPLING.group_size) for prompt, tokens in prompts])
    while decoder.waiting or any(not row.done for row in decoder.rows):
        list(decoder.advance())
        yield decoder


@pytest.mark.parametrize("rows", [1, 2])
def test_where_memory_is_short_fewer_rows_run_and_draw_the_same(plain, rows):
    expected = by_prompt(sample(plain, wave_of(*TEXTS)))
    tight = within(plain, rows, *TEXTS)
    widths = [len(decoder.rows) for decoder in decoding(tight, *TEXTS)]
    assert max(len(decoder.rows) for decoder in decoding(plain, *TEXTS)) == SAMPLING.slots == 4
    assert max(widths) < 4 and len(widths) > len(list(decoding(plain, *TEXTS)))
    groups = sample(tight, wave_of(*TEXTS))
    assert sorted(group.prompt.id for group in groups) == sorted(expected)
    for group in groups:
        for ours, theirs in zip(group.rollouts, expected[group.prompt.id].rollouts, strict=True):
            assert ours.token_ids == theirs.token_ids
            assert np.allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    assert sample(tight, wave_of(*TEXTS)) == groups


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_the_caches_never_outgrow_the_budget(plain, rows):
    tight = within(plain, rows, *TEXTS)
    taken = []
    for decoder in decoding(tight, *TEXTS):
        held = {id(row.job): row.job.caches or [] for row in decoder.rows}
        alone = sum(cache.nbytes for caches in held.values() for cache in caches)
        taken.append(alone + sum(cache.nbytes for cache in decoder.caches))
    assert max(taken) <= tight.room.budget
    assert max(taken) > tight.room.budget / 3, "the estimate is of the right size"


def test_a_completion_that_does_not_fit_alone_is_lost_and_says_what_to_do(plain, folder):
    tight = within(plain, 1, "one")
    groups = by_prompt(sample(tight, wave_of("one", "x" * 150)))
    fine, large = groups[prompt_of("one").id], groups[prompt_of("x" * 150).id]
    assert isinstance(fine, Group)
    assert isinstance(large, LostGroup)
    for word in ("GiB", "lower sampling.max_tokens", "smaller model", "generator.settings.kv_gb", folder):
        assert word in large.reason


def test_weights_that_leave_nothing_lose_every_group(plain):
    full = MlxGenerator(plain.model, plain.prefill, Room(-5, plain.room.a_token))
    lost = sample(full, wave_of("one", "two"))
    assert len(lost) == 2 and all(isinstance(one, LostGroup) and "0 GiB are left" in one.reason for one in lost)


def test_the_budget_can_be_set_and_is_checked(folder):
    generator = make_generator(model=folder, kv_gb=0.5)
    assert isinstance(generator, MlxGenerator)
    assert generator.room == Room(GIB // 2, A_TOKEN)
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="kv_gb"):
            make_generator(model=folder, kv_gb=wrong)


def measured(network) -> int:
    """Bytes of a token in the caches of a model that has read some."""
    caches = make_prompt_cache(network)
    network(mx.array([[5, 6, 7]]), cache=caches)
    return sum(cache.nbytes // cache.keys.shape[2] for cache in caches)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": None},
        {"model_type": "gemma3_text", "num_key_value_heads": 2, "sliding_window": 512, "sliding_window_pattern": 2},
        LATENT,
        LATENT | {"model_type": "deepseek_v2", "rope_scaling": {"type": "yarn", "factor": 2.0}},
    ],
    ids=["grouped", "no head_dim", "sliding", "latent", "latent, kept whole"],
)
def test_a_tokens_bytes_are_those_of_the_caches(changes):
    kind = import_module(f"mlx_lm.models.{changes.get('model_type', CONFIG['model_type'])}")
    config = CONFIG | changes
    network = kind.Model(kind.ModelArgs.from_dict(config))
    assert kv_bytes(config, growing(network), 4) == measured(network)


def test_layers_of_linear_attention_do_not_count():
    kind = import_module("mlx_lm.models.qwen3_next")
    hybrid = {"model_type": "qwen3_next", "num_hidden_layers": 4, "full_attention_interval": 4, "num_experts": 0}
    linear = {f"linear_{name}": 2 for name in ("num_value_heads", "num_key_heads", "conv_kernel_dim")}
    wide = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "partial_rotary_factor": 0.25}
    rest = {"decoder_sparse_step": 1, "shared_expert_intermediate_size": 8, "mlp_only_layers": []}
    rest |= {"moe_intermediate_size": 8, "num_experts_per_tok": 1, "norm_topk_prob": True}
    network = kind.Model(kind.ModelArgs.from_dict(CONFIG | hybrid | linear | wide | rest))
    assert growing(network) == 1


def test_numbers_of_half_the_size_take_half(folder, plain):
    assert plain.room.a_token == A_TOKEN
    model = mlx_model.load(folder)
    model.network.set_dtype(mx.bfloat16)
    assert make_room(model, None).a_token == A_TOKEN // 2


def test_the_config_is_read_with_what_mlx_lm_takes_where_it_says_nothing(tmp_path):
    """Gemma 3's configs keep the text part by itself and leave most numbers out."""
    unsaid = ("num_attention_heads", "num_key_value_heads", "head_dim")
    text = {name: value for name, value in CONFIG.items() if name not in unsaid}
    text |= {"model_type": "gemma3_text", "num_hidden_layers": 6}
    kind = import_module("mlx_lm.models.gemma3")
    network = kind.Model(kind.ModelArgs.from_dict({"model_type": "gemma3", "text_config": text, "vocab_size": 99}))
    config = mlx_model.text_config({"model_type": "gemma3", "text_config": text}, network)
    assert kv_bytes(config, growing(network), 4) == measured(network)


def test_slots_are_found_up_to_what_a_wave_can_use(plain):
    assert isinstance(plain, Tunable)
    found = plain.find_slots(wave_of(*TEXTS, group_size=4, slots=3))
    tried = [pace.slots for pace in found.paces]
    assert tried == [4, 8, 16, 20][: len(tried)] and len(tried) > 1
    assert found.slots in tried
    assert all(pace.tokens_per_second > 0 for pace in found.paces)
    assert [pace.slots for pace in plain.find_slots(wave_of("one", group_size=2)).paces] == [2]


def test_slots_are_found_within_the_memory(plain):
    tight = within(plain, 5, *TEXTS)
    assert 5 <= max(pace.slots for pace in tight.find_slots(wave_of(*TEXTS)).paces) < 3 * len(TEXTS)
    assert max(pace.slots for pace in within(plain, 1, *TEXTS).find_slots(wave_of(*TEXTS)).paces) == 1


def test_finding_slots_leaves_no_trace(plain, folder):
    adapter, content = some_adapter(folder, 9, Lora(rank=4))
    wave = wave_of(*TEXTS)
    before = sample(plain, wave, adapter, content)
    random, memory = [np.array(one) for one in mx.random.state], mx.get_active_memory()
    plain.find_slots(wave)
    assert plain.adapter == adapter.hash
    assert all(np.array_equal(was, one) for was, one in zip(random, mx.random.state, strict=True))
    assert mx.get_active_memory() <= memory + 4096
    assert sample(plain, wave, adapter, None) == before


def test_slots_of_a_wave_that_cannot_be_sampled_stay(plain):
    assert plain.find_slots(wave_of("refuse", slots=9)).slots == 9


def test_a_prompt_that_fills_the_context_can_be_measured(plain):
    assert plain.find_slots(wave_of("x" * 233)).paces
