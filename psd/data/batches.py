"""Training batches of data that fits in memory: one uint8 tensor on the training device.

Order, partner, crop and flip are drawn for a whole epoch at once, each as a function of (seed, epoch); a batch is
then one gather of pixels and a normalisation, without a worker process or a PIL image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from psd.checks import Refused, refusing
from psd.data.images import ImageData
from psd.data.normalisation import Normalisation
from psd.methods import NEEDS, Batch, RawPair
from psd.pairs import ClassPairs, epoch_partners, other_class_partner
from psd.seeding import generator_for


class Share(NamedTuple):
    """Which rows of every step's batch are this process's.

    A step's batch is cut into `world * accumulate` parts of equal size. Process `rank` of `world` has `accumulate` of
    them, one after another, and sums their gradients. So neither number changes which images a step holds.
    """

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def parts(self) -> int:
        return self.world * self.accumulate

    def part(self, turn: int) -> int:
        """The part of the batch, of 0 ... parts - 1, that this process has in its turn 0 ... accumulate - 1."""
        return self.rank * self.accumulate + turn

    def rows(self, batch_size: int, turn: int) -> slice:
        """The rows of a batch of `batch_size` anchors that make up this part."""
        size = batch_size // self.parts
        return slice(self.part(turn) * size, (self.part(turn) + 1) * size)


def check_batches(samples: int, batch_size: int, needs: Collection[str], share: Share) -> None:
    """ValueError for a batch larger than the data or not divisible into the parts, and for unknown needs."""
    if not 1 <= batch_size <= samples:
        raise Refused(f"data.batch_size must lie between 1 and the {samples} training images, got {batch_size}")
    if "raw" in needs and "partner" not in needs:
        raise Refused('needs "raw" is of pairs: it needs "partner" as well')
    if batch_size % share.parts:
        raise Refused(
            f"data.batch_size {batch_size} cannot be cut into {share.parts} equal parts "
            f"({share.world} processes x run.accumulate {share.accumulate}); choose a multiple"
        )
    unknown = set(needs) - set(NEEDS)
    if unknown:
        raise Refused(f"needs {sorted(unknown)} are unknown; known are {', '.join(NEEDS)}")


class Batches:
    """Random access to the training batches: `batches[step]` is a function of (seed, step, share) alone.

    An epoch visits every image at most once as an anchor; the last incomplete batch is dropped.

    Args:
        data: the training images.
        batch_size: anchors per step.
        seed: any integer; two methods with one seed see the same anchors, partners and crops in the same order.
        needs: which of "partner", "view", "previous", "raw" (with "partner"), "other" to provide.
        crop_padding: pixels of black border of which a random window is cut; the data's own if None.
        flip: mirror half of the images; the data's own if None.
        device: where the images live and the batches are made.
        share: the rows of each batch that this process gets; all of them by default.
        normalisation: the data's own if None.

    Raises:
        ValueError: a batch larger than the data or not divisible into the parts, unknown needs, and what
            `ClassPairs` refuses where a method needs partners, or a single class where it needs others.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int,
        needs: Collection[str] = (),
        crop_padding: int | None = None,
        flip: bool | None = None,
        device: torch.device | str = "cpu",
        share: Share = Share(),  # noqa: B008 (it is immutable)
        normalisation: Normalisation | None = None,
    ) -> None:
        check_batches(len(data), batch_size, needs, share)
        if "partner" in needs:
            with refusing():
                ClassPairs(data, data.targets)  # refuses classes without a partner
        if "other" in needs:
            with refusing():
                other_class_partner(data.targets, torch.Generator(data.targets.device))  # refuses a single class
        self.padding = data.crop_padding if crop_padding is None else crop_padding
        self.flip = data.flip if flip is None else flip
        if self.padding < 0:
            raise Refused(f"data.crop_padding must be >= 0 pixels, got {self.padding}")
        self.batch_size, self.seed, self.needs, self.share = batch_size, seed, frozenset(needs), share
        self.steps_per_epoch = len(data) // batch_size
        self.device = torch.device(device)
        self.targets = data.targets.to(self.device)
        self.shape = tuple(data.images.shape[1:])
        self.height, self.width = self.shape[1:]
        images = data.images.to(self.device)
        self._pixels = self._padded_pixels(images)
        self._raw = images if "raw" in self.needs else None
        self._normalise = normalisation or Normalisation(data.mean, data.std)
        self.statistics = self._normalise.statistics
        self._draw: Callable[[str, int], Tensor] = lru_cache(maxsize=10)(
            self._draw_epoch
        )  # this epoch's and the one before, for every role

    def __getitem__(self, step: int) -> Batch:
        """This process's share of the batch of a step >= 0, in whatever order steps are asked for."""
        return self.get(step)

    def get(self, step: int, turn: int = 0) -> Batch:
        """One of the `share.accumulate` parts of this process's share."""
        anchors, rows = self._anchors(step, turn)
        epoch = step // self.steps_per_epoch
        batch = Batch(self._images("anchor", epoch, anchors, rows), self.targets[anchors], anchors)
        if "partner" in self.needs:
            partners = self._draw("partners", epoch)[anchors]
            batch.partner = self._images("partner", epoch, partners, rows)
            if self._raw is not None:
                batch.raw = RawPair(self._raw[anchors], self._raw[partners], partial(self._augment, epoch, rows))
        if "other" in self.needs:
            others = self._draw("others", epoch)[anchors]
            batch.other, batch.other_y = self._images("other", epoch, others, rows), self.targets[others]
        if "view" in self.needs:
            batch.view = self._images("view", epoch, anchors, rows)
        if "previous" in self.needs and step > 0:
            before, rows = self._anchors(step - 1, turn)
            again = self._images("previous", (step - 1) // self.steps_per_epoch, before, rows)
            batch.previous = Batch(again, self.targets[before], before)
        return batch

    def close(self) -> None:
        """Nothing is left open; a `Stream` has workers to end."""

    def _anchors(self, step: int, turn: int) -> tuple[Tensor, slice]:
        epoch, position = divmod(step, self.steps_per_epoch)
        part = self.share.rows(self.batch_size, turn)
        rows = slice(position * self.batch_size + part.start, position * self.batch_size + part.stop)
        return self._draw("order", epoch)[rows], rows

    def _draw_epoch(self, what: str, epoch: int) -> Tensor:
        """One epoch's draw of one kind: int64, (M,) or, for crops, (M, 3) with top, left and mirrored or not."""
        if what == "partners":
            return epoch_partners(self.targets, self.seed, epoch, self.device)
        generator = generator_for(self.seed, what, epoch, device=self.device)
        m = len(self.targets)
        if what == "order":
            return torch.randperm(m, generator=generator, device=self.device)
        if what == "others":
            return other_class_partner(self.targets, generator)
        corner = torch.randint(2 * self.padding + 1, (m, 2), generator=generator, device=self.device)
        mirrored = torch.randint(2, (m, 1), generator=generator, device=self.device) * self.flip
        return torch.cat([corner, mirrored], dim=1)

    def _padded_pixels(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) with their black border, pixel after pixel: (N * H' * W', C)."""
        return F.pad(images, (self.padding,) * 4).permute(0, 2, 3, 1).reshape(-1, images.shape[1])

    def _images(self, role: str, epoch: int, index: Tensor, rows: slice) -> Tensor:
        """Crop, flip and normalise the images `index`; the draws are those of the epoch's `rows`."""
        return self._cut(self._pixels, role, epoch, index, rows)

    def _augment(self, epoch: int, rows: slice, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The same for images that are given, uint8 (N, C, H, W), by the draws of anchors and partners."""
        index = torch.arange(len(a), device=self.device)
        x_a = self._cut(self._padded_pixels(a), "anchor", epoch, index, rows)
        return x_a, self._cut(self._padded_pixels(b), "partner", epoch, index, rows)

    def _cut(self, pixels: Tensor, role: str, epoch: int, index: Tensor, rows: slice) -> Tensor:
        top, left, mirrored = self._draw(f"crop {role}", epoch)[rows].unbind(1)
        y = top[:, None] + torch.arange(self.height, device=self.device)  # (N, H)
        x = torch.arange(self.width, device=self.device)
        x = left[:, None] + torch.where(mirrored[:, None] > 0, x.flip(0), x)  # (N, W)
        padded_height, padded_width = self.height + 2 * self.padding, self.width + 2 * self.padding
        row = (index[:, None] * padded_height + y) * padded_width  # first pixel of each row: (N, H)
        pixel = row[:, :, None] + x[:, None, :]  # (N, H, W)
        images: Tensor = pixels.index_select(0, pixel.flatten()).unflatten(0, pixel.shape)  # (N, H, W, C)
        return self._normalise(images.permute(0, 3, 1, 2))


class InMemory:
    """Images in memory as an evaluation reads them: not augmented.

    Attributes:
        targets: int64 (N,). classes: the classes' names. shape: (C, H, W) of an image.
    """

    def __init__(self, data: ImageData, normalisation: Normalisation | None = None) -> None:
        self.data, self.targets, self.classes = data, data.targets, data.classes
        self.shape = tuple(data.images.shape[1:])
        self._normalise = normalisation or Normalisation(data.mean, data.std)
        self._images = data.images

    def __len__(self) -> int:
        return len(self.data)

    def batches(
        self, indices: Sequence[int], batch_size: int, device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images at `indices`, in that order: float32 (N, C, H, W) on `device`, channels_last; their labels (N,).

        They stay on the device: all of them are measured again and again.
        """
        if batch_size < 1:
            raise Refused(f"batch_size must be at least 1, got {batch_size!r}")
        self._images = self._images.to(device)
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            rows = slice(part.start, part.stop, part.step) if isinstance(part, range) else list(part)
            images = self._normalise(self._images[rows]).contiguous(memory_format=torch.channels_last)
            yield images, self.targets[rows]
