"""Lessons for trainers: real rollouts of a tiny model, and how much a model prefers the better ones."""

from random import Random

from grpo_ray import mlx_model
from grpo_ray.generators.mlx import make_generator
from grpo_ray.mlx_core import mx
from grpo_ray.trainers._pupil import pupil_of, read_plain
from grpo_ray.trainers.losses import token_logprobs
from grpo_ray.types import Adapter, Lesson, Message, Prompt, Reward, Sampling, ScoredGroup, ScoredRollout, Task, Wave

TEXTS = ("one", "two and two and two", "a third one, rather longer", "4")
SETTINGS = {"rank": 4, "learning_rate": 5e-3, "groups_per_batch": 2, "clip_high": 0.28, "mismatch": "none"}
FIRST = Adapter("first", 1, None, 0)


def sample_lessons(folder: str, sampling: Sampling) -> list[Lesson]:
    """Real rollouts with advantages that sum to zero, some of them zero."""
    prompts = tuple(Prompt(text, "t", Task(text, text), (Message("user", text),)) for text in TEXTS)
    groups = make_generator(model=folder).sample(Wave("w", prompts, sampling), None, None)
    return [lesson_of(group) for group in sorted(groups, key=lambda group: group.id)]


def lesson_of(group) -> Lesson:
    advantages = [1.3, -1.3, 0.4, -0.4, *[0.0] * len(group.rollouts)][: len(group.rollouts)]
    Random(group.id).shuffle(advantages)
    scored = tuple(ScoredRollout(rollout, (), Reward(0.5, ())) for rollout in group.rollouts)
    return Lesson(ScoredGroup(group, scored), tuple(advantages))


def trained(folder: str, content) -> mlx_model.Model:
    model = mlx_model.load(folder)
    mlx_model.swap(model, content.weights if content else None)
    return model


def preference(model: mlx_model.Model, lessons: list[Lesson]) -> float:
    """Mean over tokens of advantage × log-probability: what an update should raise."""
    pupils = [taught for lesson in lessons if (taught := pupil_of(lesson))]
    total = 0.0
    for pupil in pupils:
        logps, _ = token_logprobs(read_plain(model.network, pupil), pupil.tokens_G_T, pupil.temperature)
        total += (mx.where(pupil.active_G_T, logps, 0.0) * pupil.advantages_G[:, None]).sum().item()
    return total / sum(sum(pupil.lengths) for pupil in pupils)


def prepared(folder: str, content) -> mlx_model.Model:
    model = trained(folder, content)
    model.network.freeze()
    model.network.apply_to_modules(lambda _, module: mlx_model.unfreeze(module))
    return model
