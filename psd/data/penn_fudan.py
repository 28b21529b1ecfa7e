"""`penn-fudan:PATH`: pedestrians in the layout of the Penn-Fudan database, PNGImages/ and PedMasks/.

A mask numbers the persons of a picture from 1; boxes are their edges. Source: Wang, Shi, Song, Shen, "Object detection
combining recognition and segmentation", ACCV 2007.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from psd.data import annotated
from psd.data.scenes import Scenes, Target

CLASSES = ("background", "person")
LAYOUT = "Penn-Fudan's layout is PNGImages/NAME.png and PedMasks/NAME_mask.png"


class _Read:
    def __init__(self, files: list[tuple[Path, Path]]) -> None:
        self.files = files

    def __call__(self, i: int) -> tuple[Tensor, Target]:
        image, mask = self.files[i]
        persons = annotated.numbers(mask)
        boxes = []
        for number in sorted(set(np.unique(persons).tolist()) - {0}):
            rows, columns = np.nonzero(persons == number)
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        target = annotated.boxes_target(boxes, [1] * len(boxes), persons.shape)
        return annotated.picture(image), {**target, "mask": annotated.as_mask((persons > 0).astype(np.uint8))}


def load(path: Path, split: str, *, size: int | None = None, seed: int = 0) -> Scenes:
    """The database has no splits: a fifth of the pictures, drawn by `seed`, is "test"; fit and tune are parts of the
    rest.

    Args:
        path: the folder that holds PNGImages and PedMasks.
        size: in memory, each picture fitted into a square of that many pixels; files if None.
        seed: of the split.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    files = []
    for image in annotated.files_in(path / "PNGImages", LAYOUT):
        mask = annotated.existing(path / "PedMasks" / f"{image.stem}_mask.png", LAYOUT)
        annotated.same_size(image, mask)
        files.append((image, mask))
    chosen = [files[row] for row in annotated.part(len(files), split, seed, apart=False)]
    shown = [{1} if annotated.numbers(mask).any() else set() for _, mask in chosen]
    return annotated.finished(f"penn-fudan:{path}", CLASSES, _Read(chosen), annotated.present_in(shown, 2), size)
