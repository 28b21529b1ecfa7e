from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from psd.data import load, shapes

CENTRES = torch.tensor([[-0.58, -0.58], [0.0, 0.0], [0.58, 0.58]])  # of the parts, in [-1, 1]


@pytest.fixture(scope="module")
def large() -> shapes.Shapes:
    return shapes.draw(128, size=128, seed=5)


def test_any_two_classes_differ_in_at_least_two_parts():
    for one, other in itertools.combinations(shapes.CODES, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) >= 2


def test_one_part_alone_leaves_four_classes():
    for part in range(3):
        assert all([code[part] for code in shapes.CODES].count(kind) == 4 for kind in range(4))


@pytest.mark.parametrize("size", [16, 33, 64])
def test_what_is_drawn_has_the_asked_number_and_size(size):
    drawn = shapes.draw(5, size=size)
    assert drawn.images.shape == (5, 3, size, size) and drawn.images.dtype == torch.uint8
    assert drawn.masks.shape == (5, 3, size, size) and drawn.masks.dtype == torch.bool
    assert drawn.boxes.shape == (5, 3, 4) and drawn.boxes.dtype == torch.float32


def test_classes_are_balanced_to_one_image():
    counts = shapes.draw(100, size=16).targets.bincount(minlength=16)
    assert counts.max() - counts.min() <= 1 and counts.sum() == 100


def test_one_seed_draws_the_same_again_and_another_something_else():
    first, again, other = (shapes.draw(20, seed=seed).images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not (first == other).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 150])
def test_an_image_does_not_depend_on_how_many_are_drawn(count):
    few, many = shapes.draw(count, seed=3), shapes.draw(200, seed=3)
    for a, b in zip(few, many, strict=True):
        assert torch.equal(a, b[:count])


def test_drawing_leaves_torchs_own_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    shapes.draw(2)
    assert torch.equal(torch.rand(3), expected)


def test_without_noise_the_same_drawing_is_smooth():
    noisy, clean = (shapes.draw(8, size=64, seed=3, noise=noise) for noise in (0.08, 0))
    assert torch.equal(noisy.masks, clean.masks)
    difference = (noisy.images.float() - clean.images.float()) / 255
    assert 0.06 < difference.std() < 0.08  # a little less than it was, where pixels are cut at black and white


def test_the_composition_does_not_depend_on_the_size(large):
    small = shapes.draw(128, size=32, seed=5)
    assert torch.equal(small.targets, large.targets)
    # An edge of a part lies within a pixel of the small image. Where one part hides another's edge, a thin rest
    # may be visible in the large image alone, so few may differ by more.
    assert ((small.boxes - large.boxes / 4).abs() <= 1).float().mean() > 0.98


def test_boxes_enclose_the_visible_pixels_and_no_more(large):
    for masks, boxes in zip(large.masks, large.boxes, strict=True):
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            inside = mask[y1:y2, x1:x2]
            assert inside.sum() == mask.sum() > 0
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_a_pixel_belongs_to_one_part_at_most(large):
    assert int(large.masks.sum(dim=1).max()) == 1


def test_each_part_lies_where_it_belongs(large):
    whole = (large.boxes > 0).all(dim=2) & (large.boxes < 128).all(dim=2)  # not cut by the image's edge
    centre = (large.boxes[..., :2] + large.boxes[..., 2:]) / 128 - 1
    away = (centre - CENTRES).abs().amax(dim=2)
    # +- 0.12, and a triangle's box lies up to 0.15 off its centre; the corner parts hide some of the middle.
    assert away[whole].max() < 0.3


def test_every_part_is_seen_at_32_pixels():
    area = shapes.draw(1000, seed=9).masks.sum(dim=(2, 3))
    assert area.amin(dim=0).tolist() > [10, 40, 10]


def test_corner_parts_have_the_shapes_of_the_code_word(large):
    # Two numbers tell the shapes apart whatever their size and rotation: area over the largest squared
    # radius, and 2 pi times the polar moment over the squared area. In closed form:
    expected = torch.tensor([[math.pi, 1.0], [2.0, math.pi / 3], [1.30, 1.209], [1.98, 1.226]])
    axis = torch.arange(128.0)
    right = total = 0
    for masks, boxes, y in zip(large.masks, large.boxes, large.targets.tolist(), strict=True):
        for part in (0, 2):
            if boxes[part].min() < 1 or boxes[part].max() > 127:
                continue  # cut by the image's edge
            v, u = masks[part].nonzero().T
            squared = (axis[u] - axis[u].mean()) ** 2 + (axis[v] - axis[v].mean()) ** 2
            area = len(u)
            found = torch.stack([area / squared.max(), 2 * math.pi * squared.sum() / area**2])
            kind = ((found - expected) / torch.tensor([1.0, 0.2])).norm(dim=1).argmin()
            right, total = right + int(kind == shapes.CODES[y][part]), total + 1
    assert total > 150 and right == total


def test_stripes_run_in_the_direction_of_the_code_word():
    drawn = shapes.draw(128, size=128, seed=6)
    smooth = F.avg_pool2d(drawn.images.float() / 255, 5, 1, 2)
    dy, dx = torch.gradient(smooth, dim=(2, 3))
    # Only well inside the disc: its rim and the corner parts have edges of their own.
    inside = -F.max_pool2d(-drawn.masks[:, 1:2].float(), 15, 1, 7) > 0
    energy = ((dx**2 + dy**2) * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))
    doubled = torch.atan2((2 * dx * dy * inside).sum((1, 2, 3)), ((dx**2 - dy**2) * inside).sum((1, 2, 3)))
    along = 90 - torch.rad2deg(doubled / 2)  # the gradient's angle is clockwise, since y points down
    expected = torch.tensor([45.0 * shapes.CODES[y][1] for y in drawn.targets.tolist()])
    off = (along - expected + 90) % 180 - 90
    clear = energy > 5 * 0.08**2 / 25  # above what the noise leaves: the two colours may chance to be alike
    assert clear.float().mean() > 0.8
    assert off[clear].abs().max() < 10 + 5  # degrees: the tilt, and the measurement


def test_mean_and_std_are_those_of_the_images():
    pixels = shapes.draw(2000, seed=11).images.float() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(shapes.MEAN), atol=0.01)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(shapes.STD), atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be at least 1 image, got 0"),
        ({"count": 1, "size": 15}, "size must be at least 16 pixels.*got 15"),
        ({"count": 1, "classes": [3, 16]}, r"classes must be numbers from 0 to 15.*\[3, 16\]"),
        ({"count": 1, "classes": []}, r"at least one, got \[\]"),
        ({"count": 1, "noise": -0.1}, "noise must be >= 0 and <= 1, got -0.1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        shapes.draw(**arguments)


@pytest.mark.parametrize(("split", "count"), [("train", 800), ("fit", 800), ("test", 2000), ("tune", 2000)])
def test_splits_have_their_documented_sizes(split, count):
    assert len(load("shapes", split=split)) == count


def test_train_tune_and_test_share_no_image_and_fit_is_train():
    splits = {s: load("shapes", split=s, count=64).images for s in ("train", "fit", "tune", "test")}
    assert torch.equal(splits["train"], splits["fit"])
    for one, other in itertools.combinations(("train", "tune", "test"), 2):
        assert not (splits[one] == splits[other]).flatten(1).all(dim=1).any()


def test_per_class_sets_the_number_of_every_class():
    data = load("shapes", per_class=3, classes=5, size=16)
    assert data.targets.bincount().tolist() == [3] * 5 and data.images.shape[2:] == (16, 16)


def test_chosen_classes_are_the_same_in_train_and_test_and_show_their_code_words():
    train, test = (load("shapes", split=s, classes=4, count=8, seed=2) for s in ("train", "test"))
    assert train.classes == test.classes and len(train.classes) == 4
    codes = [shapes.CLASSES.index(name) for name in train.classes]
    assert codes == sorted(codes)


def test_augmentation_does_not_mirror_the_stripes():
    data = load("shapes", count=1)
    assert (data.crop_padding, data.flip) == (2, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 8, "per_class": 2}, "count=8 and per_class=2"),
        ({"per_class": 0}, "per_class must be at least 1, got 0"),
        ({"classes": 17}, "classes must lie between 1 and the 16 there are, got 17"),
    ],
)
def test_a_split_that_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load("shapes", **arguments)
