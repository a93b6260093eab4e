"""Small pictures as inline SVG: no script, no style of their own (classes only), every text escaped, each with a title.

Colours come from the page's style sheet by class; what colour tells, a dash, a shape or a label tells as well. Without
the sheet they are still drawn right, in one colour.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

WIDTH = 460
LABEL = 165
"""Pixels kept for labels on the left of rows."""
LONGEST = 22
"""Characters of a label that are shown in a picture; the whole stands in its tooltip."""
STYLES = 6
"""Lines that can be told apart; more take the first's again."""


def visible(text: Any) -> str:
    """Untrusted text, literally: control, formatting and lone surrogate characters as escapes, line ends and tabs kept."""
    return "".join(_shown(letter) for letter in str(text))


def _shown(letter: str) -> str:
    if letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def histogram(bins: Sequence[tuple[str, float]], title: str, *, width: int = 260, height: int = 110) -> Markup:
    """(label, count) as upright bars; the counts stand above them."""
    most, step = max((count for _, count in bins), default=0) or 1, width / max(1, len(bins))
    parts = []
    for i, (label, count) in enumerate(bins):
        tall, x = (height - 42) * count / most, i * step
        parts.append(_rect(x + 2, height - 20 - tall, step - 4, tall, "bar", f"{label}: {count:g}"))
        parts.append(_text(x + step / 2, height - 6, label, "middle"))
        parts.append(_text(x + step / 2, height - 24 - tall, f"{count:g}" if count else "", "middle"))
    parts.append(_line(0, height - 20, width, height - 20, "axis"))
    return _svg(parts, title, width, height)


Row = tuple[str, float | None, float | None, float | None]
"""(label, value, low, high); None: can't be told."""


def intervals(rows: Sequence[Row], bar: float, title: str, *, low: float = -0.2, high: float = 1.0) -> Markup:
    """Values as points with whiskers, one row each, against a bar; values under it are hollow."""
    height, parts = 24 * len(rows) + 30, []

    def at(value: float) -> float:
        return LABEL + (WIDTH - LABEL - 50) * (min(max(value, low), high) - low) / (high - low)

    parts.append(_line(at(bar), 4, at(bar), height - 22, "bound"))
    parts.append(_text(at(bar), height - 8, f"bar {bar:g}", "middle"))
    for i, (label, value, start, end) in enumerate(rows):
        y = 24 * i + 16
        parts.append(_text(0, y + 4, label))
        if value is None:
            parts.append(_text(LABEL, y + 4, "can't be told"))
            continue
        if start is not None and end is not None:
            parts.append(_line(at(start), y, at(end), y, "whisker"))
        parts.append(_dot(at(value), y, "dot" if value >= bar else "hollow", f"{label}: {value:.2f}"))
        parts.append(_text(WIDTH - 44, y + 4, f"{value:.2f}"))
    return _svg(parts, title, WIDTH, height)


def shares(rows: Sequence[Row], bar: float | None, title: str) -> Markup:
    """Shares from 0 to 1 as lying bars with whiskers, one row each."""
    height, span, parts = 24 * len(rows) + 28, WIDTH - LABEL - 50, []
    for i, (label, value, start, end) in enumerate(rows):
        y = 24 * i + 6
        parts.append(_text(0, y + 13, label))
        parts.append(_rect(LABEL, y, span * (value or 0.0), 16, "bar", f"{label}: {_percent(value)}"))
        if start is not None and end is not None:
            parts.append(_line(LABEL + span * start, y + 8, LABEL + span * end, y + 8, "whisker"))
        parts.append(_text(WIDTH - 44, y + 13, _percent(value)))
    if bar is not None:
        parts.append(_line(LABEL + span * bar, 2, LABEL + span * bar, height - 22, "bound"))
        parts.append(_text(LABEL + span * bar, height - 8, f"{bar:.0%} may pass", "start"))
    return _svg(parts, title, WIDTH, height)


Bin = tuple[float, float, float | None, float | None, int]
"""(mean mark, mean label, its low, its high, how many)"""


def reliability(bins: Sequence[Bin], curve: Sequence[tuple[float, float]], title: str, *, size: int = 260) -> Markup:
    """What marks came to in labels: a point a bin, the fitted curve, and the diagonal of marks that are what they say."""
    inner = size - 50

    def at(x: float, y: float) -> tuple[float, float]:
        return 40 + inner * x, 10 + inner * (1 - min(max(y, 0.0), 1.0))

    parts = [_line(*at(0, 0), *at(1, 1), "diagonal"), _line(*at(0, 0), *at(1, 0), "axis")]
    parts.append(_line(*at(0, 0), *at(0, 1), "axis"))
    if curve:
        parts.append(_path([at(*point) for point in ((0.0, curve[0][1]), *curve, (1.0, curve[-1][1]))], 0))
    for mark, label, low, high, count in bins:
        if low is not None and high is not None:
            parts.append(_line(*at(mark, low), *at(mark, high), "whisker"))
        parts.append(_dot(*at(mark, label), "dot", f"{count} marked {mark:.2f} on average: label {label:.2f}"))
    for tick in (0.0, 0.5, 1.0):
        parts.append(_text(at(tick, 0)[0], size - 26, f"{tick:g}", "middle"))
        parts.append(_text(34, at(0, tick)[1] + 4, f"{tick:g}", "end"))
    parts.append(_text(40 + inner / 2, size - 8, "mean mark", "middle"))
    return _svg(parts, title, size, size)


def over_steps(steps: Sequence[int], series: Sequence[tuple[str, Sequence[float | None]]], title: str) -> Markup:
    """(name, one value from 0 to 1 a step) as lines, each with a dash of its own; the key is below. None: a gap."""
    tall = 170
    height, span = tall + 26 + 20 * len(series), max(1, len(steps) - 1)

    def at(place: int, value: float) -> tuple[float, float]:
        return 34 + (WIDTH - 50) * place / span, 10 + (tall - 20) * (1 - min(max(value, 0.0), 1.0))

    parts = [_line(*at(0, level), *at(span, level), "axis") for level in (0.0, 0.5, 1.0)]
    parts += [_text(28, at(0, level)[1] + 4, f"{level:g}", "end") for level in (0.0, 0.5, 1.0)]
    for place in sorted({0, len(steps) // 2, len(steps) - 1}) if steps else ():
        parts.append(_text(at(place, 0)[0], tall + 8, f"step {steps[place]}", "end" if place else "start"))
    for i, (name, values) in enumerate(series):
        known = [(at(place, value), value) for place, value in enumerate(values) if value is not None]
        parts.append(_path([point for point, _ in known], i))
        parts += [_dot(*point, f"dot s{i % STYLES}", f"{name}: {value:.2f}", 2.5) for point, value in known]
        y = tall + 28 + 20 * i
        parts += [_path([(34, y), (74, y)], i), _text(82, y + 4, name, most=60)]
    return _svg(parts, title, WIDTH, height)


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _svg(parts: Sequence[Markup], title: str, width: float, height: float) -> Markup:
    words = visible(title)
    head = Markup('<svg class="picture" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">')
    inside = Markup("").join([Markup("<title>{}</title>").format(words), *parts])
    return head.format(words, _n(width), _n(height), _n(width), _n(height)) + inside + Markup("</svg>")


def _rect(x: float, y: float, width: float, height: float, kind: str, tip: str) -> Markup:
    shape = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>')
    return shape.format(kind, _n(x), _n(y), _n(max(0.0, width)), _n(max(0.0, height)), visible(tip))


def _dot(x: float, y: float, kind: str, tip: str, radius: float = 4.5) -> Markup:
    shape = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>')
    return shape.format(kind, _n(x), _n(y), _n(radius), visible(tip))


def _line(x: float, y: float, to_x: float, to_y: float, kind: str) -> Markup:
    shape = Markup('<line class="{}" stroke="currentColor" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return shape.format(kind, _n(x), _n(y), _n(to_x), _n(to_y))


def _path(points: Sequence[tuple[float, float]], style: int) -> Markup:
    joined = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    return Markup('<polyline class="line s{}" fill="none" stroke="currentColor" points="{}"/>').format(
        style % STYLES, joined
    )


def _text(x: float, y: float, words: str, anchor: str = "start", most: int = LONGEST) -> Markup:
    """A label, cut to `most` characters, with all of it as its tooltip where it was cut."""
    whole = visible(words)
    short = whole if len(whole) <= most else whole[: most - 1] + "…"
    tip = Markup("<title>{}</title>").format(whole) if short != whole else Markup("")
    shape = Markup('<text x="{}" y="{}" text-anchor="{}">{}{}</text>')
    return shape.format(_n(x), _n(y), anchor, short, tip)


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.0%}"


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
