"""Train the bundled nano model, or measure it: `python scripts/make_nano.py [--steps N] [--out FOLDER] [--eval]`.

Training writes a checkpoint beside the output every half minute; started again after an interruption (kill -9 too), it
goes on from there. `--eval` prints what the model can do, and writes it into the folder's README.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from nano import report
from nano.training import Trainer

FOLDER = Path(__file__).resolve().parents[1] / "grpo_ray" / "nano"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="the model's folder")
    parser.add_argument("--steps", type=int, default=report.STEPS, help="optimizer steps; fewer make a worse model")
    parser.add_argument("--stop", type=int, help="stop after this many of the steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that share each batch")
    parser.add_argument("--eval", action="store_true", help="measure the model in --out instead of training it")
    parser.add_argument("--questions", type=int, default=40, help="questions of each family for each wording in --eval")
    return parser.parse_args(arguments)


def train(options: argparse.Namespace) -> None:
    """Train up to the last step, from the checkpoint where there is one, and write the model's folder."""
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out.with_name(f".{options.out.name}.checkpoint.safetensors")
    trainer = Trainer(options.steps, options.seed, options.workers)
    if checkpoint.exists():
        trainer.resume(checkpoint)
        print(f"going on from step {trainer.step}")
    trainer.train(checkpoint, stop=options.stop or options.steps)
    report.save_model(trainer.model, options.out, trainer.facts())
    print(f"{options.out}: {trainer.step} steps in {trainer.seconds:.0f} s of training")


def main(arguments: list[str]) -> None:
    """Run the command."""
    options = parse(arguments)
    began = time.monotonic()
    if options.eval:
        print(report.write_report(options.out, options.questions))
    else:
        train(options)
    print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
