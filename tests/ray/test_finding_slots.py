"""Finding `slots: auto` on a cluster: every generator is asked, the least counts, and the run's own ones still fit."""

import asyncio
from pathlib import Path

import pytest
from little import stage

from actors import cluster
from grpo_ray.errors import MissingError
from grpo_ray.launch import Inputs, first_wave
from grpo_ray.recipe import Config, Named
from grpo_ray.types import Pace, SlotsFound

pytestmark = pytest.mark.ray


def config_of(generator: Named) -> Config:
    return stage.config(stage.recipe(generator=generator), generators=2)


def test_every_generator_is_asked_and_the_least_counts(cluster_up: None, tmp_path: Path) -> None:
    config = config_of(Named(name="tests.loop.little.tuned", settings={"folder": str(tmp_path)}))
    wave = first_wave(config.recipe, Inputs(stage.TEMPLATES, stage.TASKS))
    assert asyncio.run(cluster.find_slots(config, wave)) == SlotsFound(8, (Pace(8, 80.0),))
    assert sorted(mark.name for mark in tmp_path.iterdir()) == ["8", "9"]
    assert asyncio.run(cluster.find_slots(config, wave)).slots == 6, "those before are gone and made room"


def test_generators_without_a_model_are_not_even_made(cluster_up: None) -> None:
    config = config_of(Named(name="canned", settings={"nonsense": 1}))
    wave = first_wave(config.recipe, Inputs(stage.TEMPLATES, stage.TASKS))
    assert asyncio.run(cluster.find_slots(config, wave)) == SlotsFound(32)


def test_a_model_that_is_not_there_is_said_before_a_run_begins(cluster_up: None, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    config = stage.config(stage.recipe(generator=Named(name="mlx"), model=nowhere), generators=1)
    wave = first_wave(config.recipe, Inputs(stage.TEMPLATES, stage.TASKS))
    with pytest.raises(MissingError, match="no model folder"):
        asyncio.run(cluster.find_slots(config, wave))
