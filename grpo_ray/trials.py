"""What evolution learns from: one template on one task in one step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trial:
    """The mean reward of one template's rollouts on one task in one step."""

    template: str
    task: str
    task_type: str
    step: int
    value: float
    """In the reward's unit."""
    count: int
    """Rollouts with a reward; at least one."""
