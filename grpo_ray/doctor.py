"""What can be wrong before a run: the machine, the folder, the model, the endpoint, the database, the config's files.

Every check is a value with the way out; a check never raises for what it looks for.
"""

import ctypes.util
import os
import platform
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import DisabledRepoError, HFValidationError, RepositoryNotFoundError

from grpo_ray.backends import LIGHT
from grpo_ray.errors import ConfigError, GrpoRayError, MissingError, UnreachableError
from grpo_ray.launch import load_inputs, open_archive
from grpo_ray.llm.addresses import is_local, known_key, shown
from grpo_ray.recipe import Config, OracleSpec, Placement, Recipe
from grpo_ray.secrets_file import NAME as SECRETS
from grpo_ray.secrets_file import read_secrets

GIB = 1024**3
PATIENCE_S = 10.0
NEAR_DAYS = 90
"""How near an announced end is worth a word."""
NANO = Path(__file__).parent / "nano"
SAMPLER = "openai_compatible"
"""The generator that asks an endpoint for rollouts."""
HOME_FIX = "choose a folder of yours with --home or placement.home"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `fix` says what to do where `ok` is false, or what would make it faster."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Keys:
    """Where a config names an endpoint."""

    name: str
    """Of the check."""
    base_url: str
    model: str
    api_key_env: str


JUDGED = Keys("endpoint", "oracle.base_url", "oracle.model", "oracle.api_key_env")
SAMPLED = Keys("generator", *(f"generator.settings.{key}" for key in ("base_url", "served_model", "api_key_env")))


def endpoints(recipe: Recipe) -> Iterator[tuple[OracleSpec, Keys]]:
    """The endpoints that a run asks: for judging and rewriting, and, where no model of ours samples, for rollouts."""
    yield recipe.oracle, JUDGED
    for name, oracle in recipe.oracles.items():
        keys = (f"oracles.{name}.{key}" for key in ("base_url", "model", "api_key_env"))
        yield oracle, Keys(f"oracle {name}", *keys)
    if recipe.generator.name == SAMPLER:
        given = recipe.generator.settings
        model, key = given.get("served_model") or recipe.model, given.get("api_key_env", "OPENAI_API_KEY")
        yield OracleSpec(base_url=given["base_url"], model=model, api_key_env=key), SAMPLED


async def check_all(config: Config | None, home: str = "~/.grpo-ray") -> AsyncIterator[Check]:
    """The machine's checks, then, with a config, those of its model, endpoint, database and files; one by one."""
    place = config.placement if config else Placement(home=home)
    for check in (check_mlx(), check_compiler(), check_blas(), check_home(place.home), check_disk(place.home)):
        yield check
    yield check_memory(config.recipe.model if config else "bundled:nano")
    if config is None:
        return
    if loads_model(config.recipe):
        yield check_model(config.recipe.model)
    yield check_secrets(place.home)
    for endpoint, keys in endpoints(config.recipe):
        yield check_key(endpoint, keys)
        yield await check_endpoint(endpoint, keys)
    yield await check_database(place)
    yield check_inputs(config)


def check_mlx() -> Check:
    try:
        found = f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}"
    except PackageNotFoundError as missing:
        return Check("mlx", False, f"{missing.name} is not installed", "pip install mlx mlx-lm (see README)")
    return Check("mlx", True, f"{found} on {platform.system()} {platform.machine()}")


def check_compiler() -> Check:
    """MLX compiles fused functions on the CPU with g++ (on Apple Silicon it uses Metal instead)."""
    if platform.system() == "Darwin":
        return Check("compiler", True, "Metal needs none")
    found = shutil.which("g++")
    return Check("compiler", bool(found), found or "no g++", "" if found else "sudo apt-get install -y g++")


def check_blas() -> Check:
    """The Linux wheel of MLX links a reference BLAS; OpenBLAS, loaded before it, is many times faster."""
    if platform.system() == "Darwin":
        return Check("blas", True, "Accelerate")
    found = ctypes.util.find_library("openblas")
    fix = "" if found else "sudo apt-get install -y libopenblas0-pthread (without it, everything works, but slower)"
    return Check("blas", bool(found), found or "no OpenBLAS", fix)


def check_home(home: str) -> Check:
    """The folder for databases and tokens: ours to write, and nobody else's to read."""
    path = Path(home).expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".doctor-{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as fault:
        return Check("home", False, f"can't write {path}: {fault.strerror}", HOME_FIX)
    if (mode := path.stat().st_mode & 0o777) & 0o077:
        return Check("home", False, f"{path} is open to others (mode {mode:04o})", f"chmod 700 {path}")
    return Check("home", True, f"{path}, mode {mode:04o}")


def check_disk(home: str, need: float = 2.0) -> Check:
    """At least `need` GiB where rollouts and adapters are kept."""
    path = Path(home).expanduser()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free / GIB
    fix = "" if free >= need else f"free {need - free:.1f} GiB there, or set placement.home to another disk"
    return Check("disk", free >= need, f"{free:.1f} GiB free at {path}", fix)


def check_memory(model: str) -> Check:
    """Weights for generator and trainer each, and 1 GiB for everything else; against all memory of the machine."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    folder = _model_folder(model)
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / GIB if folder else 0.0
    need = 1.0 + 2 * weights
    known = "" if weights else " (the model's size is not known yet)"
    fix = "" if total >= need else "choose a smaller or more strongly quantised model"
    return Check("memory", total >= need, f"{total:.1f} GiB, about {need:.1f} needed{known}", fix)


def loads_model(recipe: Recipe) -> bool:
    """Whether a backend of the recipe loads its model on a machine of ours."""
    backends = [recipe.generator, *([recipe.trainer] if recipe.trainer else [])]
    return any(backend.name not in LIGHT for backend in backends)


def check_model(model: str) -> Check:
    """A folder mlx-lm can read, or a hub name that is cached or can be downloaded."""
    try:
        return Check("model", True, find_model(model))
    except (MissingError, UnreachableError) as fault:
        detail, _, fix = str(fault).rpartition("; ")
        return Check("model", False, detail, fix)


def find_model(model: str) -> str:
    """In words, where a model is. Raises MissingError, or UnreachableError where the hub can't be asked for it."""
    if folder := _model_folder(model):
        missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).exists()]
        if missing or not list(folder.glob("*.safetensors")):
            lacks = ", ".join(missing or ["*.safetensors"])
            raise MissingError(f"{folder} has no {lacks}; give the folder of a model mlx-lm can load")
        return f"{model}: {folder}"
    if model.startswith((".", "/", "~", "bundled:")) or model.count("/") != 1:
        raise MissingError(f"no folder {model}; set model to an existing folder, or a name like org/model")
    try:
        HfApi().model_info(model, timeout=PATIENCE_S)
    except (HFValidationError, RepositoryNotFoundError, DisabledRepoError) as fault:
        raise MissingError(f"{model} is neither here nor on the hub: {_first(fault)}; check its name") from fault
    except (httpx2.HTTPError, OSError) as fault:
        raise UnreachableError(
            f"{model} is not here, and the hub can't be asked for it: {_first(fault)}; check the network, "
            "or set model to a local folder"
        ) from fault
    return f"{model}: on the hub, downloaded at the first run"


def _first(fault: Exception) -> str:
    """The first line of what a fault says."""
    return next(iter(str(fault).strip().splitlines()), "") or type(fault).__name__


def _model_folder(model: str) -> Path | None:
    """Where a model lies on this machine, if it does."""
    if model == "bundled:nano":
        return NANO
    if (path := Path(model).expanduser()).is_dir():
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        return None
    try:
        cached = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def check_secrets(home: str) -> Check:
    """The file of API keys, whose lines are in this process's environment afterwards."""
    path = Path(home).expanduser() / SECRETS
    try:
        read_secrets(home)
    except ConfigError as fault:
        return Check("secrets", False, *str(fault).split("; ", 1))
    return Check("secrets", True, str(path) if path.exists() else f"no {path}: keys are those of the environment")


def check_key(oracle: OracleSpec, keys: Keys = JUDGED) -> Check:
    if oracle.base_url == "bundled":
        return Check("key", True, "the bundled stand-in needs none")
    key = known_key(oracle.base_url, oracle.api_key_env)
    if key == "none":
        return Check("key", True, "a server on this machine mostly needs none")
    if key:
        return Check("key", True, f"${oracle.api_key_env} is set")
    fix = (
        f"export {oracle.api_key_env}=…, or write that line into {SECRETS} in placement.home (mode 600), "
        f"or name another variable in {keys.api_key_env}"
    )
    return Check("key", False, f"${oracle.api_key_env} is not set", fix)


async def check_endpoint(oracle: OracleSpec, keys: Keys = JUDGED) -> Check:
    """GET {base_url}/models, as every OpenAI-compatible server answers it; and whether it knows the model."""
    if oracle.base_url == "bundled":
        return Check(keys.name, True, "the bundled stand-in: it is no real judge", f"set {keys.base_url} for real work")
    url = shown(_models_url(oracle))
    try:
        answer = await _ask(oracle, keys)
        answer.raise_for_status()
        models = {one["id"]: one for one in answer.json()["data"]}
    except UnreachableError as fault:
        return Check(keys.name, False, *str(fault).split("; ", 1))
    except httpx2.HTTPStatusError as fault:
        return Check(keys.name, False, f"{url}: HTTP {fault.response.status_code}", "base_url mostly ends in /v1")
    except (ValueError, KeyError, TypeError) as fault:
        return Check(keys.name, False, f"{url} is no list of models ({fault!r})", "base_url mostly ends in /v1")
    if oracle.model not in models:
        known = ", ".join(sorted(models)[:5]) or "none"
        return Check(keys.name, False, f"{url} has no model {oracle.model!r}", f"set {keys.model}; it has: {known}")
    return _ending(models[oracle.model], f"{url} has {oracle.model}", keys)


def _ending(model: Mapping[str, Any], what: str, keys: Keys) -> Check:
    """Whether the model's end is announced, and how near it is."""
    left = days_left(model)
    if left is None:
        return Check(keys.name, True, what)
    ends = f"{what}, until {model['shutdown_date']}"
    if left < 0:
        return Check(keys.name, False, ends, f"it is past its end; set {keys.model} to another")
    return Check(keys.name, True, ends, f"set {keys.model} to another by then" if left < NEAR_DAYS else "")


def days_left(model: Mapping[str, Any]) -> int | None:
    """Days to a listed model's `shutdown_date` (ISO 8601), below 0 when it is past; None where none is announced."""
    try:
        return (date.fromisoformat(str(model.get("shutdown_date"))[:10]) - date.today()).days
    except ValueError:
        return None


async def check_reachable(recipe: Recipe) -> None:
    """What a run can't begin without. Raises MissingError or UnreachableError, with what to do.

    An endpoint that answers, but lists no models, is let through: not every server has such a list.
    """
    if loads_model(recipe):
        find_model(recipe.model)
    for endpoint, keys in endpoints(recipe):
        if not (key := check_key(endpoint, keys)).ok:
            raise MissingError(f"{key.detail}; {key.fix}")
        if endpoint.base_url == "bundled":
            continue
        answer = await _ask(endpoint, keys)
        if answer.status_code in (401, 403):
            refused = f"{shown(_models_url(endpoint))} refuses the key (HTTP {answer.status_code})"
            raise UnreachableError(f"{refused}; {_endpoint_fix(endpoint, keys)}")
        if (ended := _ended(answer, endpoint.model)) is not None:
            raise MissingError(
                f"{endpoint.model} ended on {ended}, says {shown(_models_url(endpoint))}; set {keys.model}"
            )


def _ended(answer: httpx2.Response, model: str) -> str | None:
    """The date on which the model ended, if the list of models says so."""
    try:
        listed = next((one for one in answer.json()["data"] if one["id"] == model), {})
        return listed["shutdown_date"] if (days_left(listed) or 0) < 0 else None
    except (ValueError, KeyError, TypeError):  # not every server has such a list
        return None


def _models_url(oracle: OracleSpec) -> str:
    return oracle.base_url.rstrip("/") + "/models"


async def _ask(oracle: OracleSpec, keys: Keys) -> httpx2.Response:
    url, key = _models_url(oracle), known_key(oracle.base_url, oracle.api_key_env) or "none"
    try:
        async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=not is_local(url)) as client:
            return await client.get(url, headers={"Authorization": f"Bearer {key}"})
    except (httpx2.HTTPError, httpx2.InvalidURL) as fault:
        raise UnreachableError(f"{shown(url)}: {_first(fault)}; {_endpoint_fix(oracle, keys)}") from fault


def _endpoint_fix(oracle: OracleSpec, keys: Keys) -> str:
    if is_local(oracle.base_url):
        return f"start the server (LM Studio, mlx_lm.server, vLLM …) or correct {keys.base_url}"
    return f"check {keys.base_url}, the network and ${oracle.api_key_env}"


async def check_database(place: Placement) -> Check:
    """Opens the storage, and closes it again."""
    try:
        archive = await open_archive(place)
        count = len(await archive.runs())
        await archive.close()
    except (GrpoRayError, OSError) as fault:
        return Check("database", False, str(fault), "see placement.storage: embedded, or postgresql://… with pgvector")
    return Check("database", True, f"{urlsplit(place.storage).scheme or place.storage}, {count} runs")


def check_inputs(config: Config) -> Check:
    """The prompt library and the tasks, read as a run would."""
    try:
        inputs = load_inputs(config)
    except GrpoRayError as fault:
        return Check("inputs", False, str(fault), "correct the files it names")
    tasks = inputs.tasks
    counts = f"{len(tasks.train)} train, {len(tasks.validation)} validation, {len(tasks.heldout)} held-out"
    return Check("inputs", True, f"{len(inputs.templates)} templates, tasks: {counts}")
