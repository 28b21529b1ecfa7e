"""Partners of the same class and of another: laws, distributions, epochs, workers, processes, bad input named.

An item of the data set is its own index, so that a pair shows which items it was made of.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import Any

import numpy
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)
from torchvision import datasets as vision

from psd import ClassPairs, PairedBatchSampler, same_class_partner
from psd import pairs as pairs_module
from psd.data.batches import Batches
from psd.data.images import ImageData
from psd.pairs import epoch_partners, labels_of, other_class_partner
from psd.seeding import seed_for

LABELS = [2, 0, 1, 0, 2, 2, 0, 1, 2, 0, 0, 1]  # 5, 3 and 4 of them
NAN = float("nan")

pytestmark = pytest.mark.usefixtures("one_thread")
laws = settings(max_examples=50, deadline=None, derandomize=True)
seeds = st.integers(-(2**70), 2**70)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class Items(Dataset):
    """Item i is (i, label, and something more)."""

    def __init__(self, labels: Any = LABELS) -> None:
        self.targets = labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[int, int, str]:
        return i, int(self.targets[i]), "something more"


@st.composite
def labels_with_partners(draw: st.DrawFn) -> list[int]:
    """Labels (any integers, in any order) of classes that have at least two items."""
    sizes = draw(st.dictionaries(st.integers(-(2**40), 2**40), st.integers(2, 6), min_size=1, max_size=6))
    return draw(st.permutations([label for label, size in sizes.items() for _ in range(size)]))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def partners(pairs: ClassPairs, epoch: int = 0) -> list[int]:
    pairs.set_epoch(epoch)
    return [pairs[i][1] for i in range(len(pairs))]


def others(labels: list[int], i: int) -> list[int]:
    """Every possible partner of i."""
    return [j for j, label in enumerate(labels) if label == labels[i] and j != i]


def chi_square(counts: Tensor) -> float:
    """Against equal frequencies in all cells."""
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_limit(freedom: int) -> float:
    """Mean plus 4 standard deviations of the statistic."""
    return freedom + 4 * math.sqrt(2 * freedom)


# --- ClassPairs: what a pair is


@laws
@given(labels=labels_with_partners(), seed=seeds, epoch=st.integers(0, 2**40))
def test_a_pair_holds_two_different_items_of_one_class(labels, seed, epoch):
    pairs = ClassPairs(Items(labels), seed=seed)
    pairs.set_epoch(epoch)
    assert len(pairs) == len(labels)
    for i in range(len(labels)):
        x_i, x_j, y, index = pairs[i]
        assert (x_i, y, index) == (i, labels[i], i)
        assert x_j in others(labels, i)
        assert x_j == pairs.partner(i)


@laws
@given(labels=labels_with_partners(), seed=seeds)
def test_every_partner_is_reached(labels, seed):
    pairs = ClassPairs(Items(labels), seed=seed)
    seen = list(zip(*(partners(pairs, epoch) for epoch in range(150)), strict=True))
    for i in range(len(labels)):  # of at most 5; the chance of missing one is 5 * 0.8^150
        assert set(seen[i]) == set(others(labels, i))


def test_label_and_index_are_plain_integers():
    _, _, y, index = ClassPairs(Items(torch.tensor(LABELS)))[3]
    assert (type(y), type(index)) == (int, int)


def test_each_image_goes_through_the_data_set_s_own_transform():
    asked = []

    class Transformed(Items):
        def __getitem__(self, i: int) -> tuple[int, int, str]:
            asked.append(i)
            return 100 + i, self.targets[i], ""

    x_i, x_j, _, _ = ClassPairs(Transformed())[4]
    assert asked == [x_i - 100, x_j - 100]


def test_a_negative_index_counts_from_the_end():
    pairs = ClassPairs(Items())
    assert pairs[-1] == pairs[len(LABELS) - 1]


def test_iteration_ends_after_the_last_item():
    pairs = ClassPairs(Items())
    assert list(pairs) == [pairs[i] for i in range(len(LABELS))]


@pytest.mark.parametrize("i", [len(LABELS), -len(LABELS) - 1])
def test_an_index_past_the_end_is_refused(i):
    with pytest.raises(IndexError):
        ClassPairs(Items())[i]


# --- ClassPairs and the trainer


# Written down once. Where one of these changes, no published record can be reproduced any more.
# torch 2.6 and older draw large integers from other bits of the generator.
of_torch_2_7 = pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 draws other integers of 31 bits")


@of_torch_2_7
@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (0, 0, [8, 10, 7, 10, 0, 8, 1, 2, 0, 10, 1, 2]),
        (3, 7, [5, 3, 7, 10, 5, 0, 3, 2, 5, 1, 3, 7]),
        (-1, 2**40, [5, 10, 7, 6, 0, 8, 9, 2, 0, 3, 6, 2]),
    ],
)
def test_the_partners_of_an_epoch_are_what_they_always_were(seed, epoch, expected):
    assert epoch_partners(LABELS, seed, epoch).tolist() == expected
    assert partners(ClassPairs(Items(), seed=seed), epoch) == expected


@of_torch_2_7
def test_the_partners_of_more_images_than_a_sort_keeps_in_order_by_itself_are_what_they_always_were():
    expected = [9, 7, 8, 12, 1, 17, 15, 1, 5, 18, 1, 5, 15, 1, 11, 18, 19, 14, 3, 4]
    assert epoch_partners([i % 3 for i in range(20)], seed=0, epoch=0).tolist() == expected


@laws
@given(seed=seeds, epoch=st.integers(0, 2**40))
def test_the_seed_of_an_epoch_is_that_of_psd_s_seeding(seed, epoch):
    assert pairs_module._seed_for(seed, "partners", epoch) == seed_for(seed, "partners", epoch)


@pytest.mark.parametrize("seed", [0, 5])
def test_pairs_are_those_of_the_trainer_s_batches(seed):
    images = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(60, 1, 2, 2).contiguous()
    data = ImageData(images, torch.arange(60) % 3, tuple("abc"), "some", (0.0,), (1 / 255,), 0, False)
    pairs, batches = ClassPairs(data, seed=seed), Batches(data, 60, seed, ("partner",))
    for epoch in (0, 1, 6):
        batch, expected = batches[epoch], torch.tensor([x[0, 0, 0] for x in partners(pairs, epoch)])
        assert torch.equal(batch.partner[:, 0, 0, 0].round().to(torch.uint8), expected[batch.index])


def test_the_partners_of_an_epoch_are_drawn_once(monkeypatch):
    drawn = []
    monkeypatch.setattr(pairs_module, "epoch_partners", lambda *keys: drawn.append(keys[2]) or epoch_partners(*keys))
    pairs = ClassPairs(Items())
    for epoch in (0, 3, 0):
        partners(pairs, epoch)
    assert drawn == [0, 3, 0]


# --- ClassPairs: labels


@pytest.mark.parametrize("kind", [list, tuple, numpy.array, torch.tensor, lambda x: numpy.array(x, numpy.uint8)])
def test_labels_of_every_kind_give_the_same_pairs(kind):
    assert list(ClassPairs(Items(), targets=kind(LABELS))) == list(ClassPairs(Items()))


def test_given_labels_go_before_the_data_set_s_own():
    by_parity = [i % 2 for i in range(len(LABELS))]
    for x_i, x_j, y, _ in ClassPairs(Items(), targets=by_parity):
        assert y == x_i % 2 == x_j % 2


def test_labels_alone_are_read_when_the_pairs_are_built():
    class Unreadable(Items):
        def __getitem__(self, i: int) -> tuple[int, int, str]:
            raise OSError("no image is needed yet")

    assert len(ClassPairs(Unreadable())) == len(LABELS)


# --- ClassPairs: distribution


def test_the_partner_is_uniform_over_the_rest_of_the_class():
    epochs = 2000
    pairs = ClassPairs(Items())
    seen = torch.tensor([partners(pairs, epoch) for epoch in range(epochs)])
    for i in range(len(LABELS)):
        counts = torch.bincount(seen[:, i], minlength=len(LABELS))[others(LABELS, i)].double()
        assert chi_square(counts) < chi_square_limit(len(counts) - 1)


@pytest.mark.parametrize("later", [1, 2, 7, 64])
def test_partners_of_different_epochs_are_independent(later):
    pairs = ClassPairs(Items([0] * 5))  # 4 possible partners each
    seen = torch.tensor([partners(pairs, epoch) for epoch in range(1000 + later)])
    counts = torch.zeros(5, 5, 5)
    for i in range(5):
        counts[i].index_put_((seen[:1000, i], seen[later:, i]), torch.ones(1000), accumulate=True)
    possible = torch.stack([counts[i][others([0] * 5, i)][:, others([0] * 5, i)] for i in range(5)])
    assert chi_square(possible) < chi_square_limit(5 * 15)


def test_partners_of_different_items_are_independent():
    pairs = ClassPairs(Items([0] * 5))
    seen = torch.tensor([partners(pairs, epoch) for epoch in range(2000)])
    counts = torch.zeros(5, 5)
    counts.index_put_((seen[:, 0], seen[:, 1]), torch.ones(2000), accumulate=True)
    possible = counts[others([0] * 5, 0)][:, others([0] * 5, 1)]
    assert chi_square(possible) < chi_square_limit(15)


def test_partners_of_different_seeds_are_independent():
    seen = torch.tensor([partners(ClassPairs(Items([0] * 5), seed=seed)) for seed in range(1001)])
    counts = torch.zeros(5, 5)
    counts.index_put_((seen[:1000, 0], seen[1:, 0]), torch.ones(1000), accumulate=True)
    assert chi_square(counts[1:, 1:]) < chi_square_limit(15)


# --- ClassPairs: seeds and epochs


@laws
@given(labels=labels_with_partners(), seed=seeds, epochs=st.lists(st.integers(0, 2**40), max_size=4))
def test_a_partner_is_a_function_of_seed_epoch_and_index_alone(labels, seed, epochs):
    wanted = [*epochs, 3]
    used, fresh = (ClassPairs(Items(labels), seed=seed) for _ in range(2))
    for epoch in wanted:
        partners(used, epoch)
    order = list(range(len(labels)))
    random.Random(0).shuffle(order)
    used_partners = {i: used.partner(i) for i in order}
    assert [used_partners[i] for i in range(len(labels))] == partners(fresh, wanted[-1])


def test_epochs_differ():
    pairs = ClassPairs(Items([0] * 20))
    assert len({tuple(partners(pairs, epoch)) for epoch in range(50)}) == 50


def test_going_back_to_an_epoch_gives_its_pairs_again():
    pairs = ClassPairs(Items([0] * 20))
    first = [partners(pairs, epoch) for epoch in range(5)]
    assert [partners(pairs, epoch) for epoch in reversed(range(5))] == first[::-1]


def test_seeds_differ():
    assert len({tuple(partners(ClassPairs(Items([0] * 20), seed=seed))) for seed in range(-25, 25)}) == 50


def test_seed_and_epoch_do_not_stand_in_for_each_other():
    assert partners(ClassPairs(Items([0] * 20), seed=1), 2) != partners(ClassPairs(Items([0] * 20), seed=2), 1)


def test_the_first_seed_is_0():
    assert ClassPairs(Items()).seed == PairedBatchSampler(LABELS, 4).seed == 0


def test_the_first_epoch_is_0():
    pairs = ClassPairs(Items([0] * 20))
    assert pairs.epoch == 0
    assert [x_j for _, x_j, _, _ in pairs] == partners(pairs, 0)


def test_the_epoch_is_what_was_set():
    pairs = ClassPairs(Items())
    pairs.set_epoch(2**40)
    assert pairs.epoch == 2**40


def test_global_generators_neither_decide_nor_move():
    torch.manual_seed(1)
    first = partners(ClassPairs(Items([0] * 20)))
    assert torch.equal(torch.get_rng_state(), seeded(1).get_state())
    torch.manual_seed(2)
    assert partners(ClassPairs(Items([0] * 20))) == first


def test_pairs_survive_pickling_with_their_epoch():
    pairs = ClassPairs(Items([0] * 20), seed=5)
    pairs.set_epoch(7)
    assert list(pickle.loads(pickle.dumps(pairs))) == list(pairs)


# --- ClassPairs: samplers, workers, processes


def epochs_of(loader: DataLoader, pairs: ClassPairs, epochs: list[int]) -> list[dict[int, tuple[int, int]]]:
    """Per epoch: index -> (partner, label)."""
    found = []
    for epoch in epochs:
        pairs.set_epoch(epoch)
        found.append({})
        for _, x_j, y, index in loader:
            found[-1].update(zip(index.tolist(), zip(x_j.tolist(), y.tolist(), strict=True), strict=True))
    return found


EPOCHS = [0, 1, 5, 0]  # the last one goes back


def expected_epochs() -> list[dict[int, tuple[int, int]]]:
    pairs = ClassPairs(Items(), seed=3)
    return [dict(enumerate(zip(partners(pairs, epoch), LABELS, strict=True))) for epoch in EPOCHS]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine with two cores
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_persistent_workers_gives_the_same_pairs(workers, shuffle):
    pairs = ClassPairs(Items(), seed=3)
    loader = DataLoader(pairs, 2, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0)
    assert epochs_of(loader, pairs, EPOCHS) == expected_epochs()


def test_set_epoch_reaches_a_persistent_worker_that_was_spawned():
    pairs = ClassPairs(Items(), seed=3)
    loader = DataLoader(pairs, 4, num_workers=1, persistent_workers=True, multiprocessing_context="spawn")
    assert epochs_of(loader, pairs, EPOCHS) == expected_epochs()


def test_a_subset_has_the_pairs_of_the_whole():
    pairs = ClassPairs(Items(), seed=3)
    assert list(Subset(pairs, [7, 2])) == [pairs[7], pairs[2]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_distributed_processes_share_the_items_and_keep_their_partners(shuffle):
    wanted = expected_epochs()
    by_rank = []
    for rank in range(2):
        pairs = ClassPairs(Items(), seed=3)
        sampler = DistributedSampler(pairs, num_replicas=2, rank=rank, shuffle=shuffle)
        by_rank.append(epochs_of(DataLoader(pairs, 3, sampler=sampler), pairs, EPOCHS))
    for first, second, whole in zip(*by_rank, wanted, strict=True):
        assert not first.keys() & second.keys()
        assert first | second == whole


# --- ClassPairs: items


def dicts(image: str, label: str) -> list[dict[str, int]]:
    return [{"id": -1, image: i, label: y} for i, y in enumerate(LABELS)]


@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
@pytest.mark.parametrize("image", ["image", "img", "pixel_values"])
def test_items_that_are_dicts_give_the_same_pairs(image, label):
    assert list(ClassPairs(dicts(image, label))) == list(ClassPairs(Items()))


def test_of_two_images_in_a_dict_the_one_that_a_transform_made_is_taken():
    made = [{**item, "pixel_values": 100 + item["image"]} for item in dicts("image", "label")]
    assert ClassPairs(made)[4][0] == 104


def test_columns_name_image_and_label():
    items = [{**item, "image": None, "label": 0} for item in dicts("photo", "species")]
    assert list(ClassPairs(items, columns=("photo", "species"))) == list(ClassPairs(Items()))


def test_columns_of_an_item_without_the_image_do_not_give_its_label():
    with pytest.raises(ValueError, match=r"item 0 must be \(x, y, ...\) or a dict with an image"):
        ClassPairs(dicts("photo", "species"), columns=("picture", "species"))[0]


def test_items_that_are_dicts_without_a_label_are_paired_by_given_labels():
    assert list(ClassPairs([{"image": i} for i in range(12)], LABELS)) == list(ClassPairs(Items()))


def test_a_target_transform_that_the_found_labels_do_not_know_is_an_error():
    class Transformed(Items):
        def __getitem__(self, i: int) -> tuple[int, Tensor]:
            return i, torch.tensor(self.targets[i] + 7)

    with pytest.raises(ValueError, match=r"item 2 has the label 8, but 1 was found .* give the labels .* as targets="):
        ClassPairs(Transformed())[2]
    assert ClassPairs(Transformed(), targets=LABELS)[2][2] == 1


def test_a_label_that_is_no_integer_is_not_compared():
    class Masks(Items):
        def __getitem__(self, i: int) -> tuple[int, Tensor]:
            return i, torch.zeros(2, 2)

    assert ClassPairs(Masks())[3][0] == 3


@pytest.mark.parametrize(
    ("item", "words"), [(torch.zeros(3, 4, 4), "a Tensor"), ({"photo": 0}, r"a dict of \['photo'\]"), ((), "a tuple")]
)
def test_an_item_without_an_image_is_refused(item, words):
    with pytest.raises(ValueError, match=rf"item 1 must be \(x, y, ...\) or a dict with an image, got {words}"):
        ClassPairs([item] * 4, targets=[0, 0, 1, 1])[1]


# --- labels_of


class Unreadable(Dataset):
    """Images that nobody may load, and attributes."""

    def __init__(self, count: int = len(LABELS), **attributes: Any) -> None:
        self.count = count
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        raise OSError("no image is needed yet")


class Column(Sequence):
    """A column of `datasets.Dataset`: quick as a slice, slow item by item."""

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> Any:
        assert isinstance(key, slice)
        return self.values[key]


class HuggingFace(Unreadable):
    """As much of `datasets.Dataset` as is needed; with its own format a column cannot be read."""

    def __init__(self, columns: dict[str, list[int]], formatted: bool = True) -> None:
        super().__init__(column_names=list(columns))
        self.columns, self.formatted = columns, formatted

    def with_format(self, kind: str | None) -> HuggingFace:
        return HuggingFace(self.columns, kind is not None)

    def __getitem__(self, key: Any) -> Any:
        if self.formatted or not isinstance(key, str):
            raise OSError("no image is needed yet")
        return Column(self.columns[key])


def of_torchvision(kind: type, **attributes: Any) -> Any:
    """A data set of torchvision as it is once its files are read."""
    made = kind.__new__(kind)
    vars(made).update(attributes)
    return made


FILES = [f"{i}.png" for i in range(len(LABELS))]
PIXELS = numpy.zeros((len(LABELS), 2, 2, 3), numpy.uint8)
LABELLED = {
    "targets": Unreadable(targets=LABELS),
    "CIFAR10": of_torchvision(vision.CIFAR10, data=PIXELS, targets=LABELS),
    "MNIST": of_torchvision(vision.MNIST, data=torch.from_numpy(PIXELS), targets=torch.tensor(LABELS)),
    "SVHN": of_torchvision(vision.SVHN, data=PIXELS, labels=numpy.array(LABELS)),
    "STL10": of_torchvision(vision.STL10, data=PIXELS, labels=numpy.array(LABELS, numpy.uint8)),
    "Flowers102": of_torchvision(vision.Flowers102, _image_files=FILES, _labels=LABELS),
    "GTSRB": of_torchvision(vision.GTSRB, _samples=list(zip(FILES, LABELS, strict=True))),
    "samples": Unreadable(samples=list(zip(FILES, LABELS, strict=True))),
    "imgs": Unreadable(imgs=list(zip(FILES, LABELS, strict=True))),
    "ImageData": ImageData(
        torch.zeros(12, 1, 2, 2, dtype=torch.uint8), torch.tensor(LABELS), tuple("abc"), "some", (0.0,), (1.0,), 0, True
    ),
    "TensorDataset": TensorDataset(torch.zeros(12, 3), torch.zeros(12), torch.tensor(LABELS, dtype=torch.int32)),
    "ConcatDataset": ConcatDataset([Unreadable(5, targets=LABELS[:5]), list(enumerate(LABELS[5:]))]),
    "Subset": Subset(Unreadable(14, targets=[8, *LABELS, 9]), range(1, 13)),
    "nested Subset": Subset(Subset(Unreadable(13, targets=[8, *LABELS]), range(12, 0, -1)), list(range(11, -1, -1))),
    "indices in a tensor": Subset(Unreadable(13, labels=[8, *LABELS]), torch.arange(1, 13)),
    "wrapper": Unreadable(dataset=Unreadable(labels=LABELS)),
    "wrapped Subset": Unreadable(dataset=Subset(Unreadable(13, targets=[8, *LABELS]), range(1, 13))),
    "list": list(enumerate(LABELS)),
    "tuple of longer items": tuple((i, y, "more") for i, y in enumerate(LABELS)),
    "list of dicts": dicts("image", "label"),
    "column label": HuggingFace({"image": FILES, "label": LABELS, "fine_label": [0] * 12}),
    "column labels": HuggingFace({"img": FILES, "labels": LABELS}),
    "column fine_label": HuggingFace({"coarse_label": [0] * 12, "fine_label": LABELS}),
    "Subset of columns": Subset(HuggingFace({"label": LABELS}), range(12)),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_are_found_without_loading_an_image(kind):
    found = labels_of(LABELLED[kind])
    assert (found.tolist(), found.dtype, found.device.type) == (LABELS, torch.int64, "cpu")


@pytest.mark.parametrize("kind", LABELLED)
def test_pairs_are_built_and_batched_by_the_labels_that_are_found(kind):
    assert [ClassPairs(LABELLED[kind]).partner(i) for i in range(12)] == partners(ClassPairs(Items()))
    assert list(PairedBatchSampler(LABELLED[kind], 4)) == list(PairedBatchSampler(LABELS, 4))


def test_labels_of_an_image_folder(tmp_path):
    for i, y in enumerate(LABELS):
        (tmp_path / "abc"[y]).mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "abc"[y] / f"{i}.png")
    folder = vision.ImageFolder(str(tmp_path))
    assert labels_of(folder).tolist() == sorted(LABELS)
    del folder.targets  # older ones have `samples` alone
    assert labels_of(folder).tolist() == sorted(LABELS)


def test_labels_of_the_parts_of_a_random_split():
    whole = list(enumerate(LABELS))
    for part in random_split(whole, [7, 5], generator=seeded()):
        assert labels_of(part).tolist() == [y for _, y in part]


@pytest.mark.parametrize(
    "kind",
    [
        tuple,
        numpy.array,
        lambda x: numpy.array(x, numpy.int32),
        lambda x: numpy.array(x, numpy.uint16),
        lambda x: numpy.array(x, numpy.uint8),
        lambda x: list(numpy.array(x)),
        lambda x: list(torch.tensor(x)),
        lambda x: torch.tensor(x, dtype=torch.uint8),
        lambda x: torch.tensor(x, dtype=torch.int32),
    ],
)
def test_labels_of_every_integer_kind_are_read(kind):
    assert labels_of(Unreadable(targets=kind(LABELS))).tolist() == LABELS
    assert list(PairedBatchSampler(kind(LABELS), 4)) == list(PairedBatchSampler(LABELS, 4))


def test_columns_name_the_label_of_a_data_set_in_columns():
    data = HuggingFace({"label": [0] * 12, "coarse_label": LABELS})
    assert labels_of(data, ("image", "coarse_label")).tolist() == LABELS
    assert labels_of(Subset(data, [2, 0]), ("image", "coarse_label")).tolist() == [1, 2]


@pytest.mark.parametrize("kind", [None, "torch", "numpy"])
def test_a_hugging_face_data_set_is_paired_in_every_format(kind):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": list(range(12)), "label": LABELS}).with_format(kind)
    assert labels_of(data).tolist() == LABELS
    found = [(int(x_i), int(x_j), y, i) for x_i, x_j, y, i in ClassPairs(data)]
    assert found == list(ClassPairs(Items()))
    assert labels_of(data.select([3, 2])).tolist() == [LABELS[3], LABELS[2]]
    assert list(PairedBatchSampler(data["label"], 4)) == list(PairedBatchSampler(LABELS, 4))


def test_a_hugging_face_data_set_is_paired_under_a_transform_of_its_images():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": list(range(12)), "label": LABELS})
    data = data.with_transform(lambda rows: {**rows, "pixel_values": [100 + x for x in rows["image"]]})
    expected = [(100 + x_i, 100 + x_j, y, i) for x_i, x_j, y, i in ClassPairs(Items())]
    assert list(ClassPairs(data)) == expected


def test_items_that_are_dicts_go_through_a_loader():
    loader = DataLoader(ClassPairs(dicts("image", "label")), 12)
    ((x_i, x_j, y, i),) = loader
    assert x_i.tolist() == i.tolist() == list(range(12))
    assert x_j.tolist() == partners(ClassPairs(Items())) and y.tolist() == LABELS


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[tuple[int, int]]:
        raise OSError("no image is needed yet")


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (DataLoader(Items()), r"is a DataLoader, .* give its data set, loader\.dataset"),
        ({"train": Items(), "test": Items()}, r"is a dict of \['train', 'test'\]; give one of these"),
        (Endless(), "must be map-style, with a length, got Endless"),
        (Unreadable(), r"Unreadable has no labels .* give the labels themselves"),
        (Unreadable(5, targets=LABELS), "12 labels found for the 5 items of Unreadable; give the labels themselves"),
        (Unreadable(5, dataset=Items()), "12 labels found for the 5 items"),
        (Unreadable(samples=FILES), "items must be .* with a label, got a str; give the labels themselves"),
        ([{"image": 0, "name": 0}], r"items must be .* got a dict of \['image', 'name'\]"),
        (HuggingFace({"image": FILES, "species": LABELS}), r"no column of labels among \['image', 'species'\]"),
    ],
)
def test_a_data_set_whose_labels_are_not_found_is_refused(dataset, words):
    for use in (labels_of, ClassPairs, lambda data: PairedBatchSampler(data, 2)):
        with pytest.raises(ValueError, match=f"dataset.* {words}") as caught:
            use(dataset)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [["cat"] * 12, [None] * 12, torch.zeros(12), torch.zeros(12, 1).long()], ids=str)
def test_labels_that_are_found_but_are_no_integers_are_refused(labels):
    with pytest.raises(ValueError, match="labels must be N integers, got"):
        labels_of(Unreadable(targets=labels))


@pytest.mark.parametrize("columns", ["image", ("image",), ("a", "b", "c"), ("image", 1)], ids=repr)
def test_columns_that_are_not_two_names_are_refused(columns):
    for use, targets in ((ClassPairs, ()), (ClassPairs, (LABELS,)), (labels_of, ())):
        with pytest.raises(ValueError, match="columns must be the two names") as caught:
            use(Items(), *targets, columns=columns)
        assert repr(columns) in str(caught.value)


# --- ClassPairs: bad input


@pytest.mark.parametrize("targets", [None, []])
def test_an_empty_data_set_is_refused(targets):
    with pytest.raises(ValueError, match="dataset is empty"):
        ClassPairs(Items([]), targets=targets)


@pytest.mark.parametrize("count", [0, len(LABELS) - 1, len(LABELS) + 1])
def test_a_wrong_number_of_labels_is_refused(count):
    with pytest.raises(ValueError, match=f"targets has {count} labels for a data set of {len(LABELS)} items"):
        ClassPairs(Items(), targets=[0] * count)


def test_a_class_with_a_single_image_is_refused_by_its_label():
    with pytest.raises(ValueError, match=r"class 7 has a single image.*\(1 such classes\)"):
        ClassPairs(Items([0, 0, 7, 3, 3]))


def test_all_classes_with_a_single_image_are_counted():
    with pytest.raises(ValueError, match=r"class 3 has a single image.*\(3 such classes\)"):
        ClassPairs(Items([9, 0, 5, 0, 3]))


@pytest.mark.parametrize(
    "targets", [[0.0, 0.0], [0.5, NAN], [[0, 0], [1, 1]], [1j, 1j], ["cat", "cat"], [0, None]], ids=str
)
def test_labels_that_are_no_integers_are_refused(targets):
    with pytest.raises(ValueError, match="labels must be N integers, got"):
        ClassPairs([(0, 0), (1, 0)], targets=targets)


@pytest.mark.parametrize("seed", [1.5, NAN, None, "1"], ids=repr)
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer") as caught:
        ClassPairs(Items(), seed=seed)
    assert repr(seed) in str(caught.value)


@pytest.mark.parametrize("epoch", [-1, 1.5, 1.0, NAN, "1", None], ids=repr)
def test_a_bad_epoch_is_refused_and_the_old_one_stays(epoch):
    pairs = ClassPairs(Items())
    pairs.set_epoch(4)
    with pytest.raises(ValueError, match="epoch must be an integer >= 0") as caught:
        pairs.set_epoch(epoch)
    assert repr(epoch) in str(caught.value)
    assert pairs.epoch == 4


# --- same_class_partner


@pytest.mark.filterwarnings("ignore:.*have no other of their class")
@laws
@given(labels=st.lists(st.integers(-3, 3), max_size=24), seed=st.integers(0, 2**32))
def test_a_sample_s_partner_is_another_of_its_class_or_itself_if_there_is_none(labels, seed):
    found = same_class_partner(torch.tensor(labels, dtype=torch.int64), seeded(seed))
    assert found.dtype == torch.int64
    assert found.shape == (len(labels),)
    for i, j in enumerate(found.tolist()):
        assert j in (others(labels, i) or [i])


def test_partners_in_a_batch_are_uniform_and_all_reached():
    labels, generator = torch.tensor(LABELS), seeded()
    seen = torch.stack([same_class_partner(labels, generator) for _ in range(2000)])
    for i in range(len(LABELS)):
        counts = torch.bincount(seen[:, i], minlength=len(LABELS))[others(LABELS, i)].double()
        assert chi_square(counts) < chi_square_limit(len(counts) - 1)


def test_samples_of_a_batch_choose_independently():
    labels, generator = torch.zeros(5, dtype=torch.int64), seeded()
    seen = torch.stack([same_class_partner(labels, generator) for _ in range(2000)])
    counts = torch.zeros(5, 5)
    counts.index_put_((seen[:, 0], seen[:, 1]), torch.ones(2000), accumulate=True)
    possible = counts[others([0] * 5, 0)][:, others([0] * 5, 1)]
    assert chi_square(possible) < chi_square_limit(15)


def test_the_same_seed_gives_the_same_partners():
    labels = torch.zeros(100, dtype=torch.int64)
    assert torch.equal(same_class_partner(labels, seeded(1)), same_class_partner(labels, seeded(1)))
    assert not torch.equal(same_class_partner(labels, seeded(1)), same_class_partner(labels, seeded(2)))


def test_without_a_generator_torch_s_global_one_decides():
    labels = torch.zeros(100, dtype=torch.int64)

    def found(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return same_class_partner(labels)

    assert torch.equal(found(1), found(1))
    assert not torch.equal(found(1), found(2))


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    same_class_partner(torch.tensor(LABELS), seeded())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_of_every_integer_dtype_serve(dtype):
    expected = same_class_partner(torch.tensor(LABELS), seeded())
    assert torch.equal(same_class_partner(torch.tensor(LABELS, dtype=dtype), seeded()), expected)


def test_labels_of_the_batch_are_unchanged():
    labels = torch.tensor(LABELS)
    same_class_partner(labels, seeded())
    assert labels.tolist() == LABELS


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.tensor(1)], ids=str)
def test_labels_of_a_batch_that_are_no_list_of_integers_are_refused(labels):
    with pytest.raises(ValueError, match="labels must be N integers, got") as caught:
        same_class_partner(labels)
    assert f"{labels.dtype} of shape {tuple(labels.shape)}" in str(caught.value)


@needs_cuda
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_partners_of_labels_on_a_gpu(where):
    labels = torch.tensor(LABELS, device="cuda")
    found = same_class_partner(labels, torch.Generator(where).manual_seed(0))
    assert found.is_cuda
    assert all(j in others(LABELS, i) for i, j in enumerate(found.tolist()))
    if where == "cpu":
        assert torch.equal(found.cpu(), same_class_partner(labels.cpu(), seeded()))


def test_same_class_partner_compiles_without_a_break(fresh_compiler):
    compiled = torch.compile(same_class_partner, backend="aot_eager", fullgraph=True)
    labels = torch.tensor([*LABELS, 99])
    torch.manual_seed(4)
    expected = same_class_partner(labels)
    torch.manual_seed(4)
    assert torch.equal(compiled(labels), expected)


# --- the warning of lone samples


@pytest.fixture
def unwarned(monkeypatch):
    """As in a process that was not warned yet, with no warning lost."""
    monkeypatch.setattr(pairs_module, "_warned", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


LONELY = torch.arange(100)[torch.arange(110) % 100]  # 90 of 110 are alone


def test_lone_samples_are_told_of_once_where_the_call_is(unwarned):
    for _ in range(3):
        same_class_partner(LONELY)
    (warning,) = unwarned
    assert warning.category is UserWarning and warning.filename == __file__
    assert str(warning.message).startswith("82% of the 110 samples") and "PairedBatchSampler" in str(warning.message)


def test_sixteen_lone_samples_are_told_of(unwarned):
    same_class_partner(torch.arange(16))
    assert [str(warning.message)[:4] for warning in unwarned] == ["100%"]


def test_a_process_begins_unwarned():
    spec = importlib.util.spec_from_file_location("pairs_anew", pairs_module.__file__)
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    with pytest.warns(UserWarning, match="have no other of their class"):
        anew.same_class_partner(LONELY)


@pytest.mark.parametrize(
    "labels",
    [
        torch.arange(15),  # an example
        torch.cat([torch.zeros(18), torch.tensor([1, 2])]).long(),  # a tenth
        torch.arange(100) % 50,
    ],
    ids=["15 alone", "2 of 20 alone", "none of 100 alone"],
)
def test_few_lone_samples_are_not_told_of(unwarned, labels):
    same_class_partner(labels)
    assert not unwarned


def test_a_data_set_s_partners_do_not_warn_of_lone_samples(unwarned):
    epoch_partners(LONELY, 0, 0)
    assert not unwarned


def test_inside_torch_compile_lone_samples_are_not_looked_for(unwarned, fresh_compiler):
    torch.compile(same_class_partner, backend="aot_eager", fullgraph=True)(LONELY)
    assert not [warning for warning in unwarned if "of their class" in str(warning.message)]


@needs_cuda
def test_lone_samples_on_a_gpu_are_not_looked_for(unwarned):
    torch.cuda.set_sync_debug_mode("error")
    try:
        same_class_partner(LONELY.cuda(non_blocking=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # That mode warns of itself: it is a prototype.
    assert not [warning for warning in unwarned if "of their class" in str(warning.message)]


def test_lone_samples_on_another_device_than_the_cpu_are_not_looked_for(unwarned):
    before = torch.get_rng_state()
    assert same_class_partner(LONELY.to("meta")).is_meta  # whose values cannot be looked at
    assert not unwarned
    assert torch.equal(torch.get_rng_state(), before)  # and the draw is made there, too


# --- other_class_partner


@st.composite
def labels_of_several_classes(draw: st.DrawFn) -> list[int]:
    labels = draw(st.lists(st.integers(-3, 3), min_size=2, max_size=24))
    return labels if len(set(labels)) > 1 else [*labels, labels[0] + 1]


@laws
@given(labels=labels_of_several_classes(), seed=st.integers(0, 2**32))
def test_an_other_partner_is_of_another_class(labels, seed):
    found = other_class_partner(torch.tensor(labels), seeded(seed))
    assert found.dtype == torch.int64
    assert all(labels[j] != labels[i] for i, j in enumerate(found.tolist()))


def test_other_partners_are_uniform_over_all_samples_of_all_other_classes():
    labels, generator = torch.tensor(LABELS), seeded()
    seen = torch.stack([other_class_partner(labels, generator) for _ in range(2000)])
    for i, label in enumerate(LABELS):
        counts = torch.bincount(seen[:, i], minlength=len(LABELS))[labels != label].double()
        assert chi_square(counts) < chi_square_limit(len(counts) - 1)


def test_samples_choose_other_partners_independently():
    generator = seeded()
    seen = torch.stack([other_class_partner(torch.tensor([0, 0, 1, 1, 1]), generator) for _ in range(2000)])
    counts = torch.zeros(5, 5)
    counts.index_put_((seen[:, 0], seen[:, 1]), torch.ones(2000), accumulate=True)
    assert chi_square(counts[2:, 2:]) < chi_square_limit(8)


def test_other_partners_are_a_function_of_the_generator_alone():
    labels = torch.arange(100) % 7
    before = torch.get_rng_state()
    first = other_class_partner(labels, seeded(1))
    assert torch.equal(first, other_class_partner(labels, seeded(1)))
    assert not torch.equal(first, other_class_partner(labels, seeded(2)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first, other_class_partner(labels))


@pytest.mark.parametrize("labels", [[4], [4, 4, 4]])
def test_other_partners_of_a_single_class_are_refused(labels):
    with pytest.raises(ValueError, match="labels are all of one class, 4"):
        other_class_partner(torch.tensor(labels))


def test_other_partners_are_drawn_with_62_bits(monkeypatch):
    halves = iter([torch.full((6,), 3), torch.full((6,), 1)])  # the upper one first
    monkeypatch.setattr(pairs_module, "_draw", lambda labels, generator: next(halves))
    labels = torch.tensor([0, 1, 1, 1, 1, 1])  # the first one has 5 others, which lie behind it
    assert other_class_partner(labels)[0] == 1 + (3 * 2**31 + 1) % 5


def test_other_partners_of_no_labels_are_none():
    assert other_class_partner(torch.tensor([], dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64)], ids=str)
def test_other_partners_of_labels_that_are_no_list_of_integers_are_refused(labels):
    with pytest.raises(ValueError, match="labels must be N integers, got"):
        other_class_partner(labels)


def test_other_class_partner_compiles_without_a_break(fresh_compiler):
    compiled = torch.compile(other_class_partner, backend="aot_eager", fullgraph=True)
    labels = torch.tensor(LABELS)
    torch.manual_seed(4)
    expected = other_class_partner(labels)
    torch.manual_seed(4)
    assert torch.equal(compiled(labels), expected)
    with pytest.raises((IndexError, RuntimeError)):  # never a partner of the same class
        compiled(torch.zeros_like(labels))


@needs_cuda
def test_other_partners_of_labels_on_a_gpu():
    labels = torch.tensor(LABELS, device="cuda")
    found = other_class_partner(labels, torch.Generator("cuda").manual_seed(0))
    assert found.is_cuda and (labels[found] != labels).all()


# --- PairedBatchSampler


@st.composite
def sampled(draw: st.DrawFn) -> tuple[list[int], dict[str, int]]:
    """Labels and arguments for at least one batch of every process."""
    per_class = draw(st.integers(2, 4))
    sizes = draw(st.lists(st.integers(per_class, 14), min_size=1, max_size=8))
    groups = sum(size // per_class for size in sizes)
    processes = draw(st.integers(1, min(3, groups)))
    of_batch = draw(st.integers(1, groups // processes))
    labels = draw(st.permutations([label for label, size in enumerate(sizes) for _ in range(size)]))
    return labels, {"batch_size": of_batch * per_class, "per_class": per_class, "num_replicas": processes}


def batches_of(labels: list[int], epoch: int = 0, num_replicas: int = 1, **options: Any) -> list[list[list[int]]]:
    """Of every process its batches."""
    samplers = [PairedBatchSampler(labels, **options, num_replicas=num_replicas, rank=r) for r in range(num_replicas)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def all_batches(labels: list[int], epoch: int = 0, **options: Any) -> list[list[int]]:
    return list(chain.from_iterable(batches_of(labels, epoch, **options)))


def floor_and_ceiling(a: int, b: int) -> set[int]:
    return {a // b, -(-a // b)}


@laws
@given(case=sampled(), seed=seeds, epoch=st.integers(0, 2**40))
def test_every_image_of_a_batch_has_a_partner_in_it(case, seed, epoch):
    labels, options = case
    for batch in all_batches(labels, epoch, seed=seed, **options):
        assert len(batch) == options["batch_size"]
        assert all(count % options["per_class"] == 0 for count in Counter(labels[i] for i in batch).values())
        assert all(type(i) is int for i in batch)


@laws
@given(case=sampled(), seed=seeds, epoch=st.integers(0, 2**40))
def test_an_epoch_visits_no_image_twice_over_all_processes(case, seed, epoch):
    labels, options = case
    of_process = batches_of(labels, epoch, seed=seed, **options)
    seen = [i for batches in of_process for batch in batches for i in batch]
    assert len(seen) == len(set(seen)) and set(seen) <= set(range(len(labels)))
    assert {len(batches) for batches in of_process} == {len(PairedBatchSampler(labels, **options))}


@laws
@given(case=sampled(), seed=seeds)
def test_the_groups_of_a_class_are_spread_evenly_over_the_batches(case, seed):
    labels, options = case
    batches = all_batches(labels, seed=seed, **options)
    groups = Counter(labels[i] for batch in batches for i in batch)
    for batch in batches:
        held = Counter(labels[i] for i in batch)
        for label, images in groups.items():
            per_class = options["per_class"]
            assert held[label] // per_class in floor_and_ceiling(images // per_class, len(batches))


@laws
@given(case=sampled(), seed=seeds)
def test_what_an_epoch_leaves_out(case, seed):
    labels, options = case
    per_class = options["per_class"]
    batches = all_batches(labels, seed=seed, **options)
    whole = {label: size // per_class for label, size in Counter(labels).items()}
    all_groups, kept = sum(whole.values()), len(batches) * options["batch_size"] // per_class
    assert all_groups - kept < options["batch_size"] // per_class * options["num_replicas"]
    seen = Counter(labels[i] for batch in batches for i in batch)
    for label, groups in whole.items():
        assert seen[label] // per_class in floor_and_ceiling(groups * kept, all_groups)


@laws
@given(
    classes=st.integers(2, 12),
    groups=st.integers(1, 12),
    per_class=st.integers(2, 3),
    of_batch=st.integers(1, 12),
    processes=st.integers(1, 3),
    seed=seeds,
)
def test_of_classes_of_one_size_a_batch_has_as_many_as_groups(classes, groups, per_class, of_batch, processes, seed):
    of_batch = min(of_batch, classes, max(1, classes * groups // processes))
    processes = min(processes, classes * groups // of_batch)
    labels = [i % classes for i in range(classes * groups * per_class)]
    options = {"batch_size": of_batch * per_class, "per_class": per_class, "num_replicas": processes}
    for batch in all_batches(labels, seed=seed, **options):
        assert set(Counter(labels[i] for i in batch).values()) == {per_class}


def test_a_class_that_fills_a_whole_row_goes_on_where_there_is_least_of_it():
    labels = (
        [0] * 2 + [1] * 8 + [2] * 2
    )  # 6 groups in 3 rows of 2: where class 1 is the middle one, it has the second row
    for seed in range(20):
        for batch in PairedBatchSampler(labels, 6, seed=seed):
            assert Counter(labels[i] for i in batch)[1] == 4


def test_where_all_groups_fill_batches_every_image_is_visited():
    labels = [i % 5 for i in range(60)]
    assert sorted(i for batch in PairedBatchSampler(labels, 12) for i in batch) == list(range(60))


def test_fewer_classes_than_groups_come_several_times_in_a_batch():
    labels = [i % 3 for i in range(90)]
    for batch in PairedBatchSampler(labels, 16):
        assert sorted(Counter(labels[i] for i in batch).values()) == [4, 6, 6]


def epochs_of_batches(labels: list[int], epochs: int, **options: Any) -> list[list[list[int]]]:
    sampler, found = PairedBatchSampler(labels, **options), []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def test_all_images_of_a_class_are_visited_equally_often():
    labels = [0] * 3 + [1] * 5 + [2] * 4  # 1, 2 and 2 groups: 3 of an epoch's images are left out, or 4 of 6 groups
    visits = Counter(i for epoch in epochs_of_batches(labels, 2000, batch_size=4) for batch in epoch for i in batch)
    for label in range(3):
        counts = torch.tensor([float(visits[i]) for i in range(12) if labels[i] == label])
        assert chi_square(counts) < chi_square_limit(len(counts) - 1)


def test_classes_are_visited_in_the_proportion_of_their_groups():
    labels = [0] * 4 + [1] * 8 + [2] * 2  # 2, 4 and 1 groups, of which 6 are used
    epochs = epochs_of_batches(labels, 3000, batch_size=4)
    used = Counter(labels[i] for epoch in epochs for batch in epoch for i in batch)
    for label, groups in ((0, 2), (1, 4), (2, 1)):  # a class misses its share by less than one group in an epoch
        assert abs(used[label] / 2 - 3000 * groups * 6 / 7) < 5 * 0.5 * 3000**0.5


def test_all_images_of_a_class_are_partners_equally_often():
    epochs = epochs_of_batches([0] * 6 + [1] * 6, 2000, batch_size=2)
    groups = Counter(frozenset(batch) for epoch in epochs for batch in epoch)
    for members in (range(6), range(6, 12)):
        counts = torch.tensor([float(groups[frozenset(two)]) for two in combinations(members, 2)])
        assert chi_square(counts) < chi_square_limit(14)


def test_all_classes_meet_in_a_batch_equally_often():
    epochs = epochs_of_batches([i % 6 for i in range(12)], 3000, batch_size=4)
    met = Counter(frozenset(i % 6 for i in epoch[0]) for epoch in epochs)
    counts = torch.tensor([float(met[frozenset(two)]) for two in combinations(range(6), 2)])
    assert chi_square(counts) < chi_square_limit(14)


def test_classes_that_follow_one_over_a_row_s_end_are_dealt_to_all_batches_alike(monkeypatch):
    sampler = PairedBatchSampler([i // 6 for i in range(42)], 6)
    dealt = torch.arange(42).view(21, 2), torch.arange(21) // 3  # rows 0001112, 2233344, 4555666
    monkeypatch.setattr(sampler, "_groups", lambda kept, generator: dealt)
    with_class_4 = 0
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        (batch,) = (batch for batch in sampler if 12 in batch)  # it has the first row's group of class 2
        (second,) = {i // 6 for i in batch if 18 <= i < 28}  # and one of these five of the second row
        with_class_4 += second == 4
    assert abs(with_class_4 - 2000 * 2 / 5) < 5 * (2000 * 2 / 5 * 3 / 5) ** 0.5


@pytest.mark.parametrize("place", range(3))
def test_every_class_comes_at_every_place_of_a_batch(place):
    labels = [i % 6 for i in range(240)]
    assert {labels[batch[2 * place]] for batch in PairedBatchSampler(labels, 6)} == set(range(6))


def test_every_class_comes_early_and_late_in_an_epoch():
    labels = [i % 6 for i in range(240)]
    batches = list(PairedBatchSampler(labels, 6))
    for part in (batches[:20], batches[20:]):
        counts = Counter(labels[i] for batch in part for i in batch)
        assert min(counts[label] for label in range(6)) > 4


# Written down once, as for the partners of an epoch.
@pytest.mark.parametrize(
    ("batch_size", "seed", "epoch", "expected"),
    [
        (6, 0, 0, [[3, 1, 19, 18, 12, 10], [17, 16, 4, 2, 7, 0], [15, 13, 5, 8, 9, 11]]),
        (6, 3, 7, [[13, 16, 12, 11, 4, 2], [10, 9, 14, 15, 7, 0], [5, 3, 18, 19, 1, 8]]),
        (4, 1, 2, [[5, 3, 11, 10], [17, 13, 4, 2], [19, 18, 8, 6], [16, 14, 9, 12]]),  # a group is left out
    ],
)
def test_the_batches_of_an_epoch_are_what_they_always_were(batch_size, seed, epoch, expected):
    sampler = PairedBatchSampler([0] * 9 + [1] * 4 + [2] * 5 + [3] * 2, batch_size, seed=seed)
    sampler.set_epoch(epoch)
    assert list(sampler) == expected


def test_batches_are_a_function_of_seed_and_epoch_alone():
    labels = [i % 6 for i in range(48)]
    sampler = PairedBatchSampler(labels, 8, seed=5)
    found = {}
    for epoch in (0, 1, 2**40, 1):
        sampler.set_epoch(epoch)
        fresh = PairedBatchSampler(labels, 8, seed=5)
        fresh.set_epoch(epoch)
        assert list(sampler) == list(sampler) == list(fresh) == found.setdefault(epoch, list(fresh))
    assert len({str(batches) for batches in found.values()}) == 3
    assert list(PairedBatchSampler(labels, 8, seed=6)) != found[0] == list(PairedBatchSampler(labels, 8, seed=5))


def test_batches_leave_the_global_generator_alone():
    torch.manual_seed(1)
    list(PairedBatchSampler(LABELS, 4))
    assert torch.equal(torch.get_rng_state(), seeded(1).get_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_s_batches_have_a_partner_for_every_image(workers):
    data = list(enumerate(i % 10 for i in range(200)))
    sampler = PairedBatchSampler(data, 20, seed=1)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    assert len(loader) == 10
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected, seen = list(sampler), []
        for x, y in loader:
            assert (same_class_partner(y) != torch.arange(20)).all()
            seen.append(x.tolist())
        assert seen == expected


def test_a_sampler_survives_pickling_with_its_epoch():
    sampler = PairedBatchSampler(LABELS, 4)
    sampler.set_epoch(7)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


def test_processes_are_found_from_torch_distributed(monkeypatch):
    labels = [i % 6 for i in range(48)]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert list(PairedBatchSampler(labels, 8)) == batches_of(labels, batch_size=8, num_replicas=3)[1]
    assert list(PairedBatchSampler(labels, 8, num_replicas=1, rank=0)) == batches_of(labels, batch_size=8)[0]


def test_accelerate_can_share_out_the_batches_itself():
    sampler = PairedBatchSampler([i % 6 for i in range(60)], 8, num_replicas=1, rank=0)
    shards = [list(BatchSamplerShard(sampler, 2, rank)) for rank in range(2)]
    assert len(sampler) == 7 and [len(shard) for shard in shards] == [3, 3]
    assert sorted(shards[0] + shards[1]) == sorted(list(sampler)[:6])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 4.0}, "batch_size must be an integer >= 1, got 4.0"),
        ({"batch_size": 5}, "batch_size must be a multiple of per_class, 2, got 5"),
        ({"batch_size": 14}, "batch_size 14 is too large: 12 images have 5 groups of 2 .* 1 x 7 are needed"),
        ({"batch_size": 4, "num_replicas": 3}, "batch_size 4 is too large: .* 3 x 2 are needed"),
        ({"per_class": 1}, "per_class must be an integer >= 2, got 1"),
        ({"per_class": NAN}, "per_class must be an integer >= 2, got nan"),
        ({"per_class": 4}, r"labels: class 1 has 3 images, fewer than per_class, 4 \(1 such classes\)"),
        ({"labels": [0, 0, 7, 3, 3]}, "labels: class 7 has a single image"),
        ({"labels": []}, "labels are empty"),
        ({"labels": [[0, 0], [1, 1]], "batch_size": 2}, "labels: class 0 has a single image"),
        ({"labels": torch.zeros(4)}, "labels must be N integers, got torch.float32"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"num_replicas": 0}, "num_replicas must be an integer >= 1, got 0"),
        ({"rank": -1}, "rank must be an integer >= 0, got -1"),
        ({"num_replicas": 2, "rank": 2}, "rank must lie below num_replicas, 2, got 2"),
        ({"rank": 1}, "rank must lie below num_replicas, 1, got 1"),
    ],
    ids=str,
)
def test_impossible_arguments_of_the_sampler_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PairedBatchSampler(**{"labels": LABELS, "batch_size": 4, **options})


@pytest.mark.parametrize("epoch", [-1, 1.5, NAN, "1", None], ids=repr)
def test_a_bad_epoch_of_the_sampler_is_refused_and_the_old_one_stays(epoch):
    sampler = PairedBatchSampler(LABELS, 4)
    sampler.set_epoch(4)
    with pytest.raises(ValueError, match="epoch must be an integer >= 0"):
        sampler.set_epoch(epoch)
    assert sampler.epoch == 4
