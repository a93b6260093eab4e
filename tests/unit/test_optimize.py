"""`optimize_prompts` in a world where what a prompt says adds up to how good its answers are."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from grpo_ray.asking import Counted
from grpo_ray.errors import ConfigError, MissingError, OracleError
from grpo_ray.fenced import unfenced
from grpo_ray.optimize import BLIND_PLAN, EVOLUTION, Optimized, candidate, optimize_prompts
from grpo_ray.prompting import content_hash
from grpo_ray.protocols import Oracle
from grpo_ray.recipe import EvolutionSpec, PlanSpec, Weighted
from grpo_ray.types import Choice, Example, Message, Parameter, Reply, Task, Template

GAINS = {"calm": 0.15, "steps": 0.2, "brief": -0.15, "units": 0.15, "rush": -0.2, "check": 0.1}
"""What a word in a prompt adds to the score."""
PARAMETERS = tuple(
    Parameter(name, (Choice("none", ""), *(Choice(word, f"Mind the {word}.") for word in words)))
    for name, words in (("manner", ("calm", "rush")), ("way", ("brief", "steps")), ("end", ("units", "check")))
)
SEED = Template(
    "seed",
    "Solve it. {{ manner }} {{ way }} {{ end }}\n\n{{ question }}",
    parameters=PARAMETERS,
    settings=(("manner", "rush"), ("way", "none"), ("end", "none")),
)
EXAMPLES = [{"question": f"What is {n} + {n}?", "hard": (n % 5) / 20} for n in range(12)]
SETTINGS = replace(EVOLUTION, mutations=(Weighted(name="recombine"), Weighted(name="set_parameter")))


def true(text: str) -> float:
    return 0.4 + sum(gain for word, gain in GAINS.items() if word in text)


@dataclass
class Meter:
    """An evaluator, and what it was asked; with a noise that depends on the call's number alone."""

    noise: float = 0.2
    silent: float = 0.0
    """Share of the calls without a score."""
    texts: list[str] = field(default_factory=list)
    examples: list[Any] = field(default_factory=list)

    def __call__(self, given: Mapping[str, str], example: Any) -> float | None:
        chance = random.Random(len(self.texts))
        self.texts.append(given["text"])
        self.examples.append(example)
        if chance.random() < self.silent:
            return None
        hard = example["hard"] if isinstance(example, dict) else 0.0
        return true(given["text"]) - hard + chance.gauss(0, self.noise)


def optimized(
    seeds: Any = (SEED,), tasks: Any = EXAMPLES, evaluator: Any = None, *, budget: int = 160, **more: Any
) -> Optimized:
    more = {"evolution": SETTINGS, **more}
    return asyncio.run(optimize_prompts(seeds, tasks, evaluator or Meter(), budget=budget, **more))


@dataclass
class Writer(Oracle):
    """Rewrites a text by a sentence more, good or bad, that depends on the request; or is down."""

    up: bool = True
    asked: list[str] = field(default_factory=list)
    scope: str = ""

    def within(self, scope: str) -> "Writer":
        return Writer(self.up, self.asked, f"{self.scope}/{scope}")

    def at(self, name: str) -> "Writer":
        return self.within(f"at {name}")

    def again(self, times: int) -> "Writer":
        return self.within(f"again {times}")

    async def complete(
        self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
    ) -> Reply:
        self.asked.append(self.scope)
        if not self.up or shape is None:
            raise OracleError("the writer is down")
        text = next(found for message in messages if (found := unfenced(message.content)))["template"]
        word = random.Random(f"{self.scope} {text}").choice([word for word in GAINS if word not in text] or ["time"])
        said = {"diagnosis": f"It lacks the {word}.", "settings": [], "text": f"Mind the {word}. {text}"}
        return Reply(shape.model_validate(said).model_dump_json(), "writer")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[float(len(text))] for text in texts]

    async def nearest(self, text: str, *, limit: int = 10) -> list[tuple[str, float]]:
        return [(text, float(limit))]

    async def check(
        self,
        task: Task,
        answers: Sequence[str],
        *,
        verifier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[float | None]:
        return [1.0 for _ in answers]


# ── what is found ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_best_is_found(seed: int) -> None:
    """Of 27 settings, by a noise as large as the largest gain."""
    found = optimized(seed=seed, budget=240)
    start, best = true(candidate(SEED)["text"]), 0.4 + 0.15 + 0.2 + 0.15
    assert start == pytest.approx(0.2)
    assert true(found.text) > start + 0.5
    assert true(found.text) >= best - 0.1
    assert found.text == candidate(found.best)["text"] and found.best in found.archive


@pytest.mark.parametrize("seed", range(3))
def test_sentences_that_an_oracle_writes_are_sifted(seed: int) -> None:
    """From a bare text; what helps is put together, what harms goes."""
    found = optimized(["Solve it."], oracle=Writer(), budget=300, seed=seed, evolution=EVOLUTION)
    assert found.best.mutation in ("rewrite", "recombine") and found.text.endswith("\n\n{{ question }}")
    assert true(found.text) > true("Solve it.") + 0.25
    assert found.replies > 10


def test_the_same_seed_finds_the_same_bit_for_bit() -> None:
    one, other = (optimized(["Solve it.", SEED], oracle=Writer(), budget=120, evolution=EVOLUTION) for _ in range(2))
    assert one == other
    assert optimized(budget=120, seed=1).trials != optimized(budget=120, seed=2).trials


def test_everything_that_led_to_it_is_handed_back() -> None:
    found = optimized()
    ids = [one.id for one in found.archive]
    assert ids[0] == "seed" and len(ids) == len(set(ids)) > 10
    assert len({content_hash(one) for one in found.archive}) == len(ids)
    assert {one.id for one in found.population.templates} <= set(ids)
    assert {trial.template for trial in found.trials} <= set(ids)
    assert (found.rollouts, len(found.trials), found.replies) == (160, 160, 0)
    assert [trial.step for trial in found.trials] == sorted(trial.step for trial in found.trials)


# ── what the evaluator is asked ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("budget", [10, 47, 100, 161])
def test_no_more_is_asked_than_the_budget(budget: int) -> None:
    meter = Meter()
    found = optimized(evaluator=meter, budget=budget)
    assert len(meter.texts) == found.rollouts <= budget
    assert found.rollouts > budget - 4  # the finalists are compared on the same tasks


def test_candidates_are_texts_with_their_settings_filled_in() -> None:
    meter = Meter()
    spoken = replace(SEED, system="You are {{ manner }} a clerk.", text="{{ way }} {{ end }}\n{{ question }}")
    seen: list[Mapping[str, str]] = []

    def evaluator(given: Mapping[str, str], example: Any) -> float | None:
        seen.append(given)
        return meter(given, example)

    optimized([spoken], evaluator=evaluator, budget=40)
    assert all(set(given) == {"text", "system"} for given in seen)
    assert seen[0] == {"system": "You are Mind the rush. a clerk.", "text": " \n{{ question }}"}
    assert all(given["text"].endswith("{{ question }}") and "{{ end }}" not in given["text"] for given in seen)


@pytest.mark.parametrize("tasks", [EXAMPLES, [f"{n}?" for n in range(9)], [Task(f"t{n}", f"{n}?") for n in range(9)]])
def test_examples_of_any_kind_come_as_they_are(tasks: list[Any]) -> None:
    meter = Meter()
    optimized(tasks=tasks, evaluator=meter, budget=80)
    assert all(any(one is given for given in tasks) for one in meter.examples)
    assert all(any(one is given for one in meter.examples) for given in tasks)


def test_an_evaluator_may_be_asynchronous() -> None:
    meter = Meter()

    async def evaluator(given: Mapping[str, str], example: Any) -> float | None:
        await asyncio.sleep(0)
        return meter(given, example)

    assert optimized(evaluator=evaluator) == optimized(evaluator=Meter())


def test_what_is_said_beside_a_score_is_shown_to_those_who_rewrite() -> None:
    shown: list[str] = []

    class Reader(Writer):
        async def complete(
            self, messages: Sequence[Message], *, shape: type[Any] | None = None, nth: int | None = None
        ) -> Reply:
            shown.append(messages[-1].content)
            return await super().complete(messages, shape=shape, nth=nth)

        def within(self, scope: str) -> "Reader":
            return Reader(self.up, self.asked, scope)

    def evaluator(given: Mapping[str, str], example: Any) -> tuple[float, Mapping[str, str]]:
        return true(given["text"]), {"feedback": "The units are missing.", "answer": "I say nine."}

    optimized(["Solve it."], evaluator=evaluator, oracle=Reader(), budget=40, evolution=EVOLUTION)
    assert shown and all("The units are missing." in one and "I say nine." in one for one in shown if "<data-" in one)


def test_missing_scores_are_no_trials() -> None:
    meter = Meter(silent=0.4)
    found = optimized(evaluator=meter, budget=240)
    assert found.rollouts == len(meter.texts) > 230
    assert 0.4 < len(found.trials) / found.rollouts < 0.8
    assert true(found.text) > true(candidate(SEED)["text"]) + 0.3
    mute = optimized(evaluator=lambda given, example: None, budget=60)
    assert mute.trials == () and mute.best in mute.archive


def test_a_task_type_is_met_by_the_templates_that_fit_it() -> None:
    kinds = [replace(SEED, id=kind, task_type=kind, text=f"{kind}:\n{SEED.text}") for kind in ("sums", "words")]
    tasks = [Task(f"{kind}-{n}", f"{n}?", task_type=kind) for kind in ("sums", "words") for n in range(6)]
    asked: list[tuple[str, str]] = []

    def evaluator(given: Mapping[str, str], task: Task) -> float:
        asked.append(("sums" if "sums:" in given["text"] else "words", task.task_type))
        return true(given["text"])

    found = optimized(kinds, tasks, evaluator, budget=120)
    assert len(asked) <= 120 and set(asked) == {("sums", "sums"), ("words", "words")}
    assert true(found.text) > 0.6


# ── the oracle ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_an_oracle_mutations_that_ask_are_left_out() -> None:
    spec = replace(
        EVOLUTION, mutations=(*EVOLUTION.mutations, Weighted(name="rephrase"), Weighted(name="set_parameter"))
    )
    found = optimized(evolution=spec)
    assert found.replies == 0
    assert {one.mutation for one in found.archive} == {"seed", "recombine", "set_parameter"}
    with pytest.raises(ConfigError, match="every mutation asks an oracle, and there is none; give oracle=…"):
        optimized(evolution=replace(EVOLUTION, mutations=(Weighted(name="rewrite"),)))


def test_an_oracle_that_is_down_costs_children_and_no_more() -> None:
    down = Writer(up=False)
    mixed = replace(EVOLUTION, mutations=(Weighted(name="rewrite"), Weighted(name="set_parameter")))
    found = optimized(oracle=down, evolution=mixed, budget=120)
    assert found.replies == len(down.asked) > 3
    assert "rewrite" not in {one.mutation for one in found.archive} and len(found.archive) > 4
    assert any("the writer is down" in why for _, why in found.population.retired)


def test_replies_are_counted_wherever_they_are_asked() -> None:
    writer = Writer()
    found = optimized(["Solve it."], oracle=writer, budget=80, evolution=EVOLUTION)
    assert found.replies == len(writer.asked)
    assert all(scope.startswith(f"/{step}/evolve/child/") for scope in writer.asked for step in [scope.split("/")[1]])
    assert len(set(writer.asked)) > 3

    async def others() -> list[Any]:
        one = Counted(writer)
        far = one.at("other").again(2)
        return [far.oracle.scope, await one.embed(["four"]), await one.nearest("x"), await one.check(Task("t", ""), ["9"])]  # type: ignore[attr-defined]  # fmt: skip

    assert asyncio.run(others()) == ["/at other/again 2", [[4.0]], [("x", 10.0)], [1.0]]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────

NEEDY = replace(SEED, id="needy", text=SEED.text + " {{ metadata.hint }}")
SHOT = Template("shot", "{{ question }}", examples=(Example("1 + 1?", "2"),))
SMALL = "a budget of 9 rollouts is too small: the first generation takes 8, and 20% is kept for the end; give 10"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"seeds": []}, "no template fits tasks of type 'any'; add one"),
        ({"seeds": "Solve it."}, "seeds is a text; give a list"),
        ({"seeds": ["{{ question"]}, "seed 'seed-0': text: broken Jinja2"),
        ({"seeds": [SEED, SHOT]}, "seed 'shot': examples: are unused"),
        (
            {"seeds": [SEED, replace(SEED, text="Please. " + SEED.text)]},
            "two of the seeds are called 'seed'; give each",
        ),
        ({"seeds": [NEEDY], "tasks": [Task("t", "?", metadata={"hint": "h"})]}, "seed 'needy' shows metadata, which"),
        ({"seeds": [replace(SEED, task_type="sums")]}, "no template fits tasks of type 'any'"),
        ({"tasks": []}, "there are no tasks; give at least two"),
        ({"tasks": [Task("t", "1?"), Task("t", "2?")]}, "two of the tasks are called 't'"),
        ({"seeds": [f"{n}. Solve it." for n in range(4)], "budget": 9}, SMALL),
        ({"budget": 0}, "a budget of 0 rollouts is too small"),
        ({"final": 1.0}, "final is 1.0"),
        ({"finalists": 0}, "finalists 0"),
        ({"plan": PlanSpec(tasks=0)}, "plan.tasks: 0 is out of bounds; it must be 1 or more"),
        ({"plan": PlanSpec(templates=1)}, "plan.templates: templates are told apart on common tasks"),
        ({"evolution": replace(SETTINGS, heat=-1.0)}, "evolution.heat: -1.0 is out of bounds"),
        ({"evolution": EvolutionSpec(mutations=())}, "evolution.mutations: needs at least one entry"),
        (
            {"evolution": EvolutionSpec(mutations=(Weighted(name="recombine", settings={"move": 2}),))},
            "no setting 'move'",
        ),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_asked(given: dict[str, Any], why: str) -> None:
    meter = Meter()
    with pytest.raises(ConfigError) as told:
        optimized(**{"evaluator": meter, **given})
    assert why in str(told.value)
    assert meter.texts == []


def test_a_mutation_that_is_not_there_is_named_before_anything_is_asked() -> None:
    meter = Meter()
    with pytest.raises(MissingError, match="no mutations file is called 'recombin'"):
        optimized(evaluator=meter, evolution=EvolutionSpec(mutations=(Weighted(name="recombin"),)))
    assert meter.texts == []


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "good", (float("nan"), {})])
def test_a_score_that_is_no_number_is_refused(score: Any) -> None:
    with pytest.raises(ConfigError, match=r"the evaluator gave .* for 'seed' on 'example-0.*'; a score is a finite"):
        optimized(evaluator=lambda given, example: score)


def test_the_smallest_budget_that_is_named_is_enough() -> None:
    seeds = [f"Solve it. {word}" for word in ("One.", "Two.", "Three.", "Four.")]
    found = optimized(seeds, budget=10)
    assert found.rollouts == 10
    assert Counter(trial.step for trial in found.trials)[0] == BLIND_PLAN.tasks * BLIND_PLAN.templates


def test_a_search_that_is_stopped_early_spends_only_what_was_kept_for_the_end() -> None:
    whole = optimized(["Solve it. One.", "Solve it. Two."], budget=100)
    short = optimized(["Solve it. One.", "Solve it. Two."], budget=100, proceed=lambda rollouts: rollouts < 8)
    assert short.rollouts < 8 + 8 + 21 < whole.rollouts <= 100
