"""Worker processes that decode image files: told a file and a seed, they give pixels and remember nothing."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from math import ceil, floor
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from psd.checks import Refused
from psd.data import pictures

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from PIL.Image import Image

RATIO = (3 / 4, 4 / 3)  # width / height of a training window, as torchvision's RandomResizedCrop has it
RESIZED, CROPPED = 256, 224  # of evaluation: the shorter side is resized to 256 where the crop has 224

Decoded = tuple[Tensor, list[tuple[int, str]]]  # uint8 (N, 3, S, S), and (position, message) of what was not readable


class WorkerEnded(RuntimeError):
    """A process that decodes images was ended by force, or could not begin."""


class Item(NamedTuple):
    """What a worker is told of one image: its file, or its number in a data set, and a seed for what is drawn."""

    file: str | int
    seed: int


def resized_crop(image: Image, window: tuple[int, int, int, int], size: int) -> Tensor:
    """A window of an image that was opened but not loaded, in RGB and resized (bilinear, antialiased) to a square.

    Args:
        image: as `psd.data.pictures.opened` gives it. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the window
            has at least `size` pixels a side then; the image is changed by it and serves for this one crop.
        window: top, left, height and width in the pixels of the whole image, as viewers show it.
        size: side of the square in pixels.

    Returns:
        uint8 (3, size, size).
    """
    from PIL import Image as pil
    from torchvision.transforms.v2 import functional as T

    turn = pictures.turn_of(image)
    top, left, height, width = pictures.before_turn(window, turn, pictures.size_of(image))
    reduced, factor = _reduced(image, min(height, width), size)
    x, y, right, bottom = left / factor, top / factor, (left + width) / factor, (top + height) / factor
    # Cut before it is resized, as torchvision does it: no pixel from outside is mixed in.
    x0, y0, x1, y1 = floor(x), floor(y), ceil(right), ceil(bottom)
    if isinstance(reduced, np.ndarray):
        cut = reduced[y0:y1, x0:x1]
    else:
        cut = np.array(pictures.in_rgb(reduced.crop((x0, y0, x1, y1))))
    if factor > 1:  # the window may begin and end inside of a pixel, which PIL alone allows for
        box = (x - x0, y - y0, right - x0, bottom - y0)
        square = _pixels(np.array(pil.fromarray(cut).resize((size, size), pil.Resampling.BILINEAR, box=box)))
        return _turned(square, turn)
    # torch's resize takes less time than PIL's (benchmarks/decode.py), and may round otherwise by 1
    return _turned(T.resize(_pixels(cut), [size, size], antialias=True), turn)


def centre_crop(image: Image, size: int) -> Tensor:
    """The centre of an image that was opened but not loaded: uint8 (3, size, size).

    The shorter side is resized to size * 256 / 224 pixels first, as `psd.data.stream.CentreCrops` says.
    """
    from PIL import Image as pil
    from torchvision.transforms.v2 import functional as T

    turn = pictures.turn_of(image)
    left, top, right, bottom = pictures.middle(*image.size)
    width, height = right - left, bottom - top
    shorter, longer = min(width, height), max(width, height)
    goal = round(size * RESIZED / CROPPED)
    other = int(goal * longer / shorter)  # torchvision's resize rounds down too
    reduced, factor = _reduced(image, shorter, goal)
    whole = pil.fromarray(reduced) if isinstance(reduced, np.ndarray) else pictures.in_rgb(reduced)
    resized = whole.resize(
        (goal, other) if width <= height else (other, goal),
        pil.Resampling.BILINEAR,
        box=(left / factor, top / factor, right / factor, bottom / factor),
    )
    if turn == pictures.UNTURNED:  # nearly always; then no more than the centre is copied
        return _pixels(np.array(T.center_crop(resized, [size])))
    centre: Tensor = T.center_crop(_turned(_pixels(np.array(resized)), turn), [size])
    return centre


def _pixels(image: np.ndarray) -> Tensor:
    """uint8 (3, H, W) of an image (H, W, 3), channels_last in memory."""
    return torch.from_numpy(image).permute(2, 0, 1)


def _turned(image: Tensor, turn: pictures.Turn) -> Tensor:
    made: Tensor = pictures.turned(image, turn)
    return made


def _reduced(image: Image, side: int, size: int) -> tuple[Image | np.ndarray, int]:
    """The image, of a JPEG that at a fraction of its size which leaves at least `size` of `side` pixels; 1 / it.

    A JPEG in grey or colour (CMYK is not) is decoded to RGB (H, W, 3) by simplejpeg where it is installed. What that
    does not take without a complaint is left to PIL, and so is the word on what is damaged.
    """
    factor = next((factor for factor in (8, 4, 2) if side >= factor * size), 1)
    width, height = image.size
    simplejpeg = _simplejpeg()
    if simplejpeg is not None and image.format == "JPEG" and image.mode in ("L", "RGB"):
        file = cast(BinaryIO, image.fp)  # type: ignore[attr-defined]
        file.seek(0)
        least = {"min_width": ceil(width / factor), "min_height": ceil(height / factor)} if factor > 1 else {}
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(file.read(), "RGB", **least), factor
    if factor == 1:
        return image, 1
    # PIL divides the sides by these, rounds down and takes the next power of two below: exactly `factor`.
    drafted = image.draft("RGB", (width // factor, height // factor))
    if drafted is None:  # no JPEG
        return image, 1
    return image, round(width / drafted[1][2])


@functools.cache
def _simplejpeg() -> Any:
    """The module, or None."""
    return importlib.import_module("simplejpeg") if importlib.util.find_spec("simplejpeg") else None


class Decoder(Dataset[Any]):
    """A data set whose keys are items, not numbers: files and seeds in, pixels out. Subclasses say what to cut."""

    size: int

    def cut(self, image: Image, seed: int) -> Tensor:
        """What to show of an opened image: uint8 (3, size, size)."""
        raise NotImplementedError

    def __getitems__(self, items: Sequence[Item]) -> Decoded:
        shape = (len(items), 3, self.size, self.size)
        pixels = torch.zeros(shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        unreadable = []
        for i, (file, seed) in enumerate(items):
            try:
                with pictures.opened(str(file)) as image:
                    pixels[i] = self.cut(image, seed)
            except Refused as error:
                # A message, not the exception: it reaches the main process when its batch is due.
                unreadable.append((i, str(error)))
        return pixels, unreadable


class TrainingCrops(Decoder):
    def __init__(self, size: int, scale: float, flip: bool) -> None:
        self.size, self.scale, self.flip = size, scale, flip

    def cut(self, image: Image, seed: int) -> Tensor:
        from torchvision.transforms import RandomResizedCrop

        # torchvision draws from the global generator; it is the user's, and so is given back as it was. The
        # generator itself is seeded, as torch.manual_seed would seed those of the GPUs too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            # of the turned image's size alone; this tensor takes no memory
            sized = torch.empty(()).expand(3, *pictures.size_of(image))
            window = RandomResizedCrop.get_params(sized, [self.scale, 1.0], list(RATIO))
            mirrored = bool(torch.rand(()) < 0.5)
        pixels = resized_crop(image, window, self.size)
        return pixels.flip(2) if mirrored and self.flip else pixels


class Centres(Decoder):
    def __init__(self, size: int) -> None:
        self.size = size

    def cut(self, image: Image, seed: int) -> Tensor:
        return centre_crop(image, self.size)


def worker_count(workers: int | None) -> int:
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))
    if workers < 0:
        raise Refused(f"data.workers must be >= 0 processes (0 decodes in the main process), got {workers}")
    return workers


def _ready_to_go(decoded: Any) -> Any:
    """A batch as it is; in a worker its tensors lie in shared memory, from which the main process takes them.

    torch would move them there in a thread of its own, which drops a batch that finds no room, and whoever waits for
    it waits for ever. Here it is an error.
    """
    if torch.utils.data.get_worker_info() is not None:
        try:
            for part in tree_leaves(decoded):
                if isinstance(part, Tensor):
                    part.share_memory_()
        except RuntimeError as error:
            raise OSError(f"no room in shared memory: {error}") from None
    return decoded


def _context() -> BaseContext:
    """How worker processes start: by the forkserver, where there is one.

    fork would copy a process whose OpenMP, CUDA or autograd threads run, and the copy of a lock that one of them
    held is never released. spawn imports torch anew in every worker. The server is a process without threads that
    imports torch once; its workers are forked off it.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["psd.data.decoding", "PIL.Image", "torchvision.transforms.v2"])
    return context


def _end_with_parent(number: int) -> None:
    """In a worker: end when the process that started the loader is gone, even by SIGKILL.

    torch's own watch looks at the parent in the system's sense, which is the forkserver; and that lives as long as one
    of its workers does.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def make_loader(
    decoder: Dataset[Any], sampler: Iterable[list[Item]], workers: int, device: torch.device, persistent: bool
) -> DataLoader[Any]:
    """Decodes the sampler's lists; torch's workers compute with one thread each."""
    return DataLoader(
        decoder,
        batch_sampler=sampler,
        collate_fn=_ready_to_go,
        num_workers=workers,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_end_with_parent if workers else None,
        persistent_workers=persistent and workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader seeds its workers by it, not by the global generator
    )


def shut_down(decoded: Iterator[Decoded] | None) -> None:
    """End a loader's workers now, not when the last reference to it is gone: a traceback may hold one."""
    stop = getattr(decoded, "_shutdown_workers", None)  # there are none without worker processes
    if stop is not None:
        stop()


def is_end_of_worker(error: BaseException) -> bool:
    """Whether what came out of a loader says that a worker process has ended.

    A worker that ends while it hands over a batch shows as a connection that is closed: OSError, EOFError.
    """
    by_loader = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    return by_loader or isinstance(error, (OSError, EOFError))


def worker_error(error: BaseException, workers: int) -> WorkerEnded:
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]  # what a worker raised ends with what it is
    return WorkerEnded(
        f"a worker process that decodes images has ended ({last.strip()}). It was killed, ran out of "
        f"memory or of shared memory (/dev/shm), or could not import a script that has no "
        f'`if __name__ == "__main__":`; lower data.workers ({workers} now), or set 0 to see the error itself'
    )
