"""Images per second of decoding JPEG files and cutting training crops of them, by five paths.

"PIL" decodes a file whole, cuts a window and resizes it, as torchvision's RandomResizedCrop does with a PIL image.
"PIL, torch" decodes with PIL too and resizes the window as a tensor. "Stream" is what `psd.data.stream.Stream` does:
simplejpeg decodes, at 1/2, 1/4 or 1/8 where the window allows it, and torch resizes; "Stream, PIL" is what it does
where simplejpeg is not installed. "io, CPU" is `torchvision.io.decode_jpeg` with the crop and an antialiased resize on
the tensor, and "io, GPU" the same on a CUDA device, all files in one call. Every path reads the files, and ends with
uint8 RGB. All paths cut the same windows of the same images, drawn once, in one process with one thread. They take
turns in one run; each number is the median over the turns, each ratio (path / PIL) the median of the turns' own ratios.
"reduced" is the share of images whose window lets a JPEG be decoded at reduced size, "pixels" the mean absolute
difference of the crops from those of PIL, of 255.

    python benchmarks/decode.py --folder PATH
    python benchmarks/decode.py --folder PATH --device cuda
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as T

from psd.data import decoding
from psd.data.decoding import resized_crop

CROP = 224
Job = tuple[Path, tuple[int, int, int, int]]  # file, window (top, left, height, width)


def with_pil(jobs: Sequence[Job]) -> list[Tensor]:
    crops = []
    for file, window in jobs:
        with Image.open(file) as image:
            crops.append(T.pil_to_tensor(T.resized_crop(image.convert("RGB"), *window, size=[CROP, CROP])))
    return crops


def with_pil_and_torch(jobs: Sequence[Job]) -> list[Tensor]:
    crops = []
    for file, (top, left, height, width) in jobs:
        with Image.open(file) as image:
            cut = np.array(image.crop((left, top, left + width, top + height)).convert("RGB"))
        crops.append(T.resize(torch.from_numpy(cut).permute(2, 0, 1), [CROP, CROP], antialias=True))
    return crops


def with_stream(jobs: Sequence[Job]) -> list[Tensor]:
    crops = []
    for file, window in jobs:
        with Image.open(file) as image:
            crops.append(resized_crop(image, window, CROP))
    return crops


def with_stream_by_pil(jobs: Sequence[Job]) -> list[Tensor]:
    with patch.object(decoding, "_simplejpeg", lambda: None):
        return with_stream(jobs)


def with_io(jobs: Sequence[Job]) -> list[Tensor]:
    crops = []
    for file, window in jobs:
        image = decode_jpeg(read_file(str(file)), ImageReadMode.RGB)
        crops.append(T.resized_crop(image, *window, size=[CROP, CROP], antialias=True))
    return crops


def with_io_on(device: torch.device) -> Callable[[Sequence[Job]], list[Tensor]]:
    def crops(jobs: Sequence[Job]) -> list[Tensor]:
        images = decode_jpeg([read_file(str(file)) for file, _ in jobs], ImageReadMode.RGB, device=device)
        return [
            T.resized_crop(image, *window, size=[CROP, CROP], antialias=True)
            for image, (_, window) in zip(images, jobs, strict=True)
        ]

    return crops


def drawn_jobs(folder: Path, count: int) -> list[Job]:
    """The first `count` JPEG files below the folder, in the order of their names, each with a window."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))[:count]
    if not files:
        raise SystemExit(f"--folder {folder} has no .jpg or .jpeg file in it or below it")
    torch.manual_seed(0)
    jobs = []
    for file in files:
        with Image.open(file) as image:
            jobs.append((file, RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])))
    return jobs


def seconds(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x.cpu().float() - y.float()).abs().mean()) for x, y in zip(a, b, strict=True)) / len(b)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python benchmarks/decode.py --folder data/imagenet/val --device cuda",
    )
    parser.add_argument("--folder", type=Path, required=True, help="JPEG files, in this folder or any below it")
    parser.add_argument("--images", type=int, default=256, help="files to decode, at most (default: 256)")
    parser.add_argument("--turns", type=int, default=5, help="repetitions, at least 1 (default: 5)")
    parser.add_argument("--device", default="cpu", help="cuda adds the decoder on the GPU (default: cpu)")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    # torchvision 0.29 deprecates its decoders in favour of TorchCodec; they are measured here, not used by psd.
    warnings.filterwarnings(
        "ignore", message="The image decoding and encoding capabilities", category=DeprecationWarning
    )

    jobs = drawn_jobs(options.folder, options.images)
    paths: dict[str, Callable[[Sequence[Job]], list[Tensor]]] = {
        "PIL": with_pil,
        "PIL, torch": with_pil_and_torch,
        "Stream, PIL": with_stream_by_pil,
        "Stream": with_stream,
        "io, CPU": with_io,
    }
    if device.type == "cuda":
        paths["io, GPU"] = with_io_on(device)
    made = {name: path(jobs) for name, path in paths.items()}  # also warms up: files are in the page cache
    reduced = sum(min(window[2:]) >= 2 * CROP for _, window in jobs) / len(jobs)
    print(f"{len(jobs)} JPEG files, crops of {CROP} x {CROP}, 1 thread, {options.turns} turns, reduced {reduced:.0%}")
    turns = [
        {name: len(jobs) / seconds(lambda path=path: path(jobs), device) for name, path in paths.items()}
        for _ in range(options.turns)
    ]
    print(f"{'path':11}  {'images/s':>9}  {'ratio':>6}  {'pixels':>6}")
    for name in paths:
        rate = median(turn[name] for turn in turns)
        ratio = median(turn[name] / turn["PIL"] for turn in turns)
        print(f"{name:11}  {rate:9,.1f}  {ratio:6.2f}  {difference(made[name], made['PIL']):6.2f}")


if __name__ == "__main__":
    main()
