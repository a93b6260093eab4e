"""A run judged by the bundled server, and judged again by batches of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from serving import stand_in

from grpo_ray.checker import Checker
from grpo_ray.errors import ConfigError, MissingError
from grpo_ray.judging import LocalJudges
from grpo_ray.llm.batch import Batching
from grpo_ray.llm.gate import BUDGET
from grpo_ray.mock_openai import Behaviour
from grpo_ray.oracle import make_oracle
from grpo_ray.protocols import Archive, Store
from grpo_ray.recipe import JudgeSpec, Named, OracleSpec, Recipe, RewardSpec, RunState, TrustSpec
from grpo_ray.rejudging import changed, rejudge, with_added
from grpo_ray.scoring import score
from grpo_ray.stand_ins.faults import Faults
from grpo_ray.storage.memory import make_storage
from grpo_ray.trust.alarms import marks
from grpo_ray.types import (
    Evaluation,
    Group,
    Member,
    Message,
    Policy,
    Population,
    Prompt,
    Reward,
    Rollout,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
    Template,
)

RUN = "judged-1"
QUICK = Batching(gather_s=0.05, poll_s=(0.01, 0.02))
PRICED = OracleSpec(usd_per_million=(2.0, 8.0))
RECIPE = Recipe(
    name="judged",
    steps=2,
    tasks=(Named(name="jsonl"),),
    judges=(JudgeSpec(name="heuristics"), JudgeSpec(name="rubric")),
    rewards=(RewardSpec(name="judge_score"),),
    oracle=PRICED,
)
TEXTS = ("5 + 7 = 12\nAnswer: 12", "5 + 7 = 13\nAnswer: 13", "5 + 7 = 12\nAnswer: 12")
GROUPS, DIMENSIONS, DIFFERENT = 6, 4, 2


def group(place: int) -> Group:
    task = Task(f"t-{place}", f"What is {place} + 7?", str(place + 7))
    prompt = Prompt(f"p-{place}", "tpl", task, (Message("user", task.question),))
    texts = [text.replace("5", str(place)) for text in TEXTS]
    rollouts = tuple(Rollout(f"r-{place}-{i}", i, text, (1,), (-0.1,), "stop", i) for i, text in enumerate(texts))
    return Group(f"g-{place}", prompt, rollouts, (1,), Sampling(group_size=len(texts)), "nano", None)


async def judged(url: str, recipe: Recipe) -> Archive:
    """A run of two steps, three groups each, judged call by call."""
    archive = await make_storage()
    population = Population((Member(Template("tpl", "{{ question }}")),))
    await archive.create_run(RunState(RUN, 0, recipe, population, None, (Policy(population, None),)))
    await archive.create_run(RunState("empty", 0, recipe, population, None, (Policy(population, None),)))
    store = await archive.open(RUN)
    oracle = make_oracle(recipe.oracle, store, base_url=url, gate=None, checker=Checker(), further=recipe.oracles)
    judges = LocalJudges(recipe, oracle, store)
    for place in range(GROUPS):
        said = await judges.evaluate(place // 3, group(place))
        await store.save_scored(place // 3, await score(group(place), said, recipe))
    await oracle.close()
    for step in (1, 2):
        await store.save_state(RunState(RUN, step, recipe, population, None, (Policy(population, None),)))
    return archive


def at(
    use: Callable[[Archive, Store, str], Awaitable[None]], recipe: Recipe = RECIPE, after: Behaviour | None = None
) -> None:
    """`use` a judged run with a server that behaves well while it is judged, and with another one afterwards."""

    async def first(url: str) -> Archive:
        return await judged(url, recipe)

    async def second(archive: Archive, url: str) -> None:
        await use(archive, await archive.open(RUN), url)

    with stand_in() as url:
        archive = asyncio.run(first(url))
    with stand_in(after or Behaviour(batch_s=0.0)) as url:
        asyncio.run(second(archive, url))


async def again(archive: Archive, url: str, **more: Any) -> dict[str, Any]:
    asks: dict[str, Any] = {"batch": QUICK} | more
    return await rejudge(archive, RUN, base_url=url, **asks)


@pytest.mark.process
def test_a_run_is_judged_again_in_batches_and_its_rewards_stay() -> None:
    async def use(archive: Archive, store: Store, url: str) -> None:
        before, paid = await store.scored_groups(), len(await store.attempts())
        found = await again(archive, url)
        new = (await store.attempts())[paid:]
        assert (found["run_id"], found["groups"], found["missing"]) == (RUN, GROUPS, 0)
        assert found["evaluations"] == GROUPS * len(TEXTS) * DIMENSIONS
        assert found["calls"] == len(new) == GROUPS * DIFFERENT
        assert {one.scope.rpartition("-")[2] for one in new} == {"repeat"}
        assert found["tokens"] == sum(one.prompt_tokens + one.completion_tokens for one in new) > 0
        full = sum(one.prompt_tokens * 2.0 + one.completion_tokens * 8.0 for one in new) / 1e6
        assert found["usd"] == pytest.approx(full / 2, abs=1e-6)
        assert [one["judge"] for one in found["changed"]] == ["rubric"] * DIMENSIONS
        assert all(one["rollouts"] == GROUPS * len(TEXTS) and one["absolute"] == 0 for one in found["changed"])
        assert await store.scored_groups() == before
        added = await store.added_evaluations()
        assert len(added) == found["evaluations"] and {(e.judge, e.audit) for e in added} == {("rubric", "repeat")}
        assert not marks(before)
        seen = marks(with_added(before, added))
        assert {key[0] for key in seen} == {"rubric"} and len(seen) == DIMENSIONS
        assert all(one.raters == ("", "repeat") and len(one.items) == GROUPS * len(TEXTS) for one in seen.values())

    at(use)


@pytest.mark.process
def test_judging_again_once_more_costs_nothing_and_adds_nothing() -> None:
    async def use(archive: Archive, store: Store, url: str) -> None:
        first = await again(archive, url)
        added = await store.added_evaluations()
        second = await again(archive, url, batch=None)
        assert (second["calls"], second["usd"], second["evaluations"]) == (0, 0, first["evaluations"])
        assert await store.added_evaluations() == added

    at(use)


@pytest.mark.process
def test_a_share_is_the_same_groups_every_time() -> None:
    async def use(archive: Archive, store: Store, url: str) -> None:
        found = await again(archive, url, share=0.5, batch=None)
        assert 0 < found["groups"] < GROUPS
        once = {e.rollout_id for e in await store.added_evaluations()}
        assert await again(archive, url, share=0.5) | {"calls": 0} == found | {"calls": 0, "tokens": 0, "usd": 0}
        assert {e.rollout_id for e in await store.added_evaluations()} == once

    at(use)


@pytest.mark.process
def test_other_judges_are_asked_under_their_own_version() -> None:
    other = JudgeSpec(name="rubric", settings={"dimensions": {"relevance": "Does it answer what was asked?"}})

    async def use(archive: Archive, store: Store, url: str) -> None:
        found = await again(archive, url, judges=[other], audit="rejudged")
        assert found["evaluations"] == GROUPS * len(TEXTS)
        assert [one["dimension"] for one in found["changed"]] == ["relevance"]
        old = {e.version for one in await store.scored_groups() for r in one.rollouts for e in r.evaluations}
        added = await store.added_evaluations()
        assert {e.audit for e in added} == {"rejudged"} and not old & {e.version for e in added}

    at(use)


@pytest.mark.process
def test_other_orders_and_other_oracles_are_asked_where_there_are_any() -> None:
    recipe = replace(
        RECIPE, oracles={"other": replace(PRICED, model="stand-in-other")}, trust=TrustSpec(second="other")
    )

    async def use(archive: Archive, store: Store, url: str) -> None:
        await again(archive, url, audit="second", judges=["rubric"])
        await again(archive, url, audit="permuted")
        added = await store.added_evaluations()
        assert {(e.audit, e.model) for e in added} == {("second", "stand-in-other"), ("permuted", "stand-in")}
        doors = {one.scope.rpartition("-")[2]: one.door for one in await store.attempts()}
        assert doors == {
            "rubric": "bundled stand-in",
            "second": "bundled stand-in-other",
            "permuted": "bundled stand-in",
        }

    at(use, recipe)


@pytest.mark.process
def test_who_asks_the_second_oracle_already_is_no_second_opinion() -> None:
    second = replace(PRICED, model="stand-in-other")
    judges = (JudgeSpec(name="rubric", oracle="other"),)
    recipe = replace(RECIPE, oracles={"other": second}, trust=TrustSpec(second="other"), judges=judges)

    async def use(archive: Archive, store: Store, url: str) -> None:
        with pytest.raises(ConfigError, match="none of them asks one model"):
            await again(archive, url, audit="second")
        assert (await again(archive, url))["missing"] == 0

    at(use, recipe)


@pytest.mark.process
def test_what_got_no_mark_is_missing_with_its_reason_and_asked_for_again() -> None:
    async def use(archive: Archive, store: Store, url: str) -> None:
        found = await again(archive, url)
        every = GROUPS * len(TEXTS) * DIMENSIONS
        assert 0 < found["missing"] < every and found["missing"] + found["evaluations"] == every
        assert any("told to fail" in reason for reason in found["reasons"])
        assert len(await store.added_evaluations()) == found["evaluations"]
        with stand_in(Behaviour(batch_s=0.0)) as sound:
            rest = await again(archive, sound)
        assert (rest["missing"], rest["evaluations"]) == (0, every)
        assert 0 < rest["calls"] < GROUPS * DIFFERENT and len(await store.added_evaluations()) == every

    at(use, after=Behaviour(batch_s=0.0, faults=Faults(failed=0.6)))


@pytest.mark.process
def test_without_money_marks_are_missing_until_somebody_allows_more() -> None:
    recipe = replace(RECIPE, oracle=replace(PRICED, max_usd=1e-6))

    async def use(archive: Archive, store: Store, url: str) -> None:
        found = await again(archive, url)
        assert (found["evaluations"], found["calls"]) == (0, 0) and "is spent" in next(iter(found["reasons"]))
        await store.save_event(2, BUDGET, {"door": "bundled stand-in", "max_usd": 1.0, "who": "ann"})
        assert (await again(archive, url))["missing"] == 0

    at(use, recipe)


@pytest.mark.process
def test_what_cannot_be_asked_is_refused_with_the_way_out() -> None:
    async def use(archive: Archive, store: Store, url: str) -> None:
        refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
            (ConfigError, "they gave the marks that count", {"audit": "rejudged"}),
            (ConfigError, "none of them asks a model", {"judges": ["heuristics"]}),
            (ConfigError, "trust.second names none", {"audit": "second"}),
            (ConfigError, "did you mean 'repeat'", {"audit": "repeet"}),
            (MissingError, "did you mean 'rubric'", {"judges": ["rubrik"]}),
            (ConfigError, "no oracle 'x'", {"judges": [JudgeSpec(name="rubric", oracle="x")], "audit": "rejudged"}),
            (ConfigError, "no setting 'dimension'", {"judges": [JudgeSpec(name="rubric", settings={"dimension": 1})]}),
        ]
        for kind, words, asks in refused:
            with pytest.raises(kind, match=words):
                await again(archive, url, **asks)
        with pytest.raises(MissingError, match="no scored group"):
            await rejudge(archive, "empty", base_url=url)
        assert await store.added_evaluations() == []

    at(use)


def test_how_far_marks_moved_is_told_by_judge_and_dimension() -> None:
    def e(rollout: str, value: float | None, audit: str = "", name: str = "clarity") -> Evaluation:
        return Evaluation(rollout, "rubric", name, value, "", "m", audit=audit)

    said = {"r-6-0": (e("r-6-0", 0.5), e("r-6-0", 0.0, "repeat")), "r-6-1": (e("r-6-1", 1.0, "held"),), "r-6-2": ()}
    rollouts = tuple(ScoredRollout(one, said[one.id], Reward(None, ())) for one in group(6).rollouts)
    groups = [ScoredGroup(group(6), rollouts)]
    new = [
        e("r-6-0", 1.0, "second"),
        e("r-6-1", 0.75, "second"),
        e("r-6-2", 1.0, "second"),
        e("r-6-0", 1.0, "second", "x"),
    ]
    (found,) = changed(groups, new)
    assert found == {"judge": "rubric", "dimension": "clarity", "rollouts": 2, "mean": 0.125, "absolute": 0.375}
    merged = with_added(groups, new)
    assert [len(one.evaluations) for one in merged[0].rollouts] == [4, 2, 1]
    assert with_added(groups, []) == groups
    labels = [Evaluation("r-6-0", "person:ada", "x", mark, "", audit="person") for mark in (0.0, 1.0)]
    (label,) = with_added(groups, labels)[0].rollouts[0].evaluations[2:]
    assert (label.score, label.audit) == (1.0, "")
