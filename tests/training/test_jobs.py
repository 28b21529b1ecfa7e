"""Runs side by side: the same results as one after another, whatever ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from psd.training import config, jobs
from psd.training.config import Config
from psd.training.fit import train
from psd.training.loop import Interrupted
from psd.training.records import Record

pytestmark = pytest.mark.usefixtures("one_thread")


def some(output: Path, seeds: range = range(3), passes: int = 64, **data: Any) -> list[Config]:
    """Small runs, which differ in their seed."""
    return [
        config.recipe(
            "shapes",
            data={"count": 32, "size": 16, "batch_size": 8, "classes": 4, **data},
            method={"patch_size": 4},
            budget={"image_passes": passes},
            run={"seed": seed, "output": str(output), "device": "cpu", "progress": False},
        )
        for seed in seeds
    ]


def record(run: Config) -> Record:
    return Record.read(Path(run.run.output) / f"{run.name}.json")


def test_runs_side_by_side_are_those_one_after_another(tmp_path):
    said: list[str] = []
    beside, alone = some(tmp_path / "beside"), some(tmp_path / "alone")
    jobs.train_all(beside, 2, say=said.append)
    for one, other in zip(beside, alone, strict=True):
        assert record(one).final == train(other).final
    assert len(said) == 3 and all(any(run.name in line for line in said) for run in beside)
    assert said[-1].startswith("[3 of 3] ")


def test_one_process_trains_several_runs(tmp_path, monkeypatch):
    started: list[list[str]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: started.append(command) or popen(command, **rest))
    jobs.train_all(some(tmp_path), 1, say=lambda line: None)
    assert len([command for command in started if command[0] == sys.executable]) == 1


def test_runs_that_are_done_are_left_as_they_are(tmp_path):
    runs = some(tmp_path, range(2))
    train(runs[0])
    before = (tmp_path / f"{runs[0].name}.json").stat().st_mtime_ns
    said: list[str] = []
    jobs.train_all(runs, 2, say=said.append)
    assert said[0] == "1 of 2 runs are done already"
    assert (tmp_path / f"{runs[0].name}.json").stat().st_mtime_ns == before and record(runs[1]).seed == 1


def test_a_run_that_fails_is_named_and_the_others_are_trained(tmp_path):
    runs = some(tmp_path, range(2))
    diverging = config.recipe(
        "shapes", **{**runs[0].to_dict(), "optimizer": {"lr": 1e30}, "run": {**runs[0].to_dict()["run"], "seed": 7}}
    )
    said: list[str] = []
    with pytest.raises(jobs.Failed, match=f"1 of 3 runs failed: {diverging.name}"):
        jobs.train_all([diverging, *runs], 1, say=said.append)
    assert any("FAILED: Diverged" in line for line in said)
    assert [record(run).seed for run in runs] == [0, 1]


def test_a_user_s_mistake_ends_all_with_its_own_words(tmp_path):
    with pytest.raises(ValueError, match=r"method\.patch_size 4 does not divide the images of 18 x 18 pixels"):
        jobs.train_all(some(tmp_path, range(1), size=18), 1, say=lambda line: None)


def test_the_time_limit_leaves_checkpoints_from_which_the_runs_go_on(tmp_path):
    runs = some(tmp_path / "stopped", range(2), passes=640_000)
    said = ""
    for seconds in (8, 16, 32, 64):  # on a busy machine two processes take their time to begin
        with pytest.raises(Interrupted) as stopped:
            jobs.train_all(runs, 2, seconds=seconds, say=lambda line: None)
        said = str(stopped.value)
        if "2 have a checkpoint" in said:
            break
    assert f"time limit of {seconds} s is over: 0 of 2 runs are done, 2 have a checkpoint" in said
    assert all(list((tmp_path / "stopped" / run.name).glob("checkpoints/*")) for run in runs)


def test_sigterm_stops_the_runs_too(tmp_path):
    def ask() -> None:
        time.sleep(6)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    with pytest.raises(Interrupted, match="SIGTERM came: 0 of 1 runs are done"):
        jobs.train_all(some(tmp_path, range(1), passes=640_000), 1, say=lambda line: None)


def test_the_time_to_go_is_that_of_runs_that_wait_and_the_rest_of_those_at_work(tmp_path):
    waiting, half_done, overdue, idle = *some(tmp_path, passes=100), None
    now = time.monotonic()
    workers: Any = [
        SimpleNamespace(config=half_done, since=now - 50),
        SimpleNamespace(config=overdue, since=now - 500),
        SimpleNamespace(config=idle, since=now - 500),
    ]
    assert jobs._left([waiting], workers, seconds_per_pass=1) == pytest.approx(100 + 50, abs=1)


@pytest.mark.parametrize(("count", "seconds", "named"), [(0, None, "jobs"), (1, 0.0, "time limit")])
def test_arguments_without_sense_are_refused(count, seconds, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        jobs.train_all(some(tmp_path), count, seconds)


def test_a_settings_file_tells_all_of_a_run(tmp_path):
    """What a process is given, and what it would read from a recipe, are one configuration."""
    run = some(tmp_path)[0]
    assert config.from_dict(json.loads(json.dumps(run.to_dict()))).to_dict() == run.to_dict()
