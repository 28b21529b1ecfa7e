"""What the readers of annotated pictures on disk share: files, splits, and errors that name the file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psd.checks import Refused
from psd.data.images import MissingData
from psd.data.scenes import IGNORED, Scenes, Target, boxes_of
from psd.seeding import generator_for

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def picture(file: Path) -> Tensor:
    """A picture as viewers show it, in RGB: `tv_tensors.Image` uint8 (3, H, W)."""
    from PIL import Image, ImageOps
    from torchvision import tv_tensors

    try:
        with Image.open(file) as opened:
            pixels = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and others on damaged files
        raise Refused(f"{file} is not a readable image ({_brief(error)}); replace or remove it") from error
    made: Tensor = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return made


def numbers(file: Path) -> np.ndarray:
    """A mask's numbers: uint8 (H, W), of a palette or grey PNG."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            mode, found = opened.mode, np.array(opened)
    except Exception as error:
        raise Refused(f"{file} is not a readable mask ({_brief(error)}); replace or remove it") from error
    if found.ndim != 2 or (found.size and (found.min() < 0 or found.max() > 255)):
        raise Refused(
            f"{file} is an image of mode {mode}, a mask has one number from 0 to 255 a pixel: a palette or grey PNG"
        )
    made: np.ndarray = found.astype(np.uint8)
    return made


def as_mask(found: np.ndarray) -> Tensor:
    from torchvision import tv_tensors

    made: Tensor = tv_tensors.Mask(torch.from_numpy(found))
    return made


def size_of(file: Path) -> tuple[int, int]:
    """(H, W) of a picture as viewers show it, of its header alone."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            width, height = opened.size
            turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise Refused(f"{file} is not a readable image ({_brief(error)}); replace or remove it") from error
    return (width, height) if turned else (height, width)


def same_size(image: Path, mask: Path) -> None:
    """ValueError where a picture and its mask have other sizes."""
    a, b = size_of(image), size_of(mask)
    if a != b:
        raise Refused(
            f"{mask} is {b[1]} x {b[0]} pixels, its picture {image.name} {a[1]} x {a[0]} (as viewers show it); a mask "
            "has the size of its picture"
        )


def existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise MissingData(f"there is no {path}; {what}")
    return path


def files_in(folder: Path, what: str) -> list[Path]:
    """The pictures of a folder in the order of their names; hidden ones left out."""
    existing(folder, what)
    found = sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith("."))
    if not found:
        raise MissingData(f"{folder} holds no picture; {what}")
    return found


def part(count: int, split: str, seed: int, apart: bool) -> list[int]:
    """The rows of a split.

    apart: train and test are apart already, and only fit and tune are cut, 90 to 10, with a fixed seed. Else a fifth,
    drawn by `seed`, is the test.
    """
    rows = list(range(count))
    if not apart:
        order = torch.randperm(count, generator=generator_for(seed, "test")).tolist()
        held = max(1, count // 5)
        rows = sorted(order[:held] if split == "test" else order[held:])
    if split in ("fit", "tune"):
        order = torch.randperm(len(rows), generator=generator_for(0, "fit and tune")).tolist()
        held = max(1, len(rows) // 10)
        rows = sorted(rows[k] for k in (order[:held] if split == "tune" else order[held:]))
    if not rows:
        raise Refused(f"{count} pictures are too few for a split {split!r}; add some")
    return rows


def finished(
    name: str,
    classes: Sequence[str],
    read: Callable[[int], tuple[Tensor, Target]],
    present: Tensor,
    size: int | None,
) -> Scenes:
    """The data set, in memory where a size is asked for; how many pictures show nothing is said."""
    if size is not None and size < 1:
        raise Refused(f"size must be at least 1 pixel, got {size}")
    empty = int((~present[:, 1:].any(1)).sum())
    if empty:
        warnings.warn(f"{name}: {empty} of {len(present)} pictures have no object; they are kept", stacklevel=3)
    made = Scenes(name, classes, read, present)
    return made if size is None else made.in_memory(size)


def boxes_target(boxes: Sequence[Sequence[float]], labels: Sequence[int], size: Sequence[int]) -> Target:
    return {
        "boxes": boxes_of(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), size),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def present_in(shown: Sequence[set[int]], classes: int) -> Tensor:
    """bool (N, classes) of the sets of classes that each picture shows."""
    found = torch.zeros(len(shown), classes, dtype=torch.bool)
    for row, some in zip(found, shown, strict=True):
        row[sorted(some)] = True
    found[:, 0] = False
    return found


def values_of(mask: np.ndarray, file: Path, classes: int) -> set[int]:
    """The classes that a mask shows; ValueError for a number that is none."""
    found = {int(value) for value in np.unique(mask)} - {IGNORED}
    wrong = sorted(value for value in found if value >= classes)
    if wrong:
        raise Refused(
            f"{file} holds the number {wrong[0]}; the {classes} classes are 0 ... {classes - 1}, and {IGNORED} stands "
            "for pixels that do not count"
        )
    return found


def _brief(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def check_box(box: Sequence[float], size: Sequence[int], where: str) -> None:
    """ValueError, beginning with `where`, for a box (x1, y1, x2, y2) that leaves an image (H, W) or has no area."""
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise Refused(f"{where}: the box {list(box)} (x1, y1, x2, y2) has no area; remove it")
    if x1 < 0 or y1 < 0 or x2 > size[1] or y2 > size[0]:
        raise Refused(
            f"{where}: the box {list(box)} leaves the image of {size[1]} x {size[0]} pixels; clip or remove it"
        )


def names_in(path: Path) -> list[str]:
    """The lines of a list of names, first words alone."""
    text = path.read_text(encoding="utf-8")
    return [line.split()[0] for line in text.splitlines() if line.strip()]
