"""The commands about judging: what it costs, how a reward came about, how far the judges can be trusted."""

import asyncio
from typing import Annotated

import typer

from grpo_ray.cli_parts import (
    HOME,
    STORAGE,
    Explained,
    File,
    Groups,
    Home,
    Id,
    Json,
    OfRun,
    Run,
    Sets,
    Storage,
    ask,
    load,
    say,
    told,
)

app = typer.Typer()


@app.command()
def explain(
    kind: Explained, id: Id, run: OfRun = None, as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE
) -> None:
    """The arithmetic behind a rollout's advantage: scores, reward parts, caps and gates, the blend, the group."""
    from grpo_ray import oversight, terminal

    with told():
        say(ask(home, storage, lambda archive: oversight.explain(archive, id, run)), as_json, terminal.explanation)


@app.command()
def plan(
    config: File,
    set: Sets = None,
    money: Annotated[float | None, typer.Option(min=0, help="USD that the run may cost.")] = None,
    until: Annotated[str | None, typer.Option(help="08:00, in 6h, 90m, or 2027-01-31T08:00.")] = None,
    groups: Groups = None,
    train: Annotated[bool, typer.Option("--train/--no-train", help="Measure one update too.")] = True,
    as_json: Json = False,
) -> None:
    """Measure a few groups; forecast what a run takes, and how many steps fit."""
    from grpo_ray import launch, planning, secrets_file

    with told():
        settings = load(config, set)
        seconds = planning.parse_until(until) if until is not None else None
        secrets_file.read_secrets(settings.placement.home)
        inputs = launch.load_inputs(settings)
        work = planning.plan(settings, inputs, money=money, seconds=seconds, groups=groups, train=train)
        say(asyncio.run(work), as_json, planning.look)


@app.command()
def budget(
    run: Run,
    usd: Annotated[float, typer.Option(min=0, help="What the run may cost in all, at this door.")],
    door: Annotated[str | None, typer.Option(help="Host and model; needed where a run has several.")] = None,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """Allow a run to spend more; calls that wait for money go on."""
    from grpo_ray import oversight, terminal

    with told():
        answer = ask(home, storage, lambda archive: oversight.budget(archive, run, usd, door, who="command line"))
        say(answer, as_json, lambda value: terminal.facts(run, value))


@app.command(name="accept-judges")
def accept_judges(run: Run, as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE) -> None:
    """Pass over the doubts about a run's judges: prompts evolve and datasets are exported again."""
    from grpo_ray import oversight, terminal

    with told():
        answer = ask(home, storage, lambda archive: oversight.accept_judges(archive, run, who="command line"))
        say(answer, as_json, lambda value: terminal.facts(run, value))
