"""The two backends that hold a model, from the recipe's names; light to import, for processes that do nothing else."""

from grpo_ray.protocols import Generator, Trainer
from grpo_ray.recipe import Named, Recipe
from grpo_ray.registry import find

LIGHT = ("canned",)
"""Backends that load no model, and so run on any node."""


def make_generator(recipe: Recipe) -> Generator:
    """The recipe's generator; it loads the model, so call this on the thread where the model shall live."""
    make = find("generators", recipe.generator.name, "make_generator")
    return make(model=recipe.model, **recipe.generator.settings)


def make_trainer(model: str, named: Named) -> Trainer:
    """The trainer `named`; it loads the model, so call this on the thread where the model shall live."""
    return find("trainers", named.name, "make_trainer")(model=model, **named.settings)
