"""Images that fit in memory, and the seeded choices among them: classes, images per class, fit and tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from psd.checks import Refused
from psd.seeding import generator_for


class MissingData(Refused):
    """A data set is not where it was looked for; the message names the place and the command that gets it."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled set of images, all of it in memory. Map-style: `data[i]` is (uint8 image (C, H, W), label).

    Attributes:
        images: uint8 (N, C, H, W), N >= 1.
        targets: int64 (N,), each an index into `classes`.
        classes: the classes' names.
        name: where the images come from: "shapes", "cifar100", "cifar100-small", "folder:...".
        mean, std: of pixels / 255, one number per channel, for normalisation.
        crop_padding: augmentation in training: shift by up to this many pixels.
        flip: augmentation in training: mirror half of the images left to right.

    Raises:
        ValueError: an empty set, a wrong shape or dtype, a label without a class.
    """

    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise Refused(f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if self.targets.dtype != torch.int64 or self.targets.shape != self.images.shape[:1]:
            raise Refused(
                f"targets must be int64 of shape {(len(self.images),)}, one label per image, "
                f"got {self.targets.dtype} of shape {tuple(self.targets.shape)}"
            )
        if len(self.images) == 0:
            raise Refused(f"the data set {self.name!r} is empty: images is {tuple(self.images.shape)}")
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or high >= len(self.classes):
            wrong = low if low < 0 else high
            raise Refused(f"targets must lie between 0 and {len(self.classes) - 1}, got {wrong}")
        channels = self.images.shape[1]
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise Refused(f"mean and std > 0 need one number per channel ({channels}), got {self.mean} and {self.std}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[i], int(self.targets[i])

    def subset(self, indices: Tensor | Sequence[int]) -> ImageData:
        """The images at `indices` (integers, in that order), with all classes kept; none is a ValueError."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        return replace(self, images=self.images[index], targets=self.targets[index.to(self.targets.device)])


def chosen_classes(available: int, classes: int | None, seed: int) -> list[int]:
    """`classes` of 0 ... available - 1, drawn by `seed`, in ascending order; all of them if None.

    The draw depends on the seed alone, so that train and test of one seed hold the same classes.

    Raises:
        ValueError: `classes` below 1 or above `available`.
    """
    if classes is None:
        return list(range(available))
    if not 1 <= classes <= available:
        raise Refused(f"classes must lie between 1 and the {available} there are, got {classes}")
    drawn = torch.randperm(available, generator=generator_for(seed, "classes"))[:classes]
    return sorted(drawn.tolist())


def choose(
    targets: Tensor, names: Sequence[str], classes: int | None, per_class: int | None, seed: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """A seeded subset: `classes` of the classes, `per_class` images of each; None takes all.

    Both draws are nested: a larger number takes the same images and more. Which images of a class are taken
    does not depend on which other classes are.

    Returns:
        indices int64 (M,) in ascending order, their labels int64 (M,) renumbered 0 ... classes - 1 in the
        original order of the classes, and the names of these classes.

    Raises:
        ValueError: more classes or more images of a class than there are, or fewer than 1.
    """
    kept = chosen_classes(len(names), classes, seed)
    if per_class is not None and per_class < 1:
        raise Refused(f"per_class must be at least 1, got {per_class}")
    parts = []
    for c in kept:
        members = (targets == c).nonzero().flatten()
        if per_class is not None:
            if per_class > len(members):
                raise Refused(f"per_class must be at most {len(members)}, the images of {names[c]!r}, got {per_class}")
            order = torch.randperm(len(members), generator=generator_for(seed, "images of a class", c))
            members = members[order[:per_class]]
        parts.append(members)
    indices = torch.cat(parts).sort().values
    renumbered = torch.full((len(names),), -1, dtype=torch.int64)
    renumbered[kept] = torch.arange(len(kept))
    return indices, renumbered[targets[indices]], tuple(names[c] for c in kept)


def take(data: ImageData, classes: int | None, per_class: int | None, seed: int) -> ImageData:
    """`choose` applied to images in memory."""
    if classes is None and per_class is None:
        return data
    indices, targets, names = choose(data.targets, data.classes, classes, per_class, seed)
    return replace(data, images=data.images[indices], targets=targets, classes=names)


def resized(data: ImageData, size: int | None) -> ImageData:
    """Square images of `size` pixels a side (bilinear, antialiased), to be shifted by as much of it; None: as they are.

    Raises:
        ValueError: a size below 1.
    """
    if size is None or size == data.images.shape[-1]:
        return data
    if size < 1:
        raise Refused(f"size must be at least 1 pixel, got {size}")
    from torchvision.transforms.functional import resize

    padding = round(data.crop_padding * size / data.images.shape[-1])
    return replace(data, images=resize(data.images, [size, size], antialias=True), crop_padding=padding)


def fit_or_tune(targets: Tensor, part: str) -> Tensor:
    """Indices (ascending) of "fit" or "tune": a train split cut 90/10 in every class, always the same way.

    "tune" has a tenth of each class (rounded, at least one image), "fit" the rest. Hyperparameters are chosen
    by training on fit and measuring on tune, so that test is looked at once.

    Raises:
        ValueError: a class with a single image.
    """
    parts = []
    for c in sorted(set(targets.tolist())):
        members = (targets == c).nonzero().flatten()
        if len(members) < 2:
            raise Refused(f"split {part!r} needs 2 training images or more of every class, class {c} has 1; add some")
        order = torch.randperm(len(members), generator=generator_for("fit and tune", c))
        tenth = max(1, round(len(members) / 10))
        parts.append(members[order[:tenth] if part == "tune" else order[tenth:]])
    return torch.cat(parts).sort().values


def with_label_noise(data: ImageData, share: float, seed: int) -> ImageData:
    """`share` of the images (rounded), drawn by `seed`, with a label drawn evenly from the other classes.

    Raises:
        ValueError: fewer than two classes to draw from.
    """
    classes = len(data.classes)
    if classes < 2:
        raise Refused(f"label_noise needs at least 2 classes, got {classes}")
    generator = generator_for(seed, "label noise")
    wrong = torch.randperm(len(data), generator=generator)[: round(share * len(data))]
    targets = data.targets.clone()
    targets[wrong] = (targets[wrong] + torch.randint(1, classes, (len(wrong),), generator=generator)) % classes
    return replace(data, targets=targets)
