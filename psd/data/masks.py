"""`masks:PATH`: a folder of pictures and of mask PNGs of the same names.

PATH/train/images/NAME.jpg and PATH/train/masks/NAME.png, likewise PATH/val (or PATH/test). A mask is a palette or grey
PNG: 0 is background, 255 does not count. PATH/classes.txt names the classes, one a line, background first.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from pathlib import Path

import numpy as np
from torch import Tensor

from psd.checks import Refused
from psd.data import annotated
from psd.data.scenes import IGNORED, Scenes, Target

LAYOUT = "the layout is {train,val}/images/NAME.jpg and {train,val}/masks/NAME.png"


class _Read:
    def __init__(self, files: list[tuple[Path, Path]], classes: int) -> None:
        self.files, self.classes = files, classes

    def __call__(self, i: int) -> tuple[Tensor, Target]:
        image, mask = self.files[i]
        found = annotated.numbers(mask)
        annotated.values_of(found, mask, self.classes)
        return annotated.picture(image), {"mask": annotated.as_mask(found)}


def load(path: Path, split: str, *, size: int | None = None, seed: int = 0) -> Scenes:
    """ "train" is PATH/train, "test" PATH/val or PATH/test; fit and tune are parts of train. All masks are read once.

    Without classes.txt the classes are numbered up to the largest number in the masks of PATH/train.

    Args:
        path: as above.
        size: in memory, each picture fitted into a square of that many pixels; files if None.
        seed: has no part in it.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    folder = path / "train"
    if split == "test":
        folder = next((path / name for name in ("val", "test") if (path / name).is_dir()), path / "val")
    files = _pairs(folder)
    classes = _classes(path)
    chosen = [files[row] for row in annotated.part(len(files), split, 0, apart=True)]
    shown = [annotated.values_of(annotated.numbers(mask), mask, len(classes)) for _, mask in chosen]
    present = annotated.present_in(shown, len(classes))
    return annotated.finished(f"masks:{path}", classes, _Read(chosen, len(classes)), present, size)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    files = []
    for image in annotated.files_in(folder / "images", LAYOUT):
        mask = annotated.existing(folder / "masks" / f"{image.stem}.png", LAYOUT)
        annotated.same_size(image, mask)
        files.append((image, mask))
    return files


def _classes(path: Path) -> list[str]:
    listed = path / "classes.txt"
    if listed.is_file():
        names = [line.strip() for line in annotated.text_of(listed).splitlines() if line.strip()]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise Refused(f"{listed} names the class {twice[0]!r} twice; a class has one line, so remove or rename one")
        if not 2 <= len(names) <= IGNORED:
            raise Refused(
                f"{listed} must name at least two classes and at most {IGNORED}, one a line, background first; got "
                f"{len(names)}: {reprlib.repr(names)}"
            )
        return names
    highest = max(
        int(np.where(m == IGNORED, 0, m).max()) for m in (annotated.numbers(f) for _, f in _pairs(path / "train"))
    )
    if highest == 0:
        raise Refused(f"the masks of {path / 'train'} hold nothing but background; a class is a number from 1 on")
    return ["background", *map(str, range(1, highest + 1))]
