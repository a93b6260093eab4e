"""One local Ray for all tests of this folder, and one embedded PostgreSQL: actors of several processes share no memory."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "loop"))  # the little run is the loop tests'; Ray passes the path on

from actors.driver import connected
from grpo_ray.recipe import Placement


@pytest.fixture(scope="session")
def cluster_up() -> Iterator[None]:
    with connected(Placement(generators=2), trainers=2):
        yield


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")
