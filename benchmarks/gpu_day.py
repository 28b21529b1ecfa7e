"""Minutes on a rented GPU, well spent: what is to be measured, then trainings, until the time is over.

`measure` times the steps of ResNet-18 and ResNet-34, the cost of the swap, the paths of the data, and how fast small
trainings side by side are. `train` measures the rate of ResNet-18 on CIFAR-100, chooses a budget that fits, trains
cross-entropy, patch swap and patch swap with half the anchors a step on it side by side, then works through
comparisons, many small runs side by side. Whatever ended is in OUT/records.tar.gz when the time is over.

    python benchmarks/gpu_day.py measure --seconds 120 --out OUT
    python benchmarks/gpu_day.py train --seconds 560 --out OUT --compare photographs/methods photographs/variants
    python benchmarks/gpu_day.py train --seconds 60 --out OUT --device cpu --fast --compare photographs/methods
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARGIN = 12  # seconds before the end at which nothing more is begun, for the stop and the packing
NETWORK = ("cifar100/resnet18-cross_entropy", "cifar100/resnet18-patch_swap", "cifar100/resnet18-patch_swap")
LARGE, SMALL = 100_000, 10_000  # budgets are whole multiples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python benchmarks/gpu_day.py measure --seconds 120 --out OUT",
    )
    parser.add_argument("what", choices=["measure", "train"])
    parser.add_argument("--compare", nargs="+", default=[], metavar="RECIPE", help="train: comparisons, in their order")
    parser.add_argument("--seconds", type=float, required=True, help="when to be done")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--jobs", type=int, default=12, help="small trainings side by side (default: 12)")
    parser.add_argument("--large", type=float, default=0.4, help="share of the time for ResNet-18; 0 for none")
    parser.add_argument("--passes", type=int, help="budget of each ResNet-18, instead of one that fits")
    parser.add_argument("--compile", default="off", help="run.compile of ResNet-18 (default: off)")
    parser.add_argument("--shared", action="store_true", help="let kernels of several processes overlap (NVIDIA's MPS)")
    parser.add_argument("--revision", help="of the code, for records: where it lies outside its git checkout")
    parser.add_argument("--fast", action="store_true", help="tiny budgets: a rehearsal")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    with several_processes_at_once(options.shared, options.out):
        if options.what == "measure":
            measure(options, end)
        else:
            train(options, end)


@contextlib.contextmanager
def several_processes_at_once(wanted: bool, out: Path) -> Iterator[None]:
    """NVIDIA's multi-process service for the processes that are started meanwhile; no setting of the GPU changes."""
    if not wanted:
        yield
        return
    pipe = out.absolute() / "mps"
    pipe.mkdir(exist_ok=True)
    os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": os.fspath(pipe), "CUDA_MPS_LOG_DIRECTORY": os.fspath(pipe)}
    subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
    try:
        yield
    finally:
        subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, timeout=20, check=False)
        for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
            del os.environ[name]


def measure(options: argparse.Namespace, end: float) -> None:
    on, python, bench = ["--device", options.device], [sys.executable], [sys.executable, "-m", "psd", "bench"]
    drawn = ["--data.name", "shapes", "--data.count", "2000", "--run.device", options.device]
    drawn += ["--seconds", "1" if options.fast else "6"]
    small = ["--steps", "2", "--turns", "3"] if options.fast else []
    network = "resnet8" if options.fast else "resnet18"
    commands: list[tuple[str, list[str]]] = [
        ("step_cost", [*python, str(HERE / "step_cost.py"), "--model", network, *on, *small]),
        ("swap_cost", [*python, str(HERE / "swap_cost.py"), *on]),
        ("resnet18-eager", [*bench, NETWORK[1], *drawn, "--run.compile", "off"]),
        ("resnet18-eager-512", [*bench, NETWORK[1], *drawn, "--run.compile", "off", "--data.batch_size", "512"]),
        ("data_path", [*python, str(HERE / "data_path.py"), *on]),
        ("resnet18-graphs", [*bench, NETWORK[1], *drawn, "--run.compile", "reduce-overhead"]),
        ("resnet34-eager", [*bench, "cifar100/resnet34-patch_swap", *drawn, "--run.compile", "off"]),
    ]
    attempt("side by side", lambda: side_by_side_rate(options))
    for name, command in commands:
        left = end - time.monotonic() - 1
        if left < 5:
            print(f"{name}: no time left", flush=True)
            continue
        begin = time.monotonic()
        with (options.out / f"{name}.txt").open("w") as file, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=left, check=False)
        text = (options.out / f"{name}.txt").read_text()
        print(f"--- {name}, {time.monotonic() - begin:.0f} s\n{text[-1500:]}", flush=True)


def side_by_side_rate(options: argparse.Namespace) -> None:
    """Small trainings of the photographs' network, each in a process of its own, on drawn images."""
    from psd.training import config
    from psd.training.jobs import train_all
    from psd.training.records import Record

    passes = 1_000 if options.fast else 24 * 1_500
    output = os.fspath(options.out / ("shared" if options.shared else "side_by_side"))
    runs = [
        config.recipe(
            "shapes",
            data={"count": 1000, "batch_size": 12},
            model={"name": "resnet14"},
            budget={"epochs": None, "image_passes": passes},
            run={**small_run(options), "seed": seed, "output": output},
        )
        for seed in range(options.jobs)
    ]
    begin = time.monotonic()
    train_all(runs, options.jobs, say=lambda line: None)
    seconds = time.monotonic() - begin
    records = [Record.read(Path(run.run.output) / f"{run.name}.json") for run in runs]
    rates = [record.images_per_second for record in records]
    print(
        f"{options.jobs} side by side{', kernels overlapping' if options.shared else ''}: "
        f"{sum(rates):,.0f} images/s while training, {len(runs) * passes / seconds:,.0f} with start and end",
        flush=True,
    )


def train(options: argparse.Namespace, end: float) -> None:
    from psd.training.jobs import train_all
    from psd.training.loop import Interrupted
    from psd.training.records import Record

    records = options.out.absolute() / "results"
    records.mkdir(exist_ok=True)
    began = time.monotonic()

    def left() -> float:
        return max(1.0, end - MARGIN - time.monotonic())

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {line}", flush=True)

    try:
        if options.large:
            attempt("ResNet-18", lambda: train_all(large(options, records, left(), say), len(NETWORK), left(), say))
        for name in options.compare:
            if left() > 5:
                attempt(name, lambda name=name: train_all(compared(name, options, records), options.jobs, left(), say))
    except Interrupted as error:
        say(str(error))
    finally:
        with tarfile.open(options.out / "records.tar.gz", "w:gz") as tar:
            files = sorted(records.rglob("*.json"))
            for file in files:
                if options.revision:
                    replace(Record.read(file), revision=options.revision).write(file)
                tar.add(file, file.relative_to(records))
        say(f"{len(files)} records are packed")


def large(options: argparse.Namespace, records: Path, seconds: float, say: Callable[[str], None]) -> list[Any]:
    """ResNet-18 on CIFAR-100 by three methods, with the budget that fits into the share of the time, measured first."""
    from psd.training import bench, config

    run = {"device": options.device, "compile": options.compile, "evaluate_every": 0, "output": os.fspath(records)}
    passes = options.passes
    if passes is None:
        rate = bench.measure(config.recipe(NETWORK[1], run=run), seconds=1 if options.fast else 6).step
        unit = SMALL if options.fast else LARGE
        passes = max(1, int(rate * seconds * options.large * 0.85 / len(NETWORK) / unit)) * unit
        say(f"ResNet-18: {rate:,.0f} images/s, so {passes:,} image passes each")
    budget = {"epochs": None, "image_passes": 256 if options.fast else passes}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {},
        {"data": {"batch_size": 64}, "run": {**run, "variant": "64-anchors"}},
    )
    return [
        config.recipe(name, **{"budget": budget, "run": run, **own}) for name, own in zip(NETWORK, changes, strict=True)
    ]


def compared(name: str, options: argparse.Namespace, records: Path) -> list[Any]:
    """The runs of a comparison, all methods of one seed before the next seed."""
    from psd.cli.settings import read_settings
    from psd.training.comparison import comparison, shortened

    settings = {f"run.{key}": value for key, value in small_run(options).items()}
    compared = comparison(read_settings(name, {**settings, "run.output": os.fspath(records)}))
    return (shortened(compared) if options.fast else compared).configs()


def small_run(options: argparse.Namespace) -> dict[str, Any]:
    """fp32 and eager, as on a CPU: compiling takes longer than such a run."""
    return {"device": options.device, "precision": "fp32", "compile": "off"}


def attempt(name: str, work: Callable[[], object]) -> None:
    """The rest goes on where one part fails, which is said; a stop in time is no failure."""
    from psd.training.loop import Interrupted

    try:
        work()
    except Interrupted:
        raise
    except Exception:
        print(f"{name} FAILED:\n{traceback.format_exc()}", flush=True)


if __name__ == "__main__":
    main()
