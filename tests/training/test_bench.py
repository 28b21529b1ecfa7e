"""The plan's arithmetic, and that the measuring measures: which is faster is never asserted here."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import psd
from psd import cli, methods
from psd.training import bench
from psd.training.bench import Rates
from psd.training.config import BudgetConfig, Config, DataConfig, ModelConfig, RunConfig

RATES = Rates(
    step=1000.0,
    bare=1200.0,
    data=5000.0,
    share=0.83,
    decode=250.0,
    crop=100.0,
    workers=4,
    images_per_step=512,
    passes=36_000_000,
    device="some GPU",
    mode="bf16, eager",
    memory=3 * 2**30,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Class folders of JPEG files: 8 images of each of 2 classes to train on, 2 to test on."""
    path = tmp_path_factory.mktemp("images")
    data = psd.data.load("shapes", classes=2, count=20, size=32)
    for number, (image, target) in enumerate(data):
        place = path / ("train" if number < 16 else "val") / data.classes[target]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.jpg")
    return path


def config(data: DataConfig, output: Path, method: str = "patch_swap", **run) -> Config:
    return Config(
        data=data,
        model=ModelConfig("resnet8"),
        method=methods.build(method),
        budget=BudgetConfig(epochs=3),
        run=RunConfig(output=str(output), device="cpu", progress=False, **run),
    )


def rows(text: str) -> list[list[str]]:
    """The plan's table, without its head."""
    return [line.split() for line in text.split("\n\n")[0].splitlines()[1:]]


# --- the plan


def test_one_device_takes_the_passes_at_the_rate():
    assert rows(bench.plan(RATES, [1], price=2.5)) == [["1", "10.0", "10.0", "25.00", "12"]]


def test_several_devices_share_the_work_at_the_assumed_efficiency():
    assert rows(bench.plan(RATES, [8], efficiency=0.5, price=1)) == [["8", "2.500", "20.0", "20.00", "96"]]


def test_without_a_price_there_is_no_money_and_without_files_no_workers():
    in_memory = dataclasses.replace(RATES, decode=None, crop=None, workers=0)
    assert [row[3:] for row in rows(bench.plan(in_memory, [1, 2]))] == [["-", "-"], ["-", "-"]]


def test_the_plan_states_what_it_assumes():
    text = bench.plan(RATES, [1, 8], efficiency=0.8, price=3)
    for words in ("36,000,000 image passes", "assumed to reach 80 %", "without evaluation", "3 for a device and hour"):
        assert words in " ".join(text.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus": [0]}, "gpus must be numbers of at least 1, got \\[0\\]"),
        ({"gpus": []}, "gpus must be"),
        ({"gpus": [1], "efficiency": 1.5}, "efficiency must lie above 0 and at most at 1, got 1.5"),
        ({"gpus": [1], "efficiency": 0.0}, "efficiency must"),
        ({"gpus": [1], "price": -1.0}, "price must be >= 0, got -1.0"),
        ({"gpus": [1], "price": float("nan")}, "price must"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        bench.plan(RATES, **options)


def test_a_part_of_the_images_plans_for_all_of_them(folder, tmp_path):
    whole = config(DataConfig(name=f"folder:{folder}", batch_size=4, crop_size=32), tmp_path)
    assert bench.for_images(RATES, whole, 103).passes == 3 * 25 * 8  # epochs, whole batches, images of 4 pairs
    with pytest.raises(ValueError, match="images must fill a batch of 4, got 3"):
        bench.for_images(RATES, whole, 3)


# --- what limits


@pytest.mark.parametrize(
    ("share", "data", "workers", "limit"),
    [
        (0.9, 100.0, 4, "forward and backward"),
        (0.5, 600.0, 4, "decoding: more workers or cores"),
        (0.5, 600.0, 0, "making the batches"),
        (0.5, 5000.0, 4, "the rest of a step: loss, optimiser, and the host that launches them"),
    ],
)
def test_what_limits_is_told_from_the_rates(share, data, workers, limit):
    rates = dataclasses.replace(RATES, share=share, data=data, workers=workers)
    assert rates.limit == limit
    assert f"What limits: {limit}." in bench.describe(rates)


def test_the_table_holds_every_rate():
    text = bench.describe(RATES)
    for number in ("1,000", "1,200", "5,000", "250", "100", "512 images per step", "some GPU", "83 %", "3.0 GiB"):
        assert number in text


# --- measuring


@pytest.mark.parametrize("method", ["cross_entropy", "patch_swap"])
def test_measuring_writes_nothing_and_counts_the_images_of_pairs(method, tmp_path):
    run = config(DataConfig(count=64, size=16, batch_size=16), tmp_path / "out", method)
    rates = bench.measure(run, seconds=0.3, turns=2)
    assert rates.images_per_step == (32 if method == "patch_swap" else 16)
    assert rates.passes == 3 * 4 * rates.images_per_step
    assert min(rates.step, rates.bare, rates.data, rates.share) > 0
    assert (rates.decode, rates.crop, rates.workers, rates.memory) == (None, None, 0, None)
    assert not (tmp_path / "out").exists()


def test_files_are_decoded_apart(folder, tmp_path):
    data = DataConfig(name=f"folder:{folder}", batch_size=4, crop_size=32, workers=1)
    rates = bench.measure(config(data, tmp_path, accumulate=2), seconds=0.3, turns=1)
    assert rates.workers == 1 and rates.images_per_step == 8
    assert rates.decode > 0 and rates.crop > 0


def test_a_call_that_takes_long_is_counted_once_and_short_ones_often():
    calls = []
    rate = bench._per_second(lambda: calls.append(1), torch.device("cpu"), 0.05)
    assert len(calls) > 100 and rate == pytest.approx(len(calls) / 0.05, rel=0.5)


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": float("nan")}, {"turns": 0}])
def test_no_time_to_measure_is_refused(options, tmp_path):
    with pytest.raises(ValueError, match="seconds and turns must be positive"):
        bench.measure(config(DataConfig(count=64, size=16), tmp_path), **options)


def test_the_command_prints_rates_and_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = "--data.count 64 --data.size 16 --data.batch_size 16 --method.patch_size 4 --run.device cpu"
    assert cli.main(f"bench shapes {settings} --seconds 0.2 --gpus 1 4 --price 2 --images 640".split()) == 0
    out = capsys.readouterr().out
    assert "What limits: " in out and re.search(r"^ +4 ", out, re.MULTILINE)
    assert "The run is 96,000 image passes" in out
    assert list(tmp_path.iterdir()) == []
