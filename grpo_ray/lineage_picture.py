"""The lineage of a run's templates as one SVG that stands alone: when each was made, what it gained, and of whom it came.

A mutation has a colour and a shape; what lives is filled, what was retired is hollow. Light or dark, as the viewer has it.
Nothing runs or loads in it, and every text is escaped.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import cos, floor, log10, pi, sin
from typing import Any

from markupsafe import Markup

from grpo_ray.lineage import Node, Tree, ancestors
from grpo_ray.trust.pictures import visible

HEIGHT = 420
LEFT, RIGHT, TOP, BOTTOM = 70, 26, 44, 48
"""Margins of the plot, in pixels."""
COLUMN = 96
"""Pixels a step is given, where the picture need not be wider than WIDEST."""
NARROWEST, WIDEST = 720, 1280
LEGEND_ROW, LEGEND_COLUMN = 20, 215
SHAPES = ("circle", "square", "diamond", "up", "down", "pentagon", "cross", "hexagon")
NAMED = 6
"""Templates whose names stand beside them: the fittest living ones and what is pinned."""
LONGEST = 26
"""Characters of a name that are shown; the whole stands in its tooltip."""
LETTER = 6.8
"""Pixels a letter of a name is wide, about."""
STYLE = """
.lineage{font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
.lineage .name{paint-order:stroke;stroke:#fff;stroke-width:3;stroke-linejoin:round}
.lineage .ground{fill:#fff}.lineage text{fill:#24292f}.lineage .faint{fill:#57606a}
.lineage .axis{stroke:#d0d7de}.lineage .zero{stroke:#8c959f;stroke-dasharray:4 3}
.lineage .edge{fill:none;stroke-width:1.2;opacity:.4}.lineage .further{stroke-dasharray:3 3}
.lineage .way{stroke-width:2.6;opacity:.95}
.lineage .node{stroke-width:1.8;fill:#fff}.lineage .ring{fill:none;stroke:#24292f;stroke-width:1.4}
.lineage .m0{color:#57606a}.lineage .m1{color:#0969da}.lineage .m2{color:#bc4c00}.lineage .m3{color:#1a7f37}
.lineage .m4{color:#8250df}.lineage .m5{color:#bf3989}.lineage .m6{color:#9a6700}.lineage .m7{color:#0b7b8a}
.lineage .edge,.lineage .node{stroke:currentColor}.lineage .living{fill:currentColor}
@media(prefers-color-scheme:dark){
.lineage .ground,.lineage .node{fill:#0d1117}.lineage .living{fill:currentColor}.lineage text{fill:#e6edf3}
.lineage .faint{fill:#9198a1}.lineage .axis{stroke:#30363d}.lineage .zero{stroke:#656c76}
.lineage .ring{stroke:#e6edf3}.lineage .name{stroke:#0d1117}
.lineage .m0{color:#9198a1}.lineage .m1{color:#58a6ff}.lineage .m2{color:#f0883e}.lineage .m3{color:#3fb950}
.lineage .m4{color:#bc8cff}.lineage .m5{color:#f778ba}.lineage .m6{color:#d29922}.lineage .m7{color:#39c5cf}}
"""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scales:
    """Where steps and gains lie, in pixels."""

    width: float
    steps: tuple[int, int]
    gains: tuple[float, float]

    def x(self, step: float) -> float:
        first, last = self.steps
        return (
            LEFT + self.column / 2 + (self.width - LEFT - RIGHT - self.column) * (step - first) / max(1, last - first)
        )

    def y(self, gain: float) -> float:
        low, high = self.gains
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - gain) / (high - low)

    @property
    def column(self) -> float:
        """The pixels between two steps."""
        return (self.width - LEFT - RIGHT) / (self.steps[1] - self.steps[0] + 1)


def picture(tree: Tree, title: str = "Who came from whom") -> Markup:
    """The tree that `lineage.tree` makes, as SVG; without templates an empty frame."""
    nodes = tree["nodes"]
    kinds = list(dict.fromkeys(node["mutation"] for node in sorted(nodes, key=lambda node: node["mutation"] != "seed")))
    scales = _scales(nodes)
    size = max(2.6, min(5.0, scales.column / 7, 90 / max(1.0, len(nodes) ** 0.5)))
    places = _places(nodes, scales, size)
    parts = [
        Markup('<rect class="ground" width="100%" height="100%"/>'),
        _text(LEFT, 22, title, kind="title", most=90),
        *_axes(scales),
        *_edges(tree, places, kinds, size),
        *(_node(node, places[node["id"]], kinds, size) for node in nodes),
        *_names(nodes, places, scales, size),
        *_legend(nodes, kinds, scales.width),
    ]
    return _svg(parts, title, scales.width, HEIGHT + LEGEND_ROW * _rows(kinds, scales.width) + 26)


# ── where things lie ──────────────────────────────────────────────────────────────────────────────────────────────


def _scales(nodes: Sequence[Node]) -> Scales:
    made = [node["made"] for node in nodes] or [0]
    gains = [_gain(node) for node in nodes] or [0.0]
    low, high = min(0.0, *gains), max(0.0, *gains)
    pad = 0.08 * (high - low) or 0.1
    columns = max(made) - min(made) + 1
    width = min(WIDEST, max(NARROWEST, LEFT + RIGHT + COLUMN * columns))
    return Scales(width, (min(made), max(made)), (low - pad, high + pad))


def _gain(node: Node) -> float:
    """0, the mean of what the run began with, where nothing is known."""
    return node["gain"] or 0.0


def _places(nodes: Sequence[Node], scales: Scales, size: float) -> dict[str, Point]:
    """Each node at its step and gain; what would lie on another one moves aside, as far as its column reaches."""
    found: dict[str, Point] = {}
    columns: dict[int, list[Point]] = {}
    for node in sorted(nodes, key=lambda node: (node["made"], _gain(node), node["id"])):
        x, y = scales.x(node["made"]), scales.y(_gain(node))
        taken = columns.setdefault(node["made"], [])
        free = (
            x + aside for aside in _asides(scales.column, 2.4 * size) if not _near((x + aside, y), taken, 2.4 * size)
        )
        found[node["id"]] = (next(free, x), y)
        taken.append(found[node["id"]])
    return found


def _asides(column: float, apart: float) -> Iterator[float]:
    """0, then to both sides in turn, as far as the column's middle three quarters."""
    yield 0.0
    for place in range(1, int(0.375 * column / apart) + 1):
        yield from (place * apart, -place * apart)


def _near(point: Point, taken: Sequence[Point], apart: float) -> bool:
    return any(abs(point[0] - x) < apart - 0.01 and abs(point[1] - y) < apart for x, y in taken)


# ── what is drawn ─────────────────────────────────────────────────────────────────────────────────────────────────


def _axes(scales: Scales) -> list[Markup]:
    bottom, right = HEIGHT - BOTTOM, scales.width - RIGHT
    parts = []
    for value in _ticks(*scales.gains):
        y, kind = scales.y(value), "axis" if value else "zero"
        parts += [
            _line(LEFT, y, right, y, kind),
            _text(LEFT - 8, y + 4, f"{value:+g}" if value else "0", "end", "faint"),
        ]
    first, last = scales.steps
    for step in range(first, last + 1, max(1, -(-(last - first) // 12))):
        parts.append(_text(scales.x(step), bottom + 18, str(step), "middle", "faint"))
    parts.append(_text((LEFT + right) / 2, bottom + 36, "step at which it came in", "middle", "faint", most=60))
    turned = Markup('<text class="faint" text-anchor="middle" transform="translate(16 {}) rotate(-90)">{}</text>')
    return [*parts, turned.format(_n((TOP + bottom) / 2), "gain in reward on the first templates")]


def _ticks(low: float, high: float) -> list[float]:
    """Round values between the two, 0 among them, about five."""
    rough = (high - low) / 5
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [round(step * place, 10) for place in range(-int(-low // step), int(high // step) + 1)]


def _edges(tree: Tree, places: Mapping[str, Point], kinds: Sequence[str], size: float) -> list[Markup]:
    """Parents to children; thick on the way to the fittest living template."""
    living = [node for node in tree["nodes"] if node["living"]]
    best = max(living, key=lambda node: (_gain(node), node["id"]), default=None)
    way = ancestors(tree, [best["id"]]) if best else set()
    shape = Markup('<path class="{}" d="M{} {}C{} {} {} {} {} {}"/>')
    parts = []
    for edge in sorted(tree["edges"], key=lambda edge: edge["child"] in way):
        (x, y), (to_x, to_y) = places[edge["parent"]], places[edge["child"]]
        middle = (x + to_x) / 2
        kind = f"edge {_kind(edge['mutation'], kinds)}" + ("" if edge["first"] else " further")
        kind += " way" if edge["child"] in way else ""
        numbers = map(_n, (x + size, y, middle, y, middle, to_y, to_x - size, to_y))
        parts.append(shape.format(kind, *numbers))
    return parts


def _node(node: Node, place: Point, kinds: Sequence[str], size: float) -> Markup:
    kind = f"node {_kind(node['mutation'], kinds)}" + (" living" if node["living"] else "")
    ring = Markup('<circle class="ring" cx="{}" cy="{}" r="{}"/>').format(*map(_n, (*place, size + 3.6)))
    inside = Markup("<title>{}</title>{}").format(
        visible(_tip(node)), _mark(place, size, node["mutation"], kinds, kind)
    )
    return Markup("<g>{}{}</g>").format(ring if node["pinned"] else "", inside)


def _tip(node: Node) -> str:
    """What a node says when it is pointed at."""
    settings = ", ".join(f"{name}={label}" for name, label in node["settings"].items())
    end = (
        "lives"
        if node["living"]
        else f"retired at step {node['retired']}" + (f": {node['why']}" if node["why"] else "")
    )
    lines = (
        f"{node['id']}, version {node['version']} ({node['task_type']})",
        f"{node['mutation']} at step {node['made']}" + (f" of {', '.join(node['parents'])}" if node["parents"] else ""),
        _measured(node),
        settings,
        node["note"],
        end + (", pinned" if node["pinned"] else ""),
    )
    return "\n".join(line for line in lines if line)


def _measured(node: Node) -> str:
    if node["gain"] is None:
        return "nothing is known of it yet"
    words = f"gain {node['gain']:+.3f} ± {node['gain_deviation']:.3f}"
    return words if node["trials"] is None else f"{words}, {node['trials']:.1f} trials"


def _mark(place: Point, size: float, mutation: str, kinds: Sequence[str], kind: str) -> Markup:
    shape = SHAPES[kinds.index(mutation) % len(SHAPES)]
    if shape == "circle":
        return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, *map(_n, (*place, size)))
    corners = " ".join(f"{_n(place[0] + x * size)},{_n(place[1] + y * size)}" for x, y in _corners(shape))
    return Markup('<polygon class="{}" points="{}"/>').format(kind, corners)


def _corners(shape: str) -> list[Point]:
    """Of a shape about as large as the circle of radius 1."""
    if shape == "cross":
        arms = ((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4))
        return [*arms, *((-x, -y) for x, y in arms)]
    count, turn = {"square": (4, 0.25), "diamond": (4, 0), "up": (3, 0), "down": (3, 0.5)}.get(
        shape, (5, 0) if shape == "pentagon" else (6, 0)
    )
    angles = (2 * pi * (place / count + (turn / 2 if count == 4 else turn)) for place in range(count))
    return [(1.25 * sin(angle), -1.25 * cos(angle)) for angle in angles]


def _names(nodes: Sequence[Node], places: Mapping[str, Point], scales: Scales, size: float) -> list[Markup]:
    """Beside the fittest living templates and the pinned ones, where there is room."""
    living = sorted((n for n in nodes if n["living"]), key=lambda n: (not n["pinned"], -_gain(n), n["id"]))
    taken = [(x - size, y - size, x + size, y + size) for x, y in places.values()]
    parts = []
    for node in living[:NAMED]:
        wide, away = LETTER * min(LONGEST, len(node["id"])), size + (8 if node["pinned"] else 5)
        for box, anchor in _beside(places[node["id"]], wide, away):
            if _room(box, taken, scales.width):
                taken.append(box)
                x = {"start": box[0], "end": box[2], "middle": (box[0] + box[2]) / 2}[anchor]
                parts.append(_text(x, box[3] - 3, node["id"], anchor, "name"))
                break
    return parts


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _beside(place: Point, wide: float, away: float) -> list[tuple[Box, str]]:
    """Where a name may stand, and by which end it is held: right, above, left, below."""
    x, y = place
    return [
        ((x + away, y - 7, x + away + wide, y + 7), "start"),
        ((x - wide / 2, y - away - 13, x + wide / 2, y - away), "middle"),
        ((x - away - wide, y - 7, x - away, y + 7), "end"),
        ((x - wide / 2, y + away, x + wide / 2, y + away + 13), "middle"),
    ]


def _room(box: Box, taken: Sequence[Box], width: float) -> bool:
    return box[0] >= LEFT and box[2] <= width - 4 and not any(_meet(box, other) for other in taken)


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(nodes: Sequence[Node], kinds: Sequence[str], width: float) -> list[Markup]:
    """Each mutation with how many templates it made, and how many of those live; then what filled, hollow and ringed mean."""
    made, alive = (Counter(node["mutation"] for node in nodes if node["living"] or every) for every in (True, False))
    parts = []
    per_row = _per_row(width)
    for place, name in enumerate(kinds):
        x, y = LEFT + LEGEND_COLUMN * (place % per_row), HEIGHT + 12 + LEGEND_ROW * (place // per_row)
        parts.append(_mark((x, y), 4.6, name, kinds, f"node {_kind(name, kinds)} living"))
        parts.append(_text(x + 12, y + 4, f"{name}: {made[name]}, {alive[name]} live", kind="", most=30))
    y = HEIGHT + 12 + LEGEND_ROW * _rows(kinds, width)
    words = "filled: lives · hollow: retired · ring: pinned · thick: the way to the best · dashed: further parents"
    return [*parts, _text(LEFT, y + 4, words, kind="faint", most=200)]


def _per_row(width: float) -> int:
    return max(1, int((width - LEFT) // LEGEND_COLUMN))


def _rows(kinds: Sequence[str], width: float) -> int:
    return -(-len(kinds) // _per_row(width))


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _kind(mutation: str, kinds: Sequence[str]) -> str:
    return f"m{kinds.index(mutation) % len(SHAPES)}"


def _svg(parts: Sequence[Markup], title: str, width: float, height: float) -> Markup:
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="lineage" role="img" aria-label="{}" viewBox="0 0 {} {}" '
        'width="{}" height="{}"><style>{}</style>'
    )
    size = (_n(width), _n(height))
    return head.format(visible(title), *size, *size, Markup(STYLE)) + Markup("\n").join(parts) + Markup("</svg>\n")


def _line(x: float, y: float, to_x: float, to_y: float, kind: str) -> Markup:
    shape = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return shape.format(kind, *map(_n, (x, y, to_x, to_y)))


def _text(x: float, y: float, words: Any, anchor: str = "start", kind: str = "", most: int = LONGEST) -> Markup:
    """A label, cut to `most` characters, with all of it as its tooltip where it was cut."""
    whole = visible(words)
    short = whole if len(whole) <= most else whole[: most - 1] + "…"
    tip = Markup("<title>{}</title>").format(whole) if short != whole else Markup("")
    shape = Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}{}</text>')
    return shape.format(kind, _n(x), _n(y), anchor, short, tip)


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
