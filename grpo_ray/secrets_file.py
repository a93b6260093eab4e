"""API keys kept beside the runs: the lines NAME=VALUE of `secrets.env`, put into this process's environment."""

import os
from pathlib import Path

from grpo_ray.errors import ConfigError

NAME = "secrets.env"


def read_secrets(home: str) -> None:
    """Put the lines NAME=VALUE of `home/secrets.env`, if there is one, into this process's environment.

    What the environment has already stays. So API keys never travel through Ray, whose Jobs API shows a runtime
    environment to anyone. Raises ConfigError when others can read the file, or we can't.
    """
    path = Path(home).expanduser() / NAME
    try:
        if not path.is_file():
            return
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others can read the keys in {path}; protect them with: chmod 600 {path}")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"can't read the keys in {path}: {fault}; each line is NAME=VALUE, the file yours") from fault
    for line in map(str.strip, lines):
        name, sign, value = (part.strip() for part in line.removeprefix("export ").partition("="))
        if sign and name and not line.startswith("#") and not os.environ.get(name):
            os.environ[name] = value.strip("\"'")
