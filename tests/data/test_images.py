from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psd import data
from psd.data.images import ImageData, choose, chosen_classes, fit_or_tune, take, with_label_noise

NAMES = tuple("abcdef")


def some(per_class: int = 5) -> ImageData:
    """Six classes in turn; every image's pixels hold its own number."""
    n = per_class * len(NAMES)
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 4, 4).contiguous()
    return ImageData(images, torch.arange(n) % 6, NAMES, "some", (0.5,) * 3, (0.2,) * 3, 2, True)


def test_an_item_is_an_image_and_its_label():
    image, label = some()[7]
    assert torch.equal(image, torch.full((3, 4, 4), 7, dtype=torch.uint8))
    assert label == 1 and type(label) is int


def test_length_is_the_number_of_images():
    assert len(some()) == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(30, 3, 4, 4)}, "images must be uint8"),
        ({"images": torch.zeros(30, 4, 4, dtype=torch.uint8)}, r"got torch.uint8 \(30, 4, 4\)"),
        ({"targets": torch.zeros(29, dtype=torch.int64)}, r"targets must be int64 of shape \(30,\)"),
        ({"targets": torch.zeros(30)}, "got torch.float32"),
        ({"targets": torch.full((30,), 6)}, "targets must lie between 0 and 5, got 6"),
        ({"targets": torch.full((30,), -1)}, "targets must lie between 0 and 5, got -1"),
        ({"mean": (0.5,)}, r"one number per channel \(3\), got \(0.5,\)"),
        ({"std": (0.5, 0.0, 0.5)}, "std > 0"),
        (
            {
                "images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8),
                "targets": torch.zeros(0, dtype=torch.int64),
            },
            "'some' is empty",
        ),
    ],
)
def test_wrong_contents_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(some(), **changes)


def test_subset_keeps_the_order_it_is_given():
    subset = some().subset([8, 1])
    assert subset.images[:, 0, 0, 0].tolist() == [8, 1] and subset.targets.tolist() == [2, 1]


def test_an_empty_subset_is_refused():
    with pytest.raises(ValueError, match="empty"):
        some().subset([])


@given(seed=st.integers(0, 10**6), classes=st.integers(1, 6), per_class=st.integers(1, 5))
def test_choose_takes_that_many_of_each_class_and_keeps_their_names(seed, classes, per_class):
    whole = some()
    indices, targets, names = choose(whole.targets, whole.classes, classes, per_class, seed)
    assert targets.bincount(minlength=classes).tolist() == [per_class] * classes
    assert [names[y] for y in targets.tolist()] == [NAMES[y] for y in whole.targets[indices].tolist()]
    assert list(names) == sorted(names)
    assert len(set(indices.tolist())) == classes * per_class


def test_choose_with_more_images_takes_the_same_and_more():
    whole = some()
    few, _, _ = choose(whole.targets, NAMES, 3, 2, seed=0)
    many, _, _ = choose(whole.targets, NAMES, 5, 4, seed=0)
    assert set(few.tolist()) < set(many.tolist())


def test_seeds_choose_different_classes_and_images():
    assert len({tuple(chosen_classes(100, 10, seed)) for seed in range(20)}) == 20
    first, second = (take(some(), None, 2, seed).images for seed in (0, 1))
    assert not torch.equal(first, second)


def test_nothing_asked_for_is_everything_there_is():
    whole = some()
    assert take(whole, None, None, seed=3) is whole


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"classes": 7}, "classes must lie between 1 and the 6 there are, got 7"),
        ({"classes": 0}, "got 0"),
        ({"per_class": 6}, "per_class must be at most 5, the images of 'a', got 6"),
        ({"per_class": 0}, "per_class must be at least 1, got 0"),
    ],
)
def test_more_than_there_is_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        take(some(), **{"classes": None, "per_class": None, **asked}, seed=0)


@given(counts=st.lists(st.integers(2, 40), min_size=1, max_size=6))
def test_fit_and_tune_cut_every_class_in_two_without_loss(counts):
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    fit, tune = fit_or_tune(targets, "fit"), fit_or_tune(targets, "tune")
    assert sorted(fit.tolist() + tune.tolist()) == list(range(len(targets)))
    assert targets[tune].bincount().tolist() == [max(1, round(n / 10)) for n in counts]


def test_fit_and_tune_are_not_the_first_and_the_last_images():
    tune = fit_or_tune(torch.zeros(500, dtype=torch.int64), "tune").tolist()
    assert 100 < sum(tune) / len(tune) < 400


def test_fit_and_tune_need_two_images_of_a_class():
    with pytest.raises(ValueError, match="class 1 has 1"):
        fit_or_tune(torch.tensor([0, 0, 1]), "fit")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cifar10", "cifar100"), ("shape", "shapes"), ("image-net", "imagenet"), ("folder", "folder:PATH")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"'{name}' is unknown; did you mean '{nearest}'"):
        data.load(name)


def test_an_unknown_split_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"split 'val' is unknown.*train, test, fit, tune"):
        data.load("shapes", split="val")


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("cifar100", "count", 10),
        ("tiny-imagenet", "count", 10),
        ("cifar100-small", "count", 10),
        ("folder:somewhere", "count", 10),
        ("folder:somewhere", "verify", False),
        ("shapes", "verify", False),
    ],
)
def test_an_argument_without_use_is_refused(name, argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value} does not apply to the data set '{name}'"):
        data.load(name, **{argument: value})


# --- data sets of one's own


@pytest.fixture
def registered(monkeypatch):
    """Nothing that a test registers outlives it."""
    monkeypatch.setattr(data, "_REGISTERED", {})


@pytest.mark.usefixtures("registered")
def test_a_registered_data_set_is_given_the_root_the_split_and_what_is_set():
    seen = []
    data.register("mine", lambda root, split, **options: seen.append((root, split, options)))
    data.load("mine", "some/where", "fit")
    data.load("mine", "some/where", "tune", classes=3, per_class=None, seed=1, verify=True)
    data.load("mine", "some/where", seed=0, verify=False)
    assert seen == [
        (Path("some/where"), "fit", {}),
        (Path("some/where"), "tune", {"classes": 3, "seed": 1}),
        (Path("some/where"), "train", {"verify": False}),
    ]


@pytest.mark.usefixtures("registered")
def test_a_registered_data_set_is_among_the_names():
    data.register("mine", lambda root, split: None)
    assert "mine" in data.names()
    with pytest.raises(ValueError, match=r"data.name 'mines' is unknown; did you mean 'mine'\? Known: shapes, .*mine"):
        data.load("mines")


@pytest.mark.usefixtures("registered")
def test_an_option_that_a_registered_data_set_does_not_take_is_refused():
    data.register("mine", lambda root, split, *, size=8: None)
    with pytest.raises(ValueError, match="count=3 does not apply to the data set 'mine'"):
        data.load("mine", size=16, count=3)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["shapes", "mine"])
def test_a_taken_name_is_refused_with_those_there_are(name):
    first = data.register("mine", lambda root, split: None)
    assert data.register("mine", first) is first  # a notebook's cell may run twice
    with pytest.raises(ValueError, match=f"data.name '{name}' is taken; known: shapes, .*mine"):
        data.register(name, lambda root, split: None)


@pytest.mark.usefixtures("registered")
def test_a_notebook_s_cell_that_runs_twice_replaces_what_it_registered():
    cell = "def load(root, split): ..."
    first, again = {"__name__": "__main__"}, {"__name__": "__main__"}
    exec(cell, first)
    exec(cell, again)
    data.register("mine", first["load"])
    assert data.register("mine", again["load"]) is again["load"]
    exec("def other(root, split): ...", again)
    with pytest.raises(ValueError, match=r"data\.name 'mine' is taken"):
        data.register("mine", again["other"])


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["a/b", "..", "", "folder:x", None])
def test_a_name_that_cannot_be_part_of_a_record_s_path_is_refused(name):
    with pytest.raises(ValueError, match=f"data.name is part of a file name: .*got {name!r}"):
        data.register(name, lambda root, split: None)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("load", [lambda split: None, lambda root, split, size: None, "a path"])
def test_what_is_no_function_of_root_and_split_is_refused(load):
    with pytest.raises(ValueError, match=r"load of 'mine' must be a function load\(root, split, \*\*options\): "):
        data.register("mine", load)


def test_the_root_is_the_folder_psd_data_names(monkeypatch):
    monkeypatch.setenv("PSD_DATA", "/some/where")
    assert data.default_root() == Path("/some/where")


def test_the_root_is_data_where_psd_data_is_not_set(monkeypatch):
    monkeypatch.delenv("PSD_DATA", raising=False)
    assert data.default_root() == Path("data")


@given(st.floats(0, 1), st.integers(0, 9))
def test_label_noise_draws_that_share_of_the_labels_from_the_other_classes(share, seed):
    noisy = with_label_noise(some(), share, seed)
    wrong = noisy.targets != some().targets
    assert int(wrong.sum()) == round(share * 30) and set(noisy.targets.tolist()) <= set(range(6))
    assert noisy.images is not None and torch.equal(noisy.images, some().images)


def test_label_noise_is_a_function_of_its_seed_and_leaves_the_data_it_is_given():
    data = some()
    first, again, other = (with_label_noise(data, 0.5, seed).targets for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(data.targets, some().targets)


def test_label_noise_of_one_class_is_refused():
    with pytest.raises(ValueError, match="label_noise needs at least 2 classes, got 1"):
        with_label_noise(replace(some(), targets=torch.zeros(30, dtype=torch.int64), classes=("a",)), 0.5, 0)


def test_importing_the_package_loads_no_image_library():
    code = "import sys, psd.data; print({'torchvision', 'pyarrow', 'PIL', 'huggingface_hub'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
