"""What a mutation need not propose again."""

from collections.abc import Sequence

from grpo_ray.prompting import content_hash
from grpo_ray.types import Parent


def known(parents: Sequence[Parent]) -> set[str]:
    """Content hashes of the given parents, and of what the first one's family has been refused or retired."""
    rejected = {id.rpartition("~")[2] for id, _ in parents[0].rejected}
    return {content_hash(parent.template) for parent in parents} | rejected
