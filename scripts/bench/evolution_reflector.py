"""A stand-in for the reflection model, the same for every search: it reads feedback and edits the text it is about.

It acts on at most three clues, worst scores first; each with the world's `skill`, else by a whim. Without a clue it has
a whim. `SimOracle` lets our mutations ask it as they would ask a model.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from evolution_words import QUESTION, UNSET, Edit, Words
from evolution_worlds import World

from grpo_ray.asking import Silent
from grpo_ray.canonical import digest
from grpo_ray.errors import OracleError
from grpo_ray.fenced import unfenced
from grpo_ray.types import Message, Reply

CLUES = 3
WHIMS = {"add": 0.5, "set": 0.35, "drop": 0.15}
"""What a model does that has no idea what is wrong."""
DIMENSIONS = 64
Evidence = Sequence[tuple[float, str]]
"""(score, feedback) of rollouts of the text."""


class Reflector:
    """Rewrites texts of one world. `replies` counts what it was asked."""

    def __init__(self, world: World, seed: int) -> None:
        self.words, self.skill = world.words, world.traits.skill
        self.replies = 0
        self._rng = random.Random(f"reflector {seed}")

    def reflect(self, text: str, evidence: Evidence, rng: random.Random | None = None) -> str:
        """The text with one to three edits; never the text as it was."""
        self.replies += 1
        rng = rng or self._rng
        clues = [edit for _, said in sorted(evidence, key=lambda one: one[0]) if (edit := self.words.read(said))]
        new = text
        for edit in list(dict.fromkeys(clues))[:CLUES]:
            new = self._made(new, edit, rng) if rng.random() < self.skill else self.whim(new, rng)
        return new if new != text else self.whim(text, rng)

    def whim(self, text: str, rng: random.Random | None = None) -> str:
        """The text with a random edit: a rule more, another phrase, or a rule less."""
        rng = rng or self._rng
        there = self.words.parse(text)
        rules = range(len(self.words.topics))
        open_to = {
            "add": [Edit("add", index) for index in rules if index not in there.rules],
            "drop": [Edit("drop", index) for index in sorted(there.rules)],
            "set": [Edit("set", index) for index in range(len(self.words.values))],
        }
        kinds = [kind for kind, edits in open_to.items() if edits]
        (kind,) = rng.choices(kinds, [WHIMS[kind] for kind in kinds])
        return self._made(text, rng.choice(open_to[kind]), rng)

    def _made(self, text: str, edit: Edit, rng: random.Random) -> str:
        """The text with an edit made; where there is nothing to be done, as it was."""
        there = self.words.parse(text)
        if edit.kind == "set":
            return self._set(text, edit, there.settings[edit.index], rng)
        rule = self.words.rule(edit.index)
        if edit.kind == "drop":
            return re.sub(rf"{re.escape(rule)}\n?", "", text)
        return text if edit.index in there.rules else _inserted(text, rule)

    def _set(self, text: str, edit: Edit, old: int, rng: random.Random) -> str:
        others = [value for value in range(len(self.words.values[edit.index])) if value != old]
        new = self.words.phrase(edit.index, rng.choice(others) if edit.value is None else edit.value)
        return f"{new}\n{text}" if old == UNSET else text.replace(self.words.phrase(edit.index, old), new, 1)


def _inserted(text: str, line: str) -> str:
    """The text with a line under the last line of the instruction."""
    lines = text.splitlines()
    said = [i for i, one in enumerate(lines) if one.strip() and QUESTION not in one]
    place = said[-1] + 1 if said else 0
    return "\n".join([*lines[:place], line, *lines[place:]])


class SimOracle(Silent):
    """The reflector behind the Oracle protocol. A reply depends on the request and how often it came, not on when."""

    def __init__(self, world: World, seed: int) -> None:
        self.reflector = Reflector(world, seed)
        self._seed = seed
        self._asked: Counter[str] = Counter()

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        """The rewritten template as JSON; its settings are moved under `settings`. Raises OracleError for other shapes."""
        if shape is None or not {"diagnosis", "text"} <= set(shape.model_fields):
            raise OracleError(f"the simulated model only rewrites, and was asked for {shape}")
        key = digest([[m.role, m.content] for m in messages])
        self._asked[key] += 1
        rng = random.Random(f"{self._seed} {key} {self._asked[key] if nth is None else nth}")
        data = next(found for message in messages if (found := unfenced(message.content)))
        said = self._rewritten(data, rng)
        return Reply(shape.model_validate(said).model_dump_json(), "simulated", stand_in=True)

    def _rewritten(self, data: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
        settings = dict(data["settings"])
        shown = [*data.get("worst", ()), *data.get("best", ())]
        scored = [one for one in shown if one["reward"] is not None]
        evidence = [(float(one["reward"]), note["rationale"]) for one in scored for note in one["feedback"]]
        old = filled(data["template"], settings, self.reflector.words)
        new = self.reflector.reflect(old, evidence, rng)
        text, moved = unfilled(new, data["template"], settings, self.reflector.words)
        clues = [said for _, said in evidence if self.reflector.words.read(said)]
        return {"diagnosis": clues[0] if clues else "Nothing stands out.", "text": text, "settings": moved}

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Hashed bags of words, as unit vectors."""
        return [_bag(text) for text in texts]


def filled(text: str, settings: Mapping[str, str], words: Words) -> str:
    """The template's text with the phrases of its settings in place of the parameters' placeholders."""
    for parameter in words.parameters():
        if parameter.name in settings:
            phrase = next(c.text for c in parameter.choices if c.label == settings[parameter.name])
            text = text.replace(f"{{{{ {parameter.name} }}}}", phrase)
    return text


def unfilled(new: str, template: str, settings: Mapping[str, str], words: Words) -> tuple[str, dict[str, str]]:
    """A filled text with the template's placeholders back in place of the phrases, and the settings that moved."""
    moved = dict[str, str]()
    for parameter in words.parameters():
        placeholder = f"{{{{ {parameter.name} }}}}"
        if placeholder not in template:
            continue
        found = min((c for c in parameter.choices if c.text in new), key=lambda c: new.index(c.text))
        new = new.replace(found.text, placeholder, 1)
        if found.label != settings[parameter.name]:
            moved[parameter.name] = found.label
    return new, moved


def _bag(text: str) -> list[float]:
    vector = np.zeros(DIMENSIONS)
    for word in re.findall(r"\w+", text.lower()):
        vector[int(digest(word)[:8], 16) % DIMENSIONS] += 1.0
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).tolist()
