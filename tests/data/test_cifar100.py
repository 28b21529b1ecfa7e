from __future__ import annotations

import builtins
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from psd.data import ImageData, MissingData, cifar100, load

LAYOUTS = ["parquet", "pickle", "archive", "npz", "folder", "nested"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_holds_the_images_it_was_written_from(layout, trusted, tmp_path):
    trusted.write(layout, tmp_path)
    data = cifar100.read(tmp_path, "train")
    written = zip(trusted.pixels["train"], trusted.labels["train"], strict=True)
    expected = sorted((label, pixels.tobytes()) for pixels, label in written)
    rows = data.images.permute(0, 2, 3, 1).numpy()
    assert sorted((label, x.tobytes()) for x, label in zip(rows, data.targets.tolist(), strict=True)) == expected
    assert data.images.is_contiguous() and data.classes[:3] == ("apple", "aquarium_fish", "baby")


@pytest.mark.parametrize("split", ["train", "test"])
def test_all_layouts_give_identical_tensors(split, trusted, tmp_path):
    read = []
    for layout in LAYOUTS:
        trusted.write(layout, tmp_path / layout)
        read.append(cifar100.read(tmp_path / layout, split))
    for other in read[1:]:
        assert torch.equal(other.images, read[0].images) and torch.equal(other.targets, read[0].targets)


def test_the_first_layout_in_the_documented_order_is_read(trusted, tmp_path):
    for layout in reversed(LAYOUTS):
        trusted.write(layout, tmp_path)
        expected = "folder" if layout == "nested" else layout
        assert cifar100.find(tmp_path, "train").layout == expected


@pytest.mark.parametrize("layout", ["parquet", "npz", "folder"])
def test_an_altered_pixel_is_refused_by_name(layout, tiny, tmp_path):
    tiny.pixels["train"][5, 3, 3, 0] ^= 1
    path = tiny.write(layout, tmp_path)
    with pytest.raises(ValueError, match="is not CIFAR-100's train split") as error:
        load("cifar100", tmp_path)
    assert str(path) in str(error.value) and "psd data get cifar100" in str(error.value)


def test_an_altered_label_is_refused(tiny, tmp_path):
    tiny.labels["train"][0] = (tiny.labels["train"][0] + 1) % 3
    tiny.write("parquet", tmp_path)
    with pytest.raises(ValueError, match="fingerprint differs"):
        load("cifar100", tmp_path)


def test_a_missing_image_is_refused(tiny, tmp_path):
    next((tiny.write("folder", tmp_path) / "apple").iterdir()).unlink()
    with pytest.raises(ValueError, match="23 images, fingerprint differs"):
        load("cifar100", tmp_path)


def test_a_truncated_parquet_file_is_refused_by_name(tiny, tmp_path):
    path = tiny.write("parquet", tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="not a readable parquet file") as error:
        load("cifar100", tmp_path)
    assert str(path) in str(error.value)


def test_a_truncated_image_is_refused_by_name(tiny, tmp_path):
    image = sorted((tiny.write("folder", tmp_path) / "baby").iterdir())[2]
    os.truncate(image, 400)
    with pytest.raises(ValueError, match="not a readable image") as error:
        load("cifar100", tmp_path)
    assert str(image) in str(error.value)


def test_a_truncated_npz_file_is_refused_by_name(tiny, tmp_path):
    path = tiny.write("npz", tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="not a readable npz file") as error:
        load("cifar100", tmp_path)
    assert str(path) in str(error.value)


def test_an_npz_file_of_other_shapes_or_labels_is_refused(tiny, tmp_path):
    tiny.labels["train"][0] = 3
    tiny.write("npz", tmp_path / "labels")
    with pytest.raises(ValueError, match="label 3"):
        load("cifar100", tmp_path / "labels", verify=False)
    tiny.pixels["train"] = tiny.pixels["train"][:, :16]
    tiny.write("npz", tmp_path / "shapes")
    with pytest.raises(ValueError, match="must hold x"):
        load("cifar100", tmp_path / "shapes", verify=False)


@pytest.mark.parametrize("layout", ["parquet", "npz"])
def test_a_file_is_read_once_and_again_when_it_has_changed(layout, tiny, tmp_path, monkeypatch):
    path, reads = tiny.write(layout, tmp_path), []
    reader = cifar100._READERS[layout]
    monkeypatch.setitem(cifar100._READERS, layout, lambda *source: reads.append(source) or reader(*source))
    first = load("cifar100", tmp_path)
    assert load("cifar100", tmp_path).images is first.images and len(reads) == 1
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="not a readable"):
        load("cifar100", tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_truncated_pickle_is_refused_by_name(name, trusted, tmp_path):
    file = trusted.write("pickle", tmp_path) / name
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(ValueError, match="MD5 differs") as error:
        load("cifar100", tmp_path)
    assert str(file) in str(error.value)


def test_a_missing_pickle_is_named(trusted, tmp_path):
    file = trusted.write("pickle", tmp_path) / "meta"
    file.unlink()
    with pytest.raises(ValueError, match="is missing") as error:
        load("cifar100", tmp_path)
    assert str(file) in str(error.value)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return builtins.open, (str(self.mark), "w")


@pytest.mark.parametrize("verify", [True, False])
def test_a_foreign_pickle_is_never_unpickled(verify, tiny, tmp_path):
    folder = tiny.write("pickle", tmp_path)
    (folder / "train").write_bytes(pickle.dumps(Malicious(tmp_path / "mark")))
    with pytest.raises(ValueError, match="nothing there is unpickled"):
        load("cifar100", tmp_path, verify=verify)
    assert not (tmp_path / "mark").exists()


def test_a_truncated_archive_is_refused_by_name_and_not_unpacked(trusted, tmp_path):
    archive = trusted.write("archive", tmp_path)
    os.truncate(archive, archive.stat().st_size - 10)
    with pytest.raises(ValueError, match="not the original archive") as error:
        load("cifar100", tmp_path)
    assert str(archive) in str(error.value)
    assert list(tmp_path.glob("cifar-100-python*")) == [archive]


def test_an_archive_is_unpacked_once_and_leaves_nothing_half_done(trusted, tmp_path):
    archive = trusted.write("archive", tmp_path / "root")
    first = load("cifar100", tmp_path / "root")
    archive.unlink()
    assert torch.equal(load("cifar100", tmp_path / "root").images, first.images)
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["cifar-100-python"]


def test_a_label_that_cifar100_does_not_have_is_refused(tiny, tmp_path):
    tiny.labels["train"][0] = 100
    tiny.write("parquet", tmp_path)
    with pytest.raises(ValueError, match="fine_label 100"):
        load("cifar100", tmp_path, verify=False)


def test_images_of_another_size_are_refused_by_name(tiny, tmp_path):
    tiny.pixels["train"] = tiny.pixels["train"][:, :16]
    tiny.write("folder", tmp_path)
    with pytest.raises(ValueError, match=r"apple.* is 32 x 16 pixels, not 32 x 32"):
        load("cifar100", tmp_path, verify=False)


def test_an_empty_folder_is_refused_by_name(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train holds no images"):
        load("cifar100", tmp_path)


def test_other_data_of_the_same_layout_can_be_used_and_is_said(tiny, tmp_path):
    tiny.pixels["train"] ^= 1
    tiny.write("folder", tmp_path)
    with pytest.warns(UserWarning, match="is not CIFAR-100's train split"):
        data = load("cifar100", tmp_path, verify=False)
    assert len(data) == 24


@pytest.mark.filterwarnings("error")
def test_the_real_thing_is_used_without_a_warning(tiny, tmp_path):
    tiny.write("folder", tmp_path)
    assert len(load("cifar100", tmp_path, verify=False)) == 24


def test_missing_data_names_the_root_and_the_command(tmp_path):
    with pytest.raises(MissingData) as error:
        load("cifar100", tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message and "psd data get cifar100" in message and "\n" not in message


def test_psd_data_is_where_data_is_looked_for(tiny, tmp_path, monkeypatch):
    tiny.write("folder", tmp_path)
    monkeypatch.setenv("PSD_DATA", str(tmp_path))
    assert len(load("cifar100")) == 24


def test_a_parquet_file_without_pyarrow_names_the_extra(tiny, tmp_path, monkeypatch):
    path = tiny.write("parquet", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r'needs pyarrow.*pip install "\.\[hub\]"') as error:
        load("cifar100", tmp_path)
    assert str(path) in str(error.value)


def contents(data: ImageData) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.images}


def test_fit_and_tune_are_the_train_split_cut_in_two(tiny, tmp_path):
    tiny.write("folder", tmp_path)
    train, fit, tune = (load("cifar100", tmp_path, s) for s in ("train", "fit", "tune"))
    assert fit.targets.bincount().tolist() == [7] * 3 and tune.targets.bincount().tolist() == [1] * 3
    assert contents(fit) | contents(tune) == contents(train)


def test_fit_and_tune_of_a_subset_share_no_image(tiny, tmp_path):
    tiny.write("folder", tmp_path)
    fit = load("cifar100", tmp_path, "fit", classes=2, per_class=7)
    tune = load("cifar100", tmp_path, "tune", classes=2, per_class=1)
    assert fit.classes == tune.classes
    assert not contents(fit) & contents(tune)


def test_a_subset_is_the_same_whatever_the_layout(tiny, tmp_path):
    subsets = []
    for layout in ("folder", "nested"):
        tiny.pixels["train"], tiny.labels["train"] = tiny.pixels["train"][::-1], tiny.labels["train"][::-1]
        tiny.write(layout, tmp_path / layout)
        subsets.append(load("cifar100", tmp_path / layout, classes=2, per_class=3, seed=4))
    assert torch.equal(subsets[0].images, subsets[1].images) and subsets[0].classes == subsets[1].classes


@pytest.mark.parametrize("size", [16, 48, 64])
def test_images_may_be_resized(size, tiny, tmp_path):
    tiny.write("folder", tmp_path)
    as_they_are, resized = (load("cifar100", tmp_path, per_class=2, seed=1, size=side) for side in (None, size))
    assert resized.images.shape == (*as_they_are.images.shape[:2], size, size)
    assert torch.equal(resized.targets, as_they_are.targets) and resized.classes == as_they_are.classes
    assert resized.crop_padding == size // 8  # as 4 of 32
    plain = F.interpolate(as_they_are.images.float(), size=(size, size), mode="nearest")
    nearest = torch.cdist(resized.images.float().flatten(1), plain.flatten(1)).argmin(dim=1)
    assert nearest.tolist() == list(range(len(plain)))  # the same pictures in the same order


def test_small_images_may_be_resized(small_root):
    for split in ("train", "test"):
        resized = load("cifar100-small", small_root, split, size=3)  # of one pixel each, here
        assert resized.images.shape[2:] == (3, 3)
        assert torch.equal(resized.images.amin(dim=(2, 3)), load("cifar100-small", small_root, split).images.flatten(1))


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_without_pixels_is_refused(size, tiny, tmp_path):
    tiny.write("folder", tmp_path)
    with pytest.raises(ValueError, match=f"size must be at least 1 pixel, got {size}"):
        load("cifar100", tmp_path, size=size)


def test_the_list_of_classes_is_alphabetical_and_complete():
    assert list(cifar100.CLASSES) == sorted(set(cifar100.CLASSES)) and len(cifar100.CLASSES) == 100


@pytest.fixture
def small_root(tmp_path, monkeypatch) -> Path:
    """Twelve classes of CIFAR-100's numbers of images, by which `cifar100-small` can be checked quickly."""

    def read(root: Path, split: str, *, verify: bool = True) -> ImageData:
        n = 12 * (500 if split == "train" else 100)
        number = torch.arange(n) + (0 if split == "train" else 20_000)
        images = torch.stack([number // 256, number % 256, number * 0], dim=1)[:, :, None, None].byte()
        names = cifar100.CLASSES[:12]
        return ImageData(images, torch.arange(n) % 12, names, "c", (0.5,) * 3, (1.0,) * 3, 4, True)

    monkeypatch.setattr(cifar100, "read", read)
    return tmp_path


def numbers(data: ImageData) -> set[int]:
    high, low, _ = data.images.flatten(2)[:, :, 0].long().unbind(1)
    return set((high * 256 + low).tolist())


def test_small_splits_are_disjoint_and_complete(small_root):
    train, tune, test = (load("cifar100-small", small_root, s) for s in ("train", "tune", "test"))
    assert (len(train), len(tune), len(test)) == (1000, 1000, 4000)
    assert len(numbers(train) | numbers(tune) | numbers(test)) == 6000
    assert sum(n >= 20_000 for n in numbers(test)) == 1000


def test_small_fit_is_train(small_root):
    fit, train = (load("cifar100-small", small_root, s) for s in ("fit", "train"))
    assert torch.equal(fit.images, train.images) and fit.name == "cifar100-small"


def test_small_test_and_tune_stay_apart_from_any_train_subset(small_root):
    train = load("cifar100-small", small_root, classes=12, per_class=100)
    for split in ("tune", "test"):
        assert not numbers(train) & numbers(load("cifar100-small", small_root, split, classes=12))


def test_small_has_no_more_than_a_hundred_training_images_of_a_class(small_root):
    with pytest.raises(ValueError, match=r"per_class must be at most 100.*got 101"):
        load("cifar100-small", small_root, per_class=101)


def test_small_draws_other_images_and_classes_with_another_seed(small_root):
    zero, one = (load("cifar100-small", small_root, seed=seed) for seed in (0, 1))
    assert zero.classes != one.classes
    assert numbers(zero) != numbers(one)


# ---- the real data, where it is


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_real_data_has_its_classes_in_equal_numbers(split, real):
    assert real[split].targets.bincount().tolist() == [500 if split == "train" else 100] * 100


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("layout", ["parquet", "pickle", "folder"])
def test_all_layouts_of_the_real_data_give_identical_tensors(layout, split, real_layouts, real, trust):
    trust(real_layouts["pickle"] / "cifar-100-python")  # the originals' pixels and labels, in another order and file
    data = load("cifar100", real_layouts[layout], split)
    assert torch.equal(data.images, real[split].images) and torch.equal(data.targets, real[split].targets)
    assert data.classes == real[split].classes


def test_mean_and_std_are_those_of_the_real_train_split(real):
    images, level = real["train"].images, torch.arange(256).double() / 255
    for c in range(3):
        share = images[:, c].flatten().bincount(minlength=256) / images[:, c].numel()
        mean = (share * level).sum()
        std = (share * (level - mean) ** 2).sum().sqrt()
        assert (mean.item(), std.item()) == pytest.approx((cifar100.MEAN[c], cifar100.STD[c]), abs=1e-4)


def test_small_test_of_the_real_data_has_four_thousand_images(real_layouts):
    data = load("cifar100-small", real_layouts["parquet"], "test")
    assert data.targets.bincount().tolist() == [400] * 10
