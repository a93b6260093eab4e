"""The commands about judging: what it costs, how a reward came about, how far the judges can be trusted."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

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
from grpo_ray.errors import ConfigError

app = typer.Typer()
USER = "command line"


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
    """Say what a running run may cost; calls that wait for money go on."""
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


@app.command(name="judge-report")
def judge_report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="Write the page here, as HTML.")] = None,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """How far a run's judges can be trusted: one page, with pictures."""
    from grpo_ray import oversight, terminal
    from grpo_ray.trust import page as judge_page

    with told():
        found = ask(home, storage, lambda archive: oversight.judge_report(archive, run))
        if out is not None:
            _write(out, judge_page.page(found))
        say(found, as_json, lambda _: terminal.shown(judge_page.words(found)))


def _write(out: Path, page: str) -> None:
    try:
        out.expanduser().write_text(page, "utf-8")
    except OSError as fault:
        raise ConfigError(f"can't write {out}: {fault.strerror}; choose another file with --out") from fault


@app.command()
def review(
    run: Run,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rollouts to show.")] = 20,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """What people should look at first, and why."""
    from grpo_ray import oversight, terminal

    with told():
        found = ask(home, storage, lambda archive: oversight.review(archive, run, limit=limit))
        say(found, as_json, lambda value: terminal.shown(terminal.reviews(value)))


@app.command()
def label(
    rollout: Annotated[str, typer.Argument(metavar="ROLLOUT", help="Rollout id, or its unique beginning.")],
    score: Annotated[float, typer.Option(help="0 (worst) to 1 (best).")],
    dimension: Annotated[str, typer.Option(help="What is marked.")] = "overall",
    why: Annotated[str, typer.Option(help="In words.")] = "",
    who: Annotated[str, typer.Option(help="Who says so; a later label takes the place of their earlier one.")] = USER,
    run: OfRun = None,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """Enter a person's mark of one answer, for the judges to be measured by."""
    from grpo_ray import oversight, terminal

    with told():
        given = ask(home, storage, lambda archive: oversight.label(archive, run, rollout, dimension, score, who, why))
        say(given, as_json, lambda value: terminal.facts(value["rollout_id"], value))


@app.command()
def rejudge(
    run: Run,
    judge: Annotated[
        list[str] | None, typer.Option(help="A judge of the recipe; may be repeated. All, if absent.")
    ] = None,
    audit: Annotated[
        Literal["repeat", "permuted", "second", "rejudged"],
        typer.Option(help="How they are asked; see docs/judging.md."),
    ] = "repeat",
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the run's groups.")] = 1.0,
    batch: Annotated[
        bool, typer.Option("--batch", help="By the endpoint's Batch API: half the price, up to a day.")
    ] = False,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """Have a run's answers judged once more, beside the marks that counted."""
    from grpo_ray import attended, oversight, secrets_file, terminal
    from grpo_ray.recipe import Config

    with told():
        secrets_file.read_secrets(home)
        how: dict[str, Any] = {"judges": judge or [], "audit": audit, "share": share, "batch": batch}
        serve = lambda recipe: attended.bundled_server(Config(recipe=recipe))  # noqa: E731
        say(
            ask(home, storage, lambda a: oversight.rejudge(a, run, serve=serve, **how)),
            as_json,
            partial(terminal.facts, run),
        )
