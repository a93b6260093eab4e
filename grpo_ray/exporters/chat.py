"""Conversations as JSON lines: `mlx_lm.lora --data DIR` trains on them, `datasets.load_dataset(DIR)` reads them.

mlx-lm wants train, valid and test.jsonl; the card's YAML tells `datasets` that valid.jsonl is `validation`, and what
type every column has (a guess from the first rows goes wrong where the first adapter is null).
"""

from collections.abc import Sequence
from pathlib import Path

from grpo_ray.canonical import plain
from grpo_ray.errors import ConfigError
from grpo_ray.exporters._folder import encoded, write
from grpo_ray.types import Row

FILES = {"train": "train.jsonl", "validation": "valid.jsonl", "test": "test.jsonl"}
COLUMNS = {
    "id": "string",
    "reward": "float64",
    "task_id": "string",
    "task_type": "string",
    "template_id": "string",
    "rollout_id": "string",
    "adapter": "string",
    "stand_in": "bool",
}


def export(rows: Sequence[Row], path: Path, *, title: str = "Conversations made by grpo-ray") -> Path:
    """Write `path`/{train,valid,test}.jsonl (those with rows), README.md and manifest.json. Same rows: same bytes.

    Raises ConfigError when there is no row, or when `path` holds what no export wrote.
    """
    if not rows:
        raise ConfigError("there is nothing to export: no completion has been good enough yet; take more steps")
    files = {
        name: b"".join(_line(row) for row in sorted(rows, key=lambda row: row.id) if row.split == split)
        for split, name in FILES.items()
    }
    files = {name: content for name, content in files.items() if content}
    card = _card(title, rows, files).encode("utf-8")
    return write(Path(path), {**files, "README.md": card}, {"format": "chat", "rows": len(rows)})


def _line(row: Row) -> bytes:
    columns = {name: getattr(row, name) for name in COLUMNS}
    return encoded({"messages": plain(row.messages), **columns, "reward": float(row.reward)}) + b"\n"


def _card(title: str, rows: Sequence[Row], files: dict[str, bytes]) -> str:
    splits = [(split, name) for split, name in FILES.items() if name in files]
    stand_ins = sum(row.stand_in for row in rows)
    lines = [
        "---",
        f"pretty_name: {encoded(title).decode()}",
        "task_categories:",
        "- text-generation",
        "configs:",
        "- config_name: default",
        "  default: true",
        "  data_files:",
        *(f"  - split: {split}\n    path: {name}" for split, name in splits),
        "dataset_info:",
        "- config_name: default",
        "  features:",
        "  - name: messages",
        "    list:",
        "    - name: role\n      dtype: string",
        "    - name: content\n      dtype: string",
        *(f"  - name: {name}\n    dtype: {kind}" for name, kind in COLUMNS.items()),
        "---",
        f"# {' '.join(title.split())}",
        "",
        f"{len(rows)} conversations over {len({row.task_id for row in rows})} tasks: "
        + ", ".join(f"{files[name].count(bytes([10]))} in {split} ({name})" for split, name in splits)
        + ". A task is in one split only, by the hash of its id.",
        "",
        *_absent(files),
        "`reward` is what the evaluations of the last message were blended into; `template_id`, `rollout_id` and "
        "`adapter` (null: the base model) lead back to what made it. The texts were written by a language model.",
        "",
        f"`stand_in` is true for {stand_ins} of {len(rows)}: a stand-in, and no real model, judged those.",
        "",
    ]
    return "\n".join(lines)


def _absent(files: dict[str, bytes]) -> list[str]:
    """Which splits have no file, why, and what to do about it."""
    absent = [f"{split} ({name})" for split, name in FILES.items() if name not in files]
    if not absent:
        return []
    wanted = {FILES["train"], FILES["validation"]}
    advice = "" if wanted <= files.keys() else " `mlx_lm.lora --train` wants train.jsonl and valid.jsonl."
    return [
        f"Empty, and so without a file: {', '.join(absent)}. The hash of their ids put none of these few tasks there; "
        f"an export over more tasks fills every split.{advice}",
        "",
    ]
