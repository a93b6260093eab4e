"""What can be seen without a model, each heuristic by its own numbers."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Canned, group

from grpo_ray.errors import ConfigError
from grpo_ray.judges.heuristics import (
    DIMENSIONS,
    STOP_WORDS,
    in_language,
    judge,
    length,
    marked,
    refusal,
    repetition,
    stop_words,
)
from grpo_ray.registry import check_settings
from grpo_ray.types import Task

ENGLISH = "The sum of the two numbers is that of their tens and of their ones, and this is not hard."
GERMAN = "Die Summe der beiden Zahlen ist die der Zehner und der Einer, und das ist nicht schwer."


class Checked(Canned):
    def __init__(self, *verdicts: float | None) -> None:
        super().__init__(verdicts=verdicts)
        self.how: list[tuple[str | None, Mapping[str, Any] | None]] = []

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        self.how.append((verifier, settings))
        return list(self.verdicts)


def test_one_evaluation_a_rollout_and_chosen_dimension() -> None:
    found = asyncio.run(judge(group("Answer: 7", "no"), Canned(), dimensions=("format", "length"), longest=5))
    assert [(e.rollout_id, e.dimension, e.score) for e in found] == [
        ("r-0", "format", 1.0), ("r-0", "length", 1.0), ("r-1", "format", 0.0), ("r-1", "length", 1.0),
    ]  # fmt: skip
    assert all(e.judge == "heuristics" and e.rationale for e in found)


def test_a_pattern_is_looked_for_by_the_checker() -> None:
    oracle = Checked(1.0, 0.0, None)
    found = asyncio.run(judge(group("a", "b", "c"), oracle, dimensions=("format",), pattern="a+"))
    assert oracle.how == [("regex", {"pattern": "a+"})]
    assert [e.score for e in found] == [1.0, 0.0, None]
    assert [e.rationale.split()[0] for e in found] == ["matches", "does", "the"]


def test_format() -> None:
    assert marked("so\nAnswer: 7")[0] == 1.0
    assert marked("so\nAnswer:")[0] == 0.0
    assert marked("<think>Answer: 7</think> seven")[0] == 0.0, "thoughts are not said"


@pytest.mark.parametrize(
    ("words", "score"), [(0, 0.0), (2, 0.5), (4, 1.0), (7, 1.0), (10, 1.0), (15, 0.5), (20, 0.0), (90, 0.0)]
)
def test_length_falls_off_in_straight_lines(words: int, score: float) -> None:
    found, why = length("w " * words, 4, 10, "words")
    assert found == pytest.approx(score) and f"{words} words" in why


def test_length_in_characters_leaves_the_thoughts_out() -> None:
    assert length("<think>hm hm</think> four ", 4, 4, "characters") == (1.0, "4 characters, from 4 to 4 wanted")


def test_language_by_script_and_by_stop_words() -> None:
    assert in_language(ENGLISH, "en")[0] == 1.0
    assert (in_language(ENGLISH, "de")[0] or 0) < 0.5 < (in_language(GERMAN, "de")[0] or 0)
    assert in_language("Сумма двух чисел", "en")[0] == 0.0 and in_language("Сумма двух чисел", "ru")[0] == 1.0
    assert in_language("二つの数の和", "ja")[0] == 1.0 and in_language("abcd 二つの数", "ja")[0] == 0.5
    assert in_language("2 + 2 = 4", "en") == (None, "no letters to tell a language by")
    assert in_language("x = 7", "de")[0] == 1.0, "too few words to tell"


@pytest.mark.parametrize("language", STOP_WORDS)
def test_each_languages_own_words_prevail_in_it(language: str) -> None:
    hits = stop_words(STOP_WORDS[language])
    assert hits[language] == max(hits.values()) and hits[language] > sorted(hits.values())[-2]
    assert in_language(STOP_WORDS[language], language)[0] == 1.0


def test_repetition() -> None:
    assert repetition(ENGLISH, 4)[0] == 1.0
    assert repetition("", 4)[0] == 1.0
    assert repetition("x x", 4)[0] == 1.0
    assert (repetition("again and again " * 30, 4)[0] or 0) < 0.1
    assert (repetition("so it is " + "no " * 40, 1)[0] or 0) < 0.2
    assert (repetition("Well: " + "a" * 500, 4)[0] or 0) < 0.1
    assert (repetition("はい、" * 100, 4)[0] or 0) < 0.1
    found, why = repetition("one two three one two three", 3)
    assert found == pytest.approx(3 / 4) and "75% of 4 3-grams differ" in why


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot answer this.",
        "As an AI language model, I cannot have opinions.",
        "I must decline.",
        "Es tut mir leid, aber dabei kann ich leider nicht helfen.",
        "Je suis désolé, mais je ne peux pas répondre.",
        "Lo siento, pero no puedo ayudar con eso.",
        "Mi dispiace, ma non posso aiutarti.",
        "Desculpe, mas não posso ajudar.",
        "抱歉,我无法回答。",
        "申し訳ありませんが、お答えできません。",
    ],
)
def test_refusals_are_seen(text: str) -> None:
    score, why = refusal(text)
    assert score == 0.0 and why.startswith("it declines: ")


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        "I can't simplify further, so x = 3.",
        "We cannot divide by zero.",
        "The man said: no. " * 30 + "I must decline.",
        "I'm sorry, but I can't be sure.\nAnswer: 7",
        "Ich kann 7 nicht durch 2 teilen.",
        "",
    ],
)
def test_what_only_sounds_like_one_is_none(text: str) -> None:
    assert refusal(text)[0] == 1.0


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_every_text_gets_scores_from_0_to_1_and_the_same_again(text: str) -> None:
    first = asyncio.run(judge(group(text), Canned()))
    assert [e.dimension for e in first] == list(DIMENSIONS)
    assert all(e.score is None or 0.0 <= e.score <= 1.0 for e in first)
    assert first == asyncio.run(judge(group(text), Canned()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dimensions": ["formt"]}, "did you mean 'format'"),
        ({"dimensions": []}, "dimensions is empty"),
        ({"language": "xx"}, "language 'xx' is not known"),
        ({"shortest": 9, "longest": 3}, "shortest is 9"),
        ({"ngram": 0}, "at least 1"),
        ({"pattern": "("}, "not a regular expression"),
        ({"unit": "lines"}, "unit"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings("judges", "heuristics", "judge", given)
