"""The nouns. Each stage wraps the one before, and nothing is filled in later:

Template → Prompt → Rollout in Group → Evaluation → Reward → ScoredRollout in ScoredGroup → (Adapter, Population, Row)

Everything is frozen, made of tuples, strings and numbers, and so can be hashed, pickled and stored as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "validation", "heldout"]
ANY = "any"
"""The task type of templates that fit every task."""


@dataclass(frozen=True, slots=True)
class Task:
    """A question with, where there is one, a reference answer and the name of its verifier."""

    id: str
    question: str
    answer: str | None = None
    task_type: str = ANY
    verifier: str | None = None
    """A file of `verifiers/` or `tasks/`, or a dotted name, with `verify(answer, task, …)`; None: nothing can be checked."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Tasks cut three ways, never overlapping."""

    train: tuple[Task, ...]
    validation: tuple[Task, ...]
    heldout: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example for few-shot prompts."""

    question: str
    response: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting of a parameter: its label, and the text it puts where the placeholder stands."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with placeholders and parameters; it evolves, and is never changed in place."""

    id: str
    text: str
    """Jinja2: `question`, `examples`, `metadata` and the names of the parameters."""
    task_type: str = ANY
    complexity: str = "single-step"
    system: str | None = None
    parameters: tuple[Parameter, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    """(parameter name, chosen label), one pair a parameter, in the parameters' order."""
    examples: tuple[Example, ...] = ()
    version: int = 1
    parents: tuple[str, ...] = ()
    mutation: str = "seed"
    """The mutation that made it, or "seed"."""
    note: str = ""
    """Why the mutation did what it did, in its own words."""
    stand_in: bool = False
    """True when a stand-in, not a real model, wrote any of it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One template with its parameters set, rendered over one task."""

    id: str
    template_id: str
    task: Task
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 filter nothing."""

    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    slots: int = 32
    """Sequences decoded at once; part of what the numbers depend on, so it is fixed for a run."""
    seed: int = 0
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest are left out; 0 leaves out none."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that the prompt or the completion holds less likely (arXiv 1909.05858); 1 is off."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion; its text ends before the first of them."""


@dataclass(frozen=True, slots=True)
class Wave:
    """A fixed list of prompts that one generator takes as a whole."""

    id: str
    prompts: tuple[Prompt, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt. `logprobs[t]` is that of `token_ids[t]` under what was sampled from, in nats."""

    id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    """With the end-of-sequence token, when one was sampled; empty where an endpoint doesn't tell."""
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    seed: int
    model_logprobs: tuple[float, ...] = ()
    """The same tokens under the bare model: temperature 1, no penalty, no filters. Empty where nobody kept them."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt, with what they were drawn by."""

    id: str
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    model: str
    adapter: str | None
    """Content hash of the adapter, or None for the base model."""
    seconds: float = field(default=0.0, compare=False)
    """How long the group took to draw; no part of its identity."""


@dataclass(frozen=True, slots=True)
class LostGroup:
    """A prompt no rollouts could be drawn for, and why."""

    id: str
    prompt: Prompt
    reason: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one judge or verifier said of one rollout on one dimension."""

    rollout_id: str
    judge: str
    dimension: str
    score: float | None
    """0 (worst) to 1 (best); None is missing, and then `rationale` says why."""
    rationale: str
    model: str = ""
    """The model that spoke, or "" for a verifier."""
    stand_in: bool = False
    version: str = ""
    """A short hash of the judge as it was: its code, its settings, its model."""
    audit: str = ""
    """Empty where it counts towards the reward. Else how it was judged again (repeat, permuted, second, rejudged), to check it; person;
    or held: its dimension is not trusted for now."""


@dataclass(frozen=True, slots=True)
class RewardPart:
    name: str
    value: float | None
    weight: float


@dataclass(frozen=True, slots=True)
class Reward:
    """The number the evaluations of a rollout are blended into (None: missing), and its parts."""

    value: float | None
    parts: tuple[RewardPart, ...]


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    rollout: Rollout
    evaluations: tuple[Evaluation, ...]
    reward: Reward


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    group: Group
    rollouts: tuple[ScoredRollout, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A scored group with one group-relative advantage a rollout, in the rollouts' order."""

    group: ScoredGroup
    advantages: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """The name of LoRA weights: their content hash. The bytes are in the store before anything names them."""

    hash: str
    version: int
    parent: str | None
    step: int
    rate_scale: float = 1.0
    """What the gate left of the learning rate: halved at each refusal."""


@dataclass(frozen=True, slots=True)
class AdapterBytes:
    """Two safetensors files: the LoRA weights, and the optimizer's state with its schedule."""

    weights: bytes
    optimizer: bytes


@dataclass(frozen=True, slots=True)
class Update:
    """What a trainer returns: new bytes and what it measured. `skipped` says why nothing was learnt, if so."""

    content: AdapterBytes
    metrics: tuple[tuple[str, float], ...]
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Slope:
    """One trainer's part of an optimizer step: the summed gradient of its groups, and the sums over their tokens."""

    gradient: bytes
    """A safetensors file; empty where no group fell to this trainer."""
    loss: float
    sums: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Member:
    """A living template with what is known of it, in the reward's unit."""

    template: Template
    fitness: float = 0.0
    """How much better than the population's mean it is taken to be, and how sure that is."""
    deviation: float = 0.3
    trials: float = 0.0
    """Tasks it was compared on; old ones fade."""
    pinned: bool = False
    """Kept whatever happens, for a person said so."""
    born: int = 0
    """The generation it came in with."""


@dataclass(frozen=True, slots=True)
class Population:
    """The living templates; `generation` is its age."""

    members: tuple[Member, ...]
    generation: int = 0
    retired: tuple[tuple[str, str], ...] = ()
    """(template id, why), newest last; what was tried and did not help, for mutations to read."""

    @property
    def templates(self) -> tuple[Template, ...]:
        return tuple(member.template for member in self.members)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a step explores with."""

    population: Population
    adapter: Adapter | None
    held: tuple[tuple[str, str], ...] = ()
    """(judge, dimension) whose marks do not count, for its judges disagree too much."""


@dataclass(frozen=True, slots=True)
class Parent:
    """What a mutation reads: a template, what it led to at its best and at its worst, and edits already refused."""

    template: Template
    fitness: float
    best: tuple[tuple[Prompt, ScoredRollout], ...]
    worst: tuple[tuple[Prompt, ScoredRollout], ...]
    rejected: tuple[tuple[str, str], ...] = ()
    hopes: tuple[tuple[str, float], ...] = ()
    """(piece, what it is drawn to add to the reward): one Thompson draw; a piece is "name=label" or a sentence."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint said: text (JSON where a shape was asked for), by which model, at what cost."""

    text: str
    model: str
    stand_in: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to an endpoint, whatever came of it; neither keys nor texts."""

    request: str
    """Hash of what was asked."""
    door: str
    """The endpoint's host and the model: what is limited, and paid, together."""
    scope: str
    """On whose behalf: step, group and judge, or the mutation."""
    number: int
    """1 for the first try of a request."""
    status: str
    """ok, or what it ended with: an HTTP status, timeout, unreachable, quota, broken, refused, empty, cut_off, invalid,
    given_up."""
    time: float
    """When it began, seconds since 1970."""
    seconds: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """A dataset row: one conversation, its reward, and the way back to what made it."""

    id: str
    split: Literal["train", "validation", "test"]
    messages: tuple[Message, ...]
    reward: float
    task_id: str
    task_type: str
    template_id: str
    rollout_id: str
    adapter: str | None
    stand_in: bool


@dataclass(frozen=True, slots=True)
class Score:
    """Whether one template, with one adapter, solved one task at temperature 0."""

    template_id: str
    adapter: str | None
    task_id: str
    correct: float | None
    """0 to 1; None where nobody could say."""
    text: str


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a generator decodes with so many slots."""

    slots: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class SlotsFound:
    """The number of slots to decode with, and what was measured to find it; nothing by a generator that can't."""

    slots: int
    paces: tuple[Pace, ...] = ()
