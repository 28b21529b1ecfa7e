"""Killed, stopped, interrupted, twice at once: whatever ends a process, what it had kept goes on to the same bits.

Networks and images are tiny and the processes real (`faults.py`). Moments are drawn by a fixed seed, as shares of the
time that an undisturbed run takes here.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import EPOCHS, STEPS, Child, Whole, assert_kept_is_whole, hold, hold_in_a_step, two_ranks

from psd.training import checkpoints
from psd.training.records import Record

HELD = ["weights", "state", "name", "old"]  # moments inside the write of a checkpoint
METHODS = ("cross_entropy", "patch_swap")
REMEDY = "the same command with `--run.resume auto` goes on from the last checkpoint, or begins anew without one"


def runs(folder: Path) -> list[Path]:
    """Folders of runs that were begun."""
    return [log.parent for log in folder.rglob("metrics.jsonl")]


def disturbed(
    words: list[str], folder: Path, times: int, draw: random.Random, seconds: float, number: int
) -> list[Child]:
    """Start a command again and again, and send it a signal at a random moment of the time that it may take.

    Where it ends before that, what it has made is taken away, and the next moment will be an earlier one.

    Returns:
        those that the signal has ended.
    """
    ended: list[Child] = []
    while len(ended) < times:
        child = Child(folder.parent, words)
        child.wait_for(lambda child=child: child.begun)
        child.process.join(draw.uniform(0, seconds))
        child.send(number)
        if child.end() == 0:  # it had done its work before
            shutil.rmtree(folder)
            seconds *= 0.8
        else:
            ended.append(child)
            assert_kept_is_whole(folder)
    return ended


# --- killed


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(long, tally, train, whole, tmp_path):
    output, draw = tmp_path / "runs", random.Random(0)
    killed = disturbed(train(output), output, 20 if long else 4, draw, whole.seconds, signal.SIGKILL)
    assert Child(tmp_path, train(output)).end() == 0
    whole.assert_same(output)
    assert {child.process.exitcode for child in killed} == {-signal.SIGKILL}
    tally("Faults", "kill -9 of a training at a random moment, then resumed", "weights bit-equal", len(killed))


def test_a_run_killed_inside_the_write_of_a_checkpoint_ends_with_the_same_bits(long, tally, train, whole, tmp_path):
    output, draw = tmp_path / "runs", random.Random(1)
    held = HELD * 3 if long else ["weights", "name", "old"]
    for number, where in enumerate(held):
        marker, before = tmp_path / f"{number}", sorted(output.rglob("step-*"))
        child = Child(tmp_path, train(output), partial(hold, where, draw.choice((1, 2)) if len(before) else 2, marker))
        try:
            child.wait_for(marker.exists)
        except AssertionError:  # it was done before
            assert child.end() == 0
            shutil.rmtree(output)
            continue
        child.kill()
        assert list(output.rglob(".step*"))  # what it was at
        assert_kept_is_whole(output)
    assert Child(tmp_path, train(output)).end() == 0
    whole.assert_same(output)
    tally("Faults", "kill -9 inside the write of a checkpoint, held open", "weights bit-equal", len(held))


def test_a_run_killed_before_its_record_has_its_name_goes_on_from_its_checkpoint(tally, train, whole, tmp_path):
    output, marker = tmp_path / "runs", tmp_path / "held"
    child = Child(tmp_path, train(output), partial(hold, "record", 1, marker))
    child.wait_for(marker.exists)
    child.kill()
    assert not list(output.rglob("*-s0.json")) and list(output.rglob(".*-s0.json.*")) and list(output.rglob("step-*"))
    assert Child(tmp_path, train(output)).end() == 0
    whole.assert_same(output)
    tally("Faults", "kill -9 inside the write of a record", "no half record, weights bit-equal")


def test_a_killed_comparison_loses_no_run_and_repeats_none(long, tally, train, tmp_path):
    small = {"run__checkpoint_every": 1, "budget__epochs": 2}
    extra = ["--methods", *METHODS, "--seeds", "0", *(["1"] if long else [])]
    words = [[*train(tmp_path / name, "compare", **small), *extra] for name in ("whole", "runs")]
    whole, output, draw = (
        Whole(tmp_path / "whole", lambda: [Child(tmp_path, words[0])]),
        tmp_path / "runs",
        random.Random(2),
    )
    done: dict[Path, int] = {}
    kills = 20 if long else 3
    for _ in range(kills):
        child = Child(tmp_path, words[1])
        child.process.join(draw.uniform(0, whole.seconds / 2))
        child.kill()
        assert_kept_is_whole(output)
        records = {file: file.stat().st_mtime_ns for file in output.rglob("*-s*.json")}
        assert done.items() <= records.items()  # those that were done are as they were
        for file in records:
            Record.read(file)
        done = records
    assert Child(tmp_path, words[1]).end() == 0
    assert all(file.stat().st_mtime_ns == written for file, written in done.items())
    whole.assert_same(output)
    assert len(list(output.rglob("*-s*.json"))) == len(METHODS) * (2 if long else 1)
    tally("Faults", "kill -9 of a comparison", "no run lost, none repeated, no record damaged", kills)


def test_a_killed_comparison_leaves_none_of_its_processes_at_work(tally, train, tmp_path):
    words = [*train(tmp_path / "runs", "compare", budget__epochs=5000), "--methods", *METHODS, "--jobs", "1"]
    child = Child(tmp_path, words)
    child.wait_for(lambda: runs(tmp_path / "runs"))
    workers = psutil.Process(child.pid).children(recursive=True)
    assert workers
    child.kill()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    (kept,) = (tmp_path / "runs").rglob("checkpoints")
    assert checkpoints.every(kept)  # its last one was written when its parent was gone
    assert_kept_is_whole(kept)
    tally("Faults", "kill -9 of a comparison with --jobs", "its processes stop with a checkpoint")


# --- image files and worker processes


def psd(*words: str, before: str = "") -> subprocess.Popen[str]:
    """The command as a user starts it: its worker processes are of a server of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "psd", *words]
    if before:
        command = ["unshare", "-rm", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
    # Ctrl-C reaches it, also where these tests run in a shell's background, which ignores SIGINT.
    return subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def newest(output: Path) -> str:
    """The name of a run's last checkpoint; empty before the first."""
    return max((path.name for path in output.rglob("step-*")), default="")


def until(true: Callable[[], object], process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def streamed(train, tmp_path_factory) -> tuple[Whole, dict[str, Any]]:
    """A run on image files, and its settings."""
    folder, settings = tmp_path_factory.mktemp("streamed"), {"data__size": "null", "data__crop_size": 16}
    return Whole(folder, lambda: [Child(folder, train(folder, **settings, data__workers=0))]), settings


def test_streamed_images_killed_with_or_without_their_worker_give_the_same_bits(long, tally, train, streamed, tmp_path):
    (whole, settings), output, draw = streamed, tmp_path / "runs", random.Random(3)
    words = train(output, **settings)
    for turn in range(20 if long else 2):
        if newest(output) >= f"step-{(EPOCHS - 2) * STEPS:09d}":  # too near to its end to be killed
            shutil.rmtree(output)
        process = psd(*words)
        last = newest(output)
        until(lambda last=last: newest(output) > last, process)
        (server,) = (child for child in psutil.Process(process.pid).children() if child.children())
        workers = server.children()
        time.sleep(draw.uniform(0, 0.1))
        if turn % 2:
            workers[0].kill()
            printed = process.communicate(timeout=60)[0]
            assert process.returncode == 1, printed
            assert re.search(r"^psd: a worker process that decodes images has ended .* goes on", printed, re.M), printed
            assert "Traceback" not in printed
        else:
            process.kill()
            process.communicate()
        assert not psutil.wait_procs([server, *workers], timeout=60)[1]
        assert_kept_is_whole(output)
    assert Child(tmp_path, train(output, **settings, data__workers=0)).end() == 0
    whole.assert_same(output)
    tally(
        "Faults", "kill -9 of a training that streams images, and of its worker", "a line, weights bit-equal", turn + 1
    )


def test_too_little_shared_memory_ends_with_a_line(tally, train, tmp_path):
    allowed = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/dev/shm"], capture_output=True)
    if allowed.returncode:
        pytest.skip("only who may mount can make /dev/shm small")
    settings = {"data__size": "null", "data__crop_size": 160, "data__batch_size": 12}
    process = psd(*train(tmp_path, **settings), before="mount -t tmpfs -o size=600k none /dev/shm")
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "Traceback" not in printed, printed
    assert "/dev/shm" in printed and "lower data.workers (1 now)" in printed
    tally("Faults", "/dev/shm too small for the workers", "a line, exit code 1")


# --- two processes of one run


@pytest.fixture
def ranks(tmp_path) -> Iterator[Callable[..., list[Child]]]:
    """Start both processes of a run."""
    started: list[Child] = []

    def start(words: list[str]) -> list[Child]:
        both = [Child(tmp_path, words, **launched(), RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
        started.extend(both)
        return both

    yield start
    for child in started:
        child.send(signal.SIGKILL)


_ports: dict[str, str] = {}


def launched() -> dict[str, str]:
    """What a launcher tells its processes; a new port for every second one."""
    if not _ports:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            _ports["MASTER_PORT"] = str(free.getsockname()[1])
        return {**_ports, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return {
        "MASTER_PORT": _ports.pop("MASTER_PORT"),
        "MASTER_ADDR": "127.0.0.1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }


def test_two_ranks_of_which_one_is_killed_go_on_to_the_same_bits(long, tally, train, ranks, tmp_path):
    output, draw = tmp_path / "runs", random.Random(4)
    whole, kills = Whole(tmp_path / "whole", lambda: ranks(train(tmp_path / "whole"))), 0
    for turn in range(20 if long else 2):
        if list(output.rglob("*-s0.json")):
            shutil.rmtree(output)
        both = ranks(train(output))
        mine = f"process {both[0].pid} "  # it owns the run's folder, after the two have met
        both[0].wait_for(lambda mine=mine: any(path.read_text().startswith(mine) for path in output.rglob(".owner")))
        if turn % 2 == 0:
            both[0].wait_for(lambda: list(output.rglob("step-*")))
        both[1].process.join(draw.uniform(0, whole.seconds / (2 if turn % 2 else 8)))
        victim, other = both if draw.random() < 0.5 else both[::-1]
        victim.send(signal.SIGKILL)
        kills += victim.end() != 0
        assert other.end() in (0, 1), other.printed
        assert "Traceback" not in other.printed, other.printed
        if other.process.exitcode == 1:
            assert "psd: another process of this run has ended" in other.printed
        assert_kept_is_whole(output)
    assert kills
    assert [child.end() for child in ranks(train(output))] == [0, 0]
    whole.assert_same(output)
    tally("Faults", "kill -9 of one of two ranks", "the other ends with a line, weights bit-equal", kills)


def test_ranks_whose_launcher_is_killed_stop_with_a_checkpoint(tally, train, tmp_path):
    output, pids, variables = tmp_path / "runs", tmp_path / "pids", {**launched(), **launched()}
    words = train(output, budget__epochs=5000, run__checkpoint_every=0)
    launcher = Child(tmp_path, (), partial(two_ranks, words, variables, pids))
    launcher.wait_for(lambda: runs(output))
    both = [psutil.Process(pid) for pid in json.loads(pids.read_text())]
    launcher.kill()
    assert not psutil.wait_procs(both, timeout=60)[1]
    printed = (tmp_path / "pids.0.txt").read_text()
    assert "stopped as its launcher has ended at step" in printed and list(output.rglob("step-*"))
    tally("Faults", "kill -9 of the launcher of two ranks", "both stop with a checkpoint")


# --- two at once


def test_a_second_process_on_a_run_is_refused_and_a_dead_one_s_place_is_taken(tally, train, whole, tmp_path):
    output, marker = tmp_path / "runs", tmp_path / "held"
    first = Child(tmp_path, train(output), partial(hold, "weights", 2, marker))
    first.wait_for(marker.exists)

    def kept() -> dict[Path, int]:  # an older filelock empties the empty lock once more
        return {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.name != ".lock"}

    before = kept()
    for resume in ("auto", "never"):
        second = Child(tmp_path, train(output, run__resume=resume))
        assert second.end() == 2
        assert re.fullmatch(
            rf"psd: error: {output}/\S+ is taken by process {first.pid} on {re.escape(socket.gethostname())} since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, which is at work on this run\. .*\n",
            second.printed,
        )
    assert kept() == before
    first.kill()
    assert Child(tmp_path, train(output)).end() == 0
    whole.assert_same(output)
    tally("Faults", "two processes on one output folder", "the second refuses and names the first", 2)
    tally("Faults", "the lock of a process that was killed", "taken over")


def test_two_runs_side_by_side_in_one_output_folder_are_both_trained(train, whole, tmp_path):
    both = [Child(tmp_path, train(tmp_path / "runs", run__variant=name)) for name in "ab"]
    assert [child.end() for child in both] == [0, 0]
    assert len(list((tmp_path / "runs").rglob("*-s0.json"))) == 2


# --- stopped


def test_ctrl_c_at_any_moment_ends_with_a_line_and_the_run_goes_on(long, tally, train, whole, tmp_path):
    output, draw = tmp_path / "runs", random.Random(5)
    ended = disturbed(train(output), output, 20 if long else 3, draw, whole.seconds, signal.SIGINT)
    for child in ended:
        assert child.process.exitcode == 130, child.printed
        last = child.printed.splitlines()[-1]  # before the arguments are read, it is no training yet
        assert "Traceback" not in child.printed and last in ("psd: interrupted", f"psd: interrupted; {REMEDY}"), last
    assert Child(tmp_path, train(output)).end() == 0
    whole.assert_same(output)
    tally("Faults", "Ctrl-C at a random moment", "a line, exit code 130, weights bit-equal", len(ended))


def test_ctrl_c_while_psd_is_being_loaded_prints_no_traceback(long, tally, train, tmp_path):
    moments = [0, 0.2, 0.5, 1, 2, 3, 4, 5] if long else [0]  # seconds after PyTorch began to be loaded
    for moment in moments:
        process = psd(*train(tmp_path))
        until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), process)  # noqa: B023
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=60)[0]
        assert process.returncode in (-signal.SIGINT, 130) and "Traceback" not in printed, printed
    tally("Faults", "Ctrl-C while Python loads psd", "it ends without a traceback", len(moments))


def test_what_was_interrupted_in_its_first_epoch_says_that_it_begins_anew(tally, train, whole, tmp_path):
    output, marker = tmp_path / "runs", tmp_path / "held"
    child = Child(tmp_path, train(output), partial(hold_in_a_step, 2, marker))
    child.wait_for(marker.exists)
    child.send(signal.SIGINT)
    assert child.end() == 130
    again = Child(tmp_path, train(output, run__progress="true"))
    assert again.end() == 0
    assert "goes on from its beginning, as it has no checkpoint yet" in again.printed
    whole.assert_same(output)
    tally("Faults", "Ctrl-C in the first epoch, then the same command", "says that it begins anew, weights bit-equal")


def test_a_run_that_goes_on_says_after_which_step(train, tmp_path):
    marker = tmp_path / "held"
    child = Child(tmp_path, train(tmp_path / "runs"), partial(hold_in_a_step, STEPS + 1, marker))
    child.wait_for(marker.exists)
    child.kill()
    again = Child(tmp_path, train(tmp_path / "runs", run__progress="true"))
    assert again.end() == 0 and f"goes on after step {STEPS} of {EPOCHS * STEPS}" in again.printed


def test_a_laptop_s_lid_changes_nothing(long, tally, train, whole, tmp_path):
    output, draw = tmp_path / "runs", random.Random(6)
    child = Child(tmp_path, train(output))
    for _ in range(20 if long else 3):
        child.process.join(draw.uniform(0, whole.seconds / 6))
        child.send(signal.SIGSTOP)
        time.sleep(0.2)
        child.send(signal.SIGCONT)
    assert child.end() == 0, child.printed
    whole.assert_same(output)
    tally("Faults", "a laptop's lid (SIGSTOP, SIGCONT)", "weights bit-equal", 20 if long else 3)


def test_sigterm_before_the_first_step_ends_with_75(tally, train, tmp_path):
    child = Child(tmp_path, train(tmp_path / "runs"), partial(hold_loading, tmp_path / "held"))
    child.wait_for((tmp_path / "held").exists)
    child.send(signal.SIGTERM)
    assert child.end() == 75 and "stopped by SIGTERM" in child.printed and "Traceback" not in child.printed
    tally("Faults", "SIGTERM while images are loaded", "a line, exit code 75")


def hold_loading(marker: Path) -> None:
    from psd.training import fit

    def held(data: Any) -> Any:
        marker.touch()
        time.sleep(3600)

    fit.load_data = held
