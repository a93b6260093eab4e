"""The recipe: everything a run's outcome depends on, and nothing else. Where and how it runs is the Placement.

These dataclasses are the config file: `settings.py` checks YAML against them, and their comments are its reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo_ray.types import Adapter, Policy, Population

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """One file of a registry folder and its settings."""

    __pydantic_config__ = STRICT
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted(Named):
    """A reward or a mutation: `weight` is its share in the blend, or of the children."""

    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec(Named):
    """A judge, and which of the `oracles` it asks (empty: `oracle`)."""

    oracle: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec(Weighted):
    """A reward's part in the blend."""

    cap: float | None = None
    """Values above it count as it."""
    gate: float | None = None
    """Where this reward's value is below it, every other part counts as 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """How many tasks each split takes; None takes a tenth of what there is (train: the rest)."""

    __pydantic_config__ = STRICT
    train: int | None = None
    validation: int | None = None
    heldout: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    __pydantic_config__ = STRICT
    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    slots: int | Literal["auto"] = 32
    """auto: found when a run begins, as a number that then stays. A RunState's recipe always has a number."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSpec:
    """What one step explores: `tasks` tasks, each under `templates` templates; `wave` prompts a wave."""

    __pydantic_config__ = STRICT
    tasks: int = 8
    templates: int = 4
    wave: int = 16
    batching: Literal["waves", "continuous"] = "waves"
    """waves: sampled one by one, the same bytes however fast; continuous: what waits is sampled together, for speed."""
    refill: int = 0
    """How often a step may sample further tasks in place of groups that teach nothing: lost, or rewarded all alike."""
    curriculum: bool = False
    """Rather tasks that are sometimes solved than such as always are, or never, by what steps before have shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionSpec:
    """How the population changes: its size, children a step (0: prompts stay), and how fast old evidence fades."""

    __pydantic_config__ = STRICT
    size: int = 12
    children: int = 2
    discount: float = 0.9
    """How much a trial counts a step later."""
    surrogate: bool = True
    """Whether templates are known by the pieces they share with others, or each by its own trials alone."""
    heat: float = 0.5
    """How bold the draws are that children are made by: 1 is Thompson sampling, 0 takes what is expected."""
    mutations: tuple[Weighted, ...] = (Weighted(name="set_parameter"), Weighted(name="rewrite"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """A new adapter is kept unless it is clearly worse on `tasks` validation tasks (0: no gate)."""

    __pydantic_config__ = STRICT
    tasks: int = 0
    z: float = 1.645
    """How many standard errors worse is "clearly"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleSpec:
    """An endpoint and a model that judges and mutations ask. `base_url: bundled` starts the stand-in server."""

    __pydantic_config__ = STRICT
    base_url: str = "bundled"
    model: str = "stand-in"
    embedding_model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 16
    timeout_s: float = 120.0
    max_tokens: int = 2000
    temperature: float | None = None
    """None sends none: reasoning models refuse it."""
    reasoning_effort: str | None = None
    """Sent as it is, to models that know it."""
    max_usd: float | None = None
    """What the run may spend here; calls then wait until somebody allows more."""
    usd_per_million: tuple[float, float] = (0.0, 0.0)
    """Price of a million tokens in, and out."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """What the endpoint allows, over the whole cluster; None: learnt from its refusals."""
    deadline_s: float = 600.0
    """How long one reply may take in all, with pauses between tries but not while it waits for its turn."""
    hedge: float = 0.0
    """0 never; q: a try q times slower than the median of the recent ones gets a second beside it; the first counts."""


HOW = frozenset(
    {
        *("base_url", "api_key_env", "concurrency", "timeout_s", "deadline_s", "hedge"),
        *("max_usd", "usd_per_million", "requests_per_minute", "tokens_per_minute"),
    }
)
"""Keys of an oracle that say how it is reached and paid, not what it says: a resume may change them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustSpec:
    """How the judges that ask a model are themselves judged."""

    __pydantic_config__ = STRICT
    audit: float = 0.0
    """Share of groups judged again: the same request once more, in another order, and by `second`."""
    second: str = ""
    """Which of the `oracles` audits ask as well: best a model of another family."""
    canaries: float = 0.0
    """Known answers judged beside the real ones, as a share of the rollouts."""
    max_false_positives: float = 0.02
    """Bad answers that may pass for good; above, evolution and export wait for a person."""
    min_alpha: float = 0.67
    """Dimensions with a Krippendorff's alpha below it lose weight, and their rollouts are shown to people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The resolved config of a run."""

    __pydantic_config__ = STRICT
    name: str = "run"
    seed: int = 0
    steps: int = 8
    lag: int = 0
    model: str = "bundled:nano"
    """A folder or a Hugging Face name that mlx-lm loads, or bundled:nano."""
    prompts: str = "prompts.json"
    tasks: tuple[Named, ...]
    splits: Splits = Splits()
    sampling: SamplingSpec = SamplingSpec()
    plan: PlanSpec = PlanSpec()
    generator: Named = Named(name="mlx")
    judges: tuple[JudgeSpec, ...] = (JudgeSpec(name="verifier"),)
    rewards: tuple[RewardSpec, ...] = (RewardSpec(name="verified"),)
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Whether `advantages` compares blended rewards (GRPO), or each part by itself before the sum (GDPO)."""
    advantages: Literal["standardized", "centred", "leave_one_out"] = "standardized"
    """A reward less its group's mean, over the deviation (GRPO) or not (Dr. GRPO), or less the others' mean (RLOO)."""
    baseline: Literal["group", "task"] = "group"
    """What a rollout is compared with: its group, or all rollouts of its task in the step, under whatever template."""
    evolution: EvolutionSpec = EvolutionSpec()
    trainer: Named | None = Named(name="mlx_lora")
    """None: the weights stay."""
    trainers: int = 1
    """How many trainers share an update's groups. More add up in another order, so the last bits differ."""
    train_every: int = 1
    """n: only every n-th step updates the adapter, with that step's groups; prompts evolve in each (fast prompts, slow weights)."""
    gate: GateSpec = GateSpec()
    oracle: OracleSpec = OracleSpec()
    oracles: Mapping[str, OracleSpec] = field(default_factory=dict)
    """Further endpoints by a name of yours: for judges (`oracle: NAME`), panels, and audits."""
    trust: TrustSpec = TrustSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how a run runs; nothing here changes its outcome, so a resume may change it."""

    __pydantic_config__ = STRICT
    generators: int = 1
    judges: int = 1
    ray: Literal["local", "auto"] | str = "local"
    """local: a Ray of its own; auto or HOST:PORT: a cluster that runs already; off: all in this process."""
    storage: str = "embedded"
    """embedded, memory, or postgresql://… of a server that has pgvector."""
    home: str = "~/.grpo-ray"
    control_port: int = 8765


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A config file: a recipe and, under `placement`, where it runs."""

    __pydantic_config__ = STRICT
    recipe: Recipe
    placement: Placement = Placement()


@dataclass(frozen=True, slots=True)
class RunState:
    """All that lives from one step to the next. `policies` are those of the last `lag + 1` steps, oldest first."""

    run: str
    step: int
    recipe: Recipe
    population: Population
    adapter: Adapter | None
    policies: tuple[Policy, ...]

    def policy(self, step: int) -> Policy:
        """What `step` explores with: the policy of `max(0, step − lag)`; `step` is at most `self.step + lag`."""
        first = self.step - len(self.policies) + 1
        return self.policies[max(0, step - self.recipe.lag) - first]

    def next(
        self, adapter: Adapter | None, population: Population, held: tuple[tuple[str, str], ...] = ()
    ) -> "RunState":
        """The state after a step; `held`: the dimensions whose marks do not count from here on."""
        policies = (*self.policies, Policy(population, adapter, held))[-(self.recipe.lag + 1) :]
        return RunState(self.run, self.step + 1, self.recipe, population, adapter, policies)
