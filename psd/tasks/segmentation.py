"""One class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from psd.checks import Refused
from psd.tasks import Metric, Metrics


class Segmentation:
    """Logits (N, C, H, W), target (N, H, W) labels, -100 where a pixel does not count.

    miou: percent; the mean over classes of intersection over union, each over all pixels of the test; a class that
    neither the masks nor the predictions hold is left out. Background is one of the classes. pixel_accuracy: percent.
    nll: mean cross-entropy of a pixel in nats. iou: percent of each class by its number, None for one that is left out.
    """

    name = "segmentation"
    learns = "mask"
    metrics = (
        Metric("miou", "mean IoU", "%", "higher", 2),
        Metric("pixel_accuracy", "pixels right", "%", "higher", 2),
        Metric("nll", "NLL a pixel", "nats", "lower", 3),
    )

    def logits(self, output: Any) -> Tensor:
        """A tensor is taken as it is; of torchvision's networks "out", of transformers' `logits`."""
        found = output.get("out") if isinstance(output, Mapping) and "out" in output else output
        found = getattr(found, "logits", found)
        if not isinstance(found, Tensor) or found.ndim != 4:
            what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
            raise Refused(
                f"the network's output must be logits (N, C, H, W), got {what}; give psd.fit a function of it, "
                "logits=..."
            )
        return found

    def meter(self, classes: int) -> PixelMeter:
        return PixelMeter(classes)


class PixelMeter:
    """Counts of (label, prediction) over all pixels."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self.nll, self.images = 0.0, 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        classes = len(self.counts)
        if logits.shape[1] != classes:
            raise Refused(f"the network gives {logits.shape[1]} classes a pixel, the data has {classes}")
        there = targets >= 0
        pairs = targets[there] * classes + logits.argmax(1)[there]
        self.counts += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).cpu()
        self.nll += float(F.cross_entropy(logits.float(), targets, reduction="sum").double())
        self.images += len(targets)

    def merge(self, other: PixelMeter) -> None:
        self.counts += other.counts
        self.nll, self.images = self.nll + other.nll, self.images + other.images

    def compute(self, tune: PixelMeter | None = None) -> Metrics:
        counts, pixels = self.counts.double(), max(1, int(self.counts.sum()))
        union = counts.sum(0) + counts.sum(1) - counts.diag()
        iou = 100 * counts.diag() / union  # NaN where there is no pixel
        return Metrics(
            miou=float(iou.nanmean()),
            pixel_accuracy=100 * float(counts.trace()) / pixels,
            nll=self.nll / pixels,
            iou=[None if value != value else round(value, 4) for value in iou.tolist()],
            n_test=self.images,
        )


TASK = Segmentation()
