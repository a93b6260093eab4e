"""GEPA 0.1.4 itself on a simulated world: its engine, our meter as its adapter, the common reflector as its proposer."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evolution_meter import Meter, Outcome, Spent
from evolution_reflector import Reflector
from evolution_worlds import TASKS, World

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".venv" / "peers"
HINT = f"absent: pip install --no-deps --target {FOLDER.relative_to(HERE.parents[1])} -r scripts/bench/requirements.txt"
COMPONENT = "prompt"
DEFAULT = {"validation": TASKS // 2}
"""Its documentation: half of the tasks where there are fewer than 200; Pareto selection."""
TUNED = {"validation": 20, "candidate_selection_strategy": "current_best"}


def has_gepa() -> bool:
    return (FOLDER / "gepa").is_dir()


class Quiet:
    """GEPA's logger protocol, saying nothing."""

    def log(self, message: str) -> None: ...


class Adapter:
    """GEPAAdapter over a meter. A batch that the budget does not cover is broken off, and the run ends."""

    def __init__(self, meter: Meter, reflector: Reflector, overshoot: bool) -> None:
        self.meter, self.reflector, self.overshoot = meter, reflector, overshoot
        self.broken_off = False

    def evaluate(self, batch: list[int], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        from gepa.core.adapter import EvaluationBatch  # pyright: ignore[reportMissingImports]

        if self.overshoot:
            self.meter.budget = max(self.meter.budget, self.meter.spent + len(batch))
        try:
            rolled = [self.meter.roll(candidate[COMPONENT], number) for number in batch]
        except Spent:
            self.broken_off = True
            raise
        scores = [score for score, _ in rolled]
        return EvaluationBatch(outputs=scores, scores=scores, trajectories=rolled if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        records = [{"score": score, "Feedback": said} for score, said in eval_batch.trajectories]
        return dict.fromkeys(components_to_update, records)

    def propose_new_texts(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        evidence = [(one["score"], one["Feedback"]) for one in reflective_dataset[COMPONENT]]
        return {COMPONENT: self.reflector.reflect(candidate[COMPONENT], evidence)}


def gepa(world: World, budget: int, seed: int, *, validation: int, overshoot: bool = False, **settings: Any) -> Outcome:
    """Run GEPA with the last `validation` tasks as its validation set and the rest to reflect on.

    It looks at its budget between iterations only; with `overshoot` it may end the iteration it is in.
    """
    sys.path.append(str(FOLDER))
    from gepa import optimize  # pyright: ignore[reportMissingImports]

    meter, reflector = Meter(world, budget), Reflector(world, seed)
    adapter = Adapter(meter, reflector, overshoot)
    result = optimize(
        seed_candidate={COMPONENT: world.seed_text()},
        trainset=list(range(TASKS - validation)),
        valset=list(range(TASKS - validation, TASKS)),
        adapter=adapter,
        stop_callbacks=lambda state: adapter.broken_off or meter.spent >= budget,
        logger=Quiet(),
        seed=seed,
        raise_on_exception=False,
        **settings,
    )
    return Outcome(result.best_candidate[COMPONENT], meter.spent, reflector.replies)
