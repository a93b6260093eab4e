import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest

from grpo_ray.trust.bias import (
    Alarm,
    Finding,
    alarms,
    biases,
    noisy_dimensions,
    phrase_columns,
    position_preference,
    rows_needed,
)
from grpo_ray.trust.calibration import student_quantile

X = np.nan
SIGMA = 0.12
"""The simulated judge's own noise, in marks."""
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Planted:
    """The biases of a simulated judge, each in its Finding's unit."""

    length: float = 0.0
    phrase: float = 0.0
    first: float = 0.5
    noise: float = 1.0

    @property
    def sizes(self) -> dict[Key, float]:
        return {
            ("length", "length"): self.length,
            ("feature", "phrase 0"): self.phrase,
            ("preference", "first place"): self.first,
            ("noise", "clarity"): self.noise,
        }


CLEAN = Planted()
BIASED = Planted(length=0.5, phrase=0.8, first=0.6, noise=4.0)


def simulate(seed: int, planted: Planted, groups: int = 60, group_size: int = 8) -> list[Finding]:
    """All findings of one run of a judge: 12 tests. A harder task has fewer right and longer answers."""
    rng = np.random.default_rng([17, seed])
    group = np.repeat(np.arange(groups), group_size)
    right = (rng.random(len(group)) < rng.beta(2, 2, groups)[group]).astype(float)
    stretch = rng.normal(size=len(group))
    length = 6 + 0.6 * rng.normal(size=groups)[group] + 0.4 * stretch
    phrases = {f"phrase {i}": (rng.random(len(group)) < 0.2).astype(float) for i in range(5)}
    pull = planted.length * stretch + planted.phrase * phrases["phrase 0"]
    score = 0.4 + 0.3 * right + 0.1 * rng.normal(size=groups)[group] + SIGMA * (pull + rng.normal(size=len(group)))
    place = np.tile(np.arange(group_size), groups)
    found = biases(score, group, truth={"verifier": right}, length=length, position=place, features=phrases)
    sizes = {"clarity": np.sqrt(planted.noise), "logic": 1.0, "facts": 1.0, "relevance": 1.0}
    repeats = {name: 0.5 + 0.05 * size * rng.normal(size=(3, 60)) for name, size in sizes.items()}
    return [*found, position_preference(int(rng.binomial(800, planted.first)), 800), *noisy_dimensions(repeats)]


def test_planted_biases_are_found_with_their_sign_and_size() -> None:
    runs = [simulate(seed, BIASED) for seed in range(20)]
    raised = [{key(alarm.finding): alarm.finding for alarm in alarms(run)} for run in runs]
    for where, size in BIASED.sizes.items():
        found = [{key(finding): finding for finding in run}[where] for run in runs]
        none = {"preference": 0.5, "noise": 1.0}.get(where[0], 0.0)
        assert all(where in alarmed for alarmed in raised), where
        assert all((finding.effect or 0) > none for finding in found), where
        assert np.mean([covers(finding, size) for finding in found]) >= 0.9, where


def test_a_clean_judge_hardly_ever_raises_an_alarm() -> None:
    runs = [simulate(seed, CLEAN) for seed in range(60)]
    assert np.mean([bool(alarms(run)) for run in runs]) <= 0.05
    tested = [finding for run in runs for finding in run if finding.p is not None]
    none = {"preference": 0.5, "noise": 1.0}
    assert len(tested) == 60 * 12
    assert 0.93 <= np.mean([covers(finding, none.get(finding.kind, 0.0)) for finding in tested]) <= 0.97


def test_difficulty_cancels_and_the_truth_is_held() -> None:
    """Right answers are longer, and easy tasks' answers too: without either the length would look like a bias."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(80), 8)
    ease, right = rng.normal(size=80)[group], (rng.random(640) < 0.5).astype(float)
    length = 5 + ease + 0.5 * right + 0.5 * rng.normal(size=640)
    score = 0.5 + 0.2 * ease + 0.3 * right + 0.1 * rng.normal(size=640)
    held = biases(score, group, truth={"verifier": right}, length=length)
    assert [finding.kind for finding in held] == ["truth", "length"]
    assert covers(held[1], 0.0) and not alarms(held)
    assert held[0].points == pytest.approx(0.3, abs=0.03) and held[0].p is None
    assert alarms(biases(score, group, length=length)), "without a truth, the length stands for it"


def dense_cr2(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(beta, errors, degrees of freedom) with dummies and n × n matrices, as Pustejovsky & Tipton write them."""
    count = x.shape[1]
    full = np.column_stack([x, group[:, None] == np.unique(group)])
    bread = np.linalg.inv(full.T @ full)
    rest = np.eye(len(y)) - full @ bread @ full.T
    left, weights = rest @ y, np.zeros((len(y), len(np.unique(group)), count))
    for place, name in enumerate(np.unique(group)):
        inside = group == name
        values, vectors = np.linalg.eigh(rest[np.ix_(inside, inside)])
        root = (vectors * np.where(values > 1e-8, np.maximum(values, 1e-8) ** -0.5, 0)) @ vectors.T
        weights[inside, place] = root @ full[inside] @ bread[:, :count]
    variance = ((left @ weights.transpose(2, 0, 1)) ** 2).sum(axis=1)
    products = [(w := rest @ weights[:, :, j]).T @ w for j in range(count)]
    freedom = np.array([np.trace(p) ** 2 / (p**2).sum() for p in products])
    return (bread @ full.T @ y)[:count], np.sqrt(variance), freedom


def test_errors_and_degrees_of_freedom_are_those_of_the_dense_formula() -> None:
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(12), rng.integers(2, 9, 12))
    x = np.column_stack([rng.normal(size=len(group)), rng.random(len(group)) < 0.4, rng.random(len(group)) < 0.5])
    y = rng.normal(size=12)[group] + x @ [0.5, 0.2, 0.0] + rng.normal(size=len(group))
    beta, errors, freedom = dense_cr2(x, y, group)
    found = biases(y, group, features={name: x[:, j] for j, name in enumerate("abc")})
    for j, finding in enumerate(found):
        assert finding.points == pytest.approx(beta[j])
        assert finding.points_high == pytest.approx(beta[j] + student_quantile(0.975, freedom[j]) * errors[j])


def test_missing_marks_and_lone_rows_are_left_out() -> None:
    rng = np.random.default_rng(3)
    group, right = np.repeat(np.arange(40), 4), rng.random(160) < 0.5
    score, length = 0.3 * right + 0.1 * rng.normal(size=160), rng.normal(size=160)
    full = biases(score, group, truth={"verifier": right}, length=length)
    more = biases(
        np.append(score, [X, 0.5, 0.9]),
        np.append(group, [0, 77, 1]),
        truth={"verifier": np.append(right, [1.0, 1.0, X])},
        length=np.append(length, [1.0, 2.0, 3.0]),
    )
    assert more == full
    assert (full[0].rows, full[0].groups) == (160, 40)


def test_a_truth_known_for_few_rows_is_not_used_and_said_so() -> None:
    rng = np.random.default_rng(4)
    group, right = np.repeat(np.arange(40), 4), (rng.random(160) < 0.5).astype(float)
    rare = np.where(np.arange(160) < 30, right, X)
    found = biases(rng.normal(size=160) + right, group, truth={"people": rare, "verifier": right})
    assert [(one.name, one.effect is None) for one in found] == [("people", True), ("verifier", False)]
    assert "less than half" in found[0].reason
    assert found[1].rows == 160


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (np.zeros(160), "does not vary"),
        (np.repeat(np.arange(40.0), 4), "does not vary"),
        (np.arange(160) % 4 == 2, "together with the columns before"),
        (np.arange(160) < 2, "too few groups"),
    ],
)
def test_what_cannot_be_told_has_a_reason(column: np.ndarray, reason: str) -> None:
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(40), 4)
    features = {"a": np.arange(160) % 4 == 2, "x": column} if "together" in reason else {"x": column}
    found = biases(rng.normal(size=160), group, features=features)[-1]
    assert (found.effect, found.low, found.high, found.p) == (None, None, None, None)
    assert reason in found.reason
    assert alarms([found]) == ()


def test_degenerate_scores_give_no_finding() -> None:
    group, length = np.repeat(np.arange(10), 4), np.random.default_rng(6).normal(size=40)
    for score in (np.full(40, 0.7), group * 0.1 + 0.3, np.full(40, X), length * 0.1):
        (found,) = biases(score, group, length=length)
        assert found.effect is None and found.reason
    (flat,) = biases(length, group, length=0.1 * group + 0.3)
    assert flat.effect is None and "does not vary" in flat.reason
    (empty,) = biases([], [], length=[])
    assert (empty.rows, empty.groups) == (0, 0)
    assert biases(length, group) == ()
    with pytest.raises(ValueError, match="length"):
        biases([0.1, 0.2], [0, 0], length=[1.0])


def test_the_order_of_the_columns_shows_in_full_places() -> None:
    rng = np.random.default_rng(7)
    group, place = np.repeat(np.arange(100), 8), np.tile(np.arange(8), 100)
    (found,) = biases(0.5 - 0.02 * place + 0.1 * rng.normal(size=800), group, position=place)
    assert found.points == pytest.approx(-0.14, abs=0.04), "seven places of −0.02"
    assert found.effect == pytest.approx((found.points or 0) / 0.1, rel=0.08)
    assert found.points_low is not None and found.points_high is not None
    assert found.points_low < -0.14 < found.points_high


def test_alarms_name_the_phrase_that_moves_the_score() -> None:
    rng = np.random.default_rng(8)
    pieces = ["Let me think.", "as an expert", "obviously"]
    texts = [" ".join(piece for piece in pieces if rng.random() < 0.3).upper() for _ in range(640)]
    columns = phrase_columns(texts, pieces)
    score = 0.5 + 0.1 * columns["as an expert"] + 0.1 * rng.normal(size=640)
    raised = alarms(biases(score, np.repeat(np.arange(80), 8), features=columns))
    assert [alarm.finding.name for alarm in raised] == ["as an expert"]
    assert (raised[0].finding.effect or 0) > 0


def test_position_preference() -> None:
    found = position_preference(60, 100)
    assert (found.low, found.high) == (pytest.approx(0.50200, abs=1e-5), pytest.approx(0.69060, abs=1e-5))
    assert found.p == pytest.approx(0.056888, abs=1e-6)
    assert position_preference(40, 100).p == found.p
    assert position_preference(50, 100).p == 1.0
    assert position_preference(0, 0).effect is None
    assert alarms([position_preference(480, 800)])
    with pytest.raises(ValueError, match="5 wins of 4"):
        position_preference(5, 4)


def test_noise_of_marks_on_anchors_raises_no_false_alarm() -> None:
    """Most repeats agree, few are a whole anchor apart: far from normal, yet the interval must hold."""
    raised, inside = [], []
    for seed in range(200):
        rng = np.random.default_rng([19, seed])
        repeats = {name: np.where(rng.random((2, 80)) < 0.08, 0.75, 0.5) for name in "abcd"}
        found = noisy_dimensions(repeats)
        raised.append(bool(alarms(found, rate=0.05)))
        inside += [covers(finding, 1.0) for finding in found]
    assert np.mean(raised) <= 0.06
    assert np.mean(inside) >= 0.93


def test_noise_where_the_others_never_differ() -> None:
    steady, shaky = np.full((2, 60), 0.5), np.tile([[0.5, 0.5], [0.75, 0.5]], 30)
    found = noisy_dimensions({"a": steady, "b": shaky, "c": steady})
    assert [alarm.finding.name for alarm in alarms(found)] == ["b"]
    assert all(one.effect is None for one in noisy_dimensions({"a": steady, "b": steady}))
    assert all(one.effect is None for one in noisy_dimensions({"a": shaky}))
    assert all(one.effect is None for one in noisy_dimensions({"a": shaky[:1], "b": np.zeros((0, 0))}))
    assert noisy_dimensions({}) == ()


def test_alarms_are_holms() -> None:
    def finding(p: float | None) -> Finding:
        return Finding("feature", str(p), "", 1.0, 0.5, 1.5, p, 100, 20)

    found = alarms([finding(p) for p in (0.04, 0.001, None, 0.015, 0.03)], rate=0.05)
    assert [(one.finding.name, one.p_adjusted) for one in found] == [
        ("0.001", pytest.approx(0.004)),
        ("0.015", pytest.approx(0.045)),
    ]
    assert alarms([]) == ()


def test_rows_needed_give_the_power_they_promise() -> None:
    """A phrase of 0.6 σ in a fifth of the rows, alone."""
    rows = rows_needed(0.6, spread=0.4, tests=1, power=0.8)
    groups = round(rows / 7)
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng([23, seed])
        phrase = (rng.random(groups * 8) < 0.2).astype(float)
        score = 0.6 * phrase + rng.normal(size=groups * 8)
        hits += bool(alarms(biases(score, np.repeat(np.arange(groups), 8), features={"x": phrase})))
    assert 0.7 <= hits / 200 <= 0.88


def test_findings_go_to_json() -> None:
    found = simulate(0, BIASED)
    json.dumps([asdict(alarm) for alarm in alarms(found)], allow_nan=False)
    assert [type(finding.effect) for finding in found] == [float] * len(found)
    assert Alarm(replace(found[0], name="x"), 0.5).finding.name == "x"


def key(finding: Finding) -> Key:
    return finding.kind, finding.name


def covers(finding: Finding, size: float) -> bool:
    return finding.low is not None and finding.high is not None and finding.low <= size <= finding.high
