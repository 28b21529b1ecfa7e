"""Bad input in data: folders, image files, annotations, labels and tables. Each is refused in one line that names the
thing, the value and the remedy. And what is no fault, however odd, is shown to the network as a viewer shows it."""

from __future__ import annotations

import io
import os
import signal
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from psd.checks import Refused
from psd.cli import main
from psd.data import annotated, cifar100, decoding, load, pictures
from psd.data.decoding import Centres, Item, TrainingCrops, centre_crop, resized_crop
from psd.data.items import Items
from psd.data.stream import CentreCrops, Stream

sys.path.append(str(Path(__file__).parents[1] / "data"))
from test_annotated import HEIGHT, KINDS, TRAIN, WIDTH, edit, gone, mask, paint, replaced, square, write

LONG = os.environ.get("PSD_RELIABILITY") == "long"
ODD_FILES = Path(os.environ.get("PSD_ODD_FILES", "/nowhere"))
SEEN = "one line that names thing, value and remedy"


def one_line(error: BaseException, words: tuple[str, ...], root: Path) -> None:
    """Each of the words is in the message; ROOT stands for the folder of the case."""
    line = str(error)
    missing = [word for word in words if word.replace("ROOT", str(root)) not in line]
    assert not missing and "\n" not in line, f"{missing} in: {line}"


def files(root: Path) -> dict[str, int]:
    return {str(file): file.lstat().st_mtime_ns for file in root.rglob("*")}


def check(name: str, words: tuple[str, ...], where: Path, **options: Any) -> None:
    """The data set of that name is refused, as it is loaded or as its items are read, and nothing is written."""
    before = files(where)
    with warnings.catch_warnings(), pytest.raises(Refused) as caught:
        warnings.simplefilter("ignore")
        data = load(name, **options)
        [data[i] for i in range(len(data))]
    one_line(caught.value, words, where)
    assert files(where) == before


# --- data folders


def photos(root: Path, *parts: str, count: int = 3) -> Path:
    """Class folders ant and bee below each part of a data folder."""
    for part in parts or ("train", "val"):
        for shade, name in enumerate(("ant", "bee")):
            for i in range(count):
                paint(root / part / name / f"{i}.png", 40 * i + shade, (9, 8))
    return root


def link(to: str, *at: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        photos(root)
        for one in at:
            (root / one).symlink_to(to)

    return make


def made(*steps: Any) -> Callable[[Path], None]:
    """A folder of photographs, on which each step is done: a path to make or remove, or a function of the root."""

    def make(root: Path) -> None:
        photos(root)
        for step in steps:
            step(root)

    return make


def emptied(part: str) -> Callable[[Path], None]:
    return lambda root: [file.unlink() for file in (root / part).iterdir()] and None


def alone(file: str, content: bytes = b"") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)

    return make


def folder(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).mkdir(parents=True)


LAY_OUT = "lay the images out as"
FOLDERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], dict[str, Any]]] = {
    # the case: what makes it, what the line says, and what is asked for
    "no folder": (lambda root: None, ("no folder ROOT/train", LAY_OUT), {"at": "folder:ROOT"}),
    "a folder that is not there": (
        lambda root: None,
        ("no folder ROOT/none/train", LAY_OUT),
        {"at": "folder:ROOT/none"},
    ),
    "a file in its place": (alone("a.png"), ("no folder ROOT/a.png/train", LAY_OUT), {"at": "folder:ROOT/a.png"}),
    "train is a file": (alone("train"), ("no folder ROOT/train", LAY_OUT), {}),
    "train is empty": (folder("train"), ("ROOT/train must hold class folders", "no folder in it"), {}),
    "images without classes": (
        lambda root: paint(root / "train/a.png"),
        ("ROOT/train must hold class folders", "no folder in it"),
        {},
    ),
    "a class without images": (made(folder("train/cat")), ("there is none in cat", "add some, or take"), {}),
    "many classes without images": (
        made(*(folder(f"train/c{i}") for i in range(9))),
        ("c0, c1, c2, c3, c4 (9 such folders", "add some, or take"),
        {},
    ),
    "a class of GIFs": (made(alone("train/cat/a.gif")), ("none in cat", "ends in .jpg, .jpeg, .png"), {}),
    "a class of HEICs": (made(alone("train/cat/a.HEIC")), ("none in cat", "ends in .jpg, .jpeg, .png"), {}),
    "a class of texts": (made(alone("train/cat/a.txt")), ("none in cat", "add some, or take"), {}),
    "a class of hidden files": (made(alone("train/cat/._a.jpg")), ("none in cat", "add some, or take"), {}),
    "images in a hidden folder alone": (
        made(folder("train/cat"), lambda root: paint(root / "train/cat/.ipynb_checkpoints/a.png")),
        ("none in cat", "add some, or take"),
        {},
    ),
    "hidden classes alone": (
        lambda root: paint(root / "train/.ipynb_checkpoints/a.png"),
        ("ROOT/train must hold class folders", "no folder in it"),
        {},
    ),
    "a class of one image, to be split": (
        lambda root: [photos(root, "."), paint(root / "cat/a.png")],
        ("ROOT/cat holds 1 image", "2 or more", "add some, or take"),
        {},
    ),
    "a class of none, to be split": (
        lambda root: [photos(root, "."), (root / "cat").mkdir()],
        ("none in cat", "add some, or take"),
        {},
    ),
    "a class of one image, for fit": (
        made(lambda root: paint(root / "train/cat/a.png")),
        ("split 'fit' needs 2 training images or more of every class", "class 2 has 1", "add some"),
        {"split": "fit"},
    ),
    "no test": (
        lambda root: photos(root, "train"),
        ("neither ROOT/test nor ROOT/val", "needs one of them"),
        {"split": "test"},
    ),
    "a test by another name": (
        lambda root: photos(root, "train", "validation"),
        ("neither ROOT/test nor ROOT/val", "needs one of them"),
        {"split": "test"},
    ),
    "a class that the test lacks": (
        made(lambda root: paint(root / "train/cat/a.png")),
        ("ROOT/val must hold the same classes as ROOT/train", "only in train: cat"),
        {"split": "test"},
    ),
    "a class that train lacks": (
        made(lambda root: paint(root / "val/cat/a.png")),
        ("ROOT/val must hold the same classes", "only in val: cat"),
        {"split": "test"},
    ),
    "classes of other spelling": (
        made(lambda root: (root / "val/ant").rename(root / "val/Ant")),
        ("only in train: ant", "only in val: Ant"),
        {"split": "test"},
    ),
    "a class that is a link to nowhere": (
        link("/nowhere/at/all", "train/cat"),
        ("ROOT/train/cat is a link that leads nowhere", "mend or remove it"),
        {},
    ),
    "a class that is a link to itself": (
        link("cat", "train/cat"),
        ("ROOT/train/cat is a link that leads nowhere", "mend or remove it"),
        {},
    ),
    "a class that is a link to all classes": (
        link(".", "train/cat"),
        ("leads to ROOT/train", "read already", "remove the link"),
        {},
    ),
    "a link to the folder it is in": (
        link(".", "train/ant/more"),
        ("ROOT/train/ant/more leads to ROOT/train/ant", "read already", "remove the link"),
        {},
    ),
    "a link to all classes": (
        link("..", "train/ant/more"),
        ("ROOT/train/ant/more/ant leads to ROOT/train/ant", "read already", "remove the link"),
        {},
    ),
    "links in a circle": (
        made(
            lambda root: (root / "train/ant/bees").symlink_to("../bee"),
            lambda root: (root / "train/bee/ants").symlink_to("../ant"),
        ),
        ("ROOT/train/ant/bees/ants leads to ROOT/train/ant", "remove the link"),
        {},
    ),
    "circles that double at each turn": (
        made(
            lambda root: [(root / f"train/ant/{i}").symlink_to("../bee") for i in range(9)] and None,
            lambda root: [(root / f"train/bee/{i}").symlink_to("../ant") for i in range(9)] and None,
        ),
        ("read already", "remove the link"),
        {},
    ),
    "one folder by two ways": (
        link("../../val/bee", "train/ant/one", "train/ant/two"),
        ("leads to ROOT/val/bee", "read already", "remove the link"),
        {},
    ),
    "a class whose name is no text": (
        made(lambda root: os.mkdir(os.fsencode(root) + b"/train/\xff\xfe")),
        (r"ROOT/train has the class '\udcff\udcfe'", "not printable UTF-8", "rename"),
        {},
    ),
    "a class with a line break": (
        made(folder("train/a\nb")),
        (r"has the class 'a\nb'", "not printable", "rename"),
        {},
    ),
    "more classes than there are": (made(), ("classes must lie between 1 and the 2 there are, got 3",), {"classes": 3}),
    "no class": (made(), ("classes must lie between 1 and the 2 there are, got 0",), {"classes": 0}),
    "more images than there are": (
        made(),
        ("per_class must be at most 3, the images of 'ant', got 4",),
        {"per_class": 4},
    ),
    "no image of a class": (made(), ("per_class must be at least 1, got 0",), {"per_class": 0}),
    "no pixel": (made(), ("size must be at least 1 pixel, got 0",), {"size": 0}),
    "half a pixel": (made(), ("size must be an integer, got 0.5",), {"size": 0.5}),
    "a count": (made(), ("count=3 does not apply to the data set 'folder:ROOT'", "leave it out"), {"count": 3}),
    "another split": (made(), ("split 'val' is unknown", "Known: train, test, fit, tune"), {"split": "val"}),
    "a split as root": (made(), ("root='test' is the name of a split", "write split='test'"), {"root": "test"}),
    "another spelling": (made(), ("data.name 'foldr:ROOT' is unknown", "Known:"), {"at": "foldr:ROOT"}),
    "no path": (made(), ("data.name 'folder:' is unknown", "did you mean 'folder:PATH'?"), {"at": "folder:"}),
    "no ImageNet": (made(), ("no folder ROOT/imagenet/train", LAY_OUT), {"at": "imagenet", "root": "ROOT"}),
    "no Tiny-ImageNet": (
        made(),
        ("no folder ROOT/tiny-imagenet/train", LAY_OUT),
        {"at": "tiny-imagenet", "root": "ROOT"},
    ),
    "a zero byte in the path": (made(), (r"no folder ROOT\x00/train", LAY_OUT), {"at": "folder:ROOT\0"}),
    "a path too long for the system": (made(), ("aaa/train", LAY_OUT), {"at": f"folder:ROOT/{'a' * 300}"}),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_bad_folder_is_refused_by_name(case, tmp_path, tally):
    make, words, asked = FOLDERS[case]
    make(tmp_path)
    asked = {k: v.replace("ROOT", str(tmp_path)) if isinstance(v, str) else v for k, v in asked.items()}
    check(asked.pop("at", f"folder:{tmp_path}"), words, tmp_path, **asked)
    tally("Bad input", "data folders", SEEN)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, tally):
    """As where its owner has shut it: whoever runs this as root may read it all the same."""
    photos(tmp_path)
    scan = os.scandir

    def shut(path: Any) -> Any:
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", shut)
    with pytest.raises(Refused) as caught:
        load(f"folder:{tmp_path}")
    one_line(caught.value, ("ROOT/train/bee cannot be read (Permission denied)", "mend it or take it away"), tmp_path)
    tally("Bad input", "data folders", SEEN)


def test_what_is_left_out_of_a_folder_is_said_once_in_one_line(tmp_path, tally):
    photos(tmp_path)
    for name in ("a.gif", "b.GIF", "c.heic", "d.avif", "e.mp4", "Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt"):
        alone(f"train/ant/{name}")(tmp_path)
    alone("train/bee/noending")(tmp_path)
    paint(tmp_path / "train/loose.png")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = load(f"folder:{tmp_path}")
    assert len(data) == 6 and len(said) == 1
    assert str(said[0].message) == (
        f"folder:{tmp_path}: left out 1 .avif, 2 .gif, 1 .heic, 1 .mp4, 1 in no class's folder, 1 without an ending; "
        "what is read ends in .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp, so save other pictures as PNG "
        "or JPEG"
    )
    assert said[0].filename == __file__
    tally("Bad input", "formats that are left out of a folder", "a warning with the number of each", tried=6)


def test_a_folder_without_anything_odd_is_read_without_a_word(tmp_path):
    photos(tmp_path)
    alone("train/ant/Thumbs.db")(tmp_path)
    alone("train/ant/labels.csv")(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(f"folder:{tmp_path}")) == len(load(f"folder:{tmp_path}", split="test")) == 6


def test_pictures_of_masks_that_are_left_out_are_said(tmp_path):
    KINDS["masks"](tmp_path)
    alone("train/images/x.gif")(tmp_path)
    with pytest.warns(UserWarning, match=r"train/images: left out 1 \.gif; what is read ends in"):
        assert len(load(f"masks:{tmp_path}")) == 5


def test_hidden_folders_below_a_class_are_not_read(tmp_path):
    photos(tmp_path)
    paint(tmp_path / "train/ant/.ipynb_checkpoints/0-checkpoint.png")
    paint(tmp_path / "train/ant/._0.png")
    assert len(load(f"folder:{tmp_path}")) == 6


def test_files_are_listed_in_the_order_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    photos(tmp_path, "train")
    for name in ("b/x.png", "a/x.png", "a-b/x.png", "a/y/x.png", "Z.PNG"):
        paint(tmp_path / "train/ant" / name)
    paint(tmp_path / "elsewhere/x.png")
    (tmp_path / "train/bee/link").symlink_to(tmp_path / "elsewhere")
    assert load(f"folder:{tmp_path}").samples == ImageFolder(str(tmp_path / "train")).samples


def test_a_file_whose_name_is_no_text_is_read(tmp_path):
    photos(tmp_path)
    os.rename(os.fsencode(tmp_path / "train/ant/1.png"), os.fsencode(tmp_path / "train/ant") + b"/\xff.png")
    data = load(f"folder:{tmp_path}")
    assert data[2][0].getpixel((0, 0)) == (40, 40, 40) and data.samples[2][0].endswith("\udcff.png")
    assert Stream(data, 6, 0, crop_size=8, workers=0)[0].x.shape == (6, 3, 8, 8)


# --- image files


def picture(width: int = 48, height: int = 40, slow: int = 1) -> Image.Image:
    """Smooth, with structure in every place."""
    y, x = np.mgrid[:height, :width] / slow
    waves = [np.sin(x / 7 + y / 9), np.sin(x / 11 - y / 5), np.sin((x + y) / 8)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def half(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    content = encoded(kind, image, **options)
    return content[: len(content) // 2]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)) + b"".join(chunks)


def tiff(width: int, height: int) -> bytes:
    """A TIFF's head that claims a size: uncompressed grey."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, height)]
    tags += [(279, 4, 10)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, kind, 1, v) for t, kind, v in tags)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)


def jpeg(width: int, height: int) -> bytes:
    content = encoded("JPEG")
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + struct.pack(">HH", height, width) + content[at + 9 :]


def bitmap(width: int, height: int) -> bytes:
    content = encoded("BMP")
    return content[:18] + struct.pack("<ii", width, height) + content[26:]


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


UNKNOWN = "its content is none of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"
LIMIT = "exceeds limit of"
FILM = encoded("WEBP", picture(8, 8), save_all=True, append_images=[Image.new("RGB", (8, 8))], duration=100)

IMAGES: dict[
    str, tuple[bytes | Callable[[Path], Any], str]
] = {  # what the file holds, or what makes it, and the reason
    "empty": (b"", "it is empty"),
    "text": (b"no image", UNKNOWN),
    "zeros": (bytes(4096), UNKNOWN),
    "HTML, as of a page that was not found": (b"<!DOCTYPE html><html><body>404</body></html>", UNKNOWN),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', UNKNOWN),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", UNKNOWN),
    "EPS, which is a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", UNKNOWN),
    "PDF": (b"%PDF-1.4\n%%EOF\n", UNKNOWN),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), UNKNOWN),
    "JPEG XL": (b"\xff\x0a" + bytes(64), UNKNOWN),
    "a film": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64), UNKNOWN),
    "an icon": (encoded("ICO"), UNKNOWN),
    "TGA": (encoded("TGA"), UNKNOWN),
    "a raw picture of numpy": (b"\x93NUMPY\x01\x00" + bytes(64), UNKNOWN),
    "an archive": (b"PK\x03\x04" + bytes(64), UNKNOWN),
    "PNG, its signature alone": (SIGNATURE, UNKNOWN),
    "PNG, its head alone": (png(9, 9), "("),
    "PNG without pixels": (png(9, 9, chunk(b"IEND", b"")), "("),
    "PNG, half": (half("PNG"), "truncated"),
    "PNG, a sum that does not fit": (flipped(encoded("PNG"), 20), "("),
    "PNG, pixels that cannot be unpacked": (png(9, 9, chunk(b"IDAT", b"none"), chunk(b"IEND", b"")), "("),
    "PNG of no width": (png(0, 9, chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")), "("),
    "PNG of 50,000 pixels a side": (png(50_000, 50_000, chunk(b"IDAT", b"")), LIMIT),
    "PNG of 2,147,483,647 pixels a side": (png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", b"")), LIMIT),
    "PNG, a text of 9 MB": (
        png(
            9, 9, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000))), chunk(b"IDAT", zlib.compress(bytes(252)))
        ),
        "ecompressed",
    ),
    "JPEG, its signature alone": (b"\xff\xd8\xff", "("),
    "JPEG, half": (half("JPEG"), "runcated"),
    "JPEG, progressive, half": (half("JPEG", progressive=True), "runcated"),
    "JPEG of 65,500 pixels a side": (jpeg(65_500, 65_500), LIMIT),
    "JPEG of no width": (jpeg(0, 9), "("),
    "WebP, half": (half("WEBP"), "("),
    "WebP, lossless, half": (half("WEBP", lossless=True), "("),
    "WebP, its signature alone": (b"RIFF\x24\0\0\0WEBPVP8 ", "("),
    "WebP, an animation of millions of pixels a side": (
        FILM[:24] + b"\x07\x43\x94" + FILM[27:],  # some hundred bytes, which took Pillow a minute
        "it is 9716488 x 8 pixels; a side may have 65535",
    ),
    "GIF, half": (half("GIF"), "("),
    "GIF, its signature alone": (b"GIF89a", UNKNOWN),
    "GIF of 65,535 pixels a side": (b"GIF89a\xff\xff\xff\xff" + encoded("GIF")[10:], LIMIT),
    "BMP, half": (half("BMP"), "truncated"),
    "BMP of 60,000 pixels a side": (bitmap(60_000, 60_000), LIMIT),
    "BMP of no width": (bitmap(0, 9), "("),
    "PPM, half": (half("PPM"), "("),
    "PPM of 99,999 pixels a side": (b"P6 99999 99999 255\n", LIMIT),
    "PPM, a size that is no number": (b"P6 nine 9 255\n" + bytes(243), "("),
    "TIFF, half": (half("TIFF"), "("),
    "TIFF of 60,000 pixels a side": (tiff(60_000, 60_000), LIMIT),
    "TIFF, numbers of 32 bits": (
        encoded("TIFF", Image.fromarray(np.full((8, 8), 70_000, np.int32))),
        "32 bits, of which nobody says what is white; save it with 8 or 16",
    ),
    "TIFF, floating-point": (
        encoded("TIFF", Image.fromarray(np.full((8, 8), 0.5, np.float32))),
        "floating-point, of which nobody says what is white; save it with 8",
    ),
    "a pipe": (lambda file: os.mkfifo(file), "it is no file but a folder, a pipe or a device"),
    "a link to nowhere": (lambda file: file.symlink_to("/nowhere/a.png"), "No such file or directory"),
    "a link to itself": (lambda file: file.symlink_to(file.name), "Too many levels of symbolic links"),
    "a link to a device": (lambda file: file.symlink_to("/dev/zero"), "it is no file but a folder, a pipe or a device"),
}


def spoilt(root: Path, content: bytes | Callable[[Path], Any], name: str = "odd.png") -> Path:
    """A data folder with one file of that content, or that `content` makes."""
    file = photos(root, "train") / "train/ant" / name
    if callable(content):
        content(file)
    else:
        file.write_bytes(content)
    return file


def readers(root: Path, file: Path) -> dict[str, Callable[[], Any]]:
    """All ways in which an image file reaches a network; each gives pixels."""

    def decoded(decoder: decoding.Decoder) -> torch.Tensor:
        images, unreadable = decoder.__getitems__([Item(str(file), 3)])
        if unreadable:
            raise Refused(unreadable[0][1])
        return images[0]

    def batches() -> Any:
        data = load(f"folder:{root}")
        return next(iter(CentreCrops(data, 8, workers=0).batches(range(len(data)), 7, "cpu")))[0]

    return {
        "one by one": lambda: [image for image, _ in load(f"folder:{root}")],
        "in memory": lambda: load(f"folder:{root}", size=8).images,
        "training": lambda: decoded(TrainingCrops(8, 0.08, True)),
        "evaluation": lambda: decoded(Centres(8)),
        "streamed": lambda: Stream(load(f"folder:{root}"), 7, 0, crop_size=8, workers=0)[0].x,
        "evaluated": batches,
        "annotated": lambda: annotated.picture(file),
        "its size alone": lambda: annotated.size_of(file),
    }


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """What takes longer is ended, by an error that no reader takes for a damaged file."""

    class Hangs(BaseException):
        pass

    def end(*_: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", IMAGES)
@pytest.mark.filterwarnings("ignore")
def test_a_bad_image_file_is_refused_by_every_reader(case, tmp_path, tally):
    content, reason = IMAGES[case]
    file = spoilt(tmp_path, content)
    before = files(tmp_path)
    for reader, read in readers(tmp_path, file).items():
        if reader == "its size alone" and "half" in case:
            continue  # the head is whole
        if reader == "its size alone" and case == "TIFF, floating-point":
            continue
        with within(60), pytest.raises(Refused) as caught:
            read()
        one_line(caught.value, (f"{file} is not a readable image (", reason, "replace or remove it"), tmp_path)
    assert files(tmp_path) == before
    tally("Bad input", "image files", SEEN)


@pytest.mark.filterwarnings("ignore")
def test_a_pipe_is_passed_over_where_that_is_wished(tmp_path):
    spoilt(tmp_path, os.mkfifo)
    stream = Stream(load(f"folder:{tmp_path}"), 7, 0, crop_size=8, workers=0, skip_corrupt=True)
    with within(60):
        assert stream[0].x.shape == (7, 3, 8, 8)
    assert stream.skipped == 1


def test_memory_is_not_spent_on_what_a_header_claims(tmp_path):
    import resource

    file = spoilt(tmp_path, png(50_000, 50_000, chunk(b"IDAT", zlib.compress(bytes(99)))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused, match=LIMIT):
        pictures.shown(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes; the pixels are 7.5 GB


@pytest.mark.parametrize("sides", [(1, 3000), (3000, 1)])
def test_of_a_thread_of_pixels_no_more_than_its_middle_is_enlarged(sides, tmp_path, monkeypatch):
    """The whole would be 256 pixels by 768,000."""
    file = spoilt(tmp_path, encoded("PNG", Image.linear_gradient("L").resize(sides).convert("RGB")))
    made, resize = [], Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], *given: Any, **settings: Any) -> Image.Image:
        made.append(size)
        return resize(image, size, *given, **settings)

    monkeypatch.setattr(Image.Image, "resize", noted)
    images, unreadable = Centres(224).__getitems__([Item(str(file), 0)])
    in_memory = load(f"folder:{tmp_path}", size=224).images[-1]
    assert not unreadable and in_memory.shape == images[0].shape == (3, 224, 224)
    assert made and max(max(size) for size in made) <= 256 * pictures.LONGEST
    if sides[0] == 1:  # dark above, bright below: the middle
        assert abs(int(images[0].float().mean()) - 127) < 3


# --- what a viewer shows


def shown_by_all(root: Path, file: Path, size: int) -> dict[str, np.ndarray]:
    """The pixels (H, W, 3) of a square picture of that side, as each reader gives them to a network."""
    with pictures.opened(file) as image:
        cut = resized_crop(image, (0, 0, size, size), size)
    listing = load(f"folder:{root}")
    row = [name for name, _ in listing.samples].index(str(file))
    whole = {
        "one by one": np.asarray(listing[row][0]),
        "in memory": load(f"folder:{root}", size=size).images[row].permute(1, 2, 0).numpy(),
        "training": cut.permute(1, 2, 0).numpy(),
        "annotated": annotated.picture(file).permute(1, 2, 0).numpy(),
    }
    assert annotated.size_of(file) == (size, size)
    return whole


def check_shown(root: Path, content: bytes, wanted: np.ndarray, name: str = "odd.png", within: int = 1) -> None:
    file = spoilt(root, content, name)
    for reader, found in shown_by_all(root, file, len(wanted)).items():
        assert found.shape == wanted.shape and found.dtype == np.uint8, reader
        assert np.abs(found.astype(int) - wanted).max() <= within, (reader, found[:2, :2], wanted[:2, :2])


def grey(values: Any) -> np.ndarray:
    """(H, W, 3) of grey values (H, W)."""
    return np.repeat(np.asarray(values)[:, :, None], 3, axis=2).astype(int)


RAMP = np.arange(0, 256, 4, dtype=np.uint16).reshape(8, 8)  # 0, 4, ... 252

SIXTEEN = {
    "PNG": encoded("PNG", Image.fromarray(RAMP * 257)),
    "TIFF": encoded("TIFF", Image.fromarray(RAMP * 257)),
    "TIFF of the other byte order": encoded(
        "TIFF", Image.frombytes("I;16B", (8, 8), (RAMP * 257).astype(">u2").tobytes())
    ),
    "PGM": b"P5 8 8 65535\n" + (RAMP * 257).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_grey_of_16_bits_is_as_bright_as_of_8(kind, tmp_path, tally):
    check_shown(tmp_path, SIXTEEN[kind], grey(RAMP))
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


def deep(transparent: bytes = b"") -> bytes:
    """A PNG of 16 bits a colour: red as RAMP, green 255, blue 0."""
    rows = np.stack([RAMP * 257, np.full((8, 8), 65535), np.zeros((8, 8))], axis=2).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    more = [chunk(b"tRNS", transparent)] if transparent else []
    return png(8, 8, *more, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""), depth=16)


def test_colour_of_16_bits_is_as_bright_as_of_8(tmp_path, tally):
    wanted = np.stack([RAMP, np.full((8, 8), 255), np.zeros((8, 8))], axis=2).astype(int)
    check_shown(tmp_path, deep(), wanted)
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


ALPHA = np.tile(np.array([0, 51, 102, 153, 204, 255, 255, 0]), (8, 1))
LAID = (RAMP * ALPHA + 255 * (255 - ALPHA)) / 255  # on white


def with_alpha(mode: str) -> Image.Image:
    colours = Image.fromarray(RAMP.astype(np.uint8)).convert(mode[:-1])
    colours.putalpha(Image.fromarray(ALPHA.astype(np.uint8)))
    return colours


def palette(transparent: bool) -> Image.Image:
    """64 greys, the first ten of them fully transparent or not."""
    image = Image.fromarray((RAMP // 4).astype(np.uint8)).convert("L")
    image = Image.frombytes("P", (8, 8), image.tobytes())
    image.putpalette([value for grey in range(0, 256, 4) for value in (grey,) * 3])
    if transparent:
        image.info["transparency"] = bytes(10)
    return image


HOLES = np.where(np.arange(64).reshape(8, 8) < 10, 255, RAMP)
ONE_HOLE = np.where(RAMP == 40, 255, RAMP)
PLAIN = Image.fromarray(RAMP.astype(np.uint8))
TRANSPARENT = {
    "grey with alpha, PNG": (encoded("PNG", with_alpha("LA")), LAID),
    "colour with alpha, PNG": (encoded("PNG", with_alpha("RGBA")), LAID),
    "colour with alpha, WebP": (encoded("WEBP", with_alpha("RGBA"), lossless=True, exact=True), LAID),
    "colour with alpha, TIFF": (encoded("TIFF", with_alpha("RGBA")), LAID),
    "palette with alpha, PNG": (encoded("PNG", palette(True), transparency=bytes(10)), HOLES),
    "palette, PNG": (encoded("PNG", palette(False)), RAMP),
    "palette with a hole, GIF": (encoded("GIF", palette(False), transparency=10), ONE_HOLE),
    "grey with a hole, PNG": (encoded("PNG", PLAIN, transparency=40), ONE_HOLE),
    "colour with a hole, PNG": (encoded("PNG", PLAIN.convert("RGB"), transparency=(40, 40, 40)), ONE_HOLE),
    "grey of 16 bits with a hole, PNG": (
        png(
            8,
            8,
            chunk(b"tRNS", struct.pack(">H", 40 * 257)),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in RAMP * 257))),
            chunk(b"IEND", b""),
            depth=16,
            colour=0,
        ),
        ONE_HOLE,
    ),
    "black and white, PNG": (encoded("PNG", Image.fromarray(RAMP > 100)), np.where(RAMP > 100, 255, 0)),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_is_laid_on_white(kind, tmp_path, tally):
    content, wanted = TRANSPARENT[kind]
    check_shown(tmp_path, content, grey(wanted))
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


def test_a_colour_of_16_bits_that_is_transparent_is_laid_on_white(tmp_path, tally):
    wanted = np.stack([RAMP, np.full((8, 8), 255), np.zeros((8, 8))], axis=2).astype(int)
    wanted[RAMP == 40] = 255
    check_shown(tmp_path, deep(struct.pack(">HHH", 40 * 257, 65535, 0)), wanted)
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


def quarters(side: int = 32) -> np.ndarray:
    """Red and green above, blue and yellow below; the red one with a dark corner."""
    pixels = np.zeros((side, side, 3), np.uint8)
    half = side // 2
    pixels[:half, :half], pixels[:half, half:] = (230, 20, 20), (20, 230, 20)
    pixels[half:, :half], pixels[half:, half:] = (20, 20, 230), (230, 230, 20)
    pixels[: half // 2, : half // 2] = 10
    return pixels


SIDES = {  # by EXIF's standard: where the first row and the first column of the file are in the picture
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(upright: np.ndarray, number: int) -> np.ndarray:
    """The pixels as a file of that orientation has them."""
    rows, columns = SIDES[number]
    if rows in ("left", "right"):
        upright = upright.swapaxes(0, 1)  # the file's rows are the picture's columns
    upright = upright[::-1] if rows in ("bottom", "right") else upright
    return upright[:, ::-1] if columns in ("bottom", "right") else upright


def oriented(kind: str, upright: np.ndarray, number: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return encoded(kind, Image.fromarray(np.ascontiguousarray(stored(upright, number))), exif=exif, **options)


LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "JPEG": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("number", SIDES)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_an_image_is_turned_as_exif_says(kind, number, tmp_path, tally):
    upright = quarters()
    content = oriented(kind, upright, number, **LOSSLESS[kind])
    check_shown(tmp_path, content, upright.astype(int), within=5 if kind == "JPEG" else 1)
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


def cut_of(file: Path, window: tuple[int, int, int, int] | None, size: int) -> torch.Tensor:
    with pictures.opened(file) as image:
        return centre_crop(image, size) if window is None else resized_crop(image, window, size)


@pytest.mark.parametrize("by_pil", [False, True], ids=["simplejpeg", "PIL"])
@pytest.mark.parametrize("number", SIDES)
def test_crops_of_a_turned_jpeg_are_those_of_an_upright_one(number, by_pil, tmp_path, monkeypatch):
    """At reduced size too, whose pixels begin at the file's corner and not at the picture's."""
    if by_pil:
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    upright = np.asarray(picture(203, 149, slow=5))
    (tmp_path / "upright.jpg").write_bytes(encoded("JPEG", Image.fromarray(upright), quality=98, subsampling=0))
    (tmp_path / "turned.jpg").write_bytes(oriented("JPEG", upright, number, quality=98, subsampling=0))
    for window, size in [
        ((0, 0, 149, 203), 16),
        ((13, 50, 90, 120), 16),
        ((31, 7, 40, 33), 32),
        (None, 16),
        (None, 120),
    ]:
        a, b = (cut_of(tmp_path / f"{name}.jpg", window, size).float() for name in ("upright", "turned"))
        assert a.shape == b.shape == (3, size, size)
        assert (a - b).abs().mean() < 1.5, (window, size, (a - b).abs().mean())


@pytest.mark.parametrize("number", SIDES)
def test_training_draws_its_windows_in_the_picture_as_it_is_shown(number, tmp_path):
    upright = np.asarray(picture(60, 44))
    (tmp_path / "upright.png").write_bytes(encoded("PNG", Image.fromarray(upright)))
    (tmp_path / "turned.png").write_bytes(oriented("PNG", upright, number))
    for seed in range(5):
        items = [[Item(str(tmp_path / f"{name}.png"), seed)] for name in ("upright", "turned")]
        a, b = (TrainingCrops(16, 0.1, True).__getitems__(item)[0].int() for item in items)
        assert (a - b).abs().max() <= 1


def test_damaged_exif_is_passed_over_as_viewers_do(tmp_path, tally):
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9)
    check_shown(
        tmp_path,
        encoded("JPEG", Image.fromarray(quarters()), exif=exif, quality=100, subsampling=0),
        quarters(),
        within=5,
    )
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_an_orientation_that_there_is_not_turns_nothing(number, tmp_path, tally):
    exif = Image.Exif()
    exif[0x0112] = number
    check_shown(tmp_path, encoded("PNG", Image.fromarray(quarters()), exif=exif), quarters().astype(int))
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


def test_a_damaged_png_is_refused_though_its_orientation_is_asked_for(tmp_path):
    """Its pixels are loaded to find EXIF behind them; what fails then must not pass the second time."""
    content = oriented("PNG", np.asarray(picture()), 6)
    at = content.index(b"IDAT") + 200
    file = spoilt(tmp_path, content[:at])
    for reader, read in readers(tmp_path, file).items():
        if reader != "its size alone":
            with pytest.raises(Refused, match=r"odd\.png is not a readable image"):
                read()


def animated(kind: str, **options: Any) -> bytes:
    """Three pictures, of which the first is the ramp."""
    later = [Image.new("L", (8, 8), value) for value in (255, 128)]
    return encoded(kind, PLAIN, save_all=True, append_images=later, duration=100, **options)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_of_an_animation_the_first_picture_is_shown(kind, options, tmp_path, tally):
    content = (
        animated(kind, **({} if kind == "TIFF" else options))
        if kind != "TIFF"
        else encoded("TIFF", PLAIN, save_all=True, append_images=[Image.new("L", (8, 8), 255)])
    )
    check_shown(tmp_path, content, grey(RAMP))
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("name", ["odd.jpg", "odd.webp"])
def test_the_content_counts_and_not_the_ending(kind, name, tmp_path, tally):
    check_shown(tmp_path, encoded(kind, PLAIN), grey(RAMP), name)
    tally("Bad input", "image files of another ending", "read by their content")


@pytest.mark.parametrize("by_pil", [False, True], ids=["simplejpeg", "PIL"])
@pytest.mark.parametrize(
    ("ink", "colour"),
    [
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 0, 0), (255, 0, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0,) * 4, (255,) * 3),
    ],
)
def test_ink_becomes_light(ink, colour, by_pil, tmp_path, monkeypatch, tally):
    if by_pil:
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    content = encoded("JPEG", Image.new("CMYK", (16, 16), ink), quality=100)
    check_shown(tmp_path, content, np.full((16, 16, 3), colour), within=2)
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}, {"progressive": True}, {"subsampling": 2}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_all_readers_agree_on_a_jpeg(mode, options, tmp_path, tally):
    image = picture(32, 32).convert(mode)
    options = {**options, "quality": 95} if mode == "RGB" or "keep_rgb" not in options else {"quality": 95}
    wanted = np.asarray(Image.open(io.BytesIO(encoded("JPEG", image, **options))).convert("RGB")).astype(int)
    check_shown(tmp_path, encoded("JPEG", image, **options), wanted, within=2)
    tally("Bad input", "pixels of odd image files", "what a viewer shows")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not ODD_FILES.is_dir(), reason="PSD_ODD_FILES (a folder of odd image files) is not set")
def test_odd_files_of_others_are_read_alike_by_all_readers_or_refused(tmp_path, tally):
    tried = 0
    for odd in sorted(ODD_FILES.glob("*.[jp][pn]g")):
        root = tmp_path / odd.stem
        file = spoilt(root, odd.read_bytes(), odd.name)
        outcomes = set()
        for reader, read in readers(root, file).items():
            try:
                read()
                outcomes.add("read")
            except Refused as error:
                assert str(file) in str(error)
                outcomes.add("refused" if reader != "its size alone" else "read")
        assert len(outcomes - ({"read"} if "refused" in outcomes else set())) == 1, (odd, outcomes)
        tried += 1
    tally("Bad input", "odd files of torchvision's tests", "an image or one line", tried=tried)


@pytest.mark.parametrize("learns", ["label", "mask"])
def test_images_of_a_data_set_of_one_s_own_are_converted_alike(learns, tmp_path):
    from psd.data.scenes import as_scenes

    class Own(list):
        classes = ("background", "thing")

    image = Image.fromarray(RAMP * 257)
    own = Own([(image, np.zeros((8, 8), np.uint8) if learns == "mask" else 0)])
    found = as_scenes(own, "mask")[0][0] if learns == "mask" else Items(own).image(0, 0)
    assert (found.permute(1, 2, 0).numpy() == grey(RAMP)).all()
    own[0] = (Image.fromarray(np.zeros((8, 8), np.float32)), own[0][1])
    with pytest.raises(Refused, match=r"item 0 of the data set: its numbers are floating-point, .* save it with 8"):
        as_scenes(own, "mask") if learns == "mask" else Items(own).image(0, 0)


@pytest.mark.parametrize("number", [6, 8])
def test_a_mask_is_turned_as_its_picture_is(number, tmp_path):
    KINDS["masks"](tmp_path)
    upright = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    (tmp_path / "train/images/a.jpg").write_bytes(oriented("JPEG", upright, number))
    (tmp_path / "train/masks/a.png").write_bytes(oriented("PNG", square(2, 1).astype(np.uint8), number))
    image, target = load(f"masks:{tmp_path}")[0]
    assert image.shape[1:] == (HEIGHT, WIDTH) and (target["mask"].numpy() == square(2, 1)).all()


# --- annotations


def bytes_at(file: str, content: bytes) -> Callable[[Path], Any]:
    return lambda root: (root / file).write_bytes(content)


def instead(file: str, make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Something else in the place of a file."""

    def done(root: Path) -> None:
        (root / file).unlink()
        make(root / file)

    return done


def first(**values: Any) -> Callable[[Path], None]:
    """COCO's first annotation, changed."""
    return edit(TRAIN, lambda found: found["annotations"][0].update(values))


def of_image(**values: Any) -> Callable[[Path], None]:
    return edit(TRAIN, lambda found: found["images"][0].update(values))


def lacking(part: str, key: str) -> Callable[[Path], None]:
    return edit(TRAIN, lambda found: found[part][0].pop(key))


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    + "]><annotation>&j;</annotation>"
)
A_LIST, AN_XML, CLASSES = "ImageSets/Segmentation/train.txt", "Annotations/a.xml", "classes.txt"
READABLE = "a.jpg is not a readable image ("
ANNOTATIONS: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "voc, no list": ("voc", gone(A_LIST), (f"there is no ROOT/{A_LIST}", "VOC's layout is")),
    "voc, an empty list": ("voc", write(A_LIST, "\n \n"), (f"ROOT/{A_LIST} lists no picture", "write the names")),
    "voc, a list that is no text": (
        "voc",
        bytes_at(A_LIST, b"\xff\xfe\0"),
        (f"ROOT/{A_LIST} is no text in UTF-8", "save"),
    ),
    "voc, a folder for a list": (
        "voc",
        instead(A_LIST, Path.mkdir),
        (f"ROOT/{A_LIST} cannot be read", "text file belongs"),
    ),
    "voc, a list of files elsewhere": (
        "voc",
        write(A_LIST, "../../../etc/passwd\n"),
        ("names the file '../../../etc/passwd.jpg'", "outside of ROOT/JPEGImages", "give a name in it"),
    ),
    "voc, a list of files from the root": (
        "voc",
        write(A_LIST, "/etc/passwd\n"),
        ("names the file '/etc/passwd.jpg'", "outside of ROOT/JPEGImages", "give a name in it"),
    ),
    "voc, a name too long for the system": (
        "voc",
        write(A_LIST, "a" * 300),
        ("there is no", "aaa.jpg", "VOC's layout"),
    ),
    "voc, a list with a zero byte": (
        "voc",
        write(A_LIST, "a\0b\n"),
        (r"names the file 'a\x00b.jpg'", "give a name in"),
    ),
    "voc, no picture": ("voc", gone("JPEGImages/a.jpg"), ("there is no ROOT/JPEGImages/a.jpg", "VOC's layout")),
    "voc, an empty picture": ("voc", write("JPEGImages/a.jpg", ""), (READABLE + "it is empty", "replace or remove it")),
    "voc, half a picture": (
        "voc",
        bytes_at("JPEGImages/a.jpg", half("JPEG", image=Image.new("RGB", (WIDTH, HEIGHT)))),
        (READABLE, "replace or remove it"),
    ),
    "voc, a folder for a picture": (
        "voc",
        instead("JPEGImages/a.jpg", Path.mkdir),
        (READABLE + "it is no file but a folder", "replace or remove it"),
    ),
    "voc, no mask": (
        "voc",
        gone("SegmentationClass/b.png"),
        ("there is no ROOT/SegmentationClass/b.png", "VOC's layout"),
    ),
    "voc, mask of another size": (
        "voc",
        lambda root: mask(root / "SegmentationClass/a.png", np.zeros((5, 5))),
        ("a.png is 5 x 5 pixels, its picture a.jpg 16 x 12", "a mask has the size"),
    ),
    "voc, a coloured mask": (
        "voc",
        lambda root: paint(root / "SegmentationClass/a.png"),
        ("SegmentationClass/a.png is an image of mode RGB", "one number from 0 to 255 a pixel"),
    ),
    "voc, a mask of other classes": (
        "voc",
        lambda root: mask(root / "SegmentationClass/a.png", square(99)),
        ("a.png holds the number 99", "the 21 classes are 0 ... 20"),
    ),
    "voc, no XML file": ("voc", gone(AN_XML), (f"there is no ROOT/{AN_XML}", "VOC's layout")),
    "voc, other class": (
        "voc",
        replaced(AN_XML, "cat", "unicorn"),
        ("a.xml: the object 'unicorn' is none of", "rename"),
    ),
    "voc, a class without a name": ("voc", replaced(AN_XML, "cat", ""), ("a.xml: the object '' is none of", "rename")),
    "voc, outside": (
        "voc",
        replaced(AN_XML, ">10<", ">17<"),
        ("a.xml: object 'cat': the box", "leaves the image", "clip"),
    ),
    "voc, no area": (
        "voc",
        replaced(AN_XML, ">10<", ">2<"),
        ("a.xml: object 'cat': the box", "has no area", "remove it"),
    ),
    "voc, no number": ("voc", replaced(AN_XML, ">10<", ">ten<"), ("'cat' has no bndbox with xmin, ymin", "add it")),
    "voc, nan": (
        "voc",
        replaced(AN_XML, ">10<", ">nan<"),
        ("'cat': the box", "not of finite numbers", "mend or remove"),
    ),
    "voc, infinity": (
        "voc",
        replaced(AN_XML, ">10<", ">1e999<"),
        ("'cat': the box", "not of finite numbers", "mend or"),
    ),
    "voc, no box": ("voc", replaced(AN_XML, "bndbox", "box"), ("'cat' has no bndbox with xmin, ymin", "add it")),
    "voc, no XML": ("voc", write(AN_XML, "<annotation>"), ("a.xml is not readable as XML", "replace or remove it")),
    "voc, empty XML": ("voc", write(AN_XML, ""), ("a.xml is not readable as XML", "replace or remove it")),
    "voc, XML that is no text": (
        "voc",
        bytes_at(AN_XML, b"\xff\xfe\0"),
        ("a.xml is not readable as XML", "replace or"),
    ),
    "voc, XML of an unknown encoding": (
        "voc",
        write(AN_XML, '<?xml version="1.0" encoding="klingon"?><annotation/>'),
        ("a.xml is not readable as XML", "replace or remove it"),
    ),
    "voc, XML that grows a billion times": (
        "voc",
        write(AN_XML, LAUGHS),
        ("a.xml is not readable as XML", "replace or"),
    ),
    "penn-fudan, no mask": ("penn-fudan", gone("PedMasks/3_mask.png"), ("no ROOT/PedMasks/3_mask.png", "Penn-Fudan's")),
    "penn-fudan, no picture": (
        "penn-fudan",
        lambda root: [file.unlink() for file in (root / "PNGImages").iterdir()],
        ("ROOT/PNGImages holds no picture", "Penn-Fudan's layout is"),
    ),
    "penn-fudan, damaged": (
        "penn-fudan",
        write("PNGImages/2.png", "no"),
        ("2.png is not a readable image (" + UNKNOWN, "replace or remove it"),
    ),
    "penn-fudan, a damaged mask": (
        "penn-fudan",
        bytes_at("PedMasks/2_mask.png", half("PNG", image=Image.new("L", (WIDTH, HEIGHT)))),
        ("2_mask.png is not a readable", "replace or remove it"),
    ),
    "penn-fudan, a huge mask": (
        "penn-fudan",
        bytes_at("PedMasks/2_mask.png", png(50_000, 50_000, chunk(b"IDAT", b""))),
        ("2_mask.png is not a readable", LIMIT, "replace or remove it"),
    ),
    "penn-fudan, a mask of 16 bits": (
        "penn-fudan",
        lambda root: Image.fromarray(np.full((HEIGHT, WIDTH), 300, np.uint16)).save(root / "PedMasks/2_mask.png"),
        ("2_mask.png is an image of mode I", "number from 0 to 255 a pixel"),
    ),
    "coco, no file": ("coco", gone(TRAIN), ("there is no ROOT/annotations/instances_train*.json", "COCO's layout")),
    "coco, no pictures' folder": (
        "coco",
        lambda root: (root / "train2017").rename(root / "pictures"),
        ("neither ROOT/train2017 nor ROOT/images/train2017", "COCO's layout"),
    ),
    "coco, no JSON": ("coco", write(TRAIN, "{"), ("train2017.json is not readable as JSON", "replace it")),
    "coco, JSON that is no text": (
        "coco",
        bytes_at(TRAIN, b"\xff{}"),
        ("train2017.json is no text in UTF-8", "save it so"),
    ),
    "coco, JSON of a hundred thousand brackets": (
        "coco",
        write(TRAIN, "[" * 100_000),
        ("train2017.json is not readable as JSON", "replace it"),
    ),
    "coco, a folder for JSON": (
        "coco",
        instead(TRAIN, Path.mkdir),
        ("train2017.json cannot be read", "text file belongs"),
    ),
    "coco, other JSON": (
        "coco",
        write(TRAIN, "[]"),
        ("is no COCO file of instances: it has no images, annotations", "COCO's"),
    ),
    "coco, a part that is no list": (
        "coco",
        edit(TRAIN, lambda found: found.update(images={"one": 1})),
        ("train2017.json: images must be a list, got {'one': 1}", "see cocodataset.org"),
    ),
    "coco, an entry that is none": (
        "coco",
        edit(TRAIN, lambda found: found["annotations"].append("cat")),
        ("entry 4 of annotations must have image_id", "add it, or remove the entry"),
    ),
    "coco, an image without an id": ("coco", lacking("images", "id"), ("entry 0 of images must have id", "add it, or")),
    "coco, an image without a file": (
        "coco",
        lacking("images", "file_name"),
        ("entry 0 of images must have file_name", "add"),
    ),
    "coco, a category without a name": (
        "coco",
        lacking("categories", "name"),
        ("entry 0 of categories must have name", "add"),
    ),
    "coco, an id that is no number": (
        "coco",
        of_image(id="one"),
        ("entry 0 of images must have a whole number as id", "'one'"),
    ),
    "coco, an id twice": ("coco", of_image(id=2), ("two of images have the id 2", "each has one of its own")),
    "coco, a category twice": (
        "coco",
        edit(TRAIN, lambda found: found["categories"][0].update(id=3)),
        ("two of categories have the id 3", "each has one of its own"),
    ),
    "coco, too many categories": (
        "coco",
        edit(TRAIN, lambda found: found.update(categories=[{"id": i, "name": str(i)} for i in range(300)])),
        ("train2017.json has 300 categories", "a mask has room for 254", "take some out"),
    ),
    "coco, no image": (
        "coco",
        edit(TRAIN, lambda found: found.update(images=[], annotations=[])),
        ("lists no picture", "add"),
    ),
    "coco, no picture": ("coco", gone("train2017/one.jpg"), ("there is no ROOT/train2017/one.jpg", "COCO's layout")),
    "coco, a picture elsewhere": (
        "coco",
        of_image(file_name="../../secret.jpg"),
        ("image 1 names the file '../../secret.jpg'", "outside of ROOT/train2017", "give a name in it"),
    ),
    "coco, a picture from the root": (
        "coco",
        of_image(file_name="/etc/passwd"),
        ("image 1 names the file '/etc/passwd'", "outside of ROOT/train2017", "give a name in it"),
    ),
    "coco, a file name that is none": (
        "coco",
        of_image(file_name=None),
        ("image 1 names the file None", "give a name in"),
    ),
    "coco, no height": (
        "coco",
        of_image(height=None),
        ("image 1 must have height and width", "got None and 16", "write those"),
    ),
    "coco, a height of 0": (
        "coco",
        of_image(height=0),
        ("image 1 must have height and width", "got 0 and 16", "write those"),
    ),
    "coco, half a pixel": (
        "coco",
        of_image(width=16.5),
        ("image 1 must have height and width", "got 12 and 16.5", "write"),
    ),
    "coco, a height that is nan": (
        "coco",
        of_image(height=float("nan")),
        ("image 1 must have height", "got nan", "write"),
    ),
    "coco, another size": (
        "coco",
        of_image(height=20),
        ("one.jpg is 16 x 12 pixels", "its annotation says 16 x 20", "the boxes would be elsewhere"),
    ),
    "coco, category": (
        "coco",
        first(category_id=9),
        ("annotation 1 has the category 9", "none of 3, 7", "mend or remove"),
    ),
    "coco, a category that is a list": (
        "coco",
        first(category_id=[7]),
        ("annotation 1 has the category [7]", "mend or"),
    ),
    "coco, image": (
        "coco",
        first(image_id=5),
        ("annotations name the image 5", "not among its images", "add it, or remove"),
    ),
    "coco, outside": (
        "coco",
        first(bbox=[2, 3, 40, 4]),
        ("annotation 1: the box [2.0, 3.0, 42.0, 7.0] leaves the image of 16 x 12", "clip or remove"),
    ),
    "coco, a box of nan": (
        "coco",
        first(bbox=[2, 3, float("nan"), 4]),
        ("annotation 1: the box", "finite", "mend or remove"),
    ),
    "coco, a box without end": (
        "coco",
        first(bbox=[2, 3, float("inf"), 4]),
        ("annotation 1: the box", "finite", "mend or"),
    ),
    "coco, a box of a huge number": (
        "coco",
        first(bbox=[2, 3, 10**400, 4]),
        ("annotation 1 must have", "four numbers", "mend"),
    ),
    "coco, a box of three numbers": (
        "coco",
        first(bbox=[2, 3, 4]),
        ("annotation 1 must have", "got 7 and [2, 3, 4]", "mend"),
    ),
    "coco, a box of words": (
        "coco",
        first(bbox="none"),
        ("annotation 1 must have", "got 7 and 'none'", "mend or remove"),
    ),
    "coco, no box": (
        "coco",
        lacking("annotations", "bbox"),
        ("annotation 1 must have", "four numbers", "mend or remove it"),
    ),
}
MASK = ("annotation 1 is not understood (", "mend or remove it")
ANNOTATIONS |= {
    f"coco, a segmentation {case}": ("coco", first(segmentation=found), (*MASK, reason))
    for case, found, reason in [
        ("of words", "round", "'round', not a list of polygons"),
        ("of a number", 7, "7, not a list of polygons"),
        ("of numbers", [1, 2, 3, 4, 5, 6], "not a list of polygons"),
        ("of two corners", [[1, 1, 2, 2]], "4 numbers: x and y of three corners or more"),
        ("of no corners", [[]], "0 numbers: x and y of three corners or more"),
        ("of half a corner", [[1, 1, 2, 2, 3, 3, 4]], "7 numbers: x and y of three corners or more"),
        ("of a word", [[1, 1, 2, 2, 3, "three"]], "must have numbers in the picture"),
        ("far away", [[1, 1, 2, 2, 3, 1e12]], "must have numbers in the picture"),
        ("of nan", [[1, 1, 2, 2, 3, float("nan")]], "must have numbers in the picture"),
        ("of another size", {"size": [9, 9], "counts": [81]}, "its size is [9, 9], its picture's [12, 16]"),
        ("of a huge size", {"size": [10**6, 10**6], "counts": "PPPP"}, "its size is [1000000, 1000000]"),
        ("without a size", {"counts": [192]}, "its size is None"),
        ("of a number for a size", {"size": 9, "counts": [192]}, "its size is 9"),
        ("without counts", {"size": [12, 16]}, "whole numbers or their code, got None"),
        ("of too many counts", {"size": [12, 16], "counts": [0, 9999]}, "add up to 9999 pixels, its picture has 192"),
        ("of negative counts", {"size": [12, 16], "counts": [-8, 200]}, "whole numbers or their code, got [-8, 200]"),
        ("of a garbled code", {"size": [12, 16], "counts": "\u007f" * 40}, "are no run-length code"),
        ("of a code of other letters", {"size": [12, 16], "counts": "日本"}, "are no run-length code"),
        ("of an empty code", {"size": [12, 16], "counts": ""}, "add up to 0 pixels, its picture has 192"),
        ("of a code that is too short", {"size": [12, 16], "counts": "11"}, "add up to 2 pixels, its picture has 192"),
        ("of a code without an end", {"size": [12, 16], "counts": "o" * 10**6}, "are no run-length code"),
        ("of a code that ends early", {"size": [12, 16], "counts": "PPPPo"}, "ends in the middle of a number"),
    ]
}
ANNOTATIONS |= {
    "masks, no folder": (
        "masks",
        lambda root: (root / "train").rename(root / "t"),
        ("no ROOT/train/images", "the layout is"),
    ),
    "masks, a file for the folder": (
        "masks",
        lambda root: [(root / "train").rename(root / "t"), (root / "train").mkdir(), (root / "train/images").touch()],
        ("ROOT/train/images is a file, not a folder", "the layout is"),
    ),
    "masks, none": ("masks", gone("train/masks/c.png"), ("there is no ROOT/train/masks/c.png", "the layout is")),
    "masks, colours": (
        "masks",
        lambda root: paint(root / "train/masks/c.png"),
        ("c.png is an image of mode RGB", "a mask has one number"),
    ),
    "masks, with alpha": (
        "masks",
        lambda root: Image.new("LA", (WIDTH, HEIGHT)).save(root / "train/masks/c.png"),
        ("c.png is an image of mode LA", "a mask has one number"),
    ),
    "masks, floating-point": (
        "masks",
        lambda root: Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)).save(
            root / "train/masks/c.png", "TIFF"
        ),
        ("c.png is an image of mode F", "a mask has one number"),
    ),
    "masks, other class": (
        "masks",
        lambda root: mask(root / "train/masks/c.png", square(7)),
        ("c.png holds the number 7", "the 3 classes are 0 ... 2, and 255"),
    ),
    "masks, another size": (
        "masks",
        lambda root: mask(root / "train/masks/c.png", np.zeros((4, 9))),
        ("c.png is 9 x 4 pixels, its picture c.jpg 16 x 12", "a mask has the size"),
    ),
    "masks, damaged": ("masks", write("train/masks/c.png", "no"), ("c.png is not a readable", "replace or remove it")),
    "masks, a pipe": (
        "masks",
        instead("train/masks/c.png", os.mkfifo),
        ("c.png is not a readable", "a pipe", "replace or"),
    ),
    "masks, one class": (
        "masks",
        write(CLASSES, "all\n"),
        ("ROOT/classes.txt must name at least two classes", "got 1: ['all']"),
    ),
    "masks, a class twice": (
        "masks",
        write(CLASSES, "a\nb\na\n"),
        ("classes.txt names the class 'a' twice", "rename one"),
    ),
    "masks, too many classes": (
        "masks",
        write(CLASSES, "\n".join(map(str, range(256)))),
        ("classes.txt must name at least two classes and at most 255", "got 256"),
    ),
    "masks, classes that are no text": (
        "masks",
        bytes_at(CLASSES, b"a\n\xe9\n"),
        ("classes.txt is no text in UTF-8", "save it"),
    ),
    "masks, background alone": (
        "masks",
        lambda root: (
            [(root / CLASSES).unlink()]
            + [mask(file, np.zeros((HEIGHT, WIDTH))) for file in (root / "train/masks").iterdir()]
        ),
        ("masks of ROOT/train hold nothing but background", "a class is a number from 1 on"),
    ),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_bad_annotations_are_refused_by_name(case, tmp_path, tally):
    kind, spoil, words = ANNOTATIONS[case]
    root = KINDS[kind](tmp_path)
    spoil(root)
    with within(60):
        check(f"{kind}:{root}", words, root)
    tally("Bad input", "annotations", SEEN)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_annotations_that_is_not_there_is_refused_by_name(kind, tmp_path, tally):
    check(f"{kind}:{tmp_path}/none", ("there is no ROOT/none", "layout is"), tmp_path)
    tally("Bad input", "annotations", SEEN)


@pytest.mark.parametrize("file", [TRAIN, CLASSES, A_LIST])
def test_a_text_saved_by_windows_is_read(file, tmp_path):
    """With a mark before it, which is no part of the first name."""
    kind = {TRAIN: "coco", CLASSES: "masks", A_LIST: "voc"}[file]
    root = KINDS[kind](tmp_path)
    expected = load(f"{kind}:{root}")
    (root / file).write_bytes(b"\xef\xbb\xbf" + (root / file).read_bytes())
    found = load(f"{kind}:{root}")
    assert found.classes == expected.classes and torch.equal(found[0][0], expected[0][0])


def test_a_turned_tiff_has_the_size_that_viewers_show(tmp_path):
    (tmp_path / "a.tif").write_bytes(oriented("TIFF", np.zeros((HEIGHT, WIDTH, 3), np.uint8), 6))
    assert annotated.size_of(tmp_path / "a.tif") == (HEIGHT, WIDTH) == annotated.picture(tmp_path / "a.tif").shape[1:]


# --- labels and tables

REMEDY = "run `psd data get cifar100`"
TABLE, NPZ = "cifar100/train-00000-of-00001.parquet", "cifar100-train.npz"
PNG = encoded("PNG", picture(32, 32))


def table(*rows: tuple[Any, Any], names: tuple[str, str] = ("img", "fine_label")) -> Callable[[Path], None]:
    """A Parquet file of these images and labels."""

    def make(root: Path) -> None:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        (root / "cifar100").mkdir()
        pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), root / TABLE)

    return make


def img(content: Any = PNG) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def arrays(**changed: Any) -> Callable[[Path], None]:
    """An npz file of six images; None leaves an array out."""

    def make(root: Path) -> None:
        whole = {
            "x": np.zeros((6, 32, 32, 3), np.uint8),
            "y": np.arange(6) % 3,
            "classes": np.array(["apple", "baby", "bear"]),
        }
        np.savez(root / NPZ, **{key: value for key, value in {**whole, **changed}.items() if value is not None})

    return make


def then_cut(make: Callable[[Path], None], file: str) -> Callable[[Path], None]:
    def done(root: Path) -> None:
        make(root)
        os.truncate(root / file, (root / file).stat().st_size // 2)

    return done


def claims(shape: tuple[int, ...]) -> Callable[[Path], None]:
    """An npz file whose x says to be of that shape, and holds 99 bytes."""
    import zipfile

    def make(root: Path) -> None:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(root / NPZ, "w") as file:
            file.writestr("x.npy", head.getvalue() + bytes(99))

    return make


def original(root: Path) -> None:
    (root / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (root / "cifar-100-python" / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")


PARQUET = f"ROOT/{TABLE} is not a readable parquet file of CIFAR-100"
NUMPY = f"ROOT/{NPZ} is not a readable npz file of CIFAR-100"
HOLDS = f"ROOT/{NPZ} must hold"
ROW = f"ROOT/{TABLE}, row 1,"
GOOD = (img(), 5)
TABLES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "nothing at all": (lambda root: None, ("no CIFAR-100 train split under 'ROOT'", REMEDY)),
    "parquet, empty": (alone(TABLE), (PARQUET, REMEDY)),
    "parquet, text": (alone(TABLE, b"no table"), (PARQUET, REMEDY)),
    "parquet, half": (then_cut(table(GOOD, GOOD), TABLE), (PARQUET, REMEDY)),
    "parquet, its marks alone": (alone(TABLE, b"PAR1" + bytes(8) + b"PAR1"), (PARQUET, REMEDY)),
    "parquet, no images": (table(GOOD, names=("image", "fine_label")), (PARQUET, "img", REMEDY)),
    "parquet, no labels": (table(GOOD, names=("img", "label")), (PARQUET, "fine_label", REMEDY)),
    "parquet, a label below": (table(GOOD, (img(), -1)), (ROW, "has the fine_label -1", "0 to 99", REMEDY)),
    "parquet, a label above": (table(GOOD, (img(), 100)), (ROW, "has the fine_label 100", "0 to 99", REMEDY)),
    "parquet, no label in a row": (table(GOOD, (img(), None)), (ROW, "has the fine_label None", "0 to 99", REMEDY)),
    "parquet, half a label": (table((img(), 1.0), (img(), 2.5)), ("row 0", "has the fine_label 1.0", REMEDY)),
    "parquet, a name for a label": (table((img(), "cat"), (img(), "dog")), ("row 0", "has the fine_label cat", REMEDY)),
    "parquet, no image in a row": (table(GOOD, (None, 5)), (ROW, "has no image in img, but None", REMEDY)),
    "parquet, no bytes in a row": (table(GOOD, (img(None), 5)), (ROW, "has no image in img, but None", REMEDY)),
    "parquet, an image that is none": (
        table(GOOD, (img(b"no"), 5)),
        (ROW, f"is not a readable image ({UNKNOWN}", REMEDY),
    ),
    "parquet, half an image": (table(GOOD, (img(PNG[:300]), 5)), (ROW, "is not a readable image (", REMEDY)),
    "parquet, an empty image": (table(GOOD, (img(b""), 5)), (ROW, "is not a readable image (", REMEDY)),
    "parquet, an image of another size": (
        table(GOOD, (img(encoded("PNG", picture(31, 32))), 5)),
        (ROW, "is 31 x 32 pixels, not 32 x 32", "by `folder:PATH`"),
    ),
    "parquet, a huge image": (table(GOOD, (img(png(50_000, 50_000, chunk(b"IDAT", b""))), 5)), (ROW, LIMIT, REMEDY)),
    "parquet, a large image": (
        table(GOOD, (img(png(9_000, 9_000, chunk(b"IDAT", b""))), 5)),
        (ROW, "is 9000 x 9000 pixels", "`folder:PATH`"),
    ),
    "parquet, other images": (
        table(GOOD, GOOD),
        (f"ROOT/{TABLE} is not CIFAR-100's train split (2 images", "verify=False"),
    ),
    "npz, empty": (alone(NPZ), (NUMPY, REMEDY)),
    "npz, text": (alone(NPZ, b"no arrays"), (NUMPY, REMEDY)),
    "npz, half": (then_cut(arrays(), NPZ), (NUMPY, REMEDY)),
    "npz, a single array": (lambda root: np.save((root / NPZ).open("wb"), np.zeros(3)), (NUMPY, REMEDY)),
    "npz, no images": (arrays(x=None), (NUMPY, "x", REMEDY)),
    "npz, no labels": (arrays(y=None), (NUMPY, "y", REMEDY)),
    "npz, no names": (arrays(classes=None), (NUMPY, "classes", REMEDY)),
    "npz, objects, which run code": (arrays(y=np.array([0, 1, 2, None, 1, 0])), (NUMPY, "allow_pickle=False", REMEDY)),
    "npz, images of floating-point numbers": (
        arrays(x=np.zeros((6, 32, 32, 3))),
        (HOLDS, "float64 (6, 32, 32, 3)", REMEDY),
    ),
    "npz, images of one channel": (arrays(x=np.zeros((6, 32, 32), np.uint8)), (HOLDS, "uint8 (6, 32, 32)", REMEDY)),
    "npz, channels first": (arrays(x=np.zeros((6, 3, 32, 32), np.uint8)), (HOLDS, "uint8 (6, 3, 32, 32)", REMEDY)),
    "npz, fewer labels than images": (arrays(y=np.zeros(5, int)), (HOLDS, "(6, 32, 32, 3) and (5,)", REMEDY)),
    "npz, labels of two dimensions": (arrays(y=np.zeros((6, 1), int)), (HOLDS, "(6, 32, 32, 3) and (6, 1)", REMEDY)),
    "npz, labels of floating-point numbers": (
        arrays(y=np.zeros(6)),
        (HOLDS, "whole numbers as labels y, got float64", REMEDY),
    ),
    "npz, labels that are names": (
        arrays(y=np.array(["a"] * 6)),
        (HOLDS, "whole numbers as labels y, got <U1", REMEDY),
    ),
    "npz, a label below": (arrays(y=np.array([0, 1, 2, -1, 0, 1])), ("has the label -1", "0 to 2", REMEDY)),
    "npz, a label above": (arrays(y=np.array([0, 1, 2, 3, 0, 1])), ("has the label 3", "0 to 2", REMEDY)),
    "npz, no class": (arrays(classes=np.array([], str)), ("has the label 0", "its classes", REMEDY)),
    "npz, a name twice": (
        arrays(classes=np.array(["a", "b", "a"])),
        (HOLDS, "no two alike, got ['a', 'b', 'a']", REMEDY),
    ),
    "npz, names of two dimensions": (
        arrays(classes=np.array([["a"], ["b"], ["c"]])),
        (HOLDS, "no two alike, got", REMEDY),
    ),
    "npz, no rows": (
        arrays(x=np.zeros((0, 32, 32, 3), np.uint8), y=np.zeros(0, int)),
        (f"ROOT/{NPZ} holds no images", REMEDY),
    ),
    "npz, a terabyte that is not there": (claims((10**9, 32, 32, 3)), (NUMPY, REMEDY)),
    "python, files that run code": (
        original,
        ("ROOT/cifar-100-python/train is not the original file", "nothing there is", REMEDY),
    ),
    "python, no files": (folder("cifar-100-python"), ("ROOT/cifar-100-python/train is missing", "remove", REMEDY)),
    "python, an archive that is none": (
        alone("cifar-100-python.tar.gz", b"no archive"),
        ("ROOT/cifar-100-python.tar.gz is not the original archive", "remove it", REMEDY),
    ),
    "python, an empty archive": (
        alone("cifar-100-python.tar.gz"),
        ("is not the original archive", "remove it", REMEDY),
    ),
    "folders, no classes": (folder("cifar100/train"), ("ROOT/cifar100/train holds no images", REMEDY)),
    "folders, no images": (folder("cifar100/train/apple"), ("ROOT/cifar100/train holds no images", REMEDY)),
    "folders, hidden ones alone": (
        lambda root: paint(root / "train/.ipynb_checkpoints/0.png", size=(32, 32)),
        ("ROOT/train holds no images", REMEDY),
    ),
    "folders, an image of another size": (
        lambda root: paint(root / "train/apple/0.png", size=(16, 32)),
        ("ROOT/train/apple/0.png is 16 x 32 pixels, not 32 x 32", "load such images by `folder:PATH`"),
    ),
    "folders, an image that is none": (
        alone("train/apple/0.png", b"no"),
        ("ROOT/train/apple/0.png is not a readable image (", REMEDY),
    ),
    "folders, other images": (
        lambda root: paint(root / "train/apple/0.png", size=(32, 32)),
        ("ROOT/train is not CIFAR-100's train split (1 images", "verify=False"),
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_bad_table_is_refused_by_name(case, tmp_path, tally):
    make, words = TABLES[case]
    make(tmp_path)
    with within(60):
        check("cifar100", words, tmp_path, root=tmp_path)
    tally("Bad input", "labels and tables", SEEN)


def test_hidden_folders_and_files_are_no_part_of_cifar100(tmp_path):
    for name in ("apple/0.png", "baby/0.png", ".ipynb_checkpoints/0.png", "apple/._0.png"):
        paint(tmp_path / "train" / name, size=(32, 32))
    raw = cifar100._read_folder(tmp_path / "train", "train")
    assert raw.classes == ("apple", "baby") and len(raw.pixels) == 2


class Own:
    """A data set of one's own, whose labels are given."""

    def __init__(self, labels: Any, size: int = 6) -> None:
        self.targets, self.size = labels, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return torch.zeros(3, 8, 8, dtype=torch.uint8), 0


LABELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "names": (["ant", "bee"] * 3, ("labels must be N integers, got ['ant', 'bee'",)),
    "nothing": ([None] * 6, ("labels must be N integers, got [None",)),
    "floating-point numbers": ([0.5] * 6, ("labels must be N integers, got torch.float32 of shape (6,)",)),
    "two dimensions": ([[0], [1]] * 3, ("labels must be N integers, got torch.int64 of shape (6, 1)",)),
    "of unequal lengths": ([[0], [1, 2]] * 3, ("labels must be N integers, got [[0], [1, 2]",)),
    "a class of one image": (
        [0, 0, 0, 0, 0, 1],
        ("class 1 has a single image", "leave these classes out or add images"),
    ),
    "each its own": (list(range(6)), ("class 0 has a single image", "(6 such classes)", "add images")),
}


@pytest.mark.parametrize("case", LABELS)
def test_bad_labels_are_refused(case, tmp_path, tally):
    labels, words = LABELS[case]
    with pytest.raises(Refused) as caught:
        Stream(Own(labels), 2, 0, ("partner",), workers=0)
    one_line(caught.value, words, tmp_path)
    tally("Bad input", "labels and tables", SEEN)


# --- by the command line


def folder_case(case: str) -> Callable[[Path], tuple[str, tuple[str, ...]]]:
    make, words, asked = FOLDERS[case]

    def made(root: Path) -> tuple[str, tuple[str, ...]]:
        make(root)
        return asked.get("at", "folder:ROOT"), words

    return made


def image_case(case: str) -> Callable[[Path], tuple[str, tuple[str, ...]]]:
    def made(root: Path) -> tuple[str, tuple[str, ...]]:
        file = spoilt(photos(root), IMAGES[case][0])
        return "folder:ROOT", (f"{file} is not a readable image (", IMAGES[case][1], "replace or remove it")

    return made


def annotated_case(case: str) -> Callable[[Path], tuple[str, tuple[str, ...]]]:
    kind, spoil, words = ANNOTATIONS[case]

    def made(root: Path) -> tuple[str, tuple[str, ...]]:
        spoil(KINDS[kind](root))
        return f"{kind}:ROOT", words

    return made


def table_case(case: str) -> Callable[[Path], tuple[str, tuple[str, ...]]]:
    make, words = TABLES[case]

    def made(root: Path) -> tuple[str, tuple[str, ...]]:
        make(root)
        return "cifar100", words

    return made


COMMANDS = {
    **{
        case: folder_case(case) for case in ("no folder", "a class that the test lacks", "links in a circle", "no test")
    },
    **{case: folder_case(case) for case in ("a class whose name is no text", "a class that is a link to nowhere")},
    **{case: image_case(case) for case in ("empty", "JPEG, half", "PNG of 50,000 pixels a side", "a pipe", "HEIC")},
    **{
        case: annotated_case(case)
        for case in ("voc, nan", "coco, a segmentation of a huge size", "masks, a class twice")
    },
    **{case: table_case(case) for case in ("parquet, half a label", "npz, labels of floating-point numbers")},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_line_says_it_in_one_line_and_writes_nothing(case, tmp_path, capsys, tally):
    root, output = tmp_path / "data", tmp_path / "runs"
    root.mkdir()
    name, words = COMMANDS[case](root)
    asked = {"data.name": name.replace("ROOT", str(root)), "data.root": root, "data.size": 16, "run.output": output}
    asked |= {"data.workers": 0, "run.progress": "false", "budget.epochs": 1}
    if name == "cifar100":
        asked["data.split"] = "fit"  # of which the rest is the test
    if name.partition(":")[0] in KINDS:
        asked |= {"task.name": "segmentation", "model.name": "fcn@resnet8"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {batch_size: 2}\nmodel: {name: resnet8}\nmethod: {name: cross_entropy}\n")
    given = ["train", str(recipe), *(part for key, value in asked.items() for part in (f"--{key}", str(value)))]
    before = files(tmp_path)
    with within(60):
        assert main(given) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("psd: error: ") and said.err.count("\n") == 1, said.err
    one_line(Refused(said.err.strip()), words, root)
    assert files(tmp_path) == before
    tally("Bad input", "data, by the command line", "one line, exit code 2, nothing written")


# --- fuzzed image files

SEEDS = {
    "PNG": [
        encoded("PNG"),
        encoded("PNG", with_alpha("RGBA")),
        oriented("PNG", quarters(), 6),
        SIXTEEN["PNG"],
        animated("PNG"),
    ],
    "JPEG": [
        encoded("JPEG"),
        encoded("JPEG", progressive=True),
        oriented("JPEG", quarters(), 8),
        encoded("JPEG", PLAIN),
    ],
    "CMYK": [encoded("JPEG", picture().convert("CMYK"))],
    "WebP": [encoded("WEBP"), encoded("WEBP", with_alpha("RGBA"), lossless=True), animated("WEBP")],
    "GIF": [encoded("GIF"), animated("GIF"), encoded("GIF", palette(False), transparency=10)],
    "BMP": [encoded("BMP"), encoded("BMP", PLAIN), encoded("BMP", palette(False))],
    "TIFF": [encoded("TIFF"), encoded("TIFF", picture(), compression="tiff_lzw"), oriented("TIFF", quarters(), 5)],
    "PPM": [encoded("PPM"), SIXTEEN["PGM"]],
}
WHOLE = [content for contents in SEEDS.values() for content in contents]


@st.composite
def spoilt_content(draw: st.DrawFn) -> bytes:
    """Random bytes, or an image file with bits flipped, a part cut off or put in the place of another."""
    if draw(st.integers(0, 9)) == 0:
        return draw(
            st.sampled_from([b"", b"\xff\xd8\xff", SIGNATURE, b"GIF89a", b"BM", b"RIFF", b"II*\0", b"P6"])
        ) + draw(st.binary(max_size=200))
    content = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 6))):
        # as often in the head, where sizes and kinds are, as anywhere
        at = draw(st.integers(0, min(len(content), draw(st.sampled_from([64, len(content)]))) - 1))
        content[at] ^= draw(st.integers(1, 255))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(content)))
        content[at:at] = draw(st.binary(max_size=16))
    return bytes(content)


def test_whatever_is_in_an_image_file_it_is_an_image_or_refused_by_name(tmp_path, tally):
    file, counted = tmp_path / "fuzzed.png", {"image": 0, "refused": 0}
    file.write_bytes(PNG)
    annotated.picture(file)  # what is imported for it is no part of the time below
    decoders = [Centres(8), TrainingCrops(8, 0.08, True)]

    @settings(
        max_examples=20_000 if LONG else 400,
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(content=spoilt_content(), seed=st.integers(0, 99))
    def fuzz(content: bytes, seed: int) -> None:
        file.write_bytes(content)
        refused = []
        with within(60):
            for decoder in decoders:
                images, unreadable = decoder.__getitems__([Item(str(file), seed)])
                assert images.shape == (1, 3, 8, 8) and images.dtype == torch.uint8
                refused += [message for _, message in unreadable]
            try:
                found = annotated.picture(file)
                assert found.ndim == 3 and len(found) == 3 and found.dtype == torch.uint8
            except Refused as error:
                refused.append(str(error))
        for message in refused:
            assert message.startswith(f"{file} is not a readable image (") and "\n" not in message
        counted["refused" if refused else "image"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz()
    assert min(counted.values()) > 20  # both outcomes are tried
    tally("Bad input", "fuzzed image files", "an image or one line", tried=sum(counted.values()))
