"""A database from before deviations and lives were kept: its runs keep their history, and their templates get their lives."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
import pytest

from grpo_ray.lineage import Known, Life
from grpo_ray.recipe import EvolutionSpec
from grpo_ray.storage import embedded, migrations, postgres

pytestmark = pytest.mark.postgres
OLD = (1, 2, 3, 4)
WHY = "no better than\n\x1b0000 its parent"
"""With what stands for NUL in a stored text."""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        embedded.remove(folder)


def population(*living: str, retired: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """As a state of that time has it: members with a total, and no deviation."""
    members = [{"template": {"id": id, "text": "{{ question }}"}, "total": 0.75, "trials": 1.0} for id in living]
    return {"members": members, "generation": 0, "retired": retired}


def state(step: int, *living: str, retired: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    people = population(*living, retired=retired)
    policies = [{"population": population("ahead", *living) if step == 0 else people, "adapter": None, "held": []}]
    recipe = {"tasks": [{"name": "jsonl"}], "steps": 3, "evolution": {"size": 5, "min_trials": 2, "discount": 0.8}}
    return {"run": "old", "step": step, "recipe": recipe, "population": people, "adapter": None, "policies": policies}


STATES = (
    state(0, "seed", "other"),
    state(1, "other", "child", retired=(("seed", "an earlier word"), ("none", "refused"), ("seed", WHY))),
    state(2, "child"),
)


async def fill(connection: psycopg.AsyncConnection[Any]) -> None:
    """The database as the release before left it, with one run."""
    await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    await connection.execute(cast(LiteralString, migrations.TABLE))
    for file in sorted(migrations.FOLDER.glob("[0-9]*.sql")):
        if (number := int(file.name.split("_")[0])) in OLD:
            await connection.execute(file.read_bytes())
            row = [number, file.name, migrations._sha256(file)]
            await connection.execute("INSERT INTO migration (number, name, sha256) VALUES (%s, %s, %s)", row)
    await connection.execute("INSERT INTO run (id, name, steps, recipe) VALUES ('old', 'old', 3, '{}')")
    for id in ("ahead", "seed", "other", "child"):
        await connection.execute(
            "INSERT INTO template (run, id, text, task_type, complexity, parameters, settings, examples, version, parents,"
            " mutation, note, stand_in) VALUES ('old', %s, '{{ question }}', 'any', 'recall', '[]', '[]', '[]', 1, '{}',"
            " 'seed', '', false)",
            [id],
        )
    for one in STATES:
        row = [one["step"], json.dumps(one)]
        await connection.execute("INSERT INTO state (run, step, state) VALUES ('old', %s, %s)", row)
        for member in one["population"]["members"]:
            await connection.execute(
                "INSERT INTO member (run, step, template, total, trials, fitness) VALUES ('old', %s, %s, 0.75, 1, 0.25)",
                [one["step"], member["template"]["id"]],
            )


def test_the_runs_of_an_older_release_get_their_lives(home: Path) -> None:
    async def main() -> None:
        holder = embedded.Embedded(home)
        dsn = await holder.revive()
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await fill(connection)
        archive = await postgres.make_storage(dsn=dsn)
        store = await archive.open("old")
        known = {step: Known(step, 0.25, None, 1.0) for step in range(3)}
        assert await store.lives() == [
            Life("ahead", 0, 0),
            Life("seed", 0, 1, WHY.replace("\x1b0000", "\0"), (known[0],)),
            Life("other", 0, 2, "", (known[0], known[1])),
            Life("child", 1, None, "", (known[1], known[2])),
        ]
        loaded = await store.load_state()
        assert loaded is not None and [one.template.id for one in loaded.population.members] == ["child"]
        assert loaded.recipe.evolution == EvolutionSpec(size=5, discount=0.8)
        assert await store.trials() == []
        await archive.close()
        await holder.leave()

    asyncio.run(main())
