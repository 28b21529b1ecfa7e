"""The figure of methods against the length of their runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from psd.checks import Refused, did_you_mean
from psd.reporting.selection import BASELINE, curves, differences, near, provenance, repeats, unit, values
from psd.reporting.selection import metrics as measured_by
from psd.reporting.statistics import apart, how_tested, interval
from psd.reporting.style import Colour, direction, finding, in_figure, label, palette, small_print
from psd.tasks import Metric
from psd.training.records import Record

MARKERS = "osD^vP*X<>h"  # as many as share no factor with the colours, so that both together repeat late
Curves = dict[str, dict[float, list[Record]]]  # method -> length of its runs -> records


class Look(NamedTuple):
    """Of a method's line: `aside` is the factor by which its points stand beside their place on a log axis."""

    colour: Colour
    marker: str
    aside: float


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
            hint = did_you_mean(name, found) or "."
            raise Refused(f"metrics: {name!r} was not measured{hint} Measured: {', '.join(found)}")
    if baseline not in lines:
        raise Refused(f"baseline {baseline!r} has no records here; there are {', '.join(lines)}")
    shared = {x: rows for x in lines[baseline] if len(rows := _rows_at(lines, x, baseline)) > 1}
    if not shared:
        as_long = "epochs" if epochs else "image passes"
        raise Refused(f"no method has run with the seeds of {baseline} and as long in {as_long}; give more records")

    looks = _looks(lines, baseline)
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, len(metrics), sharex=True, squeeze=False, height_ratios=[1.3, 1])
    shown = [found[name] for name in metrics]
    tested = {
        _over_length(top, below, metric, lines, shared, looks)
        for (top, below), metric in zip(panels.T, shown, strict=True)
    }
    for ax in panels[1]:
        ax.set_xlabel("epochs over the training images" if epochs else "image passes")
    longest = max(shared)
    where = f"{longest:,g} epochs" if epochs else f"{longest:,.0f} image passes"
    title = finding(shared[longest], baseline)
    figure.suptitle(in_figure(f"{title}\n{records[0].data}, {records[0].model}, {where}"), fontsize="medium")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")

    runs = repeats(records)
    sizes = sorted({len(row) for points in lines.values() for row in points.values()})
    number = " to ".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
    said = f"Mean and 95% t-interval over {number} {runs}, differences paired. "
    said += f"Full markers below: apart from zero ({' / '.join(how_tested(n, 'difference') for n in sorted(tested))})."
    if sizes[-1] == 1:
        said = "One run each, without intervals."
    said += "\nEqual epochs: methods with two images an anchor take twice the image passes." * epochs
    small_print(figure, f"{said}\n{provenance(records)}".strip())
    return figure


def at_several_lengths(records: Sequence[Record]) -> list[Record]:
    """The records of methods that have run at two lengths or more, in image passes: those that make a line.

    ValueError as in `against_compute`, and where no method has.
    """
    rows = [
        [record for row in points.values() for record in row] for points in curves(records).values() if len(points) > 1
    ]
    if not rows:
        raise Refused("no method has run at two lengths in image passes; give records of several budgets")
    return [record for row in rows for record in row]


def _rows_at(lines: Curves, x: float, baseline: str) -> dict[str, list[Record]]:
    """The records of runs of one length, of the methods that share a seed with the baseline there, which is first."""
    theirs = lines[baseline][x]
    seeds = {record.seed for record in theirs}
    rows = {baseline: theirs}
    for name, points in lines.items():
        found = near(points, x)
        if name != baseline and found is not None and seeds & {record.seed for record in points[found]}:
            rows[name] = points[found]
    return rows


def _looks(lines: Curves, baseline: str) -> dict[str, Look]:
    """Of each method, the baseline first in black, then those with the most points in the clearest colours."""
    others = sorted((name for name in lines if name != baseline), key=lambda name: -len(lines[name]))
    step = min(1.025, 1.4 ** (1 / len(others)))  # of the shift aside, so that intervals do not hide each other
    looks = {baseline: Look((0.0, 0.0, 0.0), MARKERS[0], step ** (-len(others) / 2))}
    for k, (name, colour) in enumerate(zip(others, palette(len(others)), strict=True), start=1):
        looks[name] = Look(colour, MARKERS[k % len(MARKERS)], step ** (k - len(others) / 2))
    return looks


def _over_length(
    top: Axes,
    below: Axes,
    metric: Metric,
    lines: Curves,
    shared: dict[float, dict[str, list[Record]]],
    looks: dict[str, Look],
) -> int:
    """A metric, and its differences to the first of `looks`; the number of differences that were tested."""
    baseline, *others = looks
    for name, look in looks.items():
        points = {x: values(row, metric) for x, row in lines[name].items()}
        _line(top, points, look, dict.fromkeys(points, True), name)
    pairs = [(name, x) for name in others for x, rows in shared.items() if name in rows]
    paired = {(name, x): differences(shared[x], name, baseline, metric) for name, x in pairs}
    tested = apart(paired)
    for name in others:
        points = {x: numbers for (method, x), numbers in paired.items() if method == name}
        _line(below, points, looks[name], {x: is_apart for (method, x), is_apart in tested.items() if method == name})
    below.axhline(0, color="black", linewidth=0.8)
    if metric.better == "zero":
        top.axhline(0, color="black", linewidth=0.8)
    counted = unit(metric, difference=True)
    top.set_title(in_figure(f"{label(metric)}, {direction(metric)}"), fontsize="medium")
    below.set_title(in_figure(f"minus {baseline}" + (f" ({counted})" if counted else "")), fontsize="medium")
    for ax in (top, below):
        _length_axis(ax, sorted({x for points in lines.values() for x in points}))
        ax.grid(alpha=0.3)
    return len(tested)


def _line(ax: Axes, points: dict[float, list[float]], look: Look, full: dict[float, bool], name: str = "") -> None:
    """Means with their intervals; the markers of those that are not `full` are hollow."""
    found = {x * look.aside: (interval(numbers), full.get(x)) for x, numbers in points.items() if numbers}
    middles = [middle for (middle, _), _ in found.values()]
    halves = [float("nan") if half is None else half for (_, half), _ in found.values()]
    style: dict[str, Any] = {"color": look.colour, "linewidth": 1.3}
    ax.errorbar(list(found), middles, yerr=halves, capsize=2.5, elinewidth=1, alpha=0.8, **style)
    for x, ((middle, _), is_full) in found.items():
        ax.plot(x, middle, look.marker, color=look.colour, markerfacecolor=look.colour if is_full else "white")
    if name:
        ax.plot([], [], marker=look.marker, label=in_figure(name), **style)


def _length_axis(ax: Axes, lengths: Iterable[float]) -> None:
    """A log axis that names the lengths of the runs."""
    ticks: list[float] = []
    for x in lengths:
        if near(ticks, x) is None:
            ticks.append(x)
    ax.set_xscale("log")
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
    ax.xaxis.set_minor_locator(NullLocator())
