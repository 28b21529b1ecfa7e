"""CIFAR-100 in every layout: a tiny stand-in that needs no file, and the real one where PSD_DATA names its folder."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR100

from psd.data import ImageData, cifar100

COUNTS = {"train": 8, "test": 3}  # images of each class


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@dataclass
class Files:
    """Images that can be written in every layout of CIFAR-100."""

    pixels: dict[str, np.ndarray]  # uint8 (N, 32, 32, 3) of "train" and "test"
    labels: dict[str, list[int]]
    classes: tuple[str, ...] = cifar100.CLASSES[:3]

    def write(self, layout: str, root: Path) -> Path:
        """One layout under root; returns the train split's file or folder."""
        return getattr(self, f"_{layout}")(root)

    def _parquet(self, root: Path) -> Path:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        (root / "cifar100").mkdir(parents=True, exist_ok=True)
        for split in COUNTS:
            img = [{"bytes": png(image), "path": None} for image in self.pixels[split]]
            table = pa.table({"img": img, "fine_label": self.labels[split]})
            pq.write_table(table, root / "cifar100" / f"{split}-00000-of-00001.parquet")
        return root / "cifar100" / "train-00000-of-00001.parquet"

    def _pickle(self, root: Path) -> Path:
        folder = root / "cifar-100-python"
        folder.mkdir(parents=True)
        for split in COUNTS:
            flat = self.pixels[split].transpose(0, 3, 1, 2).reshape(-1, 3072)
            (folder / split).write_bytes(pickle.dumps({"data": flat, "fine_labels": self.labels[split]}))
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(self.classes)}))
        return folder

    def _archive(self, root: Path) -> Path:
        folder = self._pickle(root / "elsewhere")
        with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as tar:
            tar.add(folder, "cifar-100-python")
        return root / "cifar-100-python.tar.gz"

    def _npz(self, root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        for split in COUNTS:
            x, y, names = self.pixels[split], np.array(self.labels[split]), np.array(self.classes)
            np.savez(root / f"cifar100-{split}.npz", x=x, y=y, classes=names)
        return root / "cifar100-train.npz"

    def _nested(self, root: Path) -> Path:
        return self._folder(root / "cifar100").parent / "train"

    def _folder(self, root: Path) -> Path:
        for split in COUNTS:
            for i, (image, label) in enumerate(zip(self.pixels[split], self.labels[split], strict=True)):
                folder = root / split / self.classes[label]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{i:05d}.png").write_bytes(png(image))
        return root / "train"


def fingerprint(pixels: np.ndarray, labels: list[int]) -> str:
    """SHA-256 of the sorted SHA-256 digests of each image's bytes and its label's."""
    digests = [hashlib.sha256(p.tobytes() + bytes([y])).digest() for p, y in zip(pixels, labels, strict=True)]
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes torchvision take the pickles in a folder for the originals."""

    def trust(folder: Path) -> None:
        for split in COUNTS:
            monkeypatch.setattr(CIFAR100, f"{split}_list", [[split, md5(folder / split)]])
        monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(folder / "meta")})

    return trust


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Files:
    """Three classes of random 32 x 32 images in shuffled order, taken for CIFAR-100 while a test runs."""
    rng = np.random.default_rng(0)
    labels = {split: rng.permutation(np.repeat(range(3), n)).tolist() for split, n in COUNTS.items()}
    pixels = {s: rng.integers(0, 256, (len(y), 32, 32, 3), dtype=np.uint8) for s, y in labels.items()}
    for split in COUNTS:
        monkeypatch.setitem(cifar100.FINGERPRINTS, split, fingerprint(pixels[split], labels[split]))
    return Files(pixels, labels)


@pytest.fixture
def trusted(tiny: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: Callable[[Path], None]) -> Files:
    """The tiny set, whose pickles and archive torchvision takes for the originals."""
    archive = tiny.write("archive", tmp_path / "originals")
    trust(tmp_path / "originals" / "elsewhere" / "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))
    tiny._archive = lambda root: _copy(archive, root)  # a second archive would have another time stamp and MD5
    return tiny


def _copy(archive: Path, root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / archive.name).write_bytes(archive.read_bytes())
    return root / archive.name


@pytest.fixture(scope="session")
def real() -> dict[str, ImageData]:
    """The real train and test split, in whatever layout they lie under PSD_DATA; the test skips where it is not set."""
    root = os.environ.get("PSD_DATA")
    if not root:
        pytest.skip("PSD_DATA (the folder that holds CIFAR-100) is not set")
    return {split: cifar100.read(Path(root), split) for split in COUNTS}


@pytest.fixture(scope="session")
def real_layouts(real: dict[str, ImageData], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The roots of the real CIFAR-100 as parquet, pickle and class folders (half a minute)."""
    pixels = {split: data.images.permute(0, 2, 3, 1).contiguous().numpy() for split, data in real.items()}
    labels = {split: data.targets.tolist() for split, data in real.items()}
    files = Files(pixels, labels, cifar100.CLASSES)
    roots: dict[str, Path] = {layout: tmp_path_factory.mktemp(layout) for layout in ("parquet", "pickle", "folder")}
    for layout, root in roots.items():
        files.write(layout, root)
    return roots
