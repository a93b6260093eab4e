"""The MLX generator keeps the Generator protocol: on a tiny random model, so that nothing is downloaded or trained."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_model import CONFIG, make_tiny_model

from grpo_ray import mlx_model
from grpo_ray.canonical import short
from grpo_ray.errors import MissingError
from grpo_ray.generators._names import rollout_seed
from grpo_ray.generators._speech import Speech, encode
from grpo_ray.generators.mlx import MlxGenerator, make_generator
from grpo_ray.mlx_core import mx
from grpo_ray.mlx_model import Lora
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, Message, Prompt, Sampling, Task, Wave

pytestmark = pytest.mark.mlx
SAMPLING = Sampling(group_size=3, temperature=0.8, max_tokens=12, slots=4, seed=5)


@pytest.fixture(scope="module")
def generator(folder):
    return make_generator(model=folder)


def prompt_of(text: str, *before: Message) -> Prompt:
    return Prompt(short("p", text), "t", Task(short("k", text), text), (*before, Message("user", text)))


def wave_of(*texts: str, **changes) -> Wave:
    return Wave("w", tuple(prompt_of(text) for text in texts), replace(SAMPLING, **changes))


TEXTS = ("one", "and two and two", "3", "four, which is a good deal longer than the others", "five 5")


def sample(generator, wave: Wave, adapter=None, content=None) -> list:
    return list(generator.sample(wave, adapter, content))


def by_prompt(groups) -> dict[str, Group]:
    return {group.prompt.id: group for group in groups}


def some_adapter(folder: str, seed: int, lora: Lora) -> tuple[Adapter, AdapterBytes]:
    """An adapter that does something: `lora_b` isn't zero."""
    model = mlx_model.load(folder)
    mx.random.seed(seed)
    mlx_model.wrap(model, lora)
    weights = {name: mx.random.normal(array.shape) for name, array in mlx_model.adapter_weights(model).items()}
    return Adapter(f"h{seed}", 1, None, 0), AdapterBytes(mlx_model.pack(weights, lora.config()), b"")


def scores_of(generator, group: Group, rollout) -> np.ndarray:
    """Log-probabilities of a rollout in one plain pass over the whole sequence, at its temperature."""
    whole = [*group.prompt_token_ids, *rollout.token_ids]
    logits = generator.model.network(mx.array([whole[:-1]]))[0, len(group.prompt_token_ids) - 1 :]
    scaled = np.array(logits, np.float64) / group.sampling.temperature
    full = (
        scaled
        - np.log(np.exp(scaled - scaled.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - scaled.max(-1, keepdims=True)
    )
    return full[np.arange(len(rollout.token_ids)), list(rollout.token_ids)]


def test_every_prompt_becomes_one_whole_group(generator, folder):
    groups = sample(generator, wave_of(*TEXTS))
    assert sorted(g.prompt.task.question for g in groups) == sorted(TEXTS)
    for group in groups:
        assert group.id == short("g", group.prompt.id)
        assert (group.model, group.adapter, group.sampling) == (folder, None, SAMPLING)
        assert group.prompt_token_ids == tuple(encode(generator.model, group.prompt.messages))
        assert [r.index for r in group.rollouts] == [0, 1, 2]
        for rollout in group.rollouts:
            assert rollout.id == short("r", group.prompt.id, rollout.index)
            assert len(rollout.token_ids) == len(rollout.logprobs) <= 12
            assert (rollout.finish_reason == "stop") == (rollout.token_ids[-1] == 3)
            assert not any(mark in rollout.text for mark in ("</s>", "<s>", "<pad>"))


def test_a_stop_keeps_its_token_and_log_probability_but_not_its_text(generator):
    groups = sample(generator, wave_of(*TEXTS, temperature=3.0, max_tokens=100))
    stopped = [r for group in groups for r in group.rollouts if r.finish_reason == "stop"]
    assert stopped
    for rollout in stopped:
        assert rollout.token_ids.index(3) == len(rollout.token_ids) - 1
        ordinary = [token for token in rollout.token_ids if token > 3]
        assert len(rollout.text) == len(ordinary)


def test_the_same_wave_is_the_same_bytes(generator, folder):
    wave = wave_of(*TEXTS)
    first = sample(generator, wave)
    sample(generator, wave_of("something else", slots=7))
    assert sample(generator, wave) == first
    assert sample(make_generator(model=folder), wave) == first


def test_rollouts_of_a_group_differ_and_seeds_too(generator):
    for group in sample(generator, wave_of(*TEXTS, temperature=1.5)):
        assert len({r.token_ids for r in group.rollouts}) == 3
        assert [r.seed for r in group.rollouts] == [rollout_seed(5, group.prompt.id, i) for i in range(3)]
    assert sample(generator, wave_of("one", seed=6)) != sample(generator, wave_of("one", seed=5))


@pytest.mark.parametrize("slots", [1, 2, 64])
def test_what_shares_a_batch_does_not_choose_tokens(generator, slots):
    expected = by_prompt(sample(generator, wave_of(*TEXTS)))
    for group in sample(generator, wave_of(*reversed(TEXTS), slots=slots)):
        for ours, theirs in zip(group.rollouts, expected[group.prompt.id].rollouts, strict=True):
            assert ours.token_ids == theirs.token_ids
            assert np.allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


@pytest.mark.parametrize(("slots", "prefill"), [(1, 512), (64, 60), (64, 512)])
def test_prompts_read_together_are_read_as_if_alone(folder, slots, prefill):
    """Of lengths from 18 to 60 tokens; with a group size of 1 they share batches."""
    expected = by_prompt(sample(make_generator(model=folder), wave_of(*TEXTS, group_size=1, slots=1)))
    together = sample(make_generator(model=folder, prefill=prefill), wave_of(*TEXTS, group_size=1, slots=slots))
    assert len(together) == len(TEXTS)
    for group in together:
        (ours,), (alone,) = group.rollouts, expected[group.prompt.id].rollouts
        assert ours.token_ids == alone.token_ids
        assert np.allclose(ours.logprobs, alone.logprobs, atol=1e-4)


def test_prompts_that_begin_alike_are_read_as_if_alone(generator):
    texts = [f"Work through the sum below, digit by digit, then answer: {sum_}" for sum_ in ("1+1", "1+12", "77+3")]
    together = by_prompt(sample(generator, wave_of(*texts, slots=1)))
    for text in texts:
        (alone,) = sample(generator, wave_of(text))
        shared = together[alone.prompt.id]
        assert [r.token_ids for r in shared.rollouts] == [r.token_ids for r in alone.rollouts]
        assert np.allclose(shared.rollouts[0].logprobs, alone.rollouts[0].logprobs, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_log_probabilities_are_those_of_what_was_sampled_from(generator, temperature):
    for group in sample(generator, wave_of(*TEXTS, temperature=temperature)):
        for rollout in group.rollouts:
            assert np.allclose(rollout.logprobs, scores_of(generator, group, rollout), atol=1e-4)


def test_temperature_zero_takes_the_likeliest(generator):
    for group in sample(generator, wave_of(*TEXTS, temperature=0.0, group_size=2)):
        tokens = list(group.prompt_token_ids)
        for token in group.rollouts[0].token_ids:
            assert token == mx.argmax(generator.model.network(mx.array([tokens]))[0, -1]).item()
            tokens.append(token)
        assert group.rollouts[0].token_ids == group.rollouts[1].token_ids
        assert set(group.rollouts[0].logprobs) == {0.0}


def test_what_cannot_be_sampled_is_lost_with_a_reason(generator):
    groups = by_prompt(sample(generator, wave_of("fine", "x" * 300, "refuse")))
    fine, long, refused = (groups[prompt_of(text).id] for text in ("fine", "x" * 300, "refuse"))
    assert isinstance(fine, Group)
    assert isinstance(long, LostGroup) and "context 256" in long.reason
    assert isinstance(refused, LostGroup) and "refused" in refused.reason
    assert long.id == short("g", long.prompt.id)


def test_the_context_ends_a_completion(generator):
    (group,) = sample(generator, wave_of("x" * 233, max_tokens=100, temperature=0.5))
    room = 256 - len(group.prompt_token_ids)
    assert 0 < room < 100
    assert all(r.finish_reason == "stop" or len(r.token_ids) == room for r in group.rollouts)


def test_a_model_without_a_chat_template_reads_plain_text(tmp_path):
    generator = make_generator(model=make_tiny_model(tmp_path / "plain", chat=False))
    system = Message("system", "be kind")
    assert (
        generator.model.tokenizer.decode(encode(generator.model, prompt_of("hi", system).messages)) == "be kind\n\nhi"
    )
    prompts = (prompt_of(""), prompt_of("a"), prompt_of("hi", system))
    empty, *rest = sample(generator, Wave("w", prompts, SAMPLING))
    assert isinstance(empty, LostGroup) and "empty" in empty.reason
    assert {group.prompt.id for group in rest} == {prompt.id for prompt in prompts[1:]}


def test_adapters_come_and_go(generator, folder):
    wave = wave_of(*TEXTS)
    base = sample(generator, wave)
    one, two = some_adapter(folder, 1, Lora(rank=4)), some_adapter(folder, 2, Lora(rank=8, keys=("self_attn.q_proj",)))
    with_one = sample(generator, wave, *one)
    with_two = sample(generator, wave, *two)
    assert {group.adapter for group in with_one} == {"h1"}
    texts = [{r.text for g in groups for r in g.rollouts} for groups in (base, with_one, with_two)]
    assert texts[0] != texts[1] != texts[2]
    assert sample(generator, wave, *one) == with_one
    assert sample(generator, wave, one[0], None) == with_one, "an adapter in place needs no bytes"
    assert sample(generator, wave) == base


def test_log_probabilities_under_an_adapter(generator, folder):
    for group in sample(generator, wave_of(*TEXTS), *some_adapter(folder, 3, Lora(rank=4))):
        for rollout in group.rollouts:
            assert np.allclose(rollout.logprobs, scores_of(generator, group, rollout), atol=2e-4)


def test_an_adapter_of_another_model_is_refused(generator, tmp_path):
    other = make_tiny_model(tmp_path / "other", hidden_size=64)
    (lost,) = sample(generator, wave_of("one"), *some_adapter(other, 4, Lora(rank=4)))
    assert isinstance(lost, LostGroup) and "h4" in lost.reason and "does not fit" in lost.reason
    assert isinstance(sample(generator, wave_of("one"))[0], Group)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\xff" * 64])
def test_a_missing_or_broken_adapter_loses_its_groups(generator, content):
    sample(generator, wave_of("one"))
    broken = content if content is None else AdapterBytes(content, b"")
    lost = sample(generator, wave_of("one", "two"), Adapter("broken-1", 1, None, 0), broken)
    assert len(lost) == 2 and all(isinstance(group, LostGroup) and "broken-1" in group.reason for group in lost)
    assert isinstance(sample(generator, wave_of("one"))[0], Group)


def test_half_an_adapter_loses_its_groups(generator, folder):
    adapter, content = some_adapter(folder, 8, Lora(rank=4))
    half = AdapterBytes(content.weights[: len(content.weights) // 2], b"")
    (lost,) = sample(generator, wave_of("one"), adapter, half)
    assert isinstance(lost, LostGroup) and adapter.hash in lost.reason
    (group,) = sample(generator, wave_of("one"), adapter, content)
    assert isinstance(group, Group) and group.adapter == adapter.hash


def test_stop_sequences_end_the_text_and_keep_the_tokens(generator):
    free = by_prompt(sample(generator, wave_of(*TEXTS, temperature=2.0, max_tokens=60)))
    held = by_prompt(sample(generator, wave_of(*TEXTS, temperature=2.0, max_tokens=60, stop=("e", "No"))))
    cut = 0
    for name, group in held.items():
        for ours, whole in zip(group.rollouts, free[name].rollouts, strict=True):
            length = len(ours.token_ids)
            assert ours.token_ids == whole.token_ids[:length]
            assert np.allclose(ours.logprobs, whole.logprobs[:length], atol=1e-4)
            assert "e" not in ours.text and "No" not in ours.text
            spoken = generator.model.tokenizer.decode(list(ours.token_ids), skip_special_tokens=True)
            if spoken.endswith(("e", "No")):
                cut += 1
                assert ours.finish_reason == "stop" and spoken.startswith(ours.text)
                assert len(spoken) - len(ours.text) in (1, 2)
            else:
                assert (ours.finish_reason, ours.token_ids) == (whole.finish_reason, whole.token_ids)
    assert cut


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7, "min_p": 0.05}, {"repetition_penalty": 1.5}]
)
def test_model_log_probabilities_are_the_bare_ones(generator, changes):
    plain = replace(SAMPLING, temperature=1.0)
    for group in sample(generator, wave_of(*TEXTS, **changes)):
        for rollout in group.rollouts:
            bare = scores_of(generator, replace(group, sampling=plain), rollout)
            assert np.allclose(rollout.model_logprobs, bare, atol=1e-4)
            assert not np.allclose(rollout.logprobs, bare, atol=1e-4)


def test_a_repetition_penalty_sees_prompt_and_completion(generator):
    """Every greedy token follows from one plain pass and the penalty as its paper has it (arXiv 1909.05858)."""
    penalty = 1.7
    for group in sample(generator, wave_of(*TEXTS, temperature=0.0, group_size=2, repetition_penalty=penalty)):
        tokens = list(group.prompt_token_ids)
        for token in group.rollouts[0].token_ids:
            logits = np.array(generator.model.network(mx.array([tokens]))[0, -1], np.float64)
            held = sorted(set(tokens))
            logits[held] = np.where(logits[held] > 0, logits[held] / penalty, logits[held] * penalty)
            assert token == logits.argmax()
            tokens.append(token)


def test_a_template_without_a_system_role_gets_it_in_the_user_turn(tmp_path):
    generator = make_generator(model=make_tiny_model(tmp_path / "tiny"))
    tokenizer = generator.model.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ '<s>' + m['role'] + ' ' + m['content'] + '</s>' }}{% endfor %}<s>"
    )
    prompt = prompt_of("hi", Message("system", "be kind"))
    assert tokenizer.decode(encode(generator.model, prompt.messages)) == "<s>user be kind\n\nhi</s><s>"
    (group,) = sample(generator, Wave("w", (prompt,), SAMPLING))
    assert isinstance(group, Group)


def test_thinking_marks_stay_in_the_text(tmp_path):
    generator = make_generator(model=make_tiny_model(tmp_path / "tiny"))
    tokenizer = generator.model.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    wrapped = replace(generator.model, tokenizer=type(tokenizer)(tokenizer._tokenizer, eos_token_ids=[3]))
    tokens = [*tokenizer.encode("<think>2+2</think>4", add_special_tokens=False), 3]
    assert Speech(wrapped, ()).text(tokens) == "<think>2+2</think>4"


def test_a_ruined_adapter_loses_its_groups(generator, folder):
    adapter, content = some_adapter(folder, 6, Lora(rank=4))
    arrays, config = mlx_model.unpack(content.weights)
    ruined = mlx_model.pack({name: array * mx.nan for name, array in arrays.items()}, config)
    for temperature in (0.8, 0.0):
        lost = sample(generator, wave_of("one", "two", temperature=temperature), adapter, AdapterBytes(ruined, b""))
        assert all(isinstance(group, LostGroup) and "finite" in group.reason for group in lost)
    assert isinstance(sample(generator, wave_of("one"))[0], Group)


WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
ODD = {
    "windows": {"model_type": "llama", **WINDOWS},
    "windows over plain caches": {"model_type": "smollm3", **WINDOWS, "no_rope_layers": [1, 0]},
    "no batches": {"model_type": "gemma2", "num_attention_heads": 4, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("texts", [("alike",), TEXTS])
def test_odd_models_decode_as_in_one_pass(tmp_path, name, texts):
    """Also where all rows are as long, so that none is padded."""
    generator = make_generator(model=make_tiny_model(tmp_path / "odd", sharpness=2.0, **ODD[name]))
    assert isinstance(generator, MlxGenerator)
    assert generator.batches == (name != "no batches")
    groups = sample(generator, wave_of(*texts))
    assert len(groups) == len(texts)
    for group in groups:
        for rollout in group.rollouts:
            assert np.allclose(rollout.logprobs, scores_of(generator, group, rollout), atol=1e-4)


class Failing:
    """A network that fails after a number of passes, as one that runs out of memory does."""

    def __init__(self, network, passes: int) -> None:
        self.network, self.left = network, passes

    def __call__(self, *given, **named):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("[malloc] Unable to allocate")
        return self.network(*given, **named)

    def __getattr__(self, name):
        return getattr(self.network, name)


def test_a_model_that_fails_in_the_middle_loses_what_is_left_and_the_next_wave_goes_on(folder):
    generator = make_generator(model=folder)
    network = generator.model.network
    generator.model.network = Failing(network, 21)
    ends = sample(generator, wave_of(*TEXTS, slots=3))
    lost = [end for end in ends if isinstance(end, LostGroup)]
    assert 0 < len(lost) < len(TEXTS) == len({end.prompt.id for end in ends})
    assert all("Unable to allocate" in end.reason and "sampling.slots" in end.reason for end in lost)
    generator.model.network = network
    assert all(isinstance(end, Group) for end in sample(generator, wave_of(*TEXTS)))


def test_the_context_is_read_by_the_names_that_configs_use(tmp_path):
    assert mlx_model.load(make_tiny_model(tmp_path / "usual")).context == 256
    changes = {"max_position_embeddings": None, "n_positions": 99}
    assert mlx_model.text_context(CONFIG | changes) == 99 and mlx_model.text_context({}) == 1 << 20


def test_a_missing_model_says_what_to_do(tmp_path):
    with pytest.raises(MissingError, match="no model folder"):
        mlx_model.resolve(str(tmp_path / "nowhere"))
    with pytest.raises(MissingError, match="can't be loaded"):
        mlx_model.load(str(tmp_path))
    assert mlx_model.resolve("some-org/some-model") == "some-org/some-model"
