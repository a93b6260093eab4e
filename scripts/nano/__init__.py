"""The parts of `scripts/make_nano.py`: what the bundled nano model is taught, and how it is measured.

On Linux the mlx wheel links a slow BLAS; OpenBLAS, loaded before mlx is imported, wins. So it is loaded here.
"""

import contextlib
import ctypes
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
with contextlib.suppress(OSError):
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
