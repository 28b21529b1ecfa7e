"""Batches of image files: the draws, the decoding, damaged files, worker processes, and evaluation from files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import time
import zlib
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from test_decoding import photo
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms.v2 import functional as T

from psd.data import decoding, load
from psd.data.batches import Batches, Share
from psd.data.folder import MEAN, STD
from psd.data.images import ImageData
from psd.data.stream import CentreCrops, Stream
from psd.methods import NEEDS as KNOWN
from psd.methods import Batch
from psd.seeding import seed_for
from psd.training.evaluation import evaluate, predict

NEEDS = tuple(need for need in KNOWN if need != "raw")  # files are cut as they are decoded
COUNTS = {"a": 9, "b": 8, "c": 7}  # images of each class, numbered 0 ... 23 over all classes
SIZE = 12


def write(path: Path, image: Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def numbered(number: int, width: int = 30, height: int = 24) -> Image.Image:
    """Red says which image it is, green and blue which column and row a pixel is of; red survives every crop."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = 10 * number
    pixels[..., 1] = np.linspace(20, 220, width)
    pixels[..., 2] = np.linspace(20, 220, height)[:, None]
    return Image.fromarray(pixels)


def folder_of(path: Path, counts: dict[str, int] = COUNTS, split: str = "train"):
    """An ImageFolder of numbered PNG files, of several sizes."""
    number = 0
    for name, count in counts.items():
        for _ in range(count):
            write(path / split / name / f"{number:02}.png", numbered(number, 24 + number % 5, 30 - number % 7))
            number += 1
    return load(f"folder:{path}", split=split)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("images"))


def stream(data, **options) -> Stream:
    return Stream(data, **{"batch_size": 6, "seed": 0, "crop_size": SIZE, "workers": 0, **options})


def pixels(x: Tensor) -> Tensor:
    """Undo the normalisation: integers 0 ... 255, (N, 3, H, W)."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return ((x * std + mean) * 255).round().long()


def numbers(x: Tensor) -> list[int]:
    """Which image each of the batch's images was cut from."""
    return (pixels(x)[:, 0, 0, 0] // 10).tolist()


def parts(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch."""
    own = [batch.x, batch.y, batch.index, batch.partner, batch.view, batch.other, batch.other_y]
    return [part for part in own if part is not None] + (parts(batch.previous) if batch.previous else [])


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def damage(file: str) -> None:
    """A JPEG's first half, under its own name: what a broken copy leaves."""
    photo(64, 64).save(file, format="JPEG")
    content = Path(file).read_bytes()
    Path(file).write_bytes(content[: len(content) // 2])


def workers_of(make) -> tuple[object, set]:
    """What `make` gives, and the processes that started meanwhile."""
    before = set(multiprocessing.active_children())
    return make(), set(multiprocessing.active_children()) - before


# --- order, partners, labels


def test_order_partners_and_others_are_those_of_the_batches_in_memory(data):
    images = torch.arange(24, dtype=torch.uint8)[:, None, None, None].expand(24, 3, 4, 4).contiguous()
    in_memory = ImageData(images, torch.tensor(data.targets), tuple("abc"), "some", (0.0,) * 3, (1.0,) * 3, 0, False)
    batches = Batches(in_memory, 6, 5, NEEDS)
    from_files = stream(data, seed=5, needs=NEEDS)
    assert from_files.steps_per_epoch == batches.steps_per_epoch == 4
    for step in range(9):
        expected, got = batches[step], from_files[step]
        assert torch.equal(got.index, expected.index) and torch.equal(got.y, expected.y)
        assert numbers(got.partner) == (expected.partner[:, 0, 0, 0] * 255).round().long().tolist()
        assert numbers(got.other) == (expected.other[:, 0, 0, 0] * 255).round().long().tolist()
        assert torch.equal(got.other_y, expected.other_y)


def test_images_and_labels_are_those_of_the_index(data):
    batch = stream(data)[2]
    assert numbers(batch.x) == batch.index.tolist()
    assert batch.y.tolist() == [data.targets[i] for i in batch.index.tolist()]


def test_another_seed_gives_other_batches(data):
    assert stream(data, seed=1)[0].index.tolist() != stream(data, seed=2)[0].index.tolist()


def test_an_epoch_visits_no_anchor_twice_over_all_shares(data):
    made = [stream(data, batch_size=10, share=Share(rank, 2)) for rank in range(2)]
    assert made[0].steps_per_epoch == 2
    for epoch in range(2):
        steps = range(2 * epoch, 2 * epoch + 2)
        seen = list(chain.from_iterable(one[step].index.tolist() for step in steps for one in made))
        assert len(seen) == len(set(seen)) == 20


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 3), (2, 3)])
def test_the_shares_of_all_processes_make_up_the_batch(data, world, accumulate):
    for step in (0, 5):
        whole = parts(stream(data, batch_size=12, needs=NEEDS)[step])
        got = []
        for rank in range(world):
            made = stream(data, batch_size=12, needs=NEEDS, share=Share(rank, world, accumulate))
            got += [parts(made.get(step, turn)) for turn in range(accumulate)]
        assert all(torch.equal(torch.cat(pieces), full) for *pieces, full in zip(*got, whole, strict=True))


def test_only_the_share_s_own_rows_are_decoded(tmp_path):
    data = folder_of(tmp_path)
    damage(data.samples[3][0])
    step, position = divmod(_position(data, 3), 6)
    failed = []
    for rank in range(2):
        try:
            stream(data, share=Share(rank, 2))[step]
        except ValueError:
            failed.append(rank)
    assert failed == [position // 3]


def _position(data, index: int) -> int:
    """Where in the first epoch of seed 0 an image is an anchor."""
    images = torch.zeros(len(data), 1, 1, 1, dtype=torch.uint8)
    in_memory = ImageData(images, torch.tensor(data.targets), tuple("abc"), "some", (0.0,), (1.0,), 0, False)
    return Batches(in_memory, len(data), 0)[0].index.tolist().index(index)


# --- roles


def test_a_partner_is_another_image_of_the_same_class(data):
    made = stream(data, needs=("partner",))
    for step in range(8):
        batch = made[step]
        partners = numbers(batch.partner)
        assert [data.targets[i] for i in partners] == batch.y.tolist()
        assert all(partner != anchor for partner, anchor in zip(partners, batch.index.tolist(), strict=True))


def test_an_other_is_an_image_of_another_class_with_its_label(data):
    made = stream(data, needs=("other",))
    for step in range(8):
        batch = made[step]
        assert [data.targets[i] for i in numbers(batch.other)] == batch.other_y.tolist()
        assert (batch.other_y != batch.y).all()


def test_a_single_class_is_refused_where_others_are_needed(tmp_path):
    with pytest.raises(ValueError, match="all of one class, 0"):
        stream(folder_of(tmp_path, {"a": 3}), batch_size=2, needs=("other",))


def test_a_view_shows_the_anchors_in_crops_of_its_own(data):
    batch = stream(data, needs=("view",), flip=False)[3]
    assert numbers(batch.view) == batch.index.tolist()
    assert all(not torch.equal(view, x) for view, x in zip(batch.view, batch.x, strict=True))


def test_previous_holds_the_anchors_of_the_step_before_in_new_crops(data):
    made = stream(data, needs=("previous",))
    before = made[0]
    assert before.previous is None
    for step in range(1, 10):  # past the epochs' ends at 4 and 8
        batch = made[step]
        assert torch.equal(batch.previous.index, before.index) and torch.equal(batch.previous.y, before.y)
        assert numbers(batch.previous.x) == before.index.tolist()
        assert not torch.equal(batch.previous.x, before.x)
        before = batch


def test_anchors_and_their_crops_do_not_depend_on_what_is_needed(data):
    assert torch.equal(stream(data, needs=NEEDS)[6].x, stream(data)[6].x)
    assert torch.equal(stream(data, needs=NEEDS)[6].partner, stream(data, needs=("partner",))[6].partner)


def test_what_is_not_needed_is_none(data):
    batch = stream(data)[5]
    assert batch.partner is None and batch.view is None and batch.previous is None


def test_each_image_of_a_pair_has_its_own_crop_and_flip(tmp_path):
    for i in range(20):  # all alike, so that only the crops can differ
        write(tmp_path / "train" / "a" / f"{i}.png", numbered(1))
    alike = load(f"folder:{tmp_path}")
    whole = stream(alike, batch_size=20, crop_scale=1.0, needs=("partner",))[0]
    mirrored = [(batch[:, 1, 0, 0] > batch[:, 1, 0, -1]) for batch in (whole.x, whole.partner)]
    assert 0 < int((mirrored[0] ^ mirrored[1]).sum()) < 20
    cut = stream(alike, batch_size=20, flip=False, needs=("partner",))[0]
    assert all(not torch.equal(x, partner) for x, partner in zip(cut.x, cut.partner, strict=True))
    assert len({tuple(x.flatten().tolist()) for x in cut.x}) > 15  # and each row of a batch has its own


# --- a function of seed and step


@pytest.fixture(scope="module")
def expected(data) -> list[Batch]:
    made = stream(data, needs=NEEDS)
    return [made[step] for step in range(12)]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(data, expected, workers):
    made = stream(data, needs=NEEDS, workers=workers)
    try:
        assert all(same(made[step], expected[step]) for step in range(6))
        for step in (11, 2, 3, 3, 0, 10, 11):  # forwards, backwards, on, again
            assert same(made[step], expected[step]), step
    finally:
        made.close()


@pytest.fixture
def spawning(monkeypatch):
    """As on Windows, where there is no forkserver."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])


def test_workers_that_are_spawned_give_the_same_batches(data, expected, spawning):
    made = stream(data, needs=NEEDS, workers=1)
    try:
        _, workers = workers_of(lambda: made[0])
        assert {type(worker).__name__ for worker in workers} == {"SpawnProcess"}
        assert all(same(made[step], expected[step]) for step in (0, 1, 11, 2))
    finally:
        made.close()
    assert not workers & set(multiprocessing.active_children())


def test_random_access_gives_what_a_fresh_stream_gives(data, expected):
    made = stream(data, needs=NEEDS)
    for step in (11, 3, 0, 1, 2, 2, 10, 11):
        assert same(made[step], expected[step]), step
        assert same(stream(data, needs=NEEDS)[step], expected[step]), step


def test_turns_in_and_out_of_order(data):
    share = Share(0, 1, 3)
    fresh = {(step, turn): stream(data, share=share).get(step, turn) for step in range(3) for turn in range(3)}
    made = stream(data, share=share)
    for position in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (0, 1), (0, 2), (1, 0)]:
        assert same(made.get(*position), fresh[position]), position


def test_in_order_the_stream_goes_on_and_does_not_begin_anew(data, monkeypatch):
    made, begun = stream(data, share=Share(0, 1, 2)), []
    made.get(0, 0)
    original = type(made._ahead._loader).__iter__
    monkeypatch.setattr(type(made._ahead._loader), "__iter__", lambda loader: begun.append(loader) or original(loader))
    for position in [(0, 1), (1, 0), (1, 1), (2, 0)]:
        made.get(*position)
    assert not begun
    made.get(2, 0)
    assert len(begun) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(data, workers):
    before = torch.get_rng_state()
    made = stream(data, needs=NEEDS, workers=workers)
    made[1]
    made.close()
    assert torch.equal(torch.get_rng_state(), before)


# --- crops


def on_white(image: Image.Image) -> Image.Image:
    """In RGB, as viewers show what is transparent."""
    if "A" not in image.mode:
        return image.convert("RGB")
    *colours, alpha = np.moveaxis(np.asarray(image.convert("RGBA")) / 255.0, 2, 0)
    return Image.fromarray((np.stack([c * alpha + 1 - alpha for c in colours], axis=2) * 255).round().astype(np.uint8))


def reference(file: str, seed: int, row: int, scale: float = 0.08, epoch: int = 0) -> Tensor:
    """The anchor's crop by torchvision's own class on the whole image."""
    state = torch.get_rng_state()
    torch.manual_seed(seed_for(seed, "crop anchor", epoch, row))
    with Image.open(file) as image:
        crop = transforms.RandomResizedCrop(SIZE, scale=(scale, 1.0))(on_white(image))
    torch.set_rng_state(state)
    return T.pil_to_tensor(crop)


@pytest.mark.parametrize("scale", [0.08, 0.6])
@pytest.mark.parametrize("epoch", [0, 2])
def test_crops_are_those_of_torchvision_s_random_resized_crop(data, scale, epoch):
    batch = stream(data, seed=3, flip=False, crop_scale=scale)[1 + 4 * epoch]
    for i, (x, index) in enumerate(zip(pixels(batch.x), batch.index.tolist(), strict=True)):
        wanted = reference(data.samples[index][0], 3, 6 + i, scale, epoch)
        assert (x - wanted.long()).abs().max() <= 1  # torch rounds otherwise than PIL


def test_half_of_the_images_are_mirrored(data):
    made, plain = (stream(data, batch_size=24, crop_scale=0.5, flip=flip) for flip in (True, False))
    mirrored = 0
    for step in range(40):
        for x, expected in zip(made[step].x, plain[step].x, strict=True):
            assert torch.equal(x, expected) or torch.equal(x, expected.flip(2))
            mirrored += not torch.equal(x, expected)
    assert abs(mirrored - 480) < 5 * 240**0.5  # five standard deviations of 960 draws


def test_images_are_normalised_exactly(tmp_path):
    for i in range(2):
        write(tmp_path / "train" / "a" / f"{i}.png", Image.new("RGB", (20, 30), (200, 100, 50)))
    x = stream(load(f"folder:{tmp_path}"), batch_size=2)[0].x
    colour = torch.tensor([200.0, 100.0, 50.0])
    expected = (colour / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.equal(x, expected[None, :, None, None].expand(2, 3, SIZE, SIZE))
    assert x[0, 0, 0, 0].item() == pytest.approx((200 / 255 - 0.485) / 0.229, abs=1e-6)


@pytest.mark.parametrize("what", ["x", "partner", "view", "other"])
def test_batches_are_channels_last_float32(expected, what):
    x = getattr(expected[1], what)
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32
    assert x.shape == (6, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "jpg"), ("CMYK", "jpg"), ("RGB", "jpg"), ("RGBA", "png"), ("P", "png"), ("LA", "png"), ("1", "png")],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, suffix):
    for i in range(2):
        image = photo(26, 20)  # too small to be decoded at reduced size
        image.putalpha(120 + 60 * i)
        write(
            tmp_path / "train" / "a" / f"{i}.{suffix}", (image if "A" in mode else image.convert("RGB")).convert(mode)
        )
    data = load(f"folder:{tmp_path}")
    with Image.open(data.samples[0][0]) as image:
        assert image.mode == mode
    batch = stream(data, batch_size=2, flip=False)[0]
    for i, (x, index) in enumerate(zip(pixels(batch.x), batch.index.tolist(), strict=True)):
        wanted = reference(data.samples[index][0], 0, i)
        assert (x - wanted.long()).abs().max() <= 1  # torch rounds otherwise than PIL


@pytest.mark.parametrize("by_pil", [False, True])
def test_a_stream_decodes_at_reduced_size(tmp_path, monkeypatch, by_pil):
    for i in range(2):
        write(tmp_path / "train" / "a" / f"{i}.jpg", photo(640, 480))
    decoded = []
    if by_pil:  # which shows its size when it is cut
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
        crop = Image.Image.crop
        monkeypatch.setattr(Image.Image, "crop", lambda image, box: decoded.append(image.size) or crop(image, box))
    else:
        decode = simplejpeg.decode_jpeg
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **b: decoded.append(decode(*a, **b)) or decoded[-1])
    stream(load(f"folder:{tmp_path}"), batch_size=2, crop_scale=1.0)[0]
    assert [one if by_pil else one.shape[1::-1] for one in decoded] == [(80, 60)] * 2


# --- damaged files


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named(tmp_path, workers):
    data = folder_of(tmp_path)
    damage(data.samples[3][0])
    made = stream(data, batch_size=24, workers=workers)
    try:
        for _ in range(2):  # and it is not passed over when asked again
            with pytest.raises(ValueError) as caught:
                made[0]
            message = str(caught.value)
            assert message.startswith(f"{data.samples[3][0]} is not a readable image (")
            assert "--data.skip_corrupt" in message and "\n" not in message
    finally:
        made.close()


def png_that_claims(side: int) -> bytes:
    """A PNG's head alone; PIL refuses to decode 50,000 x 50,000 pixels, by an error that is no OSError."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + bytes(4) + b"IDAT"


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", b"\x89PNG\r\n\x1a\n then nothing", png_that_claims(50_000)],
    ids=["empty", "text", "PNG without a head", "PNG of 50,000 pixels a side"],
)
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    data = folder_of(tmp_path)
    Path(data.samples[3][0]).write_bytes(content)
    with pytest.raises(ValueError, match=r"03\.png is not a readable image"):
        stream(data, batch_size=24)[0]


def test_batches_before_the_damaged_file_are_given(tmp_path, data):
    broken = folder_of(tmp_path)
    damage(broken.samples[3][0])
    step = _position(broken, 3) // 6
    made, whole = stream(broken), stream(data)
    for before in range(4):
        if before != step:
            assert same(made[before], whole[before])
        else:
            with pytest.raises(ValueError, match=r"03\.png"):
                made[before]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """One of three images of class a, two of eight of class b and none of class c are damaged."""
    data = folder_of(tmp_path_factory.mktemp("broken"), {"a": 3, "b": 8, "c": 7})
    for i in (1, 4, 9):
        damage(data.samples[i][0])
    return data


def test_a_damaged_file_is_replaced_by_its_class_and_counted(broken):
    made = stream(broken, needs=NEEDS, skip_corrupt=True, batch_size=9)
    assert made.skipped == 0
    before, replaced = None, Counter()
    for step in range(60):
        batch = made[step]
        anchors, partners = numbers(batch.x), numbers(batch.partner)
        assert not {1, 4, 9} & {*anchors, *partners}
        assert [broken.targets[i] for i in anchors] == [broken.targets[i] for i in partners] == batch.y.tolist()
        assert batch.y.tolist() == [broken.targets[i] for i in batch.index.tolist()]
        for index, anchor, partner in zip(batch.index.tolist(), anchors, partners, strict=True):
            assert anchor == index or index in (1, 4, 9)
            assert partner != anchor  # three images of a class, one of them damaged, leave one pair
            replaced[index, anchor] += index != anchor
        assert numbers(batch.view) == anchors
        assert [broken.targets[i] for i in numbers(batch.other)] == batch.other_y.tolist()
        assert not {1, 4, 9} & {*numbers(batch.other)}
        if before is not None:
            assert numbers(batch.previous.x) == before
        before = anchors
    assert made.skipped == 3
    assert {anchor for (index, anchor), n in replaced.items() if n and index == 4} == {3, 5, 6, 7, 8, 10}
    assert {anchor for (index, anchor), n in replaced.items() if n and index == 1} == {0, 2}


def test_partners_of_whole_files_stay_where_another_is_replaced(broken, tmp_path):
    whole = stream(folder_of(tmp_path, {"a": 3, "b": 8, "c": 7}), needs=("partner",))
    made = stream(broken, needs=("partner",), skip_corrupt=True)
    kept = 0
    for step in range(12):
        expected, got = whole[step], made[step]
        for i, (anchor, partner) in enumerate(zip(numbers(expected.x), numbers(expected.partner), strict=True)):
            if not {anchor, partner} & {1, 4, 9}:
                assert torch.equal(got.x[i], expected.x[i]) and torch.equal(got.partner[i], expected.partner[i])
                kept += 1
    assert kept > 20


def test_replacements_do_not_depend_on_workers_history_or_needs(broken):
    options = {"needs": NEEDS, "skip_corrupt": True, "batch_size": 18}
    plain = stream(broken, **options)
    expected = [plain[step] for step in range(4)]
    made = stream(broken, workers=1, **options)
    try:
        assert all(same(made[step], expected[step]) for step in (3, 0, 1, 2))
        assert made.skipped == 3
    finally:
        made.close()
    assert torch.equal(stream(broken, batch_size=18, skip_corrupt=True)[2].x, expected[2].x)


def test_the_shares_agree_on_what_replaces_a_damaged_file(broken):
    options = {"needs": NEEDS, "skip_corrupt": True, "batch_size": 18}
    whole = stream(broken, **options)[1]
    halves = [stream(broken, share=Share(rank, 2), **options)[1] for rank in range(2)]
    assert torch.equal(torch.cat([half.partner for half in halves]), whole.partner)
    assert torch.equal(torch.cat([half.x for half in halves]), whole.x)


@pytest.mark.parametrize("damaged", [(0,), (1,)])
def test_a_class_of_one_readable_image_is_paired_with_itself(tmp_path, damaged):
    data = folder_of(tmp_path, {"a": 2, "b": 2})
    for i in damaged:
        damage(data.samples[i][0])
    made = stream(data, batch_size=4, needs=("partner",), skip_corrupt=True)
    for step in range(3):
        batch = made[step]
        for y, anchor, partner in zip(batch.y.tolist(), numbers(batch.x), numbers(batch.partner), strict=True):
            assert {anchor, partner} == ({1 - damaged[0]} if y == 0 else {2, 3})


def test_a_class_without_a_readable_image_is_an_error(tmp_path):
    data = folder_of(tmp_path, {"a": 3, "b": 3})
    for i in (3, 4, 5):
        damage(data.samples[i][0])
    with pytest.raises(ValueError, match=r"class 'b' has no readable image .*0[345]\.png; replace its files"):
        stream(data, skip_corrupt=True)[0]


# --- workers


def test_a_killed_worker_is_an_error_and_the_stream_can_begin_again(data, expected):
    made = stream(data, needs=NEEDS, workers=2)
    _, workers = workers_of(lambda: made[0])
    assert len(workers) == 2
    try:
        os.kill(next(iter(workers)).pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match=r"ended") as caught:
            for step in range(1, 100):
                made[step]
        assert time.monotonic() - begin < 30
        message = str(caught.value)
        assert message.startswith("a worker process that decodes images has ended (")
        assert "data.workers (2 now)" in message and "\n" not in message
        # The other worker has ended too, although the error's traceback, held by `caught`, knows the loader.
        assert not workers & set(multiprocessing.active_children())
        assert same(made[4], expected[4])
    finally:
        made.close()


def test_a_killed_worker_ends_an_evaluation_with_an_error(data):
    batches = CentreCrops(data, SIZE, workers=1).batches(list(range(24)) * 20, 4, "cpu")
    _, workers = workers_of(lambda: next(batches))
    os.kill(next(iter(workers)).pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"^a worker process that decodes images has ended"):
        list(batches)


def test_close_ends_the_workers_and_a_later_batch_starts_them_again(data, expected):
    made = stream(data, needs=NEEDS, workers=2)
    _, workers = workers_of(lambda: made[0])
    assert len(workers) == 2
    made.close()
    made.close()
    assert not workers & set(multiprocessing.active_children())
    _, workers = workers_of(lambda: made[1])
    assert len(workers) == 2
    assert same(made[2], expected[2])
    made.close()


def test_workers_persist_from_epoch_to_epoch_and_over_a_jump(data):
    made = stream(data, workers=1)
    _, workers = workers_of(lambda: made[0])
    _, more = workers_of(lambda: [made[step] for step in (1, 2, 3, 4, 5, 0, 9)])
    assert len(workers) == 1 and not more
    made.close()


def test_a_stream_that_is_dropped_leaves_no_worker(data):
    made = [stream(data, workers=1)]
    _, workers = workers_of(lambda: made[0][0])
    made.clear()
    assert len(workers) == 1 and not workers & set(multiprocessing.active_children())


@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_found_from_another_folder(tmp_path, monkeypatch, workers):
    folder_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    made = stream(load("folder:."), workers=workers)
    monkeypatch.chdir("/")
    assert len(made[0].x) == 6
    made.close()


@pytest.mark.parametrize(("cores", "processes", "workers"), [(8, None, 8), (8, "2", 4), (3, "2", 1), (1, "4", 1)])
def test_the_cores_are_divided_among_the_processes(data, monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert stream(data, workers=None).workers == workers


# --- bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 25}, r"data\.batch_size .* 24 training images, got 25"),
        ({"share": Share(0, 4)}, r"data\.batch_size 6 cannot be cut into 4 equal parts"),
        ({"needs": ("partners",)}, r"\['partners'\] are unknown"),
        ({"needs": ("partner", "raw")}, r"nothing can be done before: .* method\.before to false"),
        ({"crop_size": 0}, r"data\.crop_size must be at least 1 pixel, got 0"),
        ({"crop_scale": 0.0}, r"data\.crop_scale must lie above 0 and at most at 1, got 0\.0"),
        ({"crop_scale": 1.01}, r"data\.crop_scale .* got 1\.01"),
        ({"crop_scale": float("nan")}, r"data\.crop_scale .* got nan"),
        ({"workers": -1}, r"data\.workers must be >= 0 processes .* got -1"),
    ],
)
def test_bad_arguments_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        stream(data, **options)


def test_a_class_with_one_image_is_refused_where_partners_are_needed(tmp_path):
    data = folder_of(tmp_path, {"a": 3, "b": 1})
    with pytest.raises(ValueError, match="class 1 has a single image"):
        stream(data, batch_size=2, needs=("partner",))
    assert len(stream(data, batch_size=2)[0].x) == 2


# --- evaluation


class Net(nn.Module):
    """Batch normalisation answers differently in training mode; the size of the images does not matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.norm, self.out = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.features(x)).relu().amax(dim=(2, 3)))


@pytest.fixture(scope="module")
def by_hand(data) -> ImageData:
    """The evaluation's images, cut by torchvision: 14 = 12 * 256 / 224, rounded."""
    images = []
    for file, _ in data.samples:
        with Image.open(file) as image:
            images.append(T.pil_to_tensor(T.center_crop(T.resize(image.convert("RGB"), [14]), [SIZE])))
    return ImageData(torch.stack(images), torch.tensor(data.targets), tuple("abc"), "some", MEAN, STD, 0, False)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_of_files_is_that_of_their_centres(data, by_hand, workers):
    model, crops = Net(), CentreCrops(data, SIZE, workers=workers)
    assert (len(crops), crops.classes) == (24, ("a", "b", "c")) and torch.equal(crops.targets, by_hand.targets)
    assert torch.equal(predict(model, crops, batch_size=5), predict(model, by_hand, batch_size=5))
    assert evaluate(model, crops) == evaluate(model, by_hand)


def test_an_image_folder_is_evaluated_at_224_pixels(data):
    model, crops = Net(), CentreCrops(data, workers=0)
    assert crops.crop_size == 224
    assert evaluate(model, data) == evaluate(model, crops) != evaluate(model, CentreCrops(data, 64, workers=0))
    assert predict(model, data, rows=range(2, 4)).shape == (2, 3)


def test_centre_crops_are_given_in_the_order_of_the_indices(data):
    indices = [5, 23, 0, 0, 11]
    batches, labels = zip(*CentreCrops(data, SIZE, workers=0).batches(indices, 2, "cpu"), strict=True)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert list(chain.from_iterable(numbers(batch) for batch in batches)) == indices
    assert torch.cat(labels).tolist() == [data.targets[i] for i in indices]
    assert all(b.is_contiguous(memory_format=torch.channels_last) and b.dtype == torch.float32 for b in batches)
    assert batches[0].shape == (2, 3, SIZE, SIZE)


def test_evaluation_leaves_no_worker(data):
    _, workers = workers_of(lambda: list(CentreCrops(data, SIZE, workers=2).batches(range(24), 6, "cpu")))
    assert not workers
    one = CentreCrops(data, SIZE, workers=1).batches(range(24), 2, "cpu")
    _, workers = workers_of(lambda: next(one))
    assert len(workers) == 1
    one.close()  # as where the consumer stops early
    assert not workers & set(multiprocessing.active_children())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_of_the_evaluation_is_named(broken, workers):
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match=r"01\.png is not a readable image \(.*\); replace or remove it$") as caught:
        predict(Net(), CentreCrops(broken, SIZE, workers=workers), batch_size=2)
    assert caught.tb is not None and set(multiprocessing.active_children()) <= before  # as above


@pytest.mark.parametrize("source", ["files", "memory"])
@pytest.mark.parametrize("rows", [range(24), range(7), range(7, 24), range(3, 4), range(1, 24, 2)])
def test_predict_answers_for_the_rows_that_are_asked_for(data, by_hand, source, rows):
    images = by_hand if source == "memory" else CentreCrops(data, SIZE, workers=0)
    model = Net()
    got = predict(model, images, batch_size=4, rows=rows)
    assert got.shape == (len(rows), 3)
    torch.testing.assert_close(got, predict(model, images)[list(rows)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [range(0), range(20, 25), range(-1, 3), range(5, 1, -1)])
def test_rows_that_are_not_there_are_refused(by_hand, rows):
    with pytest.raises(ValueError, match=r"rows must be an ascending range of the images 0 \.\.\. 23, got range"):
        predict(Net(), by_hand, rows=rows)


def test_bad_arguments_of_the_evaluation_are_refused(data):
    with pytest.raises(ValueError, match=r"data\.crop_size must be at least 1 pixel, got 0"):
        CentreCrops(data, 0)
    with pytest.raises(ValueError, match=r"data\.workers must be >= 0"):
        CentreCrops(data, workers=-1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(CentreCrops(data).batches(range(3), 0, "cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_end_on_the_device_and_are_those_of_the_cpu(data, expected):
    made = stream(data, needs=NEEDS, device="cuda", workers=1)
    try:
        for step in (0, 1, 5):
            batch = made[step]
            assert {part.device.type for part in parts(batch)} == {"cuda"}
            for got, wanted in zip(parts(batch), parts(expected[step]), strict=True):
                torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=1e-5)
            assert batch.x.is_contiguous(memory_format=torch.channels_last)
    finally:
        made.close()
