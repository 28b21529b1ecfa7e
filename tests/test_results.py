"""The records under results/: each is what a recipe says, where its name says, measured after the last epoch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from psd import config
from psd.records import Record

RESULTS = Path(__file__).parent.parent / "results"
FILES = sorted(RESULTS.rglob("*.json"))
PUBLISHED = ("cifar100-small", "shapes")  # recipes whose comparison stands in README

records = pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(RESULTS).with_suffix("").as_posix())


@records
def test_a_record_lies_where_its_name_says(file):
    assert Record.read(file).name == file.relative_to(RESULTS).with_suffix("").as_posix()


@records
def test_a_record_s_name_is_that_of_its_settings(file):
    record = Record.read(file)
    settings = config.from_dict(config.merge(record.config, {"run": {"output": "runs"}}))
    assert settings.name == record.name


@records
def test_a_record_was_measured_after_the_last_epoch_and_not_before(file):
    record = Record.read(file)
    assert record.final == record.epochs[-1]["test"]
    assert not any("test" in entry for entry in record.epochs[:-1])


@records
def test_a_record_holds_finite_numbers_in_their_ranges(file):
    final = Record.read(file).final
    assert 0 <= final["top1"] <= final["top5"] <= 100 and 0 <= final["ece"] <= 1 and math.isfinite(final["nll"])


@records
def test_a_record_s_image_passes_are_its_budget_to_a_step(file):
    record = Record.read(file)
    step = record.image_passes / sum(entry["steps"] for entry in record.epochs)
    assert abs(record.image_passes - record.config["budget"]["image_passes"]) <= step / 2


@records
def test_a_record_was_made_by_a_committed_state_of_the_code(file):
    assert len(Record.read(file).revision) == 40  # no "+" for a changed tree


@records
def test_a_record_holds_no_machine_s_path(file):
    text = json.dumps(json.loads(file.read_text()))
    assert "/root" not in text and "/home" not in text and "/tmp" not in text


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_published_comparison_has_every_run_of_its_recipe_with_its_settings(recipe):
    for promised in config.comparison(config.read_yaml(recipe)).configs():
        record = Record.read(RESULTS / f"{promised.name}.json")
        assert not config.differences(record.config, promised.to_dict())


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_published_comparison_holds_nothing_else(recipe):
    promised = {run.name for run in config.comparison(config.read_yaml(recipe)).configs()}
    assert {Record.read(file).name for file in (RESULTS / recipe).rglob("*.json")} == promised
