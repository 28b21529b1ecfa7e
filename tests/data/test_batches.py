"""Batches made in memory: order, partners, crops and flips, each a function of seed and step."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor

from psd.data.batches import Batches, InMemory, Share
from psd.data.images import ImageData
from psd.methods import NEEDS, Batch

SIDE, PADDING = 8, 2
CLASSES = 4
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def some(count: int = 30, targets: Tensor | None = None) -> ImageData:
    """Images whose red says which image a pixel is of, and whose green and blue say which row and column.

    Every value is at least 1, so that the black border shows.
    """
    images = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    images[:, 0] = torch.arange(1, count + 1)[:, None, None]
    images[:, 1] = torch.arange(1, SIDE + 1)[:, None]
    images[:, 2] = torch.arange(1, SIDE + 1)
    targets = torch.arange(count) % CLASSES if targets is None else targets
    return ImageData(images, targets, tuple("abcd"), "some", MEAN, STD, PADDING, True)


def batches(data: ImageData | None = None, **options) -> Batches:
    options = {"batch_size": 7, "seed": 0, **options}
    return Batches(some() if data is None else data, **options)


def plain(data: ImageData, rows: range) -> Tensor:
    """Images as an evaluation sees them."""
    return next(InMemory(data).batches(rows, len(rows), "cpu"))[0]


def pixels(x: Tensor) -> Tensor:
    """Undo the normalisation: integers 0 ... 255, (N, C, H, W)."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return ((x * std + mean) * 255).round().long()


def numbers(x: Tensor) -> list[int]:
    """Which image each of the batch's images was cut from; every window holds more image than border."""
    return (pixels(x)[:, 0].flatten(1).amax(dim=1) - 1).tolist()


def offsets(x: Tensor) -> list[tuple[int, int]]:
    """Where in the padded image each window begins, for batches without flip."""
    found = []
    for image in pixels(x):
        middle = SIDE // 2  # never border, as the padding is smaller
        row, column = int(image[1, middle, middle]) - 1, int(image[2, middle, middle]) - 1
        found.append((row + PADDING - middle, column + PADDING - middle))
    return found


def parts(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch."""
    own = [batch.x, batch.y, batch.index, batch.partner, batch.view, batch.other, batch.other_y]
    return [part for part in own if part is not None] + (parts(batch.previous) if batch.previous else [])


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


# --- order


def test_an_epoch_visits_no_image_twice():
    made = batches()
    seen = list(chain.from_iterable(made[step].index.tolist() for step in range(made.steps_per_epoch)))
    assert len(seen) == len(set(seen)) == 28


def test_the_last_incomplete_batch_is_dropped():
    made = batches()
    assert made.steps_per_epoch == 4
    assert [len(made[step].index) for step in range(5)] == [7] * 5


def test_every_image_is_visited_where_the_batch_size_divides_the_data():
    made = batches(batch_size=10)
    assert sorted(chain.from_iterable(made[step].index.tolist() for step in range(3))) == list(range(30))


def test_the_order_differs_from_epoch_to_epoch():
    made = batches(batch_size=30)
    assert made[0].index.tolist() != made[1].index.tolist()


def test_a_batch_may_be_the_whole_data():
    assert sorted(batches(batch_size=30)[3].index.tolist()) == list(range(30))


def test_images_and_labels_are_those_of_the_index():
    data, batch = some(), batches()[2]
    assert numbers(batch.x) == batch.index.tolist()
    assert torch.equal(batch.y, data.targets[batch.index])


# --- a function of seed and step


def test_random_access_gives_what_sequential_access_gives():
    in_turn, at_random = batches(needs=NEEDS), batches(needs=NEEDS)
    expected = [in_turn[step] for step in range(41)]
    for step in (40, 3, 0, 22, 21, 4, 39, 3):
        assert same(at_random[step], expected[step]), step


def test_one_seed_gives_the_same_batches():
    assert same(batches(needs=NEEDS, seed=5)[9], batches(needs=NEEDS, seed=5)[9])


def test_another_seed_gives_another_order():
    assert batches(seed=5)[0].index.tolist() != batches(seed=6)[0].index.tolist()


def test_batches_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    batches(needs=NEEDS)[11]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("needs", [(), ("partner",), ("view", "previous")])
def test_anchors_and_their_crops_do_not_depend_on_what_is_needed(needs):
    all_of_it, some_of_it = batches(needs=NEEDS)[6], batches(needs=needs)[6]
    assert torch.equal(all_of_it.index, some_of_it.index)
    assert torch.equal(all_of_it.x, some_of_it.x)


def test_partners_do_not_depend_on_what_else_is_needed():
    assert torch.equal(batches(needs=NEEDS)[6].partner, batches(needs=("partner",))[6].partner)


def test_what_is_not_needed_is_none():
    batch = batches()[5]
    assert batch.partner is None and batch.view is None and batch.previous is None
    assert batch.other is None and batch.other_y is None


# --- partners, views and the batch before


def test_a_partner_is_another_image_of_the_same_class():
    data, made = some(), batches(needs=("partner",))
    for step in range(3 * made.steps_per_epoch):
        batch = made[step]
        partners = torch.tensor(numbers(batch.partner))
        assert torch.equal(data.targets[partners], batch.y)
        assert (partners != batch.index).all()


def test_partners_differ_from_epoch_to_epoch():
    made = batches(batch_size=30, needs=("partner",))
    first, second = (dict(zip(made[step].index.tolist(), numbers(made[step].partner), strict=True)) for step in (0, 1))
    assert first != second


def test_every_image_of_the_class_becomes_a_partner():
    made = batches(batch_size=30, needs=("partner",))
    found = set()
    for step in range(60):
        position = made[step].index.tolist().index(0)
        found.add(numbers(made[step].partner)[position])
    assert found == set(range(4, 30, 4))


def test_a_partner_is_cropped_on_its_own():
    batch = batches(batch_size=30, needs=("partner",), flip=False)[0]
    assert offsets(batch.partner) != offsets(batch.x)


def test_an_other_is_an_image_of_another_class_with_its_label():
    data, made = some(), batches(needs=("other",))
    for step in range(3 * made.steps_per_epoch):
        batch = made[step]
        assert torch.equal(data.targets[numbers(batch.other)], batch.other_y)
        assert (batch.other_y != batch.y).all()


def test_others_are_a_function_of_seed_and_epoch_drawn_apart_from_partners():
    made, again = batches(batch_size=30, needs=("other",)), batches(batch_size=30, needs=NEEDS)
    assert [numbers(made[step].other) for step in (1, 0)] == [numbers(again[step].other) for step in (1, 0)]
    of_index = [torch.tensor(numbers(made[step].other))[made[step].index.argsort()] for step in range(2)]
    assert not torch.equal(*of_index)


def test_an_other_is_cropped_on_its_own():
    batch = batches(batch_size=30, needs=("other", "partner"), flip=False)[0]
    assert offsets(batch.other) not in (offsets(batch.x), offsets(batch.partner))


def test_a_single_class_is_refused_where_others_are_needed():
    alike = some(targets=torch.full((30,), 3))
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="all of one class, 3"):
        batches(alike, needs=("other",))
    batches(needs=("other",))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_view_shows_the_anchors():
    batch = batches(needs=("view",))[3]
    assert numbers(batch.view) == batch.index.tolist()


def test_a_view_is_cropped_anew():
    batch = batches(batch_size=30, needs=("view",), flip=False)[0]
    assert offsets(batch.view) != offsets(batch.x)


def test_a_view_differs_from_its_anchor_in_the_augmentation_alone():
    batch = batches(needs=("view",), crop_padding=0, flip=False)[3]
    assert torch.equal(batch.view, batch.x)


def test_previous_holds_the_anchors_of_the_step_before():
    made = batches(needs=("previous",))
    for step in range(1, 10):  # past the epoch's end at 4 and 8
        before, previous = made[step - 1], made[step].previous
        assert torch.equal(previous.index, before.index) and torch.equal(previous.y, before.y)
        assert numbers(previous.x) == before.index.tolist()


def test_previous_is_augmented_anew():
    made = batches(batch_size=15, needs=("previous",), flip=False)
    assert offsets(made[3].previous.x) != offsets(made[2].x)


def test_there_is_nothing_before_the_first_step():
    assert batches(needs=("previous",))[0].previous is None


# --- crop, flip, normalise


def test_a_crop_is_a_window_of_the_padded_image():
    data, batch = some(), batches(flip=False)[1]
    for x, i, (top, left) in zip(pixels(batch.x), batch.index.tolist(), offsets(batch.x), strict=True):
        for row in range(SIDE):
            for column in range(SIDE):
                r, c = top + row - PADDING, left + column - PADDING
                inside = 0 <= r < SIDE and 0 <= c < SIDE
                expected = data.images[i, :, r, c].tolist() if inside else [0, 0, 0]
                assert x[:, row, column].tolist() == expected


def test_every_window_is_drawn_equally_often():
    made = batches(batch_size=30, flip=False)
    drawn = list(chain.from_iterable(offsets(made[step].x) for step in range(100)))
    windows = [(top, left) for top in range(2 * PADDING + 1) for left in range(2 * PADDING + 1)]
    assert set(drawn) == set(windows)
    expected = len(drawn) / len(windows)  # 120
    assert max(abs(drawn.count(window) - expected) for window in windows) < 5 * expected**0.5


def test_half_of_the_images_are_flipped():
    made = batches(batch_size=30, crop_padding=0)
    whole = pixels(plain(some(), range(0, 30)))
    flipped = 0
    for step in range(100):
        for x, i in zip(pixels(made[step].x), made[step].index.tolist(), strict=True):
            mirrored = torch.equal(x, whole[i].flip(2))
            assert mirrored or torch.equal(x, whole[i])
            flipped += mirrored
    assert abs(flipped - 1500) < 5 * 750**0.5  # five standard deviations of 3,000 draws


def test_without_augmentation_a_batch_is_what_evaluation_sees():
    data = some()
    batch = batches(crop_padding=0, flip=False)[2]
    torch.testing.assert_close(batch.x, plain(data, range(0, 30))[batch.index], atol=1e-6, rtol=0)


def test_augmentation_is_the_data_s_own_where_it_is_not_given():
    made = batches()
    assert (made.padding, made.flip) == (PADDING, True)


def test_normalised_subtracts_the_mean_and_divides_by_the_deviation():
    x = plain(some(), range(3, 5))
    for i in (0, 1):
        for channel, value in enumerate((4 + i, 3, 6)):  # red: the image, green: row 2, blue: column 5
            expected = (value / 255 - MEAN[channel]) / STD[channel]
            assert x[i, channel, 2, 5].item() == pytest.approx(expected, abs=1e-5)


def test_images_need_not_be_square():
    images = torch.arange(6 * 8, dtype=torch.uint8).view(6, 8).expand(4, 1, 6, 8).contiguous()
    data = ImageData(images, torch.zeros(4, dtype=torch.int64), ("a",), "some", (0.0,), (1.0,), 0, False)
    assert torch.equal((batches(data, batch_size=2)[0].x * 255).round().to(torch.uint8), images[:2])


@pytest.mark.parametrize("what", ["x", "partner", "view", "other"])
def test_batches_are_channels_last_float32(what):
    x = getattr(batches(needs=NEEDS)[1], what)
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32


def test_normalised_images_are_channels_last_float32():
    x = plain(some(), range(0, 9))
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32


def test_a_batch_does_not_share_memory_with_the_next():
    made = batches()
    made[0].x.fill_(9.0)
    assert same(made[0], batches()[0])


# --- pairs before augmentation


def test_raw_pairs_augmented_are_the_pairs_of_the_batch():
    batch = batches(needs=("partner", "raw"))[4]
    assert batch.raw.a.dtype == torch.uint8 and batch.raw.a.shape == (7, 3, SIDE, SIDE)
    assert (batch.raw.a[:, 0, 0, 0] - 1).tolist() == batch.index.tolist()
    for given, augmented in zip((batch.x, batch.partner), batch.raw.augment(batch.raw.a, batch.raw.b), strict=True):
        assert torch.equal(given, augmented)


def test_what_is_done_to_raw_pairs_is_cut_with_them():
    batch = batches(needs=("partner", "raw"), flip=False)[0]
    a = batch.raw.a.clone()
    a[:, 0] = 200
    x_a, x_b = batch.raw.augment(a, batch.raw.b)
    seen = pixels(x_a)
    border = seen[:, 1] == 0  # black has no row
    assert torch.equal(seen[:, 0], torch.where(border, 0, 200)) and torch.equal(seen[:, 1:], pixels(batch.x)[:, 1:])
    assert torch.equal(x_b, batch.partner)


def test_raw_images_without_partners_are_refused():
    with pytest.raises(ValueError, match='needs "raw" is of pairs'):
        batches(needs=("raw",))


# --- shares of a batch


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 3), (3, 2)])
def test_the_shares_of_all_processes_make_up_the_batch(world, accumulate):
    whole = parts(batches(batch_size=12, needs=NEEDS)[5])
    got = []
    for rank in range(world):
        made = batches(batch_size=12, needs=NEEDS, share=Share(rank, world, accumulate))
        got += [parts(made.get(5, turn)) for turn in range(accumulate)]
    assert all(torch.equal(torch.cat(pieces), full) for *pieces, full in zip(*got, whole, strict=True))


def test_a_batch_that_cannot_be_cut_into_equal_parts_is_refused():
    with pytest.raises(ValueError, match=r"data.batch_size 7 cannot be cut into 4 .*2 processes x run.accumulate 2"):
        batches(share=Share(0, 2, 2))


# --- bad input


@pytest.mark.parametrize("batch_size", [0, 31])
def test_a_batch_that_the_data_cannot_fill_is_refused(batch_size):
    with pytest.raises(ValueError, match=rf"data.batch_size .* 30 training images, got {batch_size}"):
        batches(batch_size=batch_size)


def test_an_unknown_need_is_refused():
    with pytest.raises(ValueError, match=r"\['partners'\] are unknown; known are partner, view, previous, raw, other"):
        batches(needs=("partners",))


def test_a_negative_padding_is_refused():
    with pytest.raises(ValueError, match=r"data\.crop_padding must be >= 0 pixels, got -1"):
        batches(crop_padding=-1)


def test_a_class_with_one_image_is_refused_where_partners_are_needed():
    lonely = some(targets=torch.tensor([3] + [0, 1] * 14 + [1]))
    with pytest.raises(ValueError, match="class 3 has a single image"):
        batches(lonely, needs=("partner",))


def test_a_class_with_one_image_is_fine_where_no_partners_are_needed():
    lonely = some(targets=torch.tensor([3] + [0, 1] * 14 + [1]))
    assert len(batches(lonely)[0].x) == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_are_made_on_the_device():
    batch = batches(needs=NEEDS, device="cuda")[4]
    assert {part.device.type for part in parts(batch)} == {"cuda"}
    assert numbers(batch.x.cpu()) == batch.index.tolist()
