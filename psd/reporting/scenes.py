"""Pictures with what they hold and what a network finds in them: masks in colours, boxes with their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from psd import tasks
from psd.data.dense import MeasuredScenes
from psd.data.scenes import Scenes
from psd.reporting.style import in_figure, palette
from psd.training.evaluation import evaluating

SMALLEST = 40  # pixels of a region that is given its name


@torch.no_grad()
def scene_grid(
    data: Scenes,
    models: dict[str, nn.Module],
    task: str,
    rows: Sequence[int] = range(4),
    *,
    title: str = "",
    score: float = 0.5,
    side: float = 2.2,
) -> Figure:
    """A row for each picture: as it is, with what it holds, and with what each network finds.

    Args:
        data: the pictures; those of files are fitted into squares of 224 pixels.
        models: networks by the name that stands above their column, on the CPU.
        task: "segmentation": masks, the colour of a class is that of its number among ten colours that survive
            colour-blindness, and its name stands in each region. "detection": boxes with names and scores.
        rows: numbers of the pictures.
        title: the finding.
        score: boxes of a lower one are not shown.
        side: of one picture, in inches.
    """
    learner = tasks.find(task)
    images = torch.stack([_whole(data, i)[0] for i in rows])
    measured = MeasuredScenes(data, learner.learns, workers=0)
    (x, targets) = next(measured.batches(list(rows), len(rows), "cpu"))
    columns: list[tuple[str, Any]] = [("picture", None), ("what it holds", targets)]
    for name, model in models.items():
        with evaluating(model):
            columns.append((name, learner.logits(model(x))))
    figure = Figure(figsize=(side * len(columns), side * len(images) + 0.5), layout="constrained")
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for r, image in enumerate(images):
        for c, (name, shown) in enumerate(columns):
            ax = axes[r, c]
            ax.set_axis_off()
            pale = (
                shown is not None and task == "segmentation"
            )  # that the colours of a mask are told from the picture's
            ax.imshow(_pale(image) if pale else image.permute(1, 2, 0).numpy(), interpolation="nearest")
            if r == 0:
                ax.set_title(in_figure(name), fontsize=10)
            if shown is not None and task == "segmentation":
                _show_mask(ax, shown[r].argmax(0) if shown[r].ndim == 3 else shown[r], data.classes)
            elif shown is not None:
                _show_boxes(ax, shown[r], data.classes, score)
    figure.suptitle(in_figure(title), fontsize=11)
    return figure


def _whole(data: Scenes, i: int) -> tuple[Tensor, Any]:
    from psd.data.scenes import fitted

    return fitted(*data[i], data.size or 224)


def _pale(image: Tensor) -> Any:
    """A picture in light grey."""
    grey = 0.55 + 0.45 * image.float().mean(0) / 255
    return grey[..., None].expand(-1, -1, 3).numpy()


def _show_mask(ax: Axes, mask: Tensor, classes: Sequence[str]) -> None:
    colours = torch.tensor(palette(10))
    there = mask > 0
    overlay = torch.zeros(*mask.shape, 4)
    overlay[..., :3] = colours[(mask.clamp_min(0) - 1) % 10]
    overlay[..., 3] = 0.8 * there
    ax.imshow(overlay.numpy(), interpolation="nearest")
    for label in mask[there].unique().tolist():
        pixels = (mask == label).nonzero().float()
        if len(pixels) >= SMALLEST:
            y, x = pixels.mean(0).tolist()
            _write(ax, x, y, classes[label], "center")


def _show_boxes(ax: Axes, found: dict[str, Tensor], classes: Sequence[str], score: float) -> None:
    colours = palette(10)
    scores = found.get("scores")
    for k, (x1, y1, x2, y2) in enumerate(found["boxes"].tolist()):
        if scores is not None and scores[k] < score:
            continue
        label = int(found["labels"][k])
        colour = colours[(label - 1) % 10]
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, edgecolor=colour, linewidth=2, fill=False))
        _write(ax, x1, max(y1, 6), classes[label] + ("" if scores is None else f" {scores[k]:.2f}"), "left")


def _write(ax: Axes, x: float, y: float, text: str, align: str) -> None:
    outline = [withStroke(linewidth=2, foreground="white")]
    ax.text(x, y, in_figure(text), fontsize=7, ha=align, va="bottom", color="black", path_effects=outline, clip_on=True)
