"""Evaluations blended into rewards; caps, gates, parts kept; TRL's reward functions."""

import asyncio
import logging
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import group, said

from grpo_ray.blending import blend, counted
from grpo_ray.bounds import out_of_bounds
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.recipe import Config, Named, Recipe, RewardSpec
from grpo_ray.scoring import check_reward, score
from grpo_ray.types import Evaluation, Group, RewardPart, ScoredGroup, Task

TASKS = (Named(name="jsonl"),)


def recipe(*rewards: RewardSpec) -> Recipe:
    return Recipe(tasks=TASKS, rewards=rewards)


def scored(of: Group, heard: Sequence[Evaluation], by: Recipe, step: int = 0) -> ScoredGroup:
    return asyncio.run(score(of, heard, by, step))


def rewarded(of: Group, heard: Sequence[Evaluation], *rewards: RewardSpec) -> list[float | None]:
    return [one.reward.value for one in scored(of, heard, recipe(*rewards)).rollouts]


# ── the blend ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parts_are_blended_by_weight_and_kept() -> None:
    both = recipe(RewardSpec(name="verified", weight=3.0), RewardSpec(name="judge_score", weight=1.0))
    heard = [said("r-0", "verified", 1.0, "verifier"), said("r-0", "clarity", 0.0), said("r-1", "clarity", 0.5)]
    first, second = scored(group("a", "b"), heard, both).rollouts
    assert first.reward.value == 0.75
    assert first.reward.parts == (RewardPart("verified", 1.0, 3.0), RewardPart("judge_score", 0.0, 1.0))
    assert second.reward.value == 0.5 and second.reward.parts[0].value is None
    assert [e.rollout_id for e in first.evaluations + second.evaluations] == ["r-0", "r-0", "r-1"]


def test_nothing_known_is_missing_not_zero() -> None:
    (only,) = scored(group("a"), [said("r-0", "verified", None)], recipe(RewardSpec(name="verified"))).rollouts
    assert only.reward.value is None and only.evaluations[0].score is None


def test_audits_are_kept_and_count_nothing() -> None:
    heard = [said("r-0", "clarity", 1.0), replace(said("r-0", "clarity", 0.0), audit="repeat")]
    (only,) = scored(group("a"), heard, recipe(RewardSpec(name="judge_score"))).rollouts
    assert only.reward.value == 1.0 and only.evaluations == tuple(heard)


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(MissingError, match="did you mean 'verified'"):
        scored(group("a"), [], recipe(RewardSpec(name="verifed")))


PARTS = st.lists(st.tuples(st.none() | st.floats(0, 1), st.floats(0.01, 10)), max_size=6)


def blended(pairs: Sequence[tuple[float | None, float]]) -> float | None:
    return blend([value for value, _ in pairs], [weight for _, weight in pairs])


@settings(deadline=None)
@given(PARTS)
def test_a_blend_lies_between_its_parts(pairs: list[tuple[float | None, float]]) -> None:
    present = [value for value, _ in pairs if value is not None]
    value = blended(pairs)
    assert (value is None) == (not present)
    assert value is None or min(present) - 1e-9 <= value <= max(present) + 1e-9


@settings(deadline=None)
@given(PARTS, st.floats(0.01, 100))
def test_only_the_ratio_of_weights_counts(pairs: list[tuple[float | None, float]], factor: float) -> None:
    one, other = blended(pairs), blended([(value, weight * factor) for value, weight in pairs])
    assert one == other or (one is not None and other is not None and math.isclose(one, other, abs_tol=1e-9))


# ── caps and gates ────────────────────────────────────────────────────────────────────────────────────────────────

GATE = RewardSpec(name="verified", gate=1.0)
CAP = RewardSpec(name="judge_score", cap=0.8)


def marks(verified: Sequence[float | None], clarity: Sequence[float | None]) -> list[Evaluation]:
    pairs = list(enumerate(zip(verified, clarity, strict=True)))
    return [said(f"r-{i}", "verified", v, "verifier") for i, (v, _) in pairs] + [
        said(f"r-{i}", "clarity", c) for i, (_, c) in pairs
    ]


def test_a_value_above_its_cap_counts_as_the_cap_and_is_kept_raw() -> None:
    heard = marks([None, None], [0.9, 0.3])
    first, second = scored(group("a", "b"), heard, recipe(CAP)).rollouts
    assert (first.reward.value, second.reward.value) == (0.8, 0.3)
    assert first.reward.parts == (RewardPart("judge_score", 0.9, 1.0),)


def test_behind_a_closed_gate_everything_else_counts_as_nothing() -> None:
    found = rewarded(group("a", "b"), marks([1.0, 0.5], [0.6, 1.0]), GATE, RewardSpec(name="judge_score"))
    assert found == [0.8, 0.25]


def test_a_judge_that_said_nothing_does_not_help_a_gated_rollout() -> None:
    found = rewarded(group("a", "b"), marks([0.5, 0.5], [1.0, None]), GATE, RewardSpec(name="judge_score"))
    assert found == [0.25, 0.25]


def test_a_gate_without_weight_only_gates() -> None:
    gate = replace(GATE, weight=0.0)
    assert rewarded(group("a", "b"), marks([1.0, 0.0], [0.6, 0.9]), gate, RewardSpec(name="judge_score")) == [0.6, 0.0]


def test_a_task_that_nobody_can_check_is_not_gated() -> None:
    heard = marks([None, None], [0.6, 0.9])
    assert rewarded(group("a", "b"), heard, GATE, RewardSpec(name="judge_score")) == [0.6, 0.9]


def test_where_others_have_a_verdict_one_without_has_no_reward() -> None:
    heard = marks([1.0, None], [0.6, 0.9])
    assert rewarded(group("a", "b"), heard, GATE, RewardSpec(name="judge_score")) == [0.8, None]


ROWS = st.lists(st.tuples(*[st.none() | st.floats(-1, 2)] * 3), min_size=1, max_size=6)


@settings(deadline=None)
@given(ROWS, st.floats(-1, 2), st.floats(-1, 2))
def test_what_counts_is_the_value_the_cap_or_nothing(
    rows: list[tuple[float | None, ...]], cap: float, gate: float
) -> None:
    specs = (RewardSpec(name="a", gate=gate), RewardSpec(name="b", cap=cap), RewardSpec(name="c"))
    parts = [tuple(RewardPart("x", value, 1.0) for value in row) for row in rows]
    for row, found in zip(rows, counted(parts, specs), strict=True):
        silent, shut = row[0] is None, row[0] is not None and row[0] < gate
        if silent and any(other[0] is not None for other in rows):
            assert found == (None, None, None)
        else:
            assert found[0] == row[0]
            capped = None if row[1] is None else min(row[1], cap)
            assert found[1:] == ((0.0, 0.0) if shut else (capped, row[2]))


def test_caps_and_gates_are_finite_numbers() -> None:
    specs = (replace(GATE, gate=math.nan), replace(CAP, cap=math.inf), RewardSpec(name="format", cap=-1.0, gate=0.0))
    assert list(out_of_bounds(Config(recipe=recipe(*specs)))) == [
        "rewards.0.gate: nan is out of bounds; it must be a finite number",
        "rewards.1.cap: inf is out of bounds; it must be a finite number",
    ]


# ── reward functions as TRL takes them ────────────────────────────────────────────────────────────────────────────

RIGHT = """
def reward(prompts, completions, completion_ids, answer, level=None, scale=1.0, **kwargs):
    assert prompts[0][-1]["role"] == "user" and len(completion_ids) == len(prompts) and level == [3] * len(prompts)
    return [scale if right in one[0]["content"] else None for one, right in zip(completions, answer)]
"""
ASYNC = """
import asyncio
async def reward(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(one[0]["content"])) for one in completions]
"""
SEVERAL = """
import asyncio, threading
def first(completions):
    return [0.5 for _ in completions]
def short(prompts, completions):
    return [0.5]
def nothing(completions, **kwargs):
    return None
def words(completions, **kwargs):
    return ["good" for _ in completions]
def broken(completions, **kwargs):
    return [one["text"] for one in completions]
def greedy(completions, solution):
    return [1.0 for _ in completions]
def odd(completions, **kwargs):
    return [float("nan"), float("inf"), True, None]
def late(completions, trainer_state, log_metric, log_extra, **kwargs):
    log_metric("seen", len(completions))
    log_extra("texts", [one[0]["content"] for one in completions])
    return [trainer_state.global_step / trainer_state.max_steps for _ in completions]
def spoiling(prompts, completions, notes, **kwargs):
    notes[0].append("spoilt")
    prompts[0][0]["content"] = "spoilt"
    return [float(len(note)) + (prompt[0]["content"] == "spoilt") for note, prompt in zip(notes, prompts)]
def with_a_loop_of_its_own(completions, **kwargs):
    async def one():
        return 1.0
    return [asyncio.run(one()) for _ in completions]
MEETING = threading.Event()
def waiting(completions, **kwargs):
    return [1.0 if MEETING.wait(20) else 0.0 for _ in completions]
async def freeing(completions, **kwargs):
    MEETING.set()
    return [1.0 for _ in completions]
THREADS = set()
def threaded(completions, **kwargs):
    THREADS.add(threading.get_ident())
    return [float(len(THREADS)) for _ in completions]
def native(rollout, evaluations, group):
    return 1.0
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "own_rewards").mkdir()
    for name, text in {"__init__": "", "right": RIGHT, "later": ASYNC, "several": SEVERAL}.items():
        (tmp_path / "own_rewards" / f"{name}.py").write_text(text)
    (tmp_path / "own_single.py").write_text(SEVERAL)
    (tmp_path / "own_heavy.py").write_text("import not_installed_anywhere\n")
    sys.path.insert(0, str(tmp_path))
    yield
    sys.path.remove(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def several(function: str, *texts: str, task: Task | None = None) -> list[float | None]:
    return rewarded(group(*texts, task=task), [], RewardSpec(name=f"own_rewards.several.{function}"))


@pytest.mark.usefixtures("own")
def test_a_trl_reward_function_works_by_dotted_name() -> None:
    task = Task("t", "?", "13", metadata={"level": 3})
    spec = RewardSpec(name="own_rewards.right", settings={"scale": 0.25})
    assert rewarded(group("it is 13", "it is 14", task=task), [], spec) == [0.25, None]


@pytest.mark.usefixtures("own")
def test_a_function_of_a_module_works_by_its_own_name() -> None:
    assert several("first", "a", "b") == [0.5, 0.5]
    assert rewarded(group("a"), [], RewardSpec(name="own_single.first")) == [0.5]
    with pytest.raises(MissingError, match="can't be imported"):
        several("absent", "a")
    with pytest.raises(MissingError, match="can't be imported"):
        several("native", "a")  # of our own kind are files, with a `reward`
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        rewarded(group("a"), [], RewardSpec(name="own_heavy.first"))


@pytest.mark.usefixtures("own")
def test_an_async_reward_function_is_awaited() -> None:
    assert rewarded(group("a", "bcd"), [], RewardSpec(name="own_rewards.later")) == [1.0, 3.0]


@pytest.mark.usefixtures("own")
def test_what_is_no_number_is_missing() -> None:
    assert several("odd", "a", "b", "c", "d") == [None, None, 1.0, None]


@pytest.mark.usefixtures("own")
def test_state_and_logs_are_there_as_in_trl(caplog: pytest.LogCaptureFixture) -> None:
    by = replace(recipe(RewardSpec(name="own_rewards.several.late")), steps=8)
    with caplog.at_level(logging.INFO, "grpo_ray.scoring"):
        found = scored(group("a", "b"), [], by, step=2)
    assert [one.reward.value for one in found.rollouts] == [0.25, 0.25]
    assert "reward own_rewards.several.late, metric seen: 2" in caplog.messages
    assert "reward own_rewards.several.late, column texts: ['a', 'b']" in caplog.messages


@pytest.mark.usefixtures("own")
def test_a_function_that_spoils_what_it_is_given_spoils_its_copy() -> None:
    task = Task("t", "What?", metadata={"notes": []})
    assert several("spoiling", "a", "b", task=task) == [2.0, 0.0]
    assert several("spoiling", "a", "b", task=task) == [2.0, 0.0] and task.metadata == {"notes": []}


@pytest.mark.usefixtures("own")
def test_a_plain_function_may_run_a_loop_of_its_own() -> None:
    assert several("with_a_loop_of_its_own", "a") == [1.0]


@pytest.mark.usefixtures("own")
def test_a_slow_function_does_not_stop_the_loop() -> None:
    names = ("own_rewards.several.waiting", "own_rewards.several.freeing")
    assert rewarded(group("a"), [], *(RewardSpec(name=name) for name in names)) == [1.0]


@pytest.mark.usefixtures("own")
def test_plain_functions_run_on_one_thread_always() -> None:
    async def main() -> list[ScoredGroup]:
        by = recipe(RewardSpec(name="own_rewards.several.threaded"))
        return list(await asyncio.gather(*(score(group("a"), [], by) for _ in range(8))))

    assert {one.rollouts[0].reward.value for one in asyncio.run(main())} == {1.0}
    assert threading.get_ident() not in sys.modules["own_rewards.several"].THREADS


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("short", r"'own_rewards.several.short' returned 1 values for 2 completions"),
        ("nothing", r"'own_rewards.several.nothing' failed: TypeError"),
        ("words", r"'own_rewards.several.words' failed: TypeError: must be real number, not str"),
        ("broken", r"'own_rewards.several.broken' failed: TypeError: .*several.py, line 12\)"),
        (
            "greedy",
            r"'own_rewards.several.greedy' needs solution, which task 't-1' does not have; .*there are: answer,",
        ),
    ],
)
def test_a_reward_function_that_breaks_its_promise_is_named(function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        several(function, "a", "b")


@pytest.mark.usefixtures("own")
def test_settings_of_a_function_are_checked_by_name() -> None:
    check_reward("own_rewards.right", {"scale": 2.0, "whatever": 1})  # it takes **kwargs
    check_reward("own_rewards.several.greedy", {"solution": ["x"]})
    with pytest.raises(ConfigError, match=r"'own_rewards.several.greedy' has no setting 'solutoin'; did you mean 'sol"):
        check_reward("own_rewards.several.greedy", {"solutoin": ["x"]})
    with pytest.raises(ConfigError, match=r"settings.completions: is what a reward function is given"):
        check_reward("own_rewards.right", {"completions": []})
    with pytest.raises(ConfigError, match=r"rewards 'format' has no setting 'finish'"):
        check_reward("format", {"finish": 0.5})
