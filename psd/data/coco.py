"""`coco:PATH`: pictures with annotations in COCO's form, boxes and masks.

PATH/annotations/instances_train2017.json with pictures in PATH/train2017 or PATH/images/train2017, likewise val; what
follows "train" and "val" may be anything. Source: Lin et al., ECCV 2014.
"""

from __future__ import annotations

import importlib
import json
import reprlib
import warnings
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from psd.checks import Refused
from psd.data import annotated
from psd.data.images import MissingData
from psd.data.scenes import IGNORED, Scenes, Target

LAYOUT = "COCO's layout is annotations/instances_{train,val}*.json and the pictures in {train,val}*/"


class _Read:
    def __init__(self, items: list[tuple[Path, tuple[int, int], list[dict[str, Any]]]]) -> None:
        self.items = items

    def __call__(self, i: int) -> tuple[Tensor, Target]:
        file, size, objects = self.items[i]
        image = annotated.picture(file)
        if tuple(image.shape[-2:]) != size:
            raise Refused(
                f"{file} is {image.shape[2]} x {image.shape[1]} pixels (as viewers show it), its annotation says "
                f"{size[1]} x {size[0]}; the boxes would be elsewhere"
            )
        single = [one for one in objects if not one["crowd"]]
        target = annotated.boxes_target([one["box"] for one in single], [one["label"] for one in single], size)
        if all(one["mask"] is not None for one in objects):
            target["mask"] = annotated.as_mask(_painted(objects, size, file))
        return image, target


def load(path: Path, split: str, *, size: int | None = None, seed: int = 0) -> Scenes:
    """ "train" of instances_train*.json, "test" of instances_val*.json; fit and tune are parts of train.

    Crowds have no box, and their pixels do not count. Where objects lie over one another, the smaller is above. A box
    of no area is left out, and said. Edges that leave the picture by a pixel or less are clipped.

    Args:
        path: as above.
        size: in memory, each picture fitted into a square of that many pixels; files if None.
        seed: has no part in it.

    Raises:
        ValueError: naming the file, the annotation and what is wrong with it.
    """
    if find_spec("pycocotools") is None:
        raise Refused('coco:PATH needs pycocotools, which is missing: pip install ".[detection]"')
    kind = "val" if split == "test" else "train"
    file = next(iter(sorted((path / "annotations").glob(f"instances_{kind}*.json"))), None)
    if file is None:
        raise MissingData(f"there is no {path / 'annotations' / f'instances_{kind}*.json'}; {LAYOUT}")
    name = file.stem.removeprefix("instances_")
    folder = next((f for f in (path / name, path / "images" / name, path / kind) if f.is_dir()), None)
    if folder is None:
        raise MissingData(f"there is neither {path / name} nor {path / 'images' / name}; {LAYOUT}")
    found = _json(file)
    names = {category["id"]: str(category["name"]) for category in _listed(found, "categories", ("id", "name"), file)}
    if len(names) >= IGNORED:
        raise Refused(f"{file} has {len(names)} categories; a mask has room for {IGNORED - 1}: take some out")
    labels = {number: k for k, number in enumerate(sorted(names), start=1)}
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for one in _listed(found, "annotations", ("image_id",), file):
        by_image[one["image_id"]].append(one)
    images = sorted(_listed(found, "images", ("id", "file_name"), file), key=lambda image: image["id"])
    strangers = set(by_image) - {image["id"] for image in images}
    if strangers:
        raise Refused(
            f"{file}: annotations name the image {min(strangers)}, which is not among its images; add it, or remove "
            "the annotations"
        )
    if not images:
        raise Refused(f"{file} lists no picture; add some")
    flat: list[Any] = []
    items = []
    for row in annotated.part(len(images), split, 0, apart=True):
        image = images[row]
        size_here = _size(image, file)
        objects = [_object(one, labels, size_here, file) for one in by_image[image["id"]]]
        flat += [one["id"] for one in objects if one["flat"]]
        picture = annotated.inside(folder, image["file_name"], f"{file}: image {image['id']}")
        items.append((picture, size_here, [one for one in objects if not one["flat"]]))
        annotated.existing(items[-1][0], LAYOUT)
    if flat:
        warnings.warn(
            f"{file}: {len(flat)} boxes have no area, the first is annotation {flat[0]}; left out", stacklevel=3
        )
    shown = [{one["label"] for one in objects if not one["crowd"]} for _, _, objects in items]
    classes = ["background", *(names[number] for number in sorted(names))]
    present = annotated.present_in(shown, len(classes))
    return annotated.finished(f"coco:{path}", classes, _Read(items), present, size)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(annotated.text_of(file))
    except (json.JSONDecodeError, RecursionError) as error:  # the latter of thousands of brackets
        raise Refused(f"{file} is not readable as JSON ({error}); replace it") from error
    missing = [
        key for key in ("images", "annotations", "categories") if not isinstance(found, dict) or key not in found
    ]
    if missing:
        raise Refused(f"{file} is no COCO file of instances: it has no {', '.join(missing)}; {LAYOUT}")
    made: dict[str, Any] = found
    return made


def _listed(found: dict[str, Any], part: str, keys: Sequence[str], file: Path) -> list[dict[str, Any]]:
    """A list of the file, each of whose entries has these keys; ids are whole numbers, and of one list no two alike."""
    entries = found[part]
    if not isinstance(entries, list):
        raise Refused(f"{file}: {part} must be a list, got {reprlib.repr(entries)}; see cocodataset.org")
    ids = set()
    for number, entry in enumerate(entries):
        lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if lacking:
            raise Refused(
                f"{file}: entry {number} of {part} must have {', '.join(lacking)}; add it, or remove the entry"
            )
        key = keys[0]  # its id, or that of the image it belongs to
        if not isinstance(entry[key], int):
            raise Refused(f"{file}: entry {number} of {part} must have a whole number as {key}, got {entry[key]!r}")
        if key == "id" and entry["id"] in ids:
            raise Refused(f"{file}: two of {part} have the id {entry['id']}; each has one of its own")
        ids.add(entry[key])
    return entries


def _size(image: dict[str, Any], file: Path) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    if not all(isinstance(side, (int, float)) and 0 < side < 2**31 and side == int(side) for side in (height, width)):
        raise Refused(
            f"{file}: image {image['id']} must have height and width in pixels, got {height!r} and {width!r}; "
            "write those of its file"
        )
    return int(image["height"]), int(image["width"])


def _object(one: dict[str, Any], labels: dict[Any, int], size: tuple[int, int], file: Path) -> dict[str, Any]:
    where = f"{file}: annotation {one.get('id')}"
    try:
        x, y, width, height = map(float, one["bbox"])
        category = one["category_id"]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Refused(
            f"{where} must have a category_id and a bbox of four numbers, x, y, width and height, got "
            f"{one.get('category_id')!r} and {reprlib.repr(one.get('bbox'))}; mend or remove it"
        ) from None
    if not isinstance(category, int) or category not in labels:
        raise Refused(
            f"{where} has the category {category!r}, which is none of {', '.join(map(str, sorted(labels)))}; "
            "mend or remove it"
        )
    box = [x, y, x + width, y + height]
    limits = [size[1], size[0]] * 2
    box = [
        min(max(edge, 0.0), limit) if -1 <= edge <= limit + 1 else edge for edge, limit in zip(box, limits, strict=True)
    ]
    crowd = bool(one.get("iscrowd"))
    flat = not crowd and (box[2] <= box[0] or box[3] <= box[1])
    if not flat and not crowd:
        annotated.check_box(box, size, where)
    mask = one.get("segmentation") or None
    return {"id": one.get("id"), "box": box, "label": labels[category], "mask": mask, "crowd": crowd, "flat": flat}


def _painted(objects: list[dict[str, Any]], size: tuple[int, int], file: Path) -> np.ndarray:
    """uint8 (H, W): crowds, then objects from the largest on."""
    rle = importlib.import_module("pycocotools.mask")  # which has no types

    found = np.zeros(size, dtype=np.uint8)
    covers = []
    for one in objects:
        try:
            _check_mask(one["mask"], size)
            coded = rle.frPyObjects(one["mask"], *size) if not _is_coded(one["mask"]) else one["mask"]
            cover = rle.decode(coded)
        except Exception as error:  # it raises its own kinds
            raise Refused(
                f"{file}: the segmentation of annotation {one['id']} is not understood ({error}); mend or remove it"
            ) from error
        covers.append((not one["crowd"], -int((cover > 0).sum()), cover.any(2) if cover.ndim == 3 else cover > 0, one))
    for single, _, cover, one in sorted(covers, key=lambda known: known[:2]):
        found[cover] = one["label"] if single else IGNORED
    return found


def _check_mask(mask: Any, size: tuple[int, int]) -> None:
    """ValueError for what pycocotools, written in C, would take at its word: memory for any size or length.

    A segmentation is a list of polygons, each x, y, x, y, ..., or a run-length code of the picture's size.
    """
    if isinstance(mask, dict):
        if mask.get("size") != list(size):
            raise ValueError(f"its size is {reprlib.repr(mask.get('size'))}, its picture's {list(size)}")
        counts = mask.get("counts")
        counts = _counts_of(counts) if isinstance(counts, str) else counts
        if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"its counts must be whole numbers or their code, got {reprlib.repr(counts)}")
        if sum(counts) != size[0] * size[1]:  # what a code leaves out would be whatever is in the memory
            raise ValueError(f"its counts add up to {sum(counts)} pixels, its picture has {size[0] * size[1]}")
        return
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        raise ValueError(f"it is {reprlib.repr(mask)}, not a list of polygons")
    for polygon in mask:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} numbers: x and y of three corners or more")
        # a corner far outside costs time and memory along its edge
        if not all(isinstance(edge, (int, float)) and abs(edge) <= 2 * max(size) for edge in polygon):
            raise ValueError(f"a polygon must have numbers in the picture, got {reprlib.repr(polygon)}")


def _counts_of(code: str) -> list[int]:
    """The numbers of a compressed run-length code, as `rleFrString` of COCO's maskApi.c reads them."""
    counts: list[int] = []
    value = shift = 0
    for letter in code:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"its counts are no run-length code: {reprlib.repr(code)}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last letter of a number, which may be negative: from the third on they are differences
            value |= -1 << shift if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(f"its run-length code ends in the middle of a number: {reprlib.repr(code)}")
    return counts


def _is_coded(mask: Any) -> bool:
    """Whether it is a compressed run-length code, which needs no preparation."""
    return isinstance(mask, dict) and isinstance(mask.get("counts"), (str, bytes))
