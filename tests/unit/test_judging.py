"""The judges side by side, and judged themselves: audits, canaries, versions, and faults that stay where they belong."""

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import Canned, group

from grpo_ray.errors import ConfigError, OracleError
from grpo_ray.judging import EXAM, LocalJudges, checked, chosen, imported, known_right, version_of
from grpo_ray.loop import attempt
from grpo_ray.protocols import Crew, Oracle
from grpo_ray.recipe import JudgeSpec, Named, OracleSpec, Recipe, RewardSpec, TrustSpec
from grpo_ray.registry import find
from grpo_ray.storage.memory import MemoryStore
from grpo_ray.trust.alarms import CANARY, HELD
from grpo_ray.trust.canaries import CANARIES, RIGHT, fitting, planted
from grpo_ray.types import Evaluation, Group, Message, Policy, Population, Reply, TaskSet

ASKING, ORDERING = JudgeSpec(name="odd_judges.asking"), JudgeSpec(name="odd_judges.ordering")
GROUP = group("one", "two")


class Knowing(Canned):
    """An oracle that answers by who is asked how often: `says[(name, times)]`, a text or an error."""

    def __init__(self, says: Mapping[tuple[str, int], str | OracleError], name: str = "", times: int = 0) -> None:
        super().__init__(verdicts=[1.0, 0.0])
        self.says, self.name, self.times = says, name, times
        self.scopes: list[str] = []

    def at(self, name: str) -> "Knowing":
        if name not in {known for known, _ in self.says}:
            raise ConfigError(f"there is no {name!r} among oracles")
        return self._child(Knowing(self.says, name, self.times))

    def again(self, times: int) -> "Knowing":
        return self._child(Knowing(self.says, self.name, self.times + times))

    def within(self, scope: str) -> "Knowing":
        self.scopes.append(scope)
        return self

    def _child(self, child: "Knowing") -> "Knowing":
        child.scopes = self.scopes
        return child

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        said = self.says[self.name, self.times]
        if isinstance(said, OracleError):
            raise said
        return Reply(said, f"model {self.name or 'main'}")


def recipe(*judges: JudgeSpec, **trust: Any) -> Recipe:
    tasks = (Named(name="jsonl", settings={"path": "x"}),)
    further = {"strong": OracleSpec(model="strong"), "weak": OracleSpec(model="weak")}
    return Recipe(tasks=tasks, judges=judges, trust=TrustSpec(**trust), oracles=further)


def judged(
    plan: Recipe, oracle: Oracle, store: MemoryStore | None = None, step: int = 3, over: Group = GROUP
) -> tuple[Evaluation, ...]:
    return asyncio.run(LocalJudges(plan, oracle, store).evaluate(step, over))


def heard(said: Sequence[Evaluation], rollout: str = "r-0") -> list[tuple[str, float | None, str]]:
    return [(one.audit, one.score, one.model) for one in said if one.rollout_id == rollout]


def groups(count: int) -> list[Group]:
    return [replace(GROUP, id=f"g-{number}") for number in range(count)]


# ── audits ──


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_that_is_judged_again_is_chosen_by_id_and_the_same_every_time(share: float) -> None:
    found = [one.id for one in groups(2000) if chosen(share, "audit", one)]
    assert found == [one.id for one in groups(2000) if chosen(share, "audit", one)]
    assert abs(len(found) / 2000 - share) < 0.03
    other = {one.id for one in groups(2000) if chosen(share, "canary", one)}
    assert share in (0.0, 1.0) or other != set(found)


def test_a_repeat_uses_another_reply_and_the_second_oracle_is_asked_too() -> None:
    oracle = Knowing({("", 0): "1", ("", 1): "0.5", ("strong", 0): "0.25"})
    said = judged(recipe(ASKING, audit=1.0, second="strong"), oracle)
    assert heard(said) == [("", 1.0, "model main"), ("repeat", 0.5, "model main"), ("second", 0.25, "model strong")]
    assert {one.version for one in said} == {said[0].version} and said[0].version
    assert sorted(set(oracle.scopes)) == [
        f"3/g-1/0-{ASKING.name}", f"3/g-1/0-{ASKING.name}-repeat", f"3/g-1/0-{ASKING.name}-second",
    ]  # fmt: skip


def test_a_judge_that_knows_orders_is_asked_in_another_one() -> None:
    said = judged(recipe(ORDERING, audit=1.0), Knowing({("", 0): "1", ("", 1): "1"}))
    words = {one.audit: one.rationale for one in said}
    assert words == {"": "order 0", "repeat": "order 0", "permuted": "order 1"}


def test_a_judge_s_own_oracle_is_asked_again_and_not_the_main_one() -> None:
    oracle = Knowing({("", 0): "0", ("weak", 0): "1", ("weak", 1): "0.5"})
    said = judged(recipe(replace(ASKING, oracle="weak"), audit=1.0), oracle)
    assert heard(said) == [("", 1.0, "model weak"), ("repeat", 0.5, "model weak")]


def test_nobody_is_his_own_second() -> None:
    says: dict[tuple[str, int], str | OracleError] = {("strong", 0): "1", ("strong", 1): "0.5"}
    said = judged(recipe(replace(ASKING, oracle="strong"), audit=1.0, second="strong"), Knowing(says))
    assert heard(said) == [("", 1.0, "model strong"), ("repeat", 0.5, "model strong")]


def test_judges_that_ask_no_model_and_exams_are_not_audited() -> None:
    oracle = Knowing({("", 0): "1"})
    said = judged(recipe(JudgeSpec(name="verifier"), ASKING, audit=1.0, canaries=1.0), oracle, step=EXAM)
    assert {one.audit for one in said} == {""}
    said = judged(recipe(JudgeSpec(name="verifier"), audit=1.0, canaries=1.0), oracle, MemoryStore("run", "now"))
    assert [(one.dimension, one.audit) for one in said] == [("verified", "")] * 2


def test_what_counts_comes_first_and_in_the_recipe_s_order_of_judges() -> None:
    oracle = Knowing({("", 0): "1", ("", 1): "1"})
    said = judged(recipe(ORDERING, JudgeSpec(name="verifier"), ASKING, audit=1.0), oracle)
    assert [(one.judge, one.audit) for one in said if one.rollout_id == "r-0"] == [
        ("ordering", ""), ("verifier", ""), ("asking", ""),
        ("ordering", "repeat"), ("ordering", "permuted"), ("asking", "repeat"),
    ]  # fmt: skip


def test_an_audit_that_fails_is_missing_as_an_audit_and_no_mark_that_counts() -> None:
    oracle = Knowing({("", 0): "1", ("", 1): OracleError("gave up"), ("strong", 0): OracleError("gone")})
    said = judged(recipe(ASKING, audit=1.0, second="strong"), oracle)
    assert heard(said) == [("", 1.0, "model main"), ("repeat", None, ""), ("second", None, "")]
    assert all(one.version for one in said)
    assert [one.rationale for one in said if one.audit == "repeat"] == ["OracleError: gave up"] * 2


# ── faults ──


def test_a_judge_that_gives_up_is_missing_with_the_reason_and_is_not_audited() -> None:
    said = judged(recipe(ASKING, audit=1.0), Knowing({("", 0): OracleError("no reply within 600 s")}))
    assert [(one.rollout_id, one.dimension, one.score, one.audit) for one in said] == [
        ("r-0", "all", None, ""), ("r-1", "all", None, ""),
    ]  # fmt: skip
    assert said[0].rationale == "OracleError: no reply within 600 s" and said[0].version


def test_a_bug_in_a_judge_stops_the_run_and_says_where() -> None:
    with pytest.raises(TypeError, match="a bug") as bug:
        judged(recipe(JudgeSpec(name="odd_judges.wrong")), Canned())
    assert bug.value.__notes__ == ["in the judge 'odd_judges.wrong' (judges.0), over the group g-1"]


def test_an_oracle_that_is_not_there_names_the_judge() -> None:
    with pytest.raises(ConfigError, match=r"judges\.0 \(odd_judges\.asking\): there is no 'strong'"):
        judged(recipe(ASKING, audit=1.0, second="strong"), Knowing({("", 0): "1", ("", 1): "1"}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rollout": "r-9"}, "an evaluation of 'r-9', which is not of this group"),
        ({"score": "1.5"}, "a score of 1.5 on 'mood'"),
        ({"score": "nan"}, "a score of nan"),
    ],
)
def test_what_a_judge_may_not_say_is_missing(settings: dict[str, Any], words: str) -> None:
    said = judged(recipe(JudgeSpec(name="odd_judges.strange", settings=settings)), Canned())
    assert len(said) == 2 and all(one.score is None and words in one.rationale for one in said)


def test_scores_from_0_to_1_and_missing_ones_are_in_order() -> None:
    fine = [Evaluation("r-0", "j", "d", score, "") for score in (0.0, 1.0, None)]
    assert checked(fine, GROUP) == fine


# ── canaries ──


def test_a_canary_is_kept_as_an_event_and_never_as_an_evaluation() -> None:
    store = MemoryStore("run", "now")
    said = judged(recipe(ASKING, canaries=1.0), Knowing({("", 0): "0.75"}), store)
    assert heard(said) == [("", 0.75, "model main")] and len(said) == 2
    (event,) = store.happened.values()
    detail = event["detail"]
    assert (event["kind"], event["step"], detail["group"], detail["judge"]) == (CANARY, 3, "g-1", "asking")
    assert detail["passed"] is True and detail["scores"] == {"mood": 0.75} and detail["version"] == said[0].version
    assert detail["canary"] in {one.kind for one in CANARIES}


def test_an_answer_that_a_verifier_found_right_may_be_a_canary_and_one_that_a_model_praised_not() -> None:
    whole = group("first", "second")
    verified = [Evaluation("r-1", "verifier", "verified", 1.0, ""), Evaluation("r-0", "verifier", "verified", 0.0, "")]
    assert known_right(whole, verified) == "second"
    assert known_right(whole, [Evaluation("r-0", "rubric", "verified", 1.0, "", "a model")]) is None
    assert [one.kind for one in fitting(whole, "second")][-1] == RIGHT
    assert RIGHT not in {one.kind for one in fitting(whole, None)}
    assert planted(whole, fitting(whole, "second")[-1]).rollouts[0].text == "second"


def test_an_answer_that_may_be_right_is_no_bad_canary() -> None:
    def kinds(answer: str | None, *texts: str, question: str = "?") -> set[str]:
        one = group(*texts)
        task = replace(one.prompt.task, answer=answer, question=question)
        return {canary.kind for canary in fitting(replace(one, prompt=replace(one.prompt, task=task)), None)}

    every, rest = {one.kind for one in CANARIES}, " and so on" * 9
    assert kinds("42", "We add them." + rest + "\nAnswer: 42") == every
    assert kinds("42", "It is 42." + rest) == every - {"truncated"} == kinds(None, "Answer: 42" + rest, "Answer: 42")
    assert kinds("4", "It is 42." + rest) == every
    assert kinds("paris", "Rome") == every - {"another question"}
    assert kinds(None, "Rome", question="What is the capital of France?") == every - {"another question"}


def test_a_judge_that_is_not_fooled_leaves_an_event_too_and_the_same_step_leaves_it_once() -> None:
    store = MemoryStore("run", "now")
    for _ in range(2):
        judged(recipe(ASKING, canaries=1.0), Knowing({("", 0): "0.5"}), store)
    assert [one["detail"]["passed"] for one in store.happened.values()] == [False]


def test_a_canary_whose_judge_gives_up_leaves_nothing() -> None:
    class Tiring(Knowing):
        """It answers for real groups, and gives up over a canary."""

        def at(self, name: str) -> "Tiring":
            return self

        def within(self, scope: str) -> "Tiring":
            return Tiring(self.says, "" if scope.startswith("3/g-1/") else "tired")

    store, oracle = MemoryStore("run", "now"), Tiring({("", 0): "1", ("tired", 0): OracleError("gave up")})
    assert heard(judged(recipe(ASKING, canaries=1.0), oracle, store)) == [("", 1.0, "model main")]
    assert not store.happened


def test_canaries_that_nobody_could_keep_are_not_paid_for() -> None:
    oracle = Knowing({("", 0): "1"})
    judged(recipe(ASKING, canaries=1.0), oracle)
    assert oracle.scopes == [f"3/g-1/0-{ASKING.name}"]


def test_canaries_are_a_share_of_the_rollouts_of_every_kind() -> None:
    store, oracle = MemoryStore("run", "now"), Knowing({("", 0): "0"})
    judges = LocalJudges(recipe(ASKING, canaries=0.05), oracle, store)

    async def main() -> None:
        for one in groups(1500):
            await judges.evaluate(0, one)

    asyncio.run(main())
    kinds = [one["detail"]["canary"] for one in store.happened.values()]
    assert abs(len(kinds) / 3000 - 0.05) < 0.015 and set(kinds) == {one.kind for one in CANARIES}


# ── dimensions that are held ──


def test_a_held_dimension_is_kept_but_does_not_count() -> None:
    rewards = (RewardSpec(name="judge_score", settings={"judge": "asking"}),)
    plan = replace(recipe(ASKING, audit=1.0), rewards=rewards)

    def scored(*held: tuple[str, str]) -> Any:
        store, oracle = MemoryStore("run", "now"), Knowing({("", 0): "1", ("", 1): "0"})
        crew = Crew(None, LocalJudges(plan, oracle, store), None, store, oracle, TaskSet((), (), ()))  # pyright: ignore
        return asyncio.run(attempt(GROUP, 0, Policy(Population(()), None, held), plan, crew)).rollouts[0]  # pyright: ignore

    free, held = scored(), scored(("asking", "mood"))
    assert [one.audit for one in free.evaluations] == ["", "repeat"] and free.reward.value == 1.0
    assert [one.audit for one in held.evaluations] == [HELD, "repeat"] and held.reward.value is None


# ── versions ──


def version(spec: JudgeSpec = ASKING, plan: Recipe | None = None) -> str:
    return version_of(find("judges", spec.name, "judge"), spec, plan or recipe(spec))


def test_a_version_changes_with_settings_models_and_how_they_are_asked_but_not_with_the_url() -> None:
    plan = recipe(ASKING)
    elsewhere = replace(plan, oracle=replace(plan.oracle, base_url="http://10.0.0.1:1/v1", concurrency=99, max_usd=1.0))
    assert version(plan=plan) == version(plan=elsewhere)
    changed = [
        version(replace(ASKING, settings={"words": "x"})),
        version(replace(ASKING, oracle="strong")),
        version(ORDERING),
        *(
            version(plan=replace(plan, oracle=replace(plan.oracle, **how)))
            for how in ({"model": "n"}, {"temperature": 0.1}, {"reasoning_effort": "low"}, {"max_tokens": 1})
        ),
    ]
    assert len({version(), *changed}) == 1 + len(changed)


def test_a_version_changes_with_the_file_that_a_setting_names(tmp_path: Path) -> None:
    file = tmp_path / "rubric.yaml"
    spec = replace(ASKING, settings={"file": str(file)})
    found = []
    for words in ("be kind", "be strict", "be kind"):
        file.write_text(words)
        found.append(version(spec))
    assert found[0] == found[2] != found[1]


def test_a_version_changes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "told_judges").mkdir()
    for name, default in (("kind", 1), ("same", 1), ("strict", 0)):
        code = f"async def judge(group, oracle, *, x: int = {default}):\n    return []\n"
        (tmp_path / "told_judges" / f"{name}.py").write_text(code)
    judges = [find("judges", f"told_judges.{name}", "judge") for name in ("kind", "same", "strict")]
    kind, same, strict = (version_of(judge, ASKING, recipe()) for judge in judges)
    assert kind == same != strict


def test_a_version_changes_with_the_modules_that_requests_are_built_from() -> None:
    grader = inspect.getmodule(find("judges", "grader", "judge"))
    assert grader is not None
    names = [one.__name__ for one in imported(grader)]
    assert names == sorted(names) and {"grpo_ray.graders.specs", "grpo_ray.fenced"} <= set(names)
    assert not {"grpo_ray.types", "grpo_ray.protocols", "grpo_ray.judges.grader"} & set(names)


def test_a_version_changes_with_code_that_a_judge_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for at, words in enumerate(("be kind", "be strict", "be kind")):
        monkeypatch.setitem(
            sys.modules, "grpo_ray.made_up", made_up(tmp_path / f"{at}.py", f"def ask():\n    '{words}'")
        )
        code = "from grpo_ray.made_up import ask\nasync def judge(group, oracle):\n    return [ask()]\n"
        file = tmp_path / f"judges_{at}.py"
        module = made_up(file, code, f"judges_{at}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        found.append(version_of(module.judge, ASKING, recipe()))
    assert found[0] == found[2] != found[1]


def made_up(file: Path, code: str, name: str = "grpo_ray.made_up") -> Any:
    file.write_text(code)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
