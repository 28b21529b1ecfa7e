"""What the readers of annotated pictures on disk share: files, splits, and errors that name the file."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psd.checks import Refused
from psd.data import pictures
from psd.data.images import MissingData
from psd.data.scenes import IGNORED, Scenes, Target, boxes_of
from psd.seeding import generator_for


def picture(file: Path) -> Tensor:
    """A picture as viewers show it, in RGB: `tv_tensors.Image` uint8 (3, H, W)."""
    from torchvision import tv_tensors

    pixels = np.array(pictures.shown(file))
    made: Tensor = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return made


def numbers(file: Path) -> np.ndarray:
    """A mask's numbers: uint8 (H, W), of a palette or grey PNG, turned as its picture is."""
    with pictures.opened(file, what="mask") as opened:
        turn = pictures.turn_of(opened)
        mode, found = opened.mode, np.array(opened)
    if found.ndim != 2 or found.dtype.kind not in "bui" or (found.size and (found.min() < 0 or found.max() > 255)):
        raise Refused(
            f"{file} is an image of mode {mode}, a mask has one number from 0 to 255 a pixel: a palette or grey PNG"
        )
    made: np.ndarray = np.ascontiguousarray(pictures.turned(found.astype(np.uint8), turn))
    return made


def as_mask(found: np.ndarray) -> Tensor:
    from torchvision import tv_tensors

    made: Tensor = tv_tensors.Mask(torch.from_numpy(found))
    return made


def size_of(file: Path) -> tuple[int, int]:
    """(H, W) of a picture as viewers show it, of a JPEG by its header alone."""
    with pictures.opened(file) as opened:
        return pictures.size_of(opened)


def same_size(image: Path, mask: Path) -> None:
    """ValueError where a picture and its mask have other sizes."""
    a, b = size_of(image), size_of(mask)
    if a != b:
        raise Refused(
            f"{mask} is {b[1]} x {b[0]} pixels, its picture {image.name} {a[1]} x {a[0]} (as viewers show it); a mask "
            "has the size of its picture"
        )


def existing(path: Path, what: str) -> Path:
    if not os.path.exists(path):  # False too for a path that the system does not take, unlike Path's own
        raise MissingData(f"there is no {path}; {what}")
    return path


def files_in(folder: Path, what: str) -> list[Path]:
    """The pictures of a folder in the order of their names; hidden ones left out."""
    existing(folder, what)
    if not folder.is_dir():
        raise MissingData(f"{folder} is a file, not a folder; {what}")
    left_out: Counter[str] = Counter()
    found = sorted(f for f in folder.iterdir() if pictures.is_picture(f.name, left_out))
    pictures.say_left_out(str(folder), left_out, stacklevel=4)
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


def check_box(box: Sequence[float], size: Sequence[int], where: str) -> None:
    """ValueError, beginning with `where`, for a box (x1, y1, x2, y2) that leaves an image (H, W) or has no area."""
    x1, y1, x2, y2 = box
    if not np.isfinite(box).all():
        raise Refused(f"{where}: the box {list(box)} (x1, y1, x2, y2) is not of finite numbers; mend or remove it")
    if x2 <= x1 or y2 <= y1:
        raise Refused(f"{where}: the box {list(box)} (x1, y1, x2, y2) has no area; remove it")
    if x1 < 0 or y1 < 0 or x2 > size[1] or y2 > size[0]:
        raise Refused(
            f"{where}: the box {list(box)} leaves the image of {size[1]} x {size[0]} pixels; clip or remove it"
        )


def names_in(path: Path) -> list[str]:
    """The lines of a list of names, first words alone."""
    return [line.split()[0] for line in text_of(path).splitlines() if line.strip()]


def text_of(path: Path) -> str:
    """A text in UTF-8, with or without the mark that Windows sets before it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); save it so") from error
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); a text file belongs there") from error


def inside(folder: Path, name: object, where: str) -> Path:
    """A file that a list or annotation names in a folder; ValueError, beginning with `where`, if it would be elsewhere.

    Annotations come from anywhere, and a name such as ../../x would have a stranger choose what is read.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise Refused(f"{where} names the file {name!r}; give a name in {folder}")
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise Refused(f"{where} names the file {name!r}, which is outside of {folder}; give a name in it")
    return folder / name
