"""The commands about a run's templates: what lives and what lived, who came from whom, and what people change."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from grpo_ray.cli_parts import HOME, STORAGE, Home, Id, Json, MaybeRun, Storage, ask, say, told
from grpo_ray.errors import ConfigError

app = typer.Typer(no_args_is_help=True)
WHO = "command line"
NEWEST = "The run they are of; the newest, if absent."

All = Annotated[bool, typer.Option("--all", help="The retired too, each with why.")]
Why = Annotated[str, typer.Option(help="In words; kept with the change.")]
Prompts = Annotated[Path, typer.Argument(metavar="FILE", help="A prompts.json.")]
Newest = Annotated[str | None, typer.Option("--run", help=NEWEST)]


@app.callback()
def templates() -> None:
    """A run's templates. What is changed here takes effect at the next step's edge."""


@app.command(name="list")
def list_(
    run: MaybeRun = None, all: All = False, as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE
) -> None:
    """The templates, the fittest first, and the changes that wait."""
    from grpo_ray import steering, template_tables

    with told():
        found = ask(home, storage, lambda archive: steering.templates(archive, run, everything=all))
        say(found, as_json, template_tables.listed)


@app.command()
def tree(
    run: MaybeRun = None,
    svg: Annotated[Path | None, typer.Option(help="Draw all of it here, as a picture.")] = None,
    all: All = False,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """Who came from whom: the living and all they came from. With --json all templates, as nodes and edges."""
    from grpo_ray import lineage, steering, template_tables
    from grpo_ray.lineage_picture import picture

    with told():
        found = ask(home, storage, lambda archive: steering.tree(archive, run))
        whole: lineage.Tree = {"nodes": found["nodes"], "edges": found["edges"]}
        if svg is not None:
            _write(svg, str(picture(whole, f"Templates of {found['run_id']}: who came from whom")))
        seen = whole if all else lineage.family(whole)
        say(found, as_json, lambda value: template_tables.tree({**value, **seen}))


def _write(path: Path, text: str) -> None:
    try:
        path.expanduser().write_text(text, "utf-8")
    except OSError as fault:
        raise ConfigError(f"can't write {path}: {fault.strerror}; choose another file") from fault


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A template's id, or its unique beginning.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another's.")],
    run: Newest = None,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """What changes from one template to another, word by word."""
    from grpo_ray import steering, template_tables

    with told():
        say(ask(home, storage, lambda archive: steering.diff(archive, a, b, run)), as_json, template_tables.diff)


@app.command()
def export(
    file: Prompts,
    run: MaybeRun = None,
    all: Annotated[bool, typer.Option("--all", help="Every template that ever lived.")] = False,
    best: Annotated[int | None, typer.Option(min=1, help="Only so many of each task type, the fittest.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """Write the living templates as a prompts.json, which starts another run: --set prompts=FILE."""
    from grpo_ray import steering, terminal

    with told():
        if all and best is not None:
            raise ConfigError("--all takes every template, --best the fittest; give one of them")
        wanted = {"everything": all, "best": best, "overwrite": force}
        found = ask(home, storage, lambda archive: steering.export(archive, file, run, **wanted))
        say(found, as_json, lambda value: terminal.facts("exported", value))


@app.command(name="import")
def import_(
    file: Prompts,
    run: MaybeRun = None,
    why: Why = "",
    again: Annotated[bool, typer.Option("--again", help="Let templates live again that the run has retired.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come in; change nothing.")] = False,
    as_json: Json = False,
    home: Home = HOME,
    storage: Storage = STORAGE,
) -> None:
    """Let what is new in a prompts.json into a run. Where the file has any problem, nothing changes."""
    from grpo_ray import steering, terminal

    with told():
        how = {"who": WHO, "why": why, "again": again, "dry_run": dry_run}
        found = ask(home, storage, lambda archive: steering.import_templates(archive, file, run, **how))
        say(found, as_json, lambda value: terminal.facts("import", value))


@app.command()
def pin(
    id: Id, run: MaybeRun = None, why: Why = "", as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE
) -> None:
    """Keep a template, whatever it comes to."""
    from grpo_ray import steering

    _wish(steering.pin, id, run, why, as_json, home, storage)


@app.command()
def unpin(
    id: Id, run: MaybeRun = None, why: Why = "", as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE
) -> None:
    """Let a pinned template go the way of all others."""
    from grpo_ray import steering

    _wish(steering.unpin, id, run, why, as_json, home, storage)


@app.command()
def retire(
    id: Id, run: MaybeRun = None, why: Why = "", as_json: Json = False, home: Home = HOME, storage: Storage = STORAGE
) -> None:
    """Take a template out of the population; the last one for its tasks stays."""
    from grpo_ray import steering

    _wish(steering.retire, id, run, why, as_json, home, storage)


def _wish(
    change: Callable[..., Awaitable[dict[str, Any]]],
    id: str,
    run: str | None,
    why: str,
    as_json: bool,
    home: str,
    storage: str,
) -> None:
    from grpo_ray import terminal

    with told():
        found = ask(home, storage, lambda archive: change(archive, id, run, who=WHO, why=why))
        say(found, as_json, partial(terminal.facts, found["template"]))
