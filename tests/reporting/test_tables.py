"""Tables of records."""

from __future__ import annotations

import csv
import io

import pytest

from psd.reporting import tables as reporting
from psd.training import config
from psd.training.records import Record

T_975_2 = 4.302652729911275  # quantile of Student's t with 2 degrees of freedom (any table of it)


def record(method: str = "cross_entropy", seed: int = 0, top1: float = 50.0, **changes) -> Record:
    """A finished run that was never made; `changes` are fields of the record, or of its config by dotted key."""
    settings = config.recipe("shapes", method={"name": method}, run={"seed": seed})
    for key in [key for key in changes if "." in key]:
        section, name = key.split(".")
        setattr(getattr(settings, section), name, changes.pop(key))
    made = {
        "name": settings.name,
        "data": settings.data.label,
        "model": settings.model.name,
        "method": method,
        "seed": seed,
        "budget": settings.budget.label,
        "config": settings.to_dict(),
        "epochs": [{"epoch": 1, "steps": 12}, {"epoch": 2, "steps": 6}],
        "final": {"top1": top1, "top5": 90.0, "nll": 1.5, "ece": 0.25, "n_test": 2000},
        "seconds": 10.0,
        "device": "cpu, 2 threads",
    }
    return Record(**{**made, **changes})


@pytest.fixture
def write(tmp_path):
    def write(*records: Record, folder: str = "results"):
        for r in records:
            r.write(tmp_path / folder / f"{r.name}.json")
        return tmp_path / folder

    return write


def cells(table: str) -> dict[str, dict[str, str]]:
    """Row name -> column name -> text, of the first Markdown table in a text."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {line[0]: dict(zip(lines[0][1:], line[1:], strict=True)) for line in lines[2:]}


def seeds(method: str, *top1: float) -> list[Record]:
    return [record(method, seed, value) for seed, value in enumerate(top1)]


# -- numbers


def test_an_interval_is_that_of_student_s_t():
    middle, half = reporting.interval([1.0, 2.0, 6.0])
    assert middle == pytest.approx(3.0)
    assert half == pytest.approx(T_975_2 * 7.0**0.5 / 3**0.5)  # the sample variance is 7


def test_a_single_value_has_no_interval():
    assert reporting.interval([4.0]) == (4.0, None)


def test_differences_are_paired_by_seed():
    rows = {"cross_entropy": seeds("cross_entropy", 50, 60, 70), "cutmix": seeds("cutmix", 51, 62, 73)}
    assert reporting.differences(rows, "cutmix") == [1, 2, 3]


def test_differences_to_the_same_pairs_have_their_own_column(write):
    folder = write(record(), record("pair_cross_entropy", top1=48.0), record("patch_swap", top1=51.0))
    rows = cells(reporting.report([folder]))
    assert [rows[name]["Δ pair_cross_entropy"] for name in rows] == ["+2.00", "", "+3.00"]
    assert [rows[name]["Δ cross_entropy"] for name in rows] == ["", "-2.00", "+1.00"]


def test_a_seed_without_its_baseline_makes_no_difference():
    rows = {"cross_entropy": seeds("cross_entropy", 50), "cutmix": seeds("cutmix", 51, 62)}
    assert reporting.differences(rows, "cutmix") == [1]


# -- tables


def test_a_row_holds_mean_and_half_interval_over_the_seeds(write):
    row = cells(reporting.report([write(*seeds("cross_entropy", 50, 51, 55))]))["cross_entropy"]
    assert row["top-1 %"] == f"52.00 ± {T_975_2 * 7**0.5 / 3**0.5:.2f}"


def test_the_difference_has_the_interval_of_the_paired_differences(write):
    folder = write(*seeds("cross_entropy", 50, 60, 70), *seeds("patch_swap", 51, 62, 73))
    rows = cells(reporting.report([folder]))
    assert rows["patch_swap"]["Δ cross_entropy"] == f"+2.00 ± {T_975_2 / 3**0.5:.2f}"
    assert rows["cross_entropy"]["Δ cross_entropy"] == ""


def test_what_an_interval_covers_is_said_replicates_with_images_of_their_own_or_seeds(write):
    drawn = [record(seed=s, top1=50.0 + s, **{"data.replicate": True, "data.seed": s}) for s in (1, 2)]
    assert "t-interval over replicates 1, 2;" in reporting.report([write(*drawn)])
    assert "t-interval over seeds 0, 1;" in reporting.report([write(*seeds("cross_entropy", 50, 51))])


def test_a_loss_shows_its_sign(write):
    folder = write(record(top1=50.0), record("patch_swap", top1=48.5))
    assert cells(reporting.report([folder]))["patch_swap"]["Δ cross_entropy"] == "-1.50"


def test_a_single_seed_stands_without_an_interval(write):
    row = cells(reporting.report([write(record())]))["cross_entropy"]
    assert (row["top-1 %"], row["NLL"], row["ECE"], row["seconds"]) == ("50.00", "1.500", "0.250", "10")


def test_the_epochs_are_passes_over_the_data_the_last_one_cut_short(write):
    assert cells(reporting.report([write(record())]))["cross_entropy"]["epochs"] == "1.5"


def test_seconds_are_the_mean_of_the_runs(write):
    folder = write(record(seconds=10.0), record(seed=1, seconds=30.0))
    assert cells(reporting.report([folder]))["cross_entropy"]["seconds"] == "20"


def test_cross_entropy_stands_first_then_the_names_in_order(write):
    folder = write(*(record(name) for name in ("patch_swap", "cutmix", "cross_entropy")))
    assert list(cells(reporting.report([folder]))) == ["cross_entropy", "cutmix", "patch_swap"]


def test_without_one_of_the_two_there_is_no_difference(write):
    assert "Δ" not in reporting.report([write(record("cutmix"), record("patch_swap"))])


def test_top5_is_left_out_where_no_record_has_it(write):
    final = {"top1": 50.0, "top5": None, "nll": 1.5, "ece": 0.25, "n_test": 100}
    assert "top-5" not in reporting.report([write(record(final=final))])
    assert "top-5" in reporting.report([write(record(), folder="others")])


def test_every_budget_data_set_and_model_has_its_own_table(write):
    others = [
        record(**{"budget.image_passes": 64_000}),
        record(**{"model.name": "resnet14"}),
        record(**{"data.count": 100}),
    ]
    text = reporting.report([write(record(), *others)])
    assert text.count("image passes**") == 4


def test_a_variant_is_a_row_of_its_own(write):
    rows = cells(reporting.report([write(record("patch_swap"), record("patch_swap", **{"run.variant": "T1"}))]))
    assert list(rows) == ["patch_swap", "patch_swap-T1"]


def test_seeds_are_counted_where_rows_have_different_ones(write):
    one, other = seeds("cross_entropy", 50, 60, 70), seeds("cutmix", 50, 60)
    text = reporting.report([write(*one, *other)])
    assert {name: row["seeds"] for name, row in cells(text).items()} == {"cross_entropy": "3", "cutmix": "2"}
    assert "over seeds 0, 1, 2, as many of them as the column says; " in text
    text = reporting.report([write(*one, *seeds("cutmix", 50, 60, 70))])
    assert "seeds" not in cells(text)["cutmix"] and "over seeds 0, 1, 2; " in text


def test_the_heading_and_the_caption_say_what_was_measured(write):
    text = reporting.report([write(*seeds("cross_entropy", 1, 2), *seeds("cutmix", 1, 2))])
    passes = config.recipe("shapes").budget.image_passes
    assert f"**shapes, resnet8, {passes:,} image passes**" in text
    assert "over seeds 0, 1; 2,000 test images, after the last epoch." in text
    assert "paired by seed" in text and "on cpu, 2 threads" in text


def test_images_that_are_kept_for_choosing_settings_are_not_called_test_images(write):
    text = reporting.report([write(record(**{"data.split": "fit"}))])
    assert "2,000 tune images, after the last epoch." in text and "test images" not in text


def test_equal_epochs_are_named_as_such():
    equal = config.recipe("shapes", budget={"epochs": 200, "image_passes": None})
    assert reporting.heading(record(config=equal.to_dict())) == "**shapes, resnet8, 200 epochs**"


def test_a_table_is_aligned_in_plain_text(write):
    folder = write(record(), record("patch_swap", top1=9.0))
    lines = [line for line in reporting.report([folder]).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1


# -- what is apart from zero


def spread_rows(n: int) -> list[Record]:
    """Cross-entropy, and n methods that are each just above it: p = 0.0497 alone."""
    above = [value + 1.003 * T_975_2 / 3**0.5 for value in (-1, 0, 1)]
    made = seeds("cross_entropy", 50, 60, 70)
    for k in range(n):
        variant = [record("cutmix", s, 50 + 10 * s + above[s], **{"run.variant": f"v{k}"}) for s in range(3)]
        made += variant
    return made


def test_the_caption_names_the_rows_that_are_apart_from_zero_and_counts_those_tested(write):
    text = reporting.report([write(*spread_rows(2), *seeds("mixup", 51, 60, 69))])
    assert "Δ cross_entropy apart from zero: cutmix-v0, cutmix-v1 (3 rows tested)." in text


def test_of_more_than_five_rows_those_are_named_that_survive_holm(write):
    text = reporting.report([write(*spread_rows(5), *seeds("mixup", 80, 90.1, 100))])
    assert "Δ cross_entropy apart from zero: mixup (6 rows tested, Holm's correction at 5% over all)." in text


def test_a_single_seed_tests_nothing(write):
    assert "apart from zero" not in reporting.report([write(record(), record("cutmix"))])


# -- several budgets


def test_methods_at_several_budgets_have_a_table_of_them_small_budgets_first(write):
    made = [record("patch_swap", s, top1=50 + s, **{"budget.image_passes": 200_000}) for s in range(3)]
    made += seeds("patch_swap", 40, 41, 42) + seeds("cross_entropy", 30, 31, 32) + [record("mixup")]
    made += [record(top1=35.0, **{"budget.image_passes": 200_000})]
    text = reporting.report([write(*made)])
    title = "**shapes, resnet8: top-1 % by budget**"
    assert text.count("by budget") == 1
    found = cells(text.partition(title)[2])
    half = f"{T_975_2 / 3**0.5:.2f}"
    assert list(found) == ["cross_entropy", "patch_swap"]  # mixup has run at one budget
    assert list(found["patch_swap"]) == ["96,000 image passes", "200,000 image passes"]
    assert found["patch_swap"] == {"96,000 image passes": f"41.00 ± {half}", "200,000 image passes": f"51.00 ± {half}"}
    assert found["cross_entropy"] == {"96,000 image passes": f"31.00 ± {half}", "200,000 image passes": "35.00"}
    assert "over seeds 0, 1, 2, not all of them in every cell; methods" in text


def test_one_budget_has_no_such_table(write):
    others = [record("cutmix", **{"budget.image_passes": 64_000}), record(**{"model.name": "resnet14"})]
    assert "by budget" not in reporting.report([write(record(), *others)])


def test_budgets_of_unlike_protocols_say_so(write):
    other = record(**{"budget.image_passes": 64_000, "data.flip": True})
    assert "The protocols of these budgets differ: data.flip: " in reporting.report([write(record(), other)])


# -- other tasks

MEAN_IOU = [
    {"name": "mean_iou", "title": "mean IoU", "unit": "%", "better": "higher", "digits": 1},
    {"name": "boundary", "title": "boundary error", "unit": "px", "better": "lower", "digits": 2},
    {"name": "bias", "title": "area bias", "unit": "", "better": "zero", "digits": 3},
]


def segmented(method: str, seed: int = 0, mean_iou: float = 60.0, **changes) -> Record:
    """A record of a task that nobody registered here."""
    final = {"mean_iou": mean_iou, "boundary": 3.25, "bias": 0.0125, "n_test": 100}
    return record(method, seed, **{"final": final, "task": "segmentation", "metrics": MEAN_IOU, **changes})


def test_the_columns_are_the_metrics_that_the_records_list(write):
    text = reporting.report([write(segmented("cross_entropy"), segmented("patch_swap", mean_iou=61.5))])
    row = cells(text)["patch_swap"]
    expected = ["mean IoU %", "Δ cross_entropy", "boundary error", "area bias", "epochs", "seconds"]
    assert list(row) == expected
    assert list(row.values())[:4] == ["61.5", "+1.5", "3.25", "+0.013"]
    assert "Better: higher mean IoU; lower boundary error (px); area bias near zero." in text
    assert "Δ: difference in mean IoU, in points." in text


def test_the_numbers_have_columns_for_the_metrics_of_every_table(write):
    folder = write(segmented("cross_entropy"), record(**{"model.name": "resnet14"}))
    lines = {line["model"]: line for line in csv.DictReader(io.StringIO(reporting.csv([folder])))}
    assert (lines["resnet8"]["mean_iou"], lines["resnet8"]["top1"]) == ("60.0", "")
    assert (lines["resnet14"]["mean_iou"], lines["resnet14"]["top1"]) == ("", "50.0")


def test_records_without_any_figure_of_their_task_are_refused(write):
    with pytest.raises(ValueError, match="cross_entropy-s0: there is no figure that the task measures"):
        reporting.report([write(record(final={"n_test": 5}))])


# -- where the runs come from


def test_a_table_that_mixes_devices_or_revisions_names_them_below(write):
    made = [record(revision="a1b2c3d4" * 5), record("cutmix", revision="b2c3d4e5" * 5 + "+", device="NVIDIA H100")]
    text = reporting.report([write(*made)])
    assert text.endswith("\n\nRuns on NVIDIA H100 and cpu; code of revisions a1b2c3d and b2c3d4e+.\n")


def test_seeds_of_one_method_may_have_run_on_two_devices(write):
    made = [record(seed=seed, top1=70.0 + seed) for seed in (0, 1)]
    for r, name in zip(made, ("cpu", "cuda"), strict=True):
        r.config["run"]["device"] = r.device = name
    text = reporting.report([write(*made)])
    assert "70.50" in text and text.endswith("\n\nRuns on cpu and cuda.\n")


def test_threads_of_a_cpu_are_no_other_device(write):
    text = reporting.report([write(record(), record("cutmix", device="cpu, 1 threads"))])
    assert "Runs on" not in text and "revision" not in text


# -- which records


def test_a_record_may_be_named_by_its_file(write):
    folder = write(record(), record("cutmix"))
    (file,) = folder.rglob("cutmix-s0.json")
    assert list(cells(reporting.report([file]))) == ["cutmix"]


def test_a_record_that_is_named_twice_counts_once(write):
    folder = write(record(), record(seed=1))
    assert reporting.report([folder, folder]) == reporting.report([folder])


def test_two_records_of_one_run_are_refused(write):
    folders = write(record()), write(record(top1=51.0), folder="other")
    with pytest.raises(ValueError, match=r"are records of one run, shapes/resnet8/.*/cross_entropy-s0"):
        reporting.report(folders)


def test_unlike_runs_in_one_row_are_refused(write):
    folder = write(record("patch_swap"), record("patch_swap", 1, **{"optimizer.lr": 0.2}))
    with pytest.raises(ValueError, match=r"patch_swap: seeds 0 and 1 .* optimizer\.lr: 0\.1 != 0\.2.*run\.variant"):
        reporting.report([folder])


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such record or folder"):
        reporting.report([tmp_path / "nowhere"])


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path.name} holds no records"):
        reporting.report([tmp_path])


def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"settings\.json: not a record"):
        reporting.report([tmp_path])


# -- tables in a file

TEXT = "before\n<!-- psd report results -->\nold\n<!-- end of psd report -->\nafter\n"


def test_fill_makes_the_table_anew_and_leaves_the_rest(write, tmp_path):
    folder = write(record())
    filled = reporting.fill(TEXT, tmp_path)
    assert filled.startswith("before\n<!-- psd report results -->\n")
    assert filled.endswith("<!-- end of psd report -->\nafter\n")
    assert reporting.report([folder]) in filled and "old" not in filled


def test_fill_changes_nothing_the_second_time(write, tmp_path):
    write(record())
    once = reporting.fill(TEXT, tmp_path)
    assert reporting.fill(once, tmp_path) == once


def test_fill_makes_every_table_from_its_own_paths(write, tmp_path):
    write(record())
    write(record("cutmix"), folder="more")
    filled = reporting.fill(TEXT + TEXT.replace("report results", "report more"), tmp_path)
    first, second = filled.split("\nafter\n")[:2]
    assert list(cells(first)) == ["cross_entropy"] and list(cells(second)) == ["cutmix"]


@pytest.mark.parametrize("text", ["no comment", TEXT.replace("<!-- end of psd report -->", "")])
def test_fill_refuses_a_text_without_a_whole_block(text, tmp_path):
    with pytest.raises(ValueError, match="psd report PATH"):
        reporting.fill(text, tmp_path)


# -- costs, numbers, protocols


def test_costs_stand_in_columns_of_their_own(write):
    single, pairs = 18 * 64, 2 * 18 * 64  # steps and anchors of a step, see `record`
    folder = write(record(image_passes=single, peak_memory=512_000_000), record("patch_swap", image_passes=pairs))
    assert "forwards" not in reporting.report([folder])
    rows = cells(reporting.report([folder], costs=True))
    assert [rows[name]["passes"] for name in rows] == ["1,152", "2,304"]
    assert [rows[name]["forwards"] for name in rows] == ["1", "2"]
    assert [rows[name]["memory"] for name in rows] == ["512 MB", "–"]


def test_the_numbers_are_those_of_the_table(write):
    folder = write(*seeds("cross_entropy", 50, 60, 70), *seeds("cutmix", 51, 62, 73))
    first, second = csv.DictReader(io.StringIO(reporting.csv([folder])))
    assert (first["method"], first["seeds"], second["method"]) == ("cross_entropy", "0 1 2", "cutmix")
    assert float(second["top1"]) == pytest.approx(62) and float(second["top1_minus_cross_entropy"]) == pytest.approx(2)
    assert float(second["top1_minus_cross_entropy_half_interval"]) == pytest.approx(T_975_2 / 3**0.5)
    assert first["top1_minus_cross_entropy"] == second["top1_minus_pair_cross_entropy"] == first["peak_memory"] == ""
    assert (float(first["ece"]), int(first["n_test"]), float(first["seconds"])) == (0.25, 2000, 10.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer.momentum": 0.8}, r"optimizer\.momentum: 0\.9 != 0\.8"),
        ({"data.flip": True}, r"data\.flip"),
        ({"run.precision": "bf16"}, r"run\.precision"),
        ({"run.accumulate": 2}, r"run\.accumulate"),
    ],
)
def test_unequal_protocols_do_not_stand_in_one_table(change, words, write):
    folder = write(record(), record("patch_swap", **change))
    with pytest.raises(ValueError, match=f"cannot stand in one table, as their protocols differ: {words}"):
        reporting.report([folder])


def test_other_test_images_are_another_protocol(write):
    other = {"top1": 50.0, "top5": 90.0, "nll": 1.5, "ece": 0.25, "n_test": 1000}
    with pytest.raises(ValueError, match=r"test\.images: 2000 != 1000"):
        reporting.report([write(record(), record("patch_swap", final=other))])


def test_where_a_run_was_made_is_no_protocol(write):
    changes = {"run.evaluate_every": 3, "data.workers": 2, "run.compile": "off", "device": "a GPU"}
    assert "| patch_swap " in reporting.report([write(record(), record("patch_swap", **changes))])


def test_rows_may_begin_with_other_weights_each_seed_with_its_own(write):
    def begun(weights: str | None, frozen: bool, variant: str | None) -> list:
        changes = {"model.weights": weights, "model.freeze_backbone": frozen, "run.variant": variant}
        names = [None if weights is None else f"{weights}-s{seed}" for seed in (0, 1)]
        return [record(seed=seed, **{**changes, "model.weights": name}) for seed, name in enumerate(names)]

    rows = [*begun(None, False, None), *begun("mixup", False, "from-mixup"), *begun("mixup", True, "frozen-mixup")]
    table = reporting.report([write(*rows)])
    cells = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| cross_entropy")}
    assert "| begins with" in table and "| fresh weights" in cells["cross_entropy"]
    assert "| mixup " in cells["cross_entropy-from-mixup"] and "| mixup, frozen" in cells["cross_entropy-frozen-mixup"]
    other = [*rows[:2], record(seed=2, **{"model.weights": "cutmix-s2"})]
    with pytest.raises(ValueError, match=r"ran with different settings, model\.weights"):
        reporting.report([write(*other, folder="other")])


def test_seeds_of_a_row_may_all_begin_with_the_weights_of_one_seed(write):
    rows = [record(seed=seed, **{"model.weights": "runs/cross_entropy-s1"}) for seed in (0, 1)]
    assert cells(reporting.report([write(*rows)]))["cross_entropy"]["top-1 %"].startswith("50.00 ±")


def test_seeds_of_a_row_may_have_teachers_of_their_own_seed(write):
    taught = [record("kd", seed, **{"method.teacher": f"runs/cross_entropy-s{seed}"}) for seed in (0, 1)]
    assert "| kd " in reporting.report([write(*taught)])
    other = record("kd", 2, **{"method.teacher": "runs/cutmix-s2"})
    with pytest.raises(ValueError, match=r"kd: seeds 0 and 2 ran with different settings, method\.teacher"):
        reporting.report([write(*taught, other, folder="other")])
