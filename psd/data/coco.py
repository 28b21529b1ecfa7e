"""`coco:PATH`: pictures with annotations in COCO's form, boxes and masks.

PATH/annotations/instances_train2017.json with pictures in PATH/train2017 or PATH/images/train2017, likewise val; what
follows "train" and "val" may be anything. Source: Lin et al., ECCV 2014.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections import defaultdict
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
    names = {category["id"]: str(category["name"]) for category in found["categories"]}
    labels = {number: k for k, number in enumerate(sorted(names), start=1)}
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for one in found["annotations"]:
        by_image[one["image_id"]].append(one)
    images = sorted(found["images"], key=lambda image: image["id"])
    strangers = set(by_image) - {image["id"] for image in images}
    if strangers:
        raise Refused(f"{file}: annotations name the image {min(strangers)}, which is not among its images")
    if not images:
        raise Refused(f"{file} lists no picture")
    flat: list[Any] = []
    items = []
    for row in annotated.part(len(images), split, 0, apart=True):
        image = images[row]
        size_here = (int(image["height"]), int(image["width"]))
        objects = [_object(one, labels, size_here, file) for one in by_image[image["id"]]]
        flat += [one["id"] for one in objects if one["flat"]]
        items.append((folder / image["file_name"], size_here, [one for one in objects if not one["flat"]]))
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
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"{file} is not readable as JSON ({error})") from error
    missing = [
        key for key in ("images", "annotations", "categories") if not isinstance(found, dict) or key not in found
    ]
    if missing:
        raise Refused(f"{file} is no COCO file of instances: it has no {', '.join(missing)}")
    made: dict[str, Any] = found
    return made


def _object(one: dict[str, Any], labels: dict[Any, int], size: tuple[int, int], file: Path) -> dict[str, Any]:
    where = f"{file}: annotation {one.get('id')}"
    try:
        x, y, width, height = map(float, one["bbox"])
        category = one["category_id"]
    except (KeyError, TypeError, ValueError):
        raise Refused(f"{where} must have a category_id and a bbox of four numbers, x, y, width and height") from None
    if category not in labels:
        raise Refused(f"{where} has the category {category}, which is none of {', '.join(map(str, sorted(labels)))}")
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
            coded = rle.frPyObjects(one["mask"], *size) if not _is_coded(one["mask"]) else one["mask"]
            cover = rle.decode(coded)
        except Exception as error:  # it raises its own kinds
            raise Refused(f"{file}: the segmentation of annotation {one['id']} is not understood ({error})") from error
        covers.append((not one["crowd"], -int((cover > 0).sum()), cover.any(2) if cover.ndim == 3 else cover > 0, one))
    for single, _, cover, one in sorted(covers, key=lambda known: known[:2]):
        found[cover] = one["label"] if single else IGNORED
    return found


def _is_coded(mask: Any) -> bool:
    """Whether it is a compressed run-length code, which needs no preparation."""
    return isinstance(mask, dict) and isinstance(mask.get("counts"), (str, bytes))
