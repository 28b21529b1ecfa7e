"""What a machine does to a run: a disk that is full or read-only, a folder that goes, a clock, a connection, memory."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import (
    EPOCHS,
    STEPS,
    Child,
    assert_kept_is_whole,
    clock_running_backwards,
    fetching,
    files_of_at_most,
    hold,
    mounted,
    slow,
)
from matplotlib.figure import Figure
from torch import nn

from psd import cli, files
from psd.data import download
from psd.reporting import style
from psd.training import checkpoints
from psd.training.loop import Loop
from psd.training.processes import Processes

MENDED = "; once that is mended, the same command with `--run.resume auto` goes on from the last checkpoint"


def allowed_to_mount(tmp_path: Path) -> bool:
    """Root of a machine may, root of many a container may not."""
    tmp_path.joinpath("probe").mkdir()
    return Child(tmp_path, (), partial(mounted, tmp_path / "probe", "size=100k")).end() == 0


# --- a power cut


@pytest.fixture
def disk(monkeypatch) -> list[tuple[str, Path]]:
    """What was made sure to be on the disk and what got its name, in this order."""
    seen: list[tuple[str, Path]] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        seen.append(("flushed", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def named(path: Path, target: Path) -> Path:
        seen.extend(("written", part) for part in ([path, *path.rglob("*")] if path.is_dir() else [path]))
        seen.append(("named", target))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", named)
    return seen


def write_a_file(folder: Path) -> None:
    files.write_atomically(folder / "new" / "a.json", "{}")


def write_a_checkpoint(folder: Path) -> None:
    checkpoints.save(folder / "new" / "checkpoints", 3, nn.Linear(2, 2), {"step": 3})


def write_weights(folder: Path) -> None:
    checkpoints.save_model(folder / "new" / "model.safetensors", nn.Linear(2, 2), {})


def write_a_figure(folder: Path) -> None:
    style.save(Figure(), folder / "new" / "figure.png")


@pytest.mark.parametrize("write", [write_a_file, write_a_checkpoint, write_weights, write_a_figure])
def test_what_gets_its_name_is_on_the_disk_before_and_its_name_after(write, disk, tally, tmp_path):
    write(tmp_path)
    named = [at for at, (what, _) in enumerate(disk) if what == "named"]
    assert named
    for at in named:
        before, (_, path), after = disk[:at], disk[at], disk[at + 1 :]
        assert all(("flushed", part) in before for what, part in before if what == "written")
        assert ("flushed", path.parent) in after
        made = [folder for folder in path.parents if folder != tmp_path and tmp_path in folder.parents]
        assert all(("flushed", folder.parent) in before for folder in made)  # a folder is a name in another one
    tally("Faults", "a power cut: fsync of file and folder around each renaming", "in this order", len(named))


# --- a full disk


def test_a_file_that_may_not_grow_leaves_the_older_checkpoint(tally, train, whole, tmp_path):
    """The weights fit, the state with the optimizer's does not: half of a checkpoint could be written."""
    output, marker = tmp_path / "runs", tmp_path / "held"
    child = Child(tmp_path, train(output), partial(hold, "name", 2, marker))
    child.wait_for(marker.exists)
    child.kill()
    (kept,) = output.rglob("step-*")
    weights, state = (kept / name for name in ("model.safetensors", "state.pt"))
    limit = max(file.stat().st_size for file in (weights, state)) - 1000
    child = Child(tmp_path, train(output), partial(files_of_at_most, limit))
    assert child.end() == 2
    assert re.fullmatch(rf"psd: error: \S+/step-\d+: File too large{MENDED}.*\n", child.printed), child.printed
    assert [kept] == list(output.rglob("step-*"))
    assert_kept_is_whole(output)
    assert Child(tmp_path, train(output)).end() == 0
    whole.assert_same(output)
    tally("Faults", "a file-size limit inside a checkpoint", "a line, the older one intact, weights bit-equal")


def on_a_small_disk(words: list[str], folder: Path, result: Path) -> None:
    """Train on a disk that is too small, make it larger, train again; copy what is there then to a place for all."""
    mounted(folder, "size=1000k")
    code = cli.main(words)
    left = sorted(path.name for path in folder.rglob("step-*"))
    assert_kept_is_whole(folder)
    print(f"code {code}, left {left}", flush=True)
    mounted(folder, "remount,size=100m")
    assert cli.main(words) == 0
    shutil.copytree(folder, result)


def test_a_full_disk_leaves_the_older_checkpoint(tally, train, whole, tmp_path):
    if not allowed_to_mount(tmp_path):
        pytest.skip("only who may mount can make a small disk")
    output, result = tmp_path / "runs", tmp_path / "result"
    output.mkdir()
    child = Child(tmp_path, (), partial(on_a_small_disk, train(output), output, result))
    assert child.end() == 0, child.printed
    assert re.search(rf"^psd: error: \S+: No space left on device{MENDED}", child.printed, re.M), child.printed
    assert "Traceback" not in child.printed and re.search(r"code 2, left \['step-", child.printed), child.printed
    whole.assert_same(result)
    tally("Faults", "a full disk (tmpfs)", "a line, the older checkpoint intact, weights bit-equal")


# --- a read-only or a lost folder


def test_a_read_only_output_ends_before_the_first_step(tally, train, tmp_path):
    if not allowed_to_mount(tmp_path):
        pytest.skip("only who may mount can make a read-only disk")
    output = tmp_path / "runs"
    output.mkdir()
    child = Child(tmp_path, train(output), partial(mounted, output, "ro"))
    assert child.end() == 2
    assert re.fullmatch(rf"psd: error: {output}\S*: Read-only file system{MENDED}.*\n", child.printed), child.printed
    tally("Faults", "a read-only output", "a line before the first step")


def test_a_folder_that_became_read_only_ends_before_the_first_step(tally, train, tmp_path):
    if not allowed_to_mount(tmp_path):
        pytest.skip("only who may mount can make a read-only disk")
    output = tmp_path / "runs"
    child = Child(tmp_path, train(output, run__checkpoint_every=1), partial(hold, "record", 1, tmp_path / "held"))
    child.wait_for((tmp_path / "held").exists)
    child.kill()
    (folder,) = (log.parent for log in output.rglob("metrics.jsonl"))
    child = Child(tmp_path, train(output), partial(mounted, folder, "ro"))
    assert child.end() == 2 and "Read-only file system" in child.printed and "Traceback" not in child.printed
    assert list(folder.rglob("step-*"))
    tally("Faults", "a run's folder that became read-only", "a line before the first step, checkpoints intact")


def test_an_output_that_goes_meanwhile_ends_with_a_line(tally, train, whole, tmp_path):
    output = tmp_path / "runs"
    child = Child(tmp_path, train(output), partial(slow, 0.1))
    child.wait_for(lambda: list(output.rglob("step-*")))
    output.rename(tmp_path / "gone")
    assert child.end() == 2
    assert re.fullmatch(rf"psd: error: {output}/\S+: No such file or directory{MENDED}.*\n", child.printed)
    assert_kept_is_whole(tmp_path / "gone")
    assert Child(tmp_path, train(output)).end() == 0
    whole.assert_same(output)
    tally("Faults", "the output deleted meanwhile", "a line; the same command begins anew")


# --- a clock set back


def test_a_clock_set_back_changes_nothing(tally, train, whole, tmp_path):
    output, marker = tmp_path / "runs", tmp_path / "held"
    child = Child(tmp_path, train(output), partial(hold, "name", 3, marker))
    child.wait_for(marker.exists)
    child.kill()
    for age, path in enumerate(sorted(output.rglob("step-*"))):
        os.utime(path, (2_000_000_000 - age * 10_000,) * 2)  # the newest looks oldest, and all are of the future
    again = Child(tmp_path, train(output, run__progress="true"), clock_running_backwards)
    assert again.end() == 0 and f"goes on after step {2 * STEPS} of {EPOCHS * STEPS}" in again.printed
    whole.assert_same(output)
    tally("Faults", "the clock set back", "it goes on from the newest checkpoint, weights bit-equal")


# --- a connection


GET = ["data", "get", "cifar100"]
CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def host() -> Iterator[str]:
    """A server that knows ranges and takes its time."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            begin = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(CONTENT) - begin))
            self.end_headers()
            for at in range(begin, len(CONTENT), 20_000):
                try:
                    self.wfile.write(CONTENT[at : at + 20_000])
                except OSError:  # who asked has ended
                    return
                time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/file"
        server.shutdown()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_download_that_is_ended_goes_on_where_it_stopped(number, host, tally, tmp_path):
    file = tmp_path / "got" / "archive"
    part = file.with_name("archive.part")
    child = Child(tmp_path, GET, partial(fetching, host, file, hashlib.md5(CONTENT).hexdigest()))
    child.wait_for(lambda: part.exists() and part.stat().st_size > 50_000)
    child.send(number)
    assert child.end() == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 75}[number]
    assert "Traceback" not in child.printed
    assert number == signal.SIGKILL or "the same command goes on where it stopped" in child.printed
    had = part.read_bytes()
    assert CONTENT.startswith(had) and not file.exists()
    download.fetch(host, file, hashlib.md5(CONTENT).hexdigest())
    assert file.read_bytes() == CONTENT and not part.exists()
    tally("Faults", "an interrupted download (kill -9, Ctrl-C, SIGTERM)", "it goes on where it stopped")


def test_a_download_onto_a_full_disk_ends_at_once_and_goes_on_later(host, tally, tmp_path):
    file, md5 = tmp_path / "archive", hashlib.md5(CONTENT).hexdigest()
    child = Child(tmp_path, GET, partial(fetching, host, file, md5, 200_000))
    began = time.monotonic()
    assert child.end() == 2
    assert f"psd: error: {file}.part: File too large; once that is mended, the same command goes on" in child.printed
    assert child.printed.count("archive") < 50 and time.monotonic() - began < 100
    assert file.with_name("archive.part").read_bytes() == CONTENT[:200_000]
    download.fetch(host, file, md5)
    assert file.read_bytes() == CONTENT
    tally("Faults", "a disk that is full while downloading", "a line; it goes on where it stopped")


# --- memory


def too_much(*_: Any) -> None:
    torch.empty(10**15)


def too_much_of_a_gpu(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nmore lines")


def too_much_of_python(*_: Any) -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [too_much, too_much_of_a_gpu, too_much_of_python])
def test_out_of_memory_in_a_step_is_a_line_that_names_what_to_lower(
    fail,
    tally,
    train,
    whole,
    tmp_path,
    capsys,
    monkeypatch,
):
    output, train_step = tmp_path / "runs", Loop.train_step

    def failing(loop: Loop, epoch: int) -> Any:
        return fail() if loop.step == STEPS + 1 else train_step(loop, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "train_step", failing)
        assert cli.main(train(output)) == 1
    printed = capsys.readouterr().err
    assert re.fullmatch(
        r"psd: out of memory at step 6 of 24 on cpu.*: lower data\.batch_size \(6 now; in psd\.fit batch_size\), or "
        r"forward each batch in more parts: run\.accumulate 2 \(.+\)\n",
        printed,
    )
    (kept,) = output.rglob("step-*")
    assert checkpoints.load(kept)[1]["step"] == STEPS
    tally("Faults", "out of memory in a step", "a line that names the batch size, the checkpoint intact")


def test_a_library_s_other_errors_are_not_taken_for_a_lack_of_memory(train, tmp_path, monkeypatch):
    def failing(loop: Loop, epoch: int) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Loop, "train_step", failing)
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2"):
        cli.main(train(tmp_path))


# --- a launcher


class Accelerator:
    process_index = 0

    def __init__(self, processes: int) -> None:
        self.num_processes = processes


@pytest.mark.parametrize(("processes", "stops"), [(1, False), (2, True)])
def test_only_one_of_several_processes_needs_who_started_it(processes, stops, monkeypatch):
    mine = Processes(Accelerator(processes))
    assert not mine.orphaned
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert mine.orphaned is stops
