"""Time of `psd.patch_swap` against a plain loop, against torchvision's CutMix and against copying the two tensors.

All make new float32 images out of the same two batches. "loop" exchanges patch by patch, pair by pair. "CutMix" is
transforms.v2's on both batches joined into one beforehand, so it too makes 2N images, with one box for all of
them; it also mixes their labels. "clone" copies both batches: the least that anything out of place can cost.
The ways take turns in one run, in an order that rotates; each time is the median over the turns, each ratio (the
way's time / patch_swap's) the median of the turns' own ratios.

    python benchmarks/swap_cost.py
    python benchmarks/swap_cost.py --device cuda
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torchvision.transforms import v2

from psd import patch_swap

CASES = (((128, 3, 32, 32), 4, 10), ((64, 3, 224, 224), 32, 2))  # (N, C, H, W), side of a patch, calls in a turn
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def swap_in_a_loop(x_a: Tensor, x_b: Tensor, m: int) -> tuple[Tensor, Tensor]:
    x_a2, x_b2 = x_a.clone(), x_b.clone()
    mask = torch.rand(len(x_a), x_a.shape[2] // m, x_a.shape[3] // m) < 0.5  # on the CPU, where the loop reads it
    for i, row, column in mask.nonzero().tolist():
        patch = (i, slice(None), slice(row * m, row * m + m), slice(column * m, column * m + m))
        x_a2[patch], x_b2[patch] = x_b[patch], x_a[patch]
    return x_a2, x_b2


def ways(x_a: Tensor, x_b: Tensor, m: int) -> dict[str, Callable[[], object]]:
    x = torch.cat([x_a, x_b])
    labels = torch.randint(100, (len(x),), device=x.device)
    cutmix = v2.CutMix(num_classes=100)
    return {
        "patch_swap": lambda: patch_swap(x_a, x_b, m),
        "loop": lambda: swap_in_a_loop(x_a, x_b, m),
        "CutMix": lambda: cutmix(x, labels),
        "clone": lambda: (x_a.clone(), x_b.clone()),
    }


def seconds(work: Callable[[], object], calls: int, device: torch.device) -> float:
    """Time of one call, the mean of `calls`."""
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / calls


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python benchmarks/swap_cost.py --device cuda",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--turns", type=int, default=10, help="repetitions, at least 1 (default: 10)")
    options = parser.parse_args()
    device = torch.device(options.device)

    print(f"on {device}, {torch.get_num_threads()} threads; times in ms, ratios to patch_swap's time")
    columns = "".join(f"  {way:>8}  {'ratio':>6}" for way in ("loop", "CutMix", "clone"))
    print(f"{'':38}  {'patch_swap':>10}{columns}")
    for shape, m, calls in CASES:
        for name, memory_format in FORMATS.items():
            x_a, x_b = (torch.rand(shape, device=device).to(memory_format=memory_format) for _ in range(2))
            work = ways(x_a, x_b, m)
            for way in work:  # warm up: memory is touched, kernels are loaded
                seconds(work[way], 2, device)
            times: dict[str, list[float]] = {way: [] for way in work}
            for turn in range(options.turns):
                for k in range(len(work)):
                    way = list(work)[(turn + k) % len(work)]
                    times[way].append(seconds(work[way], 1 if way == "loop" else calls, device))
            ours = times.pop("patch_swap")
            line = f"{'x'.join(map(str, shape))}, m = {m}, {name}"
            line = f"{line:38}  {1000 * median(ours):10.3f}"
            for theirs in times.values():
                ratio = median(t / o for t, o in zip(theirs, ours, strict=True))
                line += f"  {1000 * median(theirs):8.3f}  {ratio:6.2f}"
            print(line)


if __name__ == "__main__":
    main()
