"""Runs side by side: each a `psd train` of its own, with its share of the processor's threads or of the GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from psd import threads
from psd.checks import Refused
from psd.training.config import Config
from psd.training.fit import finished
from psd.training.loop import Interrupted
from psd.training.processes import TRY_AGAIN, Termination
from psd.training.records import Record

BAD_INPUT = 2  # the exit code of the command line for a user's mistake
LOOK_SECONDS = 0.2  # between two looks at the running ones
STOP_SECONDS = 60  # for a run to write its checkpoint, before it is killed


class Failed(RuntimeError):
    """Some of the runs ended in an error; the others were trained."""


@dataclass
class _Job:
    config: Config
    process: subprocess.Popen[str]
    output: IO[str]
    slot: int


def train_all(
    configs: Sequence[Config], jobs: int, seconds: float | None = None, say: Callable[[str], None] = print
) -> None:
    """Train every run that is not trained yet, `jobs` at a time, in the order in which they are given.

    Each goes on from its last checkpoint. Each has an equal share of the available cores as threads, unless the user
    has set their number, and one of the GPUs in turn; several on one GPU share it.

    Args:
        jobs: processes side by side, at least 1.
        seconds: stop after that time, with a checkpoint of whatever is running then.
        say: called with one line for every run that ends.

    Raises:
        ValueError: jobs below 1, seconds not above 0, a record of one of the runs with other settings, and what a run
            refuses as bad input.
        Interrupted: the time is over, or SIGTERM came. Failed: naming the runs that ended in an error.
    """
    if jobs < 1:
        raise Refused(f"jobs must be at least 1, got {jobs}")
    if seconds is not None and not seconds > 0:
        raise Refused(f"the time limit must be above 0 seconds, got {seconds}")
    todo = [config for config in configs if finished(config) is None]
    done, failed = len(configs) - len(todo), []
    if done and todo:
        say(f"{done} of {len(configs)} runs are done already")
    began, passes, left = time.monotonic(), 0, sum(map(_passes, todo))
    running: list[_Job] = []
    with tempfile.TemporaryDirectory(prefix="psd-") as folder, Termination() as termination:
        try:
            while todo or running:
                late = seconds is not None and time.monotonic() - began > seconds
                if late or termination.asked:
                    break
                while todo and len(running) < jobs:
                    slot = min(set(range(jobs)) - {job.slot for job in running})
                    running.append(_start(todo.pop(0), slot, jobs, Path(folder)))
                time.sleep(LOOK_SECONDS)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    if job.process.returncode == BAD_INPUT:
                        raise Refused(_last_line(job).removeprefix("psd: error: "))
                    done, passes, left = done + 1, passes + _passes(job.config), left - _passes(job.config)
                    rest = f"; about {_duration(left * (time.monotonic() - began) / passes)} to go" if left else ""
                    if job.process.returncode == 0:
                        say(f"[{done} of {len(configs)}] {_result(job.config)}{rest}")
                    else:
                        failed.append(job.config.name)
                        say(f"[{done} of {len(configs)}] {job.config.name} FAILED: {_last_line(job)}{rest}")
        finally:
            stopped = _stop(running)
    if stopped or todo:
        why = "SIGTERM came" if termination.asked else f"the time limit of {seconds:g} s is over"
        raise Interrupted(f"{why}: {done} of {len(configs)} runs are done, {stopped} have a checkpoint")
    if failed:
        raise Failed(f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}")


def _start(config: Config, slot: int, jobs: int, folder: Path) -> _Job:
    settings = config.to_dict()
    settings["run"] |= {"resume": "auto", "progress": False}
    file = folder / f"{config.name.replace('/', '-')}.json"  # JSON is YAML
    file.write_text(json.dumps(settings), encoding="utf-8")
    output = (folder / f"{file.stem}.txt").open("w+", encoding="utf-8")
    command = [sys.executable, "-m", "psd", "train", os.fspath(file)]
    environment = {**os.environ, **_share(slot, jobs)}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True
    )
    return _Job(config, process, output, slot)


def _share(slot: int, jobs: int) -> dict[str, str]:
    """What one of several runs on this machine has in its environment of its own; what the user has set comes first."""
    import torch

    share = threads.settings(max(1, threads.available() // jobs))
    if torch.cuda.device_count() > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        share["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    return share


def _stop(running: Sequence[_Job]) -> int:
    """End the runs by SIGTERM, upon which they write a checkpoint; the number of those that did."""
    for job in running:
        job.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for job in running:
        try:
            job.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
        job.output.close()
    return sum(job.process.returncode == TRY_AGAIN for job in running)


def _passes(config: Config) -> int:
    """Images through the network in a run, as far as its settings tell: of epochs, only how many there are."""
    return config.budget.image_passes or config.budget.epochs or 1


def _result(config: Config) -> str:
    record = Record.read(Path(config.run.output) / f"{config.name}.json")
    figures = {"top1": "top-1 {:.2f} %", "nll": "NLL {:.3f}", "ece": "ECE {:.3f}"}
    shown = ", ".join(text.format(record.final[key]) for key, text in figures.items())
    return f"{record.name}: {shown}, {record.seconds:.0f} s"


def _last_line(job: _Job) -> str:
    job.output.seek(0)
    lines = [line for line in job.output.read().splitlines() if line.strip()]
    job.output.close()
    return lines[-1] if lines else f"exit code {job.process.returncode}"


def _duration(seconds: float) -> str:
    """In words of two units at most.

    >>> _duration(50), _duration(900), _duration(9000)
    ('50 s', '15 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
