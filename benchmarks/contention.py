"""Images per second of trainings side by side on one CPU, each a process with as many threads as if it were alone.

"torch" is PyTorch's own choice of threads and of how they wait, "psd" what the command `psd` and the notebooks choose
(`psd.threads.prepare`), and --also adds others; of the variables that these set, what is set already is left out. Each
process trains a network on random 32 x 32 images by cross-entropy. One, two and four of them run at a time, the
environments taking turns in one run, in an order that rotates. "images/s" is the rate of one process, the median over
processes and turns. The ratios are medians of the turns' own: "of alone" is the slowest process's rate to that of one
alone in the same environment, "of torch" the processes' mean rate to their mean rate in PyTorch's environment. "others"
is how many cores' time other programs took meanwhile: where it is more than a little, the figures tell of them too.

    python benchmarks/contention.py
    python benchmarks/contention.py --models resnet8 --also GOMP_SPINCOUNT=1000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import mean, median

import psutil

# isort: off
from psd import models, threads  # first, because it settles the threads before torch is loaded
import torch
from torch.nn import functional as F
# isort: on

CLASSES = 10
WARM_UP = 3  # steps


class Training:
    """A process that trains for some seconds whenever it is told to."""

    def __init__(self, model: str, images: int, environment: dict[str, str]) -> None:
        settled = {*threads.COUNT, *threads.WAITING, "PSD_THREADS"}
        kept = {name: value for name, value in os.environ.items() if name not in settled}
        command = [sys.executable, __file__, "--train", model, "--images", str(images)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env={**kept, **environment}, stdin=pipe, stdout=pipe, text=True)
        self.answer()  # it is ready

    def tell(self, seconds: float) -> None:
        assert self.process.stdin
        print(seconds, file=self.process.stdin, flush=True)

    def answer(self) -> list[float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a training ended with exit code {self.process.wait()}")
        return [float(word) for word in line.split()]


def train(model_name: str, images: int) -> None:
    """What such a process does: for every line of stdin, print images per second, and seconds of cores' time used."""
    torch.manual_seed(0)
    model = models.build(model_name, CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x = torch.randn(images, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (images,))

    def steps(seconds: float, least: int = 1) -> tuple[float, float]:
        begin, used, done = time.perf_counter(), time.process_time(), 0
        while done < least or time.perf_counter() - begin < seconds:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
        took = time.perf_counter() - begin
        return done * images / took, time.process_time() - used

    print(*steps(0, WARM_UP), flush=True)
    for line in sys.stdin:
        print(*steps(float(line)), flush=True)


@contextmanager
def started(
    model: str, images: int, environments: dict[str, dict[str, str]], count: int
) -> Iterator[dict[str, list[Training]]]:
    trainings: dict[str, list[Training]] = {name: [] for name in environments}
    try:
        for name, environment in environments.items():
            for _ in range(count):
                trainings[name].append(Training(model, images, environment))
        yield trainings
    finally:
        for training in (training for several in trainings.values() for training in several):
            training.process.kill()
            training.process.wait()


def busy() -> float:
    """Seconds of all cores' time that all programs have used."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def measure(trainings: Sequence[Training], seconds: float) -> tuple[list[float], float]:
    """The rate of each, and the cores' time per second of all other programs."""
    begin, before = time.perf_counter(), busy()
    for training in trainings:
        training.tell(seconds)
    answers = [training.answer() for training in trainings]
    others = busy() - before - sum(used for _, used in answers)
    return [rate for rate, _ in answers], max(0.0, others / (time.perf_counter() - begin))


def compare(model: str, options: argparse.Namespace, environments: dict[str, dict[str, str]]) -> None:
    rates: dict[tuple[str, int], list[list[float]]] = {
        (name, n): [] for name in environments for n in options.processes
    }
    others: dict[tuple[str, int], list[float]] = {key: [] for key in rates}
    names = list(environments)
    with started(model, options.images, environments, max(options.processes)) as trainings:
        for turn in range(options.turns):
            for k in range(len(names)):
                name = names[(turn + k) % len(names)]
                for n in options.processes:
                    each, elsewhere = measure(trainings[name][:n], options.seconds)
                    rates[name, n].append(each)
                    others[name, n].append(elsewhere)
    for name, n in rates:
        rate = median(one for turn in rates[name, n] for one in turn)
        of_alone = median(min(turn) / alone for turn, (alone,) in zip(rates[name, n], rates[name, 1], strict=True))
        of_torch = median(mean(a) / mean(b) for a, b in zip(rates[name, n], rates["torch", n], strict=True))
        figures = f"{rate:8.1f}  {of_alone:8.2f}  {of_torch:8.2f}  {median(others[name, n]):6.2f}"
        print(f"{model:8}  {name:20}  {n:9}  {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python benchmarks/contention.py --models resnet8 --also GOMP_SPINCOUNT=1000",
    )
    parser.add_argument(
        "--models", nargs="+", default=["resnet8", "resnet14"], help="of psd.models (default: resnet8 resnet14)"
    )
    parser.add_argument("--images", type=int, default=32, help="in a batch (default: 32)")
    parser.add_argument("--seconds", type=float, default=2, help="of one measurement, at least (default: 2)")
    parser.add_argument("--turns", type=int, default=7, help="repetitions, at least 1 (default: 7)")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 4], help="at a time, the first of them 1 (default: 1 2 4)"
    )
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="NAME=VALUE", help="other environments, of one variable each"
    )
    parser.add_argument("--train", metavar="MODEL", help=argparse.SUPPRESS)  # in the processes that it starts
    options = parser.parse_args()
    if options.train:
        train(options.train, options.images)
        return
    if options.processes[0] != 1:
        parser.error("--processes begins with 1, the one alone that the others are compared with")
    for text in options.also:
        if "=" not in text:
            parser.error(f"--also takes NAME=VALUE, got {text!r}")
    environments = {"torch": {}, "psd": {"PSD_THREADS": "auto"}}
    environments |= {text: dict([text.split("=", 1)]) for text in options.also}

    print(
        f"{threads.available()} cores, batches of {options.images} x 3 x 32 x 32, "
        f"{options.turns} turns of {options.seconds:g} s"
    )
    print(f"{'model':8}  {'environment':20}  processes  images/s  of alone  of torch  others")
    for model in options.models:
        compare(model, options, environments)


if __name__ == "__main__":
    main()
