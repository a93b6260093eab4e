import json

from grpo_ray.advantages import with_advantages
from grpo_ray.recipe import Named, Recipe
from grpo_ray.reports import best_templates, reward_per_step, step_report
from grpo_ray.types import (
    Evaluation,
    Group,
    Lesson,
    Member,
    Population,
    Prompt,
    Reward,
    RewardPart,
    Rollout,
    Sampling,
    ScoredGroup,
    ScoredRollout,
    Task,
    Template,
)

RECIPE = Recipe(tasks=(Named(name="jsonl"),))


def lesson(template: str, rewards: list[float | None], kind: str = "sums", tokens: int = 3) -> Lesson:
    """A lesson whose verifier gave full marks for a reward of 1, and whose rubric is missing where the reward is."""
    prompt = Prompt(f"p-{template}", template, Task("t", "?", task_type=kind), ())
    found = []
    for index, value in enumerate(rewards):
        id, size = f"{template}-{index}", tokens + index
        rollout = Rollout(id, index, "", (1,) * size, (0.0,) * size, "stop" if index else "length", index)
        verdict = Evaluation(id, "verifier", "verified", None if value is None else float(value == 1), "")
        opinion = Evaluation(id, "rubric", "relevance", value, "said so")
        parts = (RewardPart("verified", verdict.score, 1.0), RewardPart("format", 0.5, 0.2))
        found.append(ScoredRollout(rollout, (verdict, opinion), Reward(value, parts)))
    group = Group("g", prompt, tuple(s.rollout for s in found), (1,), Sampling(), "canned", None)
    return with_advantages([ScoredGroup(group, tuple(found))], RECIPE)[0]


LESSONS = [lesson("a", [1.0, 0.0, None]), lesson("b", [0.5, 0.5], "words")]


def test_a_steps_metrics_are_counted_from_what_was_saved() -> None:
    report = step_report(4, LESSONS)
    assert report == {
        "step": 4,
        "groups": 2,
        "rollouts": 5,
        "mean_reward": 0.5,
        "rewards_missing": 1,
        "verified": 0.25,
        "zero_variance_groups": 0.5,
        "tokens": 3.8,
        "truncated": 0.4,
        "missing": {"rubric/relevance": 1, "verifier/verified": 1},
        "by_template": {"a": 0.5, "b": 0.5},
        "by_task_type": {"sums": 0.5, "words": 0.5},
        "parts": {"verified": 0.25, "format": 0.5},
    }
    json.dumps(report, allow_nan=False)


def test_nothing_is_none_and_not_zero() -> None:
    report = step_report(0, [])
    assert report["mean_reward"] is report["verified"] is report["tokens"] is report["zero_variance_groups"] is None
    assert step_report(0, [lesson("a", [None, None])])["by_template"] == {"a": None}


def test_rewards_come_in_the_steps_order() -> None:
    assert reward_per_step([LESSONS, [], [lesson("c", [1.0, 0.5])]]) == [0.5, None, 0.75]


def test_the_best_templates_come_first() -> None:
    members = tuple(
        Member(Template(name, "{{ question }}"), fitness, trials=8.0)
        for name, fitness in (("b", 0.1), ("c", 0.4), ("a", 0.1))
    )
    best = best_templates(Population(members), limit=2)
    assert [row["id"] for row in best] == ["c", "a"]
    assert (best[0]["fitness"], best[0]["trials"]) == (0.4, 8.0)
    assert [row["id"] for row in best_templates(Population(members), limit=None)] == ["c", "a", "b"]
    json.dumps(best, allow_nan=False)
