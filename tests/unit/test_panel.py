"""A panel: several oracles asked as one judge, and a stronger one where they disagree."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from serving import Canned, group

from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.fenced import unfenced
from grpo_ray.judges import panel
from grpo_ray.judges.panel import Dispute, disputes
from grpo_ray.registry import check_settings
from grpo_ray.rewards import judge_score
from grpo_ray.types import Evaluation

ONE = {"dimensions": {"clarity": "Is it clear?"}}


class Named(Canned):
    """A canned oracle with further ones by name."""

    def __init__(self, *replies: Any, others: Mapping[str, Canned] | None = None, stand_in: bool = False) -> None:
        super().__init__(*replies, stand_in=stand_in)
        self.others = dict(others or {})

    def at(self, name: str) -> Canned:
        if name not in self.others:
            raise ConfigError(f"there is no {name!r} among oracles")
        return self.others[name]


def mark(score: int, words: str = "because") -> dict[str, Any]:
    return {"answers": [{"answer": "A1", "marks": [{"dimension": "clarity", "rationale": words, "score": score}]}]}


def judged(oracle: Canned, *texts: str, **settings: Any) -> list[Evaluation]:
    given = {"members": ["", "b"], "settings": ONE, **settings}
    return asyncio.run(panel.judge(group(*texts), oracle, **given))


def by(name: str, said: list[Evaluation]) -> list[float | None]:
    return [one.score for one in said if one.judge == name]


def shown(oracle: Canned) -> list[str]:
    return [answer["text"] for asked in oracle.asked for answer in unfenced(asked[-1].content)["answers"]]


def test_members_that_agree_are_averaged_and_kept_beside_the_panel() -> None:
    oracle = Named(mark(5, "fine"), mark(3), others={"b": Canned(mark(4, "good"), mark(3))})
    said = judged(oracle, "first", "second")
    assert by("panel", said) == [0.875, 0.5]
    assert by("panel/main", said) == [1.0, 0.5] and by("panel/b", said) == [0.75, 0.5]
    assert said[0].rationale == "mean of main 1, b 0.75. main: fine; b: good"
    assert said[0].model == "canned-judge" and not disputes(said)
    assert judge_score.reward(group("first").rollouts[0], said[:1] + said[2:3], group("first"), judge="panel") == 0.875


def test_the_median_shrugs_off_one_that_is_far_off() -> None:
    others = {"b": Canned(mark(4)), "c": Canned(mark(1))}
    said = judged(Named(mark(4), others=others), "x", members=["", "b", "c"], combine="median", agree_within=1.0)
    assert by("panel", said) == [0.75] and said[0].rationale.startswith("median of main 0.75, b 0.75, c 0.")


def test_the_stronger_one_sees_only_what_is_disputed_and_decides_it() -> None:
    big = Canned(mark(2, "wrong in line 3"))
    others = {"b": Canned(mark(4), mark(5)), "big": big}
    said = judged(Named(mark(4), mark(1), others=others), "clear", "disputed", stronger="big")
    assert shown(big) == ["disputed"]
    assert by("panel", said) == [0.75, 0.25] and by("panel/big", said) == [0.25]
    words = "members disagree: main 0, b 1; a stronger one decides. main: because; b: because; big: wrong in line 3"
    assert said[1].rationale == words and not disputes(said)


def test_the_stronger_one_is_not_paid_where_all_agree() -> None:
    big = Canned()
    judged(Named(mark(3), others={"b": Canned(mark(4)), "big": big}), "x", stronger="big")
    assert not big.asked


@pytest.mark.parametrize("faults", [None, [OracleError("too busy")] * 2])
def test_what_nobody_settles_is_left_to_people_with_the_mean(faults: list[OracleError] | None) -> None:
    others = {"b": Canned(mark(5)), "big": Canned(*(faults or []))}
    said = judged(Named(mark(2), others=others), "x", stronger="big" if faults else "")
    assert by("panel", said) == [0.625]
    assert said[0].rationale.startswith("members disagree: main 0.25, b 1; for people to look at. main: because; ")
    assert ("big: no verdict: too busy" in said[0].rationale) == bool(faults)
    assert disputes(said) == [Dispute("r-0", "panel", "clarity", (("main", 0.25), ("b", 1.0)))]


def test_a_model_that_speaks_like_a_panel_raises_no_dispute() -> None:
    said = judged(
        Named(mark(3, "members disagree: a 0, b 1; for people to look at. x"), others={"b": Canned(mark(3))}), "x"
    )
    assert not disputes(said)
    assert not disputes([replace(one, judge="rubric") for one in said])


def test_too_few_scores_leave_it_missing_with_the_reason() -> None:
    dead = Canned(*[OracleError("can't reach it")] * 2)
    said = judged(Named(mark(5), others={"b": dead}), "x")
    assert by("panel", said) == [None] and by("panel/main", said) == [1.0]
    assert "1 of the members gave a score, 2 are needed" in said[0].rationale and "can't reach it" in said[0].rationale
    again = Canned(*[OracleError("can't reach it")] * 2)
    assert by("panel", judged(Named(mark(5), others={"b": again}), "x", minimum=1)) == [1.0]


def test_a_stand_in_among_them_marks_the_whole() -> None:
    said = judged(Named(mark(4), others={"b": Canned(mark(4), stand_in=True)}), "x")
    assert [one.stand_in for one in said] == [True, False, True]


def test_an_oracle_that_nobody_knows_is_a_mistake_of_the_config() -> None:
    with pytest.raises(ConfigError, match="no 'gone' among oracles"):
        judged(Named(others={"b": Canned()}), "x", stronger="gone")


def test_another_order_reaches_the_members_or_asks_nobody() -> None:
    two = {"dimensions": dict.fromkeys("abcdef", "?")}
    empty: dict[str, Any] = {"answers": [{"answer": "A1", "marks": [{"dimension": "a", "rationale": "", "score": 3}]}]}
    oracle = Named(empty, others={"b": (other := Canned(empty))})
    judged(oracle, "x", settings=two, order=3)
    orders = [[d["name"] for d in unfenced(one.asked[0][-1].content)["dimensions"]] for one in (oracle, other)]
    assert orders[0] == orders[1] != list("abcdef")
    said = judged(Named(others={"b": Canned()}), "x", judge="heuristics", settings=None, order=3)
    assert [one.score for one in said] == [None] and "knows no other order" in said[0].rationale


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "needs the setting 'members'"),
        ({"members": [""]}, "at least two different oracles"),
        ({"members": ["a", "a", "b"]}, "names one twice"),
        ({"members": ["", "main"]}, "it is named ''"),
        ({"members": ["a", "b"], "stronger": "a"}, "can't judge over itself"),
        ({"members": ["a", "b"], "minimum": 3}, "there are 2 members"),
        ({"members": ["a", "b"], "agree_within": 2.0}, "scores go from 0 to 1"),
        ({"members": ["a", "b"], "combine": "most"}, "settings.combine"),
        ({"members": ["a", "b"], "judge": "rubrik"}, "did you mean 'rubric'"),
        ({"members": ["a", "b"], "judge": "panel"}, "can't be panels"),
        ({"members": ["a", "b"], "settings": {"trys": 3}}, "judges 'rubric' has no setting 'trys'"),
        ({"members": ["a", "b"], "judge": "heuristics", "order": 1}, "knows no other order"),
    ],
)
def test_settings_that_can_be_no_panel_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_settings("judges", "panel", "judge", settings)


def test_the_settings_tell_which_oracles_they_name() -> None:
    check_settings("judges", "panel", "judge", {"members": ["", "b"], "stronger": "big", "settings": {"tries": 1}})
    named = panel.named(members=["", "b"], stronger="big", settings={"tries": 1})
    assert named == [("members.1", "b"), ("stronger", "big")]
