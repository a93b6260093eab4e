"""The same with fewer words: what adds least to the reward for each of its characters goes."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from grpo_ray.errors import ConfigError
from grpo_ray.mutations._known import known
from grpo_ray.pieces import loose, with_sentences, with_settings
from grpo_ray.prompting import FEW_SHOT, content_hash, examples_block, placeholders
from grpo_ray.protocols import Oracle
from grpo_ray.types import Parent, Template


@dataclass(frozen=True, slots=True)
class Cut:
    """A shorter template, the characters that it saves in a prompt, and what that is drawn to cost in reward."""

    child: Template
    saved: int
    loss: float


async def mutate(parents: Sequence[Parent], oracle: Oracle, rng: random.Random, *, loss: float = 0.02) -> Template:
    """The first parent without a sentence, with fewer examples shown, or with a parameter at a shorter text.

    Of these the one that is hoped to cost least reward for each character it saves is made, if it is new and costs at most
    `loss` in all. What nothing is known of is taken to cost nothing, and chance decides among equals. Placeholders stay.
    Where nothing can go, the parent stays as it is.
    """
    parent, tried = parents[0].template, known(parents)
    cuts = [
        cut
        for cut in _cuts(parent, dict(parents[0].hopes))
        if cut.saved > 0 and cut.loss <= loss and content_hash(cut.child) not in tried
    ]
    if not cuts:
        return replace(parent, mutation="simplify", parents=(parent.id,), note="nothing can go")
    best = min(cuts, key=lambda cut: (cut.loss / cut.saved, rng.random()))
    note = f"{best.child.note}: {best.saved} characters less"[:500]
    return replace(best.child, mutation="simplify", parents=(parent.id,), note=note)


def check_settings(*, loss: float = 0.02) -> None:
    """Raise ConfigError for a loss below 0."""
    if loss < 0:
        raise ConfigError(f"loss is {loss:g}; it is what a shorter template may cost in reward, 0 or more")


def _cuts(template: Template, hopes: Mapping[str, float]) -> Iterator[Cut]:
    for sentence in loose(template):
        child = replace(with_sentences(template, dropped=[sentence]), note=f"without {sentence!r}")
        yield Cut(child, _length(template) - _length(child), hopes.get(sentence, 0.0))
    yield from _shorter_settings(template, hopes)
    if len(template.examples) > 1 and FEW_SHOT not in dict(template.settings):
        child = replace(template, examples=template.examples[:-1], note="one example less")
        yield Cut(child, _shown(template) - _shown(child), 0.0)


def _shorter_settings(template: Template, hopes: Mapping[str, float]) -> Iterator[Cut]:
    """Every parameter at every choice with a shorter text, or with fewer examples."""
    chosen = dict(template.settings)
    for parameter in template.parameters:
        old = chosen[parameter.name]
        texts = {choice.label: choice.text for choice in parameter.choices}
        for label, text in texts.items():
            note = f"{parameter.name}: {old} → {label}"
            child = replace(with_settings(template, {parameter.name: label}), note=note)
            shown = _shown(template) - _shown(child)
            saved = shown if parameter.name == FEW_SHOT else len(texts[old]) - len(text)
            gone = hopes.get(f"{parameter.name}={old}", 0.0) - hopes.get(f"{parameter.name}={label}", 0.0)
            yield Cut(child, saved, gone)


def _length(template: Template) -> int:
    return len(template.text) + len(template.system or "")


def _shown(template: Template) -> int:
    """Characters of the examples that a prompt holds."""
    uses = "examples" in placeholders(template.text) | placeholders(template.system or "")
    return len(examples_block(template)) if uses else 0
