"""Partners of the same class: laws, distributions, epochs, workers, processes, and every bad input named.

An item of the data set is its own index, so that a pair shows which items it was made of.
"""

from __future__ import annotations

import math
import pickle
import random
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from psd import ClassPairs, same_class_partner

LABELS = [2, 0, 1, 0, 2, 2, 0, 1, 2, 0, 0, 1]  # 5, 3 and 4 of them
NAN = float("nan")

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


# --- ClassPairs: bad input


def test_a_data_set_without_targets_is_refused():
    with pytest.raises(ValueError, match=r"targets: the data set has no attribute `targets`; give the labels"):
        ClassPairs([(0, 0), (1, 0)])


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
