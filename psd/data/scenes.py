"""Pictures with several things in them, and where each of them is: masks and boxes, for segmentation and detection."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from psd.checks import Refused, refusing
from psd.data import pictures
from psd.data.folder import MEAN, STD

IGNORED = 255  # of a mask: pixels that are of no class. A batch has -100 there, which torch's losses leave out

Target = dict[str, Any]


class Scenes(Dataset[tuple[Tensor, Target]]):
    """A map-style data set of pictures: i -> (image, target), as torchvision's transforms.v2 take them.

    image: `tv_tensors.Image`, uint8 (3, H, W). target: a dict with any of
    - "mask": `tv_tensors.Mask`, uint8 (H, W), the class of each pixel; 0 is background, 255 counts nowhere;
    - "boxes": `tv_tensors.BoundingBoxes`, float32 (n, 4), x1, y1, x2, y2 in pixels, and "labels": int64 (n,), the class
      of each, never background.

    Args:
        name: in records.
        classes: the names of C classes, "background" first.
        read: the number of a picture -> (image, target). Of a module, not a lambda, where other processes read.
        present: bool (N, C), the classes that each picture shows; background counts as none.
        size: the side in pixels where all are squares in memory; None where they are read from files.
        flip: whether a picture may be mirrored in training.
        portable: whether `read` may be sent to worker processes without being asked to.
        mean, std: of pixels / 255, for normalisation.

    Raises:
        ValueError: no picture, or `present` of another form.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        read: Callable[[int], tuple[Tensor, Target]],
        present: Tensor,
        size: int | None = None,
        flip: bool = True,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        portable: bool = True,
    ) -> None:
        if present.ndim != 2 or present.shape[1] != len(classes) or not len(present):
            raise Refused(
                f"present must be (N, {len(classes)}) for these classes and at least one picture, "
                f"got {tuple(present.shape)}"
            )
        self.name, self.classes, self.read = name, tuple(classes), read
        self.present = present.bool().clone()
        self.present[:, 0] = False
        self.size, self.flip, self.mean, self.std = size, flip, tuple(mean), tuple(std)
        self.portable = portable and size is None

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        return self.read(range(len(self))[i])

    def in_memory(self, size: int) -> Scenes:
        """All pictures read once, each fitted into a square of `size` pixels: see `fitted`."""
        items = [fitted(*self[i], size) for i in range(len(self))]
        return self._like(items.__getitem__, self.present, size)

    def subset(self, indices: Tensor | Sequence[int]) -> Scenes:
        """The pictures at `indices`, in that order, with all classes kept."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self._like(_Chosen(self.read, chosen.tolist()), self.present[chosen], self.size)

    def _like(self, read: Callable[[int], tuple[Tensor, Target]], present: Tensor, size: int | None) -> Scenes:
        return Scenes(self.name, self.classes, read, present, size, self.flip, self.mean, self.std, self.portable)


class _Chosen:
    def __init__(self, read: Callable[[int], tuple[Tensor, Target]], indices: list[int]) -> None:
        self.read, self.indices = read, indices

    def __call__(self, i: int) -> tuple[Tensor, Target]:
        return self.read(self.indices[i])


def as_scenes(dataset: Any, learns: str, name: str | None = None) -> Scenes:
    """Any map-style data set of (image, target) as `Scenes`, as far as a task needs it.

    An image is a PIL image, an array (H, W, 3) or a tensor (3, H, W). A target is a dict as of `Scenes`; for `learns`
    "mask", also a mask alone, as torchvision's VOCSegmentation has it. The data set has an attribute `classes`, with
    "background" first. Its items are all read once, to see which classes each shows.

    Raises:
        ValueError: naming the item and what is wrong with it.
    """
    if isinstance(dataset, Scenes):
        return dataset
    classes = getattr(dataset, "classes", None)
    if isinstance(getattr(dataset, "targets", None), Tensor) or isinstance(getattr(dataset, "samples", None), list):
        raise Refused(
            f"the data set {type(dataset).__name__} has one label an image, which the task classification learns"
        )
    if classes is None:
        raise Refused(
            f"the data set {type(dataset).__name__} must have an attribute classes, the classes' names with "
            "'background' first"
        )
    read = _Reading(dataset, learns, len(classes))
    present = torch.stack([shown(read(i)[1], len(classes)) for i in range(len(dataset))])
    named = name or getattr(dataset, "name", None) or type(dataset).__name__
    return Scenes(named, classes, read, present, portable=False)


class _Reading:
    """The items of a data set of one's own in the form of `Scenes`."""

    def __init__(self, dataset: Any, learns: str, classes: int) -> None:
        self.dataset, self.learns, self.classes = dataset, learns, classes

    def __call__(self, i: int) -> tuple[Tensor, Target]:
        from torchvision import tv_tensors

        item = self.dataset[i]
        if not isinstance(item, Sequence) or len(item) != 2:
            raise Refused(f"item {i} of the data set must be (image, target), got {type(item).__name__}")
        image, target = item
        if hasattr(image, "convert"):
            with refusing(f"item {i} of the data set: "):
                image = pictures.in_rgb(image)
        pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != 3:
            raise Refused(
                f"item {i} of the data set: the image must have 3 channels of uint8, got {pixels.dtype} "
                f"{tuple(pixels.shape)}; leave normalisation to psd"
            )
        if not isinstance(target, dict):
            target = {"mask": target}
        if self.learns not in target:
            raise Refused(f"item {i} of the data set has no {self.learns!r} in its target, only {', '.join(target)}")
        made = dict(target)
        if "mask" in made:
            mask = made["mask"]
            made["mask"] = tv_tensors.Mask(mask if isinstance(mask, Tensor) else np.array(mask), dtype=torch.uint8)
        if "boxes" in made:
            boxes = torch.as_tensor(made["boxes"], dtype=torch.float32).reshape(-1, 4)
            made["boxes"] = boxes_of(boxes, pixels.shape[-2:])
            made["labels"] = torch.as_tensor(made["labels"], dtype=torch.int64)
        check(made, tuple(pixels.shape[-2:]), self.classes, f"item {i} of the data set")
        return tv_tensors.Image(pixels), made


def boxes_of(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """(n, 4) x1, y1, x2, y2 in an image of (H, W) pixels as `tv_tensors.BoundingBoxes`."""
    from torchvision import tv_tensors

    made: Tensor = tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=tuple(size))
    return made


def check(target: Target, size: tuple[int, ...], classes: int, where: str) -> None:
    """ValueError, beginning with `where`, for a target that does not fit an image of (H, W) pixels or the classes."""
    mask = target.get("mask")
    if mask is not None:
        if tuple(mask.shape[-2:]) != tuple(size) or mask.ndim != 2:
            raise Refused(
                f"{where}: the mask is {tuple(mask.shape)}, the image {tuple(size)} (height, width); give a mask "
                "(H, W) of the image's size"
            )
        found = mask[mask != IGNORED]
        if len(found) and int(found.max()) >= classes:
            raise Refused(
                f"{where}: the mask holds {int(found.max())}, the {classes} classes are 0 ... {classes - 1}, and "
                f"{IGNORED} for pixels that do not count"
            )
    if "boxes" in target:
        boxes, labels = target["boxes"], target["labels"]
        if len(boxes) != len(labels):
            raise Refused(f"{where}: {len(boxes)} boxes and {len(labels)} labels; each box has one")
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            x1, y1, x2, y2 = box
            if not (x1 >= 0 and x2 <= size[1] and y1 >= 0 and y2 <= size[0]):
                raise Refused(
                    f"{where}: the box {box} leaves the image of {size[1]} x {size[0]} pixels; clip or drop it"
                )
            if x2 <= x1 or y2 <= y1:
                raise Refused(f"{where}: the box {box} (x1, y1, x2, y2) has no area; drop it")
            if not 1 <= label < classes:
                raise Refused(
                    f"{where}: the box {box} has the label {label}; of {classes} classes a box has 1 ... "
                    f"{classes - 1}, 0 is background"
                )


def shown(target: Target, classes: int) -> Tensor:
    """bool (classes,): which ones a target shows."""
    found = torch.zeros(classes, dtype=torch.bool)
    if "labels" in target:
        found[target["labels"]] = True
    if "mask" in target:
        values = target["mask"].unique()
        found[values[values < classes].long()] = True
    found[0] = False
    return found


def fitted(image: Tensor, target: Target, size: int) -> tuple[Tensor, Target]:
    """An image and all that belongs to it, its longer side resized to `size` pixels and the rest of the square filled
    up at the right or below: black, and of no class."""
    height, width = image.shape[-2:]
    if (height, width) == (size, size):
        return image, target
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as T

    scale = size / max(height, width)
    new = [max(1, round(height * scale)), max(1, round(width * scale))]

    def move(x: Any) -> Any:
        if not isinstance(x, (tv_tensors.Image, tv_tensors.Mask, tv_tensors.BoundingBoxes)):
            return x
        fill = float(IGNORED) if isinstance(x, tv_tensors.Mask) else 0.0
        return T.pad(T.resize(x, new, antialias=True), [0, 0, size - new[1], size - new[0]], fill=fill)

    return move(image), {key: move(value) for key, value in target.items()}


def scene_partners(present: Tensor, generator: torch.Generator) -> Tensor:
    """For every picture another one that shows a class of it: int64 (N,).

    The class is drawn from those of the picture that others show, too, and the partner from the pictures of that class,
    both uniformly. A picture without such a class gets itself.

    >>> scene_partners(torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 0]]).bool(), torch.Generator()).tolist()
    [1, 0, 2]
    """
    n = len(present)
    shared = present & (present.sum(0) > 1)
    partners = torch.arange(n)
    draws = torch.rand(2, n, generator=generator)
    alone = ~shared.any(1)
    counts = shared.sum(1)
    rank = (draws[0] * counts).long()  # which of its classes
    chosen = (shared.cumsum(1) == (rank + 1)[:, None]).int().argmax(1)
    for c in chosen[~alone].unique().tolist():
        members = present[:, c].nonzero().flatten()
        anchors = ((chosen == c) & ~alone).nonzero().flatten()
        own = torch.searchsorted(members, anchors)
        other = (draws[1, anchors] * (len(members) - 1)).long()
        partners[anchors] = members[other + (other >= own)]
    return partners


def warn_of_lone(present: Tensor) -> None:
    """Say how many pictures share no class with another one."""
    lone = int((~(present & (present.sum(0) > 1)).any(1)).sum())
    if lone:
        warnings.warn(
            f"{lone} of {len(present)} pictures share no class with another; each is its own partner", stacklevel=2
        )
