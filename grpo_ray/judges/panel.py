"""Several models asked the same as one judge; where their marks lie apart, a stronger one decides, and then people.

A few small models of different families, their marks pooled, come nearer to people's verdicts than one large model,
and prefer answers of their own kind less, for their leanings differ and cancel (PoLL: Verga et al. 2024,
arXiv 2404.18796). What they can't cancel is a bias that all of them share.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any, Literal

from grpo_ray.errors import ConfigError
from grpo_ray.judges._asking import knows_order, marked, settled, unmarked
from grpo_ray.protocols import Oracle
from grpo_ray.types import Evaluation, Group

MAIN = "main"
"""How the member "" is called: the oracle that the panel itself is given."""
DISAGREE = "members disagree: "
FOR_PEOPLE = "; for people to look at. "
"""A rationale that begins with DISAGREE, some marks and this was settled by nobody (see `disputes`)."""
QUOTED = 200
"""Characters of each member's rationale that the panel's repeats; the whole stands in the member's own evaluation."""
ROUNDING = 1e-9
_DISPUTE = re.compile(f"{re.escape(DISAGREE)}(.*?){re.escape(FOR_PEOPLE)}")
Key = tuple[str, str]
"""(rollout id, dimension)"""
Heard = Mapping[str, Sequence[Evaluation]]
"""Member → what it said."""
Spoken = Mapping[str, Evaluation]
"""Member → what it said of one rollout on one dimension."""
Combine = Literal["mean", "median"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How members' marks become one."""

    name: str
    combine: Combine
    agree_within: float
    minimum: int


@dataclass(frozen=True, slots=True)
class Dispute:
    """Marks of one rollout on one dimension that lie too far apart, and that no stronger judge settled."""

    rollout_id: str
    judge: str
    dimension: str
    marks: tuple[tuple[str, float], ...]
    """(member, its score)"""


async def judge(
    group: Group,
    oracle: Oracle,
    *,
    members: Sequence[str],
    judge: str = "rubric",
    settings: Mapping[str, Any] | None = None,
    stronger: str = "",
    combine: Combine = "mean",
    agree_within: float = 0.25,
    minimum: int = 2,
    name: str = "panel",
    order: int = 0,
) -> list[Evaluation]:
    """One evaluation a rollout and dimension as `name`, 0 to 1; then each member's own, as `name/MEMBER`.

    `members` are names of `oracles` ("": the one that this judge is given), each asked as `judge` with `settings`. The
    mean (or median) of the members that gave a score counts; fewer than `minimum` leave it missing. Where two members
    are more than `agree_within` apart, `stronger` is asked for that rollout, and its mark counts instead. Raises
    ConfigError for a name that is not among the oracles; never raises for an OracleError.
    """
    if order and not knows_order(judge):
        return unmarked(group, name, "all", f"the judge {judge!r} knows no other order to ask in")
    asked = {member or MAIN: oracle.at(member) if member else oracle for member in members}
    above = oracle.at(stronger) if stronger else None
    said = await asyncio.gather(*(marked(judge, settings, group, one, order) for one in asked.values()))
    heard = {member: _as(f"{name}/{member}", some) for member, some in zip(asked, said, strict=True)}
    rule = Rule(name, combine, agree_within, minimum)
    final: list[Evaluation] = []
    table = _by_key(heard)
    apart = {key[0] for key, spoken in table.items() if _lie_apart(_scores(spoken), rule)}
    if above and apart:
        disputed = replace(group, rollouts=tuple(r for r in group.rollouts if r.id in apart))
        final = _as(f"{name}/{stronger}", await marked(judge, settings, disputed, above, order))
    decided = {(one.rollout_id, one.dimension): one for one in final}
    combined = [_combined(key, spoken, decided.get(key), rule) for key, spoken in table.items()]
    return [*combined, *(one for some in heard.values() for one in some), *final]


def check_settings(
    *,
    members: Sequence[str],
    judge: str = "rubric",
    settings: Mapping[str, Any] | None = None,
    stronger: str = "",
    agree_within: float = 0.25,
    minimum: int = 2,
    order: int = 0,
    **_: object,
) -> None:
    """Raise ConfigError for members that are no panel, and for a judge or settings of it that can't be."""
    if judge == "panel":
        raise ConfigError("judge: a panel's members can't be panels; name the judge that each of them is asked as")
    settled(judge, settings)
    problems = [] if len(set(members)) > 1 else ["members: a panel needs at least two different oracles"]
    if len(set(members)) < len(members):
        problems.append("members: names one twice; its replies would be the same")
    if MAIN in members:
        problems.append(f"members: {MAIN!r} is what the judge's own oracle is called here; it is named ''")
    if stronger and stronger in members:
        problems.append(f"stronger: {stronger!r} is a member; it can't judge over itself")
    if not 1 <= minimum <= len(members):
        problems.append(f"minimum: {minimum} is out of bounds; there are {len(members)} members")
    if not 0 <= agree_within <= 1:
        problems.append(f"agree_within: {agree_within} is out of bounds; scores go from 0 to 1")
    if order and not knows_order(judge):
        problems.append(f"order: the judge {judge!r} knows no other order")
    if problems:
        raise ConfigError("\n".join(problems))


def named(*, members: Sequence[str] = (), stronger: str = "", **_: object) -> list[tuple[str, str]]:
    """(setting, oracle) for each of the recipe's `oracles` that these settings name."""
    named = [(f"members.{place}", member) for place, member in enumerate(members)]
    return [(setting, oracle) for setting, oracle in [*named, ("stronger", stronger)] if oracle]


def disputes(evaluations: Iterable[Evaluation]) -> list[Dispute]:
    """What a panel leaves to people: marks that lie apart, and that nobody above the members settled.

    Only a panel's combined evaluations are read; in a member's own the same words would be a model's.
    """
    told = list(evaluations)
    panels = {one.judge.rpartition("/")[0] for one in told}
    found = ((one, _DISPUTE.match(one.rationale)) for one in told if one.judge in panels)
    return [Dispute(one.rollout_id, one.judge, one.dimension, _marks_in(match[1])) for one, match in found if match]


def _marks_in(words: str) -> tuple[tuple[str, float], ...]:
    parts = (part.rpartition(" ") for part in words.split(", "))
    return tuple((member, float(score)) for member, _, score in parts)


def _as(judge: str, said: Iterable[Evaluation]) -> list[Evaluation]:
    return [replace(one, judge=judge) for one in said]


def _by_key(heard: Heard) -> dict[Key, dict[str, Evaluation]]:
    """Everything that a member spoke of, in the order of the first that did."""
    table: dict[Key, dict[str, Evaluation]] = {}
    for member, some in heard.items():
        for one in some:
            table.setdefault((one.rollout_id, one.dimension), {})[member] = one
    return table


def _scores(spoken: Spoken) -> dict[str, float]:
    return {member: one.score for member, one in spoken.items() if one.score is not None}


def _lie_apart(scores: Mapping[str, float], rule: Rule) -> bool:
    if len(scores) < rule.minimum:
        return False
    return max(scores.values()) - min(scores.values()) > rule.agree_within + ROUNDING


def _combined(key: Key, spoken: Spoken, final: Evaluation | None, rule: Rule) -> Evaluation:
    """The panel's one mark, and the members' words in short."""
    heard = {**spoken, **({final.judge.removeprefix(f"{rule.name}/"): final} if final else {})}
    score, verdict, by = _verdict(spoken, final, rule)
    words = "; ".join(f"{member}: {_short(one.rationale)}" for member, one in heard.items())
    models = " + ".join(dict.fromkeys(one.model for one in by if one.model))
    stand_in = any(one.stand_in for one in heard.values())
    return Evaluation(key[0], rule.name, key[1], score, f"{verdict}{words}", models, stand_in)


def _verdict(spoken: Spoken, final: Evaluation | None, rule: Rule) -> tuple[float | None, str, Sequence[Evaluation]]:
    """The mark, how it came about (`disputes` counts on these words being the first), and whose marks it rests on."""
    scores = _scores(spoken)
    by = [spoken[member] for member in scores]
    if len(scores) < rule.minimum:
        return None, f"{len(scores)} of the members gave a score, {rule.minimum} are needed. ", by
    told = ", ".join(f"{member} {score:g}" for member, score in scores.items())
    middle = (fmean if rule.combine == "mean" else median)(scores.values())
    if not _lie_apart(scores, rule):
        return middle, f"{rule.combine} of {told}. ", by
    if final is None or final.score is None:
        return middle, f"{DISAGREE}{told}{FOR_PEOPLE}", by
    return final.score, f"{DISAGREE}{told}; a stronger one decides. ", [final]


def _short(words: str) -> str:
    return words if len(words) <= QUOTED else f"{words[: QUOTED - 1]}…"
