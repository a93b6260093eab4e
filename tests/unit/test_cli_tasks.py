"""Surveys of tasks with stand-ins, what they would take, how they look, and the commands."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from serving import Canned
from small_run import RUN, small_archive
from typer.testing import CliRunner, Result

from grpo_ray import survey, task_tables
from grpo_ray.analysis import Dimension, analyse
from grpo_ray.backends import make_generator
from grpo_ray.cli import app
from grpo_ray.crew import Contents, Desk, LocalGenerators
from grpo_ray.errors import ConfigError, MissingError, UnreachableError
from grpo_ray.launch import Inputs
from grpo_ray.library import load_library
from grpo_ray.population import begin
from grpo_ray.protocols import Crew
from grpo_ray.recipe import Config, JudgeSpec, Named, OracleSpec, PlanSpec, Recipe, RunState, SamplingSpec
from grpo_ray.storage.memory import make_storage
from grpo_ray.survey import Asked
from grpo_ray.types import Choice, Evaluation, Group, Parameter, Policy, Task, TaskSet, Template

STYLE = Parameter("style", tuple(Choice(name, name) for name in ("a", "b", "c")))
SUMS = tuple(
    Task(f"sum-{i:02}", f"What is {i} + {i}?", str(2 * i), "sum", "jsonl", {"level": i % 2}) for i in range(20)
)
WORDS = tuple(Task(f"word-{i}", f"Spell {i} backward", "abc", "word", "jsonl") for i in range(6))
TASKS = TaskSet((*SUMS[:14], *WORDS), SUMS[14:16], SUMS[16:])
TEMPLATES = (
    Template("plain", "{{ style }} {{ question }}", "any", parameters=(STYLE,), settings=(("style", "a"),)),
    Template("other", "Other: {{ style }} {{ question }}", "sum", parameters=(STYLE,), settings=(("style", "b"),)),
    Template("bare", "{{ question }}", "sum", "recall"),
)
RECIPE = Recipe(
    name="little",
    model="none",
    tasks=(Named(name="jsonl", settings={"path": "sums.jsonl"}),),
    sampling=SamplingSpec(group_size=8, max_tokens=40, slots=16),
    plan=PlanSpec(tasks=6, templates=2, wave=4),
    generator=Named(name="canned", settings={"rate": 0.5, "spread": 0.4}),
    judges=(JudgeSpec(name="verifier"), JudgeSpec(name="rubric", settings={"answers_per_call": 8})),
    oracle=OracleSpec(base_url="https://judge.example/v1", model="judge", usd_per_million=(1.0, 4.0), max_usd=0.001),
)
CONFIG = Config(recipe=RECIPE)
INPUTS = Inputs(TEMPLATES, TASKS)
ASKED = Asked(rollouts=4, tasks=5, settings=2)


class Verifiers:
    """Right answers are right; with `silent`, nobody says anything."""

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self.seen: list[Group] = []

    async def evaluate(self, step: int, group: Group) -> tuple[Evaluation, ...]:
        self.seen.append(group)
        right = f"Answer: {group.prompt.task.answer}"
        marks = [None if self.silent else float(one.text == right) for one in group.rollouts]
        pairs = zip(group.rollouts, marks, strict=True)
        return tuple(Evaluation(one.id, "verifier", "verified", mark, "timed out") for one, mark in pairs)


@asynccontextmanager
async def crew_of(recipe: Recipe, judges: Verifiers) -> AsyncIterator[Crew]:
    archive, population = await make_storage(), begin(TEMPLATES, recipe)
    await archive.create_run(RunState("run", 0, recipe, population, None, (Policy(population, None),)))
    store = await archive.open("run")
    desk = Desk(lambda: make_generator(recipe))
    try:
        yield Crew(LocalGenerators([desk], Contents(store)), judges, None, store, Canned(), TASKS)
    finally:
        await desk.close()


def surveyed(
    recipe: Recipe = RECIPE, asked: Asked = ASKED, judges: Verifiers | None = None, totals: list[int] | None = None
) -> survey.Done:
    async def found() -> survey.Done:
        sampling = replace(recipe.sampling, group_size=asked.rollouts)
        small = replace(recipe, sampling=sampling)
        async with crew_of(small, judges or Verifiers()) as crew:
            landed = totals.append if totals is not None else lambda total: None
            return await survey.surveyed_by(crew, small, TEMPLATES, asked, landed)

    return asyncio.run(found())


def described(done: survey.Done) -> dict[str, Any]:
    return survey.described(done, RECIPE, INPUTS, RECIPE.sampling.group_size) | {"usd": 0.25, "seconds": 3.0}


def lost(share: float) -> Recipe:
    return replace(RECIPE, generator=Named(name="canned", settings={"lost": share}))


def shown(found: Mapping[str, Any], width: int = 160) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as caught:
        console.print(task_tables.look(found))
    return caught.get()


# ── doing it ──


def test_every_template_meets_the_same_train_tasks_and_the_best_meet_them_with_other_settings() -> None:
    judges, totals = Verifiers(), []
    done = surveyed(judges=judges, totals=totals)
    met = {(g.group.prompt.task.task_type, g.group.prompt.template_id): set[str]() for g in done.as_they_are}
    for one in done.as_they_are:
        met[one.group.prompt.task.task_type, one.group.prompt.template_id].add(one.group.prompt.task.id)
    assert set(met) == {("sum", "plain"), ("sum", "other"), ("sum", "bare"), ("word", "plain")}
    assert all(len(tasks) == 5 for tasks in met.values())
    assert met["sum", "plain"] == met["sum", "other"] == met["sum", "bare"]
    train = {task.id for task in TASKS.train}
    assert {group.prompt.task.id for group in judges.seen} <= train
    assert {len(group.rollouts) for group in judges.seen} == {4}
    tried = {(g.group.prompt.task.task_type, g.group.prompt.template_id.split("~")[0]) for g in done.others}
    assert tried == {("sum", "plain"), ("sum", "other"), ("word", "plain")}
    assert len(done.others) == 3 * 2 * 5 and len(totals) == len(judges.seen) == 20 + 30 and totals[-1] == 50


def test_the_same_seed_samples_the_same_and_another_one_other_tasks() -> None:
    assert surveyed() == surveyed()
    other = surveyed(replace(RECIPE, seed=1))
    assert {g.group.prompt.task.id for g in other.as_they_are} != {
        g.group.prompt.task.id for g in surveyed().as_they_are
    }


def test_the_tasks_chosen_hold_the_levels_of_difficulty_in_proportion() -> None:
    for seed in range(5):
        found = survey.chosen(TASKS.train, 6, seed)
        assert sorted(found) == ["sum", "word"]
        assert sorted(task.metadata["level"] for task in found["sum"]) == [0, 0, 0, 1, 1, 1]
    assert len(survey.chosen(TASKS.train, 99, 0)["word"]) == len(WORDS)
    with pytest.raises(ConfigError, match=r"train split is empty; raise splits\.train"):
        survey.chosen((), 3, 0)


def test_no_other_settings_are_tried_unless_asked_for() -> None:
    done = surveyed(asked=replace(ASKED, settings=0))
    assert done.others == () and {one.template for one in done.starts[0].candidates} == {"plain", "other", "bare"}


def test_what_is_found_is_plain_and_complete() -> None:
    found = described(surveyed())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [one["task_type"] for one in found["types"]] == ["sum", "word"]
    assert found["types"][0]["difficulty"] == "level"
    assert found["rollouts"] == 50 * 4 and found["lost"] == {} and found["warnings"] == []
    assert set(found["curriculum"]["weights"]) == {task.id for task in TASKS.train}
    assert found["curriculum"]["group_size"] == 8
    best = found["start"][0]["candidates"][0]
    rates = [one["cell"]["pass_rate"]["value"] for one in found["start"][0]["candidates"]]
    assert best["close"] and rates == sorted(rates, reverse=True) and len(rates) == 3 + 4


def test_lost_groups_are_told_and_nothing_but_lost_ones_is_a_fault() -> None:
    done = surveyed(lost(0.4))
    found = described(done)
    assert sum(found["lost"].values()) == len(done.lost) > 0
    assert "were lost" in found["warnings"][0]
    with pytest.raises(UnreachableError, match=r"no group could be sampled: lost on purpose"):
        surveyed(lost(1.0))


def test_where_nobody_marks_anything_the_reason_is_told() -> None:
    with pytest.raises(UnreachableError, match="no rollout could be marked: verifier: timed out"):
        surveyed(judges=Verifiers(silent=True))


def test_judges_that_were_silent_are_told_once_a_judge_and_reason() -> None:
    one = Dimension("rubric", "clarity", None, 0, 8, True, ("no verdict: timeout",))
    silent = (one, replace(one, dimension="depth"), replace(one, judge="other", scored=6, missing=2, stand_in=False))
    (report, *_) = analyse(surveyed().as_they_are, TEMPLATES, TASKS.train)
    assert survey.warnings([replace(report, dimensions=silent)], 3) == [
        "3 groups were lost and are left out",
        "sum: rubric gave no mark to 8 of 8 rollouts (clarity, depth): no verdict: timeout",
        "sum: other gave no mark to 2 of 8 rollouts (clarity)",
        "sum: the marks of rubric come from a stand-in, not from a model",
    ]


# ── what it will take ──


def test_a_dry_run_counts_what_a_survey_does() -> None:
    found = survey.planned(CONFIG, INPUTS, ASKED)
    assert found["types"]["sum"] == {"tasks": 5, "templates": 3, "groups": 15, "groups_with_other_settings": 20}
    assert found["types"]["word"] == {"tasks": 5, "templates": 1, "groups": 5, "groups_with_other_settings": 10}
    assert (found["groups"], found["rollouts"], found["sampled_tokens"]) == (50, 200, 200 * 40)
    assert found["judge_calls"] == 50  # four answers in one call of the rubric; the verifier asks nobody
    assert found["oracle_tokens"]["out"] == 50 * 4 * 250
    assert found["estimated_usd"] == pytest.approx(
        (found["oracle_tokens"]["in"] + 4 * found["oracle_tokens"]["out"]) / 1e6, abs=1e-4
    )
    assert found["warnings"] == ["that may be more than oracle.max_usd (0.001 USD)"]
    console = Console(width=120, no_color=True)
    with console.capture() as caught:
        console.print(task_tables.plan(found))
    assert "50 calls to judge at https://judge.example/v1" in caught.get() and "max_usd" in caught.get()
    assert survey.planned(CONFIG, INPUTS, replace(ASKED, settings=0))["groups"] == 20


# ── how it looks ──


def test_the_tables_tell_what_was_found() -> None:
    found = described(surveyed())
    drawn = shown(found)
    for words in (
        *("little: 200 rollouts by none (3 s, 0.2500 USD)", "sum: pass rate (verifier)", "recall", "single-step"),
        *("how answers fail", "wrong number", "what judges say", "templates, best first", "its own", "style="),
        *("curriculum, for groups of 8", "learnable", "not measured: 9 of sum"),
    ):
        assert words in drawn, words
    best = found["start"][0]["candidates"][0]
    assert f"{best['cell']['pass_rate']['value']:.2f} (" in drawn
    narrow = shown(found, 80)
    assert "single-step" in narrow and max(map(len, narrow.splitlines())) <= 80


def test_what_a_model_wrote_is_shown_as_it_is() -> None:
    hostile = "[bold]no[/bold] \x1b[31m<script>alert(1)</script>"
    found = described(surveyed())
    found["types"][0]["failures"][0]["example"] = hostile
    found["types"][0]["dimensions"][0]["examples"] = [hostile]
    drawn, page = shown(found), task_tables.page(found)
    assert "[bold]no[/bold]" in drawn and "\x1b[31m" not in drawn
    assert "<script>" not in page and "&lt;script&gt;" in page and "[bold]" in page and "\x1b" not in page


# ── of a run ──


def test_a_run_s_own_rollouts_are_told_of_without_sampling() -> None:
    async def main() -> dict[str, Any]:
        return await survey.of_run(await small_archive(), "small")

    found = asyncio.run(main())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["run_id"], found["steps"], found["groups"], found["rollouts"]) == (RUN, 2, 2, 4)
    (kind,) = found["types"]
    assert kind["overall"]["pass_rate"]["value"] == 0.5 and kind["overall"]["teaching"] == 1.0
    assert [one["task"] for one in found["curriculum"]["learnable"]] == ["t-1"]
    assert any("stand-in" in line for line in found["warnings"])
    drawn = shown(found)
    assert f"run {RUN}: 4 rollouts of 2 steps" in drawn and "begin with" not in drawn and "\x1b[31m" not in drawn


def test_a_run_that_took_no_step_has_nothing_to_tell() -> None:
    async def main(steps: int, run: str) -> None:
        await survey.of_run(await small_archive(steps), run)

    with pytest.raises(ConfigError, match="let it take a step"):
        asyncio.run(main(0, RUN))
    with pytest.raises(MissingError, match="did you mean"):
        asyncio.run(main(1, "smell-20261122-101500-ab12"))


def test_a_brief_report_says_how_many_tasks_it_leaves_out() -> None:
    found = described(surveyed())
    told = survey.brief(found, 1)["curriculum"]
    assert sum(told["counts"].values()) == 10 and all(len(told[bucket]) <= 1 for bucket in survey.BUCKETS)
    assert told["learnable"] == found["curriculum"]["learnable"][:1] and "weights" not in told
    assert told["unmeasured"] == found["curriculum"]["unmeasured"]


# ── the commands ──


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def config(folder: Path, **changes: Any) -> Path:
    """A config whose parts are all stand-ins, over 40 sums of the file beside it."""
    sums = [{"question": f"What is {n} + {n + 1}?", "answer": str(2 * n + 1)} for n in range(40)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    values: dict[str, Any] = {
        "name": "little",
        "tasks": [{"name": "jsonl", "settings": {"path": "sums.jsonl"}}],
        "splits": {"validation": 6, "heldout": 10},
        "generator": {"name": "canned", "settings": {"rate": 0.5}},
        "placement": {"ray": "off", "storage": "memory", "home": str(folder / "home")},
    }
    path = folder / "little.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def library(folder: Path, *kinds: str) -> Path:
    choices = {"choices": {"plain": "Reckon.", "terse": "Result?"}, "default": "plain"}
    made = [
        {
            "id": f"t-{kind}",
            "task_type": kind,
            "text": "{{ clarity }} {{ question }}",
            "parameters": {"clarity": choices},
        }
        for kind in kinds
    ]
    path = folder / "prompts.json"
    path.write_text(json.dumps({"version": 1, "templates": made}))
    return path


def test_help_names_the_commands_about_tasks() -> None:
    assert "tasks" in call("--help").stdout
    found = call("tasks", "--help")
    assert found.exit_code == 0 and "analyse" in found.stdout and "report" in found.stdout
    options = call("tasks", "analyse", "--help").stdout
    assert all(name in options for name in ("--rollouts", "--tasks", "--settings", "--dry-run", "--write", "--out"))


@pytest.mark.parametrize(
    "words",
    [["analyze"], ["analyse"], ["analyse", "-c", "x", "--rollouts", "0"], ["analyse", "-c", "x", "--tasks", "no"]],
)
def test_wrong_usage_of_them_ends_with_2(words: list[str]) -> None:
    found = call("tasks", *words)
    assert found.exit_code == 2 and "Traceback" not in found.output


def test_a_config_that_is_not_there_and_a_type_without_a_template_are_named(tmp_path: Path) -> None:
    found = call("tasks", "analyse", "-c", tmp_path / "no.yaml")
    assert found.exit_code == 2 and "no.yaml: there is no such file" in found.stderr
    prompts = library(tmp_path, "words")
    found = call("tasks", "analyse", "-c", config(tmp_path, prompts=str(prompts)))
    assert found.exit_code == 2 and "no template fits tasks of type 'any'" in found.stderr


def test_an_endpoint_that_is_down_is_found_before_anything_is_sampled(tmp_path: Path) -> None:
    path = config(tmp_path, oracle={"base_url": "http://127.0.0.1:9/v1", "model": "judge"})
    found = call("tasks", "analyse", "-c", path)
    assert found.exit_code == 1 and "127.0.0.1:9" in found.stderr and "oracle.base_url" in found.stderr


def test_where_files_can_t_be_written_is_found_first_too(tmp_path: Path) -> None:
    path = config(tmp_path)
    found = call("tasks", "analyse", "-c", path, "--write", path)
    assert found.exit_code == 2 and "is there already; choose another file with --write" in found.stderr
    found = call("tasks", "analyse", "-c", path, "--out", tmp_path / "no" / "page.html")
    assert found.exit_code == 2 and "there is no folder" in found.stderr and "--out" in found.stderr


def test_a_dry_run_samples_nothing(tmp_path: Path) -> None:
    path = config(tmp_path, prompts=str(library(tmp_path, "any")))
    found = call("tasks", "analyse", "-c", path, "--dry-run", "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["rollouts"] == 6 * (1 + 1) * 4
    assert "nothing is sampled yet" in call("tasks", "analyse", "-c", path, "--dry-run").stdout


@pytest.mark.process
def test_tasks_are_analysed_and_what_is_proposed_is_written(tmp_path: Path) -> None:
    path = config(tmp_path, prompts=str(library(tmp_path, "any")))
    new, page = tmp_path / "start.json", tmp_path / "page.html"
    found = call("tasks", "analyse", "-c", path, "--tasks", 3, "--write", new, "--out", page, "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["rollouts"] == 3 * 2 * 4 and told["asked"] == {"rollouts": 4, "tasks": 3, "settings": 3}
    best = told["start"][0]["candidates"][0]
    (written,) = load_library(new)
    assert written.id == "t-any" and [list(pair) for pair in written.settings] == best["settings"]
    assert "curriculum" in page.read_text("utf-8")
    assert f"--set prompts={new}" in found.stderr
    assert call("run", "-c", path, "--set", f"prompts={new}", "--dry-run").exit_code == 0


def test_a_report_needs_a_run(tmp_path: Path) -> None:
    found = call("tasks", "report", "--home", tmp_path / "home")
    assert found.exit_code == 2 and "there is no run in" in found.stderr
