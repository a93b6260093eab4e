"""Novelty, with a canned archive."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Canned, group

from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.graders.similarity import cosine_between
from grpo_ray.judges.novelty import judge
from grpo_ray.registry import check_settings


class Archive(Canned):
    """Knows what is nearest to some texts, and the vectors of some."""

    def __init__(
        self,
        near: dict[str, list[tuple[str, float]]] | None = None,
        vectors: dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__()
        self.near, self.vectors = near or {}, vectors or {}
        self.looked_up: list[tuple[str, int]] = []

    async def nearest(self, text: str, *, limit: int = 10) -> list[tuple[str, float]]:
        self.looked_up.append((text, limit))
        if text not in self.near:
            raise OracleError("the endpoint gave up")
        return self.near[text]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if not self.vectors:
            raise OracleError("the endpoint gave up")
        return [self.vectors[text] for text in texts]


def test_its_own_group_does_not_count() -> None:
    oracle = Archive({"a": [("r-0", 1.0), ("r-1", 0.99), ("old-1", 0.75), ("old-2", 0.5)], "b": [("r-1", 1.0)]})
    found = asyncio.run(judge(group("a", "b", "a"), oracle))
    assert [(e.dimension, e.score) for e in found] == [("novelty", 0.25), ("novelty", None), ("novelty", 0.25)]
    assert found[0].rationale == "the nearest stored completion is old-1, cosine similarity 0.750"
    assert "no completion of another group" in found[1].rationale
    assert oracle.looked_up == [("a", 13), ("b", 13)], "equal texts are asked once, beyond the group's own"


def test_an_oracle_that_gives_up_is_missing_with_its_reason() -> None:
    found = asyncio.run(judge(group("a", "x"), Archive({"a": [("old", 0.5)]}), against="both"))
    assert [(e.dimension, e.score) for e in found] == [
        ("novelty", 0.5), ("group_novelty", None), ("novelty", None), ("group_novelty", None),
    ]  # fmt: skip
    assert all("the endpoint gave up" in e.rationale for e in found[1:])


def test_inside_the_group() -> None:
    vectors = {"east": [1.0, 0.0], "north": [0.0, 2.0], "northeast": [1.0, 1.0], "west": [-1.0, 0.0]}
    found = asyncio.run(judge(group("east", "north", "east"), Archive(vectors=vectors), against="group"))
    assert [e.score for e in found] == [0.0, 1.0, 0.0] and {e.dimension for e in found} == {"group_novelty"}
    assert "r-2" in found[0].rationale and "r-0" in found[2].rationale
    near = asyncio.run(judge(group("east", "northeast"), Archive(vectors=vectors), against="group"))
    assert [e.score for e in near] == [pytest.approx(1 - 0.5**0.5)] * 2
    opposite = asyncio.run(judge(group("east", "west"), Archive(vectors=vectors), against="group"))
    assert [e.score for e in opposite] == [1.0, 1.0], "never above 1"
    (alone,) = asyncio.run(judge(group("east"), Archive(vectors=vectors), against="group"))
    assert alone.score is None and "no other rollout" in alone.rationale


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=5))
def test_cosine_of_itself(vector: list[float]) -> None:
    if max(map(abs, vector)) > 1e-3:
        assert cosine_between(vector, vector) == pytest.approx(1)
        assert cosine_between(vector, [-x for x in vector]) == pytest.approx(-1)
    assert cosine_between(vector, [0.0] * len(vector)) == 0


def test_wrong_settings_are_refused() -> None:
    for wrong, message in (({"limit": 0}, "at least 1"), ({"against": "all"}, "against")):
        with pytest.raises(ConfigError, match=message):
            check_settings("judges", "novelty", "judge", wrong)
