import random
from itertools import product

import numpy as np
import pytest
from evolving import CARE, HASTE, MATHS, template
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.evolution.hopes import climbed, hopes
from grpo_ray.evolution.surrogate import Draw
from grpo_ray.pieces import with_settings
from grpo_ray.types import Template

PIECES = ("tone=a", "tone=b", "tone=c", "size=x", "size=y", "size=z")
START = template("s", "a", "x", (CARE,))


def draw(weights: dict[str, float], pairs: dict[tuple[str, str], float] | None = None) -> Draw:
    rows = {piece: row for row, piece in enumerate(PIECES)}
    together = np.zeros((len(PIECES), len(PIECES)))
    for (one, other), value in (pairs or {}).items():
        together[rows[one], rows[other]] = together[rows[other], rows[one]] = value
    return Draw(weights, together, rows, {})


def labels(of: Template) -> str:
    return "".join(label for _, label in of.settings)


def test_the_best_label_of_each_parameter_is_climbed_to() -> None:
    liked = draw({"tone=b": 0.1, "tone=c": 0.3, "size=x": 0.0, "size=y": -0.1})
    assert labels(climbed(START, liked)) == "cx"
    assert labels(climbed(START, draw({}))) == "ax"
    assert climbed(START, liked).text == START.text and climbed(START, liked).id == START.id


def test_what_settings_add_together_is_reckoned_with() -> None:
    plain = {"tone=b": 0.1, "size=y": 0.1}
    assert labels(climbed(START, draw(plain))) == "by"
    assert labels(climbed(START, draw(plain, {("tone=b", "size=y"): -0.3}))) in ("bx", "ay")
    assert labels(climbed(START, draw(plain, {("tone=c", "size=y"): 0.3}))) == "cy"


@given(st.integers(0, 10**6))
def test_no_single_setting_would_be_better_than_what_was_climbed_to(seed: int) -> None:
    chance = random.Random(seed)
    weights = {piece: chance.gauss(0, 0.1) for piece in PIECES}
    pairs = {(one, other): chance.gauss(0, 0.1) for one, other in product(PIECES[:3], PIECES[3:])}
    liked = draw(weights, pairs)
    start = template("s", chance.choice("abc"), chance.choice("xyz"))
    top = climbed(start, liked)
    assert liked.value(top) >= liked.value(start)
    beside = [with_settings(top, {"tone": label}) for label in "abc"]
    beside += [with_settings(top, {"size": label}) for label in "xyz"]
    assert all(liked.value(one) <= liked.value(top) + 1e-12 for one in beside)


@given(st.integers(0, 10**6))
def test_the_hope_of_a_setting_is_what_it_changes_beside_the_best_others(seed: int) -> None:
    chance = random.Random(seed)
    pairs = {(one, other): chance.gauss(0, 0.1) for one, other in product(PIECES[:3], PIECES[3:])}
    liked = draw({piece: chance.gauss(0, 0.1) for piece in PIECES}, pairs)
    hoped, top = dict(hopes(START, liked, [])), climbed(START, liked)
    assert set(hoped) == set(PIECES)
    for name, label in (piece.split("=") for piece in PIECES):
        gain = liked.value(with_settings(top, {name: label})) - liked.value(top)
        assert hoped[f"{name}={label}"] - hoped[f"{name}={dict(top.settings)[name]}"] == pytest.approx(gain, abs=2e-6)


def test_sentences_are_hoped_for_as_far_as_they_are_known() -> None:
    liked = draw({CARE: 0.1, HASTE: -0.25, "tone=a": 0.5})
    found = hopes(START, liked, [MATHS, HASTE, CARE])
    assert found[-2:] == ((HASTE, -0.25), (CARE, 0.1))  # in the order of the alphabet
    assert [piece for piece, _ in found[:-2]] == list(PIECES)
    assert dict(found)["tone=b"] == 0.0
