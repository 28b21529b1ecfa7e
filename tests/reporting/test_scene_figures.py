"""Pictures with masks and boxes."""

from __future__ import annotations

import pytest

from psd import data, models
from psd.reporting.scenes import scene_grid


@pytest.mark.parametrize(("task", "name"), [("segmentation", "fcn@resnet8"), ("detection", "fcos@resnet8")])
def test_a_row_shows_a_picture_what_it_holds_and_what_each_network_finds(task, name):
    drawn = data.load("shapes-scenes", classes=3, size=64, count=6)
    network = models.build(name, 4).train()
    figure = scene_grid(drawn, {"untrained": network}, task, rows=[0, 4], title="Nothing yet")
    assert len(figure.axes) == 6 and network.training
    assert [ax.get_title() for ax in figure.axes[:3]] == ["picture", "what it holds", "untrained"]
    held = figure.axes[1]
    if task == "segmentation":
        assert len(held.images) == 2 and {text.get_text() for text in held.texts} <= set(drawn.classes)
    else:
        assert len(held.patches) == len(drawn[0][1]["boxes"]) == len(held.texts)
    assert len(figure.axes[0].texts) == 0
