"""What can go wrong for a person, named so that the message says what to do next.

Anything else that is raised is a bug, and stops the run with a traceback.
"""


class GrpoRayError(Exception):
    """A fault a person can mend: one message, shown without a traceback."""


class ConfigError(GrpoRayError):
    """A config, a prompt library or a task file is wrong; the message lists every problem found."""


class MissingError(GrpoRayError):
    """Something named does not exist: a run, a template, a model path, a backend."""


class UnreachableError(GrpoRayError):
    """A judge, a database or a cluster does not answer; the message says which, and what to start."""


class RecipeChanged(GrpoRayError):
    """A run was asked to resume under another recipe than the one it began with."""


class RunLocked(GrpoRayError):
    """Another process is at work on this run."""


class OutOfMoney(GrpoRayError):
    """The money that a door may cost is spent, and nobody is waited for; no mark counts as missing by it."""


class OracleError(GrpoRayError):
    """An endpoint gave up after its retries, or refused: the caller records a missing value."""
