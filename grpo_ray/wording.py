"""What pydantic finds wrong with a value, in words for a person: what should stand there, and what does."""

from typing import Any

EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "string": "text",
    "bool": "true or false",
    "dict": "a mapping",
    "mapping": "a mapping",
    "tuple": "a list",
    "list": "a list",
    "sequence": "a list",
    "dataclass": "a mapping with `name`, and `settings` where it has some",
}
"""The beginning of pydantic's name of an error → what should stand there."""


def worded(kind: str, message: str, given: Any) -> str:
    """One of pydantic's errors, by its type, message and input: `expected a number, got 'abc'`."""
    expected = next((words for start, words in EXPECTED.items() if kind.startswith(start)), "")
    if kind.startswith("literal"):
        return f"expected {message.removeprefix('Input should be ')}, got {shown(given)}"
    if not expected:
        return f"{message[0].lower()}{message[1:]}, got {shown(given)}"
    return f"expected {expected}, got {shown(given)}"


def shown(value: Any) -> str:
    """A value of a config as a person would say it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else repr(value)
