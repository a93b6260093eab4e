"""Draw a run: reward by step, and held-out accuracy of the five arms.

grpo-ray status RUN --json | .venv/bin/python scripts/plot_run.py docs/run.svg
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

ARMS = {
    "start_mean": "starting templates,\nbase model (mean)",
    "start_best": "best starting template,\nbase model",
    "best_template": "best evolved template,\nbase model",
    "last_adapter": "best starting template,\ntrained adapter",
    "both": "both",
}
GREY, BLUE = "#8a8f98", "#2f6fdb"


def rewards(axes: Any, run: dict[str, Any]) -> None:
    """Mean training reward of each step."""
    values = run["reward_per_step"]
    axes.plot(range(1, len(values) + 1), values, color=BLUE, marker="o", markersize=4)
    axes.set(xlabel="step", ylabel="mean reward", title="Reward while exploring", ylim=(0, 1))
    axes.grid(alpha=0.25)


def arms(axes: Any, run: dict[str, Any]) -> None:
    """Held-out accuracy with 95 % intervals."""
    held = run["heldout"]
    for place, arm in enumerate(reversed(ARMS)):
        one = held[arm]
        color = BLUE if arm == "both" else GREY
        axes.barh(place, one["accuracy"], color=color, height=0.6)
        axes.plot([one["low"], one["high"]], [place, place], color="black", linewidth=1)
        axes.text(one["high"] + 0.02, place, f"{one['accuracy']:.2f}", va="center")
    axes.set_yticks(range(len(ARMS)), list(reversed(ARMS.values())))
    axes.set(
        xlim=(0, 1), xlabel=f"accuracy on {held['both']['tasks']} held-out tasks, temperature 0", title="Held-out tasks"
    )


def main() -> None:
    run = json.load(sys.stdin)
    matplotlib.rcParams["svg.hashsalt"] = "grpo-ray"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(1, 1.1))
    rewards(left, run)
    arms(right, run)
    figure.tight_layout()
    figure.savefig(Path(sys.argv[1]), metadata={"Date": None} if sys.argv[1].endswith(".svg") else None, dpi=130)


if __name__ == "__main__":
    main()
