"""Any map-style data set of (image, target): its items by number, as they come out of its own transform."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from psd.checks import Refused, refusing
from psd.data import pictures
from psd.data.decoding import Item, is_end_of_worker, make_loader, shut_down, worker_count, worker_error
from psd.data.normalisation import Normalisation
from psd.pairs import labels_of

IMAGE_COLUMNS = ("pixel_values", "image", "img")  # of data sets whose items are mappings, as Hugging Face's are


class Items(torch.utils.data.Dataset[Any]):
    """Numbers and seeds in, images out: what worker processes are given of a data set.

    Whatever the data set's transform draws, from torch, NumPy or Python's random, is a function of the seed alone.

    Args:
        dataset: map-style; an item is (image, target, ...) or a mapping with an image column. Images are PIL images,
            arrays (H, W, C) or tensors (C, H, W), all of one size. uint8 ones are normalised later, others are taken
            as they are.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, items: Sequence[Item]) -> tuple[Tensor, list[tuple[int, str]]]:
        images = [self.image(int(index), seed) for index, seed in items]
        for (index, _), image in zip(items, images, strict=True):
            if image.shape != images[0].shape or image.dtype != images[0].dtype:
                raise Refused(
                    f"the data set's images differ: item {items[0][0]} is {_describe(images[0])}, item {index} is "
                    f"{_describe(image)}; let its transform resize or crop them to one size and type"
                )
        return torch.stack(images), []

    def image(self, index: int, seed: int) -> Tensor:
        """One item's image: a tensor (C, H, W)."""
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            try:
                return as_tensor(image_of(self.dataset[index]), index)
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])


class MeasuredItems:
    """Such a data set as an evaluation reads it, in order. Its transform should draw nothing.

    Attributes:
        targets: int64 (N,), each an index into `classes`. classes: the classes' names. shape: (C, H, W) of an image.
    """

    def __init__(self, dataset: Any, normalisation: Normalisation, workers: int | None = 0) -> None:
        self._items, self._normalise, self._workers = Items(dataset), normalisation, worker_count(workers)
        with refusing():
            self.targets = labels_of(dataset)
        self.classes = class_names(dataset, self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._items.image(0, 0).shape)

    def batches(
        self, indices: Sequence[int], batch_size: int, device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images at `indices`, in that order: float32 (N, C, H, W) on `device`, channels_last; and labels."""
        if batch_size < 1:
            raise Refused(f"batch_size must be at least 1, got {batch_size!r}")
        parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        cut = [[Item(i, 0) for i in part] for part in parts]
        loader: DataLoader[Any] = make_loader(
            self._items, cut, min(self._workers, len(cut)), torch.device(device), persistent=False
        )
        read = None
        try:
            read = iter(loader)
            for part, (images, _) in zip(parts, read, strict=True):
                yield ready(images, self._normalise, device), self.targets[list(part)]
        except Exception as error:
            if self._workers and is_end_of_worker(error):
                raise worker_error(error, self._workers) from error
            raise
        finally:
            shut_down(read)


def ready(images: Tensor, normalise: Normalisation, device: torch.device | str) -> Tensor:
    """Images on the device as a network takes them: uint8 ones normalised, channels_last."""
    x = images.to(device, non_blocking=True)
    x = normalise(x) if x.dtype == torch.uint8 else x
    return x.contiguous(memory_format=torch.channels_last)


def image_of(item: Any) -> Any:
    """The image of an item, a pair or a mapping."""
    if isinstance(item, Mapping):
        column = next((name for name in IMAGE_COLUMNS if name in item), None)
        if column is None:
            raise Refused(
                f"the data set's items have no image column ({', '.join(IMAGE_COLUMNS)}), only {', '.join(item)}; call "
                "it image, as by Hugging Face's dataset.rename_column"
            )
        return item[column]
    if not isinstance(item, Sequence) or len(item) < 2:
        raise Refused(f"an item of the data set must be (image, target), got {type(item).__name__}")
    return item[0]


def as_tensor(image: Any, index: int) -> Tensor:
    """A tensor (C, H, W) of a PIL image (in RGB), an array or a tensor."""
    if not isinstance(image, Tensor):
        if hasattr(image, "convert"):
            with refusing(f"item {index} of the data set: "):
                image = pictures.in_rgb(image)
        pixels = np.array(image)
        if pixels.ndim != 3 or pixels.dtype == object:
            raise Refused(f"item {index} of the data set has no image: a {type(image).__name__} of {pixels.shape}")
        return torch.from_numpy(pixels).permute(2, 0, 1)
    if image.ndim != 3:
        raise Refused(f"item {index} of the data set must be an image (C, H, W), got {tuple(image.shape)}")
    return image


def class_names(dataset: Any, labels: Tensor) -> tuple[str, ...]:
    """The names that a data set, or the one that it is a part of, gives its classes; numbers where it has none."""
    count = int(labels.max()) + 1
    inner = dataset
    while inner is not None:
        names = getattr(inner, "classes", None)
        if names is not None and len(names) >= count:
            return tuple(map(str, names))
        inner = getattr(inner, "dataset", None)
    return tuple(map(str, range(count)))


def _describe(image: Tensor) -> str:
    return f"{image.dtype} {tuple(image.shape)}"
