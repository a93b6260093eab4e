"""What a judge report comes to, in plain words: which dimensions can be trusted, which say nothing, where to look."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from grpo_ray.trust.alarms import ITEMS, beyond

Numbers = Mapping[str, Any]
Worth = Literal["trusted", "not trusted", "says nothing", "unknown"]
ONE_SIDED = 0.95
"""A dimension with this share of its marks on one level says next to nothing."""
SAYS = {"not trusted": "can't be trusted", "says nothing": "says nothing", "unknown": "is unknown"}
CHANCE = 0.5
"""The AUC of a judge that can't tell right from wrong."""


def worth_of(dimension: Numbers, bar: float) -> dict[str, str]:
    """`worth` of one dimension and `why`, from its marks, its agreement and how it goes with verifiers.

    Trusted needs agreement at or above the bar over ITEMS rollouts, and verdicts, where there are any, not against it.
    """
    worth, why = _worth(dimension, bar)
    return {"worth": worth, "why": why}


def _worth(dimension: Numbers, bar: float) -> tuple[Worth, str]:
    top = max(dimension["distribution"], key=lambda one: one["count"], default=None)
    if top is None:
        return "unknown", "no mark was given"
    if silent := _silent(dimension["marks"], top):
        return "says nothing", silent
    if dimension["agreement"] is None:
        return "unknown", "no rollout was judged again"
    alpha = dimension["agreement"]["alpha"]
    if alpha.value is None or alpha.items < ITEMS:
        return "unknown", f"{alpha.items} rollouts were judged again; it takes {ITEMS}, and marks that differ, to tell"
    if alpha.value < bar:
        return "not trusted", f"judged again it agrees with itself by alpha {alpha.value:.2f}, under {bar:g}"
    return _by_verdicts(dimension["verifier"], f"alpha {alpha.value:.2f}", alpha.low is not None and alpha.low < bar)


def _silent(count: int, top: Numbers) -> str:
    """Why marks of which so many are alike say nothing, or ""."""
    if top["count"] == count and count > 1:
        return f"all {count} marks are {_level(top)}"
    if top["count"] >= ONE_SIDED * count and count >= ITEMS:
        return f"{top['count']} of {count} marks are {_level(top)}"
    return ""


def _by_verdicts(verifier: Numbers | None, alpha: str, doubtful: bool) -> tuple[Worth, str]:
    auc = (verifier or {}).get("auc") or {}
    if auc.get("low") is not None and auc["high"] < CHANCE:
        return "not trusted", f"it marks wrong answers above right ones (AUC {auc['value']:.2f}), with {alpha}"
    if auc.get("low") is not None and auc["low"] <= CHANCE:
        return "not trusted", f"it does not tell right from wrong (AUC {auc['value']:.2f}), with {alpha}"
    words = alpha + (", whose interval reaches below the bar" if doubtful else "")
    return "trusted", words + (f", AUC {auc['value']:.2f} on verdicts" if auc.get("value") is not None else "")


def _level(one: Numbers) -> str:
    return f"{one['low']:g}" if one["low"] == one["high"] else f"between {one['low']:g} and {one['high']:g}"


def verdict(report: Numbers) -> list[dict[str, Any]]:
    """Sentences by what they are about, the run ("") or a judge; a stand-in's words are said to be such."""
    said: list[dict[str, Any]] = []
    if report["stand_in"]:
        words = "these numbers tell that the machinery works, not how good the judges are"
        said.append(_about("", [f"A stand-in spoke for {_listed(report['stand_in'])}: {words}."]))
    said += [_about(one["judge"], [_of_silent(one["missing"])]) for one in report["silent"]]
    if not report["judges"] and not report["silent"]:
        said.append(_about("", ["No judge of this run asked a model: there is nothing that needs trust."]))
    said += [_about(judge["judge"], _of_judge(judge, report["bars"])) for judge in report["judges"]]
    rest = [*_of_alarms(report), *_of_rewards(report["reward"])]
    return said + ([_about("", rest)] if rest else [])


def _about(name: str, words: list[str]) -> dict[str, Any]:
    return {"about": name, "words": words}


def _of_judge(judge: Numbers, bars: Numbers) -> list[str]:
    good = [one["dimension"] for one in judge["dimensions"] if one["worth"] == "trusted"]
    rest = [f"{one['dimension']} {SAYS[one['worth']]}: {one['why']}" for one in _doubtful(judge["dimensions"])]
    said = [f"It can be trusted on {_listed(good)}" if good else "It can be trusted on nothing, as far as can be told"]
    said = ["; ".join([*said, *rest]) + "."] if judge["dimensions"] else ["It gave no mark."]
    canaries = judge["canaries"]
    if not canaries["given"]:
        said += [] if judge["member_of"] else ["It was given no canary: whether it can be fooled is unknown."]
    else:
        kinds = _listed([one["kind"] for one in canaries["kinds"] if one["passed"]])
        words = f"It took {canaries['passed']} of {canaries['given']} canaries for good answers"
        more = f" ({kinds})" if canaries["passed"] else ""
        bar = bars["false_positives"]
        over = f"; {bar:.0%} may pass" if beyond(canaries["passed"], canaries["given"], bar) else ""
        said.append(f"{words}{more}{over}.")
    if (right := canaries["right"])["given"]:
        said.append(f"Of answers known to be right it passed {right['passed']} of {right['given']}.")
    return said + [_bias(alarm["finding"], judge["bias"]["truth"]) for alarm in judge["bias"]["alarms"]]


def _of_silent(missing: Numbers) -> str:
    top = missing["reasons"][0]
    return f"It gave no mark: all {missing['count']} are missing, {top['count']} of them for this reason: {top['why']}."


def _doubtful(dimensions: Sequence[Numbers]) -> list[Numbers]:
    return [one for one in dimensions if one["worth"] != "trusted"]


def _bias(finding: Numbers, truth: str) -> str:
    """One alarm in words. Only verifiers' verdicts are a truth that alarms can be sure of."""
    if finding["kind"] == "noise":
        return f"Its marks on {finding['dimension']} differ more than its others when it judges again."
    if finding["kind"] == "preference":
        return f"Of two answers it prefers the one that stands first in {finding['effect']:.0%} of its decisions."
    earns = (
        f"earns {abs(finding['points']):.2f} {'more' if finding['effect'] > 0 else 'less'} on {finding['dimension']}"
    )
    what = {
        "length": "length: a standard deviation more of it",
        "position": "the place in a request: the last",
        "feature": f"“{finding['name']}”: it",
    }
    sure = {"verifiers": "where verifiers see no difference", "other judges": "where other judges see no difference"}
    where = sure.get(truth, "with nothing that holds the quality, so quality may be the cause")
    return f"Look at {what[finding['kind']]} {earns} {where}."


def _of_alarms(report: Numbers) -> list[str]:
    return [f"Alarm about {one['judge']}: {one['words']}." for one in report["open_alarms"]]


def _of_rewards(reward: Numbers) -> list[str]:
    if reward["share"] is None:
        return []
    return [
        f"Asked again, the judges would move a reward by {reward['noise'].value:.3f} (standard deviation):"
        f" {reward['share']:.0%} of the variance inside groups is their noise."
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "nothing"
