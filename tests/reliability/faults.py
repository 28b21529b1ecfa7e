"""Real processes that run psd and meet a fault.

They are forked off a server that has imported psd once, so that one costs a moment and not seconds. What happens in
them is a picklable function, a fault, that is called before the command.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from psd import cli, files
from psd.data import download
from psd.training import checkpoints
from psd.training.loop import Loop
from psd.training.records import Record

EPOCHS, STEPS = 6, 4  # of a run, of an epoch
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("psd.cli", "psd.training.jobs", "psd.training.trouble", "psd.reporting.plots", "psd.reporting.tables"),
        *(
            "accelerate.utils",
            "accelerate.state",
            "torchmetrics.classification",
            "torchvision.transforms.v2",
            "seaborn",
        ),
        *("torch._dynamo", "torch.distributed", "scipy.stats", "PIL.PngImagePlugin"),
    ]
)
SECONDS = 120  # for a process to end by itself, on a machine that has much else to do
HOUR = 3600


class Child:
    """A process that runs `work`, or `psd` with these arguments; what it prints is in `printed`."""

    def __init__(self, folder: Path, arguments: Any = (), fault: Callable[[], object] | None = None, **variables: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._printed = folder / f"printed-{time.monotonic_ns()}.txt"
        words = [str(word) for word in arguments]
        self.process = CONTEXT.Process(target=_run, args=(words, str(self._printed), fault, variables))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def printed(self) -> str:
        return self._printed.read_text() if self._printed.exists() else ""

    @property
    def begun(self) -> bool:
        return self._printed.exists()

    @property
    def running(self) -> bool:
        return self.process.exitcode is None

    def send(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def end(self, seconds: float = SECONDS) -> int:
        """Its exit code once it has ended; below 0 is the signal that has ended it."""
        self.process.join(seconds)
        if self.running:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"a process did not end within {seconds} s; it had printed: {self.printed}")
        return self.process.exitcode

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.end()

    def wait_for(self, true: Callable[[], object], seconds: float = SECONDS) -> None:
        """Until something is true, while the process runs."""
        deadline = time.monotonic() + seconds
        while not true():
            assert self.running, f"it ended too early with {self.process.exitcode}: {self.printed}"
            assert time.monotonic() < deadline, f"waited in vain; it had printed: {self.printed}"
            time.sleep(0.005)


def _run(words: list[str], printed: str, fault: Callable[[], object] | None, variables: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what comes before and after psd is not tried here
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(variables)
    torch.set_num_threads(1)
    if fault is not None:
        fault()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = cli.main(words) if words else 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.flush()
    sys.exit(code)


# --- runs, and what they leave


def draw_photos(root: Path) -> None:
    """train/<class>/*.png, 8 of each of three classes, and test/<class>/*.png, 2 of each."""
    draw = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("test", 2)):
        for name in "abc":
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (40, 40, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{number}.png")


def commands(folder: Path) -> Callable[..., list[str]]:
    """The words of a `psd train` into an output folder; settings may be changed."""
    draw_photos(folder / "photos")
    settings = {
        "data": {"name": f"folder:{folder / 'photos'}", "size": 16, "batch_size": 24 // STEPS, "workers": 1},
        "model": {"name": "resnet8"},
        "method": {"name": "patch_swap", "patch_size": 4},
        "budget": {"epochs": EPOCHS},
        "run": {"device": "cpu", "progress": False, "checkpoint_every": 1, "resume": "auto", "evaluate_every": 1},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))

    def words(output: Path, command: str = "train", **changes: Any) -> list[str]:
        own = [f"--{key.replace('__', '.')}={value}" for key, value in changes.items()]
        return [command, str(folder / "small.yaml"), f"--run.output={output}", *own]

    return words


class Whole:
    """What an undisturbed run has left, and how long it took."""

    def __init__(self, folder: Path, start: Callable[[], list[Child]]) -> None:
        began = time.monotonic()
        for child in start():
            assert child.end() == 0, child.printed
        self.seconds, self.folder = time.monotonic() - began, folder

    def assert_same(self, folder: Path) -> None:
        """Another folder holds the same runs: bit-equal weights, epochs, figures, metrics, and nothing besides."""
        files, others = (sorted(found.rglob("*-s*.json")) for found in (self.folder, folder))
        assert [file.relative_to(self.folder) for file in files] == [file.relative_to(folder) for file in others]
        for file, other in zip(files, others, strict=True):
            a, b = (load_file(found.with_suffix("") / "model.safetensors") for found in (file, other))
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
            a, b = Record.read(file), Record.read(other)
            assert (a.epochs, a.final, a.image_passes) == (b.epochs, b.final, b.image_passes)
            steps = [json.loads(line)["step"] for line in (other.with_suffix("") / "metrics.jsonl").open()]
            assert steps == sorted(set(steps))
            assert {path.name for path in other.with_suffix("").iterdir()} == {"model.safetensors", "metrics.jsonl"}
            assert not list(other.parent.glob(".*"))


def assert_kept_is_whole(folder: Path) -> None:
    """Every checkpoint can be read."""
    for path in folder.rglob("step-*"):
        checkpoints.load(path)


# --- faults


def hold(where: str, nth: int, marker: Path) -> None:
    """Stop, as long as it takes to be killed, inside of the nth write of this kind, and say so by a file.

    where: "weights" or "state" of a checkpoint, half written; "name", all of it written but not named; "old", its name
    given but what it replaces not deleted; "record", written but not named.
    """
    numbers = itertools.count(1)

    def reached() -> None:
        if next(numbers) == nth:
            marker.touch()
            time.sleep(HOUR)

    write, put, remove = Path.write_bytes, files.put, shutil.rmtree

    def half(path: Path, content: Any) -> int:
        if (
            path.parent.name == ".step.part"
            and path.name == {"weights": "model.safetensors", "state": "state.pt"}[where]
        ):
            write(path, bytes(content)[: len(content) // 2])
            reached()
        return write(path, content)

    def before(written: Path, path: Path) -> None:
        if path.name.startswith("step-") if where == "name" else path.suffix == ".json":
            reached()
        put(written, path)

    def deleting(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors and Path(path).name.startswith(".step-"):
            reached()
        remove(path, ignore_errors=ignore_errors)

    if where in ("weights", "state"):
        Path.write_bytes = half
    elif where == "old":
        checkpoints.shutil = type("shutil", (), {"rmtree": staticmethod(deleting)})
    else:
        files.put = before


def hold_in_a_step(step: int, marker: Path) -> None:
    """Stop inside of a training step, until a signal comes."""
    train_step = Loop.train_step

    def held(loop: Loop, epoch: int) -> Any:
        if loop.step == step:
            marker.touch()
            time.sleep(HOUR)
        return train_step(loop, epoch)

    Loop.train_step = held


def slow(seconds: float) -> None:
    """Every step takes at least so long."""
    train_step = Loop.train_step

    def slowly(loop: Loop, epoch: int) -> Any:
        time.sleep(seconds)
        return train_step(loop, epoch)

    Loop.train_step = slowly


def files_of_at_most(size: int) -> None:
    """No file may grow beyond so many bytes: writing more fails, as on a full disk, with another number."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def mounted(folder: Path, options: str) -> None:
    """A disk of its own at a folder, as this process alone sees it, such as "size=200k" or "ro"."""
    libc = ctypes.CDLL(None, use_errno=True)
    private = 0x20000  # CLONE_NEWNS
    recursively_private, read_only, again = 0x44000, 0x1, 0x20
    flags = (read_only if "ro" in options.split(",") else 0) | (again if "remount" in options.split(",") else 0)
    size = ",".join(option for option in options.split(",") if option.startswith("size"))
    if not flags & again and (libc.unshare(private) or libc.mount(b"none", b"/", None, recursively_private, None)):
        raise PermissionError("only who may mount can try this")
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, size.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def clock_running_backwards() -> None:
    """time.time() goes back by an hour at every call."""
    now = itertools.count(2_000_000_000, -HOUR)
    time.time = lambda: float(next(now))


def two_ranks(words: list[str], variables: dict[str, str], pids: Path) -> None:
    """Be a launcher: start both processes of a run and wait for them."""
    started = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            of_rank = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            _run(words, f"{pids}.{rank}.txt", None, of_rank)
        started.append(pid)
    pids.with_suffix(".part").write_text(json.dumps(started))
    pids.with_suffix(".part").replace(pids)
    for pid in started:
        os.waitpid(pid, 0)


def fetching(url: str, path: Path, md5: str, limit: int | None = None) -> None:
    """`psd data get cifar100` gets this file instead, where files may grow to `limit` bytes at most."""
    if limit is not None:
        files_of_at_most(limit)
    download._get_cifar100 = lambda root: download.fetch(url, path, md5)
