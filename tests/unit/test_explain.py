"""The arithmetic behind an advantage: the same numbers as stored, and as the page about rewards."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from serving import group, said
from small_run import RUN, small_archive

from grpo_ray import oversight, terminal
from grpo_ray.advantages import with_advantages
from grpo_ray.canonical import plain
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.explain import Explanation, explain
from grpo_ray.recipe import Named, Recipe, RewardSpec
from grpo_ray.scoring import score
from grpo_ray.types import Evaluation, Lesson, Reward, RewardPart, ScoredGroup

PAGE = Path(__file__).parent.parent.parent / "docs" / "rewards.md"
REWARDS = (
    RewardSpec(name="verified", gate=1.0),
    RewardSpec(name="judge_score", weight=0.5, cap=0.8, settings={"dimensions": {"clarity": 2, "relevance": 1}}),
)
RECIPE = Recipe(tasks=(Named(name="jsonl"),), rewards=REWARDS)
Mark = float | None


def heard(verified: Sequence[Mark], clarity: Sequence[Mark], relevance: Sequence[Mark]) -> list[Evaluation]:
    return [
        one
        for i, (v, c, r) in enumerate(zip(verified, clarity, relevance, strict=True))
        for one in (
            said(f"r-{i}", "verified", v, "verifier"),
            said(f"r-{i}", "clarity", c),
            said(f"r-{i}", "relevance", r),
        )
    ]


def learnt(marks: Sequence[tuple[Mark, Mark, Mark]], recipe: Recipe) -> list[Lesson]:
    """One step: a group with these marks, scored and compared as a run does it."""
    of = group(*(f"text {i}" for i in range(len(marks))))
    columns = [list(column) for column in zip(*marks, strict=True)]
    return with_advantages([asyncio.run(score(of, heard(*columns), recipe))], recipe)


EXAMPLE: list[tuple[Mark, Mark, Mark]] = [(1.0, 1.0, 0.75), (1.0, 0.5, 0.5), (0.0, 1.0, 1.0), (None, 0.75, 0.75)]
"""That of the page: a right one with a capped score, a plain right one, a gated one, one without a verdict."""


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_the_page_shows_the_sums_of_its_example(aggregation: str) -> None:
    recipe = replace(RECIPE, aggregation=aggregation)
    page, lessons = PAGE.read_text("utf-8"), learnt(EXAMPLE, recipe)
    for rollout in ("r-0", "r-2", "r-3"):
        found = explain(lessons, rollout, recipe)
        told = (*found.lines, *(part.why for part in found.parts), *(part.working for part in found.parts))
        assert not [line for line in told if line not in page]


mark = st.none() | st.floats(0, 1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(mark, mark, mark), min_size=1, max_size=5),
    st.sampled_from(["sum_then_normalize", "normalize_then_sum"]),
    st.sampled_from(["standardized", "centred", "leave_one_out"]),
)
def test_what_is_stored_is_what_comes_out_again(
    marks: list[tuple[Mark, Mark, Mark]], aggregation: str, kind: str
) -> None:
    recipe = replace(RECIPE, aggregation=aggregation, advantages=kind)
    lessons = learnt(marks, recipe)
    for one, advantage in zip(lessons[0].group.rollouts, lessons[0].advantages, strict=True):
        found = explain(lessons, one.rollout.id, recipe)
        assert found.disagreements == ()
        assert (found.reward, found.advantage) == (one.reward.value, advantage)
        assert _last(found) == pytest.approx(advantage, rel=1e-5, abs=1e-5)


def _last(found: Explanation) -> float:
    """The number that the last line ends in."""
    line = found.lines[-1].partition(", for ")[0].partition(" (mean and")[0]
    return float(line.rpartition("= ")[2].replace("−", "-"))


def test_scores_parts_and_audits_are_told_apart() -> None:
    (lesson,) = learnt(EXAMPLE, RECIPE)
    first = lesson.group.rollouts[0]
    audit = replace(said("r-0", "clarity", 0.0), audit="repeat")
    more = replace(first, evaluations=(*first.evaluations, audit))
    lesson = replace(lesson, group=replace(lesson.group, rollouts=(more, *lesson.group.rollouts[1:])))
    found = explain([lesson], "r-0", RECIPE)
    assert found.audits == (audit,) and audit not in found.evaluations
    assert [(part.raw, part.counts, part.weight) for part in found.parts] == [(1.0, 1.0, 1.0), (11 / 12, 0.8, 0.5)]
    assert [part.why for part in found.parts] == ["", "capped at 0.8"]
    assert found.parts[1].working == "(2·1 (clarity) + 1·0.75 (relevance)) / 3"
    assert found.disagreements == ()


def test_what_is_stored_otherwise_is_said() -> None:
    (lesson,) = learnt(EXAMPLE, RECIPE)
    first = lesson.group.rollouts[0]
    bent = (RewardPart("verified", 0.5, 1.0), first.reward.parts[1])
    rollouts = (replace(first, reward=Reward(0.7, bent)), *lesson.group.rollouts[1:])
    found = explain([Lesson(ScoredGroup(lesson.group.group, rollouts), (9.0, 0.0, 0.0, 0.0))], "r-0", RECIPE)
    assert [line.partition(":")[0] for line in found.disagreements] == ["part verified", "reward", "advantage"]
    assert "stored is 9.0, computed again it is" in found.disagreements[2]


def test_another_recipe_or_rollout_is_refused() -> None:
    lessons = learnt(EXAMPLE, RECIPE)
    with pytest.raises(MissingError, match="holds the rollout 'r-9'"):
        explain(lessons, "r-9", RECIPE)
    with pytest.raises(ConfigError, match="scored under another recipe"):
        explain(lessons, "r-0", replace(RECIPE, rewards=REWARDS[:1]))


def test_one_reward_twice_is_told_by_its_settings() -> None:
    twice = (
        RewardSpec(name="judge_score", settings={"dimensions": {"clarity": 1}}),
        RewardSpec(name="judge_score", settings={"dimensions": {"relevance": 1}}),
    )
    recipe = replace(RECIPE, rewards=twice, aggregation="normalize_then_sum")
    lines = explain(learnt(EXAMPLE, recipe), "r-0", recipe).lines
    assert lines[1].startswith('judge_score {"dimensions": {"clarity": 1}}: ')
    assert lines[2].startswith('judge_score {"dimensions": {"relevance": 1}}: ')


def test_the_operation_reads_the_step_and_its_recipe() -> None:
    async def main() -> None:
        archive = await small_archive(steps=1)
        found = await oversight.explain(archive, "r-0-0", RUN)
        assert (found["run_id"], found["step"], found["rollout"], found["advantage"]) == (RUN, 0, "r-0-0", 1.0)
        assert "advantage: stored is 1.0, computed again it is 0.707" in found["disagreements"][0]
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        with pytest.raises(MissingError, match="no rollout has the id"):
            await oversight.explain(archive, "r-7", RUN)

    asyncio.run(main())


def test_a_step_that_is_not_whole_has_no_advantages_yet() -> None:
    async def main() -> None:
        archive = await small_archive(steps=1)
        store = await archive.open(RUN)
        (scored,) = await store.scored_groups(0, 0)
        rollouts = tuple(replace(one, id=f"{one.id}-later") for one in scored.group.rollouts)
        await store.save_group(1, replace(scored.group, id="g-later", rollouts=rollouts))
        with pytest.raises(MissingError, match="its step, 1, is not whole yet"):
            await oversight.explain(archive, "r-0-0-later", RUN)

    asyncio.run(main())


def test_the_terminal_shows_every_line_and_no_control_characters() -> None:
    (lesson,) = learnt(EXAMPLE, RECIPE)
    first = lesson.group.rollouts[0]
    audit = replace(said("r-0", "clarity", 0.0), audit="repeat")
    bad = replace(first.evaluations[1], rationale="[bold]\x1b[31m")
    first = replace(first, evaluations=(first.evaluations[0], bad, *first.evaluations[2:], audit))
    lesson = replace(lesson, group=replace(lesson.group, rollouts=(first, *lesson.group.rollouts[1:])))
    found = explain([replace(lesson, advantages=(2.0, 0.0, 0.0, 0.0))], "r-0", RECIPE)
    console = Console(width=200, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(terminal.explanation({"run_id": RUN, "step": 0, **plain(found)}))
    page = capture.get()
    assert all(line in page for line in found.lines)
    assert "[bold]\\x1b[31m" in page and "evaluations that count nothing" in page and "capped at 0.8" in page
    assert "does not agree: advantage: stored is 2.0" in page
