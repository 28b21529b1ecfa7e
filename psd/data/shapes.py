"""`shapes`: images composed of parts, drawn from a seed in batches. No file, no network, any size, any count.

Each class is a code word of three parts: the shape in the top left corner (a1), the direction of the stripes
in the middle (a2) and the shape in the bottom right corner (a3). Class y of 16 has

    a1 = y mod 4,   a2 = y div 4,   a3 = (a1 + a2) mod 4

so any two classes differ in at least two parts: one part alone leaves four classes, two parts decide, and
patches carry unequal evidence. Colours, positions, sizes, background and the two shapes in the other
corners say nothing about the class.

Source: our own design, so that what patch swap does can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from psd.checks import Refused
from psd.data.images import ImageData, chosen_classes
from psd.seeding import generator_for, seed_for

SHAPES = ("disc", "square", "triangle", "cross")
STRIPES = ("0", "45", "90", "135")  # degrees, counter-clockwise from the horizontal
CODES = tuple((y % 4, y // 4, (y % 4 + y // 4) % 4) for y in range(16))  # (a1, a2, a3) of each class
CLASSES = tuple(f"{SHAPES[a1]}-{STRIPES[a2]}-{SHAPES[a3]}" for a1, a2, a3 in CODES)
PARTS = ("top left", "middle", "bottom right")

# Of pixels / 255, measured on draw(16_000, seed=2024) and rounded; the channels are alike by construction.
MEAN = (0.5, 0.5, 0.5)
STD = (0.27, 0.27, 0.27)

CHUNK = 64  # images drawn from one seed; always drawn in full, so that an image does not depend on the count


class Shapes(NamedTuple):
    """N drawn images of side S; parts in the order of `PARTS`."""

    images: Tensor  # uint8 (N, 3, S, S)
    targets: Tensor  # int64 (N,)
    boxes: Tensor  # float32 (N, 3, 4): x1, y1, x2, y2 in pixels around the visible pixels of each part
    masks: Tensor  # bool (N, 3, S, S): the pixels where each part is visible


class Composition(NamedTuple):
    """What is to be seen, in coordinates [-1, 1] (x to the right, y down): independent of the image's size.

    Five objects per image, from the back: two distractors, the striped disc, the two corner parts.
    """

    kind: Tensor  # int64 (N, 5): index into SHAPES
    centre: Tensor  # (N, 5, 2)
    radius: Tensor  # (N, 5)
    rotation: Tensor  # (N, 5) radians
    colour: Tensor  # (N, 5, 3) in [0, 1]
    direction: Tensor  # (N,) radians, of the stripes, counter-clockwise from the horizontal
    period: Tensor  # (N,) of the stripes
    phase: Tensor  # (N,) radians, of the stripes
    second_colour: Tensor  # (N, 3) of the stripes
    background: Tensor  # (N, 3, 4, 4): colours on a coarse grid


def draw(
    count: int, size: int = 32, seed: int = 0, classes: Sequence[int] = tuple(range(16)), *, noise: float = 0.08
) -> Shapes:
    """Draw `count` images of `size` x `size` pixels.

    Image i is a function of (seed, size, i, classes): it does not depend on `count`. Its composition does not
    depend on `size` either; only the pixel noise does. The classes follow one another in turn, so that their
    numbers differ by at most one.

    Args:
        count: number of images, at least 1.
        size: side in pixels, at least 16.
        seed: any integer.
        classes: which of the 16 classes to draw; image i has target i mod len(classes) and shows
            the code word of class `classes[target]`.
        noise: standard deviation of the pixel noise, for pixels in [0, 1]; 0 for pictures to be looked at.

    Raises:
        ValueError: naming the argument and its value.

    >>> draw(100, size=32, seed=1).images.shape
    torch.Size([100, 3, 32, 32])
    """
    if count < 1:
        raise Refused(f"count must be at least 1 image, got {count}")
    if size < 16:
        raise Refused(f"size must be at least 16 pixels, for the parts to be told apart, got {size}")
    if not classes or min(classes) < 0 or max(classes) >= len(CODES):
        raise Refused(f"classes must be numbers from 0 to {len(CODES) - 1}, at least one, got {list(classes)}")
    if not 0 <= noise <= 1:
        raise Refused(f"noise must be >= 0 and <= 1, got {noise}")
    chunks = []
    for start in range(0, count, CHUNK):
        targets = torch.arange(start, start + CHUNK) % len(classes)
        generator = generator_for(seed, "shapes", start // CHUNK)
        scene = compose(torch.tensor([CODES[c] for c in classes])[targets], generator)
        images, masks = _render(scene, noise * torch.randn(CHUNK, 3, size, size, generator=generator))
        n = min(CHUNK, count - start)
        chunks.append(Shapes(images[:n], targets[:n], boxes_around(masks[:n]), masks[:n]))
    return Shapes(*(torch.cat(part) for part in zip(*chunks, strict=True)))


def compose(code: Tensor, generator: torch.Generator) -> Composition:
    """Draw everything that the code words (N, 3) leave open."""
    n = len(code)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape).uniform_(low, high, generator=generator)

    centre = 0.58 * torch.tensor([[1, -1], [-1, 1], [0, 0], [-1, -1], [1, 1]])
    kind = torch.randint(len(SHAPES), (n, 5), generator=generator)
    kind[:, 2], kind[:, 3], kind[:, 4] = 0, code[:, 0], code[:, 2]
    radius = torch.cat([uniform(0.22, 0.22, 2), 0.42 * uniform(0.8, 1.2, 1), 0.3 * uniform(0.75, 1.25, 2)], dim=1)
    tilt = uniform(-10, 10)
    return Composition(
        kind=kind,
        centre=centre + uniform(-0.12, 0.12, 5, 2),
        radius=radius,
        rotation=uniform(-0.3, 0.3, 5),
        colour=uniform(0, 1, 5, 3),
        direction=torch.deg2rad(45.0 * code[:, 1] + tilt),
        period=uniform(0.26, 0.34),
        phase=uniform(0, 2 * math.pi),
        second_colour=uniform(0, 1, 3),
        background=uniform(0, 1, 3, 4, 4),
    )


def _render(scene: Composition, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Images uint8 and the visible parts' masks bool, both (N, 3, S, S) like the noise."""
    size = noise.shape[-1]
    pixel = 2 / size
    axis = (torch.arange(size) + 0.5) * pixel - 1  # the pixels' centres
    images = F.interpolate(scene.background, size=(size, size), mode="bicubic").clamp_(0, 1)
    images, cover = painted(images, scene, axis, axis, pixel)
    images = (images + noise).clamp_(0, 1)
    return (images * 255).round_().to(torch.uint8), part_masks(cover)


def part_masks(cover: Tensor) -> Tensor:
    """bool (N, 3, S, S): where each part is to be seen, of what `painted` gives."""
    top_left, middle, bottom_right = cover[:, 3] > 0.5, cover[:, 2] > 0.5, cover[:, 4] > 0.5
    return torch.stack([top_left & ~bottom_right, middle & ~top_left & ~bottom_right, bottom_right], dim=1)


def painted(
    images: Tensor, scene: Composition, columns: Tensor, rows: Tensor, pixel: Tensor | float, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Paint the objects of a composition over images in [0, 1].

    Args:
        images: (N, 3, S, S).
        columns, rows: the pixels' centres in the composition's coordinates, (S,) or (N, 1, 1, S) and (N, 1, S, 1).
        pixel: the side of a pixel in them, a number or (N, 1, 1, 1).
        first: of the five objects, from the back; 2 leaves the distractors out.

    Returns:
        the images, and how much of each pixel every object covers: (N, 5, S, S).
    """
    rows = rows[:, None] if rows.ndim == 1 else rows
    x = columns - scene.centre[:, :, 0, None, None]  # (N, 5, 1, S)
    y = rows - scene.centre[:, :, 1, None, None]  # (N, 5, S, 1)
    cover = (0.5 - _distance(x, y, scene) / pixel).clamp_(0, 1)  # (N, 5, S, S): anti-aliased edges

    across = scene.direction.sin()[:, None, None] * x[:, 2] + scene.direction.cos()[:, None, None] * y[:, 2]
    wave = 2 * math.pi / scene.period[:, None, None]
    edge = (across * wave + scene.phase[:, None, None]).sin() / wave  # about the distance to its edge
    stripe = (0.5 + edge[:, None] / pixel).clamp_(0, 1)  # (N, 1, S, S)
    striped = torch.lerp(scene.second_colour[:, :, None, None], scene.colour[:, 2, :, None, None], stripe)

    for k in range(first, 5):
        colour = striped if k == 2 else scene.colour[:, k, :, None, None]
        images = torch.lerp(images, colour, cover[:, k, None])
    return images, cover


def _distance(x: Tensor, y: Tensor, scene: Composition) -> Tensor:
    """Signed distance (N, 5, S, S) of each pixel to the edge of each object: negative inside.

    Exact along the edges, which is all that anti-aliasing looks at. Formulas for a shape of radius 1.
    """
    radius = scene.radius[:, :, None, None]
    cos, sin = (f(scene.rotation)[:, :, None, None] / radius for f in (torch.cos, torch.sin))
    u, v = cos * x + sin * y, cos * y - sin * x  # the object's own coordinates, (N, 5, S, S)
    a, b = u.abs(), v.abs()
    longer, shorter = torch.maximum(a, b), torch.minimum(a, b)
    disc = (a * a + b * b).sqrt_() - 1
    square = longer - 0.87
    triangle = torch.maximum(v, math.sqrt(0.75) * a - 0.5 * v) - 0.62  # three edges, the corner up
    cross = torch.maximum(longer - 1.1, shorter - 0.36)
    kind = scene.kind[:, :, None, None]
    distance = torch.where(kind == 2, triangle, cross)
    return radius * torch.where(kind == 0, disc, torch.where(kind == 1, square, distance))


def boxes_around(masks: Tensor) -> Tensor:
    """Edges x1, y1, x2, y2 in pixels, float32 (N, P, 4), of what is True in bool (N, P, S, S)."""
    size = masks.shape[-1]
    ends = []
    for occupied in (masks.any(dim=2), masks.any(dim=3)):  # columns, rows: (N, P, S)
        occupied = occupied.to(torch.uint8)
        ends.append((occupied.argmax(dim=2), size - occupied.flip(2).argmax(dim=2)))
    (x1, x2), (y1, y2) = ends
    return torch.stack([x1, y1, x2, y2], dim=2).float()


def load(
    root: Path,
    split: str,
    *,
    classes: int | None = None,
    per_class: int | None = None,
    size: int | None = None,
    count: int | None = None,
    seed: int = 0,
) -> ImageData:
    """A split of `shapes`: "train" (50 images of each class unless told), "test" or "tune" (2,000 images).

    Train, tune and test are three streams of one `seed` and share no image. "fit" is the same as "train":
    tune need not be cut out of it, because drawn data has no shortage.

    Args:
        root: nothing is read there.
        split: "train", "fit", "tune" or "test".
        classes: that many of the 16 classes, drawn by `seed`.
        per_class: images of each class.
        size: side in pixels, 32 if None.
        count: number of images in all; not together with `per_class`.
        seed: of the draw and of the choice of classes.

    Raises:
        ValueError: naming the argument and its value.
    """
    if count is not None and per_class is not None:
        raise Refused(f"count={count} and per_class={per_class} both set the number of images; leave one out")
    if per_class is not None and per_class < 1:
        raise Refused(f"per_class must be at least 1, got {per_class}")
    kept = chosen_classes(len(CODES), classes, seed)
    stream = "train" if split == "fit" else split
    if count is None and (per_class is not None or stream == "train"):
        count = (50 if per_class is None else per_class) * len(kept)
    drawn = draw(
        2000 if count is None else count,
        size=32 if size is None else size,
        seed=seed_for(seed, "shapes", stream),
        classes=kept,
    )
    return ImageData(
        images=drawn.images,
        targets=drawn.targets,
        classes=tuple(CLASSES[c] for c in kept),
        name="shapes",
        mean=MEAN,
        std=STD,
        crop_padding=2,
        flip=False,  # the direction of the stripes tells classes apart
    )
