"""What templates are made of, cut so that two of them can share a piece (settings, and sentences of their texts), and
put together anew.

A text is a frame with loose sentences between. Placeholders, conditional parts, labels (`Question:`) and sentences that
hold a placeholder are frame, and stay where they are; a loose sentence makes sense without what stands around it.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from grpo_ray.types import Template

Kind = Literal["jinja", "gap", "frame", "loose"]
_JINJA = re.compile(r"(\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\})", re.DOTALL)
_GAP = re.compile(r"""(\s*\n\s*|(?<=[.!?…])\s+|(?<=[.!?…]["')\]”’])\s+|(?<=[。！？])\s*)""")
"""What stands between two sentences or lines."""
_GOES_ON = re.compile(r"(?:^\(?\d{1,3}[.)]|\b(?:e\.g|i\.e|cf|vs|Mr|Mrs|Dr)\.)$")
"""What ends with a full stop and yet no sentence: numbers of a list, abbreviations."""
_ENDS = re.compile(r"""[.!?…。！？]["')\]”’*_]*$""")
_FIXED = re.compile(r"[{%#]\{|\{[%#]|[}%#]\}|\}\}|:$|^#|^<.*>$|\banswer\s*:", re.IGNORECASE | re.DOTALL)
"""What belongs to what follows it, or says in which form the answer comes: labels, headings, tags, `Answer:`."""
_LISTED = re.compile(r"[-*•]\s|\(?\d{1,3}[.)]\s")
_OPENERS = ("if", "raw", "for", "filter", "with", "set", "macro", "call", "block", "autoescape")


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a text. Gaps are white space; the parts of a text, joined, are the text."""

    text: str
    kind: Kind


# ── what a template is made of ────────────────────────────────────────────────────────────────────────────────────


def pieces(template: Template) -> tuple[str, ...]:
    """Every setting as "name=label", then every sentence of the system text and the text, each once."""
    return _pieces(template.settings, template.system or "", template.text)


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, in order, without white space around them; placeholders end a sentence."""
    return list(_sentences(text))


def loose(template: Template) -> tuple[str, ...]:
    """The sentences of the system text and the text that can be taken out, each once."""
    return _loose(template.system or "", template.text)


def jinja(text: str) -> list[str]:
    """Every placeholder and statement of a text, sorted, blanks evened out."""
    return sorted(" ".join([found[:2], *found[2:-2].split(), found[-2:]]) for found in _JINJA.findall(text))


# ── a template made anew ──────────────────────────────────────────────────────────────────────────────────────────


def with_settings(template: Template, labels: Mapping[str, str]) -> Template:
    """The template with some parameters at other labels."""
    return replace(template, settings=tuple((name, labels.get(name, label)) for name, label in template.settings))


def with_sentences(template: Template, *, dropped: Collection[str] = (), added: Sequence[str] = ()) -> Template:
    """The template without the loose sentences `dropped`, in both texts, and with `added` in its text."""
    old = template.system
    system = rebuilt(old, dropped=dropped) if old else old
    text = rebuilt(template.text, dropped=dropped, added=added)
    return replace(template, text=text, system=system if system == old or (system or "").strip() else None)


def rebuilt(text: str, *, dropped: Collection[str] = (), added: Sequence[str] = ()) -> str:
    """A text with further loose sentences behind its last one, and without others; its frame stays."""
    for sentence in added:
        text = _with(text, sentence)
    for sentence in dropped:
        text = _without(text, sentence)
    return text


def _with(text: str, sentence: str) -> str:
    parts = cut(text)
    places = [place for place, part in enumerate(parts) if part.kind == "loose"]
    whole = _ends(sentence)
    if not places:
        inline = whole and parts and re.match(r"\{\{(?!-?\s*(question|examples)\b)", parts[0].text)
        return sentence + (" " if inline else "\n\n") + text.lstrip()
    before = "".join(part.text for part in parts[: places[-1] + 1])
    after = "".join(part.text for part in parts[places[-1] + 1 :])
    last = parts[places[-1]].text
    gap = " " if _ends(last) and not _LISTED.match(last) else "\n"
    if whole or not after.strip() or "\n" in after[: len(after) - len(after.lstrip())]:
        return before + gap + sentence + after
    return before + gap + sentence + "\n" + after.lstrip()


def _without(text: str, sentence: str) -> str:
    """Of the gaps before and after, the one with more line breaks stays, or else the shorter."""
    parts = list(cut(text))
    while (place := next((i for i, p in enumerate(parts) if p == Part(sentence, "loose")), None)) is not None:
        start = place - (place > 0 and parts[place - 1].kind == "gap")
        end = place + 1 + (place + 1 < len(parts) and parts[place + 1].kind == "gap")
        gaps = "".join(p.text for p in parts[start:place]), "".join(p.text for p in parts[place + 1 : end])
        outer = start == 0 or end == len(parts)
        gap = "" if outer else max(gaps, key=lambda some: (some.count("\n"), -len(some)))
        parts[start:end] = [Part(gap, "gap")] if gap else []
    return "".join(part.text for part in parts)


@lru_cache(maxsize=8192)
def _pieces(settings: tuple[tuple[str, str], ...], system: str, text: str) -> tuple[str, ...]:
    chosen = (f"{name}={label}" for name, label in settings)
    return (*chosen, *dict.fromkeys((*_sentences(system), *_sentences(text))))


@lru_cache(maxsize=8192)
def _loose(system: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.text for part in (*cut(system), *cut(text)) if part.kind == "loose"))


@lru_cache(maxsize=8192)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(part.text for part in cut(text) if part.kind in ("frame", "loose") and _speaks(part.text))


# ── how a text is cut ─────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=8192)
def cut(text: str) -> tuple[Part, ...]:
    """The parts of a text, in order; joined they are the text."""
    parts: list[Part] = []
    depth = 0
    for place, stretch in enumerate(_JINJA.split(text)):
        if place % 2:
            depth += _opens(stretch)
            parts.append(Part(stretch, "jinja"))
        else:
            parts += _stretch(stretch, inside=depth > 0)
    return tuple(_framed(parts))


def _stretch(stretch: str, *, inside: bool) -> Iterator[Part]:
    """Sentences, lines and the gaps between them, of words without placeholders; none of them empty."""
    gap = ""
    for place, piece in enumerate(_glued(_GAP.split(stretch))):
        words = "" if place % 2 else piece.strip()
        if not words:
            gap += piece
            continue
        lead, _, trail = piece.partition(words)
        if gap + lead:
            yield Part(gap + lead, "gap")
        yield Part(words, "frame" if inside or _FIXED.search(words) or not _speaks(words) else "loose")
        gap = trail
    if gap:
        yield Part(gap, "gap")


def _glued(pieces: list[str]) -> list[str]:
    """Words and gaps in turn, where no gap stands behind the number of a list or an abbreviation."""
    glued = pieces[:1]
    for gap, words in zip(pieces[1::2], pieces[2::2], strict=True):
        if "\n" not in gap and _GOES_ON.search(glued[-1].strip()):
            glued[-1] += gap + words
        else:
            glued += [gap, words]
    return glued


def _framed(parts: Sequence[Part]) -> Iterator[Part]:
    """The same parts, where loose ones that go on in a placeholder, or come out of one, are frame."""
    beside = unfinished = False
    for place, part in enumerate(parts):
        if part.kind in ("jinja", "gap"):
            beside = part.kind == "jinja" or (beside and "\n" not in part.text)
            unfinished = unfinished and "\n" not in part.text
            yield part
            continue
        comes_out = unfinished or (beside and not _begins(part.text))
        goes_on = not _ends(part.text) and _is_placeholder_next(parts[place + 1 : place + 3])
        unfinished = goes_on or (comes_out and not _ends(part.text))
        beside = False
        yield Part(part.text, "frame") if comes_out or goes_on else part


def _is_placeholder_next(following: Sequence[Part]) -> bool:
    """Whether one stands in the same line."""
    rest = [part for part in following if part.kind != "gap" or "\n" in part.text]
    return bool(rest) and rest[0].kind == "jinja"


def _begins(words: str) -> bool:
    """Whether a sentence can begin so: with no small letter and no punctuation."""
    return words[0] in "-*•\"'“‘([¿¡" or (words[0].isalnum() and not words[0].islower())


def _ends(words: str) -> bool:
    return bool(_ENDS.search(words))


def _speaks(words: str) -> bool:
    return any(letter.isalnum() for letter in words)


def _opens(statement: str) -> int:
    """1 where a block begins, -1 where one ends, else 0."""
    word = re.sub(r"^\{%[-+]?\s*", "", statement).split(" ")[0].rstrip("-+%}")
    return -1 if word.startswith("end") else int(statement.startswith("{%") and word in _OPENERS)
