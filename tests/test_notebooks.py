"""What a notebook must be to be committed. That its cells run, and print what is committed, is nbval's part."""

from __future__ import annotations

import base64
import itertools
import json
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
COURSE = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

BUTTONS = SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "buttons.py")))
RUN = SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "run.py")))
REPOSITORY = BUTTONS.repository()
MACHINE = re.compile(r"/(home|root|Users|tmp|work|usr|opt|mnt|var)/|[A-Z]:\\\\|site-packages")

course = pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
every = pytest.mark.parametrize("path", COURSE + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")


def colab(path: Path) -> str:
    return f"({BUTTONS.COLAB.format(repository=REPOSITORY, name=path.name)})"


def binder(path: Path) -> str:
    return f"({BUTTONS.BINDER.format(repository=REPOSITORY, name=path.name)})"


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
def test_every_figure_says_what_it_shows(path):  # to screen readers, in JupyterLab and on the site
    figures = [output for cell in code_cells(path) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert all(output.metadata.get("image/png", {}).get("alt") for output in figures)


@every
def test_headings_go_down_one_level_at_a_time(path):
    text = re.sub(r"```.*?```", "", markdown(path), flags=re.DOTALL)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1 and all(below <= above + 1 for above, below in itertools.pairwise(levels))


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
    text = markdown(path)
    assert text.count("colab.research.google.com/github") == text.count(colab(path)) == 1
    assert text.count("mybinder.org/v2") == text.count(binder(path)) == 1


@every
def test_its_first_cell_installs_psd_where_it_is_missing_and_no_cell_installs_anything_else(path):
    first, *others = code_cells(path)
    assert first.source == BUTTONS.COLAB_CELL.format(repository=REPOSITORY)
    assert not re.search(r"pip install|conda install|apt", "".join(cell.source for cell in others))


@every
def test_the_script_for_buttons_has_nothing_to_change(path, tmp_path):
    copy = tmp_path / path.relative_to(ROOT)
    copy.parent.mkdir(parents=True)
    shutil.copy(path, copy)
    BUTTONS.write(copy, REPOSITORY)
    unchanged = copy.read_bytes() == path.read_bytes()
    assert unchanged  # not the comparison itself: pytest would work out the difference of two large files for minutes


def test_another_repository_is_written_everywhere_and_back(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in BUTTONS.OTHERS:
        shutil.copy(ROOT / name, tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    links = re.compile(rf"(github\.com|/github|/gh)/{re.escape(REPOSITORY)}".encode())
    BUTTONS.main(tmp_path, ["some-one/else.where"])
    assert not [path for path in before if path.suffix != ".py" and links.search(path.read_bytes())]
    assert sum(path.read_bytes() != content for path, content in before.items()) == len(BUTTONS.OTHERS) + len(
        COURSE + SOLUTIONS
    )
    BUTTONS.main(tmp_path, [REPOSITORY])
    assert all(path.read_bytes() == content for path, content in before.items())


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
    assert colab(path) in row and binder(path) in row and f"(notebooks/solutions/{path.name})" in row


def test_the_times_and_the_memory_in_readme_are_the_measured_ones():
    timings = json.loads(RUN.TIMINGS.read_text(encoding="utf-8"))
    assert set(timings) == {path.relative_to(ROOT / "notebooks").as_posix() for path in COURSE + SOLUTIONS}
    assert RUN.fill(README, timings) == README
    assert all(RUN.cost(path.stem, timings) in README for path in COURSE)


@every
def test_a_full_run_stays_within_ten_minutes_and_the_memory_of_its_machines(path):
    timing = json.loads(RUN.TIMINGS.read_text(encoding="utf-8"))[path.relative_to(ROOT / "notebooks").as_posix()]
    # Those of full scale start whole jobs beside themselves; they are for machines with more memory than Binder's.
    megabytes = 3000 if path.stem.endswith("_gpu") else 1500
    assert timing["seconds"] < 600 and timing["megabytes"] < megabytes


def test_the_course_has_twenty_exercises_and_more():
    assert sum("not answered yet" in cell.source for path in COURSE for cell in code_cells(path)) >= 20


@course
def test_it_stands_in_the_map_of_the_course(path):
    folder = ROOT / "notebooks"
    assert f"({path.name})" in (folder / "README.md").read_text(encoding="utf-8")


GLOSSARY = re.findall(
    r"^\| ([^|]+) \|[^|]*\|[^|]*\| \[\d\d\]\((\w+\.ipynb)\) \|$",
    (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("terms", "name"), GLOSSARY, ids=[terms for terms, _ in GLOSSARY])
def test_a_term_of_the_glossary_is_in_the_notebook_that_introduces_it(terms, name):
    texts = {path.name: markdown(path).lower() for path in COURSE}
    for term in terms.lower().split(", "):
        here = re.compile(rf"\b{re.escape(term)}")
        assert here.search(texts[name]), f"{term} is not in {name}"


def test_the_glossary_has_terms_of_every_notebook():
    assert {name for _, name in GLOSSARY} == {path.name for path in COURSE}
