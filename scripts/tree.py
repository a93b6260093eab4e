"""Print the file tree of the README: each file with the first clause of what it says of itself.

`scripts/tree.py --write` puts it into README.md between the marks.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ["actors", "grpo_ray"]
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
WIDTH = 130


def clause(path: Path) -> str:
    """The first clause of a module's docstring, cut to the line."""
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = re.split(r"(?<=[^.])[.;](?:\s|$)", said.split("\n\n")[0].replace("\n", " "), maxsplit=1)[0]
    return first if len(first) <= WIDTH else first[: WIDTH - 1].rsplit(" ", 1)[0] + " …"


def lines(folder: Path, depth: int = 0) -> list[str]:
    """A folder's files, then its folders."""
    indent = "  " * depth
    files = sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")
    width = max((len(file.name) for file in files), default=0)
    found = [f"{indent}{folder.name}/"] + [f"{indent}  {file.name:<{width}}  {clause(file)}" for file in files]
    inner = sorted(one for one in folder.iterdir() if one.is_dir() and any(one.rglob("*.py")))
    return found + [line for one in inner if one.name != "__pycache__" for line in lines(one, depth + 1)]


def tree() -> str:
    return "\n".join(line for folder in FOLDERS for line in lines(ROOT / folder)) + "\n"


def written(readme: str) -> str:
    """The README's text with the tree of today."""
    head, _, rest = readme.partition(BEGIN)
    return head + BEGIN + tree() + END + rest.partition(END)[2]


if __name__ == "__main__":
    if "--write" in sys.argv:
        (ROOT / "README.md").write_text(written((ROOT / "README.md").read_text()))
    else:
        print(tree(), end="")
