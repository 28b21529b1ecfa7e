"""Every benchmark runs, with settings so small that its figures say nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from psd import models

FOLDER = Path(__file__).parents[1] / "benchmarks"
COMMANDS = {
    "step_cost": ("--images 4 --steps 1 --turns 1", r"patch_swap +\d"),
    "data_path": ("--images 200 --batch-size 8 --turns 1", r"pairs +[\d,]+"),
    "swap_cost": ("--turns 1", r"128x3x32x32, m = 4, \w+ +\d"),
    "decode": ("--folder {tmp} --turns 1", r"Stream +[\d,.]+ +\d"),
    "contention": ("--models resnet8 --images 2 --seconds 0.01 --turns 1 --processes 1 2", r"resnet8 +psd +2 +\d"),
    "gap": ("shapes --seeds 0 --passes 1280 --images 16 --out {tmp}", r"shapes-patch_swap-s0.json: top-1 \d"),
    "gpu_day": (
        "train --fast --device cpu --large 0 --jobs 1 --compare shapes --seconds {seconds} --out {tmp} --revision abc",
        r"[1-9]\d* records are packed",
    ),
}


def run(name: str, options: str, tmp_path: Path, seconds: int = 22) -> str:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *options.format(tmp=tmp_path, seconds=seconds).split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_benchmark_is_named_here():
    assert set(COMMANDS) == {file.stem for file in FOLDER.glob("*.py")}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_runs(name, tmp_path):
    if name == "decode":
        for i in range(2):
            Image.effect_noise((300, 260), 60).convert("RGB").save(tmp_path / f"{i}.jpg")
    options, printed = COMMANDS[name]
    found = run(name, options, tmp_path)
    if name == "gpu_day" and not re.search(printed, found):  # a slow or busy machine needs longer for the first run
        found = run(name, options, tmp_path, seconds=100)
    assert re.search(printed, found)
    if name == "gap":
        table = run(name, "table --out {tmp}", tmp_path)
        assert "| patch_swap | 100% |" in table and "| cross_entropy | patches of 8 |" in table
    if name == "gpu_day":
        files = list(tmp_path.rglob("results/**/*-s[0-9].json"))
        assert files and all('"revision": "abc"' in file.read_text() for file in files)


def test_the_gap_of_two_photographs_is_measured(tmp_path):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    save_file(models.build("timm:tf_efficientnet_lite0", 1000).state_dict(), tmp_path / "weights.safetensors")
    run("gap", "dogs --weights {tmp}/weights.safetensors --out {tmp}", tmp_path)
    assert "| patches of 32 | 0." in run("gap", "table --out {tmp}", tmp_path)
