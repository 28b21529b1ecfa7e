"""The verdict in RESULTS, and the pages and notebooks that quote it: every figure in them is that of the records."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from psd.reporting.statistics import holm, interval, p_value
from psd.training.records import Record

ROOT = Path(__file__).parent.parent
PHOTOS, FRESH = "cifar100-small-replicates/resnet14/200kpass", "final/cifar100-small-replicates/resnet14/200kpass"
AGAIN = "again/cifar100-small-replicates/resnet14/200kpass"
TEN = (FRESH, AGAIN)
SHORT, MIDDLE = "cifar100-small-replicates/resnet14/50kpass", "cifar100-small-replicates/resnet14/100kpass"
LONG, SEARCH = "cifar100-small-replicates/resnet14/400kpass", "cifar100-small-replicates-fit/resnet14/100kpass"
DRAWN = "tuned/shapes-replicates/resnet8/96kpass"
PRETRAINED = "cifar100-small-per_class{}-size64-replicates/timm-tf_efficientnet_lite0/8kpass"
PATCH8 = "patch_swap-patch8"
NOISY = "cifar100-small-noise0.4-replicates/resnet14/200kpass"
NOISY_SHORT = "cifar100-small-noise0.4-replicates/resnet14/50kpass"
FEW = "cifar100-small-per_class25-replicates/resnet14/200kpass"
MANY = "cifar100-classes10-per_class300-replicates/resnet14/400kpass"

# A text, and the records that it is the figure of: folder or folders, method, and the method it is compared with, in
# points of top-1, if not cross_entropy, with its folder, if another; or the metric that it is the mean of.
DIFFERENCES = [
    ("+3.8 ± 1.9", PHOTOS, "mixup"),
    ("+2.8 ± 0.7", PHOTOS, "cutmix"),
    ("+0.4 ± 2.0", PHOTOS, "patch_swap"),
    ("+0.1 ± 1.6", PHOTOS, "pair_distillation"),
    ("+0.3 ± 0.8", PHOTOS, "patch_swap", "pair_distillation"),
    ("+4.8 ± 2.4", PHOTOS, "patch_swap", "patch_swap-100-anchors"),
    ("4.8 ± 2.4", PHOTOS, "patch_swap", "patch_swap-100-anchors"),
    ("-5.3 ± 3.2", SHORT, "patch_swap"),
    ("+0.2 ± 2.0", SHORT, "mixup"),
    ("-2.1 ± 2.9", MIDDLE, "patch_swap"),
    ("+2.2 ± 1.7", MIDDLE, "mixup"),
    ("+0.9 ± 2.7", LONG, "patch_swap"),
    ("+3.7 ± 0.6", LONG, "mixup"),
    ("+2.3 ± 1.9", LONG, PATCH8),
    ("+1.38 ± 1.42", LONG, PATCH8, "patch_swap"),
    ("+1.4 ± 2.2", LONG, "mixup", PATCH8),
    ("+4.6 ± 1.3", LONG, PATCH8, "cross_entropy", PHOTOS),
    ("+3.4 ± 2.9", DRAWN, "swap_cross_entropy"),
    ("+1.8 ± 1.6", MIDDLE, "patch_swap", "cross_entropy", SHORT),  # equal epochs
    ("+1.7 ± 0.7", PHOTOS, "patch_swap", "cross_entropy", MIDDLE),
    ("+3.2 ± 2.3", LONG, "patch_swap", "cross_entropy", PHOTOS),
    ("+3.4 ± 3.0", FRESH, "mixup"),
    ("+1.7 ± 1.4", FRESH, PATCH8),
    ("+0.4 ± 1.1", FRESH, "patch_swap"),
    ("1.2 ± 1.0", FRESH, f"{PATCH8}-w0.25"),
    ("+1.63 ± 1.63", FRESH, PATCH8, "pair_distillation"),
    ("+1.35 ± 1.43", FRESH, PATCH8, "patch_swap"),
    ("+1.7 ± 3.5", FRESH, "mixup", PATCH8),
    ("+1.5 ± 0.7", TEN, PATCH8),
    ("1.5 ± 0.7", TEN, PATCH8),
    ("+3.7 ± 1.5", TEN, "mixup"),
    ("+2.2 ± 1.8", TEN, "mixup", PATCH8),
    ("+0.75 ± 0.76", TEN, f"{PATCH8}-w0.25"),
    ("-0.7 ± 1.1", TEN, f"{PATCH8}-w0.25", PATCH8),
    ("+1.23 ± 1.23", AGAIN, PATCH8),
    ("+3.9 ± 2.3", AGAIN, "mixup"),
    ("+2.7 ± 2.8", AGAIN, "mixup", PATCH8),
    ("+0.1 ± 1.5", AGAIN, "patch_swap_idea-gap4"),
    ("-0.3 ± 2.0", AGAIN, "patch_swap_idea-gap4", f"{PATCH8}-w0.25"),
    ("-0.6 ± 1.6", FRESH, "patch_swap_idea-ramp0.5", PATCH8),
    ("-5.4 ± 2.3", SEARCH, "patch_swap-p1", "patch_swap"),
    ("5.4 ± 2.3", SEARCH, "patch_swap", "patch_swap-p1"),
    ("+0.9 ± 8.3", SEARCH, "patch_swap_idea-mean", f"{PATCH8}-w0.25"),
    ("+0.2 ± 2.2", SEARCH, "patch_swap_idea-end0.7", f"{PATCH8}-w0.25"),
    ("+1.5 ± 6.1", SEARCH, "patch_swap_idea-gap4", f"{PATCH8}-w0.25"),
    ("-0.8 ± 3.4", SEARCH, "patch_swap_idea-ring", f"{PATCH8}-w0.25"),
    ("-5.6 ± 11.9", SEARCH, "patch_swap_idea-mixup", f"{PATCH8}-w0.25"),
    ("-1.2 ± 5.0", MANY, "patch_swap"),
    ("+1.1 ± 4.8", MANY, "mixup"),
    ("+5.9 ± 5.1", FEW, "mixup"),
    ("+4.6 ± 4.4", FEW, "mixup", "patch_swap"),
    ("+1.35 ± 0.95", FEW, "patch_swap"),
    ("+1.1 ± 3.1", FEW, PATCH8),
    ("+0.9 ± 3.1", FEW, "pair_distillation"),
    ("-2.1 ± 1.6", FEW, "random_erasing"),
    ("+8.1 ± 2.7", NOISY, "patch_swap"),
    ("+7.0 ± 2.9", NOISY, PATCH8),
    ("+5.5 ± 0.9", NOISY, "mixup"),
    ("+0.8 ± 1.3", NOISY, "pair_distillation"),
    ("+1.1 ± 1.4", NOISY, "swap_cross_entropy"),
    ("+2.6 ± 2.8", NOISY, "patch_swap", "mixup"),
    ("+7.3 ± 2.1", NOISY, "patch_swap", "pair_distillation"),
    ("+7.0 ± 2.5", NOISY, "patch_swap", "swap_cross_entropy"),
    ("-1.1 ± 1.5", NOISY, PATCH8, "patch_swap"),
    ("+1.4 ± 3.3", NOISY, "patch_swap", "cross_entropy", NOISY_SHORT),
    ("+0.2 ± 3.0", NOISY, PATCH8, "cross_entropy", NOISY_SHORT),
    ("-1.2 ± 3.8", NOISY, "mixup", "cross_entropy", NOISY_SHORT),
    ("8.1 ± 2.7", NOISY, "patch_swap"),
    ("-5.2 ± 2.7", SHORT, "cross_entropy", "cross_entropy", PHOTOS),
    ("-3.0 ± 0.9", NOISY_SHORT, "patch_swap"),
    ("+6.8 ± 3.8", NOISY_SHORT, "cross_entropy", "cross_entropy", NOISY),
    ("+1.2 ± 2.9", PRETRAINED.format(5), "patch_swap-patch32"),
    ("-3.9 ± 1.3", PRETRAINED.format(20), "patch_swap-patch32"),
    ("-5.6 ± 2.3", PRETRAINED.format(50), "patch_swap-patch32"),
    ("3.9 ± 1.3", PRETRAINED.format(20), "cross_entropy", "patch_swap-patch32"),
    ("7.1 ± 1.3", PRETRAINED.format(50), "cross_entropy", "patch_swap-patch16"),
    ("+2.3 ± 2.3", PRETRAINED.format(20), "patch_swap-patch32", "patch_swap-patch16"),
    ("+4.5 ± 2.5", DRAWN, "patch_swap"),
    ("+3.7 ± 1.9", DRAWN, "random_erasing"),
    ("+2.9 ± 1.9", DRAWN, "mixup"),
    ("+0.8 ± 1.2", DRAWN, "patch_swap", "random_erasing"),
    ("+16.3 ± 4.5", "shapes/resnet8/96kpass", "patch_swap"),
]
NLL_DIFFERENCES = [("-0.052 ± 0.028", PATCH8, "cross_entropy"), ("-0.040 ± 0.051", "mixup", PATCH8)]
MEANS = [
    ("1.17", PHOTOS, "cross_entropy", "nll"),
    ("0.83", PHOTOS, "patch_swap", "nll"),
    ("0.79", PHOTOS, "cross_entropy", "nll_scaled"),
    ("0.78", PHOTOS, "patch_swap", "nll_scaled"),
    ("1.89", FEW, "cross_entropy", "nll"),
    ("1.32", FEW, "cross_entropy", "nll_scaled"),
    ("1.31", FEW, "patch_swap", "nll"),
    ("1.28", FEW, "patch_swap", "nll_scaled"),
    ("0.72", PHOTOS, "mixup", "nll"),
    ("0.69", PHOTOS, "mixup", "nll_scaled"),
    ("0.07", TEN, PATCH8, "ece"),
    ("0.05", TEN, f"{PATCH8}-w0.25", "ece"),
]
DIFFERENCE = re.compile(r"[-+]?\d+\.\d+ ± \d+\.\d+")


@cache
def values(folders: str | tuple[str, ...], method: str, metric: str) -> dict[int, float]:
    """Of each seed."""
    folders = (folders,) if isinstance(folders, str) else folders
    files = [file for folder in folders for file in (ROOT / "results" / folder).glob(f"{method}-s*.json")]
    return {(record := Record.read(file)).seed: record.final[metric] for file in files}


def section(page: str, heading: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert heading in text
    return re.split(r"^#+ ", text.partition(heading)[2], maxsplit=1, flags=re.MULTILINE)[0]


def quotation(notebook: str) -> str:
    """A notebook's verdict: the lines that it quotes."""
    cells = json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    lines = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "markdown").splitlines()
    return "\n".join(line for line in lines if line.startswith(">"))


VERDICT = section("RESULTS.md", "\n## The verdict\n")
QUOTING = {
    "README.md": section("README.md", "\n## When to use it, and when not\n"),
    "docs/when.md": (ROOT / "docs/when.md").read_text(encoding="utf-8"),
    **{name: quotation(name) for name in ("00_start_here.ipynb", "04_training.ipynb", "07_peers.ipynb")},
}


@pytest.mark.parametrize("claim", DIFFERENCES, ids=lambda claim: claim[0])
def test_a_difference_is_that_of_the_records(claim):
    text, folder, method, *rest = claim
    other = rest[0] if rest else "cross_entropy"
    of = rest[1] if len(rest) > 1 else folder
    ours, theirs = values(folder, method, "top1"), values(of, other, "top1")
    assert set(ours) == set(theirs) and len(ours) >= 3
    middle, half = interval([ours[seed] - theirs[seed] for seed in sorted(ours)])
    digits = len(text.rpartition(".")[2])
    sign = "+" if text.startswith(("+", "-")) else ""
    assert f"{middle:{sign}.{digits}f} ± {half:.{digits}f}" == text


def test_the_larger_patches_are_ahead_of_the_smaller_in_all_ten_replicates():
    pairs = [(values(folder, PATCH8, "top1"), values(folder, "patch_swap", "top1")) for folder in (FRESH, LONG)]
    assert sum(larger[seed] > smaller[seed] for larger, smaller in pairs for seed in larger) == 10


def test_the_larger_patches_are_ahead_of_cross_entropy_on_ten_replicates_that_no_choice_saw():
    theirs = values(TEN, "cross_entropy", "top1")
    gains = {}
    for name in ("mixup", PATCH8, f"{PATCH8}-w0.25"):
        ours = values(TEN, name, "top1")
        assert len(ours) == len(theirs) == 10
        gains[name] = [ours[seed] - theirs[seed] for seed in sorted(ours)]
    assert all(gain > 0 for gain in gains[PATCH8])
    adjusted = holm([p_value(one) for one in gains.values()])
    assert [p < 0.05 for p in adjusted] == [True, True, False]
    larger = values(TEN, PATCH8, "top1")
    assert sum(value > larger[seed] for seed, value in values(TEN, "mixup", "top1").items()) == 7


@pytest.mark.parametrize("text, method, other", NLL_DIFFERENCES)
def test_the_nll_with_a_fitted_temperature_is_lower_by_what_is_said(text, method, other):
    ours, theirs = (values(TEN, name, "nll_scaled") for name in (method, other))
    middle, half = interval([ours[seed] - theirs[seed] for seed in sorted(ours)])
    assert f"{middle:.3f} ± {half:.3f}" == text


def test_what_is_learnt_by_heart_of_wrong_labels_is_as_said():
    for folder, method, span in (
        (NOISY, "cross_entropy", "99 to 100 %"),
        (NOISY, "patch_swap", "59 to 65 %"),
        (NOISY, PATCH8, "70 to 73 %"),
        (NOISY_SHORT, "cross_entropy", "47 to 56 %"),
    ):
        runs = [Record.read(file) for file in (ROOT / "results" / folder).glob(f"{method}-s[0-9].json")]
        assert len(runs) == 5
        agreed = [run.epochs[-1]["train_top1"] for run in runs]
        assert f"{min(agreed):.0f} to {max(agreed):.0f} %" == span
        assert span in section("RESULTS.md", "\n## Photographs with wrong labels\n")


def test_half_the_training_is_too_short_for_patch_swap_on_drawn_images():
    folder = "shapes-replicates-fit/resnet8/48kpass"
    assert values(folder, "cross_entropy-16-lr0.1", "top1") == pytest.approx({100: 92.5})
    runs = [Record.read(file) for file in (ROOT / "results" / folder).glob("patch_swap*.json")]
    assert len(runs) == 8 and max(run.final["top1"] for run in runs) < 40


@pytest.mark.parametrize("claim", MEANS, ids=lambda claim: claim[0])
def test_a_mean_is_that_of_the_records(claim):
    text, *where = claim
    found = values(*where)
    assert len(found) >= 5 and f"{fmean(found.values()):.2f}" == text


def test_the_verdict_has_at_most_twelve_lines_each_with_a_figure():
    lines = re.findall(r"^\d+\. .*?(?=^\d+\. |\Z)", VERDICT, re.MULTILINE | re.DOTALL)
    assert 6 <= len(lines) <= 12
    assert all(re.search(r"\d\.\d", line) for line in lines)


def test_the_verdict_s_figures_are_those_above():
    known = {claim[0] for claim in (*DIFFERENCES, *NLL_DIFFERENCES, *MEANS)}
    differences = set(DIFFERENCE.findall(VERDICT))
    assert differences <= known
    settings = {"0.5", "0.25", "0.03", "0.1", "92.5"}
    assert set(re.findall(r"\d+\.\d+", DIFFERENCE.sub("", VERDICT))) <= known | settings


def test_the_cost_of_the_photographs_is_that_of_their_records():
    runs = [Record.read(file) for file in (ROOT / "results").rglob("cifar100-*replicates*/**/*.json")]
    hours = {gpu: sum(run.seconds for run in runs if ("NVIDIA" in run.device) is gpu) / 3600 for gpu in (False, True)}
    said = f"{hours[False]:.0f} hours of a CPU, one thread a run, and {hours[True]:.0f} hours of one H100"
    assert f"{len(runs)} runs on replicates, the search included: {said}" in VERDICT


@pytest.mark.parametrize("page", QUOTING)
def test_what_quotes_the_verdict_has_figures_of_the_records(page):
    found = set(DIFFERENCE.findall(QUOTING[page]))
    assert len(found) > 5
    assert found <= {claim[0] for claim in (*DIFFERENCES, *NLL_DIFFERENCES)}


GAPS = [json.loads(line) for line in (ROOT / "results/benchmarks/gap.jsonl").read_text(encoding="utf-8").splitlines()]


def gaps(on: str, method: str, share: str, kind: str) -> list[float]:
    """Of each replicate."""
    return [one["at"][share][kind]["gap"] for one in GAPS if (one["on"], one["method"]) == (on, method)]


def spread(found: list[float]) -> str:
    return f"{fmean(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def test_the_gaps_are_those_of_the_record():
    text = section("RESULTS.md", "\n## The gap of a pair, before and after the swap\n")
    rows = re.findall(r"^\| (photographs|drawn) \| (\w+) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    right = []
    for what, method, cells in rows:
        on = {"drawn": "shapes"}.get(what, what)
        mine = [one["at"]["1.0"] for one in GAPS if (one["on"], one["method"]) == (on, method)]
        assert len(mine) == 3
        right.append(f"{fmean(one['top1'] for one in mine):.1f}")
        kinds = [kind for kind in ("whole", "2", "4", "8", "16") if kind in mine[0]]
        assert cells.replace("|  |", "|").split(" | ") == [spread(gaps(on, method, "1.0", kind)) for kind in kinds]
    assert "{}, {}, {} and {} %".format(*right) in text
    every = [look for one in GAPS for at in one["at"].values() for kind, look in at.items() if kind != "top1"]
    shares = [look["to_less_sure"] for look in every]
    assert f"{min(shares):.2f} to {max(shares):.2f}".replace("0.", ".") in text
    asked = (("photographs", "patch_swap", "4"), ("shapes", "patch_swap", "16"))
    for on, method, kind in (*asked, *((on, "cross_entropy", "whole") for on in ("photographs", "shapes"))):
        mine = [one["correlation"][kind] for one in GAPS if (one["on"], one["method"]) == (on, method)]
        assert spread(mine).replace("0.", ".") in text


@pytest.mark.parametrize(
    "text, where",
    [
        ("from .36 to .25 for networks", ("photographs", "cross_entropy", "1.0", "4")),
        ("from .31 to .14 for networks", ("photographs", "patch_swap", "1.0", "4")),
        ("from .36 to .25 (cross-entropy)", ("photographs", "cross_entropy", "1.0", "4")),
        ("from .31 to .14 (patch swap)", ("photographs", "patch_swap", "1.0", "4")),
        ("from .16 to .30", ("shapes", "cross_entropy", "1.0", "8")),
        ("from .12 to .19", ("shapes", "patch_swap", "1.0", "8")),
        ("(.08 to .06)", ("shapes", "cross_entropy", "0.05", "8")),
        ("(.18 to .31)", ("shapes", "cross_entropy", "0.5", "8")),
    ],
)
def test_the_gaps_in_a_notebook_are_those_of_the_record(text, where):
    *network, size = where
    before, after = (fmean(gaps(*network, kind)) for kind in ("whole", size))
    assert f"{before:.2f} to {after:.2f}".replace("0.", ".") in text
    notebooks = [ROOT / "notebooks" / f"{name}.ipynb" for name in ("00_start_here", "05_why_it_works")]
    cells = [cell for file in notebooks for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]]
    assert any(text in "".join(cell["source"]) for cell in cells)


def test_the_swap_narrows_the_gap_of_photographs_and_small_patches_widen_that_of_drawings():
    def change(on: str, method: str, size: str) -> list[float]:
        whole, swapped = (gaps(on, method, "1.0", kind) for kind in ("whole", size))
        return [b - a for a, b in zip(whole, swapped, strict=True)]

    for method in ("cross_entropy", "patch_swap"):
        assert all(value < 0 for size in ("2", "4", "8", "16") for value in change("photographs", method, size))
        assert all(value > 0 for value in change("shapes", method, "8"))
