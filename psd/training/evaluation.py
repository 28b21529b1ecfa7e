"""Accuracy, likelihood and calibration of a model on a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psd.data.batches import normalised
from psd.data.images import ImageData
from psd.data.stream import CentreCrops

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

ECE_BINS = 15


@dataclass
class Metrics:
    """top1, top5: percent (top5 is None below 6 classes). nll: mean cross-entropy in nats. ece: expected calibration
    error as a fraction, 15 equal-width bins on the softmax (Guo et al. 2017, section 3). overconfidence: mean of the
    largest probability minus accuracy, as a fraction with its sign. n_test: images."""

    top1: float
    top5: float | None
    nll: float
    ece: float
    overconfidence: float
    n_test: int


def evaluate(model: nn.Module, data: ImageData | CentreCrops | ImageFolder, batch_size: int = 500) -> Metrics:
    """Metrics of `model` (in eval mode, on the device of its parameters) on all images of `data`, not augmented.

    An ImageFolder is evaluated as `CentreCrops(data)`: the centre 224 x 224 of every image.

    >>> import psd
    >>> metrics = psd.evaluate(psd.models.build("resnet8", 16), psd.data.load("shapes", split="test", count=32))
    >>> metrics.n_test
    32
    """
    data = _images(data)
    return measure(predict(model, data, batch_size), data.targets)


@torch.no_grad()
def predict(
    model: nn.Module,
    data: ImageData | CentreCrops | ImageFolder,
    batch_size: int = 500,
    rows: range | None = None,
) -> Tensor:
    """Logits (N, C) of every image, float32 on the CPU; every part of the model keeps the mode it had.

    Args:
        model: on the device of its parameters, in eval mode meanwhile.
        data: images in memory, or files; an ImageFolder as `CentreCrops(data)`.
        batch_size: images per forward pass.
        rows: predict these images alone, in ascending order, as one of several processes; all of them if None.

    Raises:
        ValueError: batch_size below 1; rows that are none, descending or not among the images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
    data = _images(data)
    rows = range(len(data)) if rows is None else rows
    if not rows or rows.step < 0 or rows[0] < 0 or rows[-1] >= len(data):
        raise ValueError(f"rows must be an ascending range of the images 0 ... {len(data) - 1}, got {rows}")
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return torch.cat([model(x).float() for x in _inputs(data, rows, batch_size, device)]).cpu()
    finally:
        for module, training in modes:  # not model.train(), which would wake frozen parts
            module.training = training


def _images(data: ImageData | CentreCrops | ImageFolder) -> ImageData | CentreCrops:
    return data if isinstance(data, (ImageData, CentreCrops)) else CentreCrops(data)


def _inputs(data: ImageData | CentreCrops, rows: range, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """The images `rows` in batches, normalised, on the device."""
    if isinstance(data, CentreCrops):
        yield from data.batches(rows, batch_size, device)
        return
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        yield normalised(data, slice(part.start, part.stop, part.step), device)


def measure(logits: Tensor, targets: Tensor) -> Metrics:
    """Metrics of logits (N, C) against labels (N,); ValueError for a label that is none of the C classes."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    classes = logits.shape[1]
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise ValueError(
            f"targets: logits of {classes} classes have no label {int(wrong[0])}; "
            "measure on the classes that the model was built for"
        )

    def accuracy(k: int) -> float:
        return 100 * float(multiclass_accuracy(logits, targets, classes, average="micro", top_k=k))

    probabilities = logits.softmax(dim=1)
    ece = multiclass_calibration_error(probabilities, targets, classes, n_bins=ECE_BINS, norm="l1")
    return Metrics(
        top1=accuracy(1),
        top5=accuracy(5) if classes > 5 else None,
        nll=float(F.cross_entropy(logits, targets)),
        ece=float(ece),
        overconfidence=float(probabilities.amax(dim=1).double().mean()) - accuracy(1) / 100,
        n_test=len(targets),
    )
