"""The pictures of the course: an exchange of patches, the method as boxes, figures with their description."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch
from matplotlib import pyplot as plt

import psd
from psd.data import dogs
from psd.reporting import plots, story


def test_the_two_dogs_are_there_with_what_a_network_says_of_each_swap():
    assert dogs.load().shape == (2, 3, 224, 224) and dogs.load().dtype == torch.uint8
    pairs = dogs.said()["pairs"]
    assert [len(pairs[size]["p_a"]) for size in ("whole", "8", "16", "32", "56", "112")] == [1, 24, 24, 24, 24, 24]
    assert all(0 <= p <= 1 for row in pairs.values() for side in row.values() for p in side)
    for row in dogs.said()["top"]:
        assert len(row) == 5 and sorted((p for _, p in row), reverse=True) == [p for _, p in row]


def test_the_mask_of_a_seed_is_the_one_that_the_swap_draws():
    a, b = dogs.load().split(1)
    mask = psd.patch_mask(1, (7, 7), generator=torch.Generator().manual_seed(8))
    by_mask = psd.patch_swap(a, b, 32, mask=mask)
    by_seed = psd.patch_swap(a, b, 32, generator=torch.Generator().manual_seed(8))
    assert torch.equal(torch.cat(by_mask), torch.cat(by_seed))


def test_every_swapped_patch_moves_once_each_way_and_the_bars_have_the_probabilities_lengths():
    images, mask = torch.zeros(2, 3, 40, 80, dtype=torch.uint8), torch.tensor([[True, False], [True, True]])
    drawn = story.exchange(images, mask, (0.25, 0.5), (0.75, 1.0), alt='two <images> & "patches"')
    root = ElementTree.fromstring(drawn.svg)
    space = "{http://www.w3.org/2000/svg}"
    moves = [one.get("values") for one in root.iter(f"{space}animateTransform")]
    assert sorted(moves) == sorted(["0;0;210;210;0"] * 3 + ["0;0;-210;-210;0"] * 3)
    widths = [one.get("values") for one in root.iter(f"{space}animate") if one.get("attributeName") == "width"]
    assert widths == ["20.0;20.0;60.0;60.0;20.0", "40.0;40.0;80.0;80.0;40.0"]
    assert drawn._repr_svg_()[1] == {"alt": 'two <images> & "patches"'}


def test_the_exchange_of_the_dogs_is_light_enough_for_a_page():
    mask = psd.patch_mask(1, (7, 7), generator=torch.Generator().manual_seed(8))[0]
    assert len(story.exchange(dogs.load(), mask, (0.9, 0.9), (0.9, 0.1)).svg) < 300_000


def test_the_still_shows_four_images_with_a_bar_each():
    pair = dogs.load()
    figure = story.still(pair, pair.flip(0), (0.1, 0.2), (0.3, 0.4), title="Two dogs")
    assert [ax.get_xlabel() for ax in figure.axes[4:]] == [f"P(dog) = {p}" for p in ("0.10", "0.20", "0.30", "0.40")]
    assert [ax.patches[0].get_width() for ax in figure.axes[4:]] == [0.1, 0.2, 0.3, 0.4]


def test_the_stages_that_are_named_are_lit_and_others_are_refused():
    bold = {t.get_text() for t in story.pipeline("swap", "loss").axes[0].texts if t.get_weight() == "bold"}
    assert bold == {"swap", "loss"}
    assert {t.get_text() for t in story.pipeline().axes[0].texts if t.get_weight() == "bold"} == set(story.STAGES)
    with pytest.raises(ValueError, match=re.escape("got 'swop'")):
        story.pipeline("swop")


def test_a_described_figure_carries_its_words_and_is_shown_once():
    figure, _ = plt.subplots()
    png, beside = plots.described(figure, "an empty pair of axes")._repr_png_()
    assert png.startswith(b"\x89PNG") and beside == {"alt": "an empty pair of axes"}
    assert not plt.fignum_exists(figure.number)
    with pytest.raises(ValueError, match="alt"):
        plots.described(figure, " ")
