"""Write the repository's owner and name wherever they stand: the notebooks' buttons and Colab cells, README, citation.

    python notebooks/buttons.py                      # every button and Colab cell as the setting says
    python notebooks/buttons.py someone/somewhere    # change the setting, then the same

The setting is `Homepage` in pyproject.toml.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
OTHERS = ("pyproject.toml", "README.md", "CITATION.cff")
HOMEPAGE = re.compile(r'^Homepage = "https://github\.com/([\w.-]+/[\w.-]+)"$', re.MULTILINE)

COLAB = "https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}"
BINDER = "https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/notebooks/{name}"
BUTTONS = f"""\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({COLAB})
[![Launch on Binder](https://mybinder.org/badge_logo.svg)]({BINDER})"""
COLAB_CELL = """\
import importlib.util
import os

if importlib.util.find_spec("psd") is None:  # on Colab, Kaggle and their like: torch is there, only psd is missing
    %pip install -q "git+https://github.com/{repository}"
os.environ["PSD_THREADS"] = "auto"  # before torch is loaded: no more threads than we have cores, and none that spins
import psd

assert psd.threads.asked()"""


def repository(root: Path = ROOT) -> str:
    """The setting: owner/name."""
    found = HOMEPAGE.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f'{root / "pyproject.toml"} has no line Homepage = "https://github.com/OWNER/NAME"')
    return found[1]


def rename(root: Path, new: str) -> None:
    """Another owner/name in every link to the repository, and in the setting."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        raise SystemExit(f"owner/name is needed, got {new!r}")
    link = re.compile(rf"((?:github\.com|/github|/gh)/){re.escape(repository(root))}(?![\w.-])")
    for path in [*(root / name for name in OTHERS), *notebooks(root)]:
        path.write_text(link.sub(rf"\g<1>{new}", path.read_text(encoding="utf-8")), encoding="utf-8")


def notebooks(root: Path) -> list[Path]:
    return sorted(path for path in (root / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def write(path: Path, repository: str) -> None:
    """The buttons below the title (solutions have none), and the first code cell."""
    notebook = nbformat.read(path, as_version=4)
    if path.parent.name != "solutions":
        title, _, text = notebook.cells[0].source.partition("\n\n")
        if text.startswith("[![Open in Colab]"):
            text = text.partition("\n\n")[2]
        notebook.cells[0].source = f"{title}\n\n{BUTTONS.format(repository=repository, name=path.name)}\n\n{text}"
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if "%pip install" not in first.source:
        raise SystemExit(f"{path}: the first code cell is to be the one that installs psd where it is missing")
    first.source = COLAB_CELL.format(repository=repository)
    nbformat.write(notebook, path)


def main(root: Path, arguments: list[str]) -> None:
    if arguments:
        rename(root, arguments[0])
    for path in notebooks(root):
        write(path, repository(root))


if __name__ == "__main__":
    main(ROOT, sys.argv[1:])
