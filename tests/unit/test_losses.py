"""Every loss against a plain float64 reading of the papers, and its gradient against finite differences."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grpo_ray.errors import ConfigError
from grpo_ray.trainers._schedule import Schedule
from grpo_ray.trainers._tally import SUMS, Bounds
from grpo_ray.trainers.losses import (
    Objective,
    chosen_rows,
    dpo_loss,
    k3,
    mismatch_weights,
    mx,
    overlong_penalty,
    policy_loss,
    token_logprobs,
    token_weights,
)

LIMIT = 9
"""The longest a completion may be, for dr_grpo."""
OBJECTIVES = {
    "dapo": Objective(),
    "grpo": Objective(loss="grpo"),
    "grpo, two-sided": Objective(loss="grpo", delta=1.4),
    "grpo, kl": Objective(loss="grpo", kl=0.1),
    "dapo, plain kl": Objective(kl=0.1, kl_bias_correction=False),
    "bnpo": Objective(loss="bnpo"),
    "dr_grpo": Objective(loss="dr_grpo"),
    "gspo": Objective(loss="gspo", clip_low=0.05, clip_high=0.06),
    "gspo, kl": Objective(loss="gspo", kl=0.1),
    "cispo": Objective(loss="cispo", cispo_cap=1.2),
    "sft": Objective(loss="sft"),
    "token_truncate": Objective(mismatch="token_truncate", mismatch_cap=1.2),
    "token_mask": Objective(mismatch="token_mask", mismatch_cap=1.2),
    "sequence_truncate": Objective(loss="grpo", mismatch="sequence_truncate", mismatch_cap=1.2),
    "sequence_mask": Objective(loss="gspo", mismatch="sequence_mask", mismatch_cap=1.2),
}


class Case:
    """A ragged batch of one group: float64 arrays (G, T), advantages (G,), lengths."""

    def __init__(self, seed: int, rows: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.rows, self.width = rows or int(rng.integers(1, 5)), int(rng.integers(1, 7))
        shape = (self.rows, self.width)
        self.old = rng.normal(-1.5, 0.7, shape).astype(np.float32).astype(np.float64)
        self.new = (self.old + rng.normal(0, 0.3, shape)).astype(np.float32).astype(np.float64)
        self.reference = self.old + rng.normal(0, 0.3, shape)
        self.sampler = self.old + rng.normal(0, 0.2, shape)
        self.advantages = rng.normal(0, 1, self.rows)
        self.lengths = rng.integers(1, self.width + 1, self.rows)

    def active(self) -> np.ndarray:
        return np.arange(self.width)[None] < self.lengths[:, None]


def rhos(case: Case, o: Objective) -> list[list[float]]:
    """What each token's loss is multiplied by, from the facts' formulas."""
    out = []
    for row, length in enumerate(case.lengths):
        gaps = [case.old[row, t] - case.sampler[row, t] for t in range(length)]
        values = [np.exp(sum(gaps))] * length if o.mismatch.startswith("sequence") else list(np.exp(gaps))
        over = (lambda v: min(v, o.mismatch_cap)) if o.mismatch.endswith("truncate") else None
        kept = [over(v) if over else (v if v <= o.mismatch_cap else 0.0) for v in values]
        out.append([1.0] * length if o.mismatch == "none" else kept)
    return out


def token_loss(o: Objective, ratio: float, held_ratio: float, gain: float, new: float, rho: float, gap: float) -> float:
    """One token; `held_ratio` is the ratio where the gradient must not see it."""
    if o.loss == "sft":
        loss = -gain * new
    elif o.loss == "cispo":
        loss = -min(held_ratio, o.cispo_cap) * gain * new
    else:
        free = ratio if o.delta is None else min(ratio, o.delta)
        loss = -min(free * gain, np.clip(ratio, 1 - o.clip_low, 1 + o.clip_high) * gain)
    penalty = np.exp(gap) - gap - 1
    return rho * loss + o.kl * penalty * (ratio if o.kl_bias_correction else 1.0)


def by_hand(case: Case, o: Objective, new: np.ndarray) -> float:
    """Token by token, in float64; `case.new` is where a stopped gradient stands still."""
    tokens, total, rho = sum(case.lengths), 0.0, rhos(case, o)
    for row, length in enumerate(case.lengths):
        steps, still = ((part[row, :length] - case.old[row, :length]) for part in (new, case.new))
        if o.loss == "gspo":
            steps, still = np.full(length, steps.mean()), np.full(length, still.mean())
        part = 0.0
        for t in range(length):
            gap = case.reference[row, t] - new[row, t]
            ratios = np.exp(steps[t]), np.exp(still[t])
            part += token_loss(o, *ratios, case.advantages[row], new[row, t], rho[row][t], gap)
        whole = {"grpo": case.rows * length, "gspo": case.rows * length, "dr_grpo": case.rows * LIMIT}
        total += part / whole.get(o.loss, tokens)
    return total


def run_loss(case: Case, o: Objective, new: mx.array) -> tuple[mx.array, mx.array]:
    weights = np.array(token_weights([list(case.lengths)], o.loss, LIMIT)[0])[:, None] * case.active()
    old, advantages, weights, reference, sampler = (
        mx.array(np.asarray(part, np.float32))
        for part in (case.old, case.advantages, weights, case.reference, case.sampler)
    )
    rho = None if o.mismatch == "none" else mismatch_weights(old, sampler, mx.array(case.active()), o)
    return policy_loss(new, old, advantages, weights, o, reference if o.kl else None, rho)


def far_from_edges(case: Case, o: Objective) -> bool:
    gaps = case.new - case.old
    ratios = [np.exp(gaps[row, :n].mean() if o.loss == "gspo" else gaps[row, :n]) for row, n in enumerate(case.lengths)]
    edges = [1 - o.clip_low, 1 + o.clip_high, o.delta or 9.0, o.cispo_cap]
    clear = all(np.abs(np.asarray(r) - edge).min() > 1e-3 for r in ratios for edge in edges)
    raw = rhos(case, Objective(mismatch=o.mismatch, mismatch_cap=1e30) if o.mismatch != "none" else o)
    return clear and all(abs(value - o.mismatch_cap) > 1e-3 for row in raw for value in row)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_loss_and_gradient_are_the_papers(name, seed):
    o, case = OBJECTIVES[name], Case(seed)
    assume(far_from_edges(case, o))
    loss, slope = mx.value_and_grad(lambda x: run_loss(case, o, x)[0])(mx.array(case.new.astype(np.float32)))
    expected = differences(lambda new: by_hand(case, o, new), case.new)
    assert np.abs(np.array(slope) - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-3)
    assert abs(loss.item() - by_hand(case, o, case.new)) < 1e-5 * max(1.0, np.abs(case.advantages).max())


def differences(f, at: np.ndarray) -> np.ndarray:
    slope = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-5
        slope[place] = (f(at + step) - f(at - step)) / 2e-5
    return slope


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_dpo_and_its_gradient_are_the_papers(seed):
    case, o = Case(seed, rows=2), Objective(loss="dpo", dpo_beta=0.3)
    weights = mx.array((case.active() * 0.25).astype(np.float32))
    old, reference = (mx.array(part.astype(np.float32)) for part in (case.old, case.reference))

    def plain(new: np.ndarray) -> float:
        gained = [sum(new[row, t] - case.reference[row, t] for t in range(case.lengths[row])) for row in (0, 1)]
        return 0.25 * np.log1p(np.exp(-0.3 * (gained[0] - gained[1])))

    start = mx.array(case.new.astype(np.float32))
    loss, slope = mx.value_and_grad(lambda x: dpo_loss(x, old, reference, weights, o)[0])(start)
    expected = differences(plain, case.new)
    assert abs(loss.item() - plain(case.new)) < 1e-5
    assert np.abs(np.array(slope) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_stats_count_what_was_clipped_and_ignore_padding():
    case = Case(0, rows=2)
    case.new = np.log([[1.5, 0.5, 9.0], [1.5, 0.5, 1.0]])
    case.old = case.reference = case.sampler = np.zeros((2, 3))
    case.width, case.lengths, case.advantages = 3, np.array([2, 3]), np.array([1.0, -1.0])
    _, stats = run_loss(case, Objective(), mx.array(case.new.astype(np.float32)))
    low, high, ratio, kl = stats.tolist()
    assert (low, high) == (1, 1)  # 0.5 where less is better, 1.5 where more is
    assert abs(ratio - 5.0) < 1e-5
    assert abs(kl - sum(r - np.log(r) - 1 for r in (1.5, 0.5, 1.5, 0.5, 1.0))) < 1e-5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_with_nonsense_changes_nothing(name):
    case = Case(3, rows=3)
    case.lengths = np.full(3, 1)
    far = case.new.copy()
    far[:, 1:] = 500.0
    near, same = (
        run_loss(case, OBJECTIVES[name], mx.array(new.astype(np.float32)))[0].item() for new in (case.new, far)
    )
    assert near == same


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_weights_of_a_batch_sum_to_one(lengths):
    for loss in ("dapo", "grpo", "gspo", "cispo", "sft", "bnpo"):
        weights = token_weights(lengths, loss)
        rows = [pair for ours, theirs in zip(weights, lengths, strict=True) for pair in zip(ours, theirs, strict=True)]
        assert abs(sum(weight * length for weight, length in rows) - 1) < 1e-9


def test_what_a_token_weighs():
    assert token_weights([[1, 3]], "dapo") == [[0.25, 0.25]]
    assert token_weights([[1, 3]], "grpo") == [[0.5, 1 / 6]]
    assert token_weights([[1, 3], [4]], "bnpo") == [[1 / 8, 1 / 8], [1 / 8]]
    assert token_weights([[1, 3], [4]], "dr_grpo", 10) == [[1 / 30, 1 / 30], [1 / 30]]
    assert token_weights([[1, 3], [4, 4]], "dpo") == [[0.5, 0.5], [0.5, 0.5]]
    assert token_weights([[0, 3], [1]], "dapo") == [[0.0, 0.25], [0.25]]
    assert token_weights([[0, 3], [1]], "grpo") == [[0.0, 1 / 9], [1 / 3]]
    assert token_weights([[0, 0]], "dapo") == [[0.0, 0.0]]


def test_the_rollouts_a_loss_learns_from():
    advantages = [0.5, -1.0, 1.5, 1.5, 0.0]
    assert chosen_rows(advantages, Objective()) == [0, 1, 2, 3, 4]
    assert chosen_rows(advantages, Objective(loss="sft")) == [0, 2, 3]
    assert chosen_rows(advantages, Objective(loss="sft", sft_on="best")) == [2, 3]
    assert chosen_rows(advantages, Objective(loss="dpo")) == [2, 1]
    assert chosen_rows([0.0, 0.0], Objective(loss="dpo")) == chosen_rows([0.0, 0.0], Objective(loss="sft")) == []


def test_overlong_penalty_is_dapos():
    assert [overlong_penalty(n, 100, 20) for n in (1, 80, 90, 100, 120)] == [0, 0, -0.5, -1, -1]
    assert overlong_penalty(100, 100, 0) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "grpp"}, "loss is 'grpp': it must be one of dapo, grpo"),
        ({"mismatch": "token"}, "mismatch is 'token': it must be one of none, token_truncate"),
        ({"clip_low": -1}, "clip_low is -1: it must be at least 0"),
        ({"delta": 1.1}, "delta is 1.1: it must be above 1 + clip_high"),
        ({"sft_on": "x", "dpo_beta": 0}, "dpo_beta is 0: it must be above 0"),
    ],
)
def test_an_objective_that_cannot_be_says_why(given, said):
    with pytest.raises(ConfigError, match=said.replace("+", r"\+")):
        Objective(**given)


def test_schedules():
    assert Schedule().flat and Schedule().factor(7) == 1
    assert [Schedule("constant", 4).factor(n) for n in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1, 1, 1]
    assert [Schedule("linear", 2, 6).factor(n) for n in (0, 1, 2, 4, 6, 7)] == [0.5, 1, 1, 0.5, 0, 0]
    assert np.allclose([Schedule("cosine", 0, 4).factor(n) for n in (0, 1, 2, 4)], [1, 0.5 + 0.5**1.5, 0.5, 0])
    for wrong in (("steps", 0, 3), ("linear", 3, 3), ("constant", -1, 0)):
        with pytest.raises(ConfigError):
            Schedule(*wrong)


def test_bounds_name_what_left_them():
    means = dict.fromkeys(SUMS, 1.0)
    assert Bounds().fault(0.1, 3.0, means) == ""
    assert "loss nan" in Bounds().fault(float("nan"), 3.0, means)
    assert Bounds(kl=0.5).fault(0.1, 3.0, means) == "the update diverged: kl 1 above 0.5"
    assert "ratio nan above 1000" in Bounds().fault(0.1, 3.0, means | {"ratio": float("nan")})
    assert "grad_norm 3 above 2" in Bounds(grad_norm=2.0).fault(0.1, 3.0, means)
    assert "entropy 1 below 2" in Bounds(entropy=2.0).fault(0.1, 3.0, means)
    with pytest.raises(ConfigError, match="kl"):
        Bounds(kl=-1.0)


def test_logprobs_and_entropy_at_a_temperature():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(0, 2, (2, 3, 5)), rng.integers(0, 5, (2, 3))
    logps, entropy = token_logprobs(mx.array(logits.astype(np.float32)), mx.array(tokens), 0.5)
    full = logits / 0.5 - np.log(np.exp(logits / 0.5).sum(-1, keepdims=True))
    assert np.allclose(np.array(logps), np.take_along_axis(full, tokens[..., None], -1)[..., 0], atol=1e-5)
    assert np.allclose(np.array(entropy), -(np.exp(full) * full).sum(-1), atol=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(-3, 3))
def test_k3_is_never_negative(gap):
    assert k3(mx.array(gap)).item() >= -1e-6
