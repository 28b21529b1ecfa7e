"""Accuracy, likelihood and calibration of a model on a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psd.data.batches import normalised
from psd.data.images import ImageData

ECE_BINS = 15


@dataclass
class Metrics:
    """top1, top5: percent (top5 is None below 6 classes). nll: mean cross-entropy in nats. ece: expected calibration
    error as a fraction, 15 equal-width bins on the softmax (Guo et al. 2017, section 3). n_test: images."""

    top1: float
    top5: float | None
    nll: float
    ece: float
    n_test: int


def evaluate(model: nn.Module, data: ImageData, batch_size: int = 500) -> Metrics:
    """Metrics of `model` (in eval mode, on the device of its parameters) on all images of `data`, not augmented.

    >>> import psd
    >>> metrics = psd.evaluate(psd.models.build("resnet8", 16), psd.data.load("shapes", split="test", count=32))
    >>> metrics.n_test
    32
    """
    return measure(predict(model, data, batch_size), data.targets)


@torch.no_grad()
def predict(model: nn.Module, data: ImageData, batch_size: int = 500) -> Tensor:
    """Logits (N, C) of every image, float32 on the CPU; every part of the model keeps the mode it had."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        rows = (slice(start, start + batch_size) for start in range(0, len(data), batch_size))
        return torch.cat([model(normalised(data, r, device)).float() for r in rows]).cpu()
    finally:
        for module, training in modes:  # not model.train(), which would wake frozen parts
            module.training = training


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

    ece = multiclass_calibration_error(logits.softmax(dim=1), targets, classes, n_bins=ECE_BINS, norm="l1")
    return Metrics(
        top1=accuracy(1),
        top5=accuracy(5) if classes > 5 else None,
        nll=float(F.cross_entropy(logits, targets)),
        ece=float(ece),
        n_test=len(targets),
    )
