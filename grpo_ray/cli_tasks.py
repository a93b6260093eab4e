"""The commands about tasks: what the model can do with them before a run, and what a run's rollouts say of them."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from grpo_ray.cli_parts import HOME, STORAGE, File, Home, Json, MaybeRun, Sets, Storage, ask, load, say, told
from grpo_ray.errors import ConfigError

app = typer.Typer(no_args_is_help=True)
Out = Annotated[Path | None, typer.Option(help="Write the tables here too, as one page of HTML.")]


@app.callback()
def tasks() -> None:
    """What the model can do with the tasks, with which templates to begin, and which tasks teach."""


@app.command()
def analyse(
    config: File,
    set: Sets = None,
    rollouts: Annotated[int, typer.Option(min=1, max=256, help="A group: of one task under one template.")] = 4,
    tasks: Annotated[int, typer.Option(min=1, max=10_000, help="Train tasks of each type.")] = 6,
    settings: Annotated[
        int, typer.Option(min=0, max=50, help="Other settings to try of each type's two best templates; 0 tries none.")
    ] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take; sample nothing.")] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write a prompts.json here that begins with the templates proposed.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Sample a few rollouts of a few train tasks; say how the model does, and propose templates and a curriculum.

    Nothing is stored, nothing is trained, and no validation or held-out task is looked at.
    """
    from grpo_ray import doctor, launch, library, secrets_file, survey, task_tables

    with told():
        asked = survey.Asked(rollouts, tasks, settings)
        _check(write, out)
        config_read = load(config, set)
        secrets_file.read_secrets(config_read.placement.home)
        inputs = launch.load_inputs(config_read)
        if dry_run:
            say(survey.planned(config_read, inputs, asked), as_json, task_tables.plan)
            return
        asyncio.run(doctor.check_reachable(config_read.recipe))
        with task_tables.bar() as landed:
            done = asyncio.run(survey.survey(config_read, inputs, asked, landed))
        _say(done.found, out, as_json)
        if write is not None:
            library.write_library(write.expanduser(), done.library)
            typer.echo(f"templates in {write}; run with them: --set prompts={write}", err=True)


@app.command()
def report(
    run: MaybeRun = None, out: Out = None, as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE
) -> None:
    """The same of what a run has sampled so far, under any template and adapter; nothing is sampled for it."""
    from grpo_ray import survey

    with told():
        _check(None, out)
        _say(ask(home, storage, lambda archive: survey.of_run(archive, run)), out, as_json)


def _check(write: Path | None, out: Path | None) -> None:
    """Whether the files can be written, before anything is paid for."""
    if write is not None and write.expanduser().exists():
        raise ConfigError(f"{write} is there already; choose another file with --write")
    for name, path in (("--write", write), ("--out", out)):
        if path is not None and not path.expanduser().absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent} to write {path.name} to; make it, or change {name}")


def _say(found: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """On stdout first, so that nothing that was paid for is lost if the file can't be written."""
    from grpo_ray import task_tables

    say(found, as_json, task_tables.look)
    if out is None:
        return
    try:
        out.expanduser().write_text(task_tables.page(found), "utf-8")
    except OSError as fault:
        raise ConfigError(f"can't write {out}: {fault.strerror}; choose another file with --out") from fault
