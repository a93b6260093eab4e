"""The verifiers, called as the checker calls them, but in this process; what needs the sandbox is in its own file."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Canned, group

from grpo_ray.errors import ConfigError
from grpo_ray.judges import verifier
from grpo_ray.registry import check_settings, names
from grpo_ray.types import Task
from grpo_ray.verifiers import exact, json_schema, math, numeric, python_tests, regex

SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


def task(answer: str | None = None, **metadata: Any) -> Task:
    return Task("t", "?", answer, metadata=metadata)


@pytest.mark.parametrize(
    ("said", "settings", "score"),
    [
        ("Answer: New York.", {}, 1),
        ("Answer:  new   york", {}, 1),
        ("Answer: new york", {"case": True}, 0),
        ("Answer: New York.", {"punctuation": True}, 0),
        ("Answer: New  York", {"whitespace": True}, 0),
        ("It is New York", {}, 0),
        ("<think>Boston</think>New York", {"whole": True}, 1),
        ("I think\nNew York", {"whole": True}, 0),
    ],
)
def test_exact(said: str, settings: dict[str, Any], score: float) -> None:
    assert exact.verify(said, task("New York"), **settings) == score


def test_without_a_reference_there_is_no_verdict() -> None:
    for verify in (exact.verify, numeric.verify, math.verify):
        with pytest.raises(ValueError, match="reference answer"):
            verify("Answer: 1", task(None))


@pytest.mark.parametrize(
    ("said", "reference", "settings", "score"),
    [
        ("Answer: 1,234", "1234", {}, 1),
        ("so 1 234 567.50 it is", "1234567.5", {}, 1),
        ("12\n345", "12345", {}, 0),
        ("Answer: 1, 234", "1234", {}, 0),
        ("Answer: 3/4", "0.75", {}, 1),
        ("it is \\boxed{\\frac{3}{4}}, not 5", "0.75", {}, 1),
        ("first 5, then 7.", "7", {}, 1),
        ("Answer: 5, not 7", "5", {}, 0),
        ("Answer: 45%", "0.45", {}, 1),
        ("Answer: 45%", "45", {}, 1),
        ("Answer: 45%", "45", {"percent": "hundredths"}, 0),
        ("Answer: 45%", "0.45", {"percent": "ignored"}, 0),
        ("Answer: −5", "-5", {}, 1),
        ("Answer: 5", "-5", {}, 0),
        ("Answer: 5-3", "3", {}, 1),
        ("Answer: 1.5 × 10^3", "1500", {}, 1),
        ("Answer: $1.5 \\times 10^{3}$", "1.5e3", {}, 1),
        ("Antwort... Answer: 1.234,5", "1234,5", {"decimal_comma": True}, 1),
        ("Answer: 12 km", "12", {"units": ["km"]}, 1),
        ("Answer: 12", "12", {"units": ["km"]}, 1),
        ("Answer: 12 m", "12", {"units": ["km"]}, 0),
        ("Answer: 12 m", "12", {}, 1),
        ("Answer: 3.14", "3.14159", {}, 0),
        ("Answer: 3.14", "3.14159", {"absolute": 0.01}, 1),
        ("Answer: 101", "100", {"relative": 0.01}, 1),
        ("Answer: 101.1", "100", {"relative": 0.01}, 0),
        ("Answer: none", "1", {}, 0),
        ("Answer: 1/0", "1", {}, 0),
        ("Answer: " + "9" * 5000, "1", {}, 0),
    ],
)
def test_numeric(said: str, reference: str, settings: dict[str, Any], score: float) -> None:
    assert numeric.verify(said, task(reference), **settings) == score


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_number_is_found_again_however_its_thousands_are_written(value: Any) -> None:
    assert numeric.verify(f"Answer: {value:,}", task(f"{value}")) == 1.0
    assert numeric.verify(f"Answer: {value:,}", task(f"{value + 1}")) == 0.0


def test_regex_looks_where_it_is_told() -> None:
    assert regex.verify("see\nabc", task(pattern="^a.c$")) == 1.0
    assert regex.verify("see abc", task(pattern="a.c"), match="whole") == 0.0
    assert regex.verify("see\nAnswer: ABC", task(), pattern="a.c", match="whole", text="final", ignore_case=True) == 1.0
    assert regex.verify("xyz", task(pattern="x"), pattern="q") == 0.0, "the setting comes before the task's own"
    with pytest.raises(ValueError, match="no metadata 'pattern'"):
        regex.verify("x", task())


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ('{"name": "a"}', 1),
        ('Here:\n```json\n{"name": "a"}\n```\nand {"no": 1}', 1),
        ('Answer: {"name": "a"}', 1),
        ('I say {well} {"name": "a"} so', 1),
        ('first {"no": 1}, then {"name": "a"}', 0),
        ('{"name": 1}', 0),
        ('{"name": "a"', 0),
        ("name", 0),
        ("[" * 20_000, 0),
    ],
)
def test_json_schema(said: str, score: float) -> None:
    assert json_schema.verify(said, task(schema=SCHEMA)) == score
    assert json_schema.verify(said, task(), schema=SCHEMA) == score


def test_a_schema_fetches_nothing() -> None:
    with pytest.raises(Exception, match="Unresolvable"):
        json_schema.verify("{}", task(), schema={"$ref": "http://127.0.0.1:9/schema.json"})


@pytest.mark.parametrize(
    ("said", "reference", "score"),
    [
        ("Answer: 0.5", "1/2", 1),
        ("so it is \\boxed{\\frac{1}{2}}", "0.5", 1),
        ("Answer: \\{2,1\\}", "\\{1,2\\}", 1),
        ("Answer: x^2+2x+1", "(x+1)^2", 1),
        ("Answer: $\\sqrt{8}$", "2\\sqrt{2}", 1),
        ("Answer: 8", "7", 0),
        ("no idea", "7", 0),
    ],
)
def test_math(said: str, reference: str, score: float) -> None:
    pytest.importorskip("math_verify", reason="math-verify is an extra: pip install 'grpo-ray[math]'")
    assert math.verify(said, task(reference)) == score


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("numeric", {"absolute": -1.0}, "a tolerance is 0 or more"),
        ("numeric", {"percent": "per mille"}, "percent"),
        ("exact", {"cases": True}, "did you mean 'case'"),
        ("regex", {"pattern": "("}, "not a regular expression"),
        ("json_schema", {"schema": {"type": "objekt"}}, "no JSON schema"),
        ("python_tests", {"seconds": 0.0}, "at least 0.1"),
        ("python_tests", {"tests": ["assert ("]}, "not Python"),
        ("python_tests", {"entry_point": "a b"}, "no name"),
    ],
)
def test_wrong_settings_are_refused_with_a_reason(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings("verifiers", name, "verify", settings)


def test_the_bundled_verifiers_are_there() -> None:
    assert {"exact", "numeric", "regex", "json_schema", "math", "python_tests"} <= set(names("verifiers"))


# ── python_tests: what it reads; what it runs is in test_sandbox.py ───────────────────────────────────────────────


def test_the_code_is_the_last_block_that_defines_something() -> None:
    said = "First:\n```python\ndef f(): return 1\n```\nUse:\n```python\nf()\n```\n```text\ndef no\n```"
    assert python_tests.code_of(said) == "def f(): return 1\n"
    assert python_tests.code_of("cut off\n```py\ndef f():\n    return 1") == "def f():\n    return 1"
    assert python_tests.code_of("def f(): return 1") == "def f(): return 1"
    assert python_tests.code_of("I can't do that.") == ""


def test_one_text_is_cut_into_tests() -> None:
    text = "import math\nassert f(1) == 1\nx = 2\ndef test_two():\n    assert f(x) == 4\n"
    assert python_tests.split(text) == [
        "import math\nassert f(1) == 1",
        "import math\nx = 2\n\ndef test_two():\n    assert f(x) == 4",
    ]
    assert python_tests.split("def check(candidate):\n    assert candidate(1)\n") == [
        "def check(candidate):\n    assert candidate(1)\n"
    ]
    with pytest.raises(ValueError, match="are not Python"):
        python_tests.all_tests(task(tests="assert ("), None)


def test_the_share_of_passed_tests_is_said_without_the_tests() -> None:
    asked = task(tests=["assert secret() == 1"] * 4)
    assert python_tests.rationale(0.75, asked, {}) == "3 of 4 tests pass"
    assert python_tests.rationale(0.0, asked, {"all_or_nothing": True}) == "not all of the 4 tests pass"


def test_an_answer_without_code_is_wrong_and_nothing_is_run() -> None:
    assert python_tests.verify("I can't do that.", task(tests=["assert 1"])) == 0.0
    with pytest.raises(ValueError, match="no metadata 'tests'"):
        python_tests.verify("def f(): pass", task())


# ── the judge ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Checked(Canned):
    """Gives canned verdicts, and keeps how it was asked."""

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


def test_the_judge_hands_on_its_verifier_and_names_its_dimension() -> None:
    oracle = Checked(1.0, 0.0)
    settings = {"absolute": 0.1}
    judged = verifier.judge(
        group("Answer: 7", "Answer: 8"), oracle, verifier="numeric", settings=settings, name="n", dimension="near"
    )
    found = asyncio.run(judged)
    assert oracle.how == [("numeric", settings)]
    assert [(e.judge, e.dimension, e.score) for e in found] == [("n", "near", 1.0), ("n", "near", 0.0)]
    assert found[1].rationale == "answered '8', which does not match the reference"


def test_the_judge_counts_tests_and_keeps_them_to_itself() -> None:
    asked = Task("t", "?", verifier="python_tests", metadata={"tests": ["assert secret() == 1"] * 4})
    found = asyncio.run(verifier.judge(group("x", "y", task=asked), Checked(0.75, None)))
    assert [e.rationale for e in found] == [
        "3 of 4 tests pass",
        "the check gave no verdict: it failed or took too long",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verifier": "numerik"}, "did you mean 'numeric'"),
        ({"verifier": "numeric", "settings": {"absolut": 1.0}}, "did you mean 'absolute'"),
        ({"verifier": "numeric", "settings": {"absolute": -1.0}}, "a tolerance is 0 or more"),
        ({"verifier": "jsonl", "settings": {"case": True}}, "takes no settings"),
        ({"verifier": "no.such.module"}, "can't be imported"),
    ],
)
def test_the_judge_refuses_what_its_verifier_would(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings("judges", "verifier", "judge", settings)
    check_settings("judges", "verifier", "judge", {"verifier": "numeric", "settings": {"absolute": 1.0}})
    check_settings("judges", "verifier", "judge", {})
