"""What a target is, what a network's output means, and which figures measure it: one file each.

A task is an object with the members of `Task`; its name is its name in recipes. The loop knows no task by name: a new
one is one new file here, or `register` in a module of your own.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Literal, NamedTuple, Protocol

from psd.checks import Refused, did_you_mean


class Metric(NamedTuple):
    """A figure that records hold and reports print.

    name: its key in `record.final`. title: the column of a table. unit: "%", "nats", or "" for a fraction.
    better: "higher", "lower", or "zero", where the sign tells something. digits: after the point.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower", "zero"]
    digits: int

    def text(self, value: float) -> str:
        """A value with its name and unit.

        >>> Metric("top1", "top-1", "%", "higher", 2).text(71.5)
        'top-1 71.50 %'
        """
        return f"{self.title} {value:.{self.digits}f}{' %' if self.unit == '%' else ''}"


class Metrics(dict[str, Any]):
    """A task's figures by name: `metrics["top1"]` is also `metrics.top1`. `Metric` tells their units.

    >>> Metrics(top1=50.0).top1
    50.0
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no figure {name!r}; there are {', '.join(self)}")


class Meter(Protocol):
    """What a task makes of a data set's outputs, batch by batch."""

    def update(self, logits: Any, targets: Any) -> None:
        """Take in one batch: what `Task.logits` gives, and its targets, on whatever device."""

    def merge(self, other: Any) -> None:
        """Take in what another process's meter of the same kind has seen, of the rows after this one's."""

    def compute(self, tune: Any = None) -> Metrics:
        """The figures by name, the first of `Task.metrics` among them, and `n_test`, the number of images.

        tune: a meter of images that were neither trained on nor are in this one, on which whatever a task fits
        after training, such as a temperature, is fitted.
        """


class Task(Protocol):
    """The seam of tasks.

    metrics: the first one is what methods are compared by. learns: "label", the one class of each image, or the key of
    what it learns in the targets of a data set of scenes (`psd.data.scenes`): "mask", "boxes". A method says which of
    them it can learn, and the others are refused.
    """

    name: str
    metrics: tuple[Metric, ...]
    learns: str

    def logits(self, output: Any) -> Any:
        """A network's output -> logits with the class in dimension 1: (N, C) or (N, C, *spatial). Where nothing but the
        network's own losses is trained on, whatever its meter takes."""

    def meter(self, classes: int) -> Meter:
        """A new, empty meter."""


_REGISTERED: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Make a task of your own known by its name; ValueError where the name is taken."""
    if task.name in names():
        raise Refused(f"task.name {task.name!r} is taken; known: {', '.join(names())}")
    _REGISTERED[task.name] = task
    return task


def names() -> list[str]:
    """The names of all tasks: the files of this folder, and what is registered.

    >>> "classification" in names()
    True
    """
    return sorted({*(module.name for module in pkgutil.iter_modules(__path__)), *_REGISTERED})


def find(name: str) -> Task:
    """The task of a name; ValueError with the nearest name if there is none."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in names():
        hint = did_you_mean(name, names()) or "."
        raise Refused(f"task.name {name!r} is unknown{hint} Known: {', '.join(names())}")
    task: Task = importlib.import_module(f"{__name__}.{name}").TASK
    return task
