"""The reference answer, letter by letter, after as much levelling as the settings allow."""

import unicodedata

from grpo_ray.answers import final_answer, spoken
from grpo_ray.types import Task


def verify(
    answer: str,
    task: Task,
    *,
    case: bool = False,
    whitespace: bool = False,
    punctuation: bool = False,
    whole: bool = False,
) -> float:
    """1 where the final answer (`whole`: the whole text) is the reference answer; else 0.

    `case`, `whitespace` and `punctuation` say what counts as a difference. Both sides are read in Unicode's NFKC form.
    Raises ValueError where the task has no reference answer.
    """
    if task.answer is None:
        raise ValueError(f"task {task.id} has no reference answer")
    said = spoken(answer).strip() if whole else final_answer(answer)
    one, other = (levelled(text, case, whitespace, punctuation) for text in (said, task.answer))
    return float(one == other)


def levelled(text: str, case: bool, whitespace: bool, punctuation: bool) -> str:
    """The text without the differences that don't count; the outer blanks never count."""
    text = unicodedata.normalize("NFKC", text)
    text = text if case else text.casefold()
    if not punctuation:
        text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in text)
    return text.strip() if whitespace else " ".join(text.split())
