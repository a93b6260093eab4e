"""The part of scripts/bench/evolution.py that runs on the nano model: both searches get the same tasks, luck and rewriter."""

import asyncio
import sys
from pathlib import Path

import pytest

from grpo_ray.optimize import candidate
from grpo_ray.types import Rollout

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

from evolution_gepa import COMPONENT
from evolution_meter import Spent
from evolution_real import HELD_OUT, SEARCHED, Adapter, Desk, Rolled, exercise, parent_of

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def words():
    return exercise("spell_backward", 5000)


def test_an_exercise_keeps_searched_and_held_out_tasks_apart(words) -> None:
    assert (len(words.tasks), len(words.held_out)) == (SEARCHED, HELD_OUT)
    assert not {task.question for task in words.tasks} & {task.question for task in words.held_out}
    assert exercise("spell_backward", 5000) == words != exercise("spell_backward", 5001)


def test_the_same_text_task_and_repeat_meet_the_same_luck_within_the_budget(words) -> None:
    text, task = candidate(words.start)["text"], words.tasks[0]
    one, other = (asyncio.run(Desk(words, 2).rolled([(text, task)] * 2)) for _ in range(2))
    assert one == other and one[0].prompt.id != one[1].prompt.id
    assert all(rolled.score in (0.0, 1.0) and rolled.feedback for rolled in one)
    with pytest.raises(Spent):
        asyncio.run(Desk(words, 1).rolled([(text, task)] * 2))


def test_gepas_proposal_is_the_rewriters_with_its_settings_filled_in(words) -> None:
    adapter = Adapter(Desk(words, 10))
    text = candidate(words.start)["text"]
    (rolled,) = asyncio.run(adapter.desk.rolled([(text, words.tasks[0])]))
    wrong = Rolled(rolled.prompt, Rollout("r", 0, "Answer: x", (), (), "stop", 0), 0.0, "No working is shown.")
    new = adapter.propose_new_texts({COMPONENT: text}, {COMPONENT: [{"rolled": wrong}]}, [COMPONENT])[COMPONENT]
    assert new != text and "{{ question }}" in new and "Jot down every line of working." in new
    assert adapter.oracle.replies >= 1


def test_the_rewriter_reads_all_that_gepa_has_seen(words) -> None:
    text = candidate(words.start)["text"]
    (rolled,) = asyncio.run(Desk(words, 1).rolled([(text, words.tasks[0])]))
    seen = [Rolled(rolled.prompt, rolled.rollout, score, "words") for score in (0.0, 1.0, 0.0)]
    parent = parent_of(words.start, seen)
    assert (len(parent.best), len(parent.worst), parent.fitness) == (1, 2, pytest.approx(1 / 3))
