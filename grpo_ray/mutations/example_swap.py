"""A worked example of the run's own: one of the best rollouts takes the place of the template's oldest example.

The rollouts that parents bring are of train tasks alone, so no held-out and no validation task becomes an example.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from grpo_ray.errors import ConfigError
from grpo_ray.mutations._known import known
from grpo_ray.mutations._texts import spaceless
from grpo_ray.pieces import with_settings
from grpo_ray.prompting import FEW_SHOT, content_hash, placeholders
from grpo_ray.protocols import Oracle
from grpo_ray.types import ANY, Example, Parent, Prompt, ScoredRollout, Template


async def mutate(
    parents: Sequence[Parent],
    oracle: Oracle,
    rng: random.Random,
    *,
    floor: float = 0.7,
    dimension: str = "verified",
    longest: int = 800,
    most: int = 3,
) -> Template:
    """The first parent with one of the parents' best rollouts as its first example.

    A rollout is good enough with a reward of at least `floor`, with 1 from every judge that spoke on `dimension`, with an
    end of its own, and with at most `longest` characters, the question's included; among the best chance decides. The
    example shown last, which is the oldest, goes: where a parameter says how many are shown, else from `most` on. If none
    is shown, one is, where a label allows it. No two examples have one question. Where no example is shown or to be had,
    the parent stays as it is.
    """
    parent, tried = parents[0].template, known(parents)
    asked = {spaceless(example.question) for example in parent.examples}
    for prompt, scored in _best(parents, floor, dimension, rng) if _has_room(parent) else ():
        example = Example(prompt.task.question, scored.rollout.text.strip())
        fits = example.response and len(example.question) + len(example.response) <= longest
        if not fits or spaceless(example.question) in asked:
            continue
        child = _with_example(parent, example, most)
        if content_hash(child) not in tried:
            note = f"{child.note} by {example.question[:80]!r}, reward {scored.reward.value:.2f}"
            return replace(child, mutation="example_swap", parents=(parent.id,), note=note)
    return replace(parent, mutation="example_swap", parents=(parent.id,), note="no new example to be had")


def check_settings(*, longest: int = 800, most: int = 3, **others: object) -> None:
    """Raise ConfigError where no example could be."""
    if longest < 1 or most < 1:
        raise ConfigError("longest and most are 1 or more")


def _has_room(template: Template) -> bool:
    """Whether the template's prompts show examples, or can."""
    shows = "examples" in placeholders(template.text) | placeholders(template.system or "")
    return shows and (FEW_SHOT not in dict(template.settings) or bool(_counts(template)))


def _counts(template: Template) -> list[str]:
    """The labels by which examples are shown, the fewest first."""
    labels = [choice.label for p in template.parameters if p.name == FEW_SHOT for choice in p.choices]
    return sorted((label for label in labels if int(label) > 0), key=int)


def _best(
    parents: Sequence[Parent], floor: float, dimension: str, rng: random.Random
) -> list[tuple[Prompt, ScoredRollout]]:
    """Good rollouts of the first parent's kind of task, each once, best first, equals in a random order."""
    kind = parents[0].template.task_type
    shown = {scored.rollout.id: (prompt, scored) for parent in parents for prompt, scored in parent.best}
    good = [
        (prompt, scored)
        for prompt, scored in shown.values()
        if kind in (ANY, prompt.task.task_type) and _is_good(scored, floor, dimension)
    ]
    rng.shuffle(good)
    return sorted(good, key=lambda one: -(one[1].reward.value or 0.0))


def _is_good(scored: ScoredRollout, floor: float, dimension: str) -> bool:
    said = [e.score for e in scored.evaluations if e.dimension == dimension and not e.audit and e.score is not None]
    value = scored.reward.value
    return (
        value is not None and value >= floor and min(said, default=1.0) >= 1 and scored.rollout.finish_reason == "stop"
    )


def _with_example(template: Template, example: Example, most: int) -> Template:
    """The template with the example in front, and with at least one shown."""
    settings = dict(template.settings)
    if FEW_SHOT not in settings:
        kept = template.examples if len(template.examples) < most else template.examples[: most - 1]
        gone = template.examples[len(kept) :]
        return replace(template, examples=(example, *kept), note=_told(gone))
    shown = int(settings[FEW_SHOT])
    place = (shown or len(template.examples)) - 1
    gone, kept = template.examples[place : place + 1], (*template.examples[:place], *template.examples[place + 1 :])
    child = replace(template, examples=(example, *kept), note=_told(gone))
    if shown:
        return child
    least, old = _counts(template)[0], settings[FEW_SHOT]
    return replace(with_settings(child, {FEW_SHOT: least}), note=f"{child.note}, {FEW_SHOT}: {old} → {least},")


def _told(gone: Sequence[Example]) -> str:
    return f"{gone[0].question[:80]!r} replaced" if gone else "examples enlarged"
