"""Batches of image files that do not fit in memory: worker processes decode and crop, the device normalises.

`Stream` makes the training batches, with the interface of `psd.data.batches.Batches`, and `CentreCrops` the images
of an evaluation. The main process decides which file is cut where, as a function of (seed, epoch, row of the
epoch, role); a worker is told a file and a seed and remembers nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from psd.checks import Refused, refusing
from psd.data.ahead import Ahead, Part, Plan
from psd.data.batches import Share, check_batches
from psd.data.decoding import (
    Centres,
    Decoded,
    Item,
    TrainingCrops,
    is_end_of_worker,
    make_loader,
    shut_down,
    worker_count,
    worker_error,
)
from psd.data.folder import MEAN, STD
from psd.data.items import Items, class_names, ready
from psd.data.normalisation import Normalisation
from psd.methods import Batch
from psd.pairs import ClassPairs, epoch_partners, labels_of, other_class_partner
from psd.seeding import generator_for

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder


class Stream:
    """Training batches from image files, decoded by worker processes: the same interface as `Batches`.

    `stream[step]` is a function of (seed, step, share) alone: not of the workers, nor of what was asked before. The
    order of an epoch and the partners are those of `Batches` with the same seed on the CPU; here they are drawn on
    the CPU whatever the device, so they are the same on every device. Steps asked for in order are decoded ahead;
    any other step starts the decoding anew there, once the workers have finished what they were told before.

    Every image of a batch, partners and views too, is a window of its own (torchvision's RandomResizedCrop with
    ratio 3/4 to 4/3) and mirrored or not by itself. JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where
    the window still has `crop_size` pixels a side then.

    The workers start with the first batch and persist. A script that uses them must begin its own work under
    `if __name__ == "__main__":`, because every worker imports the script.

    Args:
        data: what `psd.data.load("folder:PATH")` or `load("imagenet")` gives without `size`, or any map-style data
            set of (image, target), whose own transform then does what crop_size, crop_scale and flip do here.
        batch_size: anchors per step, over all shares.
        seed: any integer; two methods with one seed see the same anchors, partners and crops in the same order.
        needs: which of "partner", "view", "previous", "other" to provide.
        crop_size: side of the images in pixels.
        crop_scale: smallest part of an image's area that a window may have, in (0, 1]; the largest is 1.
        flip: mirror half of the images.
        device: where the batches end; workers deliver uint8, and float32 is made there.
        workers: worker processes of this process; 0 decodes in the main process. None: the cores that this process
            may use, divided by the processes of this machine (LOCAL_WORLD_SIZE), and at least 1.
        share: the rows of each batch that this process gets, and decodes; all of them by default.
        skip_corrupt: show another image of the same class, drawn by (seed, epoch, image), where one cannot be
            read. `index` keeps the position of the image that was left out.
        normalisation: of uint8 pixels; that of ImageNet if None.

    Attributes:
        steps_per_epoch: of complete batches; an epoch visits every image at most once as an anchor.
        skipped: files that this process could not read so far, each counted once (with skip_corrupt).

    Raises:
        ValueError: what `Batches` refuses, a crop_size or crop_scale out of range, workers below 0. From a batch:
            a file that cannot be read, or with skip_corrupt a class without a file that can.
        psd.data.decoding.WorkerEnded: from a batch: a worker has ended by force.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        seed: int,
        needs: Collection[str] = (),
        *,
        crop_size: int = 224,
        crop_scale: float = 0.08,
        flip: bool = True,
        device: torch.device | str = "cpu",
        workers: int | None = None,
        share: Share = Share(),  # noqa: B008 (it is immutable)
        skip_corrupt: bool = False,
        normalisation: Normalisation | None = None,
    ) -> None:
        check_batches(len(data), batch_size, needs, share)
        _check_crop_size(crop_size)
        if "raw" in needs:
            raise Refused(
                "images that are streamed from files are cut as they are decoded, so nothing can be done before: "
                "set data.size to decode them into memory, or method.before to false"
            )
        if not 0 < crop_scale <= 1:
            raise Refused(f"data.crop_scale must lie above 0 and at most at 1, got {crop_scale}")
        with refusing():
            self.targets = labels_of(data)
        if "partner" in needs:
            with refusing():
                ClassPairs(data, self.targets)  # refuses classes without a partner
        if "other" in needs:
            with refusing():
                other_class_partner(self.targets, torch.Generator())  # refuses a single class
        self.batch_size, self.seed, self.needs, self.share = batch_size, seed, frozenset(needs), share
        self.device, self.workers, self.skip_corrupt = torch.device(device), worker_count(workers), skip_corrupt
        self.classes = class_names(data, self.targets)
        self._normalise = normalisation or Normalisation(MEAN, STD)
        self.decoder: TrainingCrops | Items
        keys: Sequence[str | int]
        if is_folder(data):
            keys, self.decoder = _files(data), TrainingCrops(crop_size, crop_scale, flip)
            self.shape: tuple[int, ...] = (3, crop_size, crop_size)
            self.statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = self._normalise.statistics
        else:
            keys, self.decoder = range(len(data)), Items(data)
            first = self.decoder.image(0, 0)
            self.shape = tuple(first.shape)
            self.statistics = self._normalise.statistics if first.dtype == torch.uint8 else None
        labels = self.targets  # not self, to which the plan must not refer back
        draws = {
            "partners": lambda epoch: epoch_partners(labels, seed, epoch),
            "others": lambda epoch: other_class_partner(labels, generator_for(seed, "others", epoch)),
        }
        self.plan = Plan(keys, batch_size, seed, self.needs, share, draws)
        self.steps_per_epoch = self.plan.steps_per_epoch
        self._ahead = Ahead(self.decoder, self.plan, self.workers, self.device)
        self._unreadable: set[str | int] = set()

    @property
    def skipped(self) -> int:
        return len(self._unreadable)

    def __getitem__(self, step: int) -> Batch:
        """This process's share of the batch of a step >= 0, in whatever order steps are asked for."""
        return self.get(step)

    def get(self, step: int, turn: int = 0) -> Batch:
        """One of the `share.accumulate` parts of this process's share."""
        parts = self.plan.parts(step, turn)
        images, unreadable = self._ahead.take(step, turn)
        if unreadable:
            self._repair(parts, images, dict(unreadable))
        x = dict(
            zip(
                (part.role for part in parts),
                ready(images, self._normalise, self.device).chunk(len(parts)),
                strict=True,
            )
        )

        def batch(role: str, index: Tensor) -> Batch:
            return Batch(x[role], self.targets[index].to(self.device), index.to(self.device))

        of_role = {part.role: part for part in parts}
        made = batch("anchor", of_role["anchor"].index)
        made.partner, made.view = x.get("partner"), x.get("view")
        if "other" in of_role:
            others = batch("other", of_role["other"].index)
            made.other, made.other_y = others.x, others.y
        if "previous" in of_role:
            made.previous = batch("previous", of_role["previous"].index)
        return made

    def close(self) -> None:
        """End the workers; a batch asked for later starts them again."""
        self._ahead.close()

    def _repair(self, parts: Sequence[Part], images: Tensor, unreadable: dict[int, str]) -> None:
        """Put other images of the class in the place of those that could not be read, or say which they are.

        A partner is replaced too where it is the image that took the anchor's place.
        """
        if not self.skip_corrupt:
            message = next(iter(unreadable.values()))
            raise Refused(f"{message}, or set --data.skip_corrupt true")
        count = len(parts[0].index)
        shown = parts[0].index.tolist()  # the image that stands for each row's anchor
        for position in range(len(images)):
            part, i = parts[position // count], position % count
            index = int(part.index[i])
            anchor = shown[i] if part.role == "partner" else None
            if position in unreadable:
                self._unreadable.add(self.plan.keys[index])
            elif index != anchor:
                continue
            found, images[position] = self._replacement(part, i, anchor)
            if part.role == "anchor":
                shown[i] = found

    def _replacement(self, part: Part, i: int, anchor: int | None) -> tuple[int, Tensor]:
        """Another readable image of the class of `part.index[i]`, `anchor` only if there is no other.

        The draw depends on (seed, epoch, image) but not on the role, so that an anchor and its view show one image.
        """
        index = int(part.index[i])
        order = [other for other in self._others(index, part.epoch) if other != anchor]
        for other in order if anchor is None else [*order, anchor]:
            image, unreadable = self.decoder.__getitems__([self.plan.item(part, i, other)])
            if not unreadable:
                return other, image[0]
            self._unreadable.add(self.plan.keys[other])
        name = self.classes[int(self.targets[index])]
        raise Refused(
            f"class {name!r} has no readable image to show in place of {self.plan.keys[index]}; "
            "replace its files or remove the class"
        )

    def _others(self, index: int, epoch: int) -> list[int]:
        """The other images of the class, in the order in which they may replace this one."""
        members = (self.targets == self.targets[index]).nonzero().flatten()
        generator = generator_for(self.seed, "replacement", epoch, index)
        order: list[int] = members[torch.randperm(len(members), generator=generator)].tolist()
        return [other for other in order if other != index]


class CentreCrops:
    """Evaluation images from files: shorter side resized to crop_size * 256 / 224 pixels, then the centre cut out.

    This is the usual protocol of ImageNet. JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where the shorter
    side still has the pixels that it is resized to.

    Args:
        data: what `psd.data.load("folder:PATH", split="test")` gives without `size`.
        crop_size: side of the images in pixels.
        workers: as of `Stream`; they live as long as one call of `batches`.

    Attributes:
        targets: int64 (N,), each an index into `classes`.
        classes: the classes' names.

    Raises:
        ValueError: crop_size below 1, workers below 0.
    """

    def __init__(
        self,
        data: ImageFolder,
        crop_size: int = 224,
        workers: int | None = None,
        normalisation: Normalisation | None = None,
    ) -> None:
        _check_crop_size(crop_size)
        self._normalise = normalisation or Normalisation(MEAN, STD)
        self.crop_size, self.workers = crop_size, worker_count(workers)
        self.targets = torch.tensor(data.targets)
        self.classes = tuple(data.classes)
        self._files = _files(data)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return 3, self.crop_size, self.crop_size

    def batches(
        self, indices: Sequence[int], batch_size: int, device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images at `indices`, in order: normalised float32 (N, 3, S, S) on `device`, channels_last; and labels.

        Raises:
            ValueError: batch_size below 1, a file that cannot be read. WorkerEnded: a worker has ended by force.
        """
        if batch_size < 1:
            raise Refused(f"batch_size must be at least 1, got {batch_size!r}")
        parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        cut = [[Item(self._files[i], 0) for i in part] for part in parts]
        decoder, device = Centres(self.crop_size), torch.device(device)
        # No more workers than batches: a worker without one would cost its start alone.
        loader = make_loader(decoder, cut, min(self.workers, len(cut)), device, persistent=False)
        decoded: Iterator[Decoded] | None = None
        try:
            decoded = iter(loader)
            for part, (images, unreadable) in zip(parts, decoded, strict=True):
                if unreadable:
                    raise Refused(unreadable[0][1])
                yield ready(images, self._normalise, device), self.targets[list(part)]
        except Exception as error:
            if is_end_of_worker(error):
                raise worker_error(error, self.workers) from error
            raise
        finally:
            shut_down(decoded)


def _files(data: ImageFolder) -> list[str]:
    """Absolute paths: a worker may run in another folder than this process does by then."""
    here = os.getcwd()
    return [os.path.join(here, file) for file, _ in data.samples]


def is_folder(data: object) -> TypeGuard[ImageFolder]:
    """Whether a data set is one of image files of any size, as `psd.data.load` gives it without `size`: without a
    transform of its own, so that we decode and cut."""
    from torchvision.datasets import ImageFolder

    return isinstance(data, ImageFolder) and data.transform is None and data.transforms is None


def _check_crop_size(crop_size: int) -> None:
    if crop_size < 1:
        raise Refused(f"data.crop_size must be at least 1 pixel, got {crop_size}")
