"""What every client of an OpenAI-compatible endpoint goes by: whose machine it is on, which key it gets, what can be sent."""

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from grpo_ray.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_local(url: str) -> bool:
    """Whether `url` names this machine: no proxy stands before it, and it mostly needs no key."""
    return host(url) in LOOPBACK


def host(url: str) -> str:
    return urlsplit(url).hostname or ""


def find_key(url: str, variable: str, setting: str) -> str:
    """The key for `url`, from the environment variable `variable`, which `setting` of the config names.

    None is needed on loopback, and OpenAI's own is not shown to a server there. Raises ConfigError without one.
    """
    if (key := known_key(url, variable)) is None:
        raise ConfigError(f"{shown(url)} needs a key: export {variable}=…, or name another variable in {setting}")
    return key


def known_key(url: str, variable: str) -> str | None:
    """As `find_key`; None where one is needed and there is none."""
    key = os.environ.get(variable, "").strip()
    if is_local(url) and (not key or variable == "OPENAI_API_KEY"):
        return "none"
    return key or None


SECRET = 8
"""Characters from which a key is worth hiding: `none` is not."""


def hidden(text: str, key: str) -> str:
    """`text` without a key that an endpoint repeated in it: errors become rationales, which are kept."""
    return text.replace(key, "…") if len(key) >= SECRET else text


def shown(url: str) -> str:
    """`url` without the name and password that may stand before its host."""
    return re.sub(r"^([a-z][a-z0-9+.-]*://)[^/?#]*@", r"\1", url, flags=re.IGNORECASE)


def sendable(text: str) -> str:
    """Lone surrogates can't be sent as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def brief(what: object, limit: int = 300) -> str:
    """What a server or a fault says, on one line of at most `limit` characters."""
    text = " ".join(str(what).split())
    return text if len(text) <= limit else text[:limit] + " …"


LONGEST_S = 120.0
"""How long a server may ask to be left alone, at most."""


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that a reply asks to wait before the next try (RFC 9110, 10.2.3; `retry-after-ms` goes first); 0: none."""
    text = headers.get("retry-after", "")
    milliseconds = _number(headers.get("retry-after-ms", ""))
    seconds = _number(text) if milliseconds is None else milliseconds / 1000
    return min(LONGEST_S, max(0.0, _until(text) if seconds is None else seconds))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _until(text: str) -> float:
    """The seconds until an HTTP date; 0 where it is none. One that names no zone is in UTC, as all of them are."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
