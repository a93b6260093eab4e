"""How a candidate of a simulated world is written down: phrase lines for settings, sentence lines for rules, and clues.

Everything that can be said about a candidate can be read back from its text; what can't be read is clutter.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from numpy.random import Generator

from grpo_ray.types import Choice, Parameter, Template

UNSET = -1
QUESTION = "{{ question }}"
PRAISE = "The answer is right."
VAGUE = ("The answer is not right.", "This could be better.", "The reasoning goes wrong somewhere.")
ASPECTS = ("tone", "layout", "opening", "order", "detail", "pace", "voice", "notation", "ending", "focus", "framing", "checking")  # fmt: skip
MANNERS = ("plain", "strict", "short", "careful", "bold", "formal", "loose", "numbered", "quiet", "direct", "warm", "terse", "broad", "narrow", "steady", "brisk")  # fmt: skip
VERBS = ("Check", "State", "Keep track of", "Pay attention to", "Write down", "Think about", "Name", "Compare")
TOPICS = (
    "units", "signs", "carries", "edge cases", "assumptions", "rounding", "sources", "definitions", "dates", "spelling",
    "brackets", "totals", "exceptions", "duplicates", "limits", "examples", "symbols", "ratios", "intervals", "names",
    "conditions", "negations", "margins", "patterns", "quantities", "contradictions", "references", "steps", "labels",
    "alternatives", "constants", "indices", "tables", "deadlines", "synonyms", "outliers",
)  # fmt: skip
_SENTENCE = re.compile(r"\n+|(?<=[.!?:;])\s+")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a text amounts to: one value a parameter (UNSET: no phrase for it), rules, and pieces that mean nothing."""

    settings: tuple[int, ...]
    rules: frozenset[int]
    clutter: int = 0


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a candidate; a `set` without a value says which parameter is wrong and not what would be right."""

    kind: Literal["add", "drop", "set"]
    index: int
    value: int | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """A world's vocabulary: `values[p]` are the labels of parameter p, `topics[r]` what rule r is about."""

    aspects: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    topics: tuple[str, ...]
    verbs: tuple[str, ...]

    @classmethod
    def draw(cls, levels: Sequence[int], rules: int, rng: Generator) -> "Words":
        """Words for parameters with so many values each, and for so many rules; they say nothing of what is useful."""
        pick = rng.choice(len(ASPECTS), len(levels), replace=False)
        values = [tuple(MANNERS[i] for i in rng.choice(len(MANNERS), count, replace=False)) for count in levels]
        topics = tuple(TOPICS[i] for i in rng.choice(len(TOPICS), rules, replace=False))
        verbs = tuple(VERBS[i] for i in rng.integers(len(VERBS), size=rules))
        return cls(tuple(ASPECTS[i] for i in pick), tuple(values), topics, verbs)

    # ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def phrase(self, parameter: int, value: int) -> str:
        return f"Use a {self.values[parameter][value]} {self.aspects[parameter]}."

    def rule(self, index: int) -> str:
        return f"{self.verbs[index]} the {self.topics[index]}."

    def text(self, candidate: Candidate) -> str:
        """The candidate's text with its settings filled in; clutter is not written again."""
        phrases = [self.phrase(p, v) for p, v in enumerate(candidate.settings) if v != UNSET]
        return "\n".join([*phrases, *map(self.rule, sorted(candidate.rules)), "", QUESTION])

    def template(self, candidate: Candidate, id: str) -> Template:
        """The same with a placeholder for each parameter."""
        lines = [f"{{{{ p{p} }}}}" for p in range(len(self.values))]
        text = "\n".join([*lines, *map(self.rule, sorted(candidate.rules)), "", QUESTION])
        settings = tuple((f"p{p}", self.values[p][value]) for p, value in enumerate(candidate.settings))
        return Template(id, text, parameters=self.parameters(), settings=settings)

    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(
            Parameter(f"p{p}", tuple(Choice(label, self.phrase(p, v)) for v, label in enumerate(labels)))
            for p, labels in enumerate(self.values)
        )

    def parse(self, text: str) -> Candidate:
        """Any text as a candidate. A second phrase for a parameter, a repeated rule and unknown words are clutter."""
        known = self._known()
        settings, rules, clutter = [UNSET] * len(self.values), set[int](), 0
        for piece in _SENTENCE.split(text.replace(QUESTION, "\n")):
            said = piece.strip().casefold()
            edit = known.get(said)
            if edit is None:
                clutter += bool(said)
            elif edit.kind == "set" and edit.value is not None and settings[edit.index] == UNSET:
                settings[edit.index] = edit.value
            elif edit.kind == "add" and edit.index not in rules:
                rules.add(edit.index)
            else:
                clutter += 1
        return Candidate(tuple(settings), frozenset(rules), clutter)

    def _known(self) -> dict[str, Edit]:
        phrases = {self.phrase(p, v): Edit("set", p, v) for p, some in enumerate(self.values) for v in range(len(some))}
        rules = {self.rule(index): Edit("add", index) for index in range(len(self.topics))}
        return {text.casefold(): edit for text, edit in (phrases | rules).items()}

    # ── clues ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def clue(self, edit: Edit) -> str:
        """What a critic writes who thinks that this edit would help."""
        if edit.kind == "add":
            return f"It overlooks the {self.topics[edit.index]}."
        if edit.kind == "drop":
            return f"It is led astray by the {self.topics[edit.index]}."
        wish = "" if edit.value is None else f", a {self.values[edit.index][edit.value]} one would do better"
        return f"The {self.aspects[edit.index]} does not fit{wish}."

    def read(self, feedback: str) -> Edit | None:
        """The edit that a clue calls for; None where it names nothing."""
        if found := re.search(r"It (overlooks|is led astray by) the (.+?)\.", feedback):
            kind: Literal["add", "drop"] = "add" if found[1] == "overlooks" else "drop"
            return Edit(kind, self.topics.index(found[2])) if found[2] in self.topics else None
        found = re.search(r"The (\w+) does not fit(?:, a (\w+) one)?", feedback)
        if not found or found[1] not in self.aspects:
            return None
        parameter = self.aspects.index(found[1])
        labels = self.values[parameter]
        return Edit("set", parameter, labels.index(found[2]) if found[2] in labels else None)


def edited(candidate: Candidate, edit: Edit) -> Candidate:
    """The candidate with one edit made; a `set` needs its value."""
    if edit.kind == "add":
        return replace(candidate, rules=candidate.rules | {edit.index})
    if edit.kind == "drop":
        return replace(candidate, rules=candidate.rules - {edit.index})
    assert edit.value is not None, "which value?"
    settings = list(candidate.settings)
    settings[edit.index] = edit.value
    return replace(candidate, settings=tuple(settings))
