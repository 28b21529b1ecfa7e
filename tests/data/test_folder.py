from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psd.data import ImageData, MissingData, load
from psd.data.folder import MEAN


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train: three classes of 10 images, 20 x 12 pixels of one colour (class, number, 0); val: 4 of each."""
    for split, count in (("train", 10), ("val", 4)):
        for c, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((12, 20, 3), (c, i, 0), np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def test_a_size_decodes_into_memory(root):
    data = load(f"folder:{root}", size=8)
    assert isinstance(data, ImageData)
    assert data.images.shape == (30, 3, 8, 8) and data.classes == ("ant", "bee", "cat")
    assert data.images[:, 0, 4, 4].tolist() == data.targets.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert (data.mean, data.crop_padding, data.flip) == (MEAN, 1, True)


def test_the_shorter_side_is_resized_and_the_centre_is_cut_out(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200  # the middle third is what is left
    (tmp_path / "train" / "one").mkdir(parents=True)
    Image.fromarray(pixels).resize((120, 40), Image.Resampling.NEAREST).save(tmp_path / "train/one/a.png")
    image = load(f"folder:{tmp_path}", size=20).images[0]
    assert image.shape == (3, 20, 20) and (image[:, :, 2:-2] == 200).all()


def test_no_size_lists_the_files(root):
    listing = load(f"folder:{root}")
    image, label = listing[10]
    assert image.size == (20, 12) and label == 1
    assert listing.targets == [0] * 10 + [1] * 10 + [2] * 10


def test_grey_images_become_rgb(root):
    Image.new("L", (12, 12), 7).save(root / "train" / "ant" / "0.png")
    assert load(f"folder:{root}", size=4).images[0].unique().tolist() == [7]
    assert load(f"folder:{root}")[0][0].mode == "RGB"


def test_a_subset_of_the_files_is_the_subset_in_memory(root):
    chosen = {"classes": 2, "per_class": 3, "seed": 1}
    listing, data = load(f"folder:{root}", **chosen), load(f"folder:{root}", size=4, **chosen)
    assert len(listing) == len(data) == 6
    assert listing.targets == data.targets.tolist() and tuple(listing.classes) == data.classes
    assert [listing[i][0].getpixel((0, 0)) for i in range(6)] == [tuple(x[:, 0, 0].tolist()) for x in data.images]
    assert listing.class_to_idx == {name: i for i, name in enumerate(data.classes)}


def test_fit_and_tune_are_the_train_files_cut_in_two(root):
    fit, tune, train = (load(f"folder:{root}", split=s) for s in ("fit", "tune", "train"))
    assert sorted(fit.samples + tune.samples) == sorted(train.samples)
    assert torch.tensor(tune.targets).bincount().tolist() == [1, 1, 1]


def test_test_is_val_where_there_is_no_test(root):
    assert len(load(f"folder:{root}", split="test")) == 12


def test_test_comes_before_val(root):
    (root / "val").rename(root / "test")
    (root / "val").mkdir()
    assert len(load(f"folder:{root}", split="test")) == 12


def test_a_test_folder_without_classes_gives_way_to_val(root):
    (root / "test" / "unlabelled").mkdir(parents=True)
    assert len(load(f"folder:{root}", split="test")) == 12


def test_different_classes_in_train_and_test_are_named(root):
    (root / "val" / "cat").rename(root / "val" / "cow")
    with pytest.raises(ValueError, match="only in train: cat; only in val: cow"):
        load(f"folder:{root}", split="test")


def test_a_missing_test_split_is_named(root):
    (root / "val").rename(root / "validation")
    with pytest.raises(MissingData, match=r"neither .*test nor .*val"):
        load(f"folder:{root}", split="test")


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(MissingData, match=r"no folder .*nowhere"):
        load(f"folder:{tmp_path}/nowhere")


def test_imagenet_is_a_folder_under_the_root(root):
    root.rename(root.parent / "imagenet")
    try:
        assert len(load("imagenet", root.parent, split="test", size=4)) == 12
    finally:
        (root.parent / "imagenet").rename(root)


@pytest.mark.parametrize("size", [None, 8])
def test_an_unreadable_image_is_named(root, size):
    image = root / "train" / "bee" / "3.png"
    os.truncate(image, 40)
    with pytest.raises(ValueError, match="not a readable image") as error:
        data = load(f"folder:{root}", size=size)
        [data[i] for i in range(len(data))]
    assert str(image) in str(error.value)


def test_a_folder_without_classes_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train must hold class folders"):
        load(f"folder:{tmp_path}")


def test_a_class_without_images_is_named(root):
    (root / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog"):
        load(f"folder:{root}")


def test_more_than_there_is_is_refused(root):
    with pytest.raises(ValueError, match="per_class must be at most 10, the images of 'ant', got 11"):
        load(f"folder:{root}", per_class=11)


def test_a_size_below_one_pixel_is_refused(root):
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        load(f"folder:{root}", size=0)


# --- class folders alone


@pytest.fixture
def unsplit(tmp_path: Path) -> Path:
    """Three classes of 10, 6 and 3 images, 16 x 12 pixels of one colour (class, number, 0), and what is no class."""
    for c, (name, count) in enumerate({"ant": 10, "bee": 6, "cat": 3}.items()):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(count):
            Image.fromarray(np.full((12, 16, 3), (c, i, 0), np.uint8)).save(folder / f"{i}.png")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / ".ipynb_checkpoints" / "x.png")
    (tmp_path / "ant" / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no folder")
    return tmp_path


def files(folder: Path, split: str, **options) -> list[str]:
    return [file for file, _ in load(f"folder:{folder}", split=split, **options).samples]


def test_class_folders_alone_are_split_by_class(unsplit):
    parts = {split: files(unsplit, split) for split in ("train", "test", "fit", "tune")}
    assert [len(parts[split]) for split in parts] == [15, 4, 12, 3]  # 2 + 1 + 1 to test
    everything = sorted(str(file) for file in unsplit.glob("[a-z]*/*.png"))
    assert sorted(parts["train"] + parts["test"]) == everything
    assert sorted(parts["fit"] + parts["tune"]) == parts["train"]
    test = load(f"folder:{unsplit}", split="test")
    assert test.classes == ["ant", "bee", "cat"] and test.targets == [0, 0, 1, 2]


def test_the_split_is_a_function_of_the_seed(unsplit):
    assert files(unsplit, "test") == files(unsplit, "test")
    assert len({tuple(files(unsplit, "test", seed=seed)) for seed in range(6)}) > 3


def test_class_folders_alone_are_decoded_into_memory_too(unsplit):
    train, test = (load(f"folder:{unsplit}", split=split, size=8) for split in ("train", "test"))
    assert len(train) == 15 and len(test) == 4 and train.classes == ("ant", "bee", "cat")
    assert train.images[:, 0, 4, 4].tolist() == train.targets.tolist()


def test_a_class_may_be_called_train(unsplit):
    before = load(f"folder:{unsplit}").classes
    (unsplit / sorted(before)[0]).rename(unsplit / "train")
    assert load(f"folder:{unsplit}").classes == sorted({"train", *before} - {sorted(before)[0]})


def test_images_in_train_itself_are_no_class(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / "a.png")
    with pytest.raises(ValueError, match="train must hold class folders"):
        load(f"folder:{tmp_path}")


def test_a_class_of_one_image_cannot_be_split(unsplit):
    (unsplit / "dog").mkdir()
    Image.new("RGB", (4, 4)).save(unsplit / "dog" / "only.png")
    with pytest.raises(ValueError, match=r"dog holds 1 image; to be split into train and test a class needs 2 or more"):
        load(f"folder:{unsplit}")


def test_hidden_folders_are_no_classes(root):
    (root / "train" / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (4, 4)).save(root / "train" / ".ipynb_checkpoints" / "x.png")
    assert load(f"folder:{root}").classes == ["ant", "bee", "cat"] and len(load(f"folder:{root}", split="test")) == 12


def test_half_a_layout_says_what_is_missing(root):
    for folder in sorted((root / "val").rglob("*"), reverse=True):
        folder.rmdir() if folder.is_dir() else folder.unlink()
    (root / "val").rmdir()
    with pytest.raises(MissingData, match=r"there is neither .*test nor .*val; the test split needs one of them"):
        load(f"folder:{root}", split="test")
