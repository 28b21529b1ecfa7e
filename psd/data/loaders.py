"""Where the way from a data set to batches is chosen: from memory, from files, or item by item."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from psd.checks import Refused
from psd.data.batches import Batches, InMemory, Share
from psd.data.dense import MeasuredScenes, SceneBatches
from psd.data.folder import MEAN, STD
from psd.data.images import ImageData
from psd.data.items import MeasuredItems
from psd.data.normalisation import Normalisation
from psd.data.scenes import as_scenes
from psd.data.stream import CentreCrops, Stream, is_folder
from psd.methods import Batch

Shown = tuple[Tensor, Any]  # images (N, C, H, W) and the targets of each


class Loader(Protocol):
    """Training batches, each a function of (seed, step, turn, share) alone."""

    steps_per_epoch: int
    shape: tuple[int, ...]  # (C, H, W) of an image

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation by which pixels / 255 are normalised; None of images that come normalised."""

    def get(self, step: int, turn: int = 0) -> Batch:
        """One of the parts of a step's batch that this process has."""

    def close(self) -> None:
        """End the worker processes, where there are any."""


class Measured(Protocol):
    """The images of an evaluation, in order. shape: (C, H, W) of an image."""

    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def batches(self, indices: Sequence[int], batch_size: int, device: torch.device | str) -> Iterator[Shown]:
        """The images at `indices`, in that order, normalised, on the device; with their targets."""


def loader(
    data: Any,
    batch_size: int,
    seed: int,
    needs: Collection[str] = (),
    *,
    crop_padding: int | None = None,
    flip: bool | None = None,
    crop_size: int = 224,
    crop_scale: float = 0.08,
    workers: int | None = None,
    skip_corrupt: bool = False,
    device: torch.device | str = "cpu",
    share: Share = Share(),  # noqa: B008 (it is immutable)
    normalisation: Normalisation | None = None,
    learns: str = "label",
) -> Loader:
    """The training batches of `ImageData`, of an ImageFolder without a transform, or of any other map-style data set.

    learns: of the task; of anything but labels the data are scenes, or what `as_scenes` makes them of.

    Arguments and errors as in `Batches` and `Stream`. crop_padding is of images in memory; crop_size, crop_scale and
    skip_corrupt are of files; flip is of both. Other data sets are augmented by their own transform, and are read in
    this process unless `workers` says otherwise, because not every one can be sent to another.
    """
    if learns != "label":
        if crop_padding is not None or skip_corrupt:
            raise Refused("data.crop_padding and data.skip_corrupt do not apply to scenes; leave them out")
        return SceneBatches(
            as_scenes(data, learns),
            learns,
            batch_size,
            seed,
            needs,
            crop_size=crop_size,
            crop_scale=crop_scale,
            flip=flip,
            device=device,
            workers=workers,
            share=share,
            normalisation=normalisation,
        )
    if isinstance(data, ImageData):
        return Batches(data, batch_size, seed, needs, crop_padding, flip, device, share, normalisation)
    if crop_padding is not None:
        raise Refused(
            f"data.crop_padding {crop_padding} is for images in memory; of files a random part is taken "
            "(data.crop_scale) unless data.size has them decoded into memory, other data sets have their own transform"
        )
    folder = is_folder(data)
    if not folder and flip is not None:
        raise Refused(f"data.flip {flip} is for images in memory and files; this data set has its own transform")
    return Stream(
        data,
        batch_size,
        seed,
        needs,
        crop_size=crop_size,
        crop_scale=crop_scale,
        flip=True if flip is None else flip,
        device=device,
        workers=workers if folder else workers or 0,
        share=share,
        skip_corrupt=skip_corrupt,
        normalisation=normalisation,
    )


def measured(
    data: Any,
    *,
    crop_size: int = 224,
    workers: int | None = None,
    normalisation: Normalisation | None = None,
    learns: str = "label",
) -> Measured:
    """The same for an evaluation: whole images, or the centres of an ImageFolder's."""
    if isinstance(data, MeasuredScenes):
        return data
    if learns != "label":
        return MeasuredScenes(as_scenes(data, learns), learns, crop_size, workers, normalisation)
    if isinstance(data, ImageData):
        return InMemory(data, normalisation)
    if isinstance(data, (InMemory, CentreCrops, MeasuredItems)):
        return data
    if is_folder(data):
        return CentreCrops(data, crop_size, workers, normalisation)
    return MeasuredItems(data, normalisation or Normalisation(MEAN, STD), workers or 0)
