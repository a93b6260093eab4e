"""`sampling.slots: auto`: what a config may say, how a number is chosen, and that a run keeps the one it began with."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import CHILD, RECIPE, RUN, SEED, TASK, small_archive

from grpo_ray import launch, terminal
from grpo_ray.crew import find_slots
from grpo_ray.errors import ConfigError, RecipeChanged
from grpo_ray.generators._memory import Room, free_bytes, kv_bytes, machine_bytes
from grpo_ray.generators._slots import choose, sizes
from grpo_ray.recipe import Config, Named, PlanSpec, Recipe
from grpo_ray.settings import load_config
from grpo_ray.types import Pace, SlotsFound, TaskSet, Wave

INPUTS = launch.Inputs((SEED, CHILD), TaskSet((TASK,), (TASK,), (TASK,)))
FOUND = SlotsFound(12, (Pace(8, 100.0), Pace(12, 150.04)))


def config_with(slots: Any, folder: Path) -> Config:
    (folder / "sums.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}))
    path = folder / "run.yaml"
    path.write_text("tasks: [{name: jsonl, settings: {path: sums.jsonl}}]\ngenerator: {name: canned}\ntrainer: null\n")
    return load_config(path, [f"sampling.slots={slots}"])


def open_ended(**changes: Any) -> Config:
    """The small run's recipe, with its slots left open."""
    plan = PlanSpec(tasks=1, templates=2, wave=2)
    sampling = replace(RECIPE.sampling, slots="auto")
    return Config(recipe=replace(RECIPE, **{"sampling": sampling, "plan": plan, **changes}))


class Finder:
    """Finds 12, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Wave] = []

    async def __call__(self, wave: Wave) -> SlotsFound:
        self.asked.append(wave)
        return FOUND


# ── the config ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_slots_are_a_number_or_auto(tmp_path: Path) -> None:
    assert config_with("auto", tmp_path).recipe.sampling.slots == "auto"
    assert config_with(7, tmp_path).recipe.sampling.slots == 7


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ("autto", "sampling.slots: expected a whole number or 'auto', got 'autto'"),
        ("1.5", "sampling.slots: expected a whole number or 'auto', got 1.5"),
        ("[1]", "sampling.slots: expected a whole number or 'auto', got a list"),
        ("true", "sampling.slots: expected a number, got true"),
        ("0", "sampling.slots: 0 is out of bounds; it must be 1 or more, or auto"),
        ("-3", "sampling.slots: -3 is out of bounds; it must be 1 or more, or auto"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, slots: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config_with(slots, tmp_path)
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [message]


def test_a_plan_says_auto_and_asks_nobody() -> None:
    assert launch.plan(open_ended(), INPUTS)["slots"] == "auto"


# ── the choice ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [1]), (4, [4]), (6, [4, 6]), (48, [4, 8, 16, 32, 48]), (64, [4, 8, 16, 32, 64])]
)
def test_sizes_double_up_to_the_most(most: int, expected: list[int]) -> None:
    assert sizes(most) == expected


@pytest.mark.parametrize(
    ("speeds", "slots", "tried"),
    [
        ({4: 100, 8: 190, 16: 300, 32: 400}, 32, 4),
        ({4: 100, 8: 190, 16: 200, 32: 205, 64: 900}, 8, 4),
        ({4: 100, 8: 90, 16: 300, 32: 310, 64: 320, 128: 900}, 16, 5),
        ({4: 100}, 4, 1),
        ({4: 100, 8: 110}, 4, 2),
    ],
)
def test_more_slots_are_taken_while_they_pay(speeds: dict[int, float], slots: int, tried: int) -> None:
    found = choose(list(speeds), lambda size: float(speeds[size]))
    assert (found.slots, len(found.paces)) == (slots, tried)
    assert found.paces == tuple(Pace(size, speed) for size, speed in list(speeds.items())[:tried])


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_as_wide_as_its_longest_row_and_grows_in_steps() -> None:
    room = Room(budget=1000, a_token=2)
    assert room.takes(rows=3, long=100, left=10) == 2 * 3 * (100 + 256)
    assert room.takes(rows=3, long=100, left=255, prompts=7) == 2 * (3 * (100 + 512) + 7)
    assert room.holds(rows=1, long=100, left=10) and not room.holds(rows=2, long=100, left=10)
    assert not Room(-1, 2).holds(1, 1, 1)
    assert Room(-1, 0).holds(9, 9, 9), "of a model whose caches nobody knows nothing is held back"


def test_a_real_config_gives_the_known_size_of_a_token() -> None:
    """Qwen3-4B: 36 layers, 8 heads of 128 numbers, keys and values, 2 bytes each: 144 KiB."""
    qwen = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    assert kv_bytes({**qwen, "hidden_size": 2560}, 36, 2) == 144 * 1024
    assert kv_bytes({"num_attention_heads": 4, "hidden_size": 64}, 2, 4) == 2 * 4 * 2 * 16 * 4
    assert (
        kv_bytes({"num_attention_heads": 8, "num_key_value_heads": [2, 4], "head_dim": 16}, 2, 2) == 2 * 4 * 2 * 16 * 2
    )
    assert kv_bytes({"state_size": 16}, 0, 4) == 0


def test_a_container_may_take_less_than_its_machine_has(tmp_path: Path) -> None:
    limit, none = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    limit.write_text("1048576\n")
    none.write_text("max\n")
    whole = machine_bytes(limits=())
    assert whole > 1 << 28
    assert machine_bytes(limits=[str(none), str(tmp_path / "absent")]) == whole


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="containers and meminfo are Linux's")
def test_linux_says_what_is_free(tmp_path: Path) -> None:
    limit, meminfo = tmp_path / "memory.max", tmp_path / "meminfo"
    limit.write_text("1048576\n")
    meminfo.write_text("MemTotal:       1000 kB\nMemAvailable:    500 kB\n")
    assert machine_bytes(limits=[str(limit)]) == 1 << 20
    assert free_bytes(str(meminfo)) == int(0.8 * 500 * 1024)
    assert free_bytes(str(tmp_path / "absent")) is None


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_run_keeps_what_is_found_and_a_resume_takes_it() -> None:
    async def main() -> None:
        archive, find, config = await small_archive(), Finder(), open_ended()
        state = await launch.begun(archive, config, INPUTS, None, None, find)
        assert state.recipe.sampling.slots == 12
        assert [len(wave.prompts) for wave in find.asked] == [2]
        store = await archive.open(state.run)
        assert await store.load_state() == state
        (event,) = await archive.events(state.run)
        assert (event["kind"], event["detail"]["slots"]) == ("slots_found", 12)
        assert event["detail"]["tokens_per_second"] == {"8": 100.0, "12": 150.0}
        assert (await archive.find("run", state.run))["state"]["recipe"]["sampling"]["slots"] == 12
        assert await launch.begun(archive, config, INPUTS, state.run, None, find) == state
        assert len(find.asked) == 1, "a resume measures nothing"

    asyncio.run(main())


def test_a_resume_with_another_number_is_another_recipe() -> None:
    async def main() -> None:
        archive, config = await small_archive(), open_ended()
        state = await launch.begun(archive, config, INPUTS, None, None, Finder())
        other = replace(config, recipe=launch.numbered(config.recipe, 13))
        with pytest.raises(RecipeChanged, match=r"changed: sampling.slots\."):
            await launch.take_up(archive, state.run, other)
        hotter = replace(config.recipe.sampling, temperature=0.5)
        with pytest.raises(RecipeChanged, match=r"changed: sampling.temperature\."):
            await launch.take_up(archive, state.run, open_ended(sampling=hotter))

    asyncio.run(main())


def test_a_fork_finds_its_own_slots_unless_no_step_is_left() -> None:
    async def main() -> None:
        archive, find = await small_archive(), Finder()
        with pytest.raises(ConfigError, match="--set steps="):
            await launch.begun(archive, open_ended(), INPUTS, None, RUN, find)
        assert not find.asked, "what fails fast comes first"
        state = await launch.begun(archive, open_ended(steps=5), INPUTS, None, RUN, find)
        assert (state.step, state.recipe.sampling.slots, len(find.asked)) == (2, 12, 1)

    asyncio.run(main())


def test_a_number_is_not_measured() -> None:
    async def main() -> None:
        find, config = Finder(), open_ended(sampling=RECIPE.sampling)
        state = await launch.begun(await small_archive(), config, INPUTS, None, None, find)
        assert (state.recipe, find.asked) == (config.recipe, [])

    asyncio.run(main())


def test_a_generator_that_cannot_measure_takes_the_usual_number() -> None:
    async def main() -> None:
        recipe: Recipe = open_ended(generator=Named(name="canned")).recipe
        found = await find_slots(recipe, launch.first_wave(recipe, INPUTS))
        assert found == SlotsFound(32)
        assert "32, the usual number" in terminal.slots(found)

    asyncio.run(main())


def test_looking_only_needs_no_measure() -> None:
    assert launch.untrained(open_ended()).recipe.sampling.slots == 32


def test_the_terminal_says_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    find = Finder()
    wave = launch.first_wave(open_ended().recipe, INPUTS)
    assert asyncio.run(find(wave)) is asyncio.run(terminal.aloud(find)(wave))
    assert "sampling.slots: 12 (tokens/s by slots: 8: 100, 12: 150)" in capsys.readouterr().err
