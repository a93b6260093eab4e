"""The review queue: doubtful and weighty rollouts first, each with its reasons; and the review of a step."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import Said, scored
from serving import Canned, group

from grpo_ray.errors import ConfigError
from grpo_ray.loop import review
from grpo_ray.protocols import Crew
from grpo_ray.recipe import JudgeSpec, Named, Recipe, RunState
from grpo_ray.storage.memory import MemoryStore
from grpo_ray.trust.alarms import ALARM, Alarm, Review
from grpo_ray.trust.queue import UNCHECKED, labelled, queue
from grpo_ray.types import Evaluation, Lesson, Population, Reward, ScoredGroup, ScoredRollout, TaskSet

MARK, AGAIN, VERDICT = ("rubric", "x", ""), ("rubric", "x", "repeat"), ("verifier", "verified", "")
CALM: Said = {MARK: 1.0, VERDICT: 1.0}


def lesson(name: str, *answers: Said, advantages: tuple[float, ...] = (), task: str = "t-1") -> Lesson:
    group = scored(name, {f"{name} {i}": said for i, said in enumerate(answers)}, task=task)
    return Lesson(group, advantages or (0.0,) * len(answers))


def first(*answers: Said, review: Review = Review()) -> list[tuple[str, float, tuple[str, ...]]]:
    found = queue({0: [lesson("g", *answers)]}, review)
    return [(one.rollout_id, one.value, one.why) for one in found]


def test_answers_without_a_doubt_are_not_queued() -> None:
    assert first(CALM, {VERDICT: 0.0}, {}) == []


def test_what_nobody_could_check_is_queued_with_little_value() -> None:
    assert first({MARK: 1.0}) == [("g-0", UNCHECKED / 2, ("nobody could check it but a model",))]


def test_a_judge_that_says_the_opposite_of_the_verifier_comes_first() -> None:
    found = first({MARK: 1.0, AGAIN: 0.5, VERDICT: 1.0}, {MARK: 1.0, VERDICT: 0.0}, {MARK: 0.6, VERDICT: 1.0})
    assert [id for id, _, _ in found] == ["g-1", "g-0"]
    assert found[0][2] == ("rubric gives it 1.00, verifiers 0.00",)
    assert found[1][2] == ("rubric gave 1.00 on x, judged again (repeat) 0.50",)


def test_members_of_a_panel_that_lie_apart_are_a_doubt_and_those_that_do_not_are_none() -> None:
    members = [("panel/a", "x", ""), ("panel/b", "x", "")]
    apart = first({members[0]: 1.0, members[1]: 0.25, VERDICT: 0.5}, {members[0]: 0.75, members[1]: 1.0, VERDICT: 0.5})
    assert [(id, why) for id, _, why in apart] == [("g-0", ("members of panel lie 0.75 apart on x",))]


def test_held_dimensions_are_a_doubt_whether_marked_so_or_found_since() -> None:
    found = first(CALM, review=Review(held=(("rubric", "x"),)))
    assert [why for _, _, why in found] == [("rubric is not trusted on x",)]
    assert first({("rubric", "x", "held"): 1.0, VERDICT: 1.0})[0][2] == ("rubric is not trusted on x",)


def test_top_marks_by_a_judge_that_canaries_fooled_are_a_doubt() -> None:
    fooled = Review(alarms=(Alarm("canaries", "rubric", "…"),))
    found = first(CALM, {MARK: 0.5, VERDICT: 0.5}, review=fooled)
    assert [(id, why) for id, _, why in found] == [("g-0", ("rubric gives it 1.00, and canaries have fooled rubric",))]
    assert first(CALM, review=Review(alarms=(Alarm("inflation", "rubric", "…"),))) == []


def test_doubts_add_up_and_a_strong_advantage_counts_more() -> None:
    doubtful: Said = {MARK: 1.0, AGAIN: 0.5, VERDICT: 0.0}
    weak, strong = lesson("g", doubtful, doubtful, advantages=(0.0, -3.0)), Review()
    found = queue({0: [weak]}, strong)
    assert [(one.rollout_id, one.value) for one in found] == [("g-1", 1.5 * 1.75 / 2), ("g-0", 0.75)]
    assert found[0].why[-1] == "an advantage of -3.00: it pulls hard on the weights"
    assert len(found[0].why) == 3 and len(found[1].why) == 2


def test_what_a_person_labelled_is_left_out_and_so_are_its_equals() -> None:
    unchecked, seen = {MARK: 1.0}, {MARK: 1.0, ("person:ada", "x", ""): 0.0}
    other = Lesson(scored("h", {"g 0": unchecked, "new": unchecked}), (0.0, 0.0))
    found = queue({0: [lesson("g", seen)], 1: [other]}, Review())
    assert [(one.rollout_id, one.step, one.group) for one in found] == [("h-1", 1, "h")]


def test_of_equal_answers_to_one_task_the_most_valuable_is_queued() -> None:
    same = [Lesson(scored(name, {"text": {MARK: 1.0}}), (pull,)) for name, pull in (("a", 0.1), ("b", 2.0))]
    elsewhere = Lesson(scored("c", {"text": {MARK: 1.0}}, task="t-2"), (0.0,))
    assert [one.rollout_id for one in queue({0: [*same, elsewhere]}, Review())] == ["b-0", "c-0"]


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-3, 3)), min_size=1, max_size=12), st.integers(0, 9)
)
def test_the_queue_is_ordered_limited_and_does_not_hang_on_the_order_of_lessons(
    drawn: list[tuple[float, float]], limit: int
) -> None:
    lessons = [
        lesson(f"g-{i:02}", {MARK: mark, VERDICT: 1 - mark}, advantages=(pull,)) for i, (mark, pull) in enumerate(drawn)
    ]
    found = queue({0: lessons}, Review(), limit)
    assert found == queue({0: lessons[::-1]}, Review(), limit)
    assert [one.value for one in found] == sorted((one.value for one in found), reverse=True) and len(found) <= limit
    assert found == queue({0: lessons}, Review(), 99)[:limit]


def test_a_label_is_an_evaluation_by_a_person() -> None:
    assert labelled("r-1", "x", 1, " ada ", "right") == Evaluation("r-1", "person:ada", "x", 1.0, "right")


@pytest.mark.parametrize(
    ("score", "who", "dimension"), [(5, "ada", "x"), (float("nan"), "ada", "x"), (1.0, " ", "x"), (1.0, "ada", "")]
)
def test_what_is_no_label_is_refused(score: float, who: str, dimension: str) -> None:
    with pytest.raises(ConfigError, match="a label"):
        labelled("r-1", dimension, score, who)


# ── the review of a step ──


class Counting(MemoryStore):
    """A store that counts how often groups are read."""

    reads = 0

    async def scored_groups(self, first: int = 0, last: int | None = None) -> list[ScoredGroup]:
        self.reads += 1
        return await super().scored_groups(first, last)


def reviewed_at(step: int, model: str) -> tuple[Review, Counting]:
    """The review of that step, by a recipe without audits and canaries, of a judge that grows kinder to wrong answers."""
    store = Counting("run", "now")

    async def main() -> Review:
        found: list[ScoredGroup] = []
        for at in range(step + 1):
            found = [_scored(f"{at}-{i}", 0.2 + 0.1 * at, float((i + at) % 5 > at), model) for i in range(10)]
            for one in found:
                await store.save_scored(at, one)
        crew = Crew(None, None, None, store, Canned(), TaskSet((), (), ()))  # pyright: ignore
        recipe = Recipe(tasks=(Named(name="jsonl"),), judges=(JudgeSpec(name="asking"),))
        state = RunState("run", step, recipe, Population(()), None, ())
        return await review(state, found, crew)

    return asyncio.run(main()), store


def _scored(id: str, mark: float, verdict: float, model: str) -> ScoredGroup:
    base = replace(group("one", "two"), id=id)
    said = [Evaluation("", "asking", "mood", mark, "", model), Evaluation("", "verifier", "verified", verdict, "")]
    rollouts = [replace(one, id=f"{id}-{one.index}") for one in base.rollouts]
    heard = [tuple(replace(e, rollout_id=one.id) for e in said) for one in rollouts]
    scored = (ScoredRollout(one, some, Reward(None, ())) for one, some in zip(rollouts, heard, strict=True))
    return ScoredGroup(replace(base, rollouts=tuple(rollouts)), tuple(scored))


def test_a_judge_that_asks_a_model_is_reviewed_without_audits_and_canaries() -> None:
    found, store = reviewed_at(3, "a model")
    assert [(one.kind, one.judge) for one in found.alarms] == [("inflation", "asking")]
    assert [(one["kind"], one["step"]) for one in store.happened.values()] == [(ALARM, 3)]
    assert store.reads == 3  # the newest step is at hand


def test_where_no_model_judges_nothing_is_read() -> None:
    found, store = reviewed_at(3, "")
    assert found == Review() and store.reads == 0 and not store.happened
