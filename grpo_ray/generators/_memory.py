"""How much memory a wave's caches may take on this machine, and how much they will.

Both follow from token counts, the model and the machine's size, never from what is free at the moment: so the same wave
is cut up in the same way whenever this machine samples it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_ray.mlx_core import mx

SHARE = 0.5
"""Of what the weights leave of the memory: the other half is for a trainer on the same machine, and all the rest."""
FREE_SHARE = 0.8
STEP = 256
"""Tokens by which mlx-lm's caches grow."""
AHEAD = 2
"""Tokens that a row is fed beyond those it keeps: one is under way while the last is looked at."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""What a container may take, in both versions of cgroups. https://docs.kernel.org/admin-guide/cgroup-v2.html"""
MEMINFO = "/proc/meminfo"
UNCOMPRESSED = ("deepseek_v2", "minicpm3", "youtu_llm")
"""Models of mlx-lm with latent attention that keep whole keys and values all the same."""


@dataclass(frozen=True, slots=True)
class Room:
    """`budget` bytes for the caches of a wave; `a_token` bytes are what one token of one sequence takes."""

    budget: int
    a_token: int

    def takes(self, rows: int, long: int, left: int, prompts: int = 0) -> int:
        """Bytes that a batch of `rows` sequences grows to, beside `prompts` tokens of prompts kept by themselves.

        A batch is as wide as its longest sequence, of `long` tokens now, and gets `left` more before one falls out.
        """
        return self.a_token * (rows * (long + rounded(left + AHEAD)) + prompts)

    def holds(self, rows: int, long: int, left: int, prompts: int = 0) -> bool:
        """Whether the budget is enough for that. A negative one holds nothing that takes any."""
        return self.takes(rows, long, left, prompts) <= max(0, self.budget)


NO_LIMIT = Room(0, 0)


def rounded(tokens: int) -> int:
    """The size of a cache that was begun empty, in tokens."""
    return -(-tokens // STEP) * STEP


def kv_bytes(config: Mapping[str, Any], layers: int, size: int) -> int:
    """Bytes that one token of one sequence takes in the caches.

    `config` is the model's (its text part), `layers` how many keep keys and values, `size` the bytes of a number.
    Latent attention (DeepSeek-V3, arXiv 2412.19437) keeps one compressed vector and one rotated key a layer. 0 where
    the config doesn't tell: of such a model nothing is known, so nothing is held back.
    """
    heads = _number(config, "num_attention_heads")
    kept = _number(config, "num_key_value_heads") or heads
    rank, turned = _number(config, "kv_lora_rank"), _number(config, "qk_rope_head_dim")
    if rank and config.get("model_type") not in UNCOMPRESSED:
        return layers * (rank + turned) * size
    if rank:
        return layers * heads * (_number(config, "qk_nope_head_dim") + turned + _number(config, "v_head_dim")) * size
    width = _number(config, "head_dim") or _number(config, "hidden_size") // max(1, heads)
    return layers * kept * 2 * width * size


def _number(config: Mapping[str, Any], name: str) -> int:
    """A number of a config; of a list, which has one a layer, the largest; 0 where there is none."""
    value = config.get(name) or 0
    return int(max(value) if isinstance(value, list) else value)


def machine_bytes(limits: Sequence[str] = LIMITS) -> int:
    """The memory that a model may use here: what Metal recommends, or the machine's, or its container's."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    said = [Path(limit).read_text().strip() for limit in limits if Path(limit).exists()]
    return min([whole, *(int(limit) for limit in said if limit.isdecimal())])


def free_bytes(meminfo: str = MEMINFO) -> int | None:
    """What Linux says may still be taken at this moment, less a reserve; None where it doesn't say (on a Mac)."""
    if not Path(meminfo).exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path(meminfo).read_text(), re.MULTILINE)
    return int(FREE_SHARE * int(found[1]) * 1024) if found else None
