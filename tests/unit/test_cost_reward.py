"""Tokens at a price as a reward, from its settings to the fitness of templates."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import group, said

from grpo_ray.errors import ConfigError
from grpo_ray.recipe import Named, Recipe, RewardSpec
from grpo_ray.registry import check_settings
from grpo_ray.rewards import cost
from grpo_ray.scoring import check_reward, score
from grpo_ray.types import Group

PRICES, LIMIT = (2.0, 10.0), 0.001


def tokens(asked: int, said: int) -> Group:
    """A group of one rollout with so many tokens in the prompt and in the completion."""
    one = group("Answer: 13")
    rollout = replace(one.rollouts[0], token_ids=(7,) * said, logprobs=(0.0,) * said)
    return replace(one, prompt_token_ids=(5,) * asked, rollouts=(rollout,))


def value(of: Group, limit: float = LIMIT) -> float | None:
    return cost.reward(of.rollouts[0], [], of, usd_per_million=PRICES, limit_usd=limit)


def test_it_falls_evenly_to_nothing_at_the_limit() -> None:
    assert value(tokens(100, 30)) == pytest.approx(1 - (100 * 2 + 30 * 10) / 1e6 / 0.001)
    assert value(tokens(100, 80)) == pytest.approx(0.0)
    assert value(tokens(100, 900)) == 0.0


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 50))
def test_what_costs_more_is_worth_no_more(asked: int, said: int, more: int) -> None:
    found = [value(tokens(*pair)) for pair in ((asked, said), (asked + more, said), (asked, said + more))]
    assert all(one is not None and 0 <= one <= 1 for one in found)
    assert found == sorted(found, key=lambda one: -(one or 0.0))


def test_where_no_token_ids_are_told_it_is_missing() -> None:
    assert value(tokens(0, 30)) is None and value(tokens(100, 0)) is None
    assert cost.working(tokens(0, 30).rollouts[0], [], tokens(0, 30), usd_per_million=PRICES, limit_usd=LIMIT) == (
        "the endpoint told no token ids"
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (30, "1 − $0.0005 / $0.001 (100 tokens in at $2 and 30 out at $10 a million)"),
        (900, "1 − $0.0092 / $0.001, at least 0 (100 tokens in at $2 and 900 out at $10 a million)"),
    ],
)
def test_its_working_shows_the_tokens_and_the_price(said: int, words: str) -> None:
    of = tokens(100, said)
    assert cost.working(of.rollouts[0], [], of, usd_per_million=PRICES, limit_usd=LIMIT) == words


def test_a_gate_keeps_cheap_wrong_answers_from_being_paid() -> None:
    settings = {"usd_per_million": [2.0, 10.0], "limit_usd": LIMIT}
    rewards = (RewardSpec(name="verified", gate=1.0), RewardSpec(name="cost", settings=settings))
    recipe = Recipe(tasks=(Named(name="jsonl"),), rewards=rewards)
    of = tokens(100, 30)
    right, wrong = (asyncio.run(score(of, [said("r-0", "verified", mark)], recipe)) for mark in (1.0, 0.0))
    assert right.rollouts[0].reward.value == pytest.approx(0.75)
    assert wrong.rollouts[0].reward.value == 0.0


def test_its_settings_are_asked_for_and_checked() -> None:
    check_reward("cost", {"usd_per_million": [0.15, 0.6], "limit_usd": 0.001})
    with pytest.raises(ConfigError, match=r"needs the setting 'usd_per_million'\n.*needs the setting 'limit_usd'"):
        check_reward("cost", {})
    with pytest.raises(ConfigError, match=r"\[1\.0\] must be two prices"):
        check_reward("cost", {"usd_per_million": [1.0], "limit_usd": 1.0})
    with pytest.raises(ConfigError, match=r"settings\.usd_per_million\.1: expected a number"):
        check_reward("cost", {"usd_per_million": [1.0, "x"], "limit_usd": 1.0})
    with pytest.raises(ConfigError) as caught:
        check_settings("rewards", "cost", "reward", {"usd_per_million": [-1.0, 1.0], "limit_usd": 0.0})
    assert str(caught.value).splitlines() == [
        "settings: usd_per_million: [-1.0, 1.0] must be two prices of 0 or more: tokens in, tokens out",
        "settings: limit_usd: 0.0 is out of bounds; it must be above 0",
    ]
