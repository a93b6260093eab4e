"""What is refused before it costs a rollout."""

from dataclasses import replace

import numpy as np
import pytest

from grpo_ray.prompting import content_hash
from grpo_ray.proposals import refusal, spoken, too_near
from grpo_ray.types import Choice, Parameter, Template

SIZE = Parameter("size", (Choice("s", "Be brief."), Choice("l", "Say all.")))
FIRST = Template(
    "one", "Add. {{ size }}\n{{ question }}", system="Clerk.", parameters=(SIZE,), settings=(("size", "s"),)
)
CHILD = replace(FIRST, id="one~1", text="Sum up. {{ size }}\n{{ question }}", mutation="rewrite")


def refused(child: Template = CHILD, *, living: tuple[Template, ...] = (FIRST,), archive: tuple[str, ...] = (), most: int = 100) -> str:  # fmt: skip
    return refusal(child, [FIRST], living, archive, most)


def test_a_good_child_is_let_in() -> None:
    assert refused() == ""
    assert refused(replace(CHILD, text="{{ question }} {{size}}")) == ""  # placeholders may move


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Sum up. {{ question }}", "it lost {{ size }}"),
        ("{{ size }} {{ question }} {{ examples }}", "it has {{ examples }} anew"),
        ("{{ size }} {{ question }} {% if size %}x{% endif %}", "it has {% endif %} anew; it has {% if size %} anew"),
        ("{{ size }} {{ question }} {{ nobody }}", "it has {{ nobody }} anew"),
        ("{{ size }} {{ question }} {%", "broken Jinja2"),
        ("{{ size }} {{ question }} " + "x" * 100, "132 characters, and 100 are allowed"),
    ],
)
def test_what_a_text_may_not_do(text: str, why: str) -> None:
    assert why in refused(replace(CHILD, text=text))


def test_variation_may_bring_other_placeholders() -> None:
    other = replace(CHILD, text="All: {{ question }}", parameters=(), settings=())
    assert refused(other) == "it lost {{ size }}"
    assert refused(replace(other, mutation="variation")) == ""


def test_a_child_may_be_as_long_as_its_parent_is() -> None:
    assert refused(replace(CHILD, text="Ad. {{ size }}\n{{ question }}"), most=5) == ""
    assert "are allowed" in refused(most=5)


def test_what_is_said_already_is_not_new() -> None:
    assert refused(living=(FIRST, replace(CHILD, id="twin"))) == "it says the same as twin"
    assert refused(archive=(content_hash(CHILD),)) == "it says what was tried before"
    assert refusal(CHILD, [], [], [], 100) == ""


def test_too_near_is_a_cosine_distance() -> None:
    vectors = [[3.0, 0.0], [0.0, 0.0]]
    assert too_near([1.0, 0.0], vectors, 0.01) and not too_near([1.0, 0.0], vectors, 0.0)
    assert too_near([1.0, 1.0], np.asarray(vectors), 0.3) and not too_near([1.0, 1.0], vectors, 0.29)  # 1 - 0.707
    assert not too_near([-1.0, 0.0], vectors[:1], 2.0)
    assert not too_near([1.0, 0.0], [], 2.0)


def test_what_is_embedded_holds_the_settings_words() -> None:
    assert spoken(FIRST) == "Clerk.\n\nAdd. Be brief."
    assert spoken(replace(FIRST, settings=(("size", "l"),))) == "Clerk.\n\nAdd. Say all."
