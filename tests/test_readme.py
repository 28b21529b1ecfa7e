"""README, RESULTS and the pages under docs/ say what is true: their tables, commands, links, code."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import psd
from psd import cli, methods
from psd.cli.settings import read_settings
from psd.reporting import tables as reporting
from psd.training import config

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
NAMES = ["README.md", "RESULTS.md", "CONTRIBUTING.md", *DOCS]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
CODE = {name: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for name, text in PAGES.items()}
BLOCKS = [  # page by page: a block never runs on into the next page
    block for text in PAGES.values() for block in re.findall(r"^```(\S*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
LINES = [
    line.partition("#")[0].split("   ")[0].strip() for kind, block in BLOCKS if not kind for line in block.splitlines()
]
OF_SHAPES = ("shapes-vit-token4", "shapes-vit-token8", "shapes-tune", "shapes-tuned")  # recipes named otherwise
LAUNCHED = [line for line in LINES if " -m psd " in line]
COMMANDS = [line for line in LINES if line.startswith("psd ")]
COMMANDS += [f"psd {line.partition(' -m psd ')[2]}" for line in LAUNCHED]


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "<!-- psd report" in text])
def test_the_tables_are_those_of_the_records(page):
    assert reporting.fill(PAGES[page], ROOT) == PAGES[page], f"run `psd report --fill {page}`"


@pytest.mark.parametrize("page", PAGES)
def test_every_table_of_results_is_made_from_records(page):
    outside = reporting.BLOCK.sub("", PAGES[page])
    assert "top-1 %" not in outside


def links(pattern: str) -> list[tuple[str, str]]:
    return [(page, link) for page, text in PAGES.items() for link in sorted(set(re.findall(pattern, text)))]


@pytest.mark.parametrize(("page", "link"), links(r"\]\((?!http)([^)#]+)[^)]*\)"))
def test_a_link_leads_to_a_file(page, link):
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize(("page", "anchor"), links(r"\]\(((?!http)[^)#]*#[^)]+)\)"))
def test_an_anchor_is_a_heading(page, anchor):
    path, _, anchor = anchor.partition("#")
    text = ((ROOT / page).parent / path).read_text(encoding="utf-8") if path else PAGES[page]
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_a_psd_command_is_one_that_the_command_line_takes(command):
    options = cli.arguments.parse(shlex.split(command)[1:])
    assert options.command == command.split()[1]
    if options.command in ("train", "compare", "bench"):
        run = config.from_dict(read_settings(options.config, options.settings))
        named = options.config.removeprefix("compare/").partition("/")[0]
        known = {"photographs": "cifar100-small", "transfer": "shapes-scenes", **dict.fromkeys(OF_SHAPES, "shapes")}
        if options.config.startswith("transfer/backbones"):
            named = "tiny-imagenet" if options.config.endswith("tiny-imagenet") else "shapes"
        if options.config in ("photographs/many", "photographs/all-classes"):
            named = "cifar100"
        named = known.get(named, named)
        assert run.data.name == options.settings.get("data.name", named)
    for path in getattr(options, "paths", []):
        assert (ROOT / path).exists()


@pytest.mark.parametrize("command", LAUNCHED)
def test_a_launcher_is_one_that_is_installed(command):
    assert shutil.which(shlex.split(command)[0], path=sysconfig.get_path("scripts"))


def test_the_run_that_it_evaluates_is_the_one_that_it_trains():
    trained = next(command for command in COMMANDS if command.startswith("psd train shapes --method.name"))
    options = cli.arguments.parse(shlex.split(trained)[1:])
    made = config.from_dict(read_settings(options.config, options.settings))
    assert f"psd evaluate {made.run.output}/{made.name}" in COMMANDS


@pytest.mark.parametrize("name", methods.names())
def test_the_page_of_commands_names_every_method(name):
    assert f"`{name}`" in PAGES["docs/commands.md"]


def test_every_make_target_it_names_exists():
    targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", "\n".join(PAGES.values()), flags=re.MULTILINE)
    assert {"demo", "test", "lab", "lint", "site"} <= {a or b for a, b in named} <= set(targets)


def test_the_five_lines_run_and_train_a_network():
    (code,) = CODE["README.md"]
    model = psd.models.build("resnet8", 4)
    values = {"psd": psd, "torch": torch, "model": model, "x": torch.rand(8, 3, 32, 32), "y": torch.arange(8) % 4}
    exec(code, values)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len([line for line in code.splitlines() if line]) == 4


def test_the_site_opens_with_the_same_lines_and_picture():
    assert CODE["docs/index.md"] == CODE["README.md"]
    assert "(static/dogs.svg)" in PAGES["docs/index.md"] and "(docs/static/dogs.svg)" in TEXT


@pytest.mark.parametrize("page", [page for page in DOCS if CODE[page] and page != "docs/index.md"])
def test_the_code_of_a_page_runs_as_it_stands(page, tmp_path):
    for code in CODE[page]:  # each by itself, as somebody who copies it would
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stderr}"


def test_readme_can_be_read_to_its_end():
    assert len(TEXT.splitlines()) <= 140


def test_its_pictures_are_those_of_the_first_notebook():
    notebook = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    outputs = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    pictures = [base64.b64decode(data["image/png"]) for data in outputs if "image/png" in data]
    assert (ROOT / "results" / "swapped_pair.png").read_bytes() == pictures[1]
    (moving,) = (data["image/svg+xml"] for data in outputs if "image/svg+xml" in data)
    assert (ROOT / "docs" / "static" / "dogs.svg").read_text(encoding="utf-8") == "".join(moving)


def test_the_versions_it_names_are_those_of_the_metadata():
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    python, torch_, vision = re.search(
        r"Python ([\d.]+), PyTorch ([\d.]+) and torchvision ([\d.]+) or newer", TEXT
    ).groups()
    assert f'requires-python = ">={python}"' in metadata
    assert f'"torch>={torch_}"' in metadata and f'"torchvision>={vision}"' in metadata
