import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from grpo_ray.bounds import BOUNDS
from grpo_ray.errors import ConfigError
from grpo_ray.recipe import Config, Placement, Recipe
from grpo_ray.settings import load_config, masked

CANNED = ("generator.name=canned", "trainer.name=canned", "evolution.mutations=[{name: set_parameter}]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.jsonl").write_text('{"question": "1+1", "answer": "2"}\n', "utf-8")
    return tmp_path


def text(**changes: Any) -> str:
    """A small config that needs no model, with changes."""
    base = {
        "tasks": [{"name": "jsonl", "settings": {"path": "tasks.jsonl"}}],
        "generator": {"name": "canned"},
        "trainer": {"name": "canned"},
        "evolution": {"mutations": [{"name": "set_parameter"}]},
    }
    return yaml.safe_dump(base | changes)


def load(folder: Path, *overrides: str, written: str | None = None, **changes: Any) -> Config:
    path = folder / "config.yaml"
    path.write_text(text(**changes) if written is None else written, "utf-8")
    return load_config(path, overrides)


def refusal(folder: Path, *overrides: str, written: str | None = None, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides, written=written, **changes)
    return str(caught.value)


# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_becomes_a_config_with_defaults(folder: Path) -> None:
    config = load(folder, sampling={"group_size": 4}, placement={"ray": "off"})
    assert config.recipe.sampling.group_size == 4
    assert config.recipe.sampling.top_p == 1.0
    assert config.placement == Placement(ray="off")


def test_paths_are_found_beside_the_config_and_prompts_in_the_package(folder: Path) -> None:
    config = load(folder)
    assert config.recipe.tasks[0].settings["path"] == str((folder / "tasks.jsonl").resolve())
    assert Path(config.recipe.prompts) == Path(__file__).parents[2] / "prompts.json"
    (folder / "prompts.json").write_text("{}", "utf-8")
    assert Path(load(folder).recipe.prompts) == (folder / "prompts.json").resolve()


def test_missing_paths_are_named_with_where_they_were_looked_for(folder: Path) -> None:
    message = refusal(folder, "tasks.0.settings.path=no.jsonl", "prompts=mine.json", "model=./weights")
    assert "tasks.0.settings.path: there is no 'no.jsonl'; looked for" in message
    assert "prompts: there is no 'mine.json'" in message
    assert "model: there is no './weights'" in message
    assert str(folder / "no.jsonl") in message


def test_scalars_are_read_as_people_mean_them(folder: Path) -> None:
    written = text() + "placement: {ray: off}\noracle: {timeout_s: 3e1}\nname: 010\nsteps: 1_0\n"
    config = load(folder, written=written)
    assert config.placement.ray == "off"
    assert (config.recipe.oracle.timeout_s, config.recipe.name, config.recipe.steps) == (30.0, "010", 10)
    assert load(folder, "generator.settings.spread=1e-3").recipe.generator.settings == {"spread": 0.001}


# ── overrides ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_overrides_reach_mappings_lists_and_defaults(folder: Path) -> None:
    config = load(
        folder,
        "seed=7",
        "sampling.temperature=0.5",
        "judges.0.settings.name=mine",
        "judges.1.name=rubric",
        "evolution.mutations.0.weight=2",
        "placement.ray=off",
        "trainer=",
        "oracle.usd_per_million.1=0.5",
    )
    recipe = config.recipe
    assert (recipe.seed, recipe.sampling.temperature, config.placement.ray, recipe.trainer) == (7, 0.5, "off", None)
    assert [(judge.name, dict(judge.settings)) for judge in recipe.judges] == [
        ("verifier", {"name": "mine"}),
        ("rubric", {}),
    ]
    assert recipe.evolution.mutations[0].weight == 2
    assert recipe.oracle.usd_per_million == (0.0, 0.5)


def test_a_config_may_be_overrides_alone(folder: Path) -> None:
    path = folder / "tasks.jsonl"
    config = load_config(None, [f"tasks=[{{name: jsonl, settings: {{path: {path}}}}}]", *CANNED])
    assert config.recipe.tasks[0].name == "jsonl"


def test_wrong_overrides_are_refused(folder: Path) -> None:
    message = refusal(folder, "seed", "seed=[", "judges.7.name=x", "seed.deep=1", "sampling.grop_size=4", "judges.x=1")
    assert "--set seed: expected key.path=value" in message
    assert "--set seed=[: broken YAML" in message
    assert "--set judges.7.name=x: '7' is no place in a list of 1" in message
    assert "--set seed.deep=1: 'deep' would be inside 0" in message
    assert "sampling.grop_size: unknown; did you mean 'group_size'?" in message
    assert "--set judges.x=1: 'x' is no place in a list" in message


@given(st.dictionaries(st.sampled_from(["seed", "steps", "lag"]), st.integers(0, 99), min_size=1))
def test_overrides_say_the_same_as_the_file(values: dict[str, int]) -> None:
    tasks = "tasks=[{name: jsonl}]"
    with pytest.raises(ConfigError) as by_set:
        load_config(None, [tasks, "wrong=1", *CANNED, *(f"{key}={value}" for key, value in values.items())])
    assert "wrong: unknown" in str(by_set.value)
    assert not any(f"  {key}:" in str(by_set.value) for key in values)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────


def test_names_of_places_are_checked_and_passwords_not_repeated(folder: Path) -> None:
    message = refusal(folder, "placement.ray=maybe", "placement.storage=embeded", "oracle.base_url=foo")
    assert "placement.ray: expected local, auto, off or HOST:PORT, got 'maybe'" in message
    assert "placement.storage: no such storage; did you mean 'embedded'?" in message
    assert "oracle.base_url: foo is out of bounds; it must be bundled or http(s)://HOST…/v1" in message
    assert "secretpw" not in refusal(folder, "placement.storage=mysql://me:secretpw@host/db")
    assert (
        load(folder, "placement.ray=ray://head:10001", "placement.storage=my.storage").placement.storage == "my.storage"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:a@b/c@host:5432/db", "postgresql://me:…@host:5432/db"),
        (
            "x=postgres://h/db?user=me&password=abc&sslmode=require",
            "x=postgres://h/db?user=me&password=…&sslmode=require",
        ),
        ("oracle.base_url=http://127.0.0.1:80/v1", "oracle.base_url=http://127.0.0.1:80/v1"),
    ],
)
def test_passwords_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_a_misspelt_key_names_the_nearest_right_one(folder: Path) -> None:
    message = refusal(folder, sampling={"grop_size": 4}, stepz=3, judges=[{"nane": "verifier", "name": "verifier"}])
    assert "  sampling.grop_size: unknown; did you mean 'group_size'?" in message
    assert "  stepz: unknown; did you mean 'steps'?" in message
    assert "  judges.0.nane: unknown; did you mean 'name'?" in message
    assert "3 problems" in message


def test_a_key_in_the_wrong_place_is_sent_home(folder: Path) -> None:
    assert "group_size: unknown; did you mean 'sampling.group_size'?" in refusal(folder, group_size=4)


def test_a_wrong_type_says_what_is_expected(folder: Path) -> None:
    message = refusal(
        folder,
        steps="many",
        seed=1.5,
        name=["x"],
        judges="verifier",
        rewards=["verified"],
        sampling={"temperature": "warm", "slots": True},
        trainer={"settings": {}},
        placement={"ray": 5, "generators": None},
        oracle={"usd_per_million": [1]},
    )
    for expected in (
        "steps: expected a whole number, got 'many'",
        "seed: expected a whole number, got 1.5",
        "name: expected text, got a list",
        "judges: expected a list, got 'verifier'",
        "rewards.0: expected a mapping with `name`, and `settings` where it has some, got 'verified'",
        "sampling.temperature: expected a number, got 'warm'",
        "sampling.slots: expected a number, got true",
        "trainer.name: is missing",
        "placement.ray: ",
        "placement.generators: expected a whole number, got nothing",
        "oracle.usd_per_million.1: is missing",
    ):
        assert expected in message


def test_tasks_are_needed(folder: Path) -> None:
    assert "tasks: is missing; add at least one source of tasks" in refusal(folder, written="steps: 3\n")
    assert "tasks: is empty" in refusal(folder, tasks=[])
    assert "tasks: is missing" in refusal(folder, written="")


def test_unknown_names_and_settings_are_refused_with_their_path(folder: Path) -> None:
    message = refusal(
        folder,
        "judges=[{name: rubrik}]",
        "rewards=[{name: verified, settings: {dimensoin: x}}]",
        "evolution.mutations.0.settings.secnd=1",
        "generator.name=canend",
        "trainer.settings.secons=1",
        tasks=[{"name": "jsonl"}],
    )
    for expected in (
        "judges.0: no judges file is called 'rubrik'; did you mean 'rubric'?",
        "rewards.0: rewards 'verified' has no setting 'dimensoin'; did you mean 'dimension'?",
        "evolution.mutations.0: mutations 'set_parameter' has no setting 'secnd'; did you mean 'second'?",
        "generator: no generators file is called 'canend'; did you mean 'canned'?",
        "trainer: trainers 'canned' has no setting 'secons'; did you mean 'seconds'?",
        "tasks.0: tasks 'jsonl' needs the setting 'path'",
    ):
        assert expected in message


def test_values_of_settings_are_of_their_annotations_types(folder: Path) -> None:
    message = refusal(
        folder,
        "generator.settings={rate: abc, spread: true, form: 3}",
        "judges=[{name: rubric, settings: {dimensions: 3}}, {name: rubric, settings: {dimensions: {clear: 4}}}]",
        "rewards=[{name: format, settings: {finish_share: [1]}}]",
        "evolution.mutations.0.settings.second=often",
        "tasks.1={name: reasoning_gym, settings: {dataset: chain_sum, size: 3.5}}",
    )
    for expected in (
        "generator.settings.rate: expected a number, got 'abc'",
        "generator.settings.spread: expected a number, got true",
        "generator.settings.form: expected text, got 3",
        "judges.0.settings.dimensions: expected a mapping, got 3",
        "judges.1.settings.dimensions.clear: expected text, got 4",
        "rewards.0.settings.finish_share: expected a number, got a list",
        "evolution.mutations.0.settings.second: expected a number, got 'often'",
        "tasks.1.settings.size: expected a whole number, got 3.5",
    ):
        assert f"  {expected}\n" in f"{message}\n"
    assert "8 problems" in message


def test_a_whole_number_is_a_number_and_null_may_be_one(folder: Path) -> None:
    load(folder, "generator.settings.rate=1", "judges.0={name: rubric, settings: {dimensions: null}}")


def test_the_recipes_model_is_not_given_twice(folder: Path) -> None:
    assert "generator.settings.model: is the recipe's" in refusal(folder, "generator.settings.model=other")


def test_an_endpoint_needs_the_name_of_the_model_it_serves(folder: Path) -> None:
    endpoint = "generator={name: openai_compatible, settings: {base_url: http://127.0.0.1:9/v1}}"
    assert "generator.settings: served_model is needed" in refusal(folder, endpoint)
    load(folder, endpoint, "generator.settings.served_model=theirs")
    load(folder, endpoint, "model=theirs")


@pytest.mark.mlx
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rank=abc", "trainer.settings.rank: expected a whole number, got 'abc'"),
        ("rank=0", "trainer.settings: rank is 0: it must be at least 1"),
        ("loss=gropo", "trainer.settings.loss: expected 'dapo', 'grpo'"),
        ("keys=[1]", "trainer.settings.keys.0: expected text, got 1"),
        ("keys=q_proj", "trainer.settings.keys: "),
        ("stop_kl=x", "trainer.settings.stop_kl: expected a number, got 'x'"),
        ("learning_rate=0", "trainer.settings: learning_rate is 0: it must be above 0"),
        ("learning_rate=.nan", "trainer.settings: learning_rate is nan"),
        ("epochs=0", "trainer.settings: epochs is 0: it must be at least 1"),
        ("schedule=linear", "trainer.settings: schedule_steps is 0"),
        ("stop_kl=-1", "trainer.settings: the bound on kl is negative"),
        ("delta=1", "trainer.settings: delta is 1"),
        ("num_layers=0", "trainer.settings: num_layers is 0"),
    ],
)
def test_wrong_values_of_the_trainer_are_refused_before_a_run(folder: Path, override: str, expected: str) -> None:
    assert expected in refusal(folder, "trainer={name: mlx_lora}", f"trainer.settings.{override}")


@pytest.mark.mlx
def test_right_values_of_the_trainer_pass_and_several_wrong_ones_are_listed(folder: Path) -> None:
    load(folder, "trainer={name: mlx_lora, settings: {stop_kl: null, keys: [mlp.up_proj], delta: 2, learning_rate: 1}}")
    message = refusal(folder, "trainer={name: mlx_lora, settings: {rank: 0, scale: 0, epochs: 0, cispo_cap: 0}}")
    assert "4 problems" in message


def test_what_is_out_of_bounds_is_listed_beside_what_has_the_wrong_type(folder: Path) -> None:
    message = refusal(folder, "steps=abc", "lag=-1", "sampling.group_size=1", "oracle.base_url=foo", "judges.1=rubrik")
    assert "5 problems" in message
    for path in ("steps", "lag", "sampling.group_size", "oracle.base_url", "judges.1"):
        assert f"  {path}: " in message


def test_a_wrong_type_leaves_the_places_of_its_neighbours(folder: Path) -> None:
    message = refusal(folder, "judges=[{name: 3}, {name: rubrik}, 5]", "tasks=7", "trainer={settings: {rank: 0}}")
    assert "  judges.0.name: expected text, got 3" in message
    assert "  judges.1: no judges file is called 'rubrik'" in message
    assert "  judges.2: expected a mapping" in message
    assert "  tasks: expected a list, got 7" in message
    assert "  trainer.name: is missing" in message
    assert "5 problems" in message


def test_oracles_that_are_named_must_be_there_and_in_bounds(folder: Path) -> None:
    sets = ("oracles.strong.concurrency=0", "judges.0.name=rubric", "judges.0.oracle=strnog", "trust.second=weak")
    message = refusal(folder, *sets)
    assert "oracles.strong.concurrency: 0 is out of bounds; it must be 1 or more" in message
    assert "judges.0.oracle: there is no 'strnog' among oracles; did you mean 'strong'?" in message
    assert "trust.second: there is no 'weak' among oracles" in message


def test_a_reward_reads_a_judge_that_is_there(folder: Path) -> None:
    message = refusal(folder, "judges.0.name=verifier", "rewards=[{name: judge_score, settings: {judge: rubrik}}]")
    assert "rewards.0.settings.judge: there is no 'rubrik' among the judges; known: verifier" in message
    message = refusal(folder, "judges=[{name: rubric, settings: {answers_per_call: 0}}]")
    assert "answers_per_call: 0 is out of bounds; 1 or more" in message


def test_a_judges_file_lies_beside_the_config(folder: Path) -> None:
    (folder / "mine.yaml").write_text("{type: string_check, name: x, input: a, reference: b, operation: eq}")
    found = load(folder, judges=[{"name": "grader", "settings": {"file": "mine.yaml"}}], rewards=[{"name": "format"}])
    assert found.recipe.judges[0].settings["file"] == str(folder / "mine.yaml")


def test_values_out_of_bounds_are_listed(folder: Path) -> None:
    message = refusal(
        folder,
        steps=-1,
        lag=-1,
        sampling={"group_size": 1, "temperature": 0, "top_p": float("nan"), "max_tokens": 0},
        evolution={"discount": 0, "mutations": [{"name": "set_parameter", "weight": 0}]},
        rewards=[{"name": "verified", "weight": -1}],
        plan={"templates": 1},
        oracle={"usd_per_million": [-1, 0]},
        placement={"control_port": 70000},
    )
    for path in (
        "steps",
        "lag",
        "sampling.group_size",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.max_tokens",
    ):
        assert f"  {path}: " in message
    assert "evolution.mutations: needs at least one entry with a weight above 0" in message
    assert "rewards.0.weight: -1.0 is out of bounds" in message
    assert "plan.templates: templates are told apart on common tasks" in message
    assert "oracle.usd_per_million: (-1.0, 0.0) is out of bounds; it must be prices of 0 or more" in message
    assert "placement.control_port: 70000 is out of bounds; it must be a port, 0 … 65535" in message


def test_every_bound_is_of_a_key_that_exists() -> None:
    for path in BOUNDS:
        kind: Any = Placement if path.startswith("placement.") else Recipe
        for key in path.removeprefix("placement.").split("."):
            names = {field.name: field.default for field in fields(kind)} if is_dataclass(kind) else {}
            assert key in names, path
            kind = type(names[key])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("steps: 3\ntasks: [\n", "broken YAML in line 3"),
        ("steps: 3\nsteps: 4\n", "broken YAML in line 2, column 1: the key 'steps' is given twice"),
        ("- a\n", "expected keys and values, got a list"),
        ("steps: !!python/object/apply:os.system [x]\n", "broken YAML in line 1"),
        ("a: \x00", "broken YAML"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(folder: Path, written: str, expected: str) -> None:
    assert expected in refusal(folder, written=written)


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such file"):
        load_config(folder / "nowhere.yaml", [])


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=6,
)
top = [field.name for field in fields(Recipe)] + ["placement", "other"]


@given(st.dictionaries(st.sampled_from(top), yaml_values))
def test_any_tree_is_either_loaded_or_refused(tmp_path_factory: Any, tree: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(json.dumps(tree), "utf-8")
    try:
        assert isinstance(load_config(path, CANNED), Config)
    except ConfigError as error:
        assert str(error).startswith(str(path))
