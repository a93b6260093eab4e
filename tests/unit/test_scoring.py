"""Evaluations blended into rewards; parts kept; TRL's reward functions."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import group, said

from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.recipe import Named, Recipe, Weighted
from grpo_ray.scoring import blend, score
from grpo_ray.types import RewardPart, Task

TASKS = (Named(name="jsonl"),)


def recipe(*rewards: Weighted) -> Recipe:
    return Recipe(tasks=TASKS, rewards=rewards)


def test_parts_are_blended_by_weight_and_kept() -> None:
    both = recipe(Weighted(name="verified", weight=3.0), Weighted(name="judge_score", weight=1.0))
    heard = [said("r-0", "verified", 1.0, "verifier"), said("r-0", "clarity", 0.0), said("r-1", "clarity", 0.5)]
    first, second = score(group("a", "b"), heard, both).rollouts
    assert first.reward.value == 0.75
    assert first.reward.parts == (RewardPart("verified", 1.0, 3.0), RewardPart("judge_score", 0.0, 1.0))
    assert second.reward.value == 0.5 and second.reward.parts[0].value is None
    assert [e.rollout_id for e in first.evaluations + second.evaluations] == ["r-0", "r-0", "r-1"]


def test_nothing_known_is_missing_not_zero() -> None:
    (only,) = score(group("a"), [said("r-0", "verified", None)], recipe(Weighted(name="verified"))).rollouts
    assert only.reward.value is None and only.evaluations[0].score is None


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(MissingError, match="did you mean 'verified'"):
        score(group("a"), [], recipe(Weighted(name="verifed")))


PARTS = st.lists(st.tuples(st.none() | st.floats(0, 1), st.floats(0.01, 10)), max_size=6)


@settings(deadline=None)
@given(PARTS)
def test_a_blend_lies_between_its_parts(pairs: list[tuple[float | None, float]]) -> None:
    present = [value for value, _ in pairs if value is not None]
    value = blend(tuple(RewardPart("x", value, weight) for value, weight in pairs)).value
    assert (value is None) == (not present)
    assert value is None or min(present) - 1e-9 <= value <= max(present) + 1e-9


@settings(deadline=None)
@given(PARTS, st.floats(0.01, 100))
def test_only_the_ratio_of_weights_counts(pairs: list[tuple[float | None, float]], factor: float) -> None:
    one = blend(tuple(RewardPart("x", value, weight) for value, weight in pairs)).value
    other = blend(tuple(RewardPart("x", value, weight * factor) for value, weight in pairs)).value
    assert one == other or (one is not None and other is not None and math.isclose(one, other, abs_tol=1e-9))


OWN = """
def reward(prompts, completions, completion_ids, answer, level=None, scale=1.0, **kwargs):
    assert prompts[0][-1]["role"] == "user" and len(completion_ids) == len(prompts) and level == [3] * len(prompts)
    return [scale if right in one[0]["content"] else None for one, right in zip(completions, answer)]
"""
SHORT = """
def reward(prompts, completions):
    return [0.5]
"""
ASYNC = """
async def reward(prompts, completions, **kwargs):
    return [0.5]
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "own_rewards").mkdir()
    for name, text in {"__init__": "", "right": OWN, "short": SHORT, "later": ASYNC}.items():
        (tmp_path / "own_rewards" / f"{name}.py").write_text(text)
    sys.path.insert(0, str(tmp_path))
    yield
    sys.path.remove(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("own_rewards")]:
        del sys.modules[name]


@pytest.mark.usefixtures("own")
def test_a_trl_reward_function_works_by_dotted_name() -> None:
    task = Task("t", "?", "13", metadata={"level": 3})
    spec = Weighted(name="own_rewards.right", settings={"scale": 0.25})
    found = score(group("it is 13", "it is 14", task=task), [], recipe(spec))
    assert [one.reward.value for one in found.rollouts] == [0.25, None]


@pytest.mark.usefixtures("own")
def test_a_reward_function_that_breaks_its_promise_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'own_rewards.short' returned 1 values for 2 completions"):
        score(group("a", "b"), [], recipe(Weighted(name="own_rewards.short")))
    with pytest.raises(ConfigError, match="is async"):
        score(group("a"), [], recipe(Weighted(name="own_rewards.later")))
