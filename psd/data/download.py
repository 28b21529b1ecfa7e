"""Fetching data sets and telling what is there: `psd data get` and `psd data check`."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from psd import files
from psd.checks import Refused
from psd.data import cifar100, default_root, names, unknown
from psd.data.images import MissingData

HUB = "uoft-cs/cifar100"  # the mirror, a data set repository on the Hugging Face hub
TINY_IMAGENET = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ATTEMPTS = 4  # in a row without a single new byte
BLOCK = 1 << 16


class Row(NamedTuple):
    """What `check` found of one data set."""

    data: str  # "cifar100 train"
    layout: str  # "parquet", "pickle", "archive", "folder"; "" if nothing is there
    path: str
    state: str  # "ok (...)", "missing: ..." or "problem: ..."


def get(name: str, root: str | os.PathLike[str] | None = None) -> None:
    """Put a data set under `root` (`psd.data.default_root()` if None), verify it, and print what is done.

    "cifar100" (and so "cifar100-small") comes from the hub's mirror, where the extra `hub` is installed and
    the hub answers, else from the original host. An interrupted download goes on where it stopped. The others
    need no download, or cannot be had without an account, which is then said.

    Raises:
        ValueError: an unknown name; both hosts failed; what came is not CIFAR-100.
    """
    folder = default_root() if root is None else Path(root)
    if name == "shapes":
        print("shapes is drawn when it is loaded: there is nothing to download")
    elif name in ("cifar100", "cifar100-small"):
        _get_cifar100(folder)
    elif name == "imagenet":
        place = folder / "imagenet" / "{train,val}" / "<class>"
        print(f"imagenet needs an account at image-net.org; put its images into {place}")
    elif name == "tiny-imagenet":
        place = folder / "tiny-imagenet" / "{train,val}" / "<class>"
        print(f"tiny-imagenet is {TINY_IMAGENET}; put its images into {place}")
        print("(its val is one folder: sort it by the classes in val_annotations.txt)")
    elif name.startswith("folder:"):
        print(f"{name} is read where it is: there is nothing to download")
    else:
        raise unknown("data set", name, names())


def check(root: str | os.PathLike[str] | None = None) -> list[Row]:
    """What is under `root` (`psd.data.default_root()` if None): a row for each data set and split."""
    folder = default_root() if root is None else Path(root)
    rows = [Row("shapes", "", "", "ok (drawn, no files)")]
    rows += [_check_cifar100(folder, split) for split in ("train", "test")]
    rows += [_check_folder(folder, name, place) for name in ("imagenet", "tiny-imagenet") for place in ("train", "val")]
    return rows


def fetch(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`, through `path`.part, which a later call continues until its MD5 is right.

    A connection that breaks is taken up again, until `ATTEMPTS` in a row bring nothing new.

    Raises:
        ValueError: the host cannot be reached or refuses, or the MD5 differs (the part is then removed). OSError: the
            part cannot be written; what it holds by then is kept.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part)
            break
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            if getattr(error, "filename", None) == os.fspath(part):  # of the disk, which asking again does not mend
                raise
            failures = failures + 1 if not part.exists() or part.stat().st_size <= before else 0
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or failures >= ATTEMPTS:
                raise Refused(
                    f"{url} could not be downloaded to {path}: {error}; run the command again later"
                ) from error
            print(f"{url}: {error}; trying again in {2**failures} s")
            time.sleep(2**failures)
    found = _md5(part)
    if found != md5:
        part.unlink()
        raise Refused(f"{url} has MD5 {found} instead of {md5}; it is removed, run the command again")
    files.put(part, path)


def _continue(url: str, part: Path) -> None:
    """Append what `part` still lacks of `url`; OSError if the connection breaks before the end."""
    from tqdm.auto import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)  # an address of psd's own, checked by MD5  # nosec B310
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond what we have; whether it is right, the MD5 tells
            return
        raise
    with response:
        if response.status != 206:  # the host knows no ranges and begins again
            have = 0
        length = response.headers["Content-Length"]
        total = have + int(length) if length else None
        with (
            open(part, "ab" if have else "wb", buffering=0) as file,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True) as bar,
        ):
            while block := response.read(BLOCK):
                bar.update(len(block))
                with files.blaming(part):
                    while block:
                        block = block[file.write(block) :]
        if total is not None and part.stat().st_size < total:
            raise ConnectionError(f"the connection broke after {part.stat().st_size:,} of {total:,} bytes")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _get_cifar100(root: Path) -> None:
    try:
        for split in ("train", "test"):
            print(f"cifar100 {split} is there already: {cifar100.find(root, split).path}")
    except MissingData:
        root.mkdir(parents=True, exist_ok=True)
        try:
            _from_hub(root)
        except Exception as error:  # whatever the hub's library raises, the original host is tried next
            print(f"the hub's mirror failed ({type(error).__name__}: {error}); trying the original host")
            from torchvision.datasets import CIFAR100

            fetch(CIFAR100.url, root / CIFAR100.filename, CIFAR100.tgz_md5)
    for split in ("train", "test"):
        print(f"cifar100 {split}: {len(cifar100.read(root, split)):,} images, content verified")


def _from_hub(root: Path) -> None:
    try:
        import pyarrow  # noqa: F401 - what the mirror holds cannot be read without it
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(f'{error}; `pip install ".[hub]"` installs it') from error

    for split in ("train", "test"):
        file = f"cifar100/{split}-00000-of-00001.parquet"
        hf_hub_download(HUB, file, repo_type="dataset", local_dir=root)  # its content is verified after  # nosec B615


def _check_cifar100(root: Path, split: str) -> Row:
    name = f"cifar100 {split}"
    try:
        source = cifar100.find(root, split)
    except MissingData:
        return Row(name, "", str(root), "missing: run `psd data get cifar100`")
    try:
        data = cifar100.read(root, split)
    except ValueError as error:
        return Row(name, source.layout, str(source.path), f"problem: {error}")
    return Row(name, source.layout, str(source.path), f"ok ({len(data):,} images, content verified)")


def _check_folder(root: Path, data: str, split: str) -> Row:
    name, path = f"{data} {split}", root / data / split
    if not path.is_dir():
        return Row(name, "", str(path), f"missing: `psd data get {data}` says how")
    classes = sum(entry.is_dir() for entry in os.scandir(path))
    state = f"ok ({classes} class folders, images not read)" if classes else "problem: no class folders"
    return Row(name, "folder", str(path), state)
