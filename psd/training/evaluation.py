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


def calibrate(model: nn.Module, data: ImageData | CentreCrops | ImageFolder, batch_size: int = 500) -> Temperature:
    """The temperature of the least NLL of `model` (in eval mode) on `data`, which must not be its training images.

    Args:
        model: gives logits (N, C).
        data: a tune split, such as `psd.data.load("cifar100-small", split="tune")`.
        batch_size: images per forward pass.

    Raises:
        ValueError: as in `psd.evaluate`.

    >>> import psd
    >>> model, tune = psd.models.build("resnet8", 16), psd.data.load("shapes", split="tune", count=32)
    >>> psd.calibrate(model, tune).value > 0
    True
    """
    return fit_temperature(predict(model, data, batch_size), data.targets)
