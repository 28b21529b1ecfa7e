"""The records under results/: each is what a recipe says, where its name says, measured after the last epoch."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest

from psd import methods
from psd.training import config
from psd.training.comparison import comparison
from psd.training.fit import settings_of
from psd.training.records import Record

RESULTS = Path(__file__).parent.parent / "results"
FILES = sorted(RESULTS.rglob("*.json"))
# Comparisons with a folder of results of their own, whose first row is another comparison's too.
APART = ("again", "dense", "final", "tuned")

# What README, RESULTS and the notebooks show: a recipe's comparison, what was changed in it, and methods and seeds if
# not all.
PUBLISHED = {
    "cifar100-small/resnet14/200kpass": ("compare/cifar100-small", {}),
    "cifar100-small-replicates/resnet14/200kpass": ("photographs/methods", {}),
    "cifar100-small-per_class25-replicates/resnet14/200kpass": ("photographs/few", {}),
    "cifar100-classes10-per_class300-replicates/resnet14/400kpass": ("photographs/many", {}),
    **{
        f"cifar100-small-per_class{n}-size64-replicates/timm-tf_efficientnet_lite0/8kpass": (
            "photographs/pretrained",
            {"model": {"weights": "tf_efficientnet_lite0.safetensors"}, "data": {"per_class": n}},
        )
        for n in (5, 20, 50)
    },
    "cifar100-small-fit/resnet14/200kpass": ("compare/cifar100-small-ablations", {}, ["patch_swap"]),
    "shapes/resnet8/96kpass": ("compare/shapes", {}),
    "shapes-fit/resnet8/96kpass": ("compare/shapes-ablations", {}),
    "shapes-replicates/resnet8/96kpass": ("transfer/backbones", {}),
    "tuned/shapes-replicates/resnet8/96kpass": ("compare/shapes-tuned", {"run": {"output": "results/tuned"}}),
    **{
        f"cifar100-small-replicates/resnet14/{passes}kpass": (
            "photographs/compute",
            {"compare": {"budgets": [{"image_passes": 1_000 * passes}]}},
        )
        for passes in (50, 100)
    },
    "final/cifar100-small-replicates/resnet14/200kpass": ("photographs/final", {"run": {"output": "results/final"}}),
    "again/cifar100-small-replicates/resnet14/200kpass": ("photographs/again", {"run": {"output": "results/again"}}),
    "cifar100-small-noise0.4-replicates/resnet14/200kpass": ("photographs/noisy", {}),
    "cifar100-small-noise0.4-replicates/resnet14/50kpass": ("photographs/noisy-short", {}),
    "cifar100-small-replicates/resnet14/400kpass": ("photographs/long", {}),
    "shapes-scenes-replicates/fcn@resnet8/8kpass": ("transfer/segmentation-resnet8", {}),
    "shapes-classes4-replicates/resnet8/24kpass": ("transfer/backbones4", {}),
    "shapes-scenes-classes4-replicates/fcn@resnet8/8kpass": ("transfer/segmentation", {}),
    "shapes-scenes-replicates/ssdlite@resnet8/8kpass": ("transfer/detection", {}),
    "dense/shapes-scenes-classes4-replicates/fcn@resnet8/8kpass": (
        "transfer/dense",
        {"run": {"output": "results/dense"}},
    ),
    "tiny-imagenet/torchvision-resnet18/100kpass": ("transfer/backbones-tiny-imagenet", {}),
    "shapes-scenes-classes4-size192-replicates/lraspp@torchvision-resnet18/2kpass": (
        "transfer/segmentation-photographs",
        {},
    ),
    "shapes-scenes-classes4-size192-replicates/lraspp@timm-tf_efficientnet_lite0/2kpass": (
        "transfer/segmentation-pretrained",
        {},
    ),
    "shapes-classes4-per_class800-seed2-fit/timm-vit_tiny_patch16_224/24kpass": ("compare/shapes-vit-token4", {}),
    "shapes-classes4-per_class800-seed2-fit/timm-vit_small_patch8_224/24kpass": ("compare/shapes-vit-token8", {}),
    "shapes/resnet8/192kpass": (
        "shapes",
        {"budget": {"image_passes": 192_000}, "data": {"batch_size": 128}},
        ["cross_entropy"],
        [0, 1, 2],
    ),
    "shapes/resnet8/125ep": ("shapes", {"budget": {"epochs": 125}}),
    "cifar100-small-per_class25/resnet14/200kpass": (
        "cifar100-small",
        {"data": {"per_class": 25}},
        ["cross_entropy", "patch_swap"],
    ),
    "cifar100-classes10/resnet14/200kpass": (
        "cifar100-small",
        {"data": {"name": "cifar100", "classes": 10}},
        ["cross_entropy", "patch_swap"],
    ),
    "tiny-imagenet/torchvision-resnet18/76800pass": (
        "tiny_imagenet/resnet18-patch_swap",
        {
            "model": {"name": "torchvision:resnet18"},
            "budget": {"image_passes": 76_800},
            "run": {"evaluate_every": 1},
        },
        ["cross_entropy", "patch_swap"],
        [0],
    ),
}

# Ideas that did not win: their code is gone, and stands at the revision that their records name.
GONE = {"patch_swap_variant", "patch_swap_mixup", "patch_swap_random_erasing", "patch_swap_idea"}
GONE_OPTIONS = {"end", "top", "ring", "gap", "ramp", "mix_sizes", "mean", "layer", "alpha", "mixup_p", "erase_p"}

records = pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(RESULTS).with_suffix("").as_posix())


@records
def test_a_record_lies_where_its_name_says(file):
    place = file.relative_to(RESULTS).with_suffix("")
    own = [part for part in place.parts if part not in APART]
    assert Record.read(file).name == "/".join(own)


@records
def test_a_record_s_name_is_that_of_its_settings(file):
    record = Record.read(file)
    settings = dict(record.config)
    if is_gone(record):
        options = {key: value for key, value in settings["method"].items() if key not in GONE_OPTIONS}
        settings["method"] = {**options, "name": "patch_swap"}
    named = config.from_dict(config.merge(settings, {"run": {"output": "runs"}})).name
    assert named == record.name.replace(f"/{record.method}", f"/{settings['method']['name']}")


@records
def test_a_record_s_result_is_of_the_last_epoch_and_the_test_was_seen_when_its_settings_say(file):
    record = Record.read(file)
    assert record.final == record.epochs[-1]["test"]
    every = record.config["run"]["evaluate_every"]
    seen = [entry["epoch"] for entry in record.epochs[:-1] if "test" in entry]
    assert seen == (list(range(every, len(record.epochs), every)) if every else [])


@records
def test_a_record_holds_finite_numbers_in_their_ranges(file):
    record = Record.read(file)
    final, classes = record.final, record.config["data"].get("classes")
    if record.task == "segmentation":
        assert 0 <= final["miou"] <= 100 and 0 <= final["pixel_accuracy"] <= 100 and math.isfinite(final["nll"])
        return
    if record.task == "detection":
        assert 0 <= final["map"] <= final["map_50"] <= 100
        return
    assert (final["top5"] is None) == (classes is not None and classes < 6)
    top5 = 100 if final["top5"] is None else final["top5"]
    assert 0 <= final["top1"] <= top5 <= 100 and 0 <= final["ece"] <= 1 and math.isfinite(final["nll"])


@records
def test_a_record_s_length_is_its_budget_to_a_step(file):
    record = Record.read(file)
    budget = record.config["budget"]
    step = record.image_passes / sum(entry["steps"] for entry in record.epochs)
    if budget["epochs"]:
        assert len(record.epochs) == budget["epochs"] and len({entry["steps"] for entry in record.epochs}) == 1
    else:
        assert abs(record.image_passes - budget["image_passes"]) <= step / 2


@records
def test_a_record_was_made_by_a_committed_state_of_the_code(file):
    assert len(Record.read(file).revision) == 40  # no "+" for a changed tree


@records
def test_a_record_holds_no_machine_s_path(file):
    text = json.dumps(json.loads(file.read_text()))
    assert "/root" not in text and "/home" not in text and "/tmp" not in text


def is_gone(record: Record) -> bool:
    """Whether the record is of an idea whose code is gone."""
    return record.method in GONE or bool(record.config["method"].get("ramp"))


def test_what_is_said_to_be_gone_is_gone():
    assert not set(GONE) & set(methods.names())
    assert not GONE_OPTIONS & {field.name for field in fields(methods.find("patch_swap"))}


def promised(folder: str) -> list[config.Config]:
    recipe, changes, *chosen = PUBLISHED[folder]
    return comparison(config.merge(config.read_yaml(recipe), changes), *chosen).configs()


@pytest.mark.parametrize("folder", PUBLISHED)
def test_a_published_comparison_has_every_run_of_its_recipe_with_its_settings(folder):
    for run in promised(folder):
        place = folder.partition("/")[0] if folder.startswith(APART) else ""
        record = Record.read(RESULTS / place / f"{run.name}.json")
        assert not config.differences(record.config, settings_of(run, None))


@pytest.mark.parametrize("folder", PUBLISHED)
def test_a_published_comparison_holds_nothing_else(folder):
    found = [Record.read(file) for file in (RESULTS / folder).rglob("*.json")]
    assert {r.name for r in found if not is_gone(r)} == {run.name for run in promised(folder)}
