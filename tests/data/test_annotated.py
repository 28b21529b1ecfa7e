"""Readers of annotated pictures: VOC, Penn-Fudan, COCO, and folders of masks; whatever is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import psd
from psd.data import load

HEIGHT, WIDTH = 12, 16


def paint(file: Path, value: int = 90, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(file, **options)
    return file


def mask(file: Path, found: Any, palette: bool = False) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(found, dtype=np.uint8))
    if palette:
        image = image.convert("L").convert("P")
        image.putdata(np.asarray(found, dtype=np.uint8).flatten().tolist())
    image.save(file)
    return file


def square(value: int = 1, background: int = 0) -> np.ndarray:
    """A mask with rows 3 to 6 and columns 2 to 9 of that value."""
    found = np.full((HEIGHT, WIDTH), background)
    found[3:7, 2:10] = value
    return found


BOX = [2.0, 3.0, 10.0, 7.0]


# --- one small data set of each


def voc(root: Path) -> Path:
    for name in ("a", "b", "c"):
        paint(root / f"JPEGImages/{name}.jpg")
        found = square(8)
        found[0, 0] = 255
        mask(root / f"SegmentationClass/{name}.png", found, palette=True)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / f"Annotations/{name}.xml").write_text(
            "<annotation><object><name>cat</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>10</xmax>"
            "<ymax>7</ymax></bndbox></object><object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin>"
            "<ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"
        )
    for of in ("Segmentation", "Main"):
        (root / "ImageSets" / of).mkdir(parents=True)
        (root / "ImageSets" / of / "train.txt").write_text("a\nb\n")
        (root / "ImageSets" / of / "val.txt").write_text("c\n")
    return root


def penn_fudan(root: Path) -> Path:
    for k in range(6):
        paint(root / f"PNGImages/{k}.png")
        persons = square(1)
        persons[9:11, 12:15] = 2
        mask(root / f"PedMasks/{k}_mask.png", persons)
    return root


def coco(root: Path) -> Path:
    from pycocotools import mask as rle

    coded = rle.encode(np.asfortranarray(square(1).astype(np.uint8)))
    coded = {"size": coded["size"], "counts": coded["counts"].decode()}
    for part in ("train2017", "val2017"):
        paint(root / part / "one.jpg")
        paint(root / part / "two.jpg")
        found = {
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
            "images": [
                {"id": 1, "file_name": "one.jpg", "height": HEIGHT, "width": WIDTH},
                {"id": 2, "file_name": "two.jpg", "height": HEIGHT, "width": WIDTH},
            ],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 8, 4], "segmentation": coded},
                {
                    "id": 2,
                    "image_id": 1,
                    "category_id": 3,
                    "bbox": [3, 4, 2, 2],
                    "segmentation": [[3, 4, 5, 4, 5, 6, 3, 6]],
                },
                {
                    "id": 3,
                    "image_id": 2,
                    "category_id": 3,
                    "bbox": [0, 0, 4, 4],
                    "iscrowd": 1,
                    "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 4, HEIGHT * WIDTH - 4]},
                },
                {
                    "id": 4,
                    "image_id": 2,
                    "category_id": 7,
                    "bbox": [12.0, 8, 4.4, 4.2],
                    "segmentation": [[12, 8, 16, 8, 16, 12]],
                },
            ],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(found))
    return root


def masks(root: Path) -> Path:
    for part, names in (("train", "abcde"), ("val", "f")):
        for name in names:
            paint(root / part / "images" / f"{name}.jpg")
            mask(root / part / "masks" / f"{name}.png", square(2, 1), palette=name == "a")
    (root / "classes.txt").write_text("background\nwall\ndoor\n")
    return root


# --- what is read


def test_voc_is_read(tmp_path):
    train, test = (
        load(f"voc:{voc(tmp_path) if split == 'train' else tmp_path}", split=split) for split in ("train", "test")
    )
    assert len(train) == 2 and len(test) == 1 and len(train.classes) == 21 and train.classes[0] == "background"
    image, target = train[1]
    assert image.shape == (3, HEIGHT, WIDTH) and target["boxes"].tolist() == [BOX]  # pixels from 0, the end outside
    assert target["labels"].tolist() == [8] and train.classes[8] == "cat"  # the difficult dog is left out
    assert (target["mask"][3:7, 2:10] == 8).all() and target["mask"][0, 0] == 255
    assert train.present.nonzero().tolist() == [[0, 8], [1, 8]]
    assert "mask" not in load(f"voc-main:{tmp_path}")[0][1]


def test_penn_fudan_is_read(tmp_path):
    parts = {split: load(f"penn-fudan:{penn_fudan(tmp_path)}", split=split) for split in psd.data.SPLITS}
    assert {split: len(data) for split, data in parts.items()} == {"train": 5, "test": 1, "fit": 4, "tune": 1}
    _, target = parts["train"][0]
    assert target["boxes"].tolist() == [BOX, [12, 9, 15, 11]] and target["labels"].tolist() == [1, 1]
    assert target["mask"].sum() == 32 + 6 and parts["train"].classes == ("background", "person")
    assert len(load(f"penn-fudan:{tmp_path}", split="test", seed=1)) == 1


def test_coco_is_read(tmp_path):
    data = load(f"coco:{coco(tmp_path)}")
    assert data.classes == ("background", "dog", "cat") and data.present.tolist() == [
        [False, True, True],
        [False, False, True],
    ]
    _, target = data[0]
    assert target["boxes"].tolist() == [BOX, [3, 4, 5, 6]] and target["labels"].tolist() == [2, 1]
    assert target["mask"][3, 2] == 2 and (target["mask"][4:6, 3:5] == 1).all()  # the smaller is above
    _, crowded = data[1]
    assert crowded["labels"].tolist() == [2] and crowded["boxes"].tolist() == [[12, 8, 16, 12]]  # clipped by .4 and .2
    assert (crowded["mask"][:4, 0] == 255).all() and crowded["mask"][4:, 0].sum() == 0


def test_a_folder_of_masks_is_read(tmp_path):
    data = load(f"masks:{masks(tmp_path)}")
    assert data.classes == ("background", "wall", "door") and len(data) == 5
    for i in range(5):
        assert (data[i][1]["mask"].numpy() == square(2, 1)).all()
    assert data.present.tolist() == [[False, True, True]] * 5
    (tmp_path / "classes.txt").unlink()
    assert load(f"masks:{tmp_path}", split="test").classes == ("background", "1", "2")
    assert len(load(f"masks:{tmp_path}", split="fit")) == 4 and len(load(f"masks:{tmp_path}", split="tune")) == 1


SAMPLE = Path(__file__).parent / "street"


def test_a_real_picture_of_penn_fudan_is_read(tmp_path):
    for k in range(2):
        for folder, file in (("PNGImages", f"{k}.png"), ("PedMasks", f"{k}_mask.png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            source = SAMPLE / ("street_mask.png" if folder == "PedMasks" else "street.png")
            (tmp_path / folder / file).write_bytes(source.read_bytes())
    image, target = load(f"penn-fudan:{tmp_path}")[0]
    assert target["mask"].shape == image.shape[-2:] and 0.02 < target["mask"].float().mean() < 0.5
    assert len(target["boxes"]) == len(set(np.unique(np.array(Image.open(SAMPLE / "street_mask.png")))) - {0}) >= 1


KINDS: dict[str, Callable[[Path], Path]] = {"voc": voc, "penn-fudan": penn_fudan, "coco": coco, "masks": masks}


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_read_into_memory_at_one_size(kind, tmp_path):
    data = load(f"{kind}:{KINDS[kind](tmp_path)}", size=32)
    assert data.size == 32 and data[0][0].shape == (3, 32, 32) and data[0][1]["mask"].shape == (32, 32)
    assert (data[0][1]["mask"][24:] == 255).all()  # 12 of 16 rows


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_trained_on(kind, tmp_path):
    KINDS[kind](tmp_path / "data")
    record = psd.train(
        psd.Config(
            data={"name": f"{kind}:{tmp_path / 'data'}", "crop_size": 32, "batch_size": 2, "workers": 0},
            model="fcn@resnet8",
            method="cross_entropy",
            task="segmentation",
            budget=1,
            run={"output": str(tmp_path), "progress": False, "device": "cpu"},
        )
    )
    assert record.data == "data" and record.final["n_test"] >= 1


def test_a_picture_is_what_viewers_show(tmp_path):
    masks(tmp_path)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    paint(tmp_path / "train/images/a.jpg", size=(HEIGHT, WIDTH), exif=turned)
    paint(tmp_path / "train/images/b.jpg")
    Image.new("L", (WIDTH, HEIGHT), 30).save(tmp_path / "train/images/b.jpg")
    data = load(f"masks:{tmp_path}")
    assert data[0][0].shape == data[1][0].shape == (3, HEIGHT, WIDTH)
    assert (data[1][0].float() - 30).abs().max() < 3


def test_pictures_without_an_object_are_kept_and_said(tmp_path):
    masks(tmp_path)
    mask(tmp_path / "train/masks/a.png", np.zeros((HEIGHT, WIDTH)))
    with pytest.warns(UserWarning, match="1 of 5 pictures have no object; they are kept"):
        assert len(load(f"masks:{tmp_path}")) == 5


# --- what is refused: the table of it is in tests/reliability/test_bad_data.py


def edit(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def made(root: Path) -> None:
        found = json.loads((root / file).read_text())
        change(found)
        (root / file).write_text(json.dumps(found))

    return made


def write(file: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / file).write_text(text) and None


def gone(file: str) -> Callable[[Path], None]:
    return lambda root: (root / file).unlink()


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / file).write_text((root / file).read_text().replace(old, new)) and None


TRAIN = "annotations/instances_train2017.json"


def test_boxes_without_area_of_coco_are_left_out_and_said(tmp_path):
    coco(tmp_path)
    edit(TRAIN, lambda found: found["annotations"][1].update(bbox=[3, 4, 0, 2]))(tmp_path)
    with pytest.warns(UserWarning, match="1 boxes have no area, the first is annotation 2; left out"):
        data = load(f"coco:{tmp_path}")
    assert data[0][1]["labels"].tolist() == [2] and not data.present[0, 1]


def test_a_mask_that_holds_a_wrong_number_is_seen_when_voc_is_read(tmp_path):
    mask(voc(tmp_path) / "SegmentationClass/a.png", square(99))
    data = load(f"voc:{tmp_path}")
    with pytest.raises(ValueError, match=r"a\.png holds the number 99; the 21 classes"):
        data[0]
    assert torch.equal(data.present, load(f"voc:{tmp_path}").present)
