"""`folder:PATH`: the user's own images, PATH/train/<class>/* and PATH/{val,test}/<class>/*, or PATH/<class>/* alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from psd.checks import Refused
from psd.data.images import ImageData, MissingData, choose, fit_or_tune
from psd.seeding import generator_for

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
            `train` (ImageNet's own `test` has none). Or it holds the class folders themselves: then a fifth of every
            class, drawn by `seed`, is the test split, and the rest is train. Hidden folders are no classes.
        split: "train", "test"; "fit" and "tune" are 90% and 10% of every class of train.
        classes, per_class: a seeded subset, as in `psd.data.load`.
        size: shorter side resized to `size` pixels, centre cut to a square, everything decoded into memory.
            None: nothing is decoded, and the files come as PIL images in RGB from an ImageFolder.
        seed: of the subset, and of the split where there is none.

    Raises:
        ValueError: naming the folder without images, the image that cannot be read, the classes that only one
            of train and test has. MissingData if `path` or the split is not there.
    """
    if size is not None and size < 1:
        raise Refused(f"size must be at least 1 pixel, got {size}")
    if is_unsplit(path):
        listing = _listing(path)
        rows = _drawn_split(torch.tensor(listing.targets), split, seed, listing.classes, path)
    else:
        listing = _listing(_test_folder(path) if split == "test" else _existing(path / "train"))
        rows = torch.arange(len(listing.samples))
    if split == "fit" or split == "tune":
        rows = rows[fit_or_tune(torch.tensor(listing.targets)[rows], split)]
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


def is_unsplit(path: Path) -> bool:
    """Whether a folder holds class folders, and none of train, val and test. One of them without folders in it is a
    class among others: of trains, say."""
    if not path.is_dir():
        return False
    names = _classes(path)
    splits = names & {"train", "val", "test"}
    return bool(names - splits) and not any(_classes(path / name) for name in splits)


def _drawn_split(targets: Tensor, split: str, seed: int, names: Sequence[str], path: Path) -> Tensor:
    """The rows (ascending) of the test split, a fifth of each class and at least one image, or the others."""
    parts = []
    for c, name in enumerate(names):
        members = (targets == c).nonzero().flatten()
        if len(members) < 2:
            raise Refused(
                f"{path / name} holds {len(members)} image; to be split into train and test a class needs 2 or more, "
                "and for patch swap 3: add some, or take the folder away"
            )
        order = torch.randperm(len(members), generator=generator_for(seed, "test", c))
        fifth = max(1, round(len(members) / 5))
        parts.append(members[order[:fifth] if split == "test" else order[fifth:]])
    return torch.cat(parts).sort().values


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise MissingData(
            f"there is no folder {folder}; lay the images out as {folder}/<class>/<image>, or all of them as "
            f"{folder.parent}/<class>/<image>, to be split by psd"
        )
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
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}


def _listing(folder: Path) -> ImageFolder:
    from torchvision.datasets import ImageFolder

    class Visible(ImageFolder):  # type: ignore[misc]  # torchvision has no types
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            names = sorted(_classes(Path(directory)))
            if not names:
                raise FileNotFoundError(f"there is no folder in {directory}")
            return names, {name: i for i, name in enumerate(names)}

    try:
        return Visible(os.fspath(folder), loader=open_image)
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
