"""MLX, and mlx-lm, imported the way they have to be: every room that uses them imports this one first.

On Linux the `mlx` wheel links the reference BLAS, and OpenBLAS must be in the process first to take its place (one
product of 4096×256×768: 498 → 13 ms).
"""

import ctypes
import os
import resource
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's names of what `mallopt` sets."""


def _preload_blas() -> str:
    """Put OpenBLAS in front of the reference BLAS; returns the name of the BLAS that MLX will use on the CPU."""
    if sys.platform != "linux":
        return "system"
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # more threads were slower under load, and move the last bits
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return "reference"
    return "openblas"


def _keep_memory() -> None:
    """Let glibc keep what MLX frees, up to 1 GiB, for its next array: fresh pages cost more than most operations.

    (exp of 2 million numbers: 34 ms without, 5 ms with it. MLX on a CPU has no cache of its own.)
    """
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "mallopt"):
        return
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
    libc.mallopt(M_MMAP_MAX, 0)


def _keep_hard_limit(kind: int, limits: tuple[int, int]) -> None:
    """In place of setrlimit while mlx-lm is imported: it lowers the hard limit on open files, for good."""
    soft, hard = resource.getrlimit(kind)
    if soft < limits[0]:
        _setrlimit(kind, (limits[0] if hard == resource.RLIM_INFINITY else min(limits[0], hard), hard))


BLAS = _preload_blas()
_keep_memory()
_setrlimit, resource.setrlimit = resource.setrlimit, _keep_hard_limit
try:
    import mlx.core as mx
    import mlx_lm  # noqa: F401  (here and now, under the guard; other rooms import its parts)
finally:
    resource.setrlimit = _setrlimit


def numbers(array: mx.array) -> Any:
    """The values as Python's own numbers: nested lists, or one number where there are no axes."""
    return array.tolist()


def alike(ours: mx.array, theirs: mx.array) -> bool:
    """Whether two readings of the same tokens differ by no more than rounding does, for the precision they have."""
    share = 1e-3 if ours.dtype == mx.float32 else 5e-2
    return numbers(mx.abs(ours - theirs).max() <= share * mx.abs(theirs).max())


BREAKDOWNS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError)
"""What a model of mlx-lm's raises that can't be read in the way that is asked, or for which memory ran out."""
