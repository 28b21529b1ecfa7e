"""Whole runs on image files: ImageNet's layout, from JPEG to the record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import psd
from psd import cli, methods
from psd.data.stream import CentreCrops
from psd.training import config as config_module
from psd.training.config import BudgetConfig, Config, DataConfig, ModelConfig, RunConfig
from psd.training.fit import load_data

CLASSES, TRAIN, TEST, SIZE = 3, 24, 11, 24  # images in all


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of data sets that holds `tiny-imagenet`: train/<class>/*.JPEG and val/<class>/*.JPEG."""
    root = tmp_path_factory.mktemp("root")
    data = psd.data.load("shapes", classes=CLASSES, count=TRAIN + TEST, size=40)
    for number, (image, target) in enumerate(data):
        folder = root / "tiny-imagenet" / ("train" if number < TRAIN else "val") / data.classes[target]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.JPEG")
    return root


def config(root: Path, output: Path, method: str = "patch_swap", data: dict | None = None, **run) -> Config:
    options = {"patch_size": 8} if method == "patch_swap" else {}
    files = {"name": "tiny-imagenet", "root": str(root), "batch_size": 8, "crop_size": SIZE, "workers": 1}
    return Config(
        data=DataConfig(**{**files, **(data or {})}),
        model=ModelConfig("resnet8"),
        method=methods.build(method, **options),
        budget=BudgetConfig(epochs=2),
        run=RunConfig(output=str(output), **{"device": "cpu", "progress": False, **run}),
    )


def weights(run: Config) -> dict[str, torch.Tensor]:
    return load_file(Path(run.run.output) / run.name / "model.safetensors")


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> Config:
    run = config(root, tmp_path_factory.mktemp("trained"), evaluate_every=1)
    psd.train(run)
    return run


def test_the_record_tells_of_whole_epochs_of_pairs(trained):
    record = json.loads((Path(trained.run.output) / f"{trained.name}.json").read_text())
    assert record["name"] == "tiny-imagenet/resnet8/2ep/patch_swap-s0"
    assert [entry["steps"] for entry in record["epochs"]] == [3, 3]
    assert record["image_passes"] == 2 * TRAIN * 2
    assert record["final"]["n_test"] == TEST
    assert "skipped" not in record["epochs"][0]


def test_the_network_is_measured_on_centre_crops_of_the_trained_size(trained):
    test = CentreCrops(load_data(trained.data)[1], SIZE)
    measured = psd.evaluate(psd.load_model(Path(trained.run.output) / trained.name), test)
    record = json.loads((Path(trained.run.output) / f"{trained.name}.json").read_text())
    assert record["final"] == pytest.approx(measured, abs=1e-5)


def test_the_number_of_workers_changes_no_bit(trained, root, tmp_path):
    run = config(root, tmp_path, data={"workers": 0})
    psd.train(run)
    a, b = weights(trained), weights(run)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_goes_on_inside_its_epoch_to_the_same_bits(trained, root, tmp_path, monkeypatch):
    from test_processes import sent_at  # as for images in memory

    from psd.data.stream import Stream
    from psd.training.loop import Interrupted

    run = config(root, tmp_path, evaluate_every=1, resume="auto")
    with monkeypatch.context() as patch:
        sent_at(1, patch, Stream)
        with pytest.raises(Interrupted, match="at step 2 of 6"):
            psd.train(run)
    record = psd.train(run)
    a, b = weights(trained), weights(run)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert record.epochs == json.loads((Path(trained.run.output) / f"{trained.name}.json").read_text())["epochs"]


@pytest.fixture
def damaged(root, tmp_path) -> Path:
    """The same images, one of which is cut short."""
    other = shutil.copytree(root, tmp_path / "damaged")
    file = sorted((other / "tiny-imagenet" / "train").rglob("*.JPEG"))[4]
    file.write_bytes(file.read_bytes()[:200])
    return other


def test_a_damaged_file_ends_the_command_with_its_name(damaged, tmp_path, capsys):
    run = f"train tiny_imagenet/resnet18-cross_entropy --data.root {damaged} --data.batch_size 8 --data.crop_size 24"
    run += f" --model.name resnet8 --data.workers 0 --run.device cpu --run.output {tmp_path / 'runs'} --budget.epochs 1"
    assert cli.main([*run.split(), "--run.progress", "false"]) == 2
    error = capsys.readouterr().err
    file = sorted((damaged / "tiny-imagenet" / "train").rglob("*.JPEG"))[4]
    assert str(file) in error and "--data.skip_corrupt" in error and error.count("\n") == 1
    assert not list((tmp_path / "runs").rglob("*.json"))
    assert cli.main([*run.split(), "--run.progress", "false", "--data.skip_corrupt", "true"]) == 0
    out = capsys.readouterr().out
    assert "files that could not be read, with others shown in their place: 1\n" in out
    (file,) = (tmp_path / "runs").rglob("*.json")
    assert [entry["skipped"] for entry in json.loads(file.read_text())["epochs"]] == [1]


# --- every full-scale recipe, for a step

FOLDERS = ("cifar100", "imagenet", "tiny_imagenet")
FULL_SCALE = [name for name in config_module.recipe_names() if name.partition("/")[0] in FOLDERS]


@pytest.mark.parametrize("recipe", FULL_SCALE)
def test_a_full_scale_recipe_trains_and_measures(recipe, root, tmp_path, capsys):
    """The command of the recipe with its own network, image size and optimiser, on a few images of another data set."""
    where = f"--data.name folder:{root / 'tiny-imagenet'} --data.batch_size 2 --data.workers 0 --budget.image_passes 2"
    if recipe.startswith("cifar100/"):
        where += " --data.size 32"
    run = f"train {recipe} {where} --run.output {tmp_path} --run.device cpu --run.progress false"
    assert cli.main(run.split()) == 0
    (file,) = tmp_path.rglob("*.json")
    record = json.loads(file.read_text())
    assert record["model"] == config_module.recipe(recipe).model.name
    assert record["final"]["n_test"] == TEST and record["epochs"][0]["loss"] > 0
    assert f"n {TEST}" in capsys.readouterr().out
