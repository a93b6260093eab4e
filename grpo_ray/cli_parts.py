"""What every command is made of: options, how faults end a command, how an archive is asked, how a result is said."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grpo_ray.errors import ConfigError, GrpoRayError, MissingError, RecipeChanged

if TYPE_CHECKING:
    from grpo_ray.protocols import Archive
    from grpo_ray.recipe import Config

USAGE, FAULT, INTERRUPTED = 2, 1, 130

File = Annotated[Path, typer.Option("--config", "-c", help="The config file (see configs/).")]
MaybeFile = Annotated[Path | None, typer.Option("--config", "-c", help="A config file (see configs/).")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override one config key.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of what is named.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.")]
Home = Annotated[str, typer.Option(envvar="GRPO_RAY_HOME", help="Where runs are kept (placement.home).")]
Storage = Annotated[
    str, typer.Option(envvar="GRPO_RAY_STORAGE", help="embedded, or postgresql://… (placement.storage).")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Run id, or its unique beginning.")]
MaybeRun = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="Run id or its beginning; the newest run if absent.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="An id, or its unique beginning.")]
OfRun = Annotated[str | None, typer.Option("--run", help="The run it is of, where several have it.")]
Kind = Annotated[Literal["run", "template", "rollout", "adapter"], typer.Argument()]
Explained = Annotated[Literal["rollout"], typer.Argument()]
ON = "Templates are chosen on validation tasks, whichever split it is."
Split = Annotated[Literal["train", "validation", "heldout"], typer.Option(help=ON)]
Groups = Annotated[int | None, typer.Option(min=0, help="Groups to measure for a forecast; 0 measures none.")]
HOME, STORAGE = "~/.grpo-ray", "embedded"


@contextmanager
def told() -> Iterator[None]:
    """Faults a person can mend end in one message and an exit code; bugs keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except GrpoRayError as fault:
        raise _end([fault]) from None
    except BaseExceptionGroup as faults:
        mendable, rest = faults.split(GrpoRayError)
        if rest is not None or mendable is None:
            raise
        raise _end(list(_leaves(mendable))) from None


def _leaves(faults: BaseExceptionGroup[Any]) -> Iterator[GrpoRayError]:
    for fault in faults.exceptions:
        yield from _leaves(fault) if isinstance(fault, BaseExceptionGroup) else [fault]


def _end(faults: list[GrpoRayError]) -> typer.Exit:
    for message in dict.fromkeys(str(fault) for fault in faults):
        typer.echo(f"grpo-ray: {message}", err=True)
    mistaken = all(isinstance(fault, ConfigError | MissingError | RecipeChanged) for fault in faults)
    return typer.Exit(USAGE if mistaken else FAULT)


def say(value: Any, as_json: bool, look: Callable[[Any], Any]) -> None:
    """A result on stdout: JSON, or how `look` draws it."""
    from grpo_ray import terminal

    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
    else:
        terminal.console().print(look(value))


@asynccontextmanager
async def closing(archive: "Archive") -> "AsyncIterator[Archive]":
    try:
        yield archive
    finally:
        await archive.close()


def ask(home: str, storage: str, question: "Callable[[Archive], Awaitable[Any]]") -> Any:
    """What an operation answers over the archive, where there is one."""
    from grpo_ray.launch import open_kept
    from grpo_ray.recipe import Placement

    async def asked() -> Any:
        async with closing(await open_kept(Placement(home=home, storage=storage))) as archive:
            return await question(archive)

    return asyncio.run(asked())


def load(config: Path, sets: list[str] | None) -> "Config":
    """A config; where it doesn't say in which home and storage runs are kept, the environment does."""
    from grpo_ray.launch import placed
    from grpo_ray.settings import load_config

    return placed(load_config(config, sets or []), config, sets or [])
