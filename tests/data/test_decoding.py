"""Crops of image files, decoded at a fraction of their size where that suffices. The workers: tests/test_stream.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as T

from psd.data.decoding import centre_crop, resized_crop


def photo(width: int, height: int) -> Image.Image:
    """A smooth picture with structure in every place."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 37 + y / 53), np.sin(x / 71 - y / 29), np.sin((x + y) / 61)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("jpeg") / "photo.jpg"
    photo(1003, 701).save(file, quality=95)
    return file


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(("size", "factor"), [(224, 2), (64, 8), (400, 1), (306, 2), (307, 1), (700, 1)])
def test_the_centre_of_a_jpeg_is_nearly_that_of_the_whole_decode(jpeg, size, factor):
    with Image.open(jpeg) as reduced, Image.open(jpeg) as whole:
        got = centre_crop(reduced, size)
        assert reduced.size == (-(-1003 // factor), -(-701 // factor))
        wanted = T.center_crop(T.resize(whole.convert("RGB"), [round(size * 256 / 224)]), [size])
    difference = (got.float() - T.pil_to_tensor(wanted).float()).abs()
    assert difference.mean() < 1.5, difference.mean()
    if factor == 1:
        assert difference.max() == 0
