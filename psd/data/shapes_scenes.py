"""`shapes-scenes`: pictures with one to four of the code words of `shapes`, with masks and boxes, drawn from a seed.

A picture has four cells. One to four of them hold an object: a code word as `shapes` draws it, anywhere in its cell
and of any of its sizes. Lone shapes of no class lie between them. The mask of an object is where its three parts are to
be seen, its box the edges of that. Classes are "background" and the code words.

Source: our own design, so that what is learnt of `shapes` can be tried on other tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from psd.checks import Refused
from psd.data import shapes
from psd.data.images import chosen_classes
from psd.data.scenes import Scenes, Target, boxes_of
from psd.seeding import generator_for, seed_for

CELLS = 4  # of a picture, in two rows
CHUNK = 16  # pictures drawn from one seed; always drawn in full, so that a picture does not depend on the count
SIZE = 96

# Of pixels / 255, measured on draw(2_000, seed=2024) and rounded; the channels are alike by construction.
MEAN = (0.56, 0.56, 0.56)
STD = (0.18, 0.18, 0.18)


class Drawn(NamedTuple):
    """N drawn pictures of side S, each with up to `CELLS` objects."""

    images: Tensor  # uint8 (N, 3, S, S)
    masks: Tensor  # uint8 (N, S, S): 0, or 1 + the position of the object's class among those that are drawn
    boxes: Tensor  # float32 (N, 4, 4): x1, y1, x2, y2 in pixels; zeros where a cell holds no object
    labels: Tensor  # int64 (N, 4): as in masks, 0 where a cell holds no object


def draw(count: int, size: int = SIZE, seed: int = 0, classes: Sequence[int] = tuple(range(16))) -> Drawn:
    """Draw `count` pictures of `size` x `size` pixels.

    Picture i is a function of (seed, size, i, classes): it does not depend on `count`.

    Raises:
        ValueError: count below 1, size below 64, classes that there are not.
    """
    if count < 1:
        raise Refused(f"count must be at least 1 picture, got {count}")
    if size < 64:
        raise Refused(f"size must be at least 64 pixels, for the objects to be told apart, got {size}")
    if not classes or min(classes) < 0 or max(classes) >= len(shapes.CODES):
        raise Refused(f"classes must be numbers from 0 to {len(shapes.CODES) - 1}, at least one, got {list(classes)}")
    codes = torch.tensor([shapes.CODES[c] for c in classes])
    chunks = [_chunk(codes, size, generator_for(seed, "scenes", k)) for k in range(-(-count // CHUNK))]
    return Drawn(*(torch.cat(part)[:count] for part in zip(*chunks, strict=True)))


def _chunk(codes: Tensor, size: int, generator: torch.Generator) -> Drawn:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(CHUNK, *shape).uniform_(low, high, generator=generator)

    held = torch.randint(1, CELLS + 1, (CHUNK, 1), generator=generator)
    order = uniform(0, 1, CELLS).argsort(1).argsort(1)
    label = torch.randint(len(codes), (CHUNK, CELLS), generator=generator)
    label = torch.where(order < held, label + 1, 0)
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1  # the pixels' centres in [-1, 1]

    ground = uniform(0.35, 0.8, 3, 1, 1) + uniform(-0.15, 0.15, 3, 4, 4)  # calm, that the objects stand out
    images = F.interpolate(ground, size=(size, size), mode="bicubic").clamp_(0, 1)
    clutter = shapes.compose(codes[torch.zeros(CHUNK, dtype=torch.int64)], generator)._replace(
        centre=uniform(-0.95, 0.95, 5, 2), radius=uniform(0.06, 0.12, 5)
    )
    images, _ = shapes.painted(images, clutter, axis, axis, 2 / size)

    masks = torch.zeros(CHUNK, size, size, dtype=torch.int64)
    boxes = torch.zeros(CHUNK, CELLS, 4)
    for cell in range(CELLS):
        scene = shapes.compose(codes[(label[:, cell] - 1).clamp_min(0)], generator)
        half = uniform(0.32, 0.46)  # of the object, in the picture's coordinates; the cell's is 0.5
        middle = torch.tensor([-0.5 + cell % 2, -0.5 + cell // 2])
        centre = middle + (0.5 - half)[:, None] * uniform(-1, 1, 2)  # (CHUNK, 2)
        columns = ((axis - centre[:, :1]) / half[:, None])[:, None, None]  # (CHUNK, 1, 1, S)
        rows = ((axis - centre[:, 1:]) / half[:, None])[:, None, :, None]
        over, cover = shapes.painted(images, scene, columns, rows, 2 / size / half[:, None, None, None], first=2)
        there = label[:, cell, None, None] > 0
        images = torch.where(there[:, None], over, images)
        seen = shapes.part_masks(cover).any(1) & there  # (CHUNK, S, S)
        masks = torch.where(seen, label[:, cell, None, None], masks)
        boxes[:, cell] = shapes.boxes_around(seen[:, None])[:, 0] * there[:, 0]
    noise = torch.randn(images.shape, generator=generator)
    images = (images + 0.03 * noise).clamp_(0, 1)
    return Drawn((images * 255).round_().to(torch.uint8), masks.to(torch.uint8), boxes, label)


class _Pictures:
    """What `Scenes` reads of drawn pictures."""

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn

    def __call__(self, i: int) -> tuple[Tensor, Target]:
        from torchvision import tv_tensors

        images, masks, boxes, labels = (part[i] for part in self.drawn)
        there = labels > 0
        target = {
            "mask": tv_tensors.Mask(masks),
            "boxes": boxes_of(boxes[there], images.shape[-2:]),
            "labels": labels[there],
        }
        return tv_tensors.Image(images), target


def load(
    root: Path,
    split: str,
    *,
    classes: int | None = None,
    size: int | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Scenes:
    """A split of `shapes-scenes`: "train" (500 pictures unless told), "test" or "tune" (500 pictures).

    Train, tune and test are three streams of one `seed` and share no picture. "fit" is the same as "train".

    Args:
        root: nothing is read there.
        split: "train", "fit", "tune" or "test".
        classes: that many of the 16 code words, drawn by `seed`: those of `shapes` with the same arguments.
        size: side in pixels, 96 if None.
        count: number of pictures.
        seed: of the draw and of the choice of classes.

    Raises:
        ValueError: naming the argument and its value.
    """
    kept = chosen_classes(len(shapes.CODES), classes, seed)
    drawn = draw(
        500 if count is None else count,
        size=SIZE if size is None else size,
        seed=seed_for(seed, "shapes-scenes", "train" if split == "fit" else split),
        classes=kept,
    )
    present = torch.zeros(len(drawn.labels), len(kept) + 1, dtype=torch.bool).scatter_(1, drawn.labels, True)
    names = ("background", *(shapes.CLASSES[c] for c in kept))
    # the direction of the stripes tells classes apart, so that nothing is mirrored
    return Scenes("shapes-scenes", names, _Pictures(drawn), present, drawn.images.shape[-1], False, MEAN, STD)
