"""CIFAR-100 (Krizhevsky 2009) from whichever layout is there, checked by its content; and `cifar100-small`.

Under `root`, in this order, the first that is there is read:

1. `cifar100/{train,test}-00000-of-00001.parquet`: the hub's `uoft-cs/cifar100`, what `psd data get cifar100`
   fetches (needs pyarrow);
2. `cifar-100-python/` or `cifar-100-python.tar.gz`: the original, through torchvision. Unpickling runs code,
   so the MD5 sums of the original files are checked before, and nothing else is accepted in this layout;
3. `cifar100-{train,test}.npz` with `x` (N, 32, 32, 3) uint8, `y` (N,) labels and `classes`, their names: the fastest;
4. `cifar100/{train,test}/<class>/*.png` or `{train,test}/<class>/*.png`: a folder per class.

Every route ends in the same order of images and in the same check of a fingerprint over the whole split, so
that layouts give identical tensors and a damaged or different file does not pass.
"""

from __future__ import annotations

import functools
import hashlib
import io
import reprlib
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from psd import files
from psd.checks import Refused
from psd.data import pictures
from psd.data.images import ImageData, MissingData, fit_or_tune, resized, take
from psd.seeding import generator_for

if TYPE_CHECKING:
    import numpy as np

CLASSES = tuple(  # of the fine labels, in their order
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 - a hundred quoted strings read worse
)
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of the train split's pixels / 255

# SHA-256 of each image's 3,072 bytes (rows, columns, RGB) and one byte of its label (classes in alphabetical
# order), sorted, joined and hashed again: the same for every layout and order.
FINGERPRINTS = {
    "train": "640c97a4012a8aebfcaf57fd82a33dd43b37d2e397a02cb9b0a3d89e6d6d936d",
    "test": "a6a97df7b61bc7420bc44268696e8963d33129bc050978f2a63d8fe3420989fa",
}
REMEDY = "run `psd data get cifar100`, or set PSD_DATA to the folder that holds it"


@dataclass(frozen=True)
class Source:
    """Where a split was found: its layout (a key of `_READERS`) and its file or folder."""

    layout: str
    path: Path


@dataclass(frozen=True)
class Raw:
    """A split as it was read, in the order of its file."""

    pixels: np.ndarray  # uint8 (N, 32, 32, 3)
    labels: list[int]
    classes: tuple[str, ...]


def find(root: Path, split: str) -> Source:
    """The first layout of `split` ("train" or "test") under `root`; MissingData if there is none."""
    folder = root / "cifar-100-python"
    places = [
        Source("parquet", root / "cifar100" / f"{split}-00000-of-00001.parquet"),
        Source("pickle", folder),
        Source("archive", root / "cifar-100-python.tar.gz"),
        Source("npz", root / f"cifar100-{split}.npz"),
        Source("folder", root / "cifar100" / split),
        Source("folder", root / split),
    ]
    for source in places:
        if source.path.is_dir() if source.layout in ("pickle", "folder") else source.path.is_file():
            return source
    raise MissingData(f"no CIFAR-100 {split} split under {str(root)!r}: {REMEDY}")


def read(root: Path, split: str, *, verify: bool = True) -> ImageData:
    """A whole split ("train" or "test") from whatever layout is there, ordered by label and content.

    A file that did not change is read once per process: what is returned may share its memory with other calls.

    Args:
        root: the folder to look under.
        split: "train" (50,000 images) or "test" (10,000).
        verify: compare the fingerprint; False warns instead of raising when the data are not CIFAR-100.

    Raises:
        ValueError: naming the file that is damaged, altered or not CIFAR-100. MissingData if there is none.
    """
    source = find(root, split)
    if source.path.is_dir() or not verify:
        return _checked(source, split, verify)
    state = source.path.stat()
    return _kept(source, split, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=2)  # a split each; a run reads train, test and tune, and many runs may share a process
def _kept(source: Source, split: str, changed: int, size: int) -> ImageData:
    return _checked(source, split, verify=True)


def _checked(source: Source, split: str, verify: bool) -> ImageData:
    raw = _READERS[source.layout](source.path, split)
    if not raw.labels:
        raise Refused(f"{source.path} holds no images; {REMEDY}")
    rank = {name: i for i, name in enumerate(sorted(raw.classes))}
    labels = [rank[raw.classes[label]] for label in raw.labels]
    digests = [
        hashlib.sha256(image.tobytes() + bytes([label % 256])).digest()
        for image, label in zip(raw.pixels, labels, strict=True)
    ]
    if hashlib.sha256(b"".join(sorted(digests))).hexdigest() != FINGERPRINTS[split]:
        found = f"{source.path} is not CIFAR-100's {split} split ({len(labels)} images, fingerprint differs)"
        if verify:
            raise Refused(
                f"{found}: it is damaged, altered or another data set; remove it and {REMEDY}, "
                "or pass verify=False to use it as it is"
            )
        warnings.warn(f"{found}; it is used as it is, because verify=False", stacklevel=4)
    order = sorted(range(len(labels)), key=lambda i: (labels[i], digests[i]))
    pixels, classes = raw.pixels[order], tuple(sorted(raw.classes))
    del raw  # the whole set once more is memory that a small machine may not have
    return ImageData(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        targets=torch.tensor(labels)[order],
        classes=classes,
        name="cifar100",
        mean=MEAN,
        std=STD,
        crop_padding=4,
        flip=True,
    )


def load(
    root: Path,
    split: str,
    *,
    classes: int | None = None,
    per_class: int | None = None,
    size: int | None = None,
    seed: int = 0,
    verify: bool = True,
) -> ImageData:
    """CIFAR-100's "train", "test", "fit" or "tune" (90% and 10% of train), whole or as a seeded subset.

    size: resize the 32 x 32 pixels to a square of that side, for networks that were trained on larger images.
    """
    data = read(root, "test" if split == "test" else "train", verify=verify)
    if split == "fit" or split == "tune":
        # Cut before the subset is taken, so that fit and tune never share an image.
        data = data.subset(fit_or_tune(data.targets, split))
    return resized(take(data, classes, per_class, seed), size)


def load_small(
    root: Path,
    split: str,
    *,
    classes: int | None = None,
    per_class: int | None = None,
    size: int | None = None,
    seed: int = 0,
    verify: bool = True,
) -> ImageData:
    """`cifar100-small`: few classes and images, but a test split large enough to measure on.

    10 classes drawn by `seed` (or as many as `classes` says). Of each, 100 images of CIFAR-100's train split
    are "train" (and "fit", since "tune" takes nothing from it), 100 others "tune"; the remaining 300 and the
    100 of CIFAR-100's test split are "test". `per_class` takes fewer than these 100 (of test: 400) images; `size` as
    in `load`.
    """
    data = read(root, "train", verify=verify)
    rows: list[int] = []
    for c in range(len(data.classes)):
        members = (data.targets == c).nonzero().flatten()
        order = members[torch.randperm(len(members), generator=generator_for(seed, "cifar100-small", c))]
        part = {"train": order[:100], "fit": order[:100], "tune": order[100:200], "test": order[200:]}[split]
        rows += part.tolist()
    data = replace(data.subset(rows), name="cifar100-small")
    if split == "test":
        test = read(root, "test", verify=verify)
        if test.classes != data.classes:
            raise Refused(f"train and test under {str(root)!r} have different classes")
        data = replace(
            data,
            images=torch.cat([data.images, test.images]),
            targets=torch.cat([data.targets, test.targets]),
        )
    return resized(take(data, 10 if classes is None else classes, per_class, seed), size)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _decode(encoded: bytes, where: str) -> np.ndarray:
    """uint8 (32, 32, 3) of an image file's bytes."""
    import numpy as np

    with pictures.opened(io.BytesIO(encoded), where, remedy=REMEDY) as image:
        width, height = image.size  # of the header, before memory is spent on pixels
        pixels = np.asarray(pictures.in_rgb(image)) if (width, height) == (32, 32) else None
    if pixels is None:
        raise Refused(f"{where} is {width} x {height} pixels, not 32 x 32; load such images by `folder:PATH`")
    return pixels


def _read_parquet(path: Path, split: str) -> Raw:
    import numpy as np

    labels: list[int] = []

    def decoded() -> Iterator[np.ndarray]:
        for row, (encoded, label) in enumerate(_parquet_rows(path)):
            if not isinstance(label, int) or not 0 <= label < len(CLASSES):
                raise Refused(
                    f"{path}, row {row}, has the fine_label {label}, which is not one of CIFAR-100's 0 to 99; {REMEDY}"
                )
            if not isinstance(encoded, bytes):
                raise Refused(f"{path}, row {row}, has no image in img, but {encoded!r:.40}; {REMEDY}")
            labels.append(label)
            yield _decode(encoded, f"{path}, row {row},")

    return Raw(np.fromiter(decoded(), np.dtype((np.uint8, (32, 32, 3)))), labels, CLASSES)


def _parquet_rows(path: Path) -> Iterator[tuple[Any, Any]]:
    """Each image's file and label, read in pieces: the whole table takes three times the memory of the pixels."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise Refused(f'{path} needs pyarrow to be read: `pip install ".[hub]"`') from error
    try:
        for piece in parquet.ParquetFile(path).iter_batches(1000, columns=["img", "fine_label"]):
            for image, label in zip(
                piece.column("img").to_pylist(), piece.column("fine_label").to_pylist(), strict=True
            ):
                yield image["bytes"] if isinstance(image, dict) and "bytes" in image else image, label
    except Exception as error:  # pyarrow's errors are ValueErrors, KeyErrors and OSErrors by turns
        raise Refused(f"{path} is not a readable parquet file of CIFAR-100 ({_brief(error)}); {REMEDY}") from error


def _read_pickle(path: Path, split: str) -> Raw:
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import check_integrity

    meta = (CIFAR100.meta["filename"], CIFAR100.meta["md5"])
    for name, md5 in [*CIFAR100.train_list, *CIFAR100.test_list, meta]:
        if not check_integrity(path / name, md5):
            state = "is not the original file (its MD5 differs)" if (path / name).exists() else "is missing"
            raise Refused(f"{path / name} {state}, so nothing there is unpickled; remove {path} and {REMEDY}")
    data = CIFAR100(path.parent, train=split == "train")
    return Raw(data.data, list(data.targets), tuple(data.classes))


def _read_archive(path: Path, split: str) -> Raw:
    """Check the archive, unpack it beside itself, in one step as seen from outside, and read the folder."""
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import check_integrity

    if not check_integrity(path, CIFAR100.tgz_md5):
        raise Refused(f"{path} is not the original archive (its MD5 differs); remove it and {REMEDY}")
    folder = path.parent / CIFAR100.base_folder
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unpacking-") as unpacked:
            with tarfile.open(path) as archive:  # what it holds stays below that folder, links too
                archive.extractall(unpacked, filter="data")
            files.put(Path(unpacked) / CIFAR100.base_folder, folder)
    except (OSError, tarfile.TarError) as error:
        raise Refused(f"{path} could not be unpacked beside itself ({error}); unpack it by hand") from error
    return _read_pickle(folder, split)


def _read_npz(path: Path, split: str) -> Raw:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            pixels, labels, classes = file["x"], file["y"], file["classes"]
    except Exception as error:  # numpy's errors are ValueErrors, KeyErrors, OSErrors and zipfile's own
        raise Refused(f"{path} is not a readable npz file of CIFAR-100 ({_brief(error)}); {REMEDY}") from error
    if pixels.shape[1:] != (32, 32, 3) or pixels.dtype != np.uint8 or labels.shape != (len(pixels),):
        raise Refused(
            f"{path} must hold x (N, 32, 32, 3) uint8 and y (N,), got {pixels.dtype} {pixels.shape} and "
            f"{labels.shape}; {REMEDY}"
        )
    if labels.dtype.kind not in "iu":
        raise Refused(f"{path} must hold whole numbers as labels y, got {labels.dtype}; {REMEDY}")
    if classes.ndim != 1 or len(set(map(str, classes))) != len(classes):
        raise Refused(
            f"{path} must hold the classes' names, no two alike, got {reprlib.repr(classes.tolist())}; {REMEDY}"
        )
    named = tuple(map(str, classes))
    wrong = [int(label) for label in labels if not 0 <= label < len(named)]
    if wrong:
        raise Refused(
            f"{path} has the label {wrong[0]}, which is not one of its classes' 0 to {len(named) - 1}; {REMEDY}"
        )
    return Raw(pixels, labels.tolist(), named)


def _read_folder(path: Path, split: str) -> Raw:
    import numpy as np

    classes = tuple(sorted(f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")))
    files = [(file, label) for label, name in enumerate(classes) for file in _pngs(path / name)]
    pixels = [_decode(file.read_bytes(), str(file)) for file, _ in files]
    labels = [label for _, label in files]
    return Raw(np.stack(pixels) if pixels else np.empty((0, 32, 32, 3), np.uint8), labels, classes)


def _pngs(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".png" and file.name[0] != ".")


_READERS = {
    "parquet": _read_parquet,
    "pickle": _read_pickle,
    "archive": _read_archive,
    "npz": _read_npz,
    "folder": _read_folder,
}
