"""Settings to try: pairs first, then a Sobol sequence; or by chance."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.canonical import rng
from grpo_ray.errors import ConfigError
from grpo_ray.prompting import Settings, check_template, content_hash
from grpo_ray.types import Choice, Parameter, Template
from grpo_ray.variation import SOBOL, covering, sobol, stochastic, variations

sizes = st.lists(st.integers(1, 5), max_size=5)
seeds = st.integers(0, 2**32)
JOE_AND_KUO = 39_232


def grid(some: Sequence[int]) -> list[Parameter]:
    """Parameters with so many choices."""
    return [
        Parameter(f"p{axis}", tuple(Choice(f"l{place}", f"text {place}. ") for place in range(size)))
        for axis, size in enumerate(some)
    ]


def seed_template(some: Sequence[int]) -> Template:
    parameters = grid(some)
    text = "".join(f"{{{{ {one.name} }}}}" for one in parameters) + "{{ question }}"
    settings = tuple((one.name, one.choices[-1].label) for one in parameters)
    return Template("root", text, parameters=tuple(parameters), settings=settings, version=2)


def pairs(rows: Sequence[Settings]) -> set[tuple[tuple[str, str], ...]]:
    return {pair for row in rows for pair in combinations(row, 2)}


def every_pair(parameters: Sequence[Parameter]) -> set[tuple[tuple[str, str], ...]]:
    cells = [[(one.name, choice.label) for choice in one.choices] for one in parameters]
    return {pair for two in combinations(cells, 2) for pair in product(*two)}


def until_covered(parameters: Sequence[Parameter], rows: Sequence[Settings]) -> int:
    """Rows until all pairs are met."""
    return next(n for n in range(len(rows) + 1) if pairs(rows[:n]) == every_pair(parameters))


@given(sizes, seeds)
def test_a_whole_design_is_the_whole_grid_once(some: list[int], seed: int) -> None:
    parameters = grid(some)
    rows = covering(parameters, prod(some) + 7, seed)
    assert len(rows) == len(set(rows)) == prod(some)
    assert all([name for name, _ in row] == [one.name for one in parameters] for row in rows)
    assert all(dict(row)[one.name] in {c.label for c in one.choices} for row in rows for one in parameters)


@given(sizes, seeds, st.integers(0, 60), st.integers(0, 60))
def test_fewer_rows_are_the_beginning_of_more(some: list[int], seed: int, one: int, other: int) -> None:
    few, many = sorted((one, other))
    parameters = grid(some)
    rows = covering(parameters, many, seed)
    assert covering(parameters, few, seed) == rows[:few]
    assert len(rows) == min(many, prod(some))


@given(st.lists(st.integers(2, 5), min_size=2, max_size=6), seeds)
def test_every_pair_is_met_and_each_row_until_then_meets_a_new_one(some: list[int], seed: int) -> None:
    parameters = grid(some)
    rows = covering(parameters, 200, seed)
    size = until_covered(parameters, rows)
    met = [len(pairs(rows[:n])) for n in range(size + 1)]
    assert met == sorted(set(met))
    largest, second = sorted(some)[-1:-3:-1]
    assert largest * second <= size <= 2 * largest * second


@pytest.mark.parametrize(("some", "most"), [([4] * 10, 33), ([3] * 13, 23), ([2] * 10, 11), ([2, 3, 5, 7], 36)])
def test_pairs_take_few_rows(some: list[int], most: int) -> None:
    for seed in range(3):
        parameters = grid(some)
        assert until_covered(parameters, covering(parameters, 60, seed)) <= most


def test_another_seed_is_another_design() -> None:
    parameters = grid([4, 4, 4])
    assert len({tuple(covering(parameters, 12, seed)) for seed in range(5)}) == 5
    assert len({tuple(covering(parameters, 64, seed)[30:]) for seed in range(5)}) == 5


@given(st.lists(st.integers(2, 4), min_size=4, max_size=8), seeds, st.integers(1, 64))
def test_labels_stay_in_balance(some: list[int], seed: int, count: int) -> None:
    """In a small part of the grid, so that what is left over decides nothing."""
    parameters = grid([*some, 4, 4, 4])
    rows = covering(parameters, count, seed)
    for axis, one in enumerate(parameters):
        used = Counter(row[axis][1] for row in rows)
        counts = [used[choice.label] for choice in one.choices]
        assert max(counts) - min(counts) <= 3 + count // 20


def test_beyond_the_pairs_labels_meet_more_evenly_than_by_chance() -> None:
    """How unevenly 128 rows fall on the triples of labels of six parameters: Sobol against chance, over 10 seeds."""
    parameters = grid([4] * 6)

    def unevenness(rows: Sequence[Settings]) -> float:
        met = Counter(three for row in rows for three in combinations(row, 3))
        return sum(count * count for count in met.values())

    designed = [unevenness(covering(parameters, 128, seed)) for seed in range(10)]
    chance = [unevenness(stochastic(parameters, 128, rng(seed))) for seed in range(10)]
    assert max(designed) < min(chance)


def test_a_first_row_counts() -> None:
    parameters = grid([3, 3, 3])
    first = (("p0", "l2"), ("p1", "l1"), ("p2", "l0"))
    rows = covering(parameters, 12, 5, first)
    assert rows[0] == first and len(set(rows)) == 12
    assert pairs(rows) == every_pair(parameters)
    assert covering(parameters, 1, 5, first) == [first]
    assert covering(parameters, 0, 5, first) == []


def test_a_large_grid_is_not_written_out() -> None:
    parameters = grid([50] * 12)
    assert len(set(covering(parameters, 20, 0))) == 20
    assert len(set(stochastic(parameters, 20, random.Random(0)))) == 20


def test_more_parameters_than_the_sequence_has_dimensions_are_no_trouble() -> None:
    parameters = grid([2] * (len(SOBOL) + 9))
    rows = covering(parameters, 60, 0)
    assert len(set(rows)) == 60 and until_covered(parameters, rows) < 20
    assert all(20 <= Counter(row[axis][1] for row in rows)["l0"] <= 40 for axis in range(len(parameters)))


# ── Sobol ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def beginning(dimensions: int, count: int, seed: int) -> list[tuple[float, ...]]:
    points = sobol(dimensions, rng(seed))
    return [next(points) for _ in range(count)]


@given(st.integers(0, 9), seeds)
def test_a_power_of_two_of_points_stands_evenly_in_every_dimension(power: int, seed: int) -> None:
    points = beginning(len(SOBOL), 2**power, seed)
    for axis in range(len(SOBOL)):
        assert sorted(int(point[axis] * 2**power) for point in points) == list(range(2**power))


@given(st.integers(0, 4), st.integers(0, 4), seeds)
def test_two_dimensions_are_even_in_every_shape_of_cell(wide: int, high: int, seed: int) -> None:
    """A (0, m, 2)-net: of 2^(wide+high) points, one stands in every cell of a 2^wide by 2^high grid."""
    points = beginning(2, 2 ** (wide + high), seed)
    assert len({(int(x * 2**wide), int(y * 2**high)) for x, y in points}) == len(points)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_direction_numbers_are_those_of_joe_and_kuo(seed: int) -> None:
    """How many cells of 16 by 16 the first 256 points meet, summed over every two dimensions; no scrambling changes it.

    The number is that of scipy 1.x's `qmc.Sobol(21)`, plain or scrambled.
    """
    points = beginning(len(SOBOL), 256, seed)
    two = combinations(range(len(SOBOL)), 2)
    assert sum(len({(int(one[a] * 16), int(one[b] * 16)) for one in points}) for a, b in two) == JOE_AND_KUO


# ── by chance ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(sizes, seeds, st.integers(0, 40))
def test_chance_repeats_nothing_while_there_is_more(some: list[int], seed: int, count: int) -> None:
    rows = stochastic(grid(some), count, random.Random(seed))
    assert len(rows) == len(set(rows)) == min(count, prod(some))
    assert rows == stochastic(grid(some), count, random.Random(seed))


@pytest.mark.parametrize("count", [2, 5])
def test_chance_favours_nothing(count: int) -> None:
    """3000 draws from a grid of six, by either way of drawing: each setting as often as any other, within 5 deviations."""
    stream, parameters = random.Random(1), grid([2, 3])
    used = Counter(row for _ in range(3000) for row in stochastic(parameters, count, stream))
    share = count / 6
    assert len(used) == 6
    assert all(abs(n - 3000 * share) < 5 * (3000 * share * (1 - share)) ** 0.5 for n in used.values())


# ── children ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["covering", "stochastic"])
def test_variations_are_children_with_other_settings(how: str) -> None:
    parent = seed_template([3, 2, 2])
    children = variations(parent, 6, how, seed=3)  # pyright: ignore[reportArgumentType]
    assert len({child.id for child in children}) == 6
    for child in children:
        assert child.id == f"root~{content_hash(child)}" and check_template(child) == []
        assert (child.version, child.parents, child.mutation) == (3, ("root",), "variation")
        assert child.settings != parent.settings and child.parameters == parent.parameters
        moves = [f"{n}: {a} → {b}" for (n, a), (_, b) in zip(parent.settings, child.settings, strict=True) if a != b]
        assert child.note == ", ".join(moves)
    assert variations(parent, 6, how, seed=3) == children  # pyright: ignore[reportArgumentType]
    assert len(variations(parent, 99, how, seed=3)) == 11  # pyright: ignore[reportArgumentType]


def test_a_template_and_its_variations_meet_every_pair() -> None:
    parent = seed_template([3, 3, 3])
    children = variations(parent, 12, "covering", seed=1)
    assert pairs([parent.settings, *(child.settings for child in children)]) == every_pair(parent.parameters)


def test_a_variation_of_a_variation_goes_back_to_the_same_root() -> None:
    child = variations(seed_template([2, 2]), 1, "covering", seed=1)[0]
    assert variations(child, 1, "covering", seed=1)[0].id.startswith("root~")
    assert variations(child, 1, "covering", seed=1)[0].parents == (child.id,)


def test_what_would_be_refused_is_left_out() -> None:
    """The question is lost where all three stand at l1, and so two of them are a step from losing it."""
    labels = " and ".join(f'settings.p{axis} == "l1"' for axis in range(3))
    text = f"{{% if {labels} %}}nothing{{% else %}}{{{{ question }}}}{{% endif %}}"
    parent = replace(seed_template([2, 2, 2]), text=text, settings=(("p0", "l0"), ("p1", "l0"), ("p2", "l0")))
    assert check_template(parent) == []
    children = variations(parent, 9, "covering", seed=0)
    assert sorted("".join(label for _, label in child.settings) for child in children) == ["l0l0l1", "l0l1l0", "l1l0l0"]


def test_a_template_without_parameters_has_no_variations() -> None:
    assert variations(Template("a", "{{ question }}"), 5, "covering", seed=0) == []
    assert variations(Template("a", "{{ question }}"), 5, "stochastic", seed=0) == []


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="variation 'coverng' is unknown; did you mean 'covering'"):
        variations(seed_template([2]), 1, "coverng", seed=0)  # pyright: ignore[reportArgumentType]
