"""Figures: what `psd compare` saves, and what several notebooks draw.

Every function returns a matplotlib Figure that belongs to nobody, so that nothing is left open; a notebook shows it
by naming it in a cell's last line. Colours are seaborn's "colorblind".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from psd.checks import Refused, did_you_mean
from psd.reporting.images import image_grid, show_image
from psd.reporting.selection import (
    BASELINE,
    by_method,
    curves,
    differences,
    heading,
    near,
    primary,
    provenance,
    unit,
    values,
)
from psd.reporting.selection import metrics as measured_by
from psd.reporting.statistics import apart, how_tested, interval
from psd.tasks import Metric
from psd.training.records import Record

# All figures stand here: those of records, which follow, and those of images.
__all__ = ["against_compute", "comparison", "finding", "forest", "image_grid", "palette", "save", "show_image"]

Colour = tuple[float, float, float]

LEGEND = 8  # methods of a figure whose loss curves can be told apart by a legend; of more, the colours of the dots tell
DOTS = ("top1", "ece")  # what `comparison` shows where it was measured; of other tasks, the first two metrics
MARKERS = "osD^vP*X<>h"  # as many as share no factor with the colours, so that both together repeat late
AHEAD = {"higher": "above", "lower": "below", "zero": "nearer zero than"}
BELOW = 7.5  # points, of the small print under a figure


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write a figure whole or not at all; the format is that of the path's ending."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    figure.savefig(temporary, dpi=dpi)
    temporary.replace(path)


def comparison(records: Sequence[Record]) -> Figure:
    """What the methods of one table did: training loss on the left, then what they reach on test images.

    Args:
        records: of one data set, model and budget, in the order in which their methods shall stand.

    Raises:
        ValueError: no records, or records of several tables.
    """
    _check_one_table(records)
    rows, found = by_method(records), measured_by(records)
    shown = [found[name] for name in DOTS if name in found] or list(found.values())[:2]
    colours = dict(zip(rows, palette(len(rows)), strict=True))
    figure = Figure(figsize=(11, 3.4 + 0.25 * max(0, len(rows) - 4)), layout="constrained")
    loss, *dots = figure.subplots(1, 1 + len(shown), width_ratios=[1.3] + [1] * len(shown))
    term = "cross_entropy" if all("cross_entropy" in entry for r in records for entry in r.epochs) else "loss"
    for name, row in rows.items():
        _loss_curve(loss, name, row, term, colours[name])
    label = "training cross-entropy (nats)" if term == "cross_entropy" else "training loss"
    loss.set(xlabel="image passes", ylabel=label, yscale="log")
    if len(rows) <= LEGEND:
        loss.legend(fontsize="small", framealpha=0.85)
    loss.grid(alpha=0.3)
    for k, (ax, metric) in enumerate(zip(dots, shown, strict=True)):
        _dots(ax, rows, metric, colours)
        ax.set_xlabel(f"test {_label(metric)}, {_direction(metric)}")
        if metric.better == "lower":
            ax.set_xlim(left=0)
        if k:
            ax.set_yticklabels([])
    figure.suptitle(f"{finding(rows)}\n{heading(records[0]).strip('*')}", fontsize="medium")
    _small_print(figure, provenance(records))
    return figure


def forest(records: Sequence[Record], other: str = BASELINE) -> Figure:
    """Each method's difference in the first metric to `other`, paired by seed, with its 95% interval, the best on top.

    Coloured are those apart from zero, of more than five those that survive Holm's correction.

    Args:
        records: of one data set, model and budget, those of `other` among them.
        other: the method, with its variant, that the rest is compared with: cross-entropy if not named.

    Raises:
        ValueError: no records, records of several tables, no method that shares a seed with `other`.
    """
    _check_one_table(records)
    rows = by_method(records)
    metric = primary(rows)
    found = {name: differences(rows, name, other) for name in rows if name != other}
    found = {name: numbers for name, numbers in found.items() if numbers}
    if not found:
        raise Refused(f"records of {other} and of another method with the same seeds are needed")
    sign = -1 if metric.better == "lower" else 1
    found = dict(sorted(found.items(), key=lambda item: -sign * interval(item[1])[0]))
    tested = apart(found)
    figure = Figure(figsize=(7.5, 1.5 + 0.3 * len(found)), layout="constrained")
    ax = figure.subplots()
    better, worse = palette(4)[0], palette(4)[3]
    clear = 0
    for y, (name, numbers) in enumerate(found.items()):
        middle, half = interval(numbers)
        is_better = sign * middle > 0
        clear += tested.get(name, False) and is_better
        colour = "gray" if not tested.get(name) else better if is_better else worse
        ax.plot(numbers, [y] * len(numbers), "o", color=colour, alpha=0.4, markersize=4)
        ax.errorbar(middle, y, xerr=half, fmt="D", color=colour, capsize=3, markersize=6)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(found)), list(found))
    ax.set_ylim(len(found) - 0.5, -0.5)
    above = "below" if sign < 0 else "above"
    ax.set_xlabel(
        f"{_label(metric, difference=True)} {above if metric.unit == '%' else 'minus that of'} {other}, "
        f"mean and 95% interval over seeds\n(gray: not apart from zero; {how_tested(len(tested))})"
    )
    ax.grid(axis="x", alpha=0.3)
    many = f"{clear} of {len(found)} methods are {above} {other} with a difference apart from zero"
    figure.suptitle(f"{many}\n{heading(records[0]).strip('*')}", fontsize="medium")
    _small_print(figure, provenance(records))
    return figure


def against_compute(
    records: Sequence[Record],
    metrics: Sequence[str] = ("top1", "nll", "overconfidence"),
    baseline: str = BASELINE,
    *,
    epochs: bool = False,
) -> Figure:
    """A line for each method over the length of its runs, and below it the paired differences to `baseline`.

    Points are means over seeds or replicates after the last epoch of runs of that length, with their 95% t-intervals;
    they stand a little apart where methods were run equally long. Differences are paired by seed at equal length; full
    markers are apart from zero, of more than five differences in a panel those that survive Holm's correction.

    Args:
        records: of one data set and model, at one budget or several.
        metrics: names of what is shown, a column of two panels each.
        baseline: the method, with its variant, that the others are compared with.
        epochs: equal epochs over the training images instead of equal image passes, read off the same runs.

    Raises:
        ValueError: records that cannot be compared, a metric that was not measured, no method that has run with the
            baseline's seeds and as long.
    """
    lines = curves(records, epochs)
    found = measured_by(records)
    for name in metrics:
        if name not in found:
            hint = did_you_mean(name, found) or ";"
            raise Refused(f"metrics: {name!r} was not measured{hint} there are {', '.join(found)}")
    if baseline not in lines:
        raise Refused(f"baseline {baseline!r} has no records here; there are {', '.join(lines)}")
    common = [x for x in lines[baseline] if len(_rows_at(lines, x, baseline)) > 1]
    if not common:
        unit_ = "epochs" if epochs else "image passes"
        raise Refused(f"no method has run with the seeds of {baseline} and as long in {unit_}")

    others = [name for name in lines if name != baseline]
    looks = {baseline: ((0.0, 0.0, 0.0), MARKERS[0])}
    for k, (name, colour) in enumerate(zip(others, palette(len(others)), strict=True), start=1):
        looks[name] = colour, MARKERS[k % len(MARKERS)]
    aside = {name: 1.02 ** (k - (len(lines) - 1) / 2) for k, name in enumerate(looks)}  # so that intervals are seen
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, len(metrics), sharex=True, squeeze=False, height_ratios=[1.3, 1])
    counts = set()
    for (top, below), metric in zip(panels.T, (found[name] for name in metrics), strict=True):
        for name, look in looks.items():
            points = {x * aside[name]: values(row, metric) for x, row in lines[name].items()}
            _line(top, points, look, dict.fromkeys(points, True), name)
        paired: dict[tuple[str, float], list[float]] = {}
        for x in common:
            rows = _rows_at(lines, x, baseline)
            paired |= {(name, x): differences(rows, name, baseline, metric) for name in rows if name != baseline}
        tested = apart(paired)
        counts.add(len(tested))
        for name in others:
            points = {x * aside[name]: numbers for (method, x), numbers in paired.items() if method == name}
            full = {x * aside[name]: is_apart for (method, x), is_apart in tested.items() if method == name}
            _line(below, points, looks[name], full)
        below.axhline(0, color="black", linewidth=0.8)
        if metric.better == "zero":
            top.axhline(0, color="black", linewidth=0.8)
        top.set_title(f"{_label(metric)}, {_direction(metric)}", fontsize="medium")
        below.set_title(f"{_label(metric, difference=True)}, minus {baseline}", fontsize="medium")
        below.set_xlabel("epochs over the training images" if epochs else "image passes")
        for ax in (top, below):
            _length_axis(ax, sorted({x for points in lines.values() for x in points}))
            ax.grid(alpha=0.3)
    last = _rows_at(lines, common[-1], baseline)
    length = f"{common[-1]:,g} epochs" if epochs else f"{common[-1]:,.0f} image passes"
    figure.suptitle(f"{finding(last, baseline)}\n{records[0].data}, {records[0].model}, {length}", fontsize="medium")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    runs = "replicates" if records[0].config["data"].get("replicate") else "seeds"
    number = len({record.seed for record in records})
    said = [f"Mean and 95% t-interval over {number} {runs}, differences paired."]
    said += [
        f"Full markers below: apart from zero ({' / '.join(how_tested(n, 'difference') for n in sorted(counts))})."
    ]
    said += ["Equal epochs: methods with two images an anchor take twice the image passes."] * epochs
    _small_print(figure, "\n".join([" ".join(said[:2]), *said[2:], provenance(records)]).strip())
    return figure


def finding(rows: dict[str, list[Record]], baseline: str = BASELINE) -> str:
    """The figure's title: what stands out in the first metric, computed from the records."""
    metric = primary(rows)
    sign = {"higher": -1, "lower": 1, "zero": 0}[metric.better]
    middles = {name: interval(numbers)[0] for name, row in rows.items() if (numbers := values(row, metric))}
    leader = min(middles, key=lambda name: sign * middles[name] or abs(middles[name]))
    reached = f"has {metric.title} {middles[leader]:.{metric.digits}f} {metric.unit}".strip()
    if metric.name == "top1":
        reached = f"is right on {middles[leader]:.1f}% of the test images"
    if baseline not in rows or len(rows) == 1:
        return f"{leader} {reached}"
    if leader == baseline:
        return f"No method is {AHEAD[metric.better]} {baseline}, which {reached}"
    paired = differences(rows, leader, baseline)
    if not paired:
        return f"{leader} {reached}"
    middle, half = interval(paired)
    digits = 1 if metric.unit == "%" else metric.digits
    over = "over" if metric.better == "higher" else "against"
    margin = f"{middle:+.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")
    return f"{leader} {reached}, {margin} {unit(metric, difference=True)}".rstrip() + f" {over} {baseline}"


def palette(n: int) -> list[Colour]:
    """n colours that survive colour-blindness."""
    import seaborn

    return list(seaborn.color_palette("colorblind", n))


def _check_one_table(records: Sequence[Record]) -> None:
    if len({(r.data, r.model, r.budget) for r in records}) != 1:
        names = sorted({f"{r.data}/{r.model}/{r.budget}" for r in records})
        raise Refused(f"records of one data set, model and budget are needed, got {', '.join(names) or 'none'}")


def _label(metric: Metric, difference: bool = False) -> str:
    if difference and metric.unit == "%":
        return f"points of {metric.title}"
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _direction(metric: Metric) -> str:
    return "best near zero" if metric.better == "zero" else f"{metric.better} is better"


def _small_print(figure: Figure, text: str) -> None:
    if text:
        figure.supxlabel(text, fontsize=BELOW, x=0.01, ha="left")


def _loss_curve(ax: Axes, name: str, row: Sequence[Record], term: str, colour: Colour) -> None:
    for k, record in enumerate(row):
        steps = torch.tensor([entry["steps"] for entry in record.epochs]).cumsum(0)
        passes = (steps * record.image_passes / steps[-1]).tolist()
        losses = [max(entry[term], 1e-4) for entry in record.epochs]  # 0 has no place on a log axis
        ax.plot(passes, losses, color=colour, linewidth=1, label=None if k else name)


def _dots(ax: Axes, rows: dict[str, list[Record]], metric: Metric, colours: dict[str, Colour]) -> None:
    """A point for every seed, and the mean with its 95% interval."""
    for y, (name, row) in enumerate(rows.items()):
        numbers = values(row, metric)
        if numbers:
            middle, half = interval(numbers)
            ax.plot(numbers, [y] * len(numbers), "o", color=colours[name], alpha=0.5, markersize=5)
            ax.errorbar(middle, y, xerr=half, fmt="D", color=colours[name], capsize=4, markersize=7)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.margins(x=0.1)
    ax.grid(axis="x", alpha=0.3)


def _rows_at(lines: dict[str, dict[float, list[Record]]], x: float, baseline: str) -> dict[str, list[Record]]:
    """The records of runs of one length, of the methods that share a seed with the baseline there, which is first."""
    theirs = lines[baseline][x]
    seeds = {record.seed for record in theirs}
    rows = {baseline: theirs}
    for name, points in lines.items():
        found = near(points, x)
        if name != baseline and found is not None and seeds & {record.seed for record in points[found]}:
            rows[name] = points[found]
    return rows


def _line(
    ax: Axes, points: dict[float, list[float]], look: tuple[Colour, str], full: dict[float, bool], label: str = ""
) -> None:
    """Means with their intervals; the markers of those that are not `full` are hollow."""
    colour, marker = look
    points = {x: numbers for x, numbers in points.items() if numbers}
    found = {x: interval(numbers) for x, numbers in points.items()}
    halves = [float("nan") if half is None else half for _, half in found.values()]
    middles = [middle for middle, _ in found.values()]
    ax.errorbar(list(found), middles, yerr=halves, color=colour, capsize=2.5, linewidth=1.3, elinewidth=1, alpha=0.8)
    for x, (middle, _) in found.items():
        face = colour if full.get(x) else "white"
        ax.plot(x, middle, marker, color=colour, markerfacecolor=face, markersize=6)
    if label:
        ax.plot([], [], marker=marker, color=colour, linewidth=1.3, markersize=6, label=label)


def _length_axis(ax: Axes, lengths: Iterable[float]) -> None:
    """A log axis that names the lengths of the runs."""
    ticks: list[float] = []
    for x in lengths:
        if near(ticks, x) is None:
            ticks.append(x)
    ax.set_xscale("log")
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_locator(NullLocator())
