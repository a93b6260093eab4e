"""How alike two texts are, from 0 to 1: the metrics of OpenAI's text_similarity grader, each in a few lines.

A candidate is compared with one reference. Two empty texts are alike; an empty one and another are not.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

ORDERS = (1, 2, 3, 4)
"""The n of the n-grams that BLEU and GLEU count."""
ENDINGS = (("ies", "y"), ("ing", ""), ("ed", ""), ("ly", ""), ("s", ""))
"""What `stem` takes off, and puts in its place; the first that fits."""
_WORDS = re.compile(r"\w+")
_TOKENS = re.compile(r"\w+|[^\w\s]")


def fuzzy_match(candidate: str, reference: str) -> float:
    """The normalised Indel similarity, 2·LCS / (|a| + |b|) over characters: what rapidfuzz's `fuzz.ratio` is / 100."""
    return _dice(common_length(candidate, reference), len(candidate), len(reference))


def bleu(candidate: str, reference: str) -> float:
    """Sentence BLEU over n-grams up to 4, with the brevity penalty (Papineni et al. 2002, section 2.3).

    Smoothed for short texts: for n > 1, one is added to the matches and to the count (Lin and Och 2004, ORANGE, 4).
    """
    said, right = _TOKENS.findall(candidate), _TOKENS.findall(reference)
    if not said or not right:
        return float(said == right)
    logs = 0.0
    for n in ORDERS:
        found, total = clipped(said, right, n)
        if n == 1 and not found:
            return 0.0
        logs += math.log((found + (n > 1)) / (total + (n > 1)))
    return math.exp(min(0.0, 1 - len(right) / len(said)) + logs / len(ORDERS))


def gleu(candidate: str, reference: str) -> float:
    """The smaller of precision and recall over all n-grams up to 4 (Wu et al. 2016, arXiv 1609.08144, section 4.3)."""
    said, right = _TOKENS.findall(candidate), _TOKENS.findall(reference)
    if not said or not right:
        return float(said == right)
    found = sum(clipped(said, right, n)[0] for n in ORDERS)
    return found / max(sum(max(len(text) - n + 1, 0) for n in ORDERS) for text in (said, right))


def meteor(candidate: str, reference: str) -> float:
    """METEOR (Banerjee and Lavie 2005, section 2.2): 10PR / (R + 9P) times 1 − 0.5·(chunks / matches)³.

    Words match where they are equal, then where their `stem` is; synonyms (WordNet) are not looked up. The alignment
    is made from left to right, going on beside the match before where it can, and not by search. So that a text
    equals itself only nearly: one chunk of m words costs 0.5 / m³.
    """
    said, right = _WORDS.findall(candidate.lower()), _WORDS.findall(reference.lower())
    if not said or not right:
        return float(said == right)
    pairs = aligned(said, right)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(said), len(pairs) / len(right)
    chunks = 1 + sum((i + 1, j + 1) != after for (i, j), after in pairwise(pairs))
    mean = 10 * precision * recall / (recall + 9 * precision)
    return mean * (1 - 0.5 * (chunks / len(pairs)) ** 3)


def rouge_l(candidate: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, section 3.1, with β = 1), without case."""
    said, right = _WORDS.findall(candidate.lower()), _WORDS.findall(reference.lower())
    return _dice(common_length(said, right), len(said), len(right))


def rouge_n(n: int) -> Callable[[str, str], float]:
    """F1 of the words' n-grams (Lin 2004, section 2), without case; 0 where a text is shorter than n words."""

    def rouge(candidate: str, reference: str) -> float:
        said, right = _WORDS.findall(candidate.lower()), _WORDS.findall(reference.lower())
        if not said and not right:
            return 1.0
        found, total = clipped(said, right, n)
        return _dice(found, total, len(right) - n + 1) if total and len(right) >= n else 0.0

    return rouge


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    **{f"rouge_{n}": rouge_n(n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}
"""Metric → f(candidate, reference). `cosine` is not here: it needs an embedder."""


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The grader's, from 0: what points apart is as unlike as what stands at right angles."""
    return min(1.0, max(0.0, cosine_between(one, other)))


def cosine_between(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two vectors of one length, −1 to 1 up to rounding; 0 where one is all zeros."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


def clipped(candidate: Sequence[str], reference: Sequence[str], n: int) -> tuple[int, int]:
    """(n-grams of the candidate that the reference has, each as often as there; all n-grams of the candidate)."""
    said, right = _grams(candidate, n), _grams(reference, n)
    return (said & right).total(), said.total()


def common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, a bit an item (Hyyrö 2004): a step of `other` is four operations."""
    places: dict[str, int] = {}
    for i, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << i
    every = (1 << len(one)) - 1
    free = every
    for item in other:
        met = free & places.get(item, 0)
        free = (free + met | free - met) & every
    return len(one) - free.bit_count()


def aligned(candidate: Sequence[str], reference: Sequence[str]) -> list[tuple[int, int]]:
    """(place in the candidate, place in the reference) of matched words, each used once: equal ones, then stems."""
    pairs: dict[int, int] = {}
    for form in (str, stem):
        free: dict[str, dict[int, None]] = {}
        used = set(pairs.values())
        for j, word in enumerate(reference):
            if j not in used:
                free.setdefault(form(word), {})[j] = None
        for i, word in enumerate(candidate):
            places = free.get(form(word))
            if places and i not in pairs:
                beside = pairs.get(i - 1, -2) + 1
                pairs[i] = beside if beside in places else next(iter(places))
                del places[pairs[i]]
    return sorted(pairs.items())


def stem(word: str) -> str:
    """A word without its commonest English ending, where three letters stay: far less than Porter's rules."""
    for ending, put in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word.removesuffix(ending) + put
    return word


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _dice(common: int, one: int, other: int) -> float:
    """2·common / (one + other), the F1 of precision and recall."""
    return 2 * common / (one + other) if one + other else 1.0
