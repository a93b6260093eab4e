"""A made-up run with judges of known faults, for what is told about judges."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from grpo_ray.recipe import JudgeSpec, Named, Recipe, RewardSpec, TrustSpec
from grpo_ray.trust.report import Saved
from grpo_ray.types import (
    Attempt,
    Evaluation,
    Group,
    Lesson,
    Message,
    Prompt,
    Reward,
    RewardPart,
    Rollout,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
)

RECIPE = Recipe(
    name="made up",
    tasks=(Named(name="jsonl"),),
    judges=(JudgeSpec(name="rubric"),),
    rewards=(RewardSpec(name="judge_score"),),
    trust=TrustSpec(audit=0.3, canaries=0.05),
)
OPENER = "Thought process: "
Said = Mapping[tuple[str, str, str], float | None]
"""(judge, dimension, audit) → mark"""


def evaluation(rollout: str, key: tuple[str, str, str], mark: float | None, stand_in: bool = False) -> Evaluation:
    """What one judge said; verifiers and people ask no model."""
    judge, dimension, audit = key
    model = "" if judge == "verifier" or judge.startswith("person:") else "judge-1"
    return Evaluation(
        rollout, judge, dimension, mark, "said" if mark is not None else "timeout", model, stand_in, "j-1", audit
    )


def scored(name: str, answers: Mapping[str, Said], *, stand_in: bool = False, task: str = "t-1") -> ScoredGroup:
    """A group of the answers (text → what was said of it), rewarded by the rubric's mean mark."""
    prompt = Prompt(f"p-{name}", "tpl", Task(task, "What is 2 + 2?", "4"), (Message("user", "?"),))
    found = []
    for i, (text, said) in enumerate(answers.items()):
        rollout = Rollout(f"{name}-{i}", i, text, (1,), (-0.1,), "stop", i)
        evaluations = tuple(evaluation(rollout.id, key, mark, stand_in) for key, mark in said.items())
        counts = [e.score for e in evaluations if e.judge == "rubric" and not e.audit and e.score is not None]
        value = sum(counts) / len(counts) if counts else None
        found.append(ScoredRollout(rollout, evaluations, Reward(value, (RewardPart("judge_score", value, 1.0),))))
    rollouts = tuple(one.rollout for one in found)
    group = Group(name, prompt, rollouts, (1,), Sampling(group_size=len(found)), "nano", None)
    return ScoredGroup(group, tuple(found))


def faulty(
    groups: int = 60, size: int = 8, *, opener: float = 0.0, noise: float = 0.05, stand_in: bool = False
) -> Saved:
    """A run of 4 steps whose rubric marks `reasoning` by the verdict with some noise, `relevance` always 1, `depth` by
    chance; an answer that begins with OPENER earns `opener` more. Each group is judged again."""
    rng = np.random.default_rng(5)
    steps: dict[int, list[ScoredGroup]] = {step: [] for step in range(4)}
    for place in range(groups):
        answers = {}
        for i in range(size):
            right, opens = float(rng.random() < 0.5), rng.random() < 0.3
            text = (OPENER if opens else "") + f"{place} {i} " + "x" * int(rng.integers(10, 200))
            base = 0.3 + 0.4 * right + opener * opens
            said: dict[tuple[str, str, str], float | None] = {("verifier", "verified", ""): right}
            for audit in ("", "repeat"):
                said["rubric", "reasoning", audit] = float(np.clip(base + noise * rng.normal(), 0, 1))
                said["rubric", "relevance", audit] = 1.0
                said["rubric", "depth", audit] = float(rng.integers(0, 5)) / 4
            answers[text] = said
        steps[place % 4].append(scored(f"g-{place:02}", answers, stand_in=stand_in))
    return Saved("run-1", RECIPE, steps, lessons(steps), canaries(), attempts())


def lessons(steps: Mapping[int, list[ScoredGroup]]) -> list[Lesson]:
    return [Lesson(one, (0.0,) * len(one.rollouts)) for groups in steps.values() for one in groups]


def canaries(fooled_by: str = "opener", given: int = 20) -> list[dict[str, Any]]:
    """Half of them of a kind that fools the rubric, the other half empty, which does not."""
    return [
        {
            "kind": "canary",
            "step": i % 4,
            "detail": {"judge": "rubric", "canary": kind, "passed": kind == fooled_by, "group": f"g-{i}"},
        }
        for i, kind in enumerate([fooled_by, "empty"] * (given // 2))
    ]


def attempts() -> list[Attempt]:
    """Four calls for rewards, two for audits, one for a canary, one for an exam, and one for a rewrite."""
    scopes = ["0/g-1/0-rubric"] * 4 + ["0/g-1/0-rubric-repeat"] * 2 + ["0/canary-7/0-rubric", "-1/x/0-rubric"]
    return [
        Attempt("h", "host model", scope, 1 + (i == 3), "429" if i == 2 else "ok", 0.0, 0.1 * (i + 1), 100, 10, 0.5)
        for i, scope in enumerate([*scopes, "0/evolve/child/1"])
    ]
