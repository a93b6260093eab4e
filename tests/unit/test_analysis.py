"""What is measured of tasks, how answers fail, and with which templates to begin; from groups made by hand."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray import analysis, failures, starting
from grpo_ray.analysis import Estimate, gap, levels, share
from grpo_ray.canonical import plain
from grpo_ray.library import load_library, write_library
from grpo_ray.types import (
    Choice,
    Evaluation,
    Group,
    Message,
    Parameter,
    Prompt,
    Reward,
    Rollout,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
    Template,
)
from grpo_ray.variation import variations

CLARITY = Parameter(
    "clarity", (Choice("plain", "What is it?"), Choice("terse", "Say it."), Choice("long", "Say it all."))
)
STEPS = Parameter("steps", (Choice("none", ""), Choice("all", "Step by step.")))
TEXT = "{{ clarity }} {{ steps }} {{ question }}"
OWN = (("clarity", "plain"), ("steps", "none"))
DIRECT = Template("direct", TEXT, "sum", "recall", parameters=(CLARITY, STEPS), settings=OWN)
ANYWAY = replace(DIRECT, id="anyway", task_type="any", complexity="multi-step")
BARE = Template("bare", "{{ question }}", "sum")


def task(index: int, kind: str = "sum", answer: str | None = "1023", **metadata: object) -> Task:
    return Task(f"{kind}-{index:02}", f"Question {index}?", answer, kind, "jsonl", metadata)


def rollout(
    text: str,
    verdict: float | None = None,
    reward: float | None = None,
    said: Sequence[Evaluation] = (),
    cut: bool = False,
) -> ScoredRollout:
    """An answer with what a verifier said of it (None: nothing), its reward, and further evaluations."""
    end = "length" if cut else "stop"
    made = Rollout("r", 0, text, (1,) * len(text), (0.0,) * len(text), end, 0)
    verdicts = () if verdict is None else (Evaluation("r", "verifier", "verified", verdict, f"verdict {verdict}"),)
    return ScoredRollout(made, (*verdicts, *said), Reward(verdict if reward is None else reward, ()))


def group(template: Template, of: Task, *rollouts: ScoredRollout, length: int = 100) -> ScoredGroup:
    prompt = Prompt(f"p-{template.id}-{of.id}", template.id, of, (Message("user", "x" * length),))
    raw = tuple(one.rollout for one in rollouts)
    size = Sampling(group_size=len(rollouts))
    return ScoredGroup(Group(f"g-{prompt.id}", prompt, raw, (1,) * length, size, "nano", None), rollouts)


def verified(template: Template, of: Task, *marks: float, length: int = 100) -> ScoredGroup:
    return group(template, of, *(rollout("Answer: 7", mark) for mark in marks), length=length)


def only(
    groups: Sequence[ScoredGroup], templates: Sequence[Template], tasks: Sequence[Task] = ()
) -> analysis.TypeReport:
    (found,) = analysis.analyse(groups, templates, tasks or [one.group.prompt.task for one in groups])
    return found


# ── pass rates ──


def test_pass_rate_and_spread_by_type_and_complexity() -> None:
    groups = [
        verified(DIRECT, task(0), 1, 1),
        verified(DIRECT, task(1), 0, 0),
        verified(ANYWAY, task(0), 1, 1),
        verified(ANYWAY, task(1), 0, 1),
        verified(ANYWAY, task(0, "word"), 0, 0),
    ]
    sums, words = analysis.analyse(groups, [DIRECT, ANYWAY], [])
    assert (sums.task_type, sums.marked_by, words.task_type) == ("sum", "verifier", "word")
    assert sums.overall.pass_rate and sums.overall.pass_rate.value == pytest.approx((1 + 0.25) / 2)
    assert (sums.overall.tasks, sums.overall.rollouts, sums.overall.unmarked) == (2, 8, 0)
    assert (sums.overall.mixed, sums.overall.all_right, sums.overall.all_wrong) == (0.5, 0.5, 0.0)
    assert sums.overall.teaching == 0.25
    multi, recall = sums.complexities
    assert (multi.name, recall.name) == ("multi-step", "recall")
    assert multi.pass_rate and recall.pass_rate
    assert (multi.pass_rate.value, recall.pass_rate.value) == (0.75, 0.5)
    assert (recall.mixed, recall.all_right, recall.all_wrong) == (0.0, 0.5, 0.5)
    assert (words.overall.mixed, words.overall.all_wrong) == (0.0, 1.0)
    assert words.overall.tokens == len("Answer: 7") and words.overall.prompt_tokens == 100
    json.dumps(plain([sums, words]), allow_nan=False)


def test_where_no_verifier_speaks_rewards_are_the_marks() -> None:
    found = only([group(BARE, task(0), rollout("a", reward=0.75), rollout("b", reward=0.25))], [BARE])
    assert found.marked_by == "reward" and found.overall.pass_rate == Estimate(0.5, 0.0, 1.0)
    both = [verified(BARE, task(0), 1.0), group(BARE, task(1), rollout("b", reward=0.5))]
    assert only(both, [BARE]).marked_by == "verifier, or else reward"


def test_rewards_that_leave_0_to_1_are_stretched_and_verdicts_are_not_mixed_with_them() -> None:
    wide = [group(BARE, task(i), rollout("a", reward=float(value))) for i, value in enumerate((-2, 0, 2))]
    assert [marks for _, marks in analysis.marked(wide)] == [(0.0,), (0.5,), (1.0,)]
    judged = group(BARE, task(0), rollout("a", 1.0, reward=0.2), rollout("b", reward=0.9))
    assert analysis.marked([judged])[0][1] == (1.0, None)


def test_rollouts_nobody_could_mark_are_counted_and_count_for_nothing() -> None:
    found = only([group(BARE, task(0), rollout("a"), rollout("b")), verified(BARE, task(1), 1, 1)], [BARE])
    assert (found.overall.unmarked, found.overall.rollouts, found.overall.tasks) == (2, 4, 2)
    assert found.overall.pass_rate and found.overall.pass_rate.value == 1.0
    nothing = only([group(BARE, task(0), rollout("a"))], [BARE])
    assert nothing.overall.pass_rate is None and nothing.overall.mixed is None and nothing.failures == ()


def test_audits_mark_nothing() -> None:
    again = Evaluation("r", "verifier", "verified", 1.0, "", audit="repeat")
    found = only([group(BARE, task(0), rollout("a", 0.0, said=[again]))], [BARE])
    assert found.overall.pass_rate and found.overall.pass_rate.value == 0.0
    assert [one.scored for one in found.dimensions] == [1]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Tasks of many kinds, four rollouts each: 95 % intervals over 4 to 12 tasks."""
    draws, held, trials = random.Random(11), 0, 400
    for _ in range(trials):
        a, b = draws.choice([(1.0, 1.0), (0.3, 2.7), (0.5, 0.5), (30.0, 70.0)])
        rates = [draws.betavariate(a, b) for _ in range(draws.randint(4, 12))]
        marks = {str(i): [float(draws.random() < rate) for _ in range(4)] for i, rate in enumerate(rates)}
        found = share(marks)
        assert found is not None
        held += found.low <= a / (a + b) <= found.high
    assert held / trials >= 0.94


@given(
    st.dictionaries(st.integers(0, 9), st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5), min_size=1)
)
def test_an_interval_holds_its_value_and_lies_in_0_to_1(marks: Mapping[int, list[float]]) -> None:
    found = share({str(task): some for task, some in marks.items()})
    assert found is not None and 0 <= found.low <= found.value <= found.high <= 1


def test_the_paired_difference_looks_at_common_tasks_only() -> None:
    ours, theirs = {"a": [1.0, 1.0], "b": [0.5], "c": [0.0]}, {"a": [0.0], "b": [0.5], "d": [1.0]}
    found = gap(ours, theirs)
    assert found is not None and found.value == 0.5 and found.low == -1.0 and found.high == 1.0
    assert gap({"a": [1.0]}, {"b": [1.0]}) is None
    assert gap({"a": [1.0]}, {"a": [0.5]}) == Estimate(0.5, -1.0, 1.0)


# ── how hard tasks say that they are ──


def test_difficulty_is_what_the_metadata_tells_tasks_apart_by() -> None:
    some = [task(0, difficulty="easy"), task(1, difficulty="hard"), task(2, level=1)]
    assert levels(some) == ("difficulty", {"sum-00": "easy", "sum-01": "hard"})
    same = [task(i, difficulty=1, level=i) for i in range(3)]
    assert levels(same) == ("level", {"sum-00": "0", "sum-01": "1", "sum-02": "2"})
    assert levels([task(0, difficulty={"a": 1}), task(1)]) == ("", {})
    many = levels([task(i, difficulty=i / 10) for i in range(9)])[1]
    assert sorted(set(many.values())) == ["1: below 0.3", "2: 0.3 to below 0.6", "3: from 0.6"]
    assert [list(many.values()).count(name) for name in sorted(set(many.values()))] == [3, 3, 3]


def test_pass_rates_by_difficulty_leave_unknown_levels_to_themselves() -> None:
    tasks = [task(0, difficulty="easy"), task(1, difficulty="hard"), task(2)]
    found = only([verified(BARE, one, float(one.id == "sum-00")) for one in tasks], [BARE], tasks)
    assert found.difficulty == "difficulty"
    assert [(c.name, c.pass_rate.value if c.pass_rate else None) for c in found.difficulties] == [
        ("?", 0.0),
        ("easy", 1.0),
        ("hard", 0.0),
    ]


# ── failures ──


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<think>1 + 1 = 3</think>", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("the same again " * 40, "repetition"),
        ("It comes to 1023, I should think.", "no answer marked"),
        ("Answer: 1024", "wrong number, near"),
        ("Answer: 1,100", "wrong number, near"),
        ("Answer: -1023", "wrong number, far"),
        ("Answer: 12", "wrong number, far"),
        ("Answer: a thousand", "wrong answer"),
    ],
)
def test_how_an_answer_fails(text: str, kind: str) -> None:
    assert failures.kind_of(rollout(text, 0.0), task(0)) == kind


def test_a_failure_s_cause_is_told_before_its_symptoms() -> None:
    assert failures.kind_of(rollout("Answer: 12", 0.0, cut=True), task(0)) == "cut off"
    assert failures.kind_of(rollout("again and again " * 40, 0.0, cut=True), task(0)) == "repetition"
    assert failures.kind_of(rollout("Answer: bat", 0.0), task(0, answer="tab")) == "wrong answer"
    assert failures.kind_of(rollout("Answer: 7", 0.0), task(0, answer="room 7b")) == "wrong answer"
    assert failures.kind_of(rollout("Answer: 0.01", 0.0), task(0, answer="0")) == "wrong number, far"
    assert failures.kind_of(rollout("no number, nothing", 0.0), task(0), marks=False) == "wrong answer"


def test_an_answer_that_only_judges_marked_down_has_low_marks() -> None:
    assert failures.kind_of(rollout("Answer: 12", reward=0.1), task(0)) == "low marks"


def test_a_rule_that_people_set_goes_before_the_usual_one() -> None:
    formed = Evaluation("r", "heuristics", "format", 1.0, "matches the pattern that is asked for")
    assert failures.kind_of(rollout("1024", 0.0, said=[formed]), task(0)) == "wrong number, near"
    by_model = replace(formed, model="judge-1")
    assert failures.kind_of(rollout("1024", 0.0, said=[by_model]), task(0)) == "no answer marked"


def test_failures_are_counted_with_an_example_each() -> None:
    answers = [rollout("Answer: 1023", 1.0), rollout("Answer: 12", 0.0), rollout("Answer: 13", 0.0), rollout("", 0.0)]
    found = only([group(BARE, task(0), *answers)], [BARE]).failures
    assert [(one.kind, one.count, one.share) for one in found] == [("wrong number, far", 2, 0.5), ("empty", 1, 0.25)]
    assert (found[0].task, found[0].example) == ("sum-00", "Answer: 12")


def test_where_right_answers_are_never_marked_as_such_a_mark_is_not_missed() -> None:
    found = only([group(BARE, task(0), rollout("1023", 1.0), rollout("1024", 0.0))], [BARE]).failures
    assert [one.kind for one in found] == ["wrong number, near"]
    nothing_right = only([group(BARE, task(0), rollout("1024", 0.0))], [BARE]).failures
    assert [one.kind for one in nothing_right] == ["no answer marked"]


# ── dimensions ──


def test_dimensions_have_their_mean_and_the_rationales_of_their_lowest_marks() -> None:
    def said(score: float | None, why: str) -> Evaluation:
        return Evaluation("r", "rubric", "clarity", score, why, "judge-1", stand_in=True)

    texts = [(1.0, "clear"), (0.0, "muddled"), (0.5, "so so"), (0.0, "muddled"), (None, "timeout")]
    found = only([group(BARE, task(0), *(rollout("a", 1.0, said=[said(*one)]) for one in texts))], [BARE])
    verdicts, clarity = found.dimensions
    assert (verdicts.judge, verdicts.mean, verdicts.stand_in) == ("verifier", 1.0, False)
    assert (clarity.mean, clarity.scored, clarity.missing, clarity.stand_in) == (0.375, 4, 1, True)
    assert clarity.examples == ("muddled", "so so")
    assert verdicts.examples == ()  # full marks need no reason
    silent = only([group(BARE, task(0), rollout("a", 1.0, said=[said(None, "timeout")]))], [BARE]).dimensions[1]
    assert (silent.mean, silent.examples) == (None, ("timeout",))


# ── the curriculum ──


def test_tasks_fall_into_buckets_by_what_their_groups_would_come_to() -> None:
    tasks = [task(i) for i in range(5)] + [task(0, "word")]
    groups = [verified(BARE, one, *(mark,) * 20) for one, mark in zip(tasks[:2], (1, 0), strict=True)]
    groups += [verified(BARE, tasks[2], *(1, 0) * 10), verified(BARE, tasks[3], *(1,) * 19, 0)]
    found = analysis.curriculum(analysis.trials(analysis.marked(groups)), tasks, 4)
    named = {bucket: [one.task for one in found[bucket]] for bucket in ("solved", "learnable", "too_hard")}
    assert named == {"solved": ["sum-00", "sum-03"], "learnable": ["sum-02"], "too_hard": ["sum-01"]}
    assert set(found["weights"]) == {one.id for one in tasks}
    assert found["unmeasured"]["sum"]["tasks"] == found["unmeasured"]["word"]["tasks"] == 1
    assert found["unmeasured"]["word"]["weight"] == found["weights"]["word-00"]
    assert found["learnable"][0].weight > found["solved"][0].weight
    json.dumps(plain(found), allow_nan=False)


def test_groups_without_a_mark_are_no_trials() -> None:
    groups = [group(BARE, task(0), rollout("a")), verified(BARE, task(1), 1, 0)]
    (one,) = analysis.trials(analysis.marked(groups), 3)
    assert (one.template, one.task, one.step, one.value, one.count) == ("bare", "sum-01", 3, 0.5, 2)


# ── with what to begin ──


def others(template: Template, count: int) -> list[Template]:
    return variations(template, count, "covering", 0)


def candidates(templates: Sequence[Template], *groups: ScoredGroup) -> tuple[starting.Candidate, ...]:
    return starting.start("sum", analysis.marked(groups), templates).candidates


def test_the_best_by_pass_rate_comes_first_and_the_shorter_prompt_among_equals() -> None:
    tasks, other = [task(i) for i in range(6)], replace(BARE, id="other")
    groups = [verified(BARE, one, 1, 0, length=90) for one in tasks]
    groups += [verified(other, one, 0, 1, length=80) for one in tasks]
    groups += [verified(DIRECT, one, 0, 0) for one in tasks]
    found = candidates([BARE, other, DIRECT], *groups)
    assert [(one.template, one.close) for one in found] == [("other", True), ("bare", True), ("direct", False)]
    assert found[0].behind is None and found[1].behind == Estimate(0.0, 0.0, 0.0)
    assert found[2].behind == Estimate(-0.5, -0.5, -0.5)


def test_templates_that_got_no_mark_are_no_candidates() -> None:
    assert candidates([BARE], group(BARE, task(0), rollout("a"))) == ()


def test_finalists_are_the_best_that_have_other_settings() -> None:
    poor, poorer = replace(DIRECT, id="poor"), replace(DIRECT, id="poorer")
    groups = [verified(BARE, task(0), 1), verified(poorer, task(0), 0, 0, 1), verified(poor, task(0), 0, 1)]
    groups += [verified(DIRECT, task(0), 1, 1, 0)]
    found = starting.finalists(analysis.marked(groups), [BARE, DIRECT, poor, poorer])
    assert [one.id for one in found] == ["direct", "poor"]


def starts(best: Mapping[str, Sequence[tuple[Template, float]]]) -> list[starting.Start]:
    """Task type → templates or variants of them with their pass rates over six tasks."""
    made = []
    for kind, rates in best.items():
        templates = [template for template, _ in rates]
        marks = [[float(i < rate * 10) for i in range(10)] for _, rate in rates]
        pairs = zip(templates, marks, strict=True)
        groups = [verified(template, task(i, kind), *some) for template, some in pairs for i in range(6)]
        made.append(starting.start(kind, analysis.marked(groups), [DIRECT, ANYWAY, BARE, *templates]))
    return made


def test_the_library_begins_with_what_is_proposed_and_keeps_the_rest() -> None:
    variant = others(DIRECT, 1)[0]
    found = starting.library(starts({"sum": [(variant, 0.8), (BARE, 0.8), (DIRECT, 0.1)]}), [ANYWAY, BARE, DIRECT])
    assert [one.id for one in found] == ["bare", "direct", "anyway"]
    direct = next(one for one in found if one.id == "direct")
    assert direct == replace(DIRECT, settings=variant.settings)


def test_a_template_for_several_types_keeps_its_settings_and_a_copy_takes_the_new_ones() -> None:
    variant = others(ANYWAY, 1)[0]
    both = starts({"sum": [(variant, 0.9), (ANYWAY, 0.2)], "two words": [(ANYWAY, 0.9), (variant, 0.2)]})
    found = starting.library(both, [BARE, ANYWAY])
    assert [(one.id, one.task_type) for one in found] == [("anyway-sum", "sum"), ("anyway", "any"), ("bare", "sum")]
    assert found[0].settings == variant.settings and found[1] == ANYWAY
    taken = starting.library(both, [replace(BARE, id="anyway-sum"), ANYWAY])
    assert taken[0].id == "anyway-sum-2"


def test_each_type_s_best_comes_before_anybody_s_second() -> None:
    some = starts({"sum": [(BARE, 0.9), (DIRECT, 0.9)], "word": [(ANYWAY, 0.9)]})
    assert [one.id for one in starting.library(some, [DIRECT, ANYWAY, BARE])] == ["bare", "anyway", "direct"]


def test_the_library_that_is_written_can_be_read_again(tmp_path) -> None:
    variant = others(ANYWAY, 1)[0]
    made = starting.library(
        starts({"sum": [(variant, 0.9)], "word & co": [(variant, 0.9), (ANYWAY, 0.1)]}), [BARE, ANYWAY]
    )
    assert [one.id for one in made] == ["anyway-sum", "anyway-word-co", "bare", "anyway"]
    path = tmp_path / "prompts.json"
    write_library(path, made)
    assert load_library(path) == made


def test_each_template_is_proposed_as_it_did_best() -> None:
    """Equal rates: the shorter prompt is first, which here is other settings of one, then of the other template."""
    (one, *_), (two, *_) = others(DIRECT, 1), others(ANYWAY, 1)
    ranked = [one, two, ANYWAY, DIRECT]
    groups = [verified(t, task(i), 1, 0, length=10 * n) for n, t in enumerate(ranked, 1) for i in range(4)]
    found = starting.start("sum", analysis.marked(groups), ranked)
    made = starting.library([found], [BARE, ANYWAY, DIRECT])
    assert [(t.id, t.settings) for t in made[:2]] == [("direct", one.settings), ("anyway", two.settings)]


def test_a_template_that_has_but_one_choice_can_t_be_set_otherwise() -> None:
    single = Parameter("one", (Choice("a", "A"),))
    assert not starting.has_others(replace(BARE, parameters=(single,))) and not starting.has_others(BARE)
    assert starting.has_others(DIRECT)
