"""Rows into nouns and back: what was saved compares equal with what is read."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from grpo_ray.canonical import plain, typed
from grpo_ray.lineage import Known, Life, named_in
from grpo_ray.protocols import LABEL
from grpo_ray.recipe import RunState
from grpo_ray.storage._text import document
from grpo_ray.trials import Trial
from grpo_ray.types import (
    Adapter,
    Evaluation,
    Example,
    Group,
    Lesson,
    LostGroup,
    Message,
    Parameter,
    Prompt,
    Reward,
    RewardPart,
    Rollout,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
    Template,
)

Row = dict[str, Any]


def template_row(run: str, template: Template) -> Row:
    return {
        "run": run,
        **{name: getattr(template, name) for name in ("id", "text", "task_type", "complexity", "system", "version")},
        "parameters": document(template.parameters),
        "settings": document(template.settings),
        "examples": document(template.examples),
        "parents": list(template.parents),
        "mutation": template.mutation,
        "note": template.note,
        "stand_in": template.stand_in,
    }


def template_of(row: Row) -> Template:
    return Template(
        **{name: row[name] for name in ("id", "text", "task_type", "complexity", "system", "version")},
        parameters=typed(tuple[Parameter, ...], row["parameters"]),
        settings=typed(tuple[tuple[str, str], ...], row["settings"]),
        examples=typed(tuple[Example, ...], row["examples"]),
        parents=tuple(row["parents"]),
        mutation=row["mutation"],
        note=row["note"],
        stand_in=row["stand_in"],
    )


def member_rows(state: RunState) -> list[Row]:
    """What was known of each living template at the beginning of the state's step."""
    return [
        {"run": state.run, "step": state.step, "template": member.template.id}
        | {"fitness": float(member.fitness), "deviation": float(member.deviation), "trials": float(member.trials)}
        for member in state.population.members
    ]


def life_rows(state: RunState) -> list[Row]:
    """The beginning of the life of every template that a state names."""
    return [{"run": state.run, "template": template.id, "step": state.step} for template in named_in(state)]


def death_row(state: RunState) -> Row:
    """What ends the lives of templates that a state has no longer."""
    row: Row = {"run": state.run, "step": state.step}
    row |= {"living": [template.id for template in state.population.templates]}
    return row | {
        "ids": [id for id, _ in state.population.retired],
        "why": [why for _, why in state.population.retired],
    }


def life_of(row: Row) -> Life:
    course = zip(row["steps"], row["fitness"], row["deviations"], row["trials"], strict=True)
    return Life(row["template"], row["made"], row["retired"], row["why"], tuple(Known(*known) for known in course))


def told(life: Life) -> Row:
    """What a template's row says of its life."""
    names = ("made", "retired", "why")
    return {name: getattr(life, name) for name in names} | {"history": plain(life.course)}


def trial_of(row: Row) -> Trial:
    """The mean to the last bit, whatever the order of the rewards."""
    names = ("template", "task", "task_type", "step")
    return Trial(**{name: row[name] for name in names}, value=fmean(row["rewards"]), count=len(row["rewards"]))


def task_row(run: str, task: Task) -> Row:
    names = ("id", "question", "answer", "task_type", "verifier")
    return {"run": run, **{name: getattr(task, name) for name in names}, "metadata": document(task.metadata)}


def prompt_row(run: str, prompt: Prompt) -> Row:
    return {"run": run, "id": prompt.id, "template": prompt.template_id, "task": prompt.task.id} | {
        "messages": document(prompt.messages)
    }


def prompt_of(row: Row) -> Prompt:
    names = ("question", "answer", "task_type", "verifier", "metadata")
    task = Task(id=row["task"], **{name: row[name] for name in names})
    return Prompt(row["prompt"], row["template"], task, typed(tuple[Message, ...], row["messages"]))


def group_row(run: str, step: int, group: Group | LostGroup) -> Row:
    row: Row = {"run": run, "id": group.id, "step": step, "prompt": group.prompt.id}
    if isinstance(group, LostGroup):
        unknown: Row = {"prompt_token_ids": [], "model": "", "adapter": None, "sampling": None, "seconds": 0.0}
        return row | {"lost": group.reason} | unknown
    return row | {
        "lost": None,
        "prompt_token_ids": list(group.prompt_token_ids),
        "model": group.model,
        "adapter": group.adapter,
        "sampling": document(group.sampling),
        "seconds": float(group.seconds),
    }


def rollout_rows(run: str, group: Group) -> list[Row]:
    return [
        {"run": run, "id": one.id, "group": group.id, "index": one.index, "text": one.text, "seed": one.seed}
        | {"token_ids": list(one.token_ids), "logprobs": [float(value) for value in one.logprobs]}
        | {"model_logprobs": [float(value) for value in one.model_logprobs], "finish_reason": one.finish_reason}
        for one in group.rollouts
    ]


def groups_of(rows: Sequence[Row], rollouts: Sequence[Row]) -> list[Group | LostGroup]:
    """In the rows' order; each with its rollouts in theirs."""
    drawn: dict[str, list[Rollout]] = defaultdict(list)
    for row in rollouts:
        drawn[row["sample_group"]].append(_rollout_of(row))
    return [_group_of(row, tuple(drawn[row["id"]])) for row in rows]


def _group_of(row: Row, rollouts: tuple[Rollout, ...]) -> Group | LostGroup:
    if row["lost"] is not None:
        return LostGroup(row["id"], prompt_of(row), row["lost"])
    return Group(
        id=row["id"],
        prompt=prompt_of(row),
        rollouts=rollouts,
        prompt_token_ids=tuple(row["prompt_token_ids"]),
        sampling=typed(Sampling, row["sampling"]),
        model=row["model"],
        adapter=row["adapter"],
        seconds=row["seconds"],
    )


def _rollout_of(row: Row) -> Rollout:
    return Rollout(
        id=row["id"],
        index=row["index"],
        text=row["text"],
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        finish_reason=row["finish_reason"],
        seed=int(row["seed"]),
        model_logprobs=tuple(row["model_logprobs"]),
    )


def said_rows(run: str, scored: ScoredGroup) -> tuple[list[Row], list[Row], list[Row]]:
    """The rows of evaluations, of rewards and of reward parts."""
    said = [
        {**evaluation_row(run, e), "rollout": one.rollout.id, "index": index}
        for one in scored.rollouts
        for index, e in enumerate(one.evaluations)
    ]
    rewards = [
        {"run": run, "rollout": one.rollout.id, "value": _number(one.reward.value)}
        | {"evaluations": len(one.evaluations)}
        for one in scored.rollouts
    ]
    parts = [
        {"run": run, "rollout": one.rollout.id, "index": index, "name": part.name}
        | {"value": _number(part.value), "weight": float(part.weight)}
        for one in scored.rollouts
        for index, part in enumerate(one.reward.parts)
    ]
    return said, rewards, parts


def evaluation_row(run: str, e: Evaluation) -> Row:
    row: Row = {"run": run, "rollout": e.rollout_id, "judge": e.judge, "dimension": e.dimension}
    row |= {"score": _number(e.score), "rationale": e.rationale, "model": e.model, "stand_in": e.stand_in}
    return row | {"version": e.version, "audit": e.audit}


def audits(evaluations: Sequence[Evaluation]) -> None:
    """Raise ValueError for an evaluation that is no audit."""
    if strange := next((e for e in evaluations if not e.audit), None):
        raise ValueError(f"{strange.judge}'s evaluation of {strange.rollout_id} is no audit: its reward is made")


def labelled(labels: Sequence[Evaluation]) -> list[Evaluation]:
    """People's labels as they are kept, as audits. Raises ValueError for what no person said, or is no mark."""
    for e in labels:
        if not e.judge.startswith(f"{LABEL}:"):
            raise ValueError(f"{e.judge}'s evaluation of {e.rollout_id} is no label: a person is called {LABEL}:NAME")
        if e.score is None or not math.isfinite(e.score):
            raise ValueError(f"{e.judge}'s label of {e.rollout_id} has no score: {e.score}")
    return [replace(e, audit=LABEL) for e in labels]


def scored_of(
    group: Group, said: dict[str, list[Row]], rewards: dict[str, list[Row]], parts: dict[str, list[Row]]
) -> ScoredGroup:
    """The group as it was scored; each table by rollout id."""
    return ScoredGroup(
        group,
        tuple(
            ScoredRollout(
                rollout,
                tuple(evaluation_of(row) for row in said[rollout.id] if row["counted"]),
                Reward(
                    rewards[rollout.id][0]["value"],
                    tuple(RewardPart(row["name"], row["value"], row["weight"]) for row in parts[rollout.id]),
                ),
            )
            for rollout in group.rollouts
            if rollout.id in rewards
        ),
    )


def lesson_of(scored: ScoredGroup, rewards: dict[str, list[Row]]) -> Lesson:
    return Lesson(scored, tuple(rewards[one.rollout.id][0]["advantage"] for one in scored.rollouts))


def evaluation_of(row: Row) -> Evaluation:
    names = ("judge", "dimension", "score", "rationale", "model", "stand_in", "version", "audit")
    return Evaluation(rollout_id=row["rollout"], **{name: row[name] for name in names})


def adapter_of(row: Row) -> Adapter:
    return Adapter(**{name: row[name] for name in ("hash", "version", "parent", "step", "rate_scale")})


def by_rollout(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["rollout"]].append(row)
    return found


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
