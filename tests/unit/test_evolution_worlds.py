"""The simulated worlds of scripts/bench/evolution.py: what a seed fixes, what a text says, and who knows what."""

import asyncio
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from grpo_ray.canonical import digest
from grpo_ray.errors import OracleError
from grpo_ray.mutations import rephrase, rewrite
from grpo_ray.prompting import check_template, render
from grpo_ray.types import Evaluation, Parent, Reward, Rollout, ScoredRollout, Template

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

from evolution import Result, difference_rows
from evolution_meter import Meter, Spent
from evolution_reflector import Reflector, SimOracle, filled, unfilled
from evolution_words import PRAISE, UNSET, VAGUE, Edit, edited
from evolution_worlds import KINDS, TASKS, World


@cache
def world(kind: str = "factored", seed: int = 5000) -> World:
    return World(seed, kind)


def luck(of: World, count: int = 30) -> list[tuple[float, str]]:
    return [of.score(of.start, number, 0, 0.0) for number in range(count)]


# ── what a seed fixes ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_a_world_and_its_luck(kind: str) -> None:
    again, other = World(5000, kind), World(5001, kind)
    assert (again.seed_template(), again.best, again.tasks) == (
        world(kind).seed_template(),
        world(kind).best,
        world(kind).tasks,
    )
    assert luck(again) == luck(world(kind)) != luck(other)
    assert again.seed_text() != other.seed_text()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_headroom_and_no_edit_alone_gives_it(kind: str) -> None:
    of = world(kind)
    start, best = of.true(of.start), of.true(of.best)
    assert 0.2 <= of.true(of.start, at=0.0) <= 0.5
    assert start <= 0.5 and best >= 0.9
    ones = [of.true(edited(of.start, edit)) for edit in of.edits(of.start)]
    assert start + 0.02 < max(ones) < best
    assert min(ones) < start - 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_worth_is_the_mean_of_the_scores_where_nobody_is_fooled(kind: str) -> None:
    of = world(kind)
    assert of.true(of.start) == of.true(of.seed_text()) == of.true(of.start)
    rolled = [of.score(of.start, number, repeat, 0.0)[0] for number in range(TASKS) for repeat in range(20)]
    assert all(0.0 <= score <= 1.0 for score in rolled)
    seen = fmean(rolled)
    halfway_blind = of.traits.lapse * 0.5 + (1 - of.traits.lapse) * of.true(of.start, at=0.0)
    flattered = 3 * of.traits.flattery
    assert -0.1 < seen - halfway_blind < 0.1 + flattered  # other tasks than the held-out instances


def test_repeats_and_candidates_have_luck_of_their_own() -> None:
    of = world()
    assert len({of.score(of.start, 3, repeat)[0] for repeat in range(40)}) > 1
    assert luck(of) != [of.score(of.best, number, 0) for number in range(30)]


def test_flattery_is_seen_and_never_true() -> None:
    of = world("biased_judge")
    p, value = of.flattering[0]
    flattering = edited(of.start, Edit("set", p, value))
    other = next(v for v in range(len(of.words.values[p])) if v not in (value, of.best.settings[p]))
    plain = edited(of.start, Edit("set", p, other))
    gaps = [of.bias(one) for one in (flattering, plain)]
    assert gaps[0] - gaps[1] == pytest.approx(of.traits.flattery)
    assert world("factored").bias(world("factored").start) == 0.0


def test_drift_changes_what_helps_until_the_budget_is_spent() -> None:
    of = world("drifting")
    candidates = [edited(of.start, edit) for edit in of.edits(of.start)]
    changes = [of.true(one, at=1.0) - of.true(one, at=0.0) for one in candidates]
    assert max(changes) > 0.03 and min(changes) < -0.03
    assert of.true(of.start, at=0.5) == of.true(of.start, at=0.501)
    still = world("factored")
    assert still.true(still.best, at=0.0) == still.true(still.best, at=1.0)


# ── what a text says ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_templates_say_the_candidate_they_were_made_of(kind: str) -> None:
    of = world(kind)
    template = of.seed_template()
    assert check_template(template) == []
    assert of.parse(filled(template.text, dict(template.settings), of.words)) == of.start
    for candidate in (of.start, of.best):
        assert of.parse(of.words.text(candidate)) == candidate
        said = render(of.words.template(candidate, "t"), of.tasks[0], 0).messages[0].content
        assert of.parse(said.replace(of.tasks[0].question, "")) == candidate


def test_a_phrase_means_one_setting_and_a_sentence_one_rule() -> None:
    words = world().words
    phrases = [choice.text for parameter in words.parameters() for choice in parameter.choices]
    said = [*phrases, *(words.rule(index) for index in range(len(words.topics)))]
    assert len(set(said)) == len(said)
    assert not [(a, b) for a in said for b in said if a != b and a in b]


def test_what_cannot_be_read_is_clutter_and_costs_a_little() -> None:
    of = world()
    text = of.seed_text()
    joined = " ".join(text.splitlines())
    assert of.parse(joined) == of.start
    assert of.parse("") == replace(of.start, settings=(UNSET,) * len(of.start.settings), rules=frozenset())
    twice = f"{of.words.rule(min(of.start.rules))}\nMind the gap.\n{text}"
    assert of.parse(twice) == replace(of.start, clutter=2)
    assert of.true(of.start) - 0.1 < of.true(twice) < of.true(of.start)


def test_a_clue_says_the_edit_it_stands_for() -> None:
    of = world()
    edits = [*of.edits(of.start), Edit("set", 0), Edit("set", 1)]
    assert [of.words.read(of.words.clue(edit)) for edit in edits] == edits
    assert [of.words.read(said) for said in (PRAISE, *VAGUE, "It overlooks the moon.", "")] == [None] * (len(VAGUE) + 3)


def test_critics_name_flaws_as_often_as_their_world_says() -> None:
    def told(kind: str) -> tuple[float, float]:
        of = world(kind)
        said = [s for n in range(TASKS) for r in range(4) if (s := of.score(of.start, n, r)[1]) != PRAISE]
        read = [edit for one in said if (edit := of.words.read(one))]
        true = {(edit.kind, edit.index) for some in of.flaws(of.start, 0) for edit, _ in some}
        named = [(edit.kind, edit.index) in true for edit in read]
        return len(read) / len(said), fmean(named)

    clear, poor = told("factored"), told("poor_feedback")
    assert clear[0] > 0.5 and clear[1] > 0.8
    assert poor[0] < 0.6 and poor[1] < clear[1]


# ── the reflector ─────────────────────────────────────────────────────────────────────────────────────────────────


def skilled(of: World, skill: float = 1.0) -> Reflector:
    reflector = Reflector(of, 0)
    reflector.skill = skill
    return reflector


def test_a_skilled_reflector_does_what_a_clear_clue_says() -> None:
    of = world()
    reflector = skilled(of)
    for edit in of.edits(of.start):
        new = reflector.reflect(of.seed_text(), [(1.0, PRAISE), (0.0, of.words.clue(edit))])
        assert of.parse(new) == edited(of.start, edit)
    vague = of.parse(reflector.reflect(of.seed_text(), [(0.0, of.words.clue(Edit("set", 2)))]))
    assert vague == replace(of.start, settings=vague.settings) and vague.settings[2] != of.start.settings[2]
    assert reflector.replies == len(of.edits(of.start)) + 1


def test_without_a_clue_it_has_a_whim_and_never_repeats_the_text() -> None:
    of = world()
    reflector, text = Reflector(of, 0), of.seed_text()
    seen = set()
    for _ in range(60):
        new = reflector.reflect(text, [(0.0, VAGUE[0])])
        assert new != text and of.parse(new).clutter == 0
        seen.add(new)
        text = new
    assert len(seen) > 30


def test_it_misreads_clues_as_often_as_its_skill_says() -> None:
    of = world()
    reflector, edit = skilled(of, 0.5), next(edit for edit in of.edits(of.start) if edit.kind == "add")
    done = [reflector.reflect(of.seed_text(), [(0.0, of.words.clue(edit))]) for _ in range(200)]
    assert 0.4 < fmean(of.parse(new) == edited(of.start, edit) for new in done) < 0.65


# ── the reflector as an oracle ────────────────────────────────────────────────────────────────────────────────────


def parent(of: World, said: str) -> Parent:
    prompt = render(of.seed_template(), of.tasks[0], 0)
    rollout = Rollout("r-0", 0, "wrong", (), (), "stop", 0)
    worst = ScoredRollout(rollout, (Evaluation("r-0", "critic", "verified", 0.0, said),), Reward(0.0, ()))
    return Parent(of.seed_template(), 0.0, (), ((prompt, worst),))


def rewritten(of: World, said: str, oracle: SimOracle) -> Template:
    return asyncio.run(rewrite.mutate([parent(of, said)], oracle, random.Random(0)))


def clues(of: World) -> Iterator[Edit]:
    for kind in ("add", "drop", "set"):
        yield next(edit for edit in of.edits(of.start) if edit.kind == kind)


def test_our_rewrites_make_the_edits_that_clues_call_for() -> None:
    of = world()
    oracle = SimOracle(of, 0)
    oracle.reflector.skill = 1.0
    for edit in clues(of):
        child = rewritten(of, of.words.clue(edit), oracle)
        assert of.parse(filled(child.text, dict(child.settings), of.words)) == edited(of.start, edit)
        assert check_template(child) == []
        assert child.parameters == of.seed_template().parameters
        assert (child.text == of.seed_template().text) == (edit.kind == "set")


def test_an_oracle_s_reply_depends_on_the_request_and_not_on_what_came_between() -> None:
    of = world()
    first, second = SimOracle(of, 0), SimOracle(of, 0)
    asked = [rewritten(of, said, first) for said in (*VAGUE, VAGUE[0])]
    again = [rewritten(of, said, second) for said in (*reversed(VAGUE), VAGUE[0])]
    assert [asked[i] for i in (2, 1, 0, 3)] == again
    assert digest(asked[0].text) == digest(again[2].text)


def test_what_it_cannot_do_it_refuses() -> None:
    with pytest.raises(OracleError, match="only rewrites"):
        asyncio.run(rephrase.mutate([parent(world(), VAGUE[0])], SimOracle(world(), 0), random.Random(0)))


def test_a_filled_text_goes_back_into_its_template() -> None:
    of = world()
    template = of.seed_template()
    whole = filled(template.text, dict(template.settings), of.words)
    assert unfilled(whole, template.text, dict(template.settings), of.words) == (template.text, {})
    edit = next(edit for edit in of.edits(of.start) if edit.kind == "set")
    moved = of.words.text(edited(of.start, edit))
    label = of.words.values[edit.index][edit.value or 0]
    assert unfilled(moved, template.text, dict(template.settings), of.words) == (
        template.text,
        {f"p{edit.index}": label},
    )


# ── the meter ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_meter_counts_and_stops() -> None:
    of = world()
    meter = Meter(of, 3)
    rolled = [meter.roll(of.seed_text(), 0) for _ in range(3)]
    assert rolled == [of.score(of.start, 0, repeat, repeat / 3) for repeat in range(3)]
    assert (meter.spent, meter.left) == (3, 0)
    with pytest.raises(Spent, match="3 rollouts"):
        meter.roll(of.seed_text(), 0)


# ── the reading ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_differences_are_paired_by_seed_and_held_to_their_bars() -> None:
    def result(kind: str, seed: int, arm: str, value: float) -> Result:
        return Result(kind, seed, 300, arm, value, 0.3, 0.95, 300, 10, 0.1)

    gains = {"factored": 0.02, "poor_feedback": -0.005}
    results = [
        result(kind, seed, arm, seed / 10 + gain * (arm == "ours"))
        for kind, gain in gains.items()
        for seed in range(8)
        for arm in ("ours", "gepa tuned")
    ]
    rows = list(difference_rows(results, "ours", ["gepa tuned", "halving"]))
    found = {one["name"].split(", ")[1]: (one["value"], one["holds"]) for one in rows[:3]}
    assert found == {
        "factored": (pytest.approx(0.02), True),
        "poor_feedback": (pytest.approx(-0.005), False),
        "mean over worlds": (pytest.approx(0.0075), True),
    }
    assert [(one["value"], one["how"]) for one in rows[3:]] == [(None, "not run: halving")] * 3
