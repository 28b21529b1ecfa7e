"""Pixels as a network takes them, in either memory format."""

from __future__ import annotations

import pytest
import torch

from psd.data.normalisation import Normalisation

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(5, 3, 8, 6), (1, 3, 4, 4), (2, 3, 1, 7), (0, 3, 4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pixels_are_shifted_and_scaled_by_channel(shape, memory_format):
    images = drawn(*shape).contiguous(memory_format=memory_format)
    before = images.clone()
    got = Normalisation(MEAN, STD)(images)
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (MEAN, STD))
    torch.testing.assert_close(got.double(), (images / 255.0 - mean) / std, rtol=0, atol=1e-6)
    assert got.shape == images.shape and got.dtype == torch.float32 and torch.equal(images, before)
    assert got.is_contiguous(memory_format=memory_format)


def test_the_memory_format_changes_no_bit():
    images, normalise = drawn(7, 3, 9, 5), Normalisation(MEAN, STD)
    assert torch.equal(normalise(images), normalise(images.contiguous(memory_format=torch.channels_last)))


def test_grey_images_and_several_widths_have_numbers_of_their_own():
    normalise = Normalisation((0.5,), (0.25,))
    for width in (3, 5):
        assert torch.equal(
            normalise(torch.full((2, 1, 3, width), 255, dtype=torch.uint8)), torch.full((2, 1, 3, width), 2.0)
        )
