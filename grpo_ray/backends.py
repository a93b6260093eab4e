"""The two backends that hold a model, from the recipe's names; light to import, for processes that do nothing else."""

import sys
from collections.abc import Iterator

from grpo_ray.protocols import Generator, Trainer
from grpo_ray.recipe import Named, Recipe
from grpo_ray.registry import find

LIGHT = ("canned", "openai_compatible")
"""Backends that load no model, and so run on any node."""


def make_generator(recipe: Recipe) -> Generator:
    """The recipe's generator; it loads the model, so call this on the thread where the model shall live."""
    make = find("generators", recipe.generator.name, "make_generator")
    return make(model=recipe.model, **recipe.generator.settings)


def make_trainer(model: str, named: Named) -> Trainer:
    """The trainer `named`; it loads the model, so call this on the thread where the model shall live."""
    return find("trainers", named.name, "make_trainer")(model=model, **named.settings)


def untrainable(recipe: Recipe) -> Iterator[str]:
    """Why the recipe's trainer can't learn from its generator's rollouts: a file says `TRAINABLE = False` of its own."""
    trainer, name = recipe.trainer, recipe.generator.name
    if trainer is None or trainer.name in LIGHT:
        return
    module = sys.modules[find("generators", name, "make_generator").__module__]
    if not getattr(module, "TRAINABLE", True):
        yield (
            f"trainer: {trainer.name} needs the sampler's token ids and log-probabilities, and {name} gives none: "
            "set trainer: null to make data alone, or generator: {name: mlx}"
        )
