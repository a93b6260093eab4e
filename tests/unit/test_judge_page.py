"""The page: whole, quiet, readable without colour, and deaf to what models and names try to make of it."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from judged import RECIPE, canaries, faulty, scored

from grpo_ray.trust import pictures
from grpo_ray.trust.page import chance, number, page, percent, percents, span
from grpo_ray.trust.report import Saved, judge_report

HOSTILE = (
    "</svg></style></title><script>alert(1)</script><img src=x onerror='alert(2)'>\"'{{ 7 * 7 }}\x1b[31m\u202e\ud800"
)
VOID = {"meta", "br", "link", "img", "input"}
QUIET = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "h1", "h2", "h3", "p", "strong"),
    *("span", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "br", "figure", "figcaption", "code"),
    *("svg", "rect", "circle", "line", "polyline", "text"),
}
"""The elements that a page is made of; none of them runs or loads anything."""
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "role", "aria-label", "scope", "colspan"),
    *("viewbox", "width", "height", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "points", "text-anchor"),
    *("fill", "stroke"),
}


class Outline(HTMLParser):
    """What a page holds; complains of tags that are not closed as they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.open: list[str] = []
        self.words: list[str] = []
        self.first: Counter[tuple[str, str]] = Counter()
        """(element, the first element in it) → how often."""
        self._fresh = False
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._fresh:
            self.first[self.open[-1], tag] += 1
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        self._fresh = tag not in VOID
        self.open += [tag] if self._fresh else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        self._fresh = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def hostile() -> str:
    """The page of a run in which every name and every word tries to become markup."""
    marks = {
        (judge, HOSTILE, audit): mark
        for judge in (HOSTILE, f"panel/{HOSTILE}", "panel/b", "panel")
        for audit, mark in (("", 0.5), ("repeat", 0.25), ("held", 0.5))
    }
    groups = [
        scored(f"g-{i}", {f"{HOSTILE}{j}": {**marks, (HOSTILE, "other", ""): None} for j in range(4)}) for i in range(9)
    ]
    alarm = {"kind": HOSTILE, "judge": HOSTILE, "words": HOSTILE}
    events = [
        {"kind": "canary", "step": 0, "detail": {"judge": HOSTILE, "canary": HOSTILE, "passed": True}},
        {"kind": "judges_alarm", "step": 0, "detail": alarm},
        {"kind": "judges_accepted", "step": 0, "detail": {**alarm, "judge": "other", "who": HOSTILE}},
    ]
    calls = [replace(one, door=HOSTILE, status=HOSTILE, scope=f"0/g/0-{HOSTILE}") for one in faulty(groups=1).attempts]
    recipe = replace(RECIPE, name=HOSTILE)
    return page(judge_report(Saved(HOSTILE, recipe, {0: groups}, events=events, attempts=calls)))


def test_a_page_is_whole_and_made_of_quiet_elements_alone() -> None:
    outline = Outline(page(judge_report(faulty())))
    assert set(outline.tags) <= QUIET
    assert set(outline.attributes) <= ATTRIBUTES, set(outline.attributes) - ATTRIBUTES
    assert outline.tags["svg"] >= 7 and outline.tags["table"] >= 6
    assert outline.first["table", "caption"] == outline.tags["table"] and outline.tags["h1"] == 1
    assert outline.first["svg", "title"] == outline.tags["svg"]


def test_hostile_words_stay_words() -> None:
    text = hostile()
    outline = Outline(text)
    assert set(outline.tags) <= QUIET and set(outline.attributes) <= ATTRIBUTES
    assert "<script" not in text and "49" not in outline.text.split("{{ 7 * 7 }}")[0][-20:]
    assert "{{ 7 * 7 }}" in text and "&lt;script&gt;" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    text.encode("utf-8")


def test_nothing_is_loaded_and_the_policy_seals_the_only_style() -> None:
    text = page(judge_report(faulty(groups=4)))
    assert not re.search(r"(src|href|url|action)\s*[=(]", text) and "@import" not in text
    assert "default-src 'none'; style-src 'sha256-" in text.replace("&#39;", "'")
    assert " style=" not in text and " on" + "click" not in text


def test_the_first_section_says_what_it_comes_to() -> None:
    text = page(judge_report(faulty()))
    head, _, rest = text.partition("</section>")
    words = Outline(re.sub(r".*?(<section)", r"\1", head, count=1, flags=re.S) + "</section>").text
    assert "It can be trusted on reasoning;" in words and "relevance says nothing: all 480 marks are 1" in words
    assert "<h2>" in rest


def test_a_stand_ins_page_says_so_before_all_else() -> None:
    simulated, real = (Outline(page(judge_report(faulty(groups=4, stand_in=s)))) for s in (True, False))
    assert "A stand-in spoke for rubric" in simulated.text.split("It can be trusted")[0]
    assert "stand-in spoke" not in real.text and "simulated" not in real.text


def test_a_noisy_truth_is_called_one() -> None:
    said = {("rubric", "x", ""): 0.5, ("strict", "x", ""): 0.25}
    group = scored("g-1", {f"text {i}": said for i in range(4)})
    assert "noisy stand-in for the truth" in Outline(page(judge_report(Saved("r", RECIPE, {0: [group]})))).text
    assert "noisy stand-in" not in Outline(page(judge_report(faulty(groups=4)))).text


def test_pages_of_nearly_nothing_stand() -> None:
    empty = Outline(page(judge_report(Saved("r", RECIPE, {}))))
    assert "No judge of this run asked a model" in empty.text and "No call was made." in empty.text
    missing = scored("g-1", {"a": {("rubric", "x", ""): None}})
    assert "x is unknown: no mark was given" in Outline(page(judge_report(Saved("r", RECIPE, {0: [missing]})))).text
    one = scored("g-1", {"a": {("rubric", "x", ""): 1.0, ("person:ada", "x", ""): 1.0}})
    assert "person:ada" in Outline(page(judge_report(Saved("r", RECIPE, {0: [one]}, events=canaries())))).text


def test_both_schemes_have_the_same_colours_named() -> None:
    text = page(judge_report(Saved("r", RECIPE, {})))
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    names = set(re.findall(r"(--\w+):", light))
    assert names == set(re.findall(r"(--\w+):", dark)) and set(re.findall(r"var\((--\w+)\)", text)) <= names


@pytest.mark.parametrize(
    ("shown", "as_"),
    [
        (number(None), "—"),
        (number(1234), "1,234"),
        (number(0.126), "0.13"),
        (percent(0.0213), "2.1%"),
        (percent(0.5), "50%"),
        (percents({"value": 0.02, "low": -0.01, "high": 0.05}), "2.0% (0.0% … 5.0%)"),
        (span({"value": 0.5, "low": None, "high": None}), "0.50"),
        (span({"value": 0.5, "low": 0.25, "high": 0.75}), "0.50 (0.25 … 0.75)"),
        (span(None), "—"),
        (chance(1e-9), "< 0.0001"),
    ],
)
def test_numbers_are_shown_as_people_read_them(shown: str, as_: str) -> None:
    assert shown == as_


def test_bars_are_as_tall_as_their_counts() -> None:
    heights = re.findall(r'<rect[^>]* height="([\d.]+)"', pictures.histogram([("a", 5), ("b", 10), ("c", 0)], "t"))
    assert [float(one) for one in heights] == [34.0, 68.0, 0.0]


def test_what_is_under_the_bar_is_hollow_and_the_unknown_is_said() -> None:
    found = pictures.intervals(
        [("good", 0.8, 0.7, 0.9), ("bad", 0.2, None, None), ("mute", None, None, None)], 0.67, "t"
    )
    assert (
        found.count('class="dot"') == 1 and found.count('class="hollow"') == 1 and "can't be told" in found.unescape()
    )
    assert found.count('class="whisker"') == 1


def test_a_gap_in_a_line_is_no_point() -> None:
    found = pictures.over_steps([0, 1, 2], [("right", [0.5, None, 0.25]), ("mark", [None, None, None])], "t")
    assert found.count("<circle") == 2 and Outline(found).tags["polyline"] == 4
