"""Images per second of psd's in-memory batches against a torchvision DataLoader with PIL transforms.

Both make the same training batches of the same random uint8 images (32 x 32): a window of the image padded by
4 pixels, a flip, normalisation, float32 on the device. "pairs" also makes a same-class partner for every anchor
and counts both images; the DataLoader then reads `psd.ClassPairs`. The loader runs with 0 and with 2 worker
processes, which are started before the clock. The paths take turns in one run; each number is the median over
the turns, each ratio (in memory / PIL) the median of the turns' own ratios. The last line is the time to draw the
embedded data set `shapes`, on the CPU.

    python benchmarks/data_path.py
    python benchmarks/data_path.py --device cuda
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from psd import ClassPairs
from psd.data import shapes
from psd.data.batches import Batches
from psd.data.images import ImageData

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
WORKERS = (0, 2)


class PilImages(Dataset):
    """The images as torchvision's CIFAR classes hold them: arrays, each made a PIL image and transformed."""

    def __init__(self, data: ImageData) -> None:
        self.arrays = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = data.targets.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[i])), self.targets[i]


def random_data(count: int, classes: int = 100) -> ImageData:
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    names = tuple(map(str, range(classes)))
    return ImageData(images, torch.arange(count) % classes, names, "random", MEAN, STD, 4, True)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def in_memory(data: ImageData, pairs: bool, batch_size: int, device: torch.device) -> Callable[[], None]:
    """One epoch of our batches; every call is a new epoch, so that its draws are paid for."""
    batches = Batches(data, batch_size, 0, ("partner",) if pairs else (), device=device)
    steps: Iterator[int] = iter(range(10**9))

    def epoch() -> None:
        for _ in range(batches.steps_per_epoch):
            batches[next(steps)]

    return epoch


def loader(dataset: Any, anchors: int, workers: int, batch_size: int, device: torch.device) -> Callable[[], None]:
    """`anchors` images, or pairs, of a DataLoader whose workers persist."""
    batches = DataLoader(
        dataset,
        batch_size,
        sampler=RandomSampler(dataset, num_samples=anchors),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )

    def epoch() -> None:
        for batch in batches:
            for part in batch:
                part.to(device, non_blocking=True)

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python benchmarks/data_path.py --device cuda",
    )
    parser.add_argument("--device", default="cpu", help="where the batches end: cpu, cuda (default: cpu)")
    parser.add_argument("--batch-size", type=int, default=128, help="anchors per batch (default: 128)")
    parser.add_argument("--images", type=int, default=50_000, help="size of the data set (default: 50000)")
    parser.add_argument("--turns", type=int, default=5, help="repetitions, at least 1 (default: 5)")
    options = parser.parse_args()
    device, batch_size = torch.device(options.device), options.batch_size
    data = random_data(options.images)
    anchors = min(20 * batch_size, len(data))  # of the loaders' epochs, so that a turn takes seconds

    threads = torch.get_num_threads()
    print(f"batch {batch_size} x 3 x 32 x 32 on {device}, {len(data)} images, {threads} threads")
    columns = "".join(f"  {f'PIL, {workers} workers':>14}  {'ratio':>6}" for workers in WORKERS)
    print(f"{'images/s':8}  {'in memory':>10}{columns}")
    for pairs in (False, True):
        pil = ClassPairs(PilImages(data)) if pairs else PilImages(data)
        epoch_size = len(data) // batch_size * batch_size
        paths = [(epoch_size, in_memory(data, pairs, batch_size, device))]
        loaded = anchors // batch_size * batch_size
        paths += [(loaded, loader(pil, anchors, w, batch_size, device)) for w in WORKERS]
        for _, work in paths:  # warm up: workers start, memory is touched, kernels are built
            seconds(work, device)
        turns = [[count * (1 + pairs) / seconds(work, device) for count, work in paths] for _ in range(options.turns)]
        ours, *theirs = zip(*turns, strict=True)
        line = f"{'pairs' if pairs else 'single':8}  {median(ours):10,.0f}"
        for rates in theirs:
            ratio = median(a / b for a, b in zip(ours, rates, strict=True))
            line += f"  {median(rates):14,.0f}  {ratio:6.1f}"
        print(line)
    times = [seconds(lambda: shapes.draw(2000), torch.device("cpu")) for _ in range(options.turns)]
    print(f"shapes: 2000 images of 32 x 32 drawn in {median(times):.2f} s")


if __name__ == "__main__":
    main()
