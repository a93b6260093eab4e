"""The part of scripts/bench/evolution.py that replays searches and times them: what its recorder and its archive hold to."""

import random
import sys
from pathlib import Path

import pytest

from grpo_ray.prompting import check_template, content_hash

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

from evolution_machine import ARCHIVED, Replays, Tape, begun, descendants, generations, outcome

SHORT = 40


def test_a_replay_of_a_recorded_search_ends_alike_and_needs_every_reply() -> None:
    tape: Tape = {}
    lived = outcome("factored", 5000, tape, live=True, budget=SHORT)
    assert tape and outcome("factored", 5000, tape, live=False, budget=SHORT) == lived
    first = next(iter(tape))
    with pytest.raises(ExceptionGroup) as found:
        outcome("factored", 5000, {key: reply for key, reply in tape.items() if key != first}, live=False, budget=SHORT)
    assert isinstance(found.value.exceptions[0], LookupError)


def test_another_seed_ends_otherwise() -> None:
    assert outcome("factored", 5000, {}, live=True, budget=SHORT) != outcome(
        "factored", 5001, {}, live=True, budget=SHORT
    )


def test_what_differs_from_the_recording_is_counted() -> None:
    assert Replays("factored", 0, 1, ("a", "a", "b", "a")).differ == 1


def test_the_archive_is_a_family_of_different_valid_templates() -> None:
    family = descendants(random.Random(0), 100)
    assert len({content_hash(template) for template in family}) == len({template.id for template in family}) == 100
    assert not [fault for template in family for fault in check_template(template)]
    assert all(set(child.parents) <= {one.id for one in family} for child in family)


def test_a_search_begins_with_all_of_the_archive_and_goes_on_from_it() -> None:
    search = begun(lambda candidate, task: 0.0, ARCHIVED, 0)
    assert len(search.archive) == ARCHIVED and len({trial.template for trial in search.trials}) == ARCHIVED
    times = generations(3, archived=40)
    assert len(times) == 3 and all(seconds > 0 for seconds in times)
