"""What a draw of the surrogate hopes for: the best settings it sees from one template on, and the worth of each piece."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from grpo_ray.evolution.surrogate import Draw
from grpo_ray.types import Template

SWEEPS = 4
"""How often each parameter is looked at in turn; a setting's worth may depend on the others."""
Hopes = tuple[tuple[str, float], ...]


def climbed(template: Template, draw: Draw) -> Template:
    """The template with the settings that the draw likes best, as far as changing one at a time leads."""
    chosen = dict(template.settings)
    for _ in range(SWEEPS):
        before = dict(chosen)
        for parameter in template.parameters:
            worth = _worths(parameter.name, [choice.label for choice in parameter.choices], chosen, draw)
            best = max(worth, key=lambda label: worth[label])
            if worth[best] > worth[chosen[parameter.name]]:
                chosen[parameter.name] = best
        if chosen == before:
            break
    return replace(template, settings=tuple((name, chosen[name]) for name, _ in template.settings))


def hopes(template: Template, draw: Draw, sentences: Iterable[str]) -> Hopes:
    """(piece, what it adds): settings beside the best ones the draw sees from here, and sentences as they are."""
    best = dict(climbed(template, draw).settings)
    found: list[tuple[str, float]] = []
    for parameter in template.parameters:
        worth = _worths(parameter.name, [choice.label for choice in parameter.choices], best, draw)
        found += [(f"{parameter.name}={label}", round(value, 6)) for label, value in worth.items()]
    return (*found, *((one, round(draw.weights[one], 6)) for one in sorted(sentences) if one in draw.weights))


def _worths(name: str, labels: list[str], chosen: Mapping[str, str], draw: Draw) -> dict[str, float]:
    """Label → what it adds where the other parameters are as `chosen`."""
    rest = [
        draw.settings[piece] for n, label in chosen.items() if n != name and (piece := f"{n}={label}") in draw.settings
    ]
    return {label: _worth(f"{name}={label}", rest, draw) for label in labels}


def _worth(piece: str, rest: list[int], draw: Draw) -> float:
    row = draw.settings.get(piece)
    together = 0.0 if row is None else float(np.sum(draw.pairs[row, rest]))
    return draw.weights.get(piece, 0.0) + together
