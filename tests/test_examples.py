"""The examples: each runs by itself, learns, is short, and stands in the folder's README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
FILES = sorted(FOLDER.glob("*.py"))
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
CHANCE = {"finetune_class_folder": 100 / 3}  # of the others 25 %


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_runs_and_learns(file, tmp_path):
    found = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=400, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    accuracy = re.fullmatch(r"test accuracy ([\d.]+) %", found.stdout.strip().splitlines()[-1])
    assert accuracy is not None and float(accuracy[1]) > CHANCE.get(file.stem, 25) + 5
    assert not [*tmp_path.iterdir()]  # nothing is left where it ran


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_is_short_and_says_what_it_needs(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert re.match(r'"""Patch swap|"""Fine-tune', text) and "Needs: psd" in text and "On two CPU cores: about" in text


def test_the_card_lists_every_example():
    assert set(re.findall(r"\]\((\w+\.py)\)", CARD)) == {file.name for file in FILES}


def test_the_card_s_lines_are_those_of_the_plain_loop():
    (lines,) = re.findall(r"```python\n(.*?)```", CARD, flags=re.DOTALL)
    plain = re.sub(r"\s+# patch swap.*", "", (FOLDER / "plain_pytorch.py").read_text(encoding="utf-8"))
    plain = [line.strip() for line in plain.splitlines()]
    assert all(line.strip() in plain for line in lines.splitlines() if line.strip())
