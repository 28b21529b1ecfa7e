"""Figures: what they draw and what their titles claim, read back from matplotlib's own objects."""

from __future__ import annotations

import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from test_tables import record, seeds, segmented, spread_rows

from psd.reporting import plots


def finished(method: str = "cross_entropy", seed: int = 0, top1: float = 50.0, **changes):
    epochs = [{"epoch": k + 1, "steps": 10, "cross_entropy": 2.0 / (k + 1)} for k in range(3)]
    return record(method, seed, top1, epochs=epochs, image_passes=3000, **changes)


RECORDS = [finished(seed=s, top1=50.0 + s) for s in (0, 1)] + [finished("patch_swap", s, 55.0 + 2 * s) for s in (0, 1)]


def test_the_title_names_the_best_method_and_its_paired_margin():
    assert plots.finding(plots.by_method(RECORDS)).startswith("patch_swap is right on 56.0% of the test images, +5.5 ±")


def test_the_title_says_so_where_nothing_is_above_the_baseline():
    rows = plots.by_method([finished(), finished("patch_swap", top1=49.0)])
    assert plots.finding(rows) == "No method is above cross_entropy, which is right on 50.0% of the test images"


def test_a_single_seed_has_a_margin_without_an_interval():
    rows = plots.by_method([finished(), finished("patch_swap", top1=51.5)])
    assert plots.finding(rows).endswith("+1.5 points over cross_entropy")


def test_a_method_alone_has_no_margin():
    assert plots.finding(plots.by_method(RECORDS[2:])) == "patch_swap is right on 56.0% of the test images"


def test_a_comparison_draws_a_loss_curve_for_every_run_over_its_image_passes():
    loss = plots.comparison(RECORDS).axes[0]
    assert len(loss.lines) == 4
    assert loss.lines[0].get_xdata() == pytest.approx([1000, 2000, 3000])
    assert loss.lines[0].get_ydata() == pytest.approx([2.0, 1.0, 2 / 3])


def test_a_comparison_draws_every_seed_and_the_mean():
    accuracy = plots.comparison(RECORDS).axes[1]
    drawn = [list(line.get_xdata()) for line in accuracy.lines]
    assert [50.0, 51.0] in drawn and [50.5] in drawn and [55.0, 57.0] in drawn and [56.0] in drawn


def test_every_axis_of_a_comparison_has_a_label():
    assert all(ax.get_xlabel() for ax in plots.comparison(RECORDS).axes)
    assert "nats" in plots.comparison(RECORDS).axes[0].get_ylabel()


def test_records_of_two_tables_are_refused():
    with pytest.raises(ValueError, match="one data set, model and budget"):
        plots.comparison([*RECORDS, finished(**{"model.name": "resnet14"})])


def test_no_records_are_refused():
    with pytest.raises(ValueError, match="got none"):
        plots.comparison([])


def test_a_forest_has_the_differences_to_cross_entropy_from_the_best_down():
    made = [finished("cross_entropy", seed, top1=50 + seed) for seed in range(3)]
    made += [finished("cutmix", seed, top1=49 + seed + 0.1 * seed) for seed in range(3)]
    made += [finished("patch_swap", seed, top1=53 + seed + 0.1 * seed) for seed in range(3)]
    figure = plots.forest(made)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["patch_swap", "cutmix"]
    assert list(ax.lines[0].get_xdata()) == pytest.approx([3.0, 3.1, 3.2])
    assert "1 of 2 methods are above cross_entropy" in figure.get_suptitle()


def test_a_forest_may_compare_with_another_method_than_cross_entropy():
    made = [finished("cross_entropy", seed, top1=50 + seed) for seed in range(2)]
    made += [finished("patch_swap", seed, top1=53 + seed) for seed in range(2)]
    figure = plots.forest(made, other="patch_swap")
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cross_entropy"]
    assert list(ax.lines[0].get_xdata()) == pytest.approx([-3.0, -3.0])
    assert "above patch_swap" in ax.get_xlabel() and "0 of 1 methods are above patch_swap" in figure.get_suptitle()


def test_a_forest_without_anything_to_compare_is_refused():
    with pytest.raises(ValueError, match="cross_entropy and of another method"):
        plots.forest([finished("patch_swap")])
    with pytest.raises(ValueError, match="one data set, model and budget"):
        plots.forest([*RECORDS, finished(**{"model.name": "resnet14"})])


def colours(figure) -> dict[str, str]:
    """What each row of a forest is drawn in."""
    (ax,) = figure.axes
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    return {text.get_text(): line.get_color() for text, line in zip(ax.get_yticklabels(), dots, strict=True)}


def test_a_forest_of_five_rows_colours_those_whose_interval_does_not_hold_zero():
    figure = plots.forest([*spread_rows(4), *seeds("mixup", 51, 60, 69)])
    assert [name for name, colour in colours(figure).items() if colour == "gray"] == ["mixup"]
    assert figure.get_supxlabel() == "Gray: not apart from zero (5 rows tested)."
    assert figure.get_suptitle().startswith("4 of 5 methods are above cross_entropy with a difference apart from zero")


def test_a_forest_s_words_fit_into_its_width():
    figure = plots.forest([*spread_rows(5), *seeds("patch_swap_label_smoothing", 80, 90.1, 100)])
    figure.draw_without_rendering()
    ends = [text.get_window_extent() for text in (figure.axes[0].xaxis.label, figure._supxlabel, figure._suptitle)]
    assert min(end.x0 for end in ends) >= 0 and max(end.x1 for end in ends) <= figure.bbox.x1


def test_a_forest_of_more_rows_colours_what_survives_holm():
    figure = plots.forest([*spread_rows(5), *seeds("mixup", 80, 90.1, 100)])
    assert [name for name, colour in colours(figure).items() if colour != "gray"] == ["mixup"]
    assert "(6 rows tested, Holm's correction at 5% over all)" in figure.get_supxlabel()
    assert figure.get_suptitle().startswith("1 of 6 methods")


def test_figures_that_mix_devices_say_so_below():
    made = [finished(), finished("patch_swap", device="NVIDIA H100")]
    assert plots.comparison(made).get_supxlabel() == "Runs on NVIDIA H100 and cpu."
    assert plots.forest(made).get_supxlabel().endswith("\nRuns on NVIDIA H100 and cpu.")
    assert plots.comparison(RECORDS).get_supxlabel() == ""


def segmentation() -> list:
    epochs = [{"epoch": k + 1, "steps": 10, "loss": 2.0} for k in range(3)]
    ious = {"cross_entropy": (60, 61, 62), "patch_swap": (62, 63.1, 64.2)}
    return [segmented(name, s, ious[name][s], epochs=epochs, image_passes=3000) for name in ious for s in range(3)]


def test_a_comparison_of_another_task_shows_its_first_two_metrics():
    figure = plots.comparison(segmentation())
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels[1:] == ["test mean IoU (%), higher is better", "test boundary error (px), lower is better"]
    assert figure.axes[0].get_ylabel() == "training loss"
    assert figure.get_suptitle().startswith("patch_swap has mean IoU 63.1 %, +2.1 ±")


def test_other_figures_of_another_task_show_its_metrics():
    assert plots.forest(segmentation()).axes[0].get_xlabel().startswith("points of mean IoU above cross_entropy")
    top, below = plots.against_compute(segmentation(), metrics=["boundary"]).axes
    assert (top.get_title(), below.get_title()) == ("boundary error (px), lower is better", "minus cross_entropy (px)")


def test_where_lower_is_better_the_lowest_leads():
    nll = [{"name": "nll", "title": "NLL", "unit": "nats", "better": "lower", "digits": 2}]
    made = [finished(metrics=nll), finished("mixup", metrics=nll)]
    made[1].final = {**made[1].final, "nll": 1.25}
    assert plots.finding(plots.by_method(made)) == "mixup has NLL 1.25 nats, -0.25 nats against cross_entropy"
    assert plots.forest(made).axes[0].get_xlabel().startswith("NLL (nats) minus that of cross_entropy")


def test_an_image_grid_shows_the_pixels_and_the_mask():
    image, mask = torch.randint(256, (3, 8, 8), dtype=torch.uint8), torch.eye(2, dtype=torch.bool)
    figure = plots.image_grid([[image, mask]], ["row"], ["left", "right"], title="A finding")
    shown = [ax.images[0].get_array() for ax in figure.axes]
    assert (shown[0] == image.permute(1, 2, 0).numpy()).all() and (shown[1] == mask.numpy()).all()
    assert figure.axes[0].get_ylabel() == "row" and figure.axes[1].get_title() == "right"
    assert figure.get_suptitle() == "A finding"


def test_a_patch_size_draws_the_lines_between_the_patches():
    figure = plots.image_grid([[torch.zeros(3, 8, 8)]], patch_size=2)
    assert len(figure.axes[0].lines) == 3 + 3


def test_rows_may_differ_in_length():
    figure = plots.image_grid([[torch.zeros(3, 4, 4)], [torch.zeros(3, 4, 4)] * 2])
    assert [len(ax.images) for ax in figure.axes] == [1, 0, 1, 1]


def test_figures_leave_nothing_open():
    plots.comparison(RECORDS)
    plots.image_grid([[torch.zeros(3, 4, 4)]])
    assert not pyplot.get_fignums()


def test_save_writes_a_picture_whole(tmp_path):
    plots.save(plots.comparison(RECORDS), tmp_path / "new" / "figure.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]
    with Image.open(tmp_path / "new" / "figure.png") as image:
        assert image.width > 1000


def test_colours_are_as_many_as_asked_for_and_differ():
    assert len(set(plots.palette(8))) == 8
