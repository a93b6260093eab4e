"""The judge that runs OpenAI's graders, with a canned oracle; and python graders in the sandbox."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from serving import Canned, group

from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.fenced import fenced, unfenced
from grpo_ray.judges import grader
from grpo_ray.registry import check_settings
from grpo_ray.types import Evaluation, Task
from grpo_ray.verifiers import python_grader

CHECK = {
    **{"type": "string_check", "name": "same", "operation": "eq"},
    **{"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"},
}
ASKS = [{"role": "system", "content": "Be strict."}, {"role": "user", "content": "A: {{ sample.output_text }}"}]
SCORE = {"type": "score_model", "name": "depth", "model": "x", "input": ASKS, "range": [0, 10]}
LABEL = {
    **{"type": "label_model", "name": "tone", "model": "x", "input": ASKS},
    **{"labels": ["kind", "rude"], "passing_labels": ["kind"]},
}
SCRIPT = "def grade(sample, item):\n    return 1.0 if item['answer'] in sample['output_text'] else 0.25\n"
PYTHON = {"type": "python", "name": "script", "source": SCRIPT}
TASK = Task("t-1", "2 + 2?", "4", metadata={"tags": ["easy"]})


class Seeing(Canned):
    """A canned oracle that also embeds, and remembers how it was asked to check."""

    settings: Mapping[str, Any] | None = None
    verifier: str | None = None
    nths: tuple[int | None, ...] = ()

    async def complete(self, messages: Any, *, shape: type[Any] | None = None, nth: int | None = None) -> Any:
        self.nths += (nth,)
        return await super().complete(messages, shape=shape, nth=nth)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0, float(len(text))] for text in texts]

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        self.verifier, self.settings = verifier, settings
        return await super().check(task, answers, verifier=verifier, settings=settings)


def judged(oracle: Canned, definition: dict[str, Any], *texts: str, **settings: Any) -> list[Evaluation]:
    return asyncio.run(grader.judge(group(*texts, task=TASK), oracle, grader=definition, **settings))


def test_a_string_check_asks_nobody_and_never_shows_the_reference() -> None:
    oracle = Seeing()
    found = judged(oracle, CHECK, "4", "5", "4")
    assert [e.score for e in found] == [1.0, 0.0, 1.0] and not oracle.asked
    assert {(e.judge, e.dimension) for e in found} == {("grader", "same")}
    assert [e.rollout_id for e in found] == ["r-0", "r-1", "r-2"] and "4" not in found[1].rationale
    assert judged(oracle, CHECK, "4", name="spec", dimension="exact")[0].dimension == "exact"
    assert judged(oracle, {**CHECK, "name": ""}, "4")[0].dimension == "string_check"


def test_an_answer_that_names_the_reference_s_placeholder_is_not_filled_in() -> None:
    assert judged(Seeing(), CHECK, "{{ item.answer }}")[0].score == 0.0


def test_what_an_item_lacks_is_missing_with_the_reason() -> None:
    (found,) = judged(Seeing(), {**CHECK, "reference": "{{ item.solution }}"}, "4")
    assert found.score is None and found.rationale == "string_check can't be filled in: there is no item.solution here"


def test_text_similarity_by_words_and_by_embeddings() -> None:
    alike = {**CHECK, "type": "text_similarity", "evaluation_metric": "fuzzy_match"}
    del alike["operation"]
    assert [e.score for e in judged(Seeing(), alike, "4", "44")] == [1.0, pytest.approx(2 / 3)]
    near = {**alike, "evaluation_metric": "cosine"}
    assert judged(Seeing(), near, "4")[0].score == pytest.approx(1.0)
    (missing,) = judged(Canned(), near, "4")
    assert missing.score is None and missing.rationale == "no verdict: nothing canned"


def test_a_score_model_is_scaled_by_its_range_and_equal_answers_are_judged_once() -> None:
    oracle = Seeing({"rationale": "thin", "score": 5}, {"rationale": "rich", "score": 10})
    found = judged(oracle, SCORE, "a", "b", "a")
    assert [e.score for e in found] == [0.5, 1.0, 0.5] and len(oracle.asked) == 2 and oracle.nths == (0, 0)
    assert {(e.dimension, e.model) for e in found} == {("depth", "canned-judge")} and found[0].rationale == "thin"
    assert unfenced(oracle.asked[0][-1].content) == "a" and oracle.asked[0][-1].content == f"A: {fenced('a')}"


def test_a_score_off_the_range_is_missing_not_clipped() -> None:
    (found,) = judged(Seeing({"rationale": "wow", "score": 11}), SCORE, "a")
    assert found.score is None and found.rationale == "the value 11 is outside the grader's range; it said: wow"
    assert found.model == "canned-judge"


def test_a_threshold_is_told_and_changes_no_score() -> None:
    (found,) = judged(Seeing({"rationale": "so", "score": 4}), {**SCORE, "pass_threshold": 5}, "a")
    assert found.score == 0.4 and found.rationale == "does not pass (5 needed): so"


def test_a_label_model_passes_or_not() -> None:
    oracle = Seeing({"rationale": "warm", "choice": "kind"}, {"rationale": "cold", "choice": "rude"}, stand_in=True)
    found = judged(oracle, LABEL, "a", "b")
    assert [e.score for e in found] == [1.0, 0.0] and found[1].rationale == "rude: cold"
    assert all(e.stand_in for e in found)


def test_an_endpoint_that_gives_up_leaves_its_answer_missing_and_no_other() -> None:
    found = judged(Seeing(OracleError("can't reach it"), {"rationale": "ok", "score": 10}), SCORE, "a", "b")
    assert [e.score for e in found] == [None, 1.0] and found[0].rationale == "no verdict: can't reach it"


def test_python_is_run_by_the_checker_only() -> None:
    oracle = Seeing(verdicts=[0.25])
    (found,) = judged(oracle, PYTHON, "5")
    assert found.score == 0.25 and found.rationale == "the script gave 0.25"
    assert (oracle.verifier, oracle.settings, oracle.checked) == ("python_grader", {"source": SCRIPT}, [["5"]])
    (missing,) = judged(Seeing(verdicts=[None]), PYTHON, "5")
    assert missing.score is None and "failed or took too long" in missing.rationale


MULTI = {
    **{"type": "multi", "name": "both", "calculate_output": "0.5 * same + 0.05 * depth"},
    "graders": {"same": CHECK, "depth": SCORE, "unused": PYTHON},
}


def test_a_formula_takes_the_models_own_numbers_and_runs_what_it_names() -> None:
    oracle = Seeing({"rationale": "thin", "score": 5})
    (found,) = judged(oracle, MULTI, "4")
    assert found.score == pytest.approx(0.75) and found.dimension == "both" and not oracle.checked
    assert found.rationale == "same: eq holds; depth: thin" and found.model == "canned-judge"


def test_a_missing_part_or_an_impossible_formula_is_missing() -> None:
    (part,) = judged(Seeing(OracleError("away")), MULTI, "4")
    assert part.score is None and "depth: no verdict: away" in part.rationale
    impossible = {**MULTI, "calculate_output": "1 / (same - 1)", "graders": {"same": CHECK}}
    (found,) = judged(Seeing(), impossible, "4")
    assert found.score is None and "has no value here" in found.rationale
    (outside,) = judged(Seeing(), {**impossible, "calculate_output": "same + 1"}, "4")
    assert outside.score is None and "outside" in outside.rationale


def test_settings_are_checked_before_a_run(tmp_path: Path) -> None:
    file = tmp_path / "grader.json"
    file.write_text(json.dumps(CHECK))
    check_settings("judges", "grader", "judge", {"file": str(file)})
    check_settings("judges", "grader", "judge", {"grader": MULTI, "name": "spec"})
    for wrong, said in (
        ({}, "one of two settings"),
        ({"grader": CHECK, "file": str(file)}, "one of two settings"),
        ({"grader": {**CHECK, "operation": "is"}}, "grader.operation: expected 'eq'"),
        ({"file": str(tmp_path / "none")}, "can't read"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_settings("judges", "grader", "judge", wrong)


def test_a_file_s_grader_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "grader.yaml"
    file.write_text("{type: string_check, name: f, input: '{{ sample.output_text }}', reference: '4', operation: like}")
    found = asyncio.run(grader.judge(group("44", task=TASK), Canned(), file=str(file)))
    assert [(e.score, e.dimension) for e in found] == [(1.0, "f")]


# ── the script itself, in the sandbox ──


@pytest.mark.process
def test_a_script_sees_the_sample_and_the_item() -> None:
    source = (
        "import json\n"
        "def grade(sample, item):\n"
        "    print('noise')\n"
        "    right = sample['output_json'] == {'a': 1} and item['tags'] == ['easy'] and item['question'] == '2 + 2?'\n"
        "    return 0.5 if right else 0\n"
    )
    assert python_grader.verify('{"a": 1}', TASK, source=source) == 0.5
    assert python_grader.verify("4", TASK, source=SCRIPT) == 1.0


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", "ZeroDivisionError"),
        ("return 'x'", "ValueError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import socket; socket.create_connection(('1.1.1.1', 53), 1)", "OSError"),
        ("return open('/etc/passwd').read()", "Error"),
    ],
)
def test_a_script_that_fails_says_how(body: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        python_grader.verify("4", TASK, source=f"def grade(sample, item):\n    {body}\n")


@pytest.mark.process
def test_a_script_that_ends_itself_gives_no_number() -> None:
    with pytest.raises(RuntimeError, match="ended before it was done"):
        python_grader.verify("4", TASK, source="import os\ndef grade(s, i):\n    os._exit(0)\n")
    with pytest.raises(RuntimeError, match="ended before it was done"):
        python_grader.verify("4", TASK, source="def grade(s, i):\n    while True: pass\n", seconds=0.5)
