"""Crops of image files, decoded at a fraction of their size where that suffices. The workers: tests/test_stream.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as T

from psd.data import decoding
from psd.data.decoding import centre_crop, resized_crop


def photo(width: int, height: int) -> Image.Image:
    """A smooth picture with structure in every place."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 37 + y / 53), np.sin(x / 71 - y / 29), np.sin((x + y) / 61)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.fixture
def by_pil(monkeypatch):
    """As where simplejpeg is not installed."""
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("jpeg") / "photo.jpg"
    photo(1003, 701).save(file, quality=95)
    return file


WINDOWS = pytest.mark.parametrize(
    ("window", "size", "factor"),  # top, left, height, width
    [
        ((0, 0, 701, 1003), 64, 8),
        ((101, 333, 555, 600), 64, 8),
        ((100, 403, 512, 600), 64, 8),
        ((100, 403, 511, 600), 64, 4),
        ((7, 9, 300, 260), 64, 4),
        ((501, 703, 200, 300), 64, 2),
        ((13, 17, 128, 128), 64, 2),
        ((13, 17, 127, 500), 64, 1),
        ((13, 17, 40, 60), 64, 1),
        ((690, 990, 11, 13), 1, 8),
        ((0, 0, 701, 1003), 700, 1),
    ],
)


@WINDOWS
@pytest.mark.usefixtures("by_pil")
def test_a_jpeg_is_decoded_at_the_smallest_size_that_suffices(jpeg, window, size, factor):
    with Image.open(jpeg) as reduced, Image.open(jpeg) as whole:
        whole.load()  # from now on it cannot be reduced
        got, wanted = resized_crop(reduced, window, size), resized_crop(whole, window, size)
        assert reduced.size == (-(-1003 // factor), -(-701 // factor)) and whole.size == (1003, 701)
    assert min(window[2:]) // factor >= min(size, *window[2:])
    assert got.shape == wanted.shape == (3, size, size) and got.dtype == torch.uint8
    difference = (got.float() - wanted.float()).abs()
    assert difference.mean() < 1.5, difference.mean()
    if factor == 1:
        assert difference.max() == 0  # the same decode, and the same resize


@pytest.mark.usefixtures("by_pil")
def test_a_reduced_crop_is_cut_where_the_window_is(tmp_path):
    """A ramp tells where a pixel is from: the error is below one pixel of the whole image."""
    x = np.tile(np.linspace(0, 255, 512).round().astype(np.uint8), (512, 1))
    Image.fromarray(np.stack([x, x.T, x], axis=-1)).save(tmp_path / "ramp.jpg", quality=100, subsampling=0)
    for top, left in ((0, 0), (3, 129), (254, 101), (255, 255)):
        with Image.open(tmp_path / "ramp.jpg") as image:
            got = resized_crop(image, (top, left, 257, 256), 32).double()
            assert image.size == (64, 64)
        columns, rows = got[0].mean().item(), got[1].mean().item()
        assert columns == pytest.approx((left + 127.5) * 255 / 511, abs=0.49)
        assert rows == pytest.approx((top + 128) * 255 / 511, abs=0.49)


CENTRES = pytest.mark.parametrize(("size", "factor"), [(224, 2), (64, 8), (400, 1), (306, 2), (307, 1), (700, 1)])


@CENTRES
@pytest.mark.usefixtures("by_pil")
def test_the_centre_of_a_jpeg_is_nearly_that_of_the_whole_decode(jpeg, size, factor):
    with Image.open(jpeg) as reduced, Image.open(jpeg) as whole:
        got = centre_crop(reduced, size)
        assert reduced.size == (-(-1003 // factor), -(-701 // factor))
        wanted = T.center_crop(T.resize(whole.convert("RGB"), [round(size * 256 / 224)]), [size])
    difference = (got.float() - T.pil_to_tensor(wanted).float()).abs()
    assert difference.mean() < 1.5, difference.mean()
    if factor == 1:
        assert difference.max() == 0


# --- simplejpeg in the place of PIL


@pytest.fixture
def decoded(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of what simplejpeg has decoded since."""
    simplejpeg = pytest.importorskip("simplejpeg")
    shapes: list[tuple[int, ...]] = []
    plain = simplejpeg.decode_jpeg

    def decode(*given, **settings):
        array = plain(*given, **settings)
        shapes.append(array.shape)
        return array

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
    return shapes


def both(file: Path, cut) -> tuple[torch.Tensor, torch.Tensor]:
    """By simplejpeg and by PIL."""
    with Image.open(file) as image:
        first = cut(image)
    with pytest.MonkeyPatch.context() as patch, Image.open(file) as image:
        patch.setattr(decoding, "_simplejpeg", lambda: None)
        return first, cut(image)


@WINDOWS
def test_simplejpeg_decodes_at_the_same_size_and_the_same_pixels(jpeg, decoded, window, size, factor):
    got, wanted = both(jpeg, lambda image: resized_crop(image, window, size))
    assert decoded == [(-(-701 // factor), -(-1003 // factor), 3)]
    assert got.shape == wanted.shape and (got.float() - wanted.float()).abs().max() <= 2


@CENTRES
def test_simplejpeg_decodes_the_centre_likewise(jpeg, decoded, size, factor):
    got, wanted = both(jpeg, lambda image: centre_crop(image, size))
    assert decoded == [(-(-701 // factor), -(-1003 // factor), 3)]
    assert got.shape == wanted.shape and (got.float() - wanted.float()).abs().max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("how", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("sides", [(131, 97), (64, 64), (17, 200)])
def test_all_kinds_of_jpeg_have_the_pixels_that_pil_gives_them(tmp_path, decoded, mode, how, sides):
    photo(*sides).convert(mode).save(tmp_path / "photo.jpg", **how)
    for window in ((0, 0, sides[1], sides[0]), (5, 3, 48, 14)):
        got, wanted = both(tmp_path / "photo.jpg", lambda image, window=window: resized_crop(image, window, 24))
        assert (got.float() - wanted.float()).abs().max() <= 2
    assert len(decoded) == 2


def test_cmyk_and_other_formats_are_left_to_pil(tmp_path, decoded):
    photo(64, 48).convert("CMYK").save(tmp_path / "cmyk.jpg")
    photo(64, 48).save(tmp_path / "photo.png")
    for name in ("cmyk.jpg", "photo.png"):
        got, wanted = both(tmp_path / name, lambda image: resized_crop(image, (0, 0, 48, 64), 24))
        assert torch.equal(got, wanted)
    assert not decoded


def test_of_a_damaged_file_pil_says_what_is_wrong(tmp_path, jpeg, decoded):
    data = jpeg.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(OSError, match="truncated"):
        resized_crop(image, (0, 0, 701, 1003), 224)
    assert not decoded


def test_what_pil_reads_in_spite_of_a_fault_is_read(tmp_path, jpeg, decoded):
    """Bytes between the segments, which strict decoders refuse."""
    data = jpeg.read_bytes()
    (tmp_path / "odd.jpg").write_bytes(data[:-2] + bytes(9) + data[-2:])
    got, wanted = both(tmp_path / "odd.jpg", lambda image: resized_crop(image, (0, 0, 701, 1003), 224))
    assert (got.float() - wanted.float()).abs().max() <= 2
