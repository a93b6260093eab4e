"""A judge report as one page of HTML that stands alone: no script, nothing loaded, and every text in it escaped."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from grpo_ray.trust import pictures
from grpo_ray.trust.pictures import visible

PAGES = Path(__file__).parent / "pages"
UNKNOWN = "—"
Numbers = Mapping[str, Any]


def page(report: Numbers) -> str:
    """The page of a report made by `judge_report`. Its policy lets a browser run and load nothing, whatever is in it."""
    style = (PAGES / "judge_report.css").read_text("utf-8")
    seal = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    made = (
        _environment()
        .get_template("judge_report.html.jinja")
        .render(
            report=report,
            style=Markup(style),  # ours, and sealed by its hash in the page's policy
            policy=f"default-src 'none'; style-src 'sha256-{seal}'; base-uri 'none'; form-action 'none'",
            picture_of={
                "agreement": agreement,
                "distribution": distribution,
                "canaries": canaries,
                "calibration": calibration,
                "steps": over_steps,
                "latency": latency,
            },
        )
    )
    return made.encode("utf-8", "replace").decode("utf-8")


def _environment() -> Environment:
    """Escapes everything but our own Markup; a name that the template gets wrong is a bug, not an empty place."""
    made = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=literal,
    )
    made.filters |= {"number": number, "percent": percent, "span": span, "percents": percents, "chance": chance}
    return made


def literal(value: Any) -> Any:
    """What a place in the template shows: unknown as a dash, untrusted text literally."""
    if value is None:
        return UNKNOWN
    return value if isinstance(value, Markup) else visible(value)


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def number(value: float | None, digits: int = 2) -> str:
    """With thousands apart; whole numbers without a point."""
    if value is None:
        return UNKNOWN
    return f"{value:,d}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0%}" if value in (0, 1) or value >= 0.1 else f"{value:.1%}"


def chance(p: float | None) -> str:
    return UNKNOWN if p is None else f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def span(found: Numbers | None, digits: int = 2) -> str:
    """An estimate with its interval, or a dash."""
    if found is None or found.get("value") is None:
        return UNKNOWN
    value = f"{found['value']:.{digits}f}"
    if found.get("low") is None or found.get("high") is None:
        return value
    return f"{value} ({found['low']:.{digits}f} … {found['high']:.{digits}f})"


def percents(found: Numbers | None) -> str:
    """A share with its interval in per cent, or a dash."""
    if found is None or found.get("value") is None:
        return UNKNOWN
    if found.get("low") is None or found.get("high") is None:
        return percent(found["value"])
    return f"{found['value']:.1%} ({max(0.0, found['low']):.1%} … {min(1.0, found['high']):.1%})"


def level(one: Numbers) -> str:
    """The mark or the bin of marks that a count is of."""
    return f"{one['low']:g}" if one["low"] == one["high"] else f"{one['low']:g}–{one['high']:g}"


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def agreement(judge: Numbers, bar: float) -> Markup:
    """Alpha of each dimension that was judged again, against the bar."""
    return pictures.intervals(
        [
            (one["dimension"], alpha["value"], alpha["low"], alpha["high"])
            for one in judge["dimensions"]
            if one["agreement"] is not None
            for alpha in (one["agreement"]["alpha"],)
        ],
        bar,
        f"Agreement of {judge['judge']} with itself: Krippendorff's alpha by dimension, and the bar at {bar:g}",
    )


def distribution(dimension: Numbers) -> Markup:
    bins = [(level(one), one["count"]) for one in dimension["distribution"]]
    return pictures.histogram(bins, f"How often each mark was given on {dimension['dimension']}")


def canaries(judge: Numbers, bar: float) -> Markup:
    rows = [(one["kind"], one["share"], one["low"], one["high"]) for one in judge["canaries"]["kinds"]]
    return pictures.shares(rows, bar, f"Share of canaries that {judge['judge']} took for good answers, by kind")


def calibration(found: Numbers, title: str) -> Markup:
    bins = [(one["mark"], one["value"], one["low"], one["high"], one["count"]) for one in found["bins"]]
    return pictures.reliability(bins, [(one["mark"], one["label"]) for one in found["map"]], title)


def over_steps(steps: Sequence[Numbers]) -> Markup:
    """Verified accuracy and each judge's mean mark: a mark that rises while accuracy falls is inflation."""
    names = sorted({name for one in steps for name in one["judges"]})
    verified = ("right, say verifiers", [one["verified"] for one in steps])
    series = [(f"mean mark by {name}", [one["judges"].get(name) for one in steps]) for name in names]
    return pictures.over_steps(
        [one["step"] for one in steps], [verified, *series], "Marks and right answers over steps"
    )


def latency(costs: Numbers) -> Markup:
    bins = [(f"<{one['high']:g}" if one["high"] else f"≥{one['low']:g}", one["count"]) for one in costs["latency"]]
    return pictures.histogram(bins, "How many calls took how many seconds", width=460)


def words(report: Mapping[str, Any]) -> str:
    """The verdict alone, as plain text: a paragraph for each thing it is about."""
    parts = [[*([f"{one['about']}:"] if one["about"] else []), *one["words"]] for one in report["verdict"]]
    return "\n\n".join(" ".join(part) for part in parts)
