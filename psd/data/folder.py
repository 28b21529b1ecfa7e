"""`folder:PATH`: the user's own images, PATH/train/<class>/* and PATH/{val,test}/<class>/*."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from psd.checks import Refused
from psd.data.images import ImageData, MissingData, choose, fit_or_tune

if TYPE_CHECKING:
    from PIL.Image import Image
    from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's weights use them


def load(
    path: Path,
    split: str,
    *,
    classes: int | None = None,
    per_class: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> ImageData | ImageFolder:
    """One split of a folder of class folders.

    Args:
        path: holds `train` and, for the test split, `test` or `val`: the first whose classes are those of
            `train` (ImageNet's own `test` has none).
        split: "train", "test"; "fit" and "tune" are 90% and 10% of every class of train.
        classes, per_class: a seeded subset, as in `psd.data.load`.
        size: shorter side resized to `size` pixels, centre cut to a square, everything decoded into memory.
            None: nothing is decoded, and the files come as PIL images in RGB from an ImageFolder.
        seed: of the subset.

    Raises:
        ValueError: naming the folder without images, the image that cannot be read, the classes that only one
            of train and test has. MissingData if `path` or the split is not there.
    """
    if size is not None and size < 1:
        raise Refused(f"size must be at least 1 pixel, got {size}")
    listing = _listing(_test_folder(path) if split == "test" else _existing(path / "train"))
    rows = torch.arange(len(listing.samples))
    if split == "fit" or split == "tune":
        rows = fit_or_tune(torch.tensor(listing.targets), split)
    targets = torch.tensor(listing.targets)[rows]
    chosen, labels, names = choose(targets, listing.classes, classes, per_class, seed)
    files = [listing.samples[i][0] for i in rows[chosen].tolist()]
    if size is not None:
        images = torch.stack([_square(file, size) for file in files])
        return ImageData(images, labels, names, f"folder:{path}", MEAN, STD, crop_padding=size // 8, flip=True)
    listing.samples = listing.imgs = list(zip(files, labels.tolist(), strict=True))
    listing.targets = labels.tolist()
    listing.classes, listing.class_to_idx = list(names), {name: i for i, name in enumerate(names)}
    return listing


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise MissingData(f"there is no folder {folder}; lay the images out as {folder}/<class>/<image>")
    return folder


def _test_folder(path: Path) -> Path:
    """PATH/test or PATH/val, the first that has the classes of PATH/train."""
    expected = _classes(_existing(path / "train"))
    present = [path / name for name in ("test", "val") if (path / name).is_dir()]
    for folder in present:
        if _classes(folder) == expected:
            return folder
    if not present:
        raise MissingData(f"there is neither {path / 'test'} nor {path / 'val'}; the test split needs one of them")
    folder = present[-1]
    alone = {"train": expected - _classes(folder), folder.name: _classes(folder) - expected}
    only = "; ".join(f"only in {where}: {', '.join(sorted(some)[:5])}" for where, some in alone.items() if some)
    raise Refused(f"{folder} must hold the same classes as {path / 'train'} ({only})")


def _classes(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_dir()}


def _listing(folder: Path) -> ImageFolder:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(os.fspath(folder), loader=open_image)
    except FileNotFoundError as error:  # no class folder, or one without images
        raise Refused(f"{folder} must hold class folders with images in each: {error}") from error


def open_image(file: str) -> Image:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and others on damaged files
        raise Refused(f"{file} is not a readable image ({error}); replace or remove it") from error


def _square(file: str, size: int) -> Tensor:
    """uint8 (3, size, size): shorter side resized, centre cut out."""
    from torchvision.transforms.v2 import functional as T

    image: Tensor = T.pil_to_tensor(T.center_crop(T.resize(open_image(file), [size]), [size]))
    return image
