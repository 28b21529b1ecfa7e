"""Data sets by name: `load("shapes")`, `load("cifar100")`, `load("cifar100-small")`, `load("folder:PATH")`.

Files are looked for under `root`, else under the folder that the environment variable PSD_DATA names, else
under `data` in the current directory. A missing data set stops with the command that gets it; nothing takes
its place.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from psd.checks import Refused, did_you_mean
from psd.data.images import ImageData, MissingData

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

NAMES = ("shapes", "cifar100", "cifar100-small", "imagenet", "tiny-imagenet", "folder:PATH")
SPLITS = ("train", "test", "fit", "tune")
TUNE_APART = ("shapes", "cifar100-small")  # their tune split takes nothing from train

__all__ = ["NAMES", "SPLITS", "TUNE_APART", "ImageData", "MissingData", "default_root", "load"]


def default_root() -> Path:
    """Where data sets live: the folder PSD_DATA names, else `data` in the current directory."""
    return Path(os.environ.get("PSD_DATA") or "data")


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    classes: int | None = None,
    per_class: int | None = None,
    size: int | None = None,
    count: int | None = None,
    seed: int = 0,
    verify: bool = True,
) -> ImageData | ImageFolder:
    """Load one split of a data set.

    Args:
        name: "shapes" (drawn, no file), "cifar100", "cifar100-small" (10 classes of CIFAR-100 with 100
            training images each), "folder:PATH" (PATH/train/<class>/* and PATH/val/<class>/*), "imagenet" or
            "tiny-imagenet", which are "folder:ROOT/imagenet" and "folder:ROOT/tiny-imagenet".
        root: the folder where data sets live; `default_root()` if None.
        split: "train", "test"; "fit" and "tune" are 90% and 10% of every class of train, cut with a fixed
            seed, for choosing hyperparameters. "shapes" and "cifar100-small" have tune apart from train, so
            that their fit is all of train.
        classes: take that many classes, drawn by `seed`, the same ones in every split.
        per_class: take that many images of every class of this split, drawn by `seed`.
        size: side of the images in pixels; for "shapes" (default 32) and folders (default: an ImageFolder of
            the files as they are).
        count: number of images, for "shapes" alone.
        seed: of the subset, and of what "shapes" draws and "cifar100-small" chooses; use one for all splits.
        verify: check that "cifar100" is CIFAR-100; False loads other data of the same layout, with a warning.

    Returns:
        ImageData; for folders without `size` a torchvision ImageFolder (PIL images, `.targets`, `.classes`).

    Raises:
        ValueError: an unknown name or split (with the nearest valid one), an argument that the data set does
            not take, more classes or images than there are, damaged files. `MissingData`, a ValueError, where
            there are no files.

    >>> len(load("shapes", split="test", count=100))
    100
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    folder = Path(root) if root is not None else default_root()
    if name == "shapes":
        _refuse(name, verify=None if verify else False)
        from psd.data import shapes

        return shapes.load(split, classes=classes, per_class=per_class, size=size, count=count, seed=seed)
    if name in ("cifar100", "cifar100-small"):
        _refuse(name, size=size, count=count)
        from psd.data import cifar100

        loader = cifar100.load if name == "cifar100" else cifar100.load_small
        return loader(folder, split, classes=classes, per_class=per_class, seed=seed, verify=verify)
    if name in ("imagenet", "tiny-imagenet") or name.startswith("folder:"):
        _refuse(name, count=count, verify=None if verify else False)
        from psd.data import folder as folders

        path = Path(name.removeprefix("folder:")) if name.startswith("folder:") else folder / name
        return folders.load(path, split, classes=classes, per_class=per_class, size=size, seed=seed)
    raise unknown("data set", name, NAMES)


def unknown(what: str, given: str, known: tuple[str, ...]) -> Refused:
    """The error for a name that is not among the known ones, with the nearest of them."""
    hint = did_you_mean(given, known) or "."
    return Refused(f"{what} {given!r} is unknown{hint} Known: {', '.join(known)}")


def _refuse(name: str, **arguments: object) -> None:
    """Raise for the first argument that was given although this data set has no use for it."""
    for argument, value in arguments.items():
        if value is not None:
            raise Refused(f"{argument}={value} does not apply to the data set {name!r}; leave it out")
