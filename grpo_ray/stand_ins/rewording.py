"""What the bundled server says when it is asked to say a template in other words: phrases for phrases, from a small list."""

import random
import re

from grpo_ray.pieces import Part, cut

PHRASES: dict[str, tuple[str, ...]] = {
    "write out": ("put on paper", "note down"),
    "set down": ("put on paper", "note down"),
    "put down": ("put on paper", "note down"),
    "take down": ("put on paper", "note down"),
    "jot down": ("scribble down", "note down"),
    "work through": ("make your way through", "take yourself through"),
    "go through": ("make your way through", "take yourself through"),
    "step after step": ("one step behind the other", "step upon step"),
    "line after line": ("one line behind the other", "line upon line"),
    "one line per step": ("a new line for any step", "no two steps in one line"),
    "a line at a time": ("never two lines at a time", "one line and then the next"),
    "in small written steps": ("on paper and by small steps", "by small steps that are put on paper"),
    "the whole problem": ("all of the exercise", "the exercise from end to end"),
    "the problem": ("the exercise", "what is asked"),
    "the calculation": ("the reckoning", "all that is reckoned"),
    "every part of it": ("all of its parts", "each of its parts"),
    "the way to the answer": ("the road to the answer", "what leads to the answer"),
    "before giving the answer": ("ahead of the answer", "and give the answer afterwards"),
    "beginning": ("starting off", "setting out"),
    "make sure of": ("be certain of", "satisfy yourself of"),
    "looking back at": ("glancing back at", "with a second look at"),
    "carefully": ("with care", "attentively"),
    "please": ("kindly", "be so good as to"),
    "reckon": ("compute", "cipher"),
    "solve": ("resolve", "find the solution of"),
    "think": ("reflect", "ponder"),
    "explain": ("make plain", "account for"),
    "show": ("bring to paper", "let me look at"),
    "number": ("figure",),
    "numbers": ("figures",),
    "sum": ("piece of arithmetic",),
    "exercise": ("assignment",),
    "reply": ("response",),
    "short": ("brief",),
    "be brief": ("use few words", "waste no words"),
    "next": ("further",),
    "now": ("at this point",),
}
"""Small letters; the longest that fits comes first."""
LEADS = ("Here is what is wanted: ", "What is wanted is this: ", "This is the request: ")
"""For a sentence that none of the phrases is in."""
OPENINGS = ("What follows is meant for you.", "All that matters stands below.")
"""For a text without a sentence that could be said otherwise."""
_PHRASE = re.compile(
    rf"\b({'|'.join(re.escape(one) for one in sorted(PHRASES, key=lambda one: (-len(one), one)))})\b", re.IGNORECASE
)
_BEGINNING = re.compile(rf"((?:[-*•]\s+|\(?\d{{1,3}}[.)]\s+)?)({'|'.join(LEADS)}|)(.*)", re.DOTALL)
"""The mark of a list, a lead, and the rest: any text."""


def rephrase(text: str, seed: str) -> str:
    """A template's text with its loose sentences in other words; all else stays. One `seed`, one reply."""
    chance = random.Random(seed)
    parts = cut(text)
    if not any(part.kind == "loose" for part in parts):
        return f"{chance.choice(OPENINGS)}\n\n{text}"
    return "".join(_said(part, chance) for part in parts)


def _said(part: Part, chance: random.Random) -> str:
    if part.kind != "loose":
        return part.text
    new = _PHRASE.sub(lambda found: _other(found[0], chance), part.text)
    if new != part.text:
        return new
    mark, lead, rest = _BEGINNING.fullmatch(part.text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return mark + chance.choice([other for other in LEADS if other != lead]) + rest


def _other(phrase: str, chance: random.Random) -> str:
    new = chance.choice(PHRASES[phrase.lower()])
    return new[0].upper() + new[1:] if phrase[0].isupper() else new
