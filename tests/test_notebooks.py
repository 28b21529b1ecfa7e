"""What a notebook must be to be committed. That its cells run, and print what is committed, is nbval's part."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
COURSE = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

COLAB = "https://colab.research.google.com/github/OWNER/REPO/blob/main/notebooks/{}"
BINDER = "https://mybinder.org/v2/gh/OWNER/REPO/main?urlpath=lab/tree/notebooks/{}"
MACHINE = re.compile(r"/(home|root|Users|tmp|work|usr|opt|mnt|var)/|[A-Z]:\\\\|site-packages")

course = pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
every = pytest.mark.parametrize("path", COURSE + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def markdown(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def test_every_notebook_has_its_solutions():
    assert COURSE and [path.name for path in COURSE] == [path.name for path in SOLUTIONS]


@every
def test_it_was_run_from_top_to_bottom(path):
    assert [cell.execution_count for cell in code_cells(path)] == list(range(1, len(code_cells(path)) + 1))


@every
def test_it_ended_without_an_error_and_without_a_warning(path):
    for output in (output for cell in code_cells(path) for output in cell.outputs):
        assert output.output_type != "error"
        assert "Warning" not in output.get("text", "")


@course
def test_it_shows_something(path):
    kinds = [kind for cell in code_cells(path) for output in cell.outputs for kind in output.get("data", {})]
    assert "image/png" in kinds


@every
def test_no_cell_is_longer_than_25_lines(path):
    assert max(len(cell.source.splitlines()) for cell in code_cells(path)) <= 25


@course
def test_checked_cells_print_text_that_can_be_compared(path):
    checked = [cell for cell in code_cells(path) if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked
    for cell in checked:
        assert cell.outputs and {output.output_type for output in cell.outputs} <= {"stream", "execute_result"}


@every
def test_it_holds_no_machine_s_path(path):
    assert not MACHINE.search(path.read_text(encoding="utf-8").replace("image/png", ""))


@every
def test_it_stays_small(path):
    assert path.stat().st_size < 2_000_000
    for output in (output for cell in code_cells(path) for output in cell.outputs):
        assert len(base64.b64decode(output.get("data", {}).get("image/png", ""))) < 300_000


@every
def test_it_runs_on_the_kernel_that_every_machine_has(path):
    assert read(path).metadata.kernelspec.name == "python3"


@course
def test_its_buttons_open_itself(path):
    assert markdown(path).count(f"({COLAB.format(path.name)})") == markdown(path).count(
        "colab.research.google.com/github"
    )
    assert f"({COLAB.format(path.name)})" in markdown(path) and f"({BINDER.format(path.name)})" in markdown(path)


@course
def test_its_first_cell_installs_psd_on_colab_alone(path):
    first = code_cells(path)[0].source
    assert 'if "google.colab" in sys.modules' in first and "git+https://github.com/OWNER/REPO" in first
    assert not re.search(
        r"pip install(?!.*git\+https://github.com/OWNER/REPO)", "".join(c.source for c in code_cells(path))
    )


@course
def test_it_opens_and_closes_as_every_notebook_does(path):
    text = markdown(path)
    assert re.match(r"# \d\d · .*\?\n", text)
    for part in (
        "**You will learn**",
        "**You need**",
        "**Minutes:**",
        "## To remember",
        "## Exercises",
        "**Where next:**",
    ):
        assert part in text
    assert re.search(r"## To remember\n\n1\. .*\n2\. .*\n3\. .*(\n\n|$)", text)


@course
def test_its_exercises_are_unanswered_and_have_solutions(path):
    checks = [cell for cell in code_cells(path) if "not answered yet" in cell.source]
    assert 3 <= len(checks) <= 6
    assert all(cell.outputs[0].text == "not answered yet\n" for cell in checks)
    (solutions,) = (solution for solution in SOLUTIONS if solution.name == path.name)
    solved = {cell.source: cell for cell in code_cells(solutions)}
    for cell in checks:
        assert cell.source in solved and "not answered yet" not in solved[cell.source].outputs[0].text


@course
def test_links_lead_to_files(path):
    for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", markdown(path)):
        assert (path.parent / link).exists(), link


@course
def test_readme_s_table_has_it_with_its_buttons(path):
    (row,) = (line for line in README.splitlines() if line.startswith("| [") and f"(notebooks/{path.name})" in line)
    assert f"({COLAB.format(path.name)})" in row and f"({BINDER.format(path.name)})" in row
    assert f"(notebooks/solutions/{path.name})" in row
