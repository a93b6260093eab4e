"""What the contract tests of the MLX backends share: a tiny model, and lessons of its own rollouts."""

import pytest
from lessons import sample_lessons
from tiny_model import make_tiny_model

from grpo_ray.types import Lesson, Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def lessons(folder) -> list[Lesson]:
    return sample_lessons(folder, Sampling(group_size=4, temperature=0.9, max_tokens=14, slots=8))
