"""The figure of methods against the length of their runs, read back from matplotlib's own objects."""

from __future__ import annotations

import pytest
from test_tables import record

from psd.reporting import plots
from psd.reporting.statistics import interval


def run(method: str, seed: int, passes: int, top1: float, forwards: int = 1, **changes):
    """A run of batches of 50 anchors over 1,000 images."""
    steps = passes // (50 * forwards)
    epochs = [{"epoch": k + 1, "steps": 20} for k in range(steps // 20)]
    final = {"top1": top1, "top5": 90.0, "nll": 100 - top1, "ece": 0.1, "overconfidence": 0.1 * seed, "n_test": 2000}
    made = {"epochs": epochs, "image_passes": passes, "final": final, "budget.image_passes": passes}
    return record(method, seed, **{**made, **changes})


def runs(*lengths: int, seeds: int = 3):
    """Patch swap passes two images an anchor, and is `length / 10,000` points and a bit ahead."""
    made = []
    for k, passes in enumerate(lengths):
        for seed in range(seeds):
            made.append(run("cross_entropy", seed, passes, 50 + 10 * k + seed))
            made.append(run("patch_swap", seed, passes, 50 + 10 * k + seed + passes / 1e4 + seed / 10, forwards=2))
    return made


def drawn(ax) -> dict[tuple[float, ...], list[tuple[float, float]]]:
    """Colour -> mean and half interval of every point, of what `errorbar` drew."""
    found = {}
    for container in ax.containers:
        line, _, (bars,) = container.lines
        halves = [(high - low) / 2 for low, high in (segment[:, 1] for segment in bars.get_segments())]
        found[line.get_color()] = list(zip(line.get_ydata(), halves, strict=True))
    return found


BLACK = (0.0, 0.0, 0.0)


def test_each_metric_has_a_panel_and_one_of_differences_below():
    axes = plots.against_compute(runs(50_000, 100_000)).axes
    titles = [ax.get_title() for ax in axes]
    assert titles[:3] == [
        "top-1 (%), higher is better",
        "NLL (nats), lower is better",
        "overconfidence, best near zero",
    ]
    assert titles[3:] == ["minus cross_entropy (points)", "minus cross_entropy (nats)", "minus cross_entropy"]
    assert {ax.get_xscale() for ax in axes} == {"log"} and axes[3].get_xlabel() == "image passes"


def test_a_point_is_the_mean_over_seeds_with_its_t_interval():
    (found,) = [line for colour, line in drawn(plots.against_compute(runs(50_000)).axes[0]).items() if colour == BLACK]
    assert found == [pytest.approx(interval([50.0, 51.0, 52.0]))]


def test_differences_are_paired_by_seed_at_the_same_budget():
    (found,) = drawn(plots.against_compute(runs(50_000, 100_000)).axes[3]).values()
    expected = [interval([5.0, 5.1, 5.2]), interval([10.0, 10.1, 10.2])]
    assert found == [pytest.approx(value) for value in expected]


def test_equal_epochs_compare_a_pair_method_with_runs_of_half_its_passes():
    axes = plots.against_compute(runs(50_000, 100_000), epochs=True).axes
    (found,) = drawn(axes[3]).values()
    # Patch swap's 100,000 passes are 50 epochs, as are 50,000 of cross-entropy: 60 + 10 against 50 points.
    assert found == [pytest.approx(interval([20.0, 20.1, 20.2]))]
    assert axes[3].get_xlabel() == "epochs over the training images"
    assert [round(tick) for tick in axes[3].get_xticks()] == [25, 50, 100]


def test_lengths_that_an_incomplete_last_batch_sets_apart_are_compared():
    swap = [run("patch_swap", seed, 50_000, 60.0 + seed**2) for seed in range(3)]
    for one in swap:  # batches of 48: 20 steps an epoch, too, of 960 images
        one.epochs += [{"epoch": 51, "steps": 20}, {"epoch": 52, "steps": 20}]
    made = [one for one in runs(50_000) if one.method == "cross_entropy"] + swap
    (found,) = drawn(plots.against_compute(made, epochs=True).axes[3]).values()
    assert len(found) == 1


def test_a_marker_is_full_only_where_the_difference_is_apart_from_zero():
    level = [run("mixup", seed, 50_000, 51.0 + (-1) ** seed) for seed in range(3)]
    ax = plots.against_compute([*runs(50_000), *level], metrics=["top1"]).axes[1]
    faces = {
        line.get_color(): line.get_markerfacecolor() for line in ax.lines if line.get_marker() not in ("None", "_")
    }
    assert len(faces) == 2 and [face == "white" for face in faces.values()] == [True, False]  # mixup, patch_swap


def test_more_than_five_differences_need_to_survive_holm():
    lengths = [50_000 * 2**k for k in range(6)]
    text = plots.against_compute(runs(*lengths)).get_supxlabel()
    assert "6 differences tested, Holm's correction" in text
    assert "5 differences tested)" in plots.against_compute(runs(*lengths[:5])).get_supxlabel()


def test_points_of_one_length_stand_a_little_apart():
    names = ("cutmix", "mixup", "label_smoothing", "random_erasing", "cs_kd", "ddgsd", "dlb")
    made = runs(50_000) + [run(name, seed, 50_000, 50.0 + seed) for name in names for seed in range(2)]
    places = [container.lines[0].get_xdata()[0] for container in plots.against_compute(made).axes[0].containers]
    assert len(set(places)) == 9 and min(places) > 50_000 * 0.88 and max(places) < 50_000 * 1.12


def test_the_title_names_the_leader_at_the_longest_common_length():
    title = plots.against_compute(runs(50_000, 100_000)).get_suptitle()
    assert title.startswith("patch_swap is right on 71.1% of the test images, +10.1 ±") and "100,000 image" in title


def test_the_legend_stands_outside_and_names_every_method_once():
    (legend,) = plots.against_compute(runs(50_000)).legends
    assert [text.get_text() for text in legend.get_texts()] == ["cross_entropy", "patch_swap"]


def test_methods_have_colours_and_markers_of_their_own():
    names = ("cutmix", "mixup", "label_smoothing", "random_erasing", "cs_kd", "ddgsd", "dlb", "ps_kd", "tf_kd", "kd")
    made = runs(50_000) + [run(name, seed, 50_000, 50.0 + seed) for name in names for seed in range(2)]
    (legend,) = plots.against_compute(made).legends
    looks = {(line.get_color(), line.get_marker()) for line in legend.get_lines()}
    assert len(looks) == 12


def test_a_single_run_each_stands_without_intervals():
    figure = plots.against_compute(runs(50_000, seeds=1))
    assert figure.get_supxlabel().startswith("One run each, without intervals.")


def test_the_small_print_names_devices_and_revisions_that_mix():
    made = runs(50_000)
    made[0].device, made[1].revision = "NVIDIA H100", "a1b2c3d4" * 5
    text = plots.against_compute(made).get_supxlabel()
    assert "Runs on NVIDIA H100 and cpu; code of revisions a1b2c3d and unknown." in text


def test_other_baselines_can_be_named():
    (found,) = drawn(plots.against_compute(runs(50_000), baseline="patch_swap").axes[3]).values()
    assert found == [pytest.approx(interval([-5.0, -5.1, -5.2]))]


@pytest.mark.parametrize(
    ("records", "options", "words"),
    [
        (runs(50_000), {"metrics": ["mean_iou"]}, "metrics: 'mean_iou' was not measured.*top1"),
        (runs(50_000), {"baseline": "mixup"}, "baseline 'mixup' has no records here; there are cross_entropy, patch"),
        (runs(50_000), {"epochs": True}, "no method has run with the seeds of cross_entropy and as long in epochs"),
        ([], {}, "one data set and model are needed, got none"),
        ([*runs(50_000), run("mixup", 0, 50_000, 50.0, **{"model.name": "resnet14"})], {}, "one data set and model"),
        ([*runs(50_000), run("mixup", 0, 50_000, 50.0, **{"data.flip": True})], {}, "protocols differ: data.flip"),
        (
            [*runs(50_000), run("patch_swap", 0, 99_000, 50.0, **{"method.temperature": 2.0})],
            {},
            "patch_swap: seeds 0 and 0 at 50kpass and 99kpass ran with different settings, method.temperature",
        ),
        ([*runs(50_000), run("mixup", 0, 50_000, 1.0), run("mixup", 0, 51_000, 1.0)], {}, "are of one length"),
    ],
)
def test_what_cannot_be_compared_is_refused(records, options, words):
    with pytest.raises(ValueError, match=words):
        plots.against_compute(records, **options)


def test_a_line_is_of_methods_at_two_lengths_or_more():
    more = [*runs(50_000, 100_000), run("mixup", 0, 100_000, 80.0)]
    found = plots.at_several_lengths(more)
    assert {r.variant for r in found} == {"cross_entropy", "patch_swap"} and len(found) == len(more) - 1
    with pytest.raises(ValueError, match="two lengths"):
        plots.at_several_lengths(runs(50_000))
