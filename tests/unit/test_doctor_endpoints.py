"""What the doctor, and a run's beginning, say of endpoints: whether they are there, and whether their models go on."""

import asyncio
from dataclasses import replace
from datetime import date, timedelta

import pytest
from serving import stand_in

from grpo_ray.doctor import check_endpoint, check_reachable, days_left, endpoints
from grpo_ray.errors import MissingError
from grpo_ray.mock_openai import Behaviour
from grpo_ray.recipe import Named, OracleSpec, Recipe

pytestmark = pytest.mark.process
RECIPE = Recipe(tasks=(Named(name="jsonl"),), generator=Named(name="canned"), trainer=None)


def ending(days: int) -> Behaviour:
    return Behaviour(shutdown_date=(date.today() + timedelta(days=days)).isoformat())


def test_an_announced_end_is_told_when_near_and_refused_when_past() -> None:
    for days, ok, words in ((400, True, ""), (20, True, "set oracle.model to another by then"), (-1, False, "past")):
        with stand_in(ending(days)) as url:
            found = asyncio.run(check_endpoint(OracleSpec(base_url=url, model="stand-in-old")))
        assert found.ok is ok and words in found.fix and "until" in found.detail


def test_a_run_does_not_begin_with_a_model_that_has_ended() -> None:
    with stand_in(ending(-1)) as url:
        spec = OracleSpec(base_url=url, model="stand-in-old")
        with pytest.raises(MissingError, match=r"stand-in-old ended on .*; set oracle\.model"):
            asyncio.run(check_reachable(replace(RECIPE, oracle=spec)))
        with pytest.raises(MissingError, match=r"set oracles\.strong\.model"):
            asyncio.run(check_reachable(replace(RECIPE, oracles={"strong": spec})))
        asyncio.run(check_reachable(replace(RECIPE, oracle=replace(spec, model="stand-in"))))


def test_every_oracle_is_looked_at_under_its_own_name() -> None:
    recipe = replace(RECIPE, oracles={"strong": OracleSpec(model="strong")})
    assert [(spec.model, keys.name, keys.model) for spec, keys in endpoints(recipe)] == [
        ("stand-in", "endpoint", "oracle.model"),
        ("strong", "oracle strong", "oracles.strong.model"),
    ]


def test_a_date_that_is_none_says_nothing() -> None:
    assert days_left({}) is None and days_left({"shutdown_date": "soon"}) is None
    assert days_left({"shutdown_date": date.today().isoformat() + "T00:00:00Z"}) == 0
