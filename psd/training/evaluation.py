"""What a trained network is worth on a data set: the figures of its task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from psd import tasks
from psd.calibration import Temperature, fit_temperature
from psd.checks import Refused
from psd.data.loaders import Measured, measured
from psd.tasks import Meter, Metrics, Task

if TYPE_CHECKING:
    from psd.tasks.classification import LogitsMeter


def evaluate(model: nn.Module, data: Any, batch_size: int = 500, task: str | Task = "classification") -> Metrics:
    """The figures of `model` (in eval mode, on the device of its parameters) on all images of `data`, not augmented.

    Args:
        model: any network whose output the task understands.
        data: what `psd.data.load` gives, or any map-style data set of (image, target). An ImageFolder without a
            transform is evaluated on the centre 224 x 224 of every image.
        batch_size: images per forward pass.
        task: a name, or a task of your own.

    >>> import psd
    >>> metrics = psd.evaluate(psd.models.build("resnet8", 16), psd.data.load("shapes", split="test", count=32))
    >>> metrics.n_test
    32
    """
    chosen = _task(task)
    return meter(model, measured(_data_set(data), learns=chosen.learns), chosen, batch_size).compute()


def calibrate(model: nn.Module, data: Any, batch_size: int = 500) -> Temperature:
    """The temperature of the least NLL of `model` (in eval mode) on `data`, which must not be its training images.

    Args:
        model: gives logits (N, C).
        data: a tune split, such as `psd.data.load("cifar100-small", split="tune")`; as in `psd.evaluate`.
        batch_size: images per forward pass.

    Raises:
        ValueError: as in `psd.evaluate`.

    >>> import psd
    >>> model, tune = psd.models.build("resnet8", 16), psd.data.load("shapes", split="tune", count=32)
    >>> psd.calibrate(model, tune).value > 0
    True
    """
    seen: LogitsMeter = meter(model, measured(_data_set(data)), tasks.find("classification"), batch_size)  # type: ignore[assignment]
    return fit_temperature(seen.logits, seen.targets)


@torch.no_grad()
def meter(
    model: nn.Module,
    data: Measured,
    task: Task,
    batch_size: int = 500,
    rows: range | None = None,
    logits: Callable[[Any], Tensor] | None = None,
) -> Meter:
    """A task's meter that has seen these rows of the data; all of them if None.

    logits: what to make of the network's output, in the place of `task.logits`.
    """
    if not isinstance(model, nn.Module):
        raise Refused(f"model must be an nn.Module, such as psd.load_model(FOLDER) gives, got a {type(model).__name__}")
    seen = task.meter(len(data.classes))
    rows = range(len(data)) if rows is None else rows
    with evaluating(model):
        for z, targets in _outputs(model, data, rows, batch_size, logits or task.logits):
            seen.update(z, targets)
    return seen


@torch.no_grad()
def predict(model: nn.Module, data: Any, batch_size: int = 500, rows: range | None = None) -> Tensor:
    """Logits (N, C) of every image, float32 on the CPU; every part of the model keeps the mode it had.

    Args:
        model: on the device of its parameters, in eval mode meanwhile.
        data: as in `psd.evaluate`.
        batch_size: images per forward pass.
        rows: predict these images alone, in ascending order; all of them if None.

    Raises:
        ValueError: batch_size below 1; rows that are none, descending or not among the images.
    """
    images = measured(_data_set(data))
    rows = range(len(images)) if rows is None else rows
    if not rows or rows.step < 0 or rows[0] < 0 or rows[-1] >= len(images):
        raise Refused(f"rows must be an ascending range of the images 0 ... {len(images) - 1}, got {rows}")
    logits = tasks.find("classification").logits
    with evaluating(model):
        return torch.cat([z.float() for z, _ in _outputs(model, images, rows, batch_size, logits)]).cpu()


def _outputs(
    model: nn.Module, data: Measured, rows: range, batch_size: int, logits: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
    """The logits of each batch, and its targets."""
    if batch_size < 1:
        raise Refused(f"batch_size must be at least 1, got {batch_size!r}")
    device = next(model.parameters()).device
    for x, targets in data.batches(rows, batch_size, device):
        yield logits(model(x)), targets


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; then every part of it in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:  # not model.train(), which would wake frozen parts
            module.training = training


def _task(task: str | Task) -> Task:
    return tasks.find(task) if isinstance(task, str) else task


def _data_set(data: Any) -> Any:
    """What was given, unless it is a DataLoader: its order and batches are no matter here."""
    if isinstance(data, torch.utils.data.DataLoader):
        raise Refused("data must be a data set, got a DataLoader; give its `.dataset`")
    return data
