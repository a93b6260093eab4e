"""Text similarity against values worked out by hand and examples of the papers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.graders import similarity
from grpo_ray.graders.similarity import METRICS, aligned, clipped, common_length, cosine, stem

CAT = "the cat sat on the mat"


def slow_common_length(one: str, other: str) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.text("abc", max_size=30), st.text("abc", max_size=30))
def test_the_common_subsequence_is_the_table_s(one: str, other: str) -> None:
    assert common_length(one, other) == slow_common_length(one, other)


@given(st.text(max_size=40), st.text(max_size=40))
def test_every_metric_stays_from_0_to_1(one: str, other: str) -> None:
    for name, metric in METRICS.items():
        assert 0.0 <= metric(one, other) <= 1.0 + 1e-12, name


@pytest.mark.parametrize("name", METRICS)
def test_a_text_is_like_itself_and_unlike_another(name: str) -> None:
    same = METRICS[name](CAT, CAT)
    assert same == pytest.approx(1 - 0.5 / 6**3 if name == "meteor" else 1.0)
    assert METRICS[name](CAT, "qqq vvv") < 0.1
    assert METRICS[name]("", CAT) == 0.0 and METRICS[name]("", "") == 1.0


def test_fuzzy_match_is_rapidfuzz_s_ratio() -> None:
    """fuzz.ratio("this is a test", "this is a test!") is 96.55 in rapidfuzz's own documentation."""
    assert similarity.fuzzy_match("this is a test", "this is a test!") == pytest.approx(0.9655, abs=1e-4)
    assert similarity.fuzzy_match("kitten", "sitting") == pytest.approx(8 / 13)


def test_bleu_clips_as_in_the_paper() -> None:
    """Papineni et al. 2002, example 2: the modified unigram precision of seven times `the` is 2/7."""
    assert clipped(["the"] * 7, ["the", "cat", "is", "on", "the", "mat"], 1) == (2, 7)
    party = "It is a guide to action which ensures that the military always obeys the commands of the party"
    right = "It is a guide to action that ensures that the military will forever heed Party commands"
    assert clipped(party.split(), right.split(), 2) == (8, 17)


def test_bleu_by_hand() -> None:
    """4 of 5 words, (2+1)/(4+1) pairs, (1+1)/(3+1) triples, (0+1)/(2+1) fours; the reference is one word longer."""
    expected = math.exp(1 - 6 / 5) * (4 / 5 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert similarity.bleu("the cat sat under mat", CAT) == pytest.approx(expected)


def test_gleu_by_hand() -> None:
    """the cat sat: 3 words, 2 pairs, 1 triple match; the longer text has 6 + 5 + 4 + 3 n-grams."""
    assert similarity.gleu("the cat sat", CAT) == pytest.approx(6 / 18)
    assert similarity.gleu(CAT, "the cat sat") == pytest.approx(6 / 18)


def test_meteor_by_hand() -> None:
    """`on the mat sat the cat`: all words match, in the chunks `on the mat`, `sat`, `the cat`."""
    assert similarity.meteor("on the mat sat the cat", CAT) == pytest.approx(1 - 0.5 * (3 / 6) ** 3)
    precision, recall = 1.0, 2 / 6
    mean = 10 * precision * recall / (recall + 9 * precision)
    assert similarity.meteor("the cats", CAT) == pytest.approx(mean * (1 - 0.5 * (1 / 2) ** 3))


def test_equal_words_are_matched_before_stems_and_each_once() -> None:
    assert aligned(["cats", "cat"], ["cat", "cats"]) == [(0, 1), (1, 0)]
    assert aligned(["the", "the"], ["the"]) == [(0, 0)]
    assert [stem(w) for w in ("walking", "bodies", "quickly", "glass", "as", "walked")] == [
        "walk", "body", "quick", "glass", "as", "walk",
    ]  # fmt: skip


def test_rouge_as_in_the_paper() -> None:
    """Lin 2004, section 3.1: S1 police killed the gunman; S2 police kill the gunman; S3 the gunman kill police."""
    right = "police killed the gunman"
    assert similarity.rouge_l("police kill the gunman", right) == pytest.approx(3 / 4)
    assert similarity.rouge_l("the gunman kill police", right) == pytest.approx(2 / 4)
    assert METRICS["rouge_2"]("police kill the gunman", right) == METRICS["rouge_2"]("the gunman kill police", right)


def test_rouge_n_by_hand() -> None:
    assert METRICS["rouge_1"]("The cat!", CAT) == pytest.approx(2 * 2 / (2 + 6))
    assert METRICS["rouge_2"]("the cat sat", CAT) == pytest.approx(2 * 2 / (2 + 5))
    assert METRICS["rouge_5"]("the cat sat", CAT) == 0.0


def test_cosine_starts_at_zero() -> None:
    assert cosine([3.0, 4.0], [6.0, 8.0]) == pytest.approx(1.0)
    assert cosine([1.0, 0.0], [1.0, 1.0]) == pytest.approx(math.sqrt(0.5))
    assert cosine([1.0, 0.0], [-1.0, 0.0]) == 0.0 and cosine([0.0], [1.0]) == 0.0
