"""Pictures with masks and boxes: what they are, what is refused, and how they are cut into batches."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from psd.data import load, shapes_scenes
from psd.data.batches import Share
from psd.data.dense import MeasuredScenes, SceneBatches
from psd.data.scenes import IGNORED, Scenes, as_scenes, boxes_of, check, fitted, scene_partners, shown

SIZE, COUNT, CLASSES = 32, 12, ("background", "dark", "light")


class Painted:
    """Pictures of one square each, grey 100 or 200, whose place the mask and the box tell; a module's, for workers."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size

    def __call__(self, i: int) -> tuple[Tensor, dict[str, Any]]:
        x, y, side, label = 2 + i % 5, 3 + i % 7, self.size // 2 - i % 3, 1 + i % 2
        image = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
        image[:, y : y + side, x : x + side] = 100 * label
        mask = (image[0] > 0).to(torch.uint8) * label
        boxes = boxes_of(torch.tensor([[x, y, x + side, y + side]]), (self.size, self.size))
        target = {"mask": tv_tensors.Mask(mask), "boxes": boxes, "labels": torch.tensor([label])}
        return tv_tensors.Image(image), target


def scenes(size: int | None = None, count: int = COUNT, flip: bool = True) -> Scenes:
    present = torch.tensor([[False, i % 2 == 0, i % 2 == 1] for i in range(count)])
    return Scenes("squares", CLASSES, Painted(), present, size, flip, (0.0,) * 3, (1 / 255,) * 3)


@pytest.fixture
def batches():
    made = []

    def make(learns: str, needs: Any = (), data: Scenes | None = None, **options: Any) -> SceneBatches:
        options = {"crop_size": SIZE, "crop_scale": 0.3, "workers": 0, **options}
        made.append(SceneBatches(data or scenes(), learns, 4, 7, needs, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- batches


def test_a_mask_is_cut_and_mirrored_with_its_image(batches):
    batch = batches("mask").get(1)
    assert batch.x.shape == (4, 3, SIZE, SIZE) and batch.y.shape == (4, SIZE, SIZE) and batch.y.dtype == torch.int64
    grey = batch.x[:, 0]
    inside = torch.tensor([0, 100, 200])[batch.y]
    assert ((grey - inside).abs() < 1).float().mean() > 0.93  # at the edges the image is interpolated, the mask is not


def test_boxes_are_cut_and_mirrored_with_their_image(batches):
    for step in range(3):
        for image, target in zip(*(lambda b: (b.x, b.y))(batches("boxes").get(step)), strict=True):
            assert target["boxes"].shape == (len(target["labels"]), 4)
            for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                assert 0 <= x1 < x2 <= SIZE and 0 <= y1 < y2 <= SIZE
                middle = image[0, int((y1 + y2) / 2), int((x1 + x2) / 2)]
                assert middle == pytest.approx(100 * label, abs=1)


def test_pixels_that_do_not_count_are_minus_100(batches):
    def read(i: int) -> tuple[Tensor, dict[str, Any]]:
        image, _ = Painted()(i)
        return image, {"mask": tv_tensors.Mask(torch.full((SIZE, SIZE), IGNORED, dtype=torch.uint8))}

    data = Scenes("ignored", CLASSES, read, torch.ones(4, 3).bool())
    assert (batches("mask", data=data).get(0).y == -100).all()


def test_a_batch_is_a_function_of_seed_and_step(batches):
    one, other = batches("mask", {"partner"}), batches("mask", {"partner"})
    later = one.get(5)
    for step in (0, 3):
        one.get(step)
    again, same = one.get(5), other.get(5)
    for batch in (again, same):
        assert torch.equal(batch.x, later.x) and torch.equal(batch.partner, later.partner)
        assert torch.equal(batch.y, later.y) and torch.equal(batch.partner_y, later.partner_y)
    assert not torch.equal(one.get(6).x, later.x)


def test_worker_processes_give_the_same_batches(batches):
    here, there = batches("boxes", {"partner"}), batches("boxes", {"partner"}, workers=1)
    for step in (0, 1):
        a, b = here.get(step), there.get(step)
        assert torch.equal(a.x, b.x) and torch.equal(a.partner, b.partner)
        assert all(torch.equal(p["boxes"], q["boxes"]) for p, q in zip(a.y, b.y, strict=True))
    there.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("share", [(2, 1), (1, 2)])
def test_the_parts_of_a_batch_are_those_of_the_whole(batches, share):
    world, accumulate = share
    whole = batches("mask", {"partner"}).get(2)
    parts = [
        batches("mask", {"partner"}, share=Share(rank, world, accumulate)).get(2, turn)
        for rank in range(world)
        for turn in range(accumulate)
    ]
    for key in ("x", "y", "index", "partner", "partner_y"):
        assert torch.equal(torch.cat([getattr(part, key) for part in parts]), getattr(whole, key))


def test_a_picture_has_one_part_as_an_anchor_and_another_as_a_partner_or_view(batches):
    batch = batches("mask", {"view", "previous"}).get(1)
    assert batch.view_y.shape == batch.y.shape and not torch.equal(batch.view, batch.x)
    assert batch.previous is not None and batch.previous.y.shape == batch.y.shape


def test_a_data_set_that_must_not_be_mirrored_is_not(batches):
    whole = {"crop_scale": 1.0, "data": scenes(flip=False)}
    seen = {int(b.x[k, 0].sum()) for b in [batches("mask", **whole).get(0)] for k in range(4)}
    assert len(seen) > 1
    left = torch.cat([(b.y > 0).float().mean(1) for b in (batches("mask", **whole).get(s) for s in range(3))])
    assert (left[:, : SIZE // 2].sum(1) > left[:, SIZE // 2 :].sum(1)).all()  # where the squares are


# --- evaluation


def test_whole_pictures_are_measured_in_order():
    data = MeasuredScenes(scenes(), "mask", SIZE, workers=0)
    (images, masks), (rest, _) = data.batches([3, 0, 5], 2, "cpu")
    assert len(images) == 2 and len(rest) == 1 and data.shape == (3, SIZE, SIZE) and len(data) == COUNT
    assert torch.equal(masks[1], Painted()(0)[1]["mask"].long()) and torch.equal(
        images[1, 0].round().long() // 100, masks[1]
    )


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20), (16, 16), (33, 7)])
def test_a_picture_is_fitted_with_all_that_is_in_it(height, width):
    image = tv_tensors.Image(torch.full((3, height, width), 200, dtype=torch.uint8))
    box = boxes_of(torch.tensor([[0, 0, width, height]]), (height, width))
    target = {
        "mask": tv_tensors.Mask(torch.ones(height, width, dtype=torch.uint8)),
        "boxes": box,
        "labels": torch.tensor([1]),
    }
    image, target = fitted(image, target, 32)
    assert image.shape == (3, 32, 32) and target["mask"].shape == (32, 32)
    assert (
        torch.equal(target["mask"] == 1, image[0] == 200)
        and ((target["mask"] == 1) | (target["mask"] == IGNORED)).all()
    )
    rows, columns = round(32 * height / max(height, width)), round(32 * width / max(height, width))
    assert (target["mask"] == 1).sum() == rows * columns
    assert target["boxes"].tolist() == [[0, 0, pytest.approx(columns, abs=0.5), pytest.approx(rows, abs=0.5)]]


def test_pictures_are_read_into_memory_once():
    reads = Counter()

    def read(i: int) -> tuple[Tensor, dict[str, Any]]:
        reads[i] += 1
        return Painted()(i)

    data = Scenes("counted", CLASSES, read, torch.ones(3, 3).bool()).in_memory(16)
    assert data.size == 16 and [tuple(data[i][0].shape) for i in (0, 1, 2, 0)] == [(3, 16, 16)] * 4
    assert reads == Counter({0: 1, 1: 1, 2: 1})


# --- partners


def test_a_partner_shares_a_class_and_is_another_picture():
    present = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    present[:, 0] = False
    present[7] = False
    present[8, 1:] = torch.tensor([True, False, False, False, False])
    shared = present & (present.sum(0) > 1)
    for seed in range(20):
        partners = scene_partners(present, torch.Generator().manual_seed(seed))
        for i, j in enumerate(partners.tolist()):
            assert (present[i] & present[j]).any() and i != j if shared[i].any() else i == j


def test_partners_are_uniform_over_classes_and_over_their_pictures():
    present = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]).bool()
    counts = Counter(int(scene_partners(present, torch.Generator().manual_seed(seed))[0]) for seed in range(3000))
    assert counts[0] == 0
    assert counts[1] / 3000 == pytest.approx(1 / 2, abs=0.03)
    assert all(counts[j] / 3000 == pytest.approx(1 / 6, abs=0.03) for j in (2, 3, 4))


def test_pictures_without_a_partner_are_counted(batches):
    data = Scenes("some", CLASSES, Painted(), torch.tensor([[0, 1, 0]] * 5 + [[0, 0, 1]]).bool())
    with pytest.warns(UserWarning, match="1 of 6 pictures share no class with another; each is its own partner"):
        batches("mask", {"partner"}, data=data)


# --- what is refused


BOX = boxes_of(torch.tensor([[1, 2, 5, 6]]), (8, 8))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"mask": torch.zeros(8, 9)}, r"here: the mask is \(8, 9\), the image \(8, 8\) .* of the image's size"),
        ({"mask": torch.full((8, 8), 3)}, "here: the mask holds 3, the 3 classes are 0 ... 2, and 255 for pixels"),
        ({"boxes": BOX, "labels": torch.tensor([1, 1])}, "here: 1 boxes and 2 labels; each box has one"),
        (
            {"boxes": BOX, "labels": torch.tensor([0])},
            r"the label 0; of 3 classes a box has 1 \.\.\. 2, 0 is background",
        ),
        ({"boxes": BOX, "labels": torch.tensor([3])}, "here: the box .* has the label 3"),
        (
            {"boxes": torch.tensor([[1, 2, 9, 6]]), "labels": torch.tensor([1])},
            r"\[1, 2, 9, 6\] leaves the image of 8 x 8",
        ),
        ({"boxes": torch.tensor([[-1, 2, 5, 6]]), "labels": torch.tensor([1])}, "leaves the image"),
        (
            {"boxes": torch.tensor([[5, 2, 5, 6]]), "labels": torch.tensor([1])},
            r"\(x1, y1, x2, y2\) has no area; drop it",
        ),
    ],
)
def test_a_target_that_does_not_fit_is_refused(target, message):
    with pytest.raises(ValueError, match=message):
        check(target, (8, 8), 3, "here")


def test_what_a_target_shows():
    mask = torch.tensor([[0, 2], [255, 0]], dtype=torch.uint8)
    assert shown({"mask": mask}, 4).tolist() == [False, False, True, False]
    assert shown({"boxes": BOX, "labels": torch.tensor([3])}, 4).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"needs": {"other"}}, "scenes have partners, views and previous batches, not other"),
        ({"crop_scale": 0.0}, "data.crop_scale must lie above 0 and at most at 1, got 0.0"),
    ],
)
def test_settings_that_do_not_apply_are_refused(batches, options, message):
    with pytest.raises(ValueError, match=message):
        batches("mask", **options)


def test_present_has_a_column_for_each_class():
    with pytest.raises(ValueError, match=r"present must be \(N, 3\) for these classes .* got \(4, 2\)"):
        Scenes("some", CLASSES, Painted(), torch.ones(4, 2).bool())


# --- data sets of one's own


class Own:
    classes = CLASSES

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Any:
        return self.item


PICTURE = Image.fromarray(np.full((8, 6, 3), 50, dtype=np.uint8))
MASK = Image.fromarray(np.full((8, 6), 2, dtype=np.uint8))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (PICTURE, MASK),
        (PICTURE, np.array(MASK)),
        (np.array(PICTURE), {"mask": MASK}),
        (torch.full((3, 8, 6), 50, dtype=torch.uint8), torch.full((8, 6), 2)),
    ],
    ids=["as torchvision", "array", "dict", "tensors"],
)
def test_any_data_set_of_image_and_mask_will_do(image, mask):
    made = as_scenes(Own((image, mask)), "mask")
    pixels, target = made[1]
    assert (pixels == 50).all() and pixels.shape == (3, 8, 6) and (target["mask"] == 2).all()
    assert made.classes == CLASSES and made.present.tolist() == [[False, False, True]] * 2 and made.name == "Own"


def test_any_data_set_of_image_and_boxes_will_do():
    made = as_scenes(Own((PICTURE, {"boxes": [[0, 1, 2, 3]], "labels": [1]})), "boxes")
    assert made[0][1]["boxes"].tolist() == [[0, 1, 2, 3]] and made.present[0].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (PICTURE, r"item 0 of the data set must be \(image, target\), got Image"),
        (
            (PICTURE, {"boxes": [], "labels": []}),
            "item 0 of the data set has no 'mask' in its target, only boxes, labels",
        ),
        (
            (torch.zeros(3, 8, 6), MASK),
            "must have 3 channels of uint8, got torch.float32 .* leave normalisation to psd",
        ),
        ((PICTURE, np.full((8, 6), 7)), "item 0 of the data set: the mask holds 7"),
    ],
)
def test_an_item_that_is_not_understood_is_refused(item, message):
    with pytest.raises(ValueError, match=message):
        as_scenes(Own(item), "mask")


def test_a_data_set_must_name_its_classes():
    with pytest.raises(ValueError, match=r"list must have an attribute classes, .* 'background' first"):
        as_scenes([(PICTURE, MASK)], "mask")


def test_a_data_set_of_labels_is_none_of_scenes():
    with pytest.raises(ValueError, match="ImageData has one label an image, which the task classification learns"):
        as_scenes(load("shapes", count=4), "mask")


# --- shapes-scenes


def test_a_drawn_picture_does_not_depend_on_the_count():
    few, many = shapes_scenes.draw(3, seed=5), shapes_scenes.draw(20, seed=5)
    assert all(torch.equal(a, b[:3]) for a, b in zip(few, many, strict=True))
    assert not torch.equal(few.images, shapes_scenes.draw(3, seed=6).images)


def test_boxes_are_the_edges_of_what_the_mask_shows():
    drawn = shapes_scenes.draw(40, seed=1)
    assert ((drawn.labels > 0).sum(1) >= 1).all() and set((drawn.labels > 0).sum(1).tolist()) == {1, 2, 3, 4}
    for mask, boxes, labels in zip(drawn.masks, drawn.boxes, drawn.labels, strict=True):
        covered = torch.zeros_like(mask)
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            if label == 0:
                assert (x1, y1, x2, y2) == (0, 0, 0, 0)
                continue
            inside = mask[y1:y2, x1:x2] == label
            assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all()  # it touches all four edges
            covered[y1:y2, x1:x2] = 1
        assert (mask[covered == 0] == 0).all()


@pytest.mark.parametrize("size", [64, 96, 128])
def test_the_composition_does_not_depend_on_the_size(size):
    drawn, other = shapes_scenes.draw(4, size=size, seed=2), shapes_scenes.draw(4, size=192, seed=2)
    assert drawn.images.shape == (4, 3, size, size) and torch.equal(drawn.labels, other.labels)
    assert (drawn.boxes / size - other.boxes / 192).abs().max() < 2 / size


def test_the_classes_are_those_of_shapes():
    drawn, plain = load("shapes-scenes", classes=5, count=8, seed=3), load("shapes", classes=5, count=8, seed=3)
    assert drawn.classes == ("background", *plain.classes)
    for i in range(8):
        assert torch.equal(shown(drawn[i][1], 6), drawn.present[i])


def test_the_statistics_are_those_of_the_pixels():
    pixels = shapes_scenes.draw(400, seed=9).images.float() / 255
    assert (pixels.mean((0, 2, 3)) - torch.tensor(shapes_scenes.MEAN)).abs().max() < 0.02
    assert (pixels.std((0, 2, 3)) - torch.tensor(shapes_scenes.STD)).abs().max() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1 picture, got 0"),
        ({"size": 48}, "size must be at least 64 pixels, .* got 48"),
        ({"per_class": 3}, "per_class=3 does not apply to the data set 'shapes-scenes'"),
        ({"classes": 17}, "classes"),
    ],
)
def test_a_draw_that_is_not_possible_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load("shapes-scenes", **options)
