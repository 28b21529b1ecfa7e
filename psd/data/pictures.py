"""Image files as viewers show them: the one place that opens them and makes them RGB.

Turned as EXIF says, 16 bits a channel brought to 8, what is transparent laid on white, and of an animation the first
picture. Colour profiles (ICC) are not applied. Files come from anywhere, so only common formats are opened, and sizes
are bounded by Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`) and by `SIDE`, which are applied to the header before
pixels are read.
"""

from __future__ import annotations

import functools
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from psd.checks import Refused

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
# Left out without a word: what file managers leave behind, and texts and tables, which nobody takes for pictures.
_DROPPINGS = ("thumbs.db", "desktop.ini")
_TEXTS = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html")
# JPEG's own limit. An animated WebP of 200 bytes may say 16 million, and Pillow would copy such a row for minutes.
SIDE = 65_535
LONGEST = 32  # of an image's longer side only the middle is resized, where it has more than so many shorter sides

Turn = tuple[bool, bool, bool]  # rows and columns change places, then: mirrored left to right, top to bottom
UNTURNED: Turn = (False, False, False)
_TURNS: dict[int, Turn] = {  # by EXIF's number
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
_ORIENTATION = 0x0112  # EXIF's tag


def is_picture(name: str, left_out: Counter[str]) -> bool:
    """Whether a file's name ends as a picture's; of other files `left_out` counts how many of each ending there are."""
    name = name.lower()
    if name.startswith(".") or name in _DROPPINGS or name.endswith(_TEXTS):
        return False
    if name.endswith(ENDINGS):
        return True
    left_out[os.path.splitext(name)[1] or "without an ending"] += 1
    return False


def say_left_out(where: str, left_out: Counter[str], stacklevel: int) -> None:
    """A warning of what `is_picture` has counted; none where that is nothing."""
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        warnings.warn(
            f"{where}: left out {kinds}; what is read ends in {', '.join(ENDINGS)}, so save other pictures as PNG or "
            "JPEG",
            stacklevel=stacklevel + 1,
        )


@functools.cache
def _formats() -> tuple[str, ...]:
    """What content is opened. Pillow knows more; some of them start other programs (EPS), others are seldom used."""
    from PIL import features

    always = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
    return (*always, "AVIF") if "avif" in features.modules and features.check("avif") else always


@contextmanager
def opened(
    file: str | os.PathLike[str] | BinaryIO,
    name: str = "",
    what: str = "image",
    remedy: str = "replace or remove it",
) -> Iterator[Image]:
    """An image of which the header alone is read. What is wrong with it, found inside too, is `Refused` by its name.

    Args:
        name, what, remedy: stand in the message; the name is the file's own if empty.
    """
    from PIL import Image as pil

    try:
        if isinstance(file, (str, os.PathLike)) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("it is no file but a folder, a pipe or a device")  # a pipe would wait for ever
        with pil.open(file, formats=_formats()) as image:
            if image.format == "TIFF" and image.mode == "I":
                raise ValueError("its numbers have 32 bits, of which nobody says what is white; save it with 8 or 16")
            if max(image.size) > SIDE:
                raise ValueError(f"it is {image.width} x {image.height} pixels; a side may have {SIDE}")
            yield image
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and others on damaged files
        if not name and isinstance(file, (str, os.PathLike)):
            name = os.fspath(file)
        reason = _reason(error, file)
        raise Refused(f"{name} is not a readable {what} ({reason}); {remedy}") from error


def _reason(error: Exception, file: object) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        if isinstance(file, (str, os.PathLike)) and os.path.getsize(file) == 0:
            return "it is empty"
        return f"its content is none of {', '.join(_formats())}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # the file's name is said already
    return " ".join(str(error).split()) or type(error).__name__


def shown(file: str | os.PathLike[str] | BinaryIO, name: str = "") -> Image:
    """A file's picture as viewers show it, in RGB; `Refused`, naming it, where it cannot be read."""
    from PIL import ImageOps

    with opened(file, name) as image:
        return in_rgb(image if turn_of(image) == UNTURNED else ImageOps.exif_transpose(image))


def in_rgb(image: Image) -> Image:
    """8 bits of red, green and blue, as viewers show an image of another mode; it is a copy.

    ValueError for floating-point numbers, of which nobody says what is white.
    """
    from PIL import Image as pil

    if image.mode == "F":
        raise ValueError(
            "its numbers are floating-point, of which nobody says what is white; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # 16 bits, which may lie in 32; of colours PIL itself takes the high byte
        numbers = np.asarray(image)
        grey = (numbers.clip(0, 65535) >> 8).astype(np.uint8)
        grey[numbers == image.info.get("transparency", -1)] = 255
        return pil.fromarray(grey).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        straight = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return pil.alpha_composite(pil.new("RGBA", image.size, "white"), straight).convert("RGB")
    return image.convert("RGB")


def turn_of(image: Image) -> Turn:
    """How the pixels of an image that was opened have to be turned to stand as viewers show them."""
    if image.format in ("JPEG", "MPO"):
        if not ("exif" in image.info or "xmp" in image.info):
            return UNTURNED
    else:
        image.load()  # apart from what is forgiven below: a PNG may have its EXIF behind its pixels
    if image.format == "TIFF":  # which PIL has turned now
        return UNTURNED
    try:
        number: Any = image.getexif().get(_ORIENTATION)
    except Exception:  # of damaged EXIF, from which viewers learn nothing either
        number = None
    return _TURNS.get(number, UNTURNED)


def size_of(image: Image) -> tuple[int, int]:
    """(H, W) as viewers show an image that was opened."""
    swapped = turn_of(image)[0]
    width, height = image.size
    return (width, height) if swapped else (height, width)


def turned(pixels: Any, turn: Turn) -> Any:
    """An array or tensor (..., H, W), turned."""
    swapped, mirrored, upended = turn
    pixels = pixels.swapaxes(-1, -2) if swapped else pixels
    dims = [dim for dim, wanted in ((-1, mirrored), (-2, upended)) if wanted]
    if not dims:
        return pixels
    return np.flip(pixels, tuple(dims)) if isinstance(pixels, np.ndarray) else pixels.flip(dims)


def before_turn(window: tuple[int, int, int, int], turn: Turn, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where a window (top, left, height, width) of a turned image (H, W) lies in the pixels of the file."""
    (top, left, height, width), (swapped, mirrored, upended) = window, turn
    top = size[0] - top - height if upended else top
    left = size[1] - left - width if mirrored else left
    return (left, top, width, height) if swapped else (top, left, height, width)


def middle(width: int, height: int) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of what is resized for a centre: a thread of pixels would fill the memory."""
    most = LONGEST * min(width, height)
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return left, top, width - left, height - top
