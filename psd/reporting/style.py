"""What figures share: colours, words, and how they are saved."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from matplotlib.figure import Figure

from psd.checks import Refused, printable
from psd.files import replacing
from psd.reporting.selection import BASELINE, differences, primary, unit, values
from psd.reporting.statistics import interval
from psd.tasks import Metric
from psd.training.records import Record

Colour = tuple[float, float, float]

AHEAD = {"higher": "above", "lower": "below", "zero": "nearer zero than"}
SMALL = 8.5  # points, of the small print under a figure


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write a figure whole or not at all; the format is that of the path's ending."""
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=path.suffix.removeprefix(".") or None)


class Described:
    """A figure that a notebook shows with its description, for those who do not see it."""

    def __init__(self, figure: Figure, alt: str, dpi: int):
        self.figure, self.alt, self.dpi = figure, alt, dpi

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        written = io.BytesIO()
        self.figure.savefig(written, format="png", dpi=self.dpi)
        return written.getvalue(), {"alt": self.alt}


def described(figure: Figure, alt: str, dpi: int = 90) -> Described:
    """A figure and what is to be seen in it, to be named in a cell's last line or given to `display`.

    Args:
        figure: of matplotlib, or of pyplot, which then shows it no second time.
        alt: what is to be seen, in words.
        dpi: pixels an inch.
    """
    if not alt.strip():
        raise Refused("alt must say what is to be seen, got an empty text")
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
    return Described(figure, alt, dpi)


def palette(n: int) -> list[Colour]:
    """n colours that survive colour-blindness."""
    import seaborn

    return list(seaborn.color_palette("colorblind", n))


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


def in_figure(text: str) -> str:
    r"""A text that may hold names from outside, for matplotlib to write as it is: no control characters, no formulas.

    >>> print(in_figure("costs 3$"))
    costs 3\$
    """
    return "\n".join(map(printable, text.split("\n"))).replace("$", r"\$")


def label(metric: Metric, difference: bool = False) -> str:
    if difference and metric.unit == "%":
        return f"points of {metric.title}"
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def direction(metric: Metric) -> str:
    return "best near zero" if metric.better == "zero" else f"{metric.better} is better"


def small_print(figure: Figure, text: str) -> None:
    if text:
        figure.supxlabel(in_figure(text), fontsize=SMALL, x=0.01, ha="left")
