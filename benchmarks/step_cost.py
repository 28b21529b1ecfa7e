"""Time of a patch-swap training step against a cross-entropy step on the same number of images.

One step makes its batch, runs `method.step` and the backward pass, and updates the weights by SGD, as the trainer
does (bf16 where a GPU has it). Patch swap takes half as many anchors as cross-entropy, because it forwards two
images for each. Cross-entropy on the same pairs stands between them: it lacks the swap and the distillation.
The methods take turns in one run, in an order that rotates; each time is the median over the turns, each ratio
the median of the turns' own ratios.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --model resnet18 --device cuda
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from psd import methods, models
from psd.data.batches import Batches
from psd.data.images import ImageData
from psd.methods import Progress, Setup
from psd.training.checkpoints import load_model

CLASSES = 100
METHODS = ("cross_entropy", "pair_cross_entropy", "patch_swap")


def random_data(count: int) -> ImageData:
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    names = tuple(map(str, range(CLASSES)))
    return ImageData(images, torch.arange(count) % CLASSES, names, "random", (0.5,) * 3, (0.25,) * 3, 4, True)


def stepper(name: str, model_name: str, data: ImageData, images: int, device: torch.device) -> Callable[[int], None]:
    """A function that trains a fresh network for some steps, each of which forwards `images` images."""
    method = methods.build(name)
    method.setup(Setup(CLASSES, len(data), load_model))
    batches = Batches(data, images // method.passes_per_anchor, 0, method.needs, device=device)
    torch.manual_seed(0)
    model = models.build(model_name, CLASSES).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    done = 0

    def run(steps: int) -> None:
        nonlocal done
        for step in range(done, done + steps):
            progress = Progress(step, 10**6, step // batches.steps_per_epoch, 10**6 / batches.steps_per_epoch)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                result = method.step(model, batches[step], progress)
            result.terms.total.backward()
            optimizer.step()
            optimizer.zero_grad()
        done += steps

    return run


def seconds(run: Callable[[int], None], steps: int, device: torch.device) -> float:
    begin = time.perf_counter()
    run(steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python benchmarks/step_cost.py --model resnet18 --device cuda",
    )
    parser.add_argument("--model", default="resnet8", help="a name of psd.models (default: resnet8)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--images", type=int, default=128, help="images per step, an even number (default: 128)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each method in a turn (default: 5)")
    parser.add_argument("--turns", type=int, default=30, help="repetitions, at least 1 (default: 30)")
    options = parser.parse_args()
    if options.images % 2:
        parser.error(f"--images must be even, because pairs hold two, got {options.images}")
    device = torch.device(options.device)
    data = random_data(10_000)
    run = {name: stepper(name, options.model, data, options.images, device) for name in METHODS}

    for name in METHODS:  # warm up: kernels are chosen, memory is touched
        seconds(run[name], options.steps, device)
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(options.turns):
        for k in range(len(METHODS)):
            name = METHODS[(turn + k) % len(METHODS)]
            times[name].append(seconds(run[name], options.steps, device) / options.steps)

    threads = torch.get_num_threads()
    print(f"{options.model}, {options.images} x 3 x 32 x 32 per step on {device}, {threads} threads")
    print(f"{'':18}  {'ms/step':>8}  {'ratio':>6}")
    for name in METHODS:
        ratio = median(t / base for t, base in zip(times[name], times["cross_entropy"], strict=True))
        print(f"{name:18}  {1000 * median(times[name]):8.2f}  {ratio:6.3f}")


if __name__ == "__main__":
    main()
