"""Runs side by side: processes that train one run after another, each with its share of the threads or of the GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from psd import threads
from psd.checks import Refused
from psd.files import write_atomically
from psd.tasks import Metric
from psd.training.config import Config, from_dict
from psd.training.fit import finished, train
from psd.training.loop import Interrupted
from psd.training.processes import TRY_AGAIN, Termination
from psd.training.records import Record

FIGURES = 4  # of a run, in the line that says that it has ended
LOOK_SECONDS = 0.2  # between two looks at the running ones
STOP_SECONDS = 60  # for a run to write its checkpoint, before it is killed


class Failed(RuntimeError):
    """Some of the runs ended in an error; the others were trained."""


class _Worker:
    """A process that trains the runs it is given, one after another; what Python and torch load, it loads once."""

    def __init__(self, slot: int, jobs: int, folder: Path) -> None:
        self.slot, self.config = slot, None
        self._folder = folder
        self._output = (folder / f"{slot}.txt").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from psd.training import jobs; jobs.work()"],
            env={**os.environ, **_share(slot, jobs)},
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    config: Config | None  # what it is at work on
    since: float  # when it was given that, by time.monotonic

    def give(self, config: Config) -> None:
        self._file.write_text(json.dumps(config.to_dict()), encoding="utf-8")
        self.config, self.since = config, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it ended meanwhile, which `answer` tells
            assert self._process.stdin is not None
            print(self._file, file=self._process.stdin, flush=True)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def answer(self) -> tuple[str, str] | None:
        """How the run came out, "trained", "refused" or "failed", with a line on why; None while it is at work."""
        ended, answer = self.ended, self._file.with_suffix(".answer")
        if answer.exists():
            kind, why = json.loads(answer.read_text(encoding="utf-8"))
            answer.unlink()
            return kind, why
        return ("failed", self._last_line()) if ended else None

    def stop(self) -> None:
        """Ask it to end; one that is at work writes a checkpoint before, or trains its last steps."""
        self._process.terminate()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self, seconds: float) -> bool:
        """Wait for its end, which is forced after that time; whether it wrote a checkpoint."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        return self._process.returncode == TRY_AGAIN

    @property
    def _file(self) -> Path:
        return self._folder / f"{self.slot}.json"

    def _last_line(self) -> str:
        self._output.seek(0)
        lines = [line for line in self._output.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self._process.returncode}"


def work() -> None:
    """Train the runs whose files of settings standard input names, a line each: what `train_all` starts.

    Where standard input ends, so has who gives the runs: one that is at work then stops as by SIGTERM.
    """
    given: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(given,), daemon=True).start()
    while (line := given.get()) is not None:
        file = Path(line)
        try:
            train(from_dict(json.loads(file.read_text(encoding="utf-8"))))
            kind, why = "trained", ""
        except Interrupted:
            sys.exit(TRY_AGAIN)
        except Refused as error:
            kind, why = "refused", str(error)
        except Exception as error:
            traceback.print_exc()
            kind, why = "failed", f"{type(error).__name__}: {error}"
        write_atomically(file.with_suffix(".answer"), json.dumps([kind, why]))
        if kind == "failed":
            sys.exit(1)  # after an error of CUDA nothing works in its process


def _listen(given: queue.SimpleQueue[str | None]) -> None:
    """Pass the lines of standard input on. It is read without a buffer, whose lock would be held at Python's end."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            given.put(os.fsdecode(line.strip()))
    given.put(None)
    os.kill(os.getpid(), signal.SIGTERM)


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
    configs = [replace(config, run=replace(config.run, resume="auto", progress=False)) for config in configs]
    todo = [config for config in configs if finished(config) is None]
    done, failed = len(configs) - len(todo), []
    if done and todo:
        say(f"{done} of {len(configs)} runs are done already")
    began, passes, seconds_trained = time.monotonic(), 0, 0.0
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="psd-") as folder, Termination() as termination:
        try:
            while todo or any(worker.config for worker in workers):
                late = seconds is not None and time.monotonic() - began > seconds
                if late or termination.asked:
                    break
                while todo and sum(worker.config is not None for worker in workers) < jobs:
                    worker = next((worker for worker in workers if worker.config is None), None)
                    if worker is None:
                        slot = min(set(range(jobs)) - {worker.slot for worker in workers})
                        workers.append(worker := _Worker(slot, jobs, Path(folder)))
                    worker.give(todo.pop(0))
                time.sleep(LOOK_SECONDS)
                for worker in [worker for worker in workers if worker.config is not None]:
                    answer = worker.answer()
                    if answer is None:
                        continue
                    (kind, why), config, worker.config = answer, worker.config, None
                    assert config is not None  # as it was at work
                    if kind == "refused":
                        raise Refused(why)
                    done += 1
                    if kind == "trained":
                        record = _record(config)
                        passes, seconds_trained = passes + _passes(config), seconds_trained + record.seconds
                        rest = _left(todo, workers, seconds_trained / passes)
                        to_go = f"; about {_duration(rest / jobs)} to go" if rest else ""
                        say(f"[{done} of {len(configs)}] {_result(record)}{to_go}")
                    else:
                        failed.append(config.name)
                        say(f"[{done} of {len(configs)}] {config.name} FAILED: {why}")
                        workers.remove(worker)
                        worker.wait(STOP_SECONDS)
        finally:
            stopped = _stop(workers)
    if todo or any(worker.config for worker in workers):
        why = "SIGTERM came" if termination.asked else f"the time limit of {seconds:g} s is over"
        raise Interrupted(f"{why}: {done} of {len(configs)} runs are done, {stopped} have a checkpoint")
    if failed:
        raise Failed(f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}")


def _share(slot: int, jobs: int) -> dict[str, str]:
    """What one of several runs on this machine has in its environment of its own; what the user has set comes first."""
    import torch

    share = threads.settings(max(1, threads.available() // jobs))
    if torch.cuda.device_count() > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        share["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    return share


def _stop(workers: Sequence[_Worker]) -> int:
    """End the processes by SIGTERM; the number of those that wrote a checkpoint."""
    for worker in workers:
        worker.stop()
    deadline = time.monotonic() + STOP_SECONDS
    return sum(worker.wait(deadline - time.monotonic()) for worker in workers)


def _passes(config: Config) -> int:
    """Images through the network in a run, as far as its settings tell: of epochs, only how many there are."""
    return config.budget.image_passes or config.budget.epochs or 1


def _left(todo: Sequence[Config], workers: Sequence[_Worker], seconds_per_pass: float) -> float:
    """Seconds of one process that the runs still take, at the rate of those that were trained."""
    now = time.monotonic()
    waiting = sum(_passes(config) * seconds_per_pass for config in todo)
    at_work = [(worker.config, now - worker.since) for worker in workers if worker.config is not None]
    return waiting + sum(max(0.0, _passes(config) * seconds_per_pass - been) for config, been in at_work)


def _record(config: Config) -> Record:
    return Record.read(Path(config.run.output) / f"{config.name}.json")


def _result(record: Record) -> str:
    metrics = [Metric(**known) for known in record.metrics if record.final.get(known["name"]) is not None]
    shown = ", ".join(metric.text(record.final[metric.name]) for metric in metrics[:FIGURES])
    return f"{record.name}: {shown}, {record.seconds:.0f} s"


def _duration(seconds: float) -> str:
    """In words of two units at most.

    >>> _duration(50), _duration(900), _duration(9000)
    ('50 s', '15 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
