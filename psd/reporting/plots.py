"""Figures: what `psd compare` saves, and what several notebooks draw.

Every function returns a matplotlib Figure that belongs to nobody, so that nothing is left open; a notebook shows it
by naming it in a cell's last line. Colours are seaborn's "colorblind".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from psd.checks import Refused
from psd.reporting.tables import BASELINE, by_method, differences, heading, interval
from psd.training.records import Record

LEGEND = 8  # methods of a figure whose loss curves can be told apart by a legend; of more, the colours of the dots tell


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write a figure whole or not at all; the format is that of the path's ending."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    figure.savefig(temporary, dpi=dpi)
    temporary.replace(path)


def comparison(records: Sequence[Record]) -> Figure:
    """What the methods of one table did: training loss on the left, then accuracy and calibration on test images.

    Args:
        records: of one data set, model and budget, in the order in which their methods shall stand.

    Raises:
        ValueError: no records, or records of several tables.
    """
    if len({(r.data, r.model, r.budget) for r in records}) != 1:
        names = sorted({f"{r.data}/{r.model}/{r.budget}" for r in records})
        raise Refused(f"records of one data set, model and budget are needed, got {', '.join(names) or 'none'}")
    rows = by_method(records)
    colours = dict(zip(rows, palette(len(rows)), strict=True))
    figure = Figure(figsize=(11, 3.4 + 0.25 * max(0, len(rows) - 4)), layout="constrained")
    loss, accuracy, calibration = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])
    for name, row in rows.items():
        _loss_curve(loss, name, row, colours[name])
    loss.set(xlabel="image passes", ylabel="training cross-entropy (nats)", yscale="log")
    if len(rows) <= LEGEND:
        loss.legend(fontsize="small", framealpha=0.85)
    loss.grid(alpha=0.3)
    _dots(accuracy, rows, "top1", colours)
    accuracy.set_xlabel("test accuracy (%)")
    _dots(calibration, rows, "ece", colours)
    calibration.set_xlabel("expected calibration error")
    calibration.set_xlim(left=0)
    calibration.set_yticklabels([])
    figure.suptitle(f"{finding(rows)}\n{heading(records[0]).strip('*')}", fontsize="medium")
    return figure


def forest(records: Sequence[Record], other: str = BASELINE) -> Figure:
    """Each method's difference in top-1 to `other`, paired by seed, with its 95% interval, the best one on top.

    Args:
        records: of one data set, model and budget, those of `other` among them.
        other: the method, with its variant, that the rest is compared with: cross-entropy if not named.

    Raises:
        ValueError: no records, records of several tables, no method that shares a seed with `other`.
    """
    if len({(r.data, r.model, r.budget) for r in records}) != 1:
        raise Refused("records of one data set, model and budget are needed")
    rows = by_method(records)
    found = {name: differences(rows, name, other) for name in rows if name != other}
    found = {name: values for name, values in found.items() if values}
    if not found:
        raise Refused(f"records of {other} and of another method with the same seeds are needed")
    found = dict(sorted(found.items(), key=lambda item: -interval(item[1])[0]))
    figure = Figure(figsize=(7.5, 1.3 + 0.3 * len(found)), layout="constrained")
    ax = figure.subplots()
    above, below = palette(4)[0], palette(4)[3]
    clear = 0
    for y, values in enumerate(found.values()):
        middle, half = interval(values)
        apart = half is not None and abs(middle) > half
        clear += apart and middle > 0
        colour = "gray" if not apart else above if middle > 0 else below
        ax.plot(values, [y] * len(values), "o", color=colour, alpha=0.4, markersize=4)
        ax.errorbar(middle, y, xerr=half, fmt="D", color=colour, capsize=3, markersize=6)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(found)), list(found))
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlabel(f"points of top-1 above {other}, mean and 95% interval over seeds\n(gray: the interval holds zero)")
    ax.grid(axis="x", alpha=0.3)
    many = f"{clear} of {len(found)} methods are above {other} with an interval apart from zero"
    figure.suptitle(f"{many}\n{heading(records[0]).strip('*')}", fontsize="medium")
    return figure


def finding(rows: dict[str, list[Record]]) -> str:
    """The figure's title: what stands out, computed from the records."""
    leader = max(rows, key=lambda name: interval([r.final["top1"] for r in rows[name]])[0])
    top1 = interval([r.final["top1"] for r in rows[leader]])[0]
    if BASELINE not in rows or len(rows) == 1:
        return f"{leader} is right on {top1:.1f}% of the test images"
    if leader == BASELINE:
        return f"No method is above {BASELINE}, which is right on {top1:.1f}% of the test images"
    points, half = interval(differences(rows, leader))
    margin = f"{points:+.1f}" + ("" if half is None else f" ± {half:.1f}")
    return f"{leader} is right on {top1:.1f}% of the test images, {margin} points over {BASELINE}"


def image_grid(
    images: Sequence[Sequence[Tensor]],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    title: str = "",
    patch_size: int | None = None,
    side: float = 1.3,
) -> Figure:
    """Images in rows and columns.

    Args:
        images: rows of images, each uint8 (3, H, W), float (3, H, W) in [0, 1], or a mask (H, W).
        rows, columns: what to write to the left of each row and above each column.
        title: the finding.
        patch_size: draw the grid of patches over every image.
        side: of one image, in inches.
    """
    across = max(len(row) for row in images)
    figure = Figure(figsize=(side * across + 1.0 * bool(rows), side * len(images) + 0.6), layout="constrained")
    axes = figure.subplots(len(images), across, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for r, row in enumerate(images):
        for c, image in enumerate(row):
            ax = axes[r, c]
            ax.set_axis_on()
            show_image(ax, image, patch_size)
            if rows and c == 0:
                ax.set_ylabel(rows[r], fontsize="small")
            if columns and r == 0:
                ax.set_title(columns[c], fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def show_image(ax: Axes, image: Tensor, patch_size: int | None = None) -> None:
    """One image of `image_grid` on axes of the caller's."""
    pixels = image.detach().cpu()
    pixels = pixels.float() if pixels.dtype == torch.bool else pixels
    height, width = pixels.shape[-2:]
    ax.imshow(
        pixels.permute(1, 2, 0).numpy() if pixels.ndim == 3 else pixels.numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    ax.set(xticks=[], yticks=[])
    if patch_size:
        for k in range(patch_size, width, patch_size):
            ax.axvline(k - 0.5, color="white", linewidth=0.6)
        for k in range(patch_size, height, patch_size):
            ax.axhline(k - 0.5, color="white", linewidth=0.6)


def palette(n: int) -> list[tuple[float, float, float]]:
    """n colours that survive colour-blindness."""
    import seaborn

    return list(seaborn.color_palette("colorblind", n))


def _loss_curve(ax: Axes, name: str, row: Sequence[Record], colour: tuple[float, float, float]) -> None:
    for k, record in enumerate(row):
        steps = torch.tensor([entry["steps"] for entry in record.epochs]).cumsum(0)
        passes = (steps * record.image_passes / steps[-1]).tolist()
        losses = [max(entry["cross_entropy"], 1e-4) for entry in record.epochs]  # 0 has no place on a log axis
        ax.plot(passes, losses, color=colour, linewidth=1, label=None if k else name)


def _dots(ax: Axes, rows: dict[str, list[Record]], metric: str, colours: dict[str, tuple[float, float, float]]) -> None:
    """A point for every seed, and the mean with its 95% interval."""
    for y, (name, row) in enumerate(rows.items()):
        values = [record.final[metric] for record in row]
        middle, half = interval(values)
        ax.plot(values, [y] * len(values), "o", color=colours[name], alpha=0.5, markersize=5)
        ax.errorbar(middle, y, xerr=half, fmt="D", color=colours[name], capsize=4, markersize=7)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.margins(x=0.1)
    ax.grid(axis="x", alpha=0.3)
