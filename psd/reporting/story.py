"""The two pictures that the course comes back to: a pair that exchanges patches, and the method as a row of boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from psd.checks import Refused, printable
from psd.reporting.images import show_image
from psd.reporting.style import in_figure, palette

SECONDS = 9  # of one round of the animation
STAGES = ("images", "pair", "swap", "network", "predictions", "loss")


class Animation:
    """An animated drawing that a notebook shows, with its description for those who do not see it."""

    def __init__(self, svg: str, alt: str):
        self.svg, self.alt = svg, alt

    def _repr_svg_(self) -> tuple[str, dict[str, str]]:
        return self.svg, {"alt": self.alt}


def exchange(
    images: Tensor,
    mask: Tensor,
    before: Sequence[float],
    after: Sequence[float],
    *,
    what: str = "P(dog)",
    alt: str = "",
) -> Animation:
    """Two images that exchange patches, over and over, with what a network says of each as a bar below it.

    Args:
        images: uint8 (2, 3, H, W).
        mask: bool (rows, columns), True = swapped.
        before, after: the probabilities of the two, each in [0, 1].
        what: the bars' name.
        alt: what is to be seen, in words.
    """
    height, width = images.shape[-2:]
    rows, columns = mask.shape
    h, w = height / rows, width / columns
    gap, top, bar = 130, 30, height + 62
    right = width + gap
    times = "0;0.42;0.5;0.92;1"
    dark = "@media (prefers-color-scheme: dark){text{fill:#e8e8e8}.track{fill:#444}.arrow{stroke:#e8e8e8;fill:#e8e8e8}}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {right + width} {bar + 24}" width="{right + width}" font-family="sans-serif">',
        f"<title>{_escaped(alt or 'Two images exchange patches')}</title><style>text{{fill:#222;font-size:15px}}"
        f".track{{fill:#ddd}}.arrow{{stroke:#222;fill:#222}}{dark}</style>",
    ]
    for k, (x, image) in enumerate(zip((0, right), images, strict=True)):
        parts.append(
            f'<image id="i{k}" x="{x}" y="{top}" width="{width}" height="{height}" xlink:href="{_jpeg(image)}"/>'
        )
    for r, c in mask.nonzero().tolist():
        begin = 0.22 + 0.14 * (r * columns + c) / (rows * columns)  # one patch after another
        for k, (x, far) in enumerate(((0, right), (right, -right))):  # there and back
            parts.append(
                f'<g><svg x="{x + c * w:g}" y="{top + r * h:g}" width="{w:g}" height="{h:g}" '
                f'viewBox="{x + c * w:g} {top + r * h:g} {w:g} {h:g}"><use xlink:href="#i{k}"/></svg>'
                f'<animateTransform attributeName="transform" type="translate" dur="{SECONDS}s" '
                f'repeatCount="indefinite" keyTimes="0;{begin:.3f};{begin + 0.09:.3f};0.92;1" '
                f'values="0;0;{far};{far};0"/></g>'
            )
    blue = "#0173b2"
    for k, x in enumerate((0, right)):
        low, high = before[k] * width, after[k] * width
        parts.append(f'<rect class="track" x="{x}" y="{bar}" width="{width}" height="14" rx="3"/>')
        parts.append(
            f'<rect x="{x}" y="{bar}" height="14" rx="3" fill="{blue}" width="{low:.1f}"><animate '
            f'attributeName="width" dur="{SECONDS}s" repeatCount="indefinite" keyTimes="{times}" '
            f'values="{low:.1f};{low:.1f};{high:.1f};{high:.1f};{low:.1f}"/></rect>'
        )
        for value, shown in ((before[k], "1;0;0;1"), (after[k], "0;1;1;0")):
            parts.append(
                f'<text x="{x}" y="{bar - 8}" opacity="{shown[0]}">{_escaped(what)} = {value:.2f}<animate '
                f'attributeName="opacity" dur="{SECONDS}s" repeatCount="indefinite" calcMode="discrete" '
                f'keyTimes="0;0.42;0.92;1" values="{shown}"/></text>'
            )
    middle, left = top + height / 2, width + 14
    arrows = "".join(
        f'<line class="arrow" x1="{x}" y1="{y:g}" x2="{x + d * (gap - 40)}" y2="{y:g}" stroke-width="3"/>'
        f'<polygon class="arrow" points="{x + d * (gap - 28)},{y:g} {x + d * (gap - 42)},{y - 7:g} '
        f'{x + d * (gap - 42)},{y + 7:g}"/>'
        for x, d, y in ((left, 1, middle - 14), (right - 14, -1, middle + 26))
    )
    parts.append(
        f'<g opacity="0"><text x="{width + gap / 2}" y="{middle - 32:g}" text-anchor="middle">each teaches</text>'
        f'{arrows}<text x="{width + gap / 2}" y="{middle + 54:g}" text-anchor="middle">the other</text><animate '
        f'attributeName="opacity" dur="{SECONDS}s" repeatCount="indefinite" calcMode="discrete" '
        'keyTimes="0;0.5;0.92;1" values="0;1;0;0"/></g>'
    )
    for k, x in enumerate((0, right)):
        parts.append(f'<text x="{x}" y="{top - 10}">{("One image", "another of its class")[k]}</text>')
    return Animation("".join([*parts, "</svg>"]), alt)


def still(
    images: Tensor,
    swapped: Tensor,
    before: Sequence[float],
    after: Sequence[float],
    *,
    what: str = "P(dog)",
    title: str,
) -> Figure:
    """The same without motion: a pair as it is and after the swap, a bar under each image.

    Args:
        images, swapped: uint8 (2, 3, H, W).
        before, after: what a network says of each, in [0, 1].
        what: the bars' name.
        title: the finding.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(2, 4, height_ratios=[8, 1])
    names = ("one image", "another of its class", "after the swap", "after the swap")
    for k, (image, p) in enumerate(zip([*images, *swapped], [*before, *after], strict=True)):
        show_image(axes[0, k], image)
        axes[0, k].set_title(names[k], fontsize=11)
        axes[1, k].barh([0], [p], color=palette(1)[0])
        axes[1, k].set(xlim=(0, 1), yticks=[], xticks=[0, 0.5, 1])
        axes[1, k].set_xlabel(in_figure(f"{what} = {p:.2f}"), fontsize=11)
    figure.suptitle(in_figure(title), fontsize=12)
    return figure


def pipeline(*lit: str) -> Figure:
    """The method from left to right, the stages that are spoken of in colour and the others grey.

    Args:
        lit: of "images", "pair", "swap", "network", "predictions", "loss"; all of them if none is named.
    """
    for name in lit:
        if name not in STAGES:
            raise Refused(f"lit must be of {', '.join(STAGES)}, got {name!r}")
    figure = Figure(figsize=(10, 2.7), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, 100), ylim=(0, 27))
    ax.set_axis_off()
    on = set(lit or STAGES)
    _box(ax, (1, 8, 11, 11), "a batch\nof images", "images" in on)
    _box(ax, (17, 15, 11, 7), "$x_a$, anchor", "pair" in on)
    _box(ax, (17, 5, 11, 7), "$x_b$, partner", "pair" in on)
    _box(ax, (33, 15, 11, 7), "$x'_a$", "swap" in on)
    _box(ax, (33, 5, 11, 7), "$x'_b$", "swap" in on)
    _box(ax, (50, 5, 11, 17), "one\nnetwork", "network" in on)
    _box(ax, (67, 15, 11, 7), "logits $z_a$", "predictions" in on)
    _box(ax, (67, 5, 11, 7), "logits $z_b$", "predictions" in on)
    for y in (18.5, 8.5):
        _arrow(ax, (12, 13.5), (17, y), "pair" in on)
        for start, end, stage in ((28, 33, "swap"), (44, 50, "network"), (61, 67, "predictions")):
            _arrow(ax, (start, y), (end, y), stage in on)
        _arrow(ax, (78, y), (86, y), "loss" in on)
    _arrow(ax, (30, 17), (30, 10), "swap" in on, "<|-|>")
    _arrow(ax, (72.5, 15), (72.5, 12), "loss" in on, "<|-|>")
    colour = "black" if "loss" in on else "0.6"
    for y, name in ((18.5, "a"), (8.5, "b")):
        ax.text(87, y, f"CE($z_{name}$, y)", va="center", fontsize=11, color=colour)
    ax.text(74, 13.5, "KL, both ways", va="center", fontsize=11, color=colour)
    under = {"images": 6.5, "pair": 22.5, "swap": 38.5, "network": 55.5, "predictions": 72.5, "loss": 91}
    for stage, x in under.items():
        weight = "bold" if stage in on else "normal"
        ax.text(x, 1, stage, ha="center", fontsize=11, weight=weight, color="black" if stage in on else "0.6")
    return figure


def _box(ax: Axes, at: tuple[float, float, float, float], text: str, lit: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y, width, height = at
    blue = palette(1)[0]
    face, edge = ((*blue, 0.18), blue) if lit else ((1, 1, 1, 0), (0.75, 0.75, 0.75))
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=1", fc=face, ec=edge, lw=1.5)
    )
    colour = "black" if lit else "0.6"
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=11, color=colour)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], lit: bool, style: str = "-|>") -> None:
    colour = "black" if lit else "0.75"
    ax.annotate(
        "", end, start, arrowprops={"arrowstyle": style, "color": colour, "lw": 1.5, "shrinkA": 1, "shrinkB": 1}
    )


def _jpeg(image: Tensor) -> str:
    """An image, uint8 (3, H, W), as a data URI."""
    written = io.BytesIO()
    F.to_pil_image(image.cpu()).save(written, "JPEG", quality=88, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()


def _escaped(text: str) -> str:
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
