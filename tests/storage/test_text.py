"""Everything crosses the database's border unharmed, or is refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.storage._queries import QUERIES, load
from grpo_ray.storage._text import document, give, inward, keep, outward

TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from("\x00\x1b0af\ud800\udfff"))


@given(TEXT)
def test_every_string_has_one_storable_form(text: str) -> None:
    stored = keep(text)
    assert give(stored) == text
    assert "\x00" not in stored and stored.encode("utf-8").decode("utf-8") == stored


@given(TEXT, TEXT)
def test_two_strings_have_two_forms(one: str, two: str) -> None:
    assert (keep(one) == keep(two)) == (one == two)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXT | st.integers(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    )
)
def test_documents_come_back(value: object) -> None:
    wrapped = document(value)
    assert wrapped.dumps is not None
    text = wrapped.dumps(wrapped.obj)
    assert inward({"x": json.loads(text)}) == {"x": value}


def test_a_number_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="logprobs holds nan"):
        outward({"seed": 1, "logprobs": [0.0, float("nan")]})
    with pytest.raises(ValueError):
        canonical_of = document({"loss": float("inf")})
        assert canonical_of.dumps is not None
        canonical_of.dumps(canonical_of.obj)


def test_statements_are_found_by_name(tmp_path) -> None:
    assert QUERIES["save_task"].startswith("-- ") and "INSERT INTO task" in QUERIES["save_task"]
    file = tmp_path / "twice.sql"
    file.write_text("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;\n")
    with pytest.raises(ValueError, match="two statements called a"):
        load(file)
