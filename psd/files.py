"""Files that are there whole or not at all, whatever ends their writing: an error, a kill, a power cut."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNKNOWN_TO_THE_FILE_SYSTEM = (errno.EINVAL, errno.ENOTSUP)


def write_atomically(path: Path, text: str) -> None:
    """The file either keeps what it held or holds all of `text`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write: it takes the place of `path` once written, or goes where the writing failed."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with blaming(path, temporary):
            yield temporary
            put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def left_behind(path: Path) -> list[Path]:
    """What `replacing` leaves beside a file where its process is killed."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.[0-9]*"))


def put(written: Path, path: Path) -> None:
    """Give what was written, a file or a folder, its name, for good: after a power cut it is whole or absent.

    Its content has to be on the disk before its name is, and the name, which is content of the folder around it, after.
    """
    for part in (*written.rglob("*"), written) if written.is_dir() else (written,):
        _flush(part)
    written.replace(path)
    _flush(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those around it where they are missing, for good as `put` does."""
    missing = [made for made in (folder, *folder.parents) if not made.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _flush(made.parent)


@contextmanager
def blaming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an OSError that names no file, as that of a full disk, or a temporary one, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, os.fspath(temporary or path)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


def _flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk, where the system can be asked."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNKNOWN_TO_THE_FILE_SYSTEM:
            raise
    finally:
        os.close(descriptor)
