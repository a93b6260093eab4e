"""What every storage keeps: the first of everything, exactly, under its run; and the way back to what made it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from struct import pack

import pytest
from storage_nouns import (
    CHILD,
    CONTENT,
    FIRST,
    GRANDCHILD,
    OTHER,
    SECOND,
    SEED,
    TASKS,
    group,
    lesson,
    lost,
    of_task,
    population,
    scored,
    state,
)

from grpo_ray.errors import ConfigError, MissingError, RunLocked
from grpo_ray.lineage import Known, Life, text_hash
from grpo_ray.protocols import Archive, Store
from grpo_ray.recipe import RunState
from grpo_ray.storage import embedded, memory, postgres
from grpo_ray.trials import Trial
from grpo_ray.types import Attempt, Evaluation, Policy, Reply, Score, Template

Opened = Callable[[], Awaitable[Archive]]
HOSTILE = (
    "nul \x00 esc \x1b[31m\x1b0041",
    "lone \ud800 \udfff pair \ud83d\ude00",
    "'; DROP TABLE run; --",
    "\r\n\t ",
    "",
)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A home with a server that runs as long as this module."""
    with tempfile.TemporaryDirectory() as home:
        place = Path(home).resolve()
        holder = embedded.Embedded(place)
        asyncio.run(holder.revive())
        yield str(place)
        asyncio.run(holder.leave())
        embedded.remove(place)


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.postgres)])
def storage(request: pytest.FixtureRequest) -> Opened:
    """Opens an archive; that of PostgreSQL keeps what other tests left, so each test has runs of its own."""
    if request.param == "memory":
        return memory.make_storage
    dsn = embedded.dsn(request.getfixturevalue("server"))
    return lambda: postgres.make_storage(dsn=dsn)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """A run's name that no other test has."""
    return request.node.name


@asynccontextmanager
async def opened(storage: Opened) -> AsyncIterator[Archive]:
    archive = await storage()
    try:
        yield archive
    finally:
        await archive.close()


@asynccontextmanager
async def begun(storage: Opened, run: str) -> AsyncIterator[tuple[Archive, Store]]:
    """An archive with a run of two seeds in it."""
    async with opened(storage) as archive:
        await archive.create_run(state(run))
        yield archive, await archive.open(run)


def test_a_run_begins_once(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            with pytest.raises(ConfigError, match="exists already"):
                await archive.create_run(state(run))
            assert await store.load_state() == state(run)
            about = next(row for row in await archive.runs() if row["run"] == run)
            assert (about["name"], about["step"], about["steps"], about["rollouts"]) == ("sums", 0, 3, 0)
            assert about["wanted"] == "run" and about["finished"] is False and "T" in about["created"]

    asyncio.run(main())


def test_an_unknown_run_is_named_with_the_nearest(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, _):
            with pytest.raises(MissingError, match="did you mean"):
                await archive.open(run + "x")

    asyncio.run(main())


def test_groups_come_back_equal_and_the_first_is_kept(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            assert await store.save_group(0, group()) == group()
            assert await store.save_group(0, group(texts=("other", "text"))) == group()
            assert await store.save_group(0, lost()) == lost()
            assert await store.save_group(0, group("lost")) == lost()
            assert await archive.progress(run) == {"step": 0, "steps": 3, "groups": 2, "rollouts": 2}

    asyncio.run(main())


def test_scores_and_lessons_come_back_equal(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (_, store):
            for step, name in ((1, "b"), (0, "c"), (0, "a")):
                await store.save_group(step, group(name))
                assert await store.save_scored(step, scored(group(name))) == scored(group(name))
            assert await store.save_scored(0, scored(group("a"), (0.25,))) == scored(group("a"))
            await store.save_lessons(0, [lesson(scored(group("c"))), lesson(scored(group("a")))])
            await store.save_lessons(0, [lesson(scored(group("c")))])
            assert await store.scored_groups() == [scored(group(name)) for name in "acb"]
            assert await store.scored_groups(1) == await store.scored_groups(1, 1) == [scored(group("b"))]
            assert await store.lessons() == [lesson(scored(group("a"))), lesson(scored(group("c")))]
            assert await store.lessons(1) == []

    asyncio.run(main())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back_as_it_was(storage: Opened, run: str, text: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            hostile = scored(group(texts=(text, text + "'")))
            await store.save_group(0, hostile.group)
            assert await store.save_scored(0, hostile) == hostile
            assert await store.scored_groups() == [hostile]
            assert await store.save_reply("key", Reply(text, "gpt")) == Reply(text, "gpt")
            await store.save_event(0, "said", {"text": text, text: [text]})
            assert (await archive.events(run))[0]["detail"] == {"text": text, text: [text]}
            assert dict(await archive.unembedded(run, 9))["r-0-0"] == text

    asyncio.run(main())


def test_numbers_come_back_bit_for_bit(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (_, store):
            saved = group()
            back = await store.save_group(0, saved)
            bits = [[pack("<d", value) for value in one.logprobs] for one in saved.rollouts]
            assert [[pack("<d", value) for value in one.logprobs] for one in back.rollouts] == bits  # pyright: ignore
            await store.save_scores("validation", [Score("t-seed", None, "sum-0", 0.1 + 0.2, "2")])
            assert (await store.load_scores("validation"))[0].correct == 0.1 + 0.2

    asyncio.run(main())


def test_what_was_said_later_is_kept_beside_what_counted(storage: Opened, run: str) -> None:
    """The reward, and the groups that the loop reads, stay as they were."""
    audit = Evaluation("r-a-1", "rubric", "relevance", 0.1 + 0.2, "again \x00 \ud800", "gpt", True, "j-1", "repeat")
    other = replace(audit, rollout_id="r-a-0", score=None, rationale="no verdict")

    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            for step, name in ((1, "b"), (0, "a")):
                await store.save_group(step, group(name))
                await store.save_scored(step, scored(group(name)))
            assert await store.added_evaluations() == []
            later = replace(audit, rollout_id="r-b-0")
            await store.add_evaluations([later, audit, other])
            await store.add_evaluations([replace(audit, score=0.5), replace(audit, version="j-2")])
            await store.add_evaluations([])
            assert await store.added_evaluations() == [other, audit, replace(audit, version="j-2"), later]
            assert await store.added_evaluations(1) == await store.added_evaluations(1, 1) == [later]
            assert await store.scored_groups() == [scored(group(name)) for name in "ab"]
            assert await store.save_scored(0, scored(group("a"))) == scored(group("a"))
            said = (await archive.find("rollout", "r-a-1", run))["evaluations"]
            assert [(one["audit"], one["version"]) for one in said[-2:]] == [("repeat", "j-1"), ("repeat", "j-2")]
            assert len(said) == 5

    asyncio.run(main())


def test_an_audit_that_counted_is_not_added_again(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (_, store):
            whole = scored(group("a"))
            said = tuple(replace(e, version="j-1", audit="repeat") for e in whole.rollouts[0].evaluations)
            await store.save_group(0, whole.group)
            first = replace(whole.rollouts[0], evaluations=(*whole.rollouts[0].evaluations, *said))
            await store.save_scored(0, replace(whole, rollouts=(first, *whole.rollouts[1:])))
            await store.add_evaluations(said)
            assert await store.added_evaluations() == []

    asyncio.run(main())


def test_only_audits_of_what_has_a_reward_can_be_added(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (_, store):
            await store.save_group(0, group("a"))
            audit = Evaluation("r-a-0", "rubric", "relevance", 0.5, "", audit="repeat")
            with pytest.raises(MissingError, match="r-a-0"):
                await store.add_evaluations([audit])
            await store.save_scored(0, scored(group("a")))
            with pytest.raises(ValueError, match="no audit"):
                await store.add_evaluations([audit, replace(audit, audit="")])
            assert await store.added_evaluations() == []

    asyncio.run(main())


def test_people_s_labels_are_kept_beside_what_counted_and_the_newest_comes_last(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (_, store):
            await store.save_group(0, group("a"))
            label = Evaluation("r-a-1", "person:ada \x00", "overall", 0.1 + 0.2, "so \ud800 so")
            with pytest.raises(MissingError, match="r-a-1"):
                await store.save_labels([label])
            await store.save_scored(0, scored(group("a")))
            said = [label, replace(label, score=1.0), label, replace(label, judge="person:bob")]
            await store.save_labels(said[:2])
            await store.save_labels(said[2:])
            assert await store.added_evaluations() == [replace(e, audit="person") for e in said]
            for strange, words in (
                (replace(label, judge="rubric"), "no label"),
                (replace(label, score=None), "no score"),
            ):
                with pytest.raises(ValueError, match=words):
                    await store.save_labels([label, strange])
            with pytest.raises(MissingError, match="r-a-9"):
                await store.save_labels([label, replace(label, rollout_id="r-a-9")])
            assert len(await store.added_evaluations()) == len(said)
            assert await store.scored_groups() == [scored(group("a"))]

    asyncio.run(main())


def test_adapters_are_kept_by_their_hash(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (_, store):
            await store.save_adapter(FIRST, CONTENT, [("loss", 0.5)])
            await store.save_adapter(SECOND, CONTENT, [("loss", 0.25), ("kl", 0.0)])
            assert await store.load_adapter("aa11") == CONTENT
            assert await store.adapters() == [(FIRST, {"loss": 0.5}), (SECOND, {"loss": 0.25, "kl": 0.0})]
            with pytest.raises(MissingError, match=r"aa[12]"):
                await store.load_adapter("aa12")

    asyncio.run(main())


def test_states_are_kept_in_order_and_the_first_of_each_step(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            await store.save_adapter(FIRST, CONTENT, [])
            await store.save_state(state(run, 1, FIRST, CHILD))
            await store.save_state(state(run, 1))
            await store.save_state(state(run, 3, FIRST, CHILD, GRANDCHILD))
            assert await store.load_state() == state(run, 3, FIRST, CHILD, GRANDCHILD)
            assert await store.states() == [
                state(run),
                state(run, 1, FIRST, CHILD),
                state(run, 3, FIRST, CHILD, GRANDCHILD),
            ]
            assert next(row for row in await archive.runs() if row["run"] == run)["finished"] is True

    asyncio.run(main())


def test_trials_are_means_over_the_rewards_that_are_there(storage: Opened, run: str) -> None:
    """Whatever order they were saved in; to the last bit, for 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1."""

    async def main() -> None:
        async with begun(storage, run) as (_, store):
            await store.save_state(state(run, 1, None, CHILD))
            for step, name, template, task, values in (
                (2, "e", "t-child", 0, (None, None)),
                (1, "d", "t-child", 2, (1.0, 0.0, 0.0)),
                (1, "c", "t-child", 0, (None, 0.5)),
                (0, "b", "t-seed", 1, (0.25,)),
                (2, "f", "t-seed", 0, (0.75,)),
                (0, "a", "t-seed", 1, (0.3, 0.2, 0.1)),
                (0, "g", "t-other", 1, (0.0,)),
            ):
                await store.save_group(step, of_task(group(name, template, texts=("x",) * len(values)), task))
                one = of_task(group(name, template, texts=("x",) * len(values)), task)
                await store.save_scored(step, scored(one, values))
            await store.save_group(1, lost())
            expected = [
                Trial("t-other", "sum-1", "sum", 0, 0.0, 1),
                Trial("t-seed", "sum-1", "sum", 0, fmean((0.25, 0.1, 0.2, 0.3)), 4),
                Trial("t-child", "sum-0", "sum", 1, 0.5, 1),
                Trial("t-child", "sum-2", "sum", 1, fmean((1.0, 0.0, 0.0)), 3),
                Trial("t-seed", "sum-0", "sum", 2, 0.75, 1),
            ]
            assert await store.trials() == await store.trials(0, 2) == expected
            assert await store.trials(1) == expected[2:]
            assert await store.trials(1, 1) == expected[2:4]
            assert await store.trials(0, 0) == expected[:2]
            assert await store.trials(3) == []

    asyncio.run(main())


def test_every_template_keeps_its_life(storage: Opened, run: str) -> None:
    """Retired with a reason, or without; taken back; and never told twice by a step that is saved again."""
    names = ("t-seed", "t-other", "t-child", "t-grandchild")

    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            assert await store.templates() == [SEED, OTHER]
            assert await store.lives() == [
                Life("t-seed", 0, course=(Known(0, 0.0, 0.3, 0.0),)),
                Life("t-other", 0, course=(Known(0, 0.1, 0.3 - 0.1, 1.0),)),
            ]
            told = (("t-seed", "refused once"), ("t-seed", "no better \x00"), ("t-gone", "never lived"))
            await store.save_state(_with(run, 1, (OTHER, CHILD), told))
            await store.save_state(_with(run, 1, (SEED, OTHER, GRANDCHILD)))
            seed, other, child = await store.lives()
            assert (seed.retired, seed.why, len(seed.course)) == (1, "no better \x00", 1)
            assert (other.retired, len(other.course)) == (None, 2)
            assert (child.made, child.retired, child.course) == (1, None, (Known(1, 0.1, 0.3 - 0.1, 1.0),))
            await store.save_state(_with(run, 2, (CHILD, SEED, GRANDCHILD), told))
            assert await store.templates() == [SEED, OTHER, CHILD, GRANDCHILD]
            lives = await store.lives()
            assert [(life.template, life.made, life.retired, life.why) for life in lives] == [
                ("t-seed", 0, None, ""), ("t-other", 0, 2, ""), ("t-child", 1, None, ""), ("t-grandchild", 2, None, ""),
            ]  # fmt: skip
            assert [known.step for known in lives[0].course] == [0, 2]
            for name, life in zip(names, lives, strict=True):
                row = await archive.find("template", name, run)
                assert (row["made"], row["retired"], row["why"]) == (life.made, life.retired, life.why)
                assert [one["step"] for one in row["history"]] == [known.step for known in life.course]
            row = await archive.find("template", "t-child", run)
            assert row["text_hash"] == text_hash(CHILD) and row["parents"] == ["t-seed", "t-other"]
            history = {"step": 1, "fitness": 0.1, "deviation": 0.3 - 0.1, "trials": 1.0}
            assert row["history"][0] == history

    asyncio.run(main())


def test_templates_that_only_steps_ahead_explore_are_kept_too(storage: Opened, run: str) -> None:
    """A fork begins with what the steps under way still had."""

    async def main() -> None:
        async with opened(storage) as archive:
            ahead = (Policy(population(OTHER, CHILD), None), Policy(population(SEED), None))
            await archive.create_run(replace(state(run, 4), population=population(SEED), policies=ahead))
            store = await archive.open(run)
            assert await store.templates() == [OTHER, CHILD, SEED]
            assert await store.lives() == [
                Life("t-other", 4, 4), Life("t-child", 4, 4), Life("t-seed", 4, course=(Known(4, 0.0, 0.3, 0.0),)),
            ]  # fmt: skip

    asyncio.run(main())


def _with(run: str, step: int, living: tuple[Template, ...], told: tuple[tuple[str, str], ...] = ()) -> RunState:
    people = replace(population(*living), retired=told)
    return replace(state(run, step), population=people, policies=(Policy(people, None),))


def test_a_reply_is_found_from_another_run_only_when_asked_for(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            await archive.create_run(state(f"{run}-other"))
            other = await archive.open(f"{run}-other")
            await store.save_reply(f"{run}-k", Reply("a", "gpt"))
            assert await other.load_reply(f"{run}-k") is None
            assert await other.load_reply(f"{run}-k", anywhere=True) == Reply("a", "gpt")
            await other.save_reply(f"{run}-k", Reply("b", "gpt"))
            assert await other.load_reply(f"{run}-k", anywhere=True) == Reply("b", "gpt")
            assert await other.load_reply(f"{run}-none", anywhere=True) is None

    asyncio.run(main())


def test_every_call_is_kept_in_order_with_or_without_a_reply(storage: Opened, run: str) -> None:
    first = Attempt("r1", "host gpt", "3/g-1/rubric", 1, "429", 1.5, 0.25)
    second = Attempt("r1", "host gpt", "3/g-1/rubric", 2, "ok", 2.5, 1.25, 30, 4, 0.001)

    async def main() -> None:
        async with begun(storage, run) as (_, store):
            await store.save_attempts([first])
            await store.save_reply("k", Reply("a", "gpt"), [second])
            await store.save_reply("l", Reply("b", "gpt"))
            await store.save_attempts([])
            assert await store.attempts() == [first, second]

    asyncio.run(main())


def test_moments_come_back_exactly(storage: Opened, run: str) -> None:
    """A batch's line is known to be used by the moment of its attempt."""
    moment = 1795374000.1234567

    async def main() -> None:
        async with begun(storage, run) as (_, store):
            await store.save_attempts([Attempt("r", "host gpt", "", 1, "ok", moment, 0.25)])
            await store.save_event(0, "batch", {"asked": {"a-0": moment}})
            assert [one.time for one in await store.attempts()] == [moment]
            assert (await store.events())[0]["detail"]["asked"]["a-0"] == moment

    asyncio.run(main())


def test_scores_replies_and_outcomes_keep_the_first(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (_, store):
            scores = [Score("t-seed", name, task.id, 1.0, "2") for task in TASKS for name in (None, "aa11")]
            scores.append(Score("t-child", None, "sum-0", None, "no verdict"))
            await store.save_scores("heldout", scores)
            await store.save_scores("heldout", [Score("t-seed", None, "sum-0", 0.0, "again")])
            assert await store.load_scores("heldout") == scores and await store.load_scores("validation") == []
            assert await store.load_reply("k") is None
            assert await store.save_reply("k", Reply("a", "gpt", True, 3, 4)) == Reply("a", "gpt", True, 3, 4)
            assert await store.save_reply("k", Reply("b", "gpt")) == Reply("a", "gpt", True, 3, 4)
            assert await store.load_reply("k") == Reply("a", "gpt", True, 3, 4)
            assert await store.load_outcome() is None
            await store.save_outcome({"both": {"accuracy": 0.5}, "paired": [["a - b", 0.1]]})
            await store.save_outcome({"both": None})
            assert await store.load_outcome() == {"both": {"accuracy": 0.5}, "paired": [["a - b", 0.1]]}

    asyncio.run(main())


def test_wishes_and_events(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            assert await archive.wanted(run) == "run"
            await archive.want(run, "pause", "ann")
            await archive.want(run, "stop", "bob")
            assert await archive.wanted(run) == "stop"
            await store.save_event(1, "update_skipped", {"why": "no lessons"})
            await store.save_event(1, "update_skipped", {"why": "no lessons"})
            events = await archive.events(run)
            assert [event["kind"] for event in events] == ["want_pause", "want_stop", "update_skipped"]
            assert events[1]["detail"]["who"] == "bob"
            assert await archive.events(run, after=events[1]["id"]) == events[2:]

    asyncio.run(main())


def test_search_ranks_by_cosine_and_stays_in_its_run(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            await store.save_group(0, group("a"))
            await store.save_group(0, group("b"))
            assert sorted(id for id, _ in await archive.unembedded(run, 9)) == ["r-a-0", "r-a-1", "r-b-0", "r-b-1"]
            vectors = [("r-a-0", [1.0, 0.0]), ("r-a-1", [0.0, 1.0]), ("r-b-0", [3.0, 4.0])]
            await archive.save_embeddings(run, "nano", vectors)
            await archive.save_embeddings(run, "nano", [("r-a-0", [0.0, 1.0])])
            found = await archive.search(run, [2.0, 0.0], 2)
            assert [id for id, _ in found] == ["r-a-0", "r-b-0"]
            assert [near for _, near in found] == pytest.approx([1.0, 0.6], abs=1e-6)
            assert await archive.unembedded(run, 9) == [("r-b-1", "3")]
            await archive.create_run(state(f"{run}-two"))
            assert await archive.search(f"{run}-two", [2.0, 0.0], 2) == []

    asyncio.run(main())


async def _grown(store: Store, run: str) -> None:
    """Two adapters, three generations, one scored group of the grandchild under the second adapter."""
    await store.save_adapter(FIRST, CONTENT, [("loss", 0.5)])
    await store.save_adapter(SECOND, CONTENT, [("loss", 0.25)])
    await store.save_state(state(run, 1, FIRST, CHILD))
    await store.save_state(state(run, 2, SECOND, CHILD, GRANDCHILD))
    last = scored(group("z", "t-grandchild", "aa22"))
    await store.save_group(2, last.group)
    await store.save_scored(2, last)
    await store.save_lessons(2, [lesson(last)])


def test_find_a_rollout_by_the_beginning_of_its_id(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            await _grown(store, run)
            row = await archive.find("rollout", "r-z-0", run)
            assert (row["id"], row["run"], row["step"], row["text"], row["group"]) == ("r-z-0", run, 2, "2", "g-z")
            assert row["prompt"]["template_id"] == "t-grandchild" and row["prompt"]["messages"][0]["role"] == "system"
            assert (
                row["prompt"]["task"]["answer"] and row["sampling"]["temperature"] == 0.7 and row["adapter"] == "aa22"
            )
            assert [one["rationale"] for one in row["evaluations"]] == ["2 is right", "about 2", "the judge gave up"]
            assert row["reward"] == {
                "value": 1.0,
                "parts": [
                    {"name": "verified", "value": 1.0, "weight": 0.7},
                    {"name": "format", "value": 1.0, "weight": 0.3},
                ],
            }
            assert row["advantage"] == 0.5
            with pytest.raises(ConfigError, match="several fit"):
                await archive.find("rollout", "r-z", run)
            with pytest.raises(MissingError, match=r"r-z-[01]"):
                await archive.find("rollout", "r-z-5", run)
            with pytest.raises(MissingError, match="rollout"):
                await archive.find("rolout", "r-z-0", run)

    asyncio.run(main())


def test_find_every_kind(storage: Opened, run: str) -> None:
    async def main() -> None:
        async with begun(storage, run) as (archive, store):
            await _grown(store, run)
            assert (await archive.find("template", "t-ch", run))["note"] == "the judges missed the steps"
            assert (await archive.find("adapter", "aa2", run))["parent"] == "aa11"
            assert (await archive.find("adapter", "aa2", run))["metrics"] == {"loss": 0.25}
            assert (await archive.find("prompt", "p-z", run))["template_id"] == "t-grandchild"
            assert (await archive.find("group", "g-z", run))["step"] == 2
            found = await archive.find("run", run)
            assert (found["run"], found["step"], found["state"]["recipe"]["seed"]) == (run, 2, 7)

    asyncio.run(main())


@pytest.mark.postgres
def test_the_whole_ancestry(server: str, run: str) -> None:
    async def main() -> None:
        async with begun(lambda: embedded.make_storage(home=server), run) as (archive, store):
            await _grown(store, run)
            row = await archive.find("rollout", "r-z-0", run)
            assert [one["id"] for one in row["templates"]] == ["t-grandchild", "t-child", "t-other", "t-seed"]
            assert [one["mutation"] for one in row["templates"]] == ["set_parameter", "rewrite", "seed", "seed"]
            assert [one["hash"] for one in row["adapters"]] == ["aa22", "aa11"]
            template = await archive.find("template", "t-child", run)
            assert template["children"] == ["t-grandchild"] and template["settings"] == [["clarity", "long"]]
            assert [(one["step"], one["trials"]) for one in template["history"]] == [(1, 2.0), (2, 2.0)]
            assert (await archive.find("template", "t-grandchild", run))["mean_reward"] == 1.0
            about = await archive.find("run", run)
            assert [one["step"] for one in about["states"]] == [0, 1, 2] and len(about["adapters"]) == 2

    asyncio.run(main())


@pytest.mark.postgres
def test_an_ancestry_ends_though_a_file_made_two_templates_each_others_parents(server: str, run: str) -> None:
    one, two = replace(SEED, parents=("t-other",)), replace(OTHER, parents=("t-seed",))

    async def main() -> None:
        async with opened(lambda: embedded.make_storage(home=server)) as archive:
            await archive.create_run(_with(run, 0, (one, two)))
            row = await archive.find("template", "t-seed", run)
            assert [ancestor["id"] for ancestor in row["ancestry"]] == ["t-seed", "t-other"]

    asyncio.run(main())


@pytest.mark.postgres
def test_a_run_is_worked_on_by_one(server: str, run: str) -> None:
    async def main() -> None:
        async with begun(lambda: embedded.make_storage(home=server), run) as (archive, _):
            await archive.lock(run)
            await archive.lock(run)
            async with opened(lambda: embedded.make_storage(home=server)) as other:
                with pytest.raises(RunLocked, match=run):
                    await other.lock(run)
                await archive.close()
                await other.lock(run)

    asyncio.run(main())


@pytest.mark.postgres
def test_two_writers_keep_one_group(server: str, run: str) -> None:
    """Both are told the same, whichever came first."""

    async def main() -> None:
        async with begun(lambda: embedded.make_storage(home=server), run) as (_, store):
            for name in "abcd":
                one, two = group(name), group(name, texts=("x", "y"))
                kept = await asyncio.gather(*(store.save_group(0, g) for g in (one, two, one, two)))
                assert all(back == kept[0] for back in kept) and kept[0] in (one, two)
                marks = [scored(kept[0], (value,)) for value in (0.25, 0.75)]
                judged = await asyncio.gather(*(store.save_scored(0, mark) for mark in marks))
                assert judged[0] == judged[1] and judged[0] in marks

    asyncio.run(main())


@pytest.mark.postgres
def test_many_add_at_once_and_each_thing_is_kept_once(server: str, run: str) -> None:
    async def main() -> None:
        async with begun(lambda: embedded.make_storage(home=server), run) as (_, store):
            await store.save_group(0, group("a"))
            await store.save_scored(0, scored(group("a")))
            audits = [
                Evaluation(f"r-a-{place}", "rubric", name, 0.5, "", "gpt", version="j-1", audit="repeat")
                for name in ("clarity", "depth", "truth")
                for place in (0, 1)
            ]
            await asyncio.gather(*(store.add_evaluations(some) for some in (audits, audits[::-1], audits[2:], audits)))
            added = await store.added_evaluations()
            assert sorted(added, key=repr) == sorted(audits, key=repr)

    asyncio.run(main())


@pytest.mark.postgres
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(server: str, run: str, bad: float) -> None:
    async def main() -> None:
        async with begun(lambda: embedded.make_storage(home=server), run) as (_, store):
            await store.save_group(0, group())
            with pytest.raises(ValueError, match="score"):
                await store.save_scored(0, scored(group(), (bad,)))
            assert await store.scored_groups() == []
            with pytest.raises(ValueError):
                await store.save_event(0, "x", {"loss": bad})

    asyncio.run(main())
