"""The command line: it only translates. Results go to stdout, progress and faults to stderr.

Exit codes: 0 done; 1 something did not answer or hold; 2 wrong usage, config or name; 130 interrupted.
"""

import asyncio
import json
import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grpo_ray import cli_judges, cli_tasks, cli_templates
from grpo_ray.cli_parts import (
    FAULT,
    HOME,
    INTERRUPTED,
    STORAGE,
    File,
    Groups,
    Home,
    Id,
    Json,
    Kind,
    MaybeFile,
    MaybeRun,
    OfRun,
    Run,
    Sets,
    Settings,
    Split,
    Storage,
    ask,
    closing,
    load,
    say,
    told,
)
from grpo_ray.errors import ConfigError

if TYPE_CHECKING:
    from grpo_ray.launch import FindSlots, Inputs
    from grpo_ray.protocols import Archive
    from grpo_ray.recipe import Config
    from grpo_ray.types import TaskSet

app = typer.Typer(
    name="grpo-ray",
    help="Evolves prompts and trains LoRA adapters from the same judged rollouts, and keeps the data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_judges.app)
app.add_typer(cli_tasks.app, name="tasks")
app.add_typer(cli_templates.app, name="templates")


@app.command()
def preview(config: File, set: Sets = None, as_json: Json = False) -> None:
    """One group per template, with every evaluation and reward; nothing is trained, nothing is stored."""
    from grpo_ray import attended, crew, doctor, launch, operations, secrets_file, terminal

    async def previewed() -> list[dict[str, Any]]:
        seen = []
        archive = await launch.open_archive(settings.placement)
        state = await launch.start(archive, settings, inputs)
        with attended.bundled_server(settings) as base_url:
            async with crew.local_crew(settings, archive, state.run, inputs.tasks, base_url) as here:
                async for template, scored in operations.preview(inputs.templates, settings.recipe, here):
                    seen.append(operations.seen(template, scored))
                    if not as_json:
                        terminal.console().print(terminal.preview(template, scored))
        return seen

    with told():
        settings = launch.untrained(load(config, set))
        secrets_file.read_secrets(settings.placement.home)
        inputs = launch.load_inputs(settings)
        asyncio.run(doctor.check_reachable(settings.recipe))
        found = asyncio.run(previewed())
        if as_json:
            typer.echo(json.dumps(found, ensure_ascii=False, allow_nan=False))
        if not any(one["rollouts"] for one in found):
            raise typer.Exit(FAULT)


@app.command()
def run(
    config: File,
    set: Sets = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run under the same recipe.")] = None,
    fork: Annotated[str | None, typer.Option(metavar="RUN", help="Go on from a run's state, as a new run.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check what a run checks first, say what it takes, start nothing.")
    ] = False,
    groups: Groups = None,
    as_json: Json = False,
) -> None:
    """Evolve the templates, train the adapter, and report on held-out tasks.

    With --groups N, N groups are measured first; the forecast made from them is kept, and judged by what the run took.
    """
    from grpo_ray import attended, doctor, launch, planning, secrets_file, terminal

    with told():
        if resume and fork:
            raise ConfigError("--resume goes on with a run, --fork begins a new one from it; give one of them")
        settings = load(config, set)
        secrets_file.read_secrets(settings.placement.home)
        inputs = launch.load_inputs(settings)
        asyncio.run(doctor.check_reachable(settings.recipe))
        if dry_run:
            asyncio.run(launch.probe(settings.placement))
            say(asyncio.run(planning.plan(settings, inputs, groups=groups or 0)), as_json, planning.look)
            return
        forecast = asyncio.run(planning.plan(settings, inputs, groups=groups)) if groups else None
        again = attended.again(config, set or [])
        result = asyncio.run(_run(settings, inputs, resume, fork, again, forecast))
        say(result, as_json, terminal.outcome)
        if not result["finished"]:
            raise typer.Exit(INTERRUPTED)
        typer.echo(terminal.next_steps(result, settings.placement), err=True)


async def _run(
    settings: "Config",
    inputs: "Inputs",
    resume: str | None,
    fork: str | None,
    again: str,
    forecast: dict[str, Any] | None,
) -> dict[str, Any]:
    """Begin or take up a run, conduct it, and say what it came to; however it ends early, how to go on.

    What fails fast comes first: the archive, then Ray, then the run, so that a fault leaves nothing half begun.
    """
    from grpo_ray import attended, launch, planning, terminal

    opened = launch.open_kept if resume or fork else launch.open_archive
    async with closing(await opened(settings.placement)) as archive:
        with _joined(settings) as find:
            state = await launch.begun(archive, settings, inputs, resume, fork, terminal.aloud(find))
            settings, run = launch.reached(settings, state), state.run
            if forecast and not resume:
                await planning.keep(await archive.open(run), forecast)
            work = partial(_work, settings, archive, run, inputs.tasks)
            return await attended.attend(settings, archive, run, f"{again} --resume {run}", work)


def _joined(settings: "Config") -> "AbstractContextManager[FindSlots]":
    """Ray, before a run begins: where it can't be joined nothing has started. Gives what finds slots."""
    if settings.placement.ray == "off":
        from grpo_ray.crew import find_slots

        return nullcontext(partial(find_slots, settings.recipe))
    from actors import cluster

    return cluster.joined(settings)


async def _work(settings: "Config", archive: "Archive", run: str, tasks: "TaskSet", base_url: str) -> None:
    """The run itself: on Ray, or in this process where placement.ray is off."""
    if settings.placement.ray != "off":
        from actors.cluster import run as run_on_ray

        await run_on_ray(settings, run, tasks, base_url)
        return
    from actors.coordinator import conduct, hold
    from grpo_ray.crew import local_crew

    await hold(archive, run)
    async with local_crew(settings, archive, run, tasks, base_url) as crew:
        await conduct(archive, run, crew)


@app.command()
def runs(as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE) -> None:
    """All runs, newest first."""
    from grpo_ray import operations, terminal

    with told():
        say(ask(home, storage, operations.runs), as_json, terminal.runs)


@app.command()
def status(run: MaybeRun = None, as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE) -> None:
    """How a run is doing, or what it came to."""
    from grpo_ray import operations, terminal

    with told():
        say(ask(home, storage, lambda archive: operations.status(archive, run)), as_json, terminal.outcome)


@app.command()
def show(
    kind: Kind, id: Id, run: OfRun = None, as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE
) -> None:
    """Everything kept of a run, template, rollout or adapter; of a rollout its whole ancestry."""
    from grpo_ray import operations, terminal

    looks = {"rollout": terminal.rollout, "template": terminal.template}
    look = looks.get(kind) or (lambda row: terminal.facts(f"{kind} {row['id']}", row))
    with told():
        say(ask(home, storage, lambda archive: operations.show(archive, kind, id, run)), as_json, look)


@app.command()
def pause(run: Run, as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE) -> None:
    """Let a run wait at the next step's edge."""
    _steer("pause", run, as_json, home, storage)


@app.command()
def unpause(run: Run, as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE) -> None:
    """Let a paused run go on."""
    _steer("resume", run, as_json, home, storage)


@app.command()
def stop(run: Run, as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE) -> None:
    """Let a run end at the next step's edge, saved; `run --resume` takes it up again."""
    _steer("stop", run, as_json, home, storage)


def _steer(verb: str, run: str, as_json: bool, home: str, storage: str) -> None:
    from grpo_ray import operations, terminal

    with told():
        answer = ask(home, storage, lambda archive: getattr(operations, verb)(archive, run, who="command line"))
        say(answer, as_json, lambda value: terminal.facts(run, value))


@app.command()
def export(
    run: Run,
    format: Annotated[str, typer.Option(help="A file of exporters/: chat, adapter, fused …")],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    set: Settings = None,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """Write a run's curated rows, or its adapter."""
    from grpo_ray import launch, operations, terminal

    with told():
        settings = launch.pairs(set or [])
        answer = ask(home, storage, lambda archive: operations.export(archive, run, format, out, settings))
        say(answer, as_json, lambda value: terminal.facts("exported", value))


@app.command(name="eval")
def evaluate(
    run: Run, split: Split = "heldout", as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE
) -> None:
    """Examine a run's last state at temperature 0, in this process; answers that are kept are not asked again."""
    from grpo_ray import attended, crew, launch, operations, secrets_file, splits, terminal
    from grpo_ray.recipe import Config, Placement

    async def examined(archive: "Archive") -> dict[str, Any]:
        row = await operations.which(archive, run)
        recipe = (await launch.newest(await archive.open(row["run"]), row["run"])).recipe
        settings = launch.untrained(Config(recipe=recipe, placement=Placement(home=home)))
        with attended.bundled_server(settings) as base_url:
            async with crew.local_crew(settings, archive, row["run"], splits.load(recipe), base_url) as here:
                return await operations.evaluate(row["run"], here, split)

    with told():
        secrets_file.read_secrets(home)
        say(ask(home, storage, examined), as_json, lambda value: terminal.facts("exam", value))


@app.command()
def doctor(config: MaybeFile = None, set: Sets = None, as_json: Json = False, home: Home = HOME) -> None:
    """Check the machine and, with a config, everything a run of it needs."""
    from dataclasses import asdict

    from grpo_ray import terminal
    from grpo_ray.doctor import check_all

    async def checked() -> list[dict[str, Any]]:
        return [asdict(check) async for check in check_all(load(config, set) if config else None, home)]

    with told():
        found = asyncio.run(checked())
        say(found, as_json, terminal.checks)
        if not all(check["ok"] for check in found):
            raise typer.Exit(FAULT)


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    embedder: Annotated[str | None, typer.Option(help="A file of embedders/, to search rollouts by meaning.")] = None,
    set: Settings = None,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """The control server on this machine: MCP at /mcp behind a bearer token, and /health."""
    import uvicorn

    from grpo_ray import attended, launch
    from grpo_ray.control import app as control
    from grpo_ray.recipe import Placement

    async def served() -> None:
        async with closing(await launch.open_kept(Placement(home=home, storage=storage))) as archive:
            site = control.make_app(archive, token=token, port=here, embed=embed, embedding_model=str(embedder))
            typer.echo(f"MCP: http://127.0.0.1:{here}/mcp, token in {Path(home) / control.TOKEN_FILE}", err=True)
            settings = uvicorn.Config(site, log_level="warning", timeout_graceful_shutdown=1)
            await uvicorn.Server(settings).serve([door])

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    with told(), control.open_door(port) as door:
        with attended.kept_in(home):
            token, here = control.read_token(home), door.getsockname()[1]
        embed = launch.make_embedder(embedder, launch.pairs(set or [])).embed if embedder else None
        asyncio.run(served())


@app.command(
    name="mock-openai",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def mock_openai(context: typer.Context) -> None:
    """An OpenAI-compatible stand-in on this machine, for work without a key. It is no real judge, and says so."""
    from grpo_ray.mock_openai import main

    with told():
        main(context.args)


if __name__ == "__main__":
    app()
