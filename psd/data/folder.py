"""`folder:PATH`: the user's own images, PATH/train/<class>/* and PATH/{val,test}/<class>/*, or PATH/<class>/* alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from psd.checks import Refused
from psd.data import pictures
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
            class, drawn by `seed`, is the test split, and the rest is train. Hidden folders are no classes, and
            hidden files no images. How many other files are left out, and of what kind, a warning says.
        split: "train", "test"; "fit" and "tune" are 90% and 10% of every class of train.
        classes, per_class: a seeded subset, as in `psd.data.load`.
        size: shorter side resized to `size` pixels, centre cut to a square, everything decoded into memory.
            None: nothing is decoded, and the files come as PIL images in RGB from an ImageFolder. Either way as
            viewers show them: see `psd.data.pictures`.
        seed: of the subset, and of the split where there is none.

    Raises:
        ValueError: naming the folder without images, the image that cannot be read, the classes that only one
            of train and test has. MissingData if `path` or the split is not there.
    """
    if size is not None and size < 1:
        raise Refused(f"size must be at least 1 pixel, got {size}")
    left_out: Counter[str] = Counter()
    if is_unsplit(path):
        listing = _listing(path, left_out)
        rows = _drawn_split(torch.tensor(listing.targets), split, seed, listing.classes, path)
    else:
        listing = _listing(_test_folder(path) if split == "test" else _existing(path / "train"), left_out)
        rows = torch.arange(len(listing.samples))
    if split == "fit" or split == "tune":
        rows = rows[fit_or_tune(torch.tensor(listing.targets)[rows], split)]
    targets = torch.tensor(listing.targets)[rows]
    chosen, labels, names = choose(targets, listing.classes, classes, per_class, seed)
    files = [listing.samples[i][0] for i in rows[chosen].tolist()]
    pictures.say_left_out(f"folder:{path}", left_out, stacklevel=3)
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
    if not os.path.isdir(path):
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
    if not os.path.isdir(folder):  # False too for a path that the system does not take, unlike Path's own
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
    raise Refused(
        f"{folder} must hold the same classes as {path / 'train'} ({only}); add the folders that are missing, or "
        "take the others away"
    )


def _classes(folder: Path) -> set[str]:
    entries = _entries(folder)
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path):  # a class must not be missing because a disk is
            raise Refused(f"{entry.path} is a link that leads nowhere; mend or remove it")
    found = {entry.name for entry in entries if _is_folder(entry)}
    for name in found:
        if not name.isprintable():  # surrogates, which stand for bytes that are no text, are not
            raise Refused(f"{folder} has the class {name!a}, whose name is not printable UTF-8; rename the folder")
    return found


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds, without what is hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise Refused(f"{folder} cannot be read ({error.strerror}); mend it or take it away") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link to itself
        return False


def _images(folder: str, left_out: Counter[str]) -> list[str]:
    """The images in and below a class's folder in the order of their paths, as torchvision lists them.

    Links are followed, but to no folder twice. Of other files `left_out` counts how many of each ending there are.
    """
    found, seen = [], {os.path.realpath(folder)}
    waiting = [(folder, os.path.realpath(folder))]
    while waiting:
        here, real_here = waiting.pop()
        for entry in _entries(here):
            if _is_folder(entry):
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real_here, entry.name)
                if real in seen:
                    raise Refused(f"{entry.path} leads to {real}, which is read already; remove the link in this path")
                seen.add(real)
                waiting.append((entry.path, real))
            elif pictures.is_picture(entry.name, left_out):
                found.append((here, entry.name))
    return [os.path.join(*where) for where in sorted(found)]


def _listing(folder: Path, left_out: Counter[str]) -> ImageFolder:
    from torchvision.datasets import ImageFolder

    class Visible(ImageFolder):  # type: ignore[misc]  # torchvision has no types
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            names = sorted(_classes(Path(directory)))
            if not names:
                raise Refused(f"{folder} must hold class folders with images in each: there is no folder in it")
            return names, {name: i for i, name in enumerate(names)}

        @staticmethod
        def make_dataset(
            directory: str | Path, class_to_idx: dict[str, int], *unused: Any, **given: Any
        ) -> list[tuple[str, int]]:
            # Not torchvision's, which goes round in circles of links, and into hidden folders.
            of_class = {name: _images(os.path.join(directory, name), left_out) for name in class_to_idx}
            empty = [name for name, files in of_class.items() if not files]
            if empty:
                raise Refused(
                    f"{folder} must hold class folders with images in each: there is none in {', '.join(empty[:5])} "
                    f"({len(empty)} such folders; read is what ends in {', '.join(pictures.ENDINGS)}); add some, or "
                    "take the folder away"
                )
            return [(file, class_to_idx[name]) for name, files in of_class.items() for file in files]

    beside = sum(entry.name.lower().endswith(pictures.ENDINGS) for entry in _entries(folder))
    if beside:
        left_out["in no class's folder"] = beside
    return Visible(os.fspath(folder), loader=open_image)


def open_image(file: str) -> Image:
    return pictures.shown(file)


def _square(file: str, size: int) -> Tensor:
    """uint8 (3, size, size): shorter side resized, centre cut out."""
    from torchvision.transforms.v2 import functional as T

    whole = open_image(file)
    part = whole.crop(pictures.middle(*whole.size))
    image: Tensor = T.pil_to_tensor(T.center_crop(T.resize(part, [size]), [size]))
    return image
