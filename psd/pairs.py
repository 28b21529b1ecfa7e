"""Partners of the same class: in a data set (`ClassPairs`), inside a batch (`same_class_partner`), and batches that
hold them (`PairedBatchSampler`). For controls, partners of another class (`other_class_partner`).

This file needs torch alone and can be lifted into another project as it stands.
"""

from __future__ import annotations

import hashlib
import operator
import reprlib
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

# Names of image and label in items that are dicts; "pixel_values" is what a transform makes of the other images.
COLUMNS = (("pixel_values", "image", "img"), ("label", "labels", "fine_label"))


class ClassPairs(Dataset[tuple[Any, Any, int, int]]):
    """A map-style data set of same-class pairs: i -> (x_i, x_j, y_i, i) with j != i and y_j = y_i.

    The partner j is uniform over the rest of the class and a function of (seed, epoch, i) alone. So any sampler
    and any number of workers or processes gives the same pairs, and going back to an epoch gives its pairs again.
    They are the pairs of `psd.train` on the CPU with the same seed. Call `set_epoch(e)` before each epoch: it also
    reaches workers that persist.

    Args:
        dataset: map-style, item = (x, y, ...) or a dict; each of the two images goes through the data set's own
            transform.
        targets: N integer labels; those that `labels_of` finds if None.
        seed: any integer.
        columns: where items are dicts, the names of image and label. If None, the first that an item has of
            "pixel_values", "image", "img" and of "label", "labels", "fine_label".

    Raises:
        ValueError: empty data, labels that are not found, do not fit the data set or are no integers, a class with
            one image, a seed that is no integer. From an item: no image in it, or a label of its own that is not the
            one that was found (a data set with a `target_transform`: give its labels as targets).

    >>> data = [(f"image {i}", i % 2) for i in range(6)]
    >>> x_i, x_j, y, i = ClassPairs(data)[0]
    >>> x_i, y, i, x_j in ("image 2", "image 4")
    ('image 0', 0, 0, True)
    """

    def __init__(
        self,
        dataset: Any,
        targets: Sequence[int] | Tensor | None = None,
        seed: int = 0,
        *,
        columns: tuple[str, str] | None = None,
    ) -> None:
        _check_columns(columns)
        self.dataset, self.columns = dataset, columns
        self._found = targets is None
        self.targets = labels_of(dataset, columns) if targets is None else _labels(targets).cpu()
        if not _is_integer(seed):
            raise ValueError(f"seed must be an integer, got {seed!r}")
        self.seed = int(seed)
        if len(self.targets) != len(dataset):
            raise ValueError(f"targets has {len(self.targets)} labels for a data set of {len(dataset)} items")
        if len(self.targets) == 0:
            raise ValueError("dataset is empty: there is nothing to pair")
        _refuse_small_classes(self.targets, "targets", 2)
        # In shared memory, so that workers started earlier see a later set_epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._drawn: tuple[int, Tensor] | None = None  # an epoch and its partners, drawn once in each process

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (an integer >= 0) whose pairs are given from now on, in every worker."""
        _check_epoch(epoch)
        self._epoch.fill_(epoch)

    def partner(self, i: int) -> int:
        """Index of the partner of item i (0 <= i < N) in the present epoch."""
        epoch = self.epoch
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, epoch_partners(self.targets, self.seed, epoch)
        return int(self._drawn[1][i])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, Any, int, int]:
        i = range(len(self))[i]  # IndexError past the end; negative indices count from it
        return self._image(i), self._image(self.partner(i)), int(self.targets[i]), i

    def _image(self, i: int) -> Any:
        item = self.dataset[i]
        image, label = _part(item, 0, self.columns), _part(item, 1, self.columns)
        if image is None:
            raise ValueError(
                f"dataset: item {i} must be (x, y, ...) or a dict with an image, got {_outline(item)}; the names of a "
                "dict are given by columns=(image, label)"
            )
        if self._found and _is_index(label) and operator.index(label) != self.targets[i]:
            raise ValueError(
                f"dataset: item {i} has the label {operator.index(label)}, but {int(self.targets[i])} was found for it "
                "without loading it; give the labels of the items as targets=[...]"
            )
        return image


def epoch_partners(labels: Sequence[int] | Tensor, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """The partner of every image of a data set in one epoch: a function of (seed, epoch) and of the device's kind.

    Args:
        labels: (N,) integers.
        seed, epoch: any integers.
        device: where the draw is made; a GPU draws other numbers than a CPU.

    Returns:
        (N,) int64 on `device`, each uniform over the rest of the class; an image alone in its class gets itself.

    >>> epoch_partners([7, 3, 7, 3], seed=0, epoch=5).tolist()
    [2, 3, 0, 1]
    """
    generator = torch.Generator(device).manual_seed(_seed_for(seed, "partners", epoch))
    return _same_class(_labels(labels).to(device), generator)


def same_class_partner(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For every sample of a batch, the index of another sample of its class, uniform over them.

    Where more than a tenth of 16 labels or more have no other of their class, a UserWarning says so, once in a
    process. Only labels on the CPU are looked at, and not inside torch.compile: to read them from a GPU would make
    every step wait.

    Args:
        labels: (N,) integers, any device.
        generator: source of the draw; torch's global one if None.

    Returns:
        (N,) int64 on the labels' device; a sample whose class has no other sample gets its own index.

    Raises:
        ValueError: labels that are not one-dimensional integers.

    >>> same_class_partner(torch.tensor([7, 3, 7, 5])).tolist()
    [2, 1, 0, 3]
    """
    labels = _labels(labels)
    partner = _same_class(labels, generator)
    if not torch.compiler.is_compiling() and labels.device.type == "cpu":
        _warn_of_lone_samples(partner)
    return partner


def other_class_partner(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For every sample, the index of a sample of another class, uniform over all samples of all other classes.

    Args:
        labels: (N,) integers, any device.
        generator: source of the draw; torch's global one if None.

    Returns:
        (N,) int64 on the labels' device.

    Raises:
        ValueError: labels that are not one-dimensional integers, or all of one class. To tell the latter waits for
            the labels' device; inside torch.compile it is an index out of range instead.

    >>> other_class_partner(torch.tensor([7, 3, 7, 7])).tolist()[::2]
    [1, 1]
    """
    labels = _labels(labels)
    if not torch.compiler.is_compiling() and len(labels) and bool((labels == labels[0]).all()):
        raise ValueError(f"labels are all of one class, {int(labels[0])}: there is no sample of another one")
    order, start, count = _by_class(labels)
    high, low = _draw(labels, generator), _draw(labels, generator)
    draw = high * 2**31 + low  # 31 bits would show in the remainder of a million candidates
    draw = draw[order] % (len(labels) - count).clamp(min=1)
    partner = torch.empty_like(order)
    partner[order] = order[draw + torch.where(draw >= start, count, 0)]  # step over the class
    return partner


class PairedBatchSampler(Sampler[list[int]]):
    """Batches in which every image has a partner: for the `batch_sampler` of a DataLoader.

    A batch is made of groups, each of `per_class` different images of one class, and the groups are spread evenly:
    if an epoch has g groups of a class, and M batches over all processes, each batch holds g / M of them, rounded
    down or up. So the groups of a batch are of different classes, but for a class that has more than a share of
    per_class / batch_size of all groups (where there are fewer classes than a batch has groups, some class has).

    An epoch visits no image twice and is a function of (seed, epoch). Some images are left out, others in each epoch:
    of every class those that are too few for one more group (of an odd number of images one, with `per_class=2`), and
    over all classes fewer than batch_size * num_replicas, which fill no batch for every process; each class gives up
    the same share of its groups, up to rounding. Every process has the same number of batches.

    Call `set_epoch(e)` before each epoch; without it every epoch is epoch 0.

    Args:
        labels: (N,) integers, or a data set whose labels `labels_of` finds.
        batch_size: images of one batch of one process, a multiple of per_class.
        per_class: images of each group, at least 2.
        seed: any integer, the same in all processes.
        num_replicas, rank: how many processes share the data, and which of them this is. If None, those of
            torch.distributed where it is initialised, else 1 and 0. Where a launcher shards loaders by itself
            (accelerate's `prepare`), give 1 and 0.

    Raises:
        ValueError: an argument out of its range, a class with fewer images than per_class, data that does not fill
            one batch for every process, and what `labels_of` refuses.

    >>> labels = [0, 1, 2, 0, 1, 2, 0, 1]
    >>> [sorted(labels[i] for i in batch) for batch in PairedBatchSampler(labels, batch_size=6)]
    [[0, 0, 1, 1, 2, 2]]
    """

    def __init__(
        self,
        labels: Any,
        batch_size: int,
        per_class: int = 2,
        seed: int = 0,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        for name, value, least in (
            ("per_class", per_class, 2),
            ("batch_size", batch_size, 1),
            ("num_replicas", num_replicas, 1),
            ("rank", rank, 0),
        ):
            if not _is_integer(value) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        if batch_size % per_class:
            raise ValueError(f"batch_size must be a multiple of per_class, {per_class}, got {batch_size}")
        if rank >= num_replicas:
            raise ValueError(f"rank must lie below num_replicas, {num_replicas}, got {rank}")
        if not _is_integer(seed):
            raise ValueError(f"seed must be an integer, got {seed!r}")
        labels = _labels(labels).cpu() if _are_labels(labels) else labels_of(labels)
        if len(labels) == 0:
            raise ValueError("labels are empty: there is nothing to pair")
        _refuse_small_classes(labels, "labels", per_class)
        self.batch_size, self.per_class, self.seed = int(batch_size), int(per_class), int(seed)
        self.num_replicas, self.rank, self.epoch = int(num_replicas), int(rank), 0
        self.drop_last = True  # accelerate asks
        self._class, self._count = labels.unique(return_inverse=True, return_counts=True)[1:]  # (N,) and (classes,)
        groups = int((self._count // self.per_class).sum())
        self._length = groups * self.per_class // (self.batch_size * self.num_replicas)
        if self._length == 0:
            raise ValueError(
                f"batch_size {batch_size} is too large: {len(labels)} images have {groups} groups of {per_class} "
                f"of one class, and {self.num_replicas} x {batch_size // per_class} are needed"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (an integer >= 0) of the next iteration."""
        _check_epoch(epoch)
        self.epoch = int(epoch)

    def __len__(self) -> int:
        """Batches of an epoch of this process."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches()[self.rank :: self.num_replicas]:
            yield batch.tolist()

    def _batches(self) -> Tensor:
        """The batches of all processes in this epoch: int64 (M, batch_size)."""
        generator = torch.Generator().manual_seed(_seed_for(self.seed, "paired batches", self.epoch))
        m, k = self._length * self.num_replicas, self.batch_size // self.per_class
        groups, of_class = self._groups(m * k, generator)

        def shuffled(x: Tensor) -> Tensor:
            return x[torch.randperm(len(x), generator=generator)]

        # The groups lie class by class in k rows of m. Each row gives every batch one group, at random; a class that
        # began in the row before goes first to the batches that have fewest of it.
        rows = of_class.view(k, m)
        goes_on = [0, *(rows[1:] == rows[:-1, -1:]).sum(1).tolist()]  # groups of the class that began in the row before
        before_last = (rows != rows[:, -1:]).sum(1).tolist()  # groups in front of the row's last class
        batches, fewest = torch.arange(m), m  # batches[fewest:] have one group more of the class that goes on
        dealt = torch.empty(m, k, dtype=torch.int64)
        for row in range(k):
            batches = torch.cat([shuffled(batches[:fewest]), shuffled(batches[fewest:])])
            if goes_on[row] < m:  # other classes begin in this row
                batches[goes_on[row] :] = shuffled(batches[goes_on[row] :])
                fewest = before_last[row]
            dealt[batches, row] = torch.arange(row * m, (row + 1) * m)
        # A batch's first half should not be of other classes than its second.
        dealt = dealt.gather(1, torch.rand(m, k, generator=generator).argsort(1))
        return groups[dealt].flatten(1)

    def _groups(self, kept: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`kept` groups (kept, per_class) of images and their classes (kept,), class by class in a random order; of
        each class the same share is left out, up to rounding."""
        order = torch.randperm(len(self._class), generator=generator)
        place = torch.randperm(len(self._count), generator=generator)  # of each class
        order = order[place[self._class[order]].argsort(stable=True)]
        sizes = self._count[place.argsort()]
        rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # of an image in its class
        whole = rank < (sizes - sizes % self.per_class).repeat_interleave(sizes)
        groups = order[whole].view(-1, self.per_class)
        n = len(groups)
        offset = torch.randint(n, (), generator=generator)
        chosen = ((torch.arange(n + 1) * kept + offset) // n).diff() > 0  # `kept` of n, evenly spread
        groups = groups[chosen]
        return groups, self._class[groups[:, 0]]


def labels_of(dataset: Any, columns: tuple[str, str] | None = None) -> Tensor:
    """The labels of a map-style data set, read without loading its images.

    They are looked for in this order:
    - an attribute `targets`, `labels` or `_labels`, or the labels in `samples`, `_samples` or `imgs` (torchvision);
    - the parts of a ConcatDataset, the last tensor of a TensorDataset, the label column of a Hugging Face `Dataset`;
    - the data set that is wrapped as `.dataset`, at `.indices` where there are any (Subset, random_split);
    - the items of a list or tuple: (x, y, ...) or dicts.

    Args:
        columns: names of image and label where items are dicts, as of `ClassPairs`.

    Returns:
        (N,) int64 on the CPU.

    Raises:
        ValueError: no labels are found, they are no integers or not as many as the data set has items.

    >>> labels_of(torch.utils.data.Subset([("a", 4), ("b", 5), ("c", 6)], [2, 0]))
    tensor([6, 4])
    """
    _check_columns(columns)
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise ValueError("dataset is a DataLoader, which has an order of its own; give its data set, loader.dataset")
    if isinstance(dataset, Mapping):
        raise ValueError(f"dataset is a dict of {reprlib.repr(list(dataset))}; give one of these data sets")
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"dataset must be map-style, with a length, got {kind}")
    labels = _find_labels(dataset, columns).cpu()
    if len(labels) != len(dataset):
        raise ValueError(f"dataset: {len(labels)} labels found for the {len(dataset)} items of {kind}; {_GIVE}")
    return labels


def _find_labels(dataset: Any, columns: tuple[str, str] | None) -> Tensor:
    for name in ("targets", "labels", "_labels"):
        if (labels := getattr(dataset, name, None)) is not None:
            return _labels(labels)
    for name in ("samples", "_samples", "imgs"):
        if (items := getattr(dataset, name, None)) is not None:
            return _labels_of_items(items, columns)
    if (parts := getattr(dataset, "datasets", None)) is not None:
        return torch.cat([labels_of(part, columns) for part in parts])
    if (tensors := getattr(dataset, "tensors", None)) is not None:
        return _labels(tensors[-1])
    if (names := getattr(dataset, "column_names", None)) is not None:
        column = _first(COLUMNS[1] if columns is None else columns[1:], names)
        if column is None:
            raise ValueError(f"dataset has no column of labels among {names}; {_GIVE}, dataset[name]")
        return _labels(dataset.with_format(None)[column])  # a format may be a transform, which wants the images
    if (wrapped := getattr(dataset, "dataset", None)) is not None:
        labels, indices = labels_of(wrapped, columns), getattr(dataset, "indices", None)
        return labels if indices is None else labels[torch.as_tensor(indices, dtype=torch.int64)]
    if isinstance(dataset, (list, tuple)):
        return _labels_of_items(dataset, columns)
    raise ValueError(
        f"dataset: {type(dataset).__name__} has no labels that can be read without its images (in `targets`, `labels` "
        f"or `samples`); {_GIVE}"
    )


def _labels_of_items(items: Iterable[Any], columns: tuple[str, str] | None) -> Tensor:
    labels = []
    for item in items:
        labels.append(_part(item, 1, columns))
        if labels[-1] is None:
            raise ValueError(f"dataset: items must be (x, y, ...) or dicts with a label, got {_outline(item)}; {_GIVE}")
    return _labels(labels)


_GIVE = (
    "give the labels themselves (ClassPairs: as targets=[...], or their name by columns=(image, label)), or call their "
    "column label, as by Hugging Face's dataset.rename_column"
)


def _part(item: Any, part: int, columns: tuple[str, str] | None) -> Any:
    """The image (part 0) or the label (part 1) of an item; None if it has none."""
    if isinstance(item, Mapping):
        name = _first(COLUMNS[part] if columns is None else columns[part : part + 1], item)
        return None if name is None else item[name]
    return item[part] if isinstance(item, (tuple, list)) and len(item) > part else None


def _first(wanted: Iterable[str], names: Container[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _outline(item: Any) -> str:
    """What an item is, without its pixels."""
    return f"a dict of {reprlib.repr(list(item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"


def _are_labels(value: Any) -> bool:
    """Whether these are labels and not a data set."""
    return hasattr(value, "dtype") or (isinstance(value, Sequence) and (len(value) == 0 or _is_index(value[0])))


def _labels(targets: Any) -> Tensor:
    if isinstance(targets, Sequence):
        targets = targets[:]  # of a Hugging Face column a list, which torch reads in a hundredth of the time
    try:
        labels = targets if isinstance(targets, Tensor) else torch.tensor(targets)
    except (TypeError, ValueError, RuntimeError):  # strings, None, lists of unequal length
        raise ValueError(f"labels must be N integers, got {reprlib.repr(targets)}") from None
    if labels.ndim != 1 or (labels.numel() and (labels.is_floating_point() or labels.is_complex())):
        raise ValueError(f"labels must be N integers, got {labels.dtype} of shape {tuple(labels.shape)}")
    return labels.long()


def _is_integer(value: object) -> bool:
    """NumPy's integers are integers too; True is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_index(value: Any) -> bool:
    """Whether a label is one integer, a tensor's or an array's included."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _check_epoch(epoch: int) -> None:
    if not _is_integer(epoch) or epoch < 0:
        raise ValueError(f"epoch must be an integer >= 0, got {epoch!r}")


def _check_columns(columns: object) -> None:
    if columns is not None and not (
        isinstance(columns, (tuple, list)) and [isinstance(name, str) for name in columns] == [True, True]
    ):
        raise ValueError(f"columns must be the two names (image, label), got {columns!r}")


def _refuse_small_classes(labels: Tensor, name: str, per_class: int) -> None:
    classes, counts = labels.unique(return_counts=True)
    small = classes[counts < per_class].tolist()
    if small:
        least = int(counts[counts < per_class][0])
        has = (
            "a single image, so it has no partner"
            if least == 1
            else f"{least} images, fewer than per_class, {per_class}"
        )
        raise ValueError(
            f"{name}: class {small[0]} has {has} ({len(small)} such classes); leave these classes out or add images"
        )


def _seed_for(*keys: int | str) -> int:
    """The rule of `psd.seeding.seed_for`, so that the pairs here are those of psd's trainer."""
    plain = tuple(key if isinstance(key, str) else operator.index(key) for key in keys)
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), "little") >> 1


def _by_class(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`order` lists the samples class by class; at each place of this list, `start` is where its class begins and
    `count` how many samples the class has. All (N,) int64; no step depends on the data's values, so it compiles and
    never waits for the device."""
    ordered, order = labels.sort(stable=True)
    start = torch.searchsorted(ordered, ordered)
    return order, start, torch.searchsorted(ordered, ordered, right=True) - start


def _draw(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """(N,) random integers of 31 bits."""
    device = labels.device if generator is None else generator.device
    return torch.randint(2**31 - 1, labels.shape, generator=generator, device=device).to(labels.device)


def _same_class(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    order, start, count = _by_class(labels)
    rank = torch.arange(len(labels), device=labels.device) - start  # of the sample in its class
    draw = _draw(labels, generator)[order] % (count - 1).clamp(min=1)
    draw = draw + (draw >= rank).long()  # step over the sample itself
    partner = torch.empty_like(order)
    partner[order] = order[start + torch.where(count > 1, draw, rank)]
    return partner


_warned = False  # of lone samples, in this process


def _warn_of_lone_samples(partner: Tensor) -> None:
    global _warned
    if _warned or len(partner) < 16:  # fewer are an example
        return
    alone = int((partner == torch.arange(len(partner))).sum()) / len(partner)
    if alone > 0.1:
        _warned = True
        warnings.warn(
            f"{alone:.0%} of the {len(partner)} samples of this batch have no other of their class and are their own "
            "partners, so no patch of theirs is exchanged; psd.PairedBatchSampler makes batches in which every image "
            "has a partner",
            stacklevel=3,
        )
