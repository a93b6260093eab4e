"""The instruction grammar: every sentence the nano model is taught to obey, by what it asks for.

A pattern is a sentence with {slots}; a slot is a list of phrases, which may hold slots themselves. `expand` writes out
all sentences of a kind, so that a test can prove that a wording is not among them.
"""

import functools
import itertools
import random
import re
from typing import Literal

Kind = Literal["step", "detailed", "direct", "vague", "plain", "partial", "right", "left"]

# fmt: off
SLOTS: dict[str, tuple[str, ...]] = {
    "solve": (
        "solve", "solve this", "solve it", "answer", "work out", "work this out", "calculate", "compute it", "do it",
        "do this", "find the answer", "get the answer", "tackle it", "handle this", "figure it out", "answer this",
        "complete the task", "treat this", "settle it", "take it on",
    ),
    "manner": (
        "step by step", "one step at a time", "in small steps", "digit by digit", "line by line", "piece by piece",
        "bit by bit", "in stages", "stage by stage", "part by part", "slowly and carefully", "with all the working",
        "showing the work", "with your working shown", "with each step written down", "by writing every step",
        "in clear steps", "one part after another", "with full reasoning", "and show your working", "and show the steps",
        "and write down each step", "and explain every step", "thoroughly, with steps", "without skipping steps",
        "and lay out the working", "one piece at a time", "column by column", "methodically", "in an orderly way",
    ),
    "show": ("show", "write", "write down", "give", "list", "present", "spell out", "set out", "put down", "lay out", "include"),
    "work": (
        "your working", "your work", "all steps", "every step", "each step", "the full working", "your reasoning",
        "all of the working", "the whole calculation", "each stage", "every intermediate result", "the complete steps",
        "your full reasoning", "all intermediate steps", "every part of the work", "the working in full",
    ),
    "then": (
        "", " first", " before the answer", " and then answer", ", then the answer", " before you answer",
        ", and finish with the answer", " on separate lines", " as you go", " line by line",
    ),
    "think": ("think", "reason", "go", "proceed", "work", "think it through", "reason it out", "work through it", "move", "think aloud"),
    "pace": (
        "step by step", "carefully", "in small steps", "one step at a time", "slowly", "digit by digit",
        "piece by piece", "line by line", "stage by stage", "part by part", "in order", "bit by bit", "patiently",
    ),
    "careful": (
        "Take your time", "Be careful", "Do not hurry", "Be thorough", "Take care", "There is no rush", "Be exact",
        "Leave nothing out", "Do not skip steps", "Do not guess",
    ),
    "only": ("only", "just", "nothing but", "no more than", "simply"),
    "give": ("give", "write", "state", "say", "return", "reply with", "answer with", "tell me", "output", "print", "respond with"),
    "result": (
        "the answer", "the result", "the final answer", "the final result", "the solution", "the end result",
        "the bare answer", "the answer itself",
    ),
    "once": (
        "at once", "immediately", "right away", "straight away", "directly", "in one go", "without delay", "quickly",
        "instantly", "as fast as you can", "off the top of your head", "in your head",
    ),
    "no": ("no", "without", "without any", "leave out the", "skip the", "do not show", "omit the", "never show", "do not write"),
    "extra": (
        "working", "steps", "explanation", "reasoning", "intermediate steps", "work", "calculation", "workings",
        "intermediate results", "detail",
    ),
    "little": (
        "some", "a little", "a bit of", "part of the", "half of the", "a few lines of", "the main", "only the key",
        "a short piece of", "the first part of the", "just enough", "the start of the",
    ),
    "lead": ("start", "begin", "start working", "go", "work", "proceed", "take it", "move"),
    "last": (
        "from the right", "from right to left", "from the last digit", "from the end", "with the last digit first",
        "from the last place", "from the back", "starting at the right-hand side", "with the ones first",
        "from the end to the beginning", "starting with the final letters",
    ),
    "first": (
        "from the left", "from left to right", "from the first digit", "from the front", "with the first digit first",
        "from the leading digit", "from the beginning", "starting at the left-hand side", "with the biggest place first",
        "from the start to the end", "starting with the first letters",
    ),
}

PATTERNS: dict[Kind, tuple[str, ...]] = {
    "step": (
        "{solve} {manner}", "{show} {work}{then}", "{think} {pace}", "{think} {pace} and {show} {work}",
        "{careful} and {solve} {manner}", "{careful}: {show} {work}", "please {solve} {manner}",
        "{careful}. {think} {pace}", "{pace}, please", "{show} {work}, please", "use steps", "use the long way",
        "let us think {pace}", "explain how you get the answer", "explain your answer", "tell me how you did it",
    ),
    "detailed": (
        "work through every digit and {show} {work}{then}", "{careful}. {show} {work}, each on a line of its own",
        "{solve} {manner}; {show} {work}, and do not skip any", "{think} {pace}, {show} {work}, and check each one",
        "break the problem into small parts, {show} {work} and {think} {pace}",
        "go through it {pace}, one line for each step, and put the answer last",
        "write each step on a line of its own, {pace}, and give the answer on the last line",
    ),
    "direct": (
        "{only} {give} {result}", "{give} {only} {result}", "{give} {result} {once}", "{solve} {once}", "{no} {extra}",
        "{give} {result}, {no} {extra}", "answer {once}", "{result} {only}", "{once}, please",
        "{give} {result} and nothing else", "I {only} need {result}", "please {give} {only} {result}",
        "{no} {extra}, {only} {result}", "reply in one line", "do not explain", "be as brief as possible",
        "one number or word, nothing more", "there is no need for {extra}", "I do not need {extra}", "spare me the {extra}",
        "never mind the {extra}", "keep the {extra} to yourself", "{give} {result} with no {extra} beside it", "{extra}: none",
        "hide the {extra}, {give} {result}", "be quick: {result}", "{result}, and quickly", "the {extra} must not be seen",
        "not the {extra}, {only} {result}", "{give} {result} {once}, with the {extra} left out",
    ),
    "vague": (
        "have a go", "have a look at this", "see what you can do", "what do you think?", "here is one", "do this one",
        "over to you", "next one", "go on", "try this", "try it", "your turn", "here you are", "another one", "well?",
        "help me", "help me with this", "can you do this?", "deal with it", "any idea?", "please", "go ahead",
        "a small task", "this one, please", "I need this", "look at this", "here is a question", "what is it?",
        "do what you can", "give it a shot", "let me see", "consider this", "a question for you", "hm, this one?",
        "ready?", "let's go", "as usual", "you know what to do", "do your thing", "make of it what you can",
    ),
    "plain": (
        "{solve}", "please {solve}", "{solve} correctly", "answer the question", "answer the following question",
        "solve the problem", "solve the following problem", "please answer the question below", "do the task",
        "give the right answer", "work on the task", "reply to the question", "find out the result",
        "you are given a problem, {solve}", "read the question and {solve}",
    ),
    "partial": (
        "{show} {little} {extra}", "{solve} and {show} {little} {extra}", "{show} {little} {extra}, then {result}",
        "briefly {show} {work}", "{solve} with {little} {extra}", "keep the {extra} short", "{extra} in brief",
        "be short, but {show} {little} {extra}",
    ),
    "right": ("{lead} {last}", "{last}", "please {lead} {last}", "{lead} {last}, always", "the order is {last}"),
    "left": ("{lead} {first}", "{first}", "please {lead} {first}", "{lead} {first}, always", "the order is {first}"),
}

COUNTS: dict[int, tuple[str, ...]] = {
    0: ("0", "zero", "no"), 1: ("1", "one", "a single"), 2: ("2", "two"), 3: ("3", "three"), 4: ("4", "four"),
}
UNITS = (
    ("step", "steps"), ("line", "lines"), ("stage", "stages"), ("part", "parts"), ("step of working", "steps of working"),
    ("line of working", "lines of working"), ("intermediate step", "intermediate steps"), ("working line", "working lines"),
)
COUNT_PATTERNS = (
    "{show} {n}", "use {n}", "{solve} in {n}", "{n}, then {result}", "exactly {n}", "show the work in {n}", "{n} only",
    "take {n}", "{show} {n} before the answer", "please {show} {n}", "do {n} and then answer",
    "number of steps: {digit}", "steps: {digit}", "lines of working: {digit}", "steps to show: {digit}", "working: {n}",
    "with {n}", "answer after {n}", "make it {n}", "think in {n}", "reason in {n}", "your working has {n}", "{n} please",
)
CONTEXT = (
    "You are a helpful assistant", "You are a friendly tutor", "This is part of a test", "The task is below",
    "The questions come from a school book", "There are many questions like this", "This is question {digit}{digit}",
    "It is a quiet afternoon", "The class has just begun", "The teacher collects the sheets later",
    "Some questions use numbers and others use words", "The sheet was printed today", "A friend asked for help with this",
    "Nobody else has seen it yet", "The paper is white and the ink is blue", "Questions were chosen at random",
    "This was set for pupils of all ages", "You know arithmetic and spelling", "You are good at puzzles",
    "The library closes at {digit} in the evening", "It was found in an old notebook", "Its author is not known",
    "The list has {digit}{digit} entries", "A clock is ticking on the wall", "We collect the replies in a file",
)
# fmt: on


def join(pattern: str, rng: random.Random) -> str:
    """Fill a pattern's slots at random."""
    return re.sub(r"\{(\w+)\}", lambda slot: rng.choice(SLOTS[slot[1]]), pattern)


def write_out(pattern: str) -> list[str]:
    """Return every sentence a pattern can make."""
    names = re.findall(r"\{(\w+)\}", pattern)
    choices = itertools.product(*(SLOTS[name] for name in names))
    return [
        functools.reduce(lambda text, word: re.sub(r"\{\w+\}", word, text, count=1), row, pattern) for row in choices
    ]


@functools.cache
def expand(kind: Kind) -> frozenset[str]:
    """Return every sentence of a kind, in plain form (see `plain_form`)."""
    return frozenset(plain_form(sentence) for pattern in PATTERNS[kind] for sentence in write_out(pattern))


def plain_form(sentence: str) -> str:
    """Strip what does not make a different wording: case, outer blanks and closing punctuation."""
    return sentence.strip().rstrip(".!:?").strip().lower()


def finish(sentence: str, rng: random.Random) -> str:
    """Give a sentence its capital and its closing mark, mostly as a careful writer would."""
    sentence = sentence if rng.random() < 0.1 else sentence[0].upper() + sentence[1:]
    if sentence[-1] in ".!?:":
        return sentence
    return sentence + rng.choices((".", "", "!", ":"), weights=(80, 12, 5, 3))[0]


def instruction(kind: Kind, rng: random.Random) -> str:
    """Draw one sentence of a kind."""
    return finish(join(rng.choice(PATTERNS[kind]), rng), rng)


def count_phrase(pattern: str, number: int, word: str, unit: tuple[str, str]) -> str:
    """Write one sentence that asks for a number of lines, its other slots still open."""
    return pattern.replace("{n}", f"{word} {unit[number != 1]}").replace("{digit}", str(number))


def count_instruction(number: int, rng: random.Random) -> str:
    """Draw one sentence that asks for `number` lines of working."""
    sentence = count_phrase(rng.choice(COUNT_PATTERNS), number, rng.choice(COUNTS[number]), rng.choice(UNITS))
    return finish(join(sentence, rng), rng)


@functools.cache
def expand_counts() -> frozenset[str]:
    """Return every sentence that asks for a number of lines, in plain form."""
    phrases = {
        count_phrase(pattern, number, word, unit)
        for pattern in COUNT_PATTERNS
        for number, words in COUNTS.items()
        for word in words
        for unit in UNITS
    }
    return frozenset(plain_form(sentence) for phrase in phrases for sentence in write_out(phrase))


def context(sentences: int, rng: random.Random) -> str:
    """Draw some neutral sentences that have nothing to do with how to answer."""
    chosen = rng.sample(CONTEXT, sentences)
    return " ".join(re.sub(r"\{digit\}", lambda _: str(rng.randrange(2, 10)), text) + "." for text in chosen)
