"""Partners of the same class: in a data set (`ClassPairs`) and inside a batch (`same_class_partner`).

This file needs torch alone and can be lifted into another project as it stands.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class ClassPairs(Dataset[tuple[Any, Any, int, int]]):
    """A map-style data set of same-class pairs: i -> (x_i, x_j, y_i, i) with j != i and y_j = y_i.

    The partner j is uniform over the rest of the class and a function of (seed, epoch, i) alone. So any sampler
    and any number of workers or processes gives the same pairs, and going back to an epoch gives its pairs again.
    Call `set_epoch(e)` before each epoch: it also reaches workers that persist.

    Args:
        dataset: map-style, item = (x, y, ...); each of the two images goes through the data set's own transform.
        targets: N integer labels; `dataset.targets` if None. Reading them must not need the images.
        seed: any integer.

    Raises:
        ValueError: empty data, labels that do not fit the data set or are no integers, a class with one image, a
            seed that is no integer.

    >>> data = [(f"image {i}", i % 2) for i in range(6)]
    >>> pairs = ClassPairs(data, targets=[y for _, y in data])
    >>> x_i, x_j, y, i = pairs[0]
    >>> x_i, y, i, x_j in ("image 2", "image 4")
    ('image 0', 0, 0, True)
    """

    def __init__(self, dataset: Any, targets: Sequence[int] | Tensor | None = None, seed: int = 0) -> None:
        if targets is None:
            targets = getattr(dataset, "targets", None)
            if targets is None:
                raise ValueError("targets: the data set has no attribute `targets`; give the labels as targets=[...]")
        self.dataset = dataset
        self.targets = _labels(targets)
        if not _is_integer(seed):
            raise ValueError(f"seed must be an integer, got {seed!r}")
        self.seed = int(seed)
        if len(self.targets) != len(dataset):
            raise ValueError(f"targets has {len(self.targets)} labels for a data set of {len(dataset)} items")
        if len(self.targets) == 0:
            raise ValueError("dataset is empty: there is nothing to pair")
        self._order, self._start, self._count, self._rank = _by_class(self.targets)
        lonely = self.targets[self._count == 1].unique().tolist()
        if lonely:
            raise ValueError(
                f"targets: class {lonely[0]} has a single image, so it has no partner "
                f"({len(lonely)} such classes); leave these classes out or add images"
            )
        # In shared memory, so that workers started earlier see a later set_epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (an integer >= 0) whose pairs are given from now on, in every worker."""
        if not _is_integer(epoch) or epoch < 0:
            raise ValueError(f"epoch must be an integer >= 0, got {epoch!r}")
        self._epoch.fill_(epoch)

    def partner(self, i: int) -> int:
        """Index of the partner of item i (0 <= i < N) in the present epoch."""
        draw = _mix(_mix(_mix(self.seed) ^ self.epoch) ^ i) % (int(self._count[i]) - 1)
        draw += draw >= int(self._rank[i])  # step over i itself
        return int(self._order[int(self._start[i]) + draw])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, Any, int, int]:
        i = range(len(self))[i]  # IndexError past the end; negative indices count from it
        return self.dataset[i][0], self.dataset[self.partner(i)][0], int(self.targets[i]), i


def same_class_partner(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For every sample of a batch, the index of another sample of its class, uniform over them.

    Args:
        labels: (N,) integers, any device.
        generator: source of the draw; torch's global one if None.

    Returns:
        (N,) int64 on the labels' device; a sample whose class has no other sample gets its own index.

    Raises:
        ValueError: labels that are not one-dimensional integers.

    >>> same_class_partner(torch.tensor([7, 3, 7, 5])).tolist()
    [2, 1, 0, 3]
    """
    labels = _labels(labels)
    order, start, count, rank = _by_class(labels)
    device = labels.device if generator is None else generator.device
    draw = torch.randint(2**31 - 1, labels.shape, generator=generator, device=device).to(labels.device)
    draw = draw % (count - 1).clamp(min=1)
    draw = draw + (draw >= rank).long()  # step over the sample itself
    return order[start + torch.where(count > 1, draw, rank)]


def _labels(targets: Sequence[int] | Tensor) -> Tensor:
    try:
        labels = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):  # strings, None, lists of unequal length
        raise ValueError(f"labels must be N integers, got {reprlib.repr(targets)}") from None
    if labels.ndim != 1 or (labels.numel() and (labels.is_floating_point() or labels.is_complex())):
        raise ValueError(f"labels must be N integers, got {labels.dtype} of shape {tuple(labels.shape)}")
    return labels.long()


def _is_integer(value: object) -> bool:
    """NumPy's integers are integers too; True is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _by_class(labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`order` lists the samples class by class; a sample's class begins there at `start`, has `count` samples,
    and the sample is number `rank` of it. All (N,) int64; no step depends on the data's values, so it compiles
    and never waits for the device."""
    ordered, order = labels.sort(stable=True)
    start = torch.searchsorted(ordered, labels)
    count = torch.searchsorted(ordered, labels, right=True) - start
    position = torch.empty_like(order)
    position[order] = torch.arange(len(labels), device=labels.device)
    return order, start, count, position - start


def _mix(z: int) -> int:
    """splitmix64's output function: a bijection of 64-bit integers that scatters neighbours (Steele et al. 2014)."""
    z = (z + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)
