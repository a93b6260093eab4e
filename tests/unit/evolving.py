"""For tests of evolution: templates made of settings and sentences, what they are truly worth, and trials that say so."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from grpo_ray.pieces import pieces
from grpo_ray.prompting import content_hash, root
from grpo_ray.trials import Trial
from grpo_ray.types import ANY, Choice, Parameter, Template

TONE = Parameter("tone", tuple(Choice(label, f"{label} tone") for label in "abc"))
SIZE = Parameter("size", tuple(Choice(label, f"{label} size") for label in "xyz"))
CARE, HASTE, MATHS = "Take care.", "Be quick about it.", "Write every number down."


def template(
    id: str, tone: str = "a", size: str = "x", said: Sequence[str] = (), kind: str = ANY, seed: str = "Solve it."
) -> Template:
    text = " ".join((seed, *said)) + "\n\n{{ tone }} {{ size }}\n{{ question }}"
    return Template(id, text, kind, parameters=(TONE, SIZE), settings=(("tone", tone), ("size", size)))


def named(child: Template, parent: Template, mutation: str = "set_parameter") -> Template:
    """The child as a population names it."""
    child = replace(child, parents=(parent.id,), mutation=mutation, version=parent.version + 1)
    return replace(child, id=f"{root(parent.id)}~{content_hash(child)}")


def every_setting(said: Sequence[str] = ()) -> list[Template]:
    """Nine templates, one for each pair of labels."""
    return [template(f"{tone}{size}", tone, size, said) for tone in "abc" for size in "xyz"]


def worth(of: Template, effects: Mapping[str, float]) -> float:
    return sum(effects.get(piece, 0.0) for piece in pieces(of))


def trial(of: Template | str, task: int | str, value: float, step: int = 0, count: int = 1, kind: str = ANY) -> Trial:
    return Trial(of if isinstance(of, str) else of.id, f"t-{task}", kind, step, value, count)


def tried(
    templates: Sequence[Template],
    effects: Mapping[str, float],
    tasks: int,
    *,
    noise: float = 0.1,
    hardness: float = 0.2,
    seed: int = 0,
    step: int = 0,
) -> list[Trial]:
    """A trial of every template on every task: 0.5, what its pieces add, the task's own difficulty, and noise."""
    chance = random.Random(seed)
    hard = [chance.gauss(0, hardness) for _ in range(tasks)]
    return [
        trial(one, task, 0.5 + worth(one, effects) + hard[task] + chance.gauss(0, noise), step)
        for task in range(tasks)
        for one in templates
    ]
