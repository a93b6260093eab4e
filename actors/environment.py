"""What Ray reads from the environment while it is imported; import this before `ray`. What a user has set stays."""

import os

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # unset, local and remote clients guess differently
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # a driver under `uv run` would make every worker resolve packages again
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # actors without GPUs of Ray's keep CUDA_VISIBLE_DEVICES as it is
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "OPENBLAS_NUM_THREADS": "1",  # the thread count is part of what the numbers depend on
    "OMP_NUM_THREADS": "1",
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

NUMERIC = {name: os.environ[name] for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
"""What actors' processes must share with the driver's; holds no secret, because Ray's Jobs API shows it to anyone."""
