"""How little a rollout's tokens would cost: a longer prompt and a longer answer both have their price."""

from collections.abc import Sequence
from math import inf

from grpo_ray.errors import ConfigError
from grpo_ray.types import Evaluation, Group, Rollout


def reward(
    rollout: Rollout,
    evaluations: Sequence[Evaluation],
    group: Group,
    *,
    usd_per_million: Sequence[float],
    limit_usd: float,
) -> float | None:
    """1 − spent / limit_usd, 0 from `limit_usd` on; missing where an endpoint told no token ids.

    Spent is what its tokens cost in US dollars at `usd_per_million` (a million in, a million out), the whole prompt for
    each rollout. What judges cost is not in it: that is known of their calls, not of a rollout.
    """
    spent = _usd(rollout, group, usd_per_million)
    return None if spent is None else max(0.0, 1.0 - spent / limit_usd)


def working(
    rollout: Rollout,
    evaluations: Sequence[Evaluation],
    group: Group,
    *,
    usd_per_million: Sequence[float],
    limit_usd: float,
) -> str:
    """The tokens and the price behind the value, in words."""
    spent = _usd(rollout, group, usd_per_million)
    if spent is None:
        return "the endpoint told no token ids"
    asked, said = len(group.prompt_token_ids), len(rollout.token_ids)
    price, answer = usd_per_million
    tokens = f"{asked} tokens in at ${price:g} and {said} out at ${answer:g} a million"
    return f"1 − ${spent:.6g} / ${limit_usd:g}{', at least 0' if spent > limit_usd else ''} ({tokens})"


def check_settings(*, usd_per_million: Sequence[float], limit_usd: float) -> None:
    """Raise ConfigError for anything but two prices of 0 or more, and for a limit that is not above 0."""
    found: list[str] = []
    if len(usd_per_million) != 2 or not all(0 <= price < inf for price in usd_per_million):
        found.append(f"usd_per_million: {list(usd_per_million)} must be two prices of 0 or more: tokens in, tokens out")
    if not 0 < limit_usd < inf:
        found.append(f"limit_usd: {limit_usd} is out of bounds; it must be above 0")
    if found:
        raise ConfigError("\n".join(found))


def _usd(rollout: Rollout, group: Group, usd_per_million: Sequence[float]) -> float | None:
    asked, said = len(group.prompt_token_ids), len(rollout.token_ids)
    price, answer = usd_per_million
    return (asked * price + said * answer) / 1e6 if asked and said else None
