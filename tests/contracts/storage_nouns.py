"""One small run's nouns, for the storage contract: two seeds and a child, two tasks, groups, evaluations, adapters."""

from dataclasses import replace

from grpo_ray.recipe import Named, Recipe, RewardSpec, RunState
from grpo_ray.types import (
    Adapter,
    AdapterBytes,
    Choice,
    Evaluation,
    Example,
    Group,
    Lesson,
    LostGroup,
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

RECIPE = Recipe(
    name="sums",
    seed=7,
    steps=3,
    lag=1,
    tasks=(Named(name="reasoning_gym", settings={"families": {"basic_arithmetic": {"min_terms": 2}}, "size": 40}),),
    rewards=(
        RewardSpec(name="verified", weight=0.7, gate=0.5),
        RewardSpec(name="format", weight=0.3, settings={"words": ["a", "b"]}),
    ),
)
CLARITY = Parameter("clarity", (Choice("plain", "Answer."), Choice("long", "Answer with every step shown.")))
SEED = Template(
    "t-seed",
    "{{ clarity }} {{ question }}",
    task_type="sum",
    system="You are exact.",
    parameters=(CLARITY,),
    settings=(("clarity", "plain"),),
    examples=(Example("1+1?", "2"),),
)
OTHER = Template("t-other", "{{ question }}")
CHILD = Template(
    "t-child",
    "{{ clarity }}\n{{ question }}",
    task_type="sum",
    parameters=(CLARITY,),
    settings=(("clarity", "long"),),
    version=2,
    parents=("t-seed", "t-other"),
    mutation="rewrite",
    note="the judges missed the steps",
    stand_in=True,
)
GRANDCHILD = Template("t-grandchild", "{{ question }}!", version=3, parents=("t-child",), mutation="set_parameter")
TASKS = tuple(
    Task(f"sum-{i}", f"{i}+1?", str(i + 1), "sum", "reasoning_gym", {"entry": {"a": i, "share": 0.1}, "tags": ["x"]})
    for i in range(3)
)
FIRST = Adapter("aa11", 1, None, 0)
SECOND = Adapter("aa22", 2, "aa11", 1, rate_scale=0.5)
CONTENT = AdapterBytes(b"\x00weights\xff", b"optimizer\x00")


def population(*templates: Template) -> Population:
    members = tuple(Member(one, 0.1 * place, 0.3 - 0.1 * place, float(place)) for place, one in enumerate(templates))
    return Population(members, generation=len(templates), retired=(("t-gone", "no better"),))


def state(run: str, step: int = 0, adapter: Adapter | None = None, *more: Template) -> RunState:
    living = population(SEED, OTHER, *more)
    return RunState(run, step, RECIPE, living, adapter, (Policy(living, adapter),))


def bare(index: int) -> tuple[float, ...]:
    """Log-probabilities under the bare model, kept for some rollouts only."""
    return (-0.3, -2.5e-7, -(0.1 + 0.7)) if index else ()


def group(
    name: str = "0", template: str = "t-seed", adapter: str | None = None, texts: tuple[str, ...] = ("2", "3")
) -> Group:
    task = TASKS[sum(map(ord, name)) % len(TASKS)]
    messages = (Message("system", "You are exact."), Message("user", f"Answer. {task.question}"))
    rollouts = tuple(
        Rollout(f"r-{name}-{i}", i, text, (5, i, 2), (-0.1, -1.25e-7, -(0.1 + 0.2)), "stop", 2**40 + i, bare(i))
        for i, text in enumerate(texts)
    )
    prompt = Prompt(f"p-{name}", template, task, messages)
    sampling = Sampling(group_size=len(texts), temperature=0.7, top_p=0.95, seed=7, min_p=0.1, stop=("END",))
    return Group(f"g-{name}", prompt, rollouts, (1, 2, 3), sampling, "bundled:nano", adapter, seconds=0.25)


def of_task(of: Group, place: int) -> Group:
    """The same of another task."""
    return replace(of, prompt=replace(of.prompt, task=TASKS[place]))


def lost(name: str = "lost") -> LostGroup:
    return LostGroup(f"g-{name}", group(name).prompt, "the node died twice")


def scored(of: Group, values: tuple[float | None, ...] = (1.0, None)) -> ScoredGroup:
    return ScoredGroup(of, tuple(_scored(rollout, values[i % len(values)]) for i, rollout in enumerate(of.rollouts)))


def _scored(rollout: Rollout, value: float | None) -> ScoredRollout:
    said = (
        Evaluation(rollout.id, "verifier", "correct", value, "2 is right" if value else "nothing to check"),
        Evaluation(rollout.id, "rubric", "relevance", 0.1 + 0.2, f"about {rollout.text}", "gpt", stand_in=True),
        Evaluation(rollout.id, "rubric", "accuracy", None, "the judge gave up", "gpt", stand_in=True),
    )
    return ScoredRollout(
        rollout, said, Reward(value, (RewardPart("verified", value, 0.7), RewardPart("format", 1.0, 0.3)))
    )


def lesson(of: ScoredGroup) -> Lesson:
    return Lesson(of, tuple(0.5 - i for i, _ in enumerate(of.rollouts)))
