"""Rewrites a template's instruction, and may move its settings, from the contrast between its better and worse answers."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from grpo_ray.fenced import NOTICE, fenced
from grpo_ray.mutations import _texts
from grpo_ray.mutations._known import known
from grpo_ray.pieces import jinja, pieces, with_settings
from grpo_ray.prompting import content_hash
from grpo_ray.protocols import Oracle
from grpo_ray.registry import hint
from grpo_ray.types import Message, Parent, Prompt, ScoredRollout, Template

WORST, BEST, REJECTED, EVIDENCE = 3, 2, 10, 60
"""How much is shown of each."""
SHOWN = 1500
"""Characters of an answer that are shown."""
ADVICE = (
    "Change only what the feedback calls for.",
    "Say it in one short sentence.",
    "Say plainly what form the working should take.",
    "Say it quite differently from the present text.",
)
INSTRUCTIONS = f"""You improve a prompt template. Read how it did: its `worst` and its `best` answers, each with its reward \
and with what judges wrote about it; `contrasts` says which of them, a better and a worse one, answered one and the same \
prompt: look at these first. `choices` are the settings that the template's parameters can have, with their words in \
`choice_texts`; `settings` are those it has now. `evidence` is what statistics over all trials so far say that a setting \
or a sentence adds to the reward: noisy, and 0 where little is known. `tried_without_success` are changes that did not help.
First write a diagnosis of one or two sentences: what the better answers do that the worse ones don't, what in the \
template leads to the flaws, and what would mend them. Then name the settings that should move to another label; an empty \
list where none should. Then write the template's text anew; it may stay as it is where a setting moves.
Keep every {{{{ … }}}} and {{% … %}} of the text exactly as it stands, each as often as now; change the words around \
them. The text must serve any task of this kind: name no single question or answer.
{NOTICE}"""
Shown = tuple[Prompt, ScoredRollout]


class Setting(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    label: str


class Rewritten(BaseModel):
    """The diagnosis stands before the rest, so that the rest can follow from it."""

    model_config = ConfigDict(extra="forbid")
    diagnosis: str
    settings: list[Setting]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _plainly(cls, said: Any) -> Any:
        """Settings may be missing or a mapping, and labels numbers, where an endpoint doesn't hold replies to the schema."""
        if not isinstance(said, dict):
            return said
        settings = said.get("settings") or []
        pairs = [{"name": k, "label": v} for k, v in settings.items()] if isinstance(settings, dict) else settings
        return said | {"settings": [_worded(pair) for pair in pairs] if isinstance(pairs, list) else pairs}


def _worded(pair: Any) -> Any:
    if isinstance(pair, dict) and isinstance(pair.get("label"), int | float):
        return pair | {"label": json.dumps(pair["label"])}
    return pair


async def mutate(
    parents: Sequence[Parent], oracle: Oracle, rng: random.Random, *, max_characters: int = 2000
) -> Template:
    """The first parent with a new text, other settings, or both. Raises OracleError when two replies in a row won't do."""
    parent, tried = parents[0], known(parents)
    messages = request(parent, rng.choice(ADVICE), max_characters)

    def wrong(said: Rewritten) -> list[str]:
        return problems(said, parent, max_characters, tried)

    said, reply = await _texts.written(oracle, messages, Rewritten, wrong)
    note = " ".join(said.diagnosis.split())[:500]
    child = replace(rewritten(parent.template, said), mutation="rewrite", parents=(parent.template.id,), note=note)
    return replace(child, stand_in=child.stand_in or reply.stand_in)


def request(parent: Parent, advice: str, max_characters: int) -> list[Message]:
    """The template and its evidence, as fenced data under fixed instructions."""
    template, worst, best = parent.template, parent.worst[:WORST], parent.best[:BEST]
    rewards = [scored.reward.value for _, scored in (*worst, *best) if scored.reward.value is not None]
    data = {
        "template": template.text,
        "system": template.system,
        "settings": [list(pair) for pair in template.settings],
        "choices": {p.name: [choice.label for choice in p.choices] for p in template.parameters},
        "choice_texts": {
            p.name: {c.label: c.text for c in p.choices}
            for p in template.parameters
            if any(c.label != c.text for c in p.choices)
        },
        "evidence": evidence(parent),
        "keep": jinja(template.text),
        "max_characters": max_characters,
        "fitness": round(parent.fitness, 4),
        "mean_reward": round(fmean(rewards), 4) if rewards else None,
        "contrasts": contrasts(worst, best),
        "worst": [_shown(f"worst-{number}", *one) for number, one in enumerate(worst, 1)],
        "best": [_shown(f"best-{number}", *one) for number, one in enumerate(best, 1)],
        "tried_without_success": [why for _, why in parent.rejected if why][-REJECTED:],
        "advice": advice,
    }
    return [Message("system", INSTRUCTIONS), Message("user", fenced(data))]


def contrasts(worst: Sequence[Shown], best: Sequence[Shown]) -> list[dict[str, str]]:
    """Which of the answers shown are a better and a worse one to the same prompt, the widest apart first."""
    pairs = [
        (_value(bad) - _value(good), {"better": f"best-{better}", "worse": f"worst-{worse}"})
        for worse, bad in enumerate(worst, 1)
        for better, good in enumerate(best, 1)
        if good[0].id == bad[0].id and _value(good) > _value(bad)
    ]
    return [pair for _, pair in sorted(pairs, key=lambda pair: pair[0])]


def evidence(parent: Parent) -> list[list[Any]]:
    """[piece, what it adds], best first: of the template's own pieces and its parameters' labels, and the best of others."""
    template = parent.template
    near = {*pieces(template), *(f"{p.name}={choice.label}" for p in template.parameters for choice in p.choices)}
    ranked = sorted(parent.hopes, key=lambda hope: -hope[1])
    far = [piece for piece, worth in ranked if piece not in near and worth > 0][: max(0, EVIDENCE - len(near))]
    return [[piece, round(worth, 3)] for piece, worth in ranked if piece in near or piece in far]


def problems(said: Rewritten, parent: Parent, max_characters: int, tried: set[str]) -> list[str]:
    """Why a child can't be made of a reply; empty when one can."""
    template = parent.template
    found = _strange(said, template)
    if not _texts.same(said.text, template.text):
        found += _texts.problems(said.text, parent, max_characters)
    elif not found and rewritten(template, said).settings == template.settings:
        return ["it changes nothing: the text is the one that there is already, and no setting moves"]
    if not found and content_hash(rewritten(template, said)) in tried:
        found.append("this very template was tried before")
    return found


def rewritten(template: Template, said: Rewritten) -> Template:
    """The template as a reply wants it; a text that is new in its white space alone is no new text."""
    moved = with_settings(template, {setting.name: setting.label for setting in said.settings})
    return moved if _texts.same(said.text, template.text) else replace(moved, text=said.text)


def _strange(said: Rewritten, template: Template) -> list[str]:
    """Settings that the template can't have."""
    labels = {p.name: [choice.label for choice in p.choices] for p in template.parameters}
    names = [setting.name for setting in said.settings]
    found = [f"it has no parameter {name!r}{hint(name, list(labels))}" for name in names if name not in labels]
    found += [
        f"{setting.label!r} is no choice of {setting.name!r}{hint(setting.label, labels[setting.name])}"
        for setting in said.settings
        if setting.name in labels and setting.label not in labels[setting.name]
    ]
    return found + [f"the setting {name!r} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]


def _shown(id: str, prompt: Prompt, scored: ScoredRollout) -> dict[str, Any]:
    feedback = [
        {"dimension": e.dimension, "score": e.score, "rationale": e.rationale}
        for e in scored.evaluations
        if e.score is not None and not e.audit and "/" not in e.judge  # neither audits nor a panel's single members
    ]
    answer, reward = scored.rollout.text[:SHOWN], scored.reward.value
    return {"id": id, "question": prompt.task.question, "answer": answer, "reward": reward, "feedback": feedback}


def _value(shown: Shown) -> float:
    return shown[1].reward.value or 0.0
