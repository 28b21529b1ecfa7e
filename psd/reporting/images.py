"""Grids of images and masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from psd.reporting.style import in_figure


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
                ax.set_ylabel(in_figure(rows[r]), fontsize="small")
            if columns and r == 0:
                ax.set_title(in_figure(columns[c]), fontsize="small")
    figure.suptitle(in_figure(title), fontsize="medium")
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
