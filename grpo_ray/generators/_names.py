"""What every generator calls its rollouts and its losses by: hashes of where they stand."""

from grpo_ray.canonical import digest, short
from grpo_ray.types import LostGroup, Prompt


def rollout_seed(seed: int, prompt_id: str, index: int) -> int:
    """The seed of one rollout: 63 bits of the digest of where it stands."""
    return int(digest([seed, prompt_id, index])[:16], 16) >> 1


def lost(prompt: Prompt, reason: str) -> LostGroup:
    """The prompt's group that no rollouts could be drawn for, and why."""
    return LostGroup(short("g", prompt.id), prompt, reason)
