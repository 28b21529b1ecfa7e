"""`voc:PATH` and `voc-main:PATH`: pictures in the layout of PASCAL VOC, as in VOCdevkit/VOC2012.

`voc` reads the pictures of ImageSets/Segmentation with their masks and boxes, `voc-main` those of ImageSets/Main with
their boxes alone. Source: Everingham et al., IJCV 2010.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from torch import Tensor

from psd.checks import Refused
from psd.data import annotated
from psd.data.scenes import Scenes, Target

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
LAYOUT = "VOC's layout is JPEGImages/, Annotations/, SegmentationClass/, ImageSets/Segmentation/{train,val}.txt"


class _Files(NamedTuple):
    image: Path
    mask: Path | None
    boxes: list[list[float]]
    labels: list[int]


class _Read:
    def __init__(self, items: list[_Files]) -> None:
        self.items = items

    def __call__(self, i: int) -> tuple[Tensor, Target]:
        files = self.items[i]
        image = annotated.picture(files.image)
        target = annotated.boxes_target(files.boxes, files.labels, image.shape[-2:])
        if files.mask is not None:
            found = annotated.numbers(files.mask)
            annotated.values_of(found, files.mask, len(CLASSES))
            target["mask"] = annotated.as_mask(found)
        return image, target


def load(path: Path, split: str, *, size: int | None = None, seed: int = 0) -> Scenes:
    """The pictures of ImageSets/Segmentation: "train" of train.txt, "test" of val.txt; fit and tune are parts of train.

    Boxes that are marked as difficult are left out. All annotations are checked, pixels when they are read.

    Args:
        path: the folder that holds JPEGImages.
        size: in memory, each picture fitted into a square of that many pixels; files if None.
        seed: has no part in it.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    return _load(path, split, "Segmentation", size)


def load_main(path: Path, split: str, *, size: int | None = None, seed: int = 0) -> Scenes:
    """The same for the pictures of ImageSets/Main, without masks."""
    return _load(path, split, "Main", size)


def _load(path: Path, split: str, of: str, size: int | None) -> Scenes:
    listed = annotated.existing(path / "ImageSets" / of / ("val.txt" if split == "test" else "train.txt"), LAYOUT)
    names = annotated.names_in(listed)
    if not names:
        raise Refused(f"{listed} lists no picture; write the names of some, one a line")
    rows = annotated.part(len(names), split, 0, apart=True)
    items = [_files(path, names[row], listed, masks=of == "Segmentation") for row in rows]
    present = annotated.present_in([set(item.labels) for item in items], len(CLASSES))
    return annotated.finished(f"voc:{path}", CLASSES, _Read(items), present, size)


def _files(path: Path, name: str, listed: Path, masks: bool) -> _Files:
    image = annotated.existing(annotated.inside(path / "JPEGImages", f"{name}.jpg", f"{listed}:"), LAYOUT)
    mask = annotated.existing(path / "SegmentationClass" / f"{name}.png", LAYOUT) if masks else None
    if mask is not None:
        annotated.same_size(image, mask)
    boxes, labels = _objects(annotated.existing(path / "Annotations" / f"{name}.xml", LAYOUT), annotated.size_of(image))
    return _Files(image, mask, boxes, labels)


def _objects(file: Path, size: tuple[int, int]) -> tuple[list[list[float]], list[int]]:
    try:
        root = ElementTree.parse(file).getroot()  # expat fetches no entity, and bounds what they grow to  # nosec B314
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # LookupError of a strange encoding
        raise Refused(f"{file} is not readable as XML ({error}); replace or remove it") from error
    boxes, labels = [], []
    for found in root.iter("object"):
        name = (found.findtext("name") or "").strip()
        if name not in CLASSES[1:]:
            raise Refused(f"{file}: the object {name!r} is none of VOC's classes: {', '.join(CLASSES[1:])}; rename it")
        if found.findtext("difficult") == "1":
            continue
        try:
            x1, y1, x2, y2 = (
                float(found.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            raise Refused(f"{file}: the object {name!r} has no bndbox with xmin, ymin, xmax and ymax; add it") from None
        box = [x1 - 1, y1 - 1, x2, y2]  # VOC counts pixels from 1, and the last one is inside
        annotated.check_box(box, size, f"{file}: object {name!r}")
        boxes.append(box)
        labels.append(CLASSES.index(name))
    return boxes, labels
