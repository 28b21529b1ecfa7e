"""Figures: what `psd compare` saves, and what several notebooks draw.

Every function returns a matplotlib Figure that belongs to nobody, so that nothing is left open; a notebook shows it
by naming it in a cell's last line. Colours are seaborn's "colorblind".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from psd.checks import Refused
from psd.reporting.images import image_grid, show_image
from psd.reporting.lengths import against_compute, at_several_lengths
from psd.reporting.selection import BASELINE, by_method, differences, heading, primary, provenance, repeats, values
from psd.reporting.selection import metrics as measured_by
from psd.reporting.statistics import apart, how_tested, interval
from psd.reporting.style import Colour, described, direction, finding, in_figure, label, palette, save, small_print
from psd.tasks import Metric
from psd.training.records import Record

__all__ = [
    "against_compute",
    "at_several_lengths",
    "comparison",
    "described",
    "finding",
    "forest",
    "image_grid",
    "palette",
    "save",
    "show_image",
]

LEGEND = 8  # methods of a figure whose loss curves can be told apart by a legend; of more, the colours of the dots tell
DOTS = ("top1", "ece")  # what `comparison` shows where it was measured; of other tasks, the first two metrics


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
    ylabel = "training cross-entropy (nats)" if term == "cross_entropy" else "training loss"
    loss.set(xlabel="image passes", ylabel=ylabel, yscale="log")
    if len(rows) <= LEGEND:
        loss.legend(fontsize="small", framealpha=0.85)
    loss.xaxis.set_major_formatter(EngFormatter(sep=""))
    loss.grid(alpha=0.3)
    for k, (ax, metric) in enumerate(zip(dots, shown, strict=True)):
        _dots(ax, rows, metric, colours)
        ax.set_xlabel(in_figure(f"test {label(metric)}, {direction(metric)}"))
        if metric.better == "lower":
            ax.set_xlim(left=0)
        if k:
            ax.set_yticklabels([])
    figure.suptitle(in_figure(f"{finding(rows)}\n{heading(records[0]).strip('*')}"), fontsize="medium")
    small_print(figure, provenance(records))
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
    ax.set_yticks(range(len(found)), list(map(in_figure, found)))
    ax.set_ylim(len(found) - 0.5, -0.5)
    above = "below" if sign < 0 else "above"
    minus = above if metric.unit == "%" else "minus that of"
    measured = f"{label(metric, difference=True)} {minus} {other}"
    ax.set_xlabel(in_figure(f"{measured},\nmean and 95% interval over {repeats(records)}"))
    ax.grid(axis="x", alpha=0.3)
    many = f"{clear} of {len(found)} methods are {above} {other} with a difference apart from zero"
    figure.suptitle(in_figure(f"{many}\n{heading(records[0]).strip('*')}"), fontsize="medium")
    small_print(figure, f"Gray: not apart from zero ({how_tested(len(tested))}).\n{provenance(records)}".strip())
    return figure


def _check_one_table(records: Sequence[Record]) -> None:
    if len({(r.data, r.model, r.budget) for r in records}) != 1:
        names = sorted({f"{r.data}/{r.model}/{r.budget}" for r in records})
        raise Refused(f"records of one data set, model and budget are needed, got {', '.join(names) or 'none'}")


def _loss_curve(ax: Axes, name: str, row: Sequence[Record], term: str, colour: Colour) -> None:
    for k, record in enumerate(row):
        steps = torch.tensor([entry["steps"] for entry in record.epochs]).cumsum(0)
        passes = (steps * record.image_passes / steps[-1]).tolist()
        losses = [max(entry[term], 1e-4) for entry in record.epochs]  # 0 has no place on a log axis
        ax.plot(passes, losses, color=colour, linewidth=1, label=None if k else in_figure(name))


def _dots(ax: Axes, rows: dict[str, list[Record]], metric: Metric, colours: dict[str, Colour]) -> None:
    """A point for every seed, and the mean with its 95% interval."""
    for y, (name, row) in enumerate(rows.items()):
        numbers = values(row, metric)
        if numbers:
            middle, half = interval(numbers)
            ax.plot(numbers, [y] * len(numbers), "o", color=colours[name], alpha=0.5, markersize=5)
            ax.errorbar(middle, y, xerr=half, fmt="D", color=colours[name], capsize=4, markersize=7)
    ax.set_yticks(range(len(rows)), list(map(in_figure, rows)))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.margins(x=0.1)
    ax.grid(axis="x", alpha=0.3)
