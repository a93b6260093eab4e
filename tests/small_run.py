"""A run of two steps in memory, made by hand: two templates, one a child of the other, and an adapter."""

from dataclasses import replace

from grpo_ray.protocols import Archive
from grpo_ray.recipe import Named, Recipe, RunState
from grpo_ray.storage.memory import make_storage
from grpo_ray.types import (
    Adapter,
    AdapterBytes,
    Choice,
    Evaluation,
    Group,
    Lesson,
    Member,
    Message,
    Parameter,
    Policy,
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

RUN = "small-20261122-101500-ab12"
HOSTILE = "[bold]12\x1b[31m"
CLARITY = Parameter("clarity", (Choice("plain", "What is it?"), Choice("terse", "Say it.")))
SEED = Template("t-seed", "{{ clarity }} {{ question }}", parameters=(CLARITY,), settings=(("clarity", "plain"),))
CHILD = replace(
    SEED, id="t-child", settings=(("clarity", "terse"),), parents=("t-seed",), mutation="set_parameter", version=2
)
TASK = Task("t-1", "What is 5 + 7?", "12", verifier="jsonl")
ADAPTER = Adapter("a" * 64, 1, None, 0)
CONTENT = AdapterBytes(b"weights", b"optimizer")
RECIPE = Recipe(name="small", steps=2, tasks=(Named(name="jsonl", settings={"path": "tasks.jsonl"}),))


def lesson(step: int, template: Template, adapter: Adapter | None = None) -> Lesson:
    """A group of two rollouts: a right one (advantage 1), and a wrong one that tries the terminal (−1)."""
    prompt = Prompt(f"p-{step}", template.id, TASK, (Message("user", f"What is it? {TASK.question}"),))
    texts = (f"5 + 7 = 12\nAnswer: 12 (step {step})", HOSTILE)
    rollouts = tuple(
        Rollout(f"r-{step}-{i}", i, text, (1, 2, 3), (-0.1, -0.2, -0.3), "stop", i) for i, text in enumerate(texts)
    )
    group = Group(
        f"g-{step}", prompt, rollouts, (1, 2), Sampling(group_size=2), "nano", adapter.hash if adapter else None
    )
    scored = tuple(_scored(rollout, 1.0 - i) for i, rollout in enumerate(rollouts))
    return Lesson(ScoredGroup(group, scored), (1.0, -1.0))


def _scored(rollout: Rollout, mark: float) -> ScoredRollout:
    said = (
        Evaluation(rollout.id, "verifier", "verified", mark, "compared"),
        Evaluation(rollout.id, "rubric", "relevance", None, "the judge left this out", "judge-1", stand_in=True),
    )
    return ScoredRollout(rollout, said, Reward(mark, (RewardPart("verified", mark, 1.0),)))


async def small_archive(steps: int = 2, archive: Archive | None = None) -> Archive:
    """The archive (one in memory, if none is given) with the run, saved as far as `steps`."""
    archive = archive or await make_storage()
    seeds = Population((Member(SEED),))
    state = RunState(RUN, 0, RECIPE, seeds, None, (Policy(seeds, None),))
    await archive.create_run(state)
    store = await archive.open(RUN)
    for step in range(steps):
        adapter = ADAPTER if step else None
        made = lesson(step, CHILD if step else SEED, adapter)
        await store.save_group(step, made.group.group)
        await store.save_scored(step, made.group)
        await store.save_lessons(step, [made])
        await store.save_adapter(ADAPTER, CONTENT, [("loss", 0.5)])
        population = Population((Member(SEED, -0.25, 0.2, 2.0), Member(CHILD, 0.25, 0.2, 2.0)), step + 1)
        state = state.next(ADAPTER, population)
        await store.save_state(state)
    return archive


OUTCOME = {
    **{
        arm: {"accuracy": 0.5, "low": 0.4, "high": 0.6, "tasks": 200}
        for arm in ("start_mean", "start_best", "best_template", "last_adapter", "both")
    },
    "chosen": [["both", "arithmetic", "t-child"], ["start_best", "arithmetic", "t-seed"]],
    "paired": [["both - start_best", 0.3, 0.2, 0.4]],
    "seconds": {"steps": 10.0, "outcome": 5.0},
}
