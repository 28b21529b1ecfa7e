"""Data sets by name: `load("shapes")`, `load("cifar100")`, `load("cifar100-small")`, `load("folder:PATH")`.

Each is a function `load(root, split, **options)` in a file here, or one of your own, made known by `register`.

Files are looked for under `root`, else under the folder that the environment variable PSD_DATA names, else
under `data` in the current directory. A missing data set stops with the command that gets it; nothing takes
its place.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from psd.checks import Refused, did_you_mean, taken
from psd.data.images import ImageData, MissingData

Load = Callable[..., Any]

_BUILT_IN = {  # name: the file here, its function, and where it looks below the root
    "shapes": ("shapes", "load", "."),
    "shapes-scenes": ("shapes_scenes", "load", "."),
    "cifar100": ("cifar100", "load", "."),
    "cifar100-small": ("cifar100", "load_small", "."),
    "imagenet": ("folder", "load", "imagenet"),
    "tiny-imagenet": ("folder", "load", "tiny-imagenet"),
}
_AT_A_PATH = {  # what stands before a path: the file here, and its function
    "folder": ("folder", "load"),
    "masks": ("masks", "load"),
    "voc": ("voc", "load"),
    "voc-main": ("voc", "load_main"),
    "penn-fudan": ("penn_fudan", "load"),
    "coco": ("coco", "load"),
}
_REGISTERED: dict[str, Load] = {}

SPLITS = ("train", "test", "fit", "tune")
TUNE_APART = ("shapes", "cifar100-small")  # their tune split takes nothing from train

__all__ = [
    "SPLITS",
    "TUNE_APART",
    "ImageData",
    "MissingData",
    "check_name",
    "default_root",
    "load",
    "names",
    "register",
]


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
) -> Any:
    """Load one split of a data set.

    Args:
        name: "shapes" (drawn, no file), "shapes-scenes" (drawn too, with masks and boxes),
            "cifar100", "cifar100-small" (10 classes of CIFAR-100 with 100
            training images each), "folder:PATH" (PATH/train/<class>/* and PATH/val/<class>/*), "imagenet" or
            "tiny-imagenet", which are "folder:ROOT/imagenet" and "folder:ROOT/tiny-imagenet"; or a registered one. With
            masks or boxes: "masks:PATH", "voc:PATH", "voc-main:PATH", "penn-fudan:PATH", "coco:PATH", each laid out as
            the file of its name here says.
        root: the folder where data sets live; `default_root()` if None.
        split: "train", "test"; "fit" and "tune" are 90% and 10% of every class of train, cut with a fixed
            seed, for choosing hyperparameters. "shapes" and "cifar100-small" have tune apart from train, so
            that their fit is all of train.
        classes: take that many classes, drawn by `seed`, the same ones in every split.
        per_class: take that many images of every class of this split, drawn by `seed`.
        size: side of the images in pixels: drawn so for "shapes", resized for CIFAR-100 (default of both: 32) and
            folders (default: an ImageFolder of the files as they are).
        count: number of images, for "shapes" and "shapes-scenes" alone.
        seed: of the subset, and of what "shapes" draws and "cifar100-small" chooses; use one for all splits.
        verify: check that "cifar100" is CIFAR-100; False loads other data of the same layout, with a warning.

    Returns:
        ImageData; for folders without `size` a torchvision ImageFolder (PIL images, `.targets`, `.classes`); for
        "shapes-scenes" and what has masks or boxes `psd.data.scenes.Scenes`; for a registered data set what its
        function gives.

    Raises:
        ValueError: an unknown name or split (with the nearest valid one), an argument that the data set does
            not take, more classes or images than there are, damaged files. `MissingData`, a ValueError, where
            there are no files.

    >>> len(load("shapes", split="test", count=100))
    100
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if root in SPLITS:
        raise Refused(f"root={root!r} is the name of a split: write split={root!r}")
    function, folder = _find(name, Path(root) if root is not None else default_root())
    options = {"classes": classes, "per_class": per_class, "size": size, "count": count, "seed": seed, "verify": verify}
    given = {key: value for key, value in options.items() if value != _DEFAULTS[key]}
    taken = inspect.signature(function).parameters
    for key, value in given.items():
        if key != "verify":
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise Refused(f"{key} must be an integer, got {value!r}")
            given[key] = int(value)
        if key not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            raise Refused(f"{key}={value} does not apply to the data set {name!r}; leave it out")
    return function(folder, split, **given)


_DEFAULTS = {key: p.default for key, p in inspect.signature(load).parameters.items() if p.kind is p.KEYWORD_ONLY}


def register(name: str, load: Load) -> Load:
    """Make a data set of your own known by its name: to `psd.data.load`, and as `data.name` of a configuration.

    Args:
        name: part of a record's path, so of letters, digits and .-_ alone.
        load: (root, split, **options) -> `ImageData`, or any map-style data set of (image, target).
            root: a pathlib.Path, the folder where data sets live. split: "train", "test" or, where a run asks for them,
            "fit" and "tune"; ValueError for one that there is not.
            options: classes, per_class, size, count, seed and verify, each as in `psd.data.load`. One is passed where
            it is set to something else than its default there, and never otherwise; one that was set but is no
            parameter of this function is refused. So `def load(root, split)` is a data set without options.

    Returns:
        load, as it is.

    Raises:
        ValueError: a name that is taken or cannot be part of a path, a function that does not take (root, split).

    >>> def drawn(root, split, *, size=16):
    ...     return load("shapes", split=split, size=size, count=8)
    >>> register("my-shapes", drawn) is drawn
    True
    >>> load("my-shapes", size=24).images.shape
    torch.Size([8, 3, 24, 24])
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise Refused(f"data.name is part of a file name: letters, digits, '.-_' only, got {name!r}")
    if name in names() and taken(_REGISTERED, name, load):
        raise Refused(f"data.name {name!r} is taken; known: {', '.join(names())}")
    try:
        inspect.signature(load).bind(Path(), "train")
    except TypeError as error:
        raise Refused(f"load of {name!r} must be a function load(root, split, **options): {error}") from None
    _REGISTERED[name] = load
    return load


def names() -> list[str]:
    """The names of all data sets: those with a file here, and what is registered.

    >>> names()[:3]
    ['shapes', 'shapes-scenes', 'cifar100']
    """
    return [*_BUILT_IN, *_REGISTERED, *(f"{prefix}:PATH" for prefix in _AT_A_PATH)]


def check_name(name: str) -> None:
    """ValueError, with the nearest known name, for one that `load` does not know; no file is looked at."""
    if not isinstance(name, str) or not (at_a_path(name) or name in {*_BUILT_IN, *_REGISTERED}):
        raise unknown("data.name", name, names())


def at_a_path(name: str) -> bool:
    """Whether a data set's name holds where it lies, as "folder:PATH" does."""
    prefix, colon, path = name.partition(":")
    return bool(colon and path) and prefix in _AT_A_PATH


def _find(name: str, root: Path) -> tuple[Load, Path]:
    """The function that loads a data set, and the folder that it is given."""
    check_name(name)
    if name in _REGISTERED:
        return _REGISTERED[name], root
    if at_a_path(name):
        prefix, _, path = name.partition(":")
        file, function = _AT_A_PATH[prefix]
        return getattr(importlib.import_module(f"{__name__}.{file}"), function), Path(path)
    file, function, place = _BUILT_IN[name]
    return getattr(importlib.import_module(f"{__name__}.{file}"), function), root / place


def unknown(what: str, given: str, known: Sequence[str]) -> Refused:
    """The error for a name that is not among the known ones, with the nearest of them."""
    hint = did_you_mean(given, known) or "."
    return Refused(f"{what} {given!r} is unknown{hint} Known: {', '.join(known)}")
