"""What the nano model is taught: its workings are right, and what it is measured on stays out of its lessons."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from nano import prompts, tokenizer, unseen, wordings, workings

ALL_KINDS: tuple[wordings.Kind, ...] = tuple(wordings.PATTERNS)


@pytest.mark.parametrize("family", workings.FAMILIES)
@pytest.mark.parametrize("order", ["right", "left"])
def test_every_full_working_passes_the_verifier(family: str, order: workings.Order) -> None:
    rng = random.Random(7)
    for _ in range(200):
        task = workings.draw_task(family, rng)
        for lines in range(prompts.FULL + 1):
            text = workings.completion(task, lines, order)
            assert workings.score(task, text) == 1.0
            assert len(text) <= 100


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("345 + 678", ["5+8+0=13", "4+7+1=12", "3+6+1=10"]),
        ("914 - 377", ["14-7-0=7", "11-7-1=3", "09-3-1=5"]),
        ("43 * 14", ["3*4=12", "4*4+1=16+1=17", "3*1+17=03+17=020", "4*1+02=04+02=06"]),
    ],
)
def test_a_working_reads_as_the_documentation_says(expression: str, lines: list[str]) -> None:
    task = workings.Task("any", "", "", tuple(expression.split(" ")))
    assert workings.working(task) == lines


def test_a_wrong_answer_scores_nothing() -> None:
    task = workings.held_out_tasks("chain_sum", 1, seed=1)[0]
    assert workings.score(task, f"Answer: {int(task.answer) + 1}") < 0.1
    assert workings.score(task, task.answer) == 0.0


def test_training_never_draws_a_held_out_question() -> None:
    rng = random.Random(3)
    drawn = {workings.draw_task(family, rng).question for family in workings.FAMILIES for _ in range(500)}
    kept = {task.question for family in workings.FAMILIES for task in workings.held_out_tasks(family, 50, seed=5)}
    assert not drawn & kept


def test_the_grammar_is_large() -> None:
    assert len(wordings.expand("step") | wordings.expand("detailed")) > 1500
    assert len(wordings.expand("direct")) > 600


@pytest.mark.parametrize("wording", [*unseen.STEP_BY_STEP, *unseen.DIRECT])
def test_no_unseen_wording_can_come_from_the_grammar(wording: str) -> None:
    plain = wordings.plain_form(wording)
    assert all(plain not in wordings.expand(kind) for kind in ALL_KINDS)
    assert plain not in wordings.expand_counts()


def test_drawn_wordings_are_among_the_expanded_ones() -> None:
    rng = random.Random(5)
    for kind in ALL_KINDS:
        assert all(wordings.plain_form(wordings.instruction(kind, rng)) in wordings.expand(kind) for _ in range(100))
    for number in wordings.COUNTS:
        assert wordings.plain_form(wordings.count_instruction(number, rng)) in wordings.expand_counts()


def test_the_same_seed_draws_the_same_sample() -> None:
    stage = prompts.stage_at(1.0)
    assert prompts.draw_sample(random.Random(9), stage) == prompts.draw_sample(random.Random(9), stage)


def test_the_tokenizer_round_trips_and_agrees_with_the_fast_path() -> None:
    fast = tokenizer.make_tokenizer()
    text = "".join(tokenizer.CHARACTERS) + "  two  blanks , and a comma's place .\n\nAnswer: -12"
    assert fast.encode(text) == tokenizer.encode(text)
    assert fast.decode(fast.encode(text)) == text == tokenizer.decode(tokenizer.encode(text))
    messages = [("system", "Be brief."), ("user", "1 + 1 =")]
    chat = [{"role": role, "content": content} for role, content in messages]
    rendered = fast.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert fast.encode(str(rendered)) == tokenizer.encode_chat(messages)
