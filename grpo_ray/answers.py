"""The final answer of a completion: what a verifier looks at, and what a reader would take for the answer."""

import re

_MARKED = re.compile(r"answer\s*:[*_`\s]*?([^\n]*)", re.IGNORECASE)
_MARKED_START = re.compile(r"answer\s*:", re.IGNORECASE)
VERIFIED = "verified"
"""The dimension that verifiers speak on: whether the answer is right."""
THOUGHT = "</think>"
"""Closes what a thinking model says to itself; its answer comes after."""
_DECORATION = " \t\r*_`$"


def marked_answer(text: str) -> str | None:
    """What follows the last `Answer:` on its line (or, where that is empty, on the next full line); None without one."""
    said = spoken(text)
    found = list(_MARKED.finditer(said))
    if not found:
        return None
    here = found[-1][1].strip(_DECORATION)
    return here or _first_line(said[found[-1].end() :])


def final_answer(text: str) -> str:
    """The marked answer, else the last non-empty line, without surrounding blanks and Markdown marks."""
    marked = marked_answer(text)
    return marked if marked is not None else _first_line("\n".join(reversed(spoken(text).splitlines())))


def after_mark(text: str) -> str:
    """All that follows the last `Answer:`, for answers of several lines; the whole text without one."""
    return _MARKED_START.split(spoken(text))[-1].strip()


def spoken(text: str) -> str:
    """What follows a thinking model's thoughts; the whole text of another one."""
    return text.rpartition(THOUGHT)[2]


def _first_line(text: str) -> str:
    stripped = (line.strip(_DECORATION) for line in text.splitlines())
    return next((line for line in stripped if line), "")
