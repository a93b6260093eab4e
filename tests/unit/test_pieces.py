"""Templates cut into pieces, and put together anew."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.pieces import cut, jinja, loose, pieces, rebuilt, sentences, with_sentences, with_settings
from grpo_ray.prompting import check_template
from grpo_ray.types import Choice, Example, Parameter, Template

SIZE = Parameter("size", (Choice("s", "small"), Choice("l", "large")))
SEED = Template(
    "one",
    "{{ size }}Add them. Show it. {% if size %}Be kind.{% endif %}\n\n{{ examples }}Question: {{ question }}",
    system="You are a clerk. Be exact.",
    parameters=(SIZE,),
    settings=(("size", "s"),),
    examples=(Example("1 + 1?", "2"),),
)
BITS = [
    "{{ a }}",
    "{% if b %}",
    "{% endif %}",
    "Do it. ",
    "do it, ",
    "Question: ",
    "\n",
    "word ",
    "Is it? ",
    "- Go on\n",
    ": ",
    " ",
]
TEXTS = st.lists(st.sampled_from(BITS), max_size=12).map("".join)
SENTENCES = st.sampled_from(["Say why.", "Take care", "- A point.", "Really?"])


def loose_in(text: str) -> list[str]:
    return [part.text for part in cut(text) if part.kind == "loose"]


def test_a_template_is_made_of_its_settings_and_sentences() -> None:
    own = ("You are a clerk.", "Be exact.", "Add them.", "Show it.", "Be kind.", "Question:")
    assert pieces(SEED) == ("size=s", *own)
    assert loose(SEED) == own[:4]


@given(TEXTS)
def test_the_parts_of_a_text_are_the_text(text: str) -> None:
    assert "".join(part.text for part in cut(text)) == text
    assert all(part.text for part in cut(text))
    assert set(loose_in(text)) <= set(sentences(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Do it, e.g. so. Then rest! Why?", ["Do it, e.g. so.", "Then rest!", "Why?"]),
        ("1. One thing\n2. Two: things\n\nA line", ["1. One thing", "2. Two: things", "A line"]),
        ('Say "yes." Or "no."', ['Say "yes."', 'Or "no."']),
        ("It is 3.5 or so. ---\n", ["It is 3.5 or so."]),
        ("答える。短く。", ["答える。", "短く。"]),
        ("", []),
    ],
)
def test_where_a_sentence_ends(text: str, found: list[str]) -> None:
    assert sentences(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "Use {{ tone }} words",  # a sentence with a placeholder in it
        "Use {{ tone }} Words, always.",
        "{{ tone }} words are best.",
        "Read on:\n{{ question }}",  # a label
        "Rules:\n",
        "# A heading\n",
        "<task>\n{{ question }}\n</task>",
        "{% if tone %}Be brief.{% endif %}",  # a conditional part
        "End with a line such as Answer: 42.",  # the answer's form
        "Be brief{% if tone %} and kind{% endif %}.",
        "```\n",
    ],
)
def test_what_belongs_to_the_frame_is_never_loose(text: str) -> None:
    assert loose_in(text) == []


def test_a_sentence_between_placeholders_is_loose() -> None:
    assert loose_in("{{ context }}A sum. {{ clarity }} Then rest. {{ reasoning }}") == ["A sum.", "Then rest."]
    assert loose_in("Translate into {{ language }}. Be brief.") == ["Be brief."]


@pytest.mark.parametrize(
    ("old", "dropped", "new"),
    [
        ("{{ context }}A sum. {{ clarity }}", "A sum.", "{{ context }}{{ clarity }}"),
        ("Do it.\n\nQuestion: {{ q }}", "Do it.", "Question: {{ q }}"),
        ("One. Two.{{ reasoning }}\n", "Two.", "One.{{ reasoning }}\n"),
        ("One. Two. Three.\nFour.", "Two.", "One. Three.\nFour."),
        ("One. Two.\n\nThree.", "Two.", "One.\n\nThree."),
        ("- One.\n- Two.\n- Three.", "- Two.", "- One.\n- Three."),
        ("{{ q }}\nOne.", "One.", "{{ q }}"),
        ("One. Two. One.", "One.", "Two."),
        ("Question: {{ q }}", "Question:", "Question: {{ q }}"),
    ],
)
def test_a_sentence_goes_with_the_gap_that_it_leaves(old: str, dropped: str, new: str) -> None:
    assert rebuilt(old, dropped=[dropped]) == new


@pytest.mark.parametrize(
    ("old", "added", "new"),
    [
        ("{{ context }}A sum. {{ clarity }}", "Show it.", "{{ context }}A sum. Show it. {{ clarity }}"),
        ("{{ context }}A sum. {{ clarity }}", "Show it", "{{ context }}A sum. Show it\n{{ clarity }}"),
        ("Solve it\n{{ question }}", "Show it.", "Solve it\nShow it.\n{{ question }}"),
        ("- One.\n- Two.\n{{ question }}", "- Three.", "- One.\n- Two.\n- Three.\n{{ question }}"),
        ("{{ question }}", "Show it.", "Show it.\n\n{{ question }}"),
        ("{{ clarity }}\n\n{{ question }}", "Show it.", "Show it. {{ clarity }}\n\n{{ question }}"),
        ("", "Show it.", "Show it.\n\n"),
    ],
)
def test_a_sentence_joins_the_last_loose_one(old: str, added: str, new: str) -> None:
    assert rebuilt(old, added=[added]) == new


@given(TEXTS, SENTENCES)
def test_no_placeholder_is_lost_and_what_is_added_is_there(text: str, sentence: str) -> None:
    new = rebuilt(text, added=[sentence])
    assert jinja(new) == jinja(text)
    assert sentence in sentences(new)


@given(TEXTS)
def test_what_is_dropped_is_gone_and_the_frame_stays(text: str) -> None:
    for sentence in loose_in(text):
        new = rebuilt(text, dropped=[sentence])
        assert jinja(new) == jinja(text) and len(new) < len(text)
        assert sentence not in loose_in(new)
        assert sum(map(len, sentences(new))) >= sum(map(len, sentences(text))) - len(sentence) * text.count(sentence)


def test_a_template_is_made_anew_and_stays_valid() -> None:
    moved = with_settings(SEED, {"size": "l", "other": "x"})
    assert moved.settings == (("size", "l"),) and replace(moved, settings=SEED.settings) == SEED
    new = with_sentences(SEED, dropped=["You are a clerk.", "Be exact.", "Add them."], added=["Go on."])
    assert new.system is None and not check_template(new)
    assert new.text.startswith("{{ size }}Show it. Go on. {% if size %}")
    assert with_sentences(SEED) == SEED
    assert with_sentences(replace(SEED, system="")) == replace(SEED, system="")
