"""Several processes, parts of a batch, and the signal that ends a job: whatever comes, the same run in the end.

Jobs are launched as users launch them, by torchrun, with two processes on the CPU. Their network is without BatchNorm,
whose statistics each process takes of its own images; one step then forwards the same images whoever has them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import psd
from psd import methods
from psd.data.batches import Batches, Share
from psd.seeding import seed_for
from psd.training import watch
from psd.training.callbacks import MetricsLog
from psd.training.config import BudgetConfig, Config, DataConfig, ModelConfig, RunConfig
from psd.training.loop import Interrupted
from psd.training.processes import Processes, Termination, ended_at_once

STEPS, BATCH = 5, 16
DATA = {"count": 80, "classes": 4, "size": 32, "batch_size": BATCH}  # 5 steps an epoch
NETWORK = "timm:test_convnext"  # LayerNorm in the place of BatchNorm, 0.3 million weights
METHODS = ("cross_entropy", "patch_swap")
COMMAND = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


pytestmark = pytest.mark.usefixtures("one_thread")


def config(output: Path, method: str = "patch_swap", *, data: dict[str, Any] | None = None, epochs=1, **run) -> Config:
    options = {"patch_size": 4} if method == "patch_swap" else {}
    return Config(
        data=DataConfig(**{**DATA, **(data or {})}),
        model=ModelConfig(run.pop("model", NETWORK)),
        method=methods.build(method, **options),
        budget=BudgetConfig(epochs=epochs),
        run=RunConfig(output=str(output), **{"device": "cpu", "progress": False, **run}),
    )


def arguments(run: Config, **extra: Any) -> list[str]:
    """The run as a command line of `psd train`."""
    given: dict[str, Any] = {}
    for section, options in run.to_dict().items():
        given |= {f"{section}.{key}": value for key, value in options.items()}
    words = ["train", "shapes"]
    for key, value in {**given, **extra}.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += [f"--{key}", "null" if value is None else text]
    return words


def environment(**own: str) -> dict[str, str]:
    root = str(Path(psd.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **own}


def start(*command: str, **own: str) -> subprocess.Popen[str]:
    """A job in a process group of its own, which `end` can end whatever is left of it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, **pipes, env=environment(**own), start_new_session=True)


def end(job: subprocess.Popen[str], seconds: float = 120) -> str:
    """What the job printed until its end. A launcher ends its workers, which are in sessions of their own."""
    try:
        return job.communicate(timeout=seconds)[0]
    finally:
        job.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


def launch(run: Config) -> subprocess.Popen[str]:
    return start(*COMMAND, "-m", "psd", *arguments(run))


def weights(run: Config) -> dict[str, Tensor]:
    return load_file(Path(run.run.output) / run.name / "model.safetensors")


def record(run: Config) -> dict[str, Any]:
    return json.loads((Path(run.run.output) / f"{run.name}.json").read_text())


def wait_until(true: Callable[[], bool], job: subprocess.Popen[str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert job.poll() is None, f"the job ended too early: {job.communicate()[0]}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# --- two processes


@pytest.fixture(scope="module", params=METHODS)
def alone_and_two(request, tmp_path_factory) -> tuple[Config, Config, str]:
    """The same run in one process and in two, and what the two printed."""
    alone = config(tmp_path_factory.mktemp("alone"), request.param)
    psd.train(alone)
    two = config(tmp_path_factory.mktemp("two"), request.param)
    job = launch(two)
    printed = end(job)
    assert job.returncode == 0, printed
    return alone, two, printed


def test_two_processes_give_the_weights_of_one(alone_and_two):
    alone, two, _ = alone_and_two
    assert record(two)["epochs"][0]["steps"] == STEPS
    a, b = weights(alone), weights(two)
    assert a.keys() == b.keys()
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-5
    torch.manual_seed(seed_for(0, "weights"))
    fresh = psd.models.build(NETWORK, DATA["classes"]).state_dict()
    assert max(float((a[key] - fresh[key]).abs().max()) for key in a) > 1e-2  # there was something to agree on


def test_two_processes_report_the_losses_and_metrics_of_one(alone_and_two):
    a, b = (record(run) for run in alone_and_two[:2])
    for key in ("loss", "cross_entropy", "distillation", "train_top1"):
        assert b["epochs"][0][key] == pytest.approx(a["epochs"][0][key], abs=1e-4)
    found, expected = ({key: value for key, value in r["final"].items() if value is not None} for r in (b, a))
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-5) and b["final"].keys() == a["final"].keys()
    assert b["image_passes"] == a["image_passes"]
    assert b["device"] == f"2 x {a['device']}"


def test_one_of_two_processes_speaks(alone_and_two):
    _, two, printed = alone_and_two
    assert printed.count(f"{two.name}.json") == 1 and printed.count("top-1") == 1


def test_both_processes_measure_the_network_that_is_saved(tmp_path):
    run = config(tmp_path, model="resnet8", epochs=4)  # with BatchNorm, whose statistics the processes do not share
    job = launch(run)
    printed = end(job)
    assert job.returncode == 0, printed
    measured = psd.evaluate(
        psd.load_model(tmp_path / run.name), psd.data.load("shapes", split="test", size=32, classes=4)
    )
    assert record(run)["final"]["nll"] == pytest.approx(measured.nll, abs=1e-5)


def test_a_batch_that_processes_cannot_share_equally_is_refused(tmp_path):
    job = launch(config(tmp_path, data={"batch_size": 15}))
    printed = end(job)
    assert job.returncode != 0
    assert "data.batch_size 15 cannot be cut into 2 equal parts (2 processes x run.accumulate 1)" in printed


class Two:
    """An accelerator of one of two processes whose other one never answers: nothing here may ask it."""

    num_processes = 2

    def __init__(self, rank: int) -> None:
        self.process_index = rank


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9])
def test_the_rows_of_all_processes_are_all_rows(n):
    shares = [Processes(Two(rank)).rows(n) for rank in range(2)]
    assert [row for rows in shares for row in rows] == list(range(n))


# --- parts of a batch, one after another


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_parts_add_up_to_those_of_the_batch(method, tmp_path):
    whole, parts = config(tmp_path / "whole", method), config(tmp_path / "parts", method, accumulate=4)
    records = psd.train(whole), psd.train(parts)
    a, b = weights(whole), weights(parts)
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-5
    for key in ("loss", "cross_entropy", "distillation", "train_top1"):
        assert records[1].epochs[0][key] == pytest.approx(records[0].epochs[0][key], abs=1e-4)


def test_a_method_with_a_state_is_not_cut_into_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(methods.find("cross_entropy"), "state_dict", lambda self: {"seen": 1})
    with pytest.raises(ValueError, match=r"cross_entropy keeps a state .* train it in one process"):
        psd.train(config(tmp_path, "cross_entropy", accumulate=2))


def test_synchronised_batchnorm_without_gpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"run\.sync_batchnorm needs GPUs"):
        psd.train(config(tmp_path, sync_batchnorm=True))


def test_no_anchor_comes_twice_in_an_epoch_over_all_processes():
    seen = []
    data = psd.data.load("shapes", count=75, classes=4, size=16)
    for rank in range(2):
        batches = Batches(data, BATCH, 0, share=Share(rank, 2, 2))
        seen += [batches.get(step, turn).index for step in range(batches.steps_per_epoch) for turn in range(2)]
    anchors = torch.cat(seen)
    assert len(anchors) == len(anchors.unique()) == 75 // BATCH * BATCH  # the last incomplete batch alone is dropped


# --- SIGTERM


def sent_at(step: int, monkeypatch: pytest.MonkeyPatch, source: type = Batches) -> None:
    """SIGTERM reaches this process while it makes the batch of a step."""
    get = source.get

    def get_and_send(self: Any, asked: int, turn: int = 0) -> Any:
        if asked == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return get(self, asked, turn)

    monkeypatch.setattr(source, "get", get_and_send)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Config:
    """A run of two epochs with BatchNorm that nothing stopped."""
    run = config(tmp_path_factory.mktemp("small"), model="resnet8", epochs=2, evaluate_every=1)
    psd.train(run)
    return run


def again(run: Config, output: Path, **changes: Any) -> Config:
    return dataclasses.replace(run, run=dataclasses.replace(run.run, output=str(output), **changes))


def noted(run: Config) -> list[dict[str, Any]]:
    lines = (Path(run.run.output) / run.name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("step", [0, 2, 4, 7])  # the first, inside an epoch, the last of an epoch, inside the second
@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_a_run_that_sigterm_stopped_goes_on_to_the_same_bits(step, checkpoint_every, small, tmp_path, monkeypatch):
    run = again(small, tmp_path, checkpoint_every=checkpoint_every)
    with monkeypatch.context() as patch:
        sent_at(step, patch)
        with pytest.raises(Interrupted, match=rf"SIGTERM at step {step + 1} of 10; .*step-0*{step + 1} is written"):
            psd.train(run)
    assert not (tmp_path / f"{run.name}.json").exists()
    resumed = again(run, tmp_path, resume="auto")
    psd.train(resumed)
    a, b = weights(small), weights(resumed)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert record(resumed)["epochs"] == record(small)["epochs"]
    assert record(resumed)["final"] == record(small)["final"]


def test_sigterm_outside_a_training_ends_the_process_as_ever():
    before = signal.getsignal(signal.SIGTERM)
    with Termination() as termination:
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.asked
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_job_ends_with_75_and_the_same_command_goes_on(small, tmp_path):
    run = again(small, tmp_path, resume="auto")
    run.budget = BudgetConfig(epochs=200)
    job = start(sys.executable, "-m", "psd", *arguments(run))
    wait_until((tmp_path / run.name / "metrics.jsonl").exists, job)
    job.send_signal(signal.SIGTERM)
    printed = end(job, 60)
    assert job.returncode == 75, printed
    assert "stopped by SIGTERM at step" in printed and "--run.resume auto" in printed
    (left,) = (tmp_path / run.name / "checkpoints").glob("step-*[!0]*")
    begun = int(left.name.removeprefix("step-"))
    with pytest.raises(ValueError, match=r"budget\.epochs: 200 != 2"):  # another configuration
        psd.train(again(small, tmp_path, resume=str(left)))
    shown = []
    with contextlib.suppress(StopIteration):
        psd.train(again(run, tmp_path), lambda entry: shown.append(entry) or next(iter(())))
    assert shown[0]["epoch"] == begun // STEPS + 1  # not from the beginning


def test_two_processes_agree_on_where_to_stop_and_go_on_together(tmp_path):
    run = config(tmp_path, epochs=60, resume="auto", checkpoint_every=0)
    job = launch(run)
    wait_until((tmp_path / run.name / "metrics.jsonl").exists, job)
    job.send_signal(signal.SIGTERM)  # the launcher passes it on
    printed = end(job)
    assert job.returncode != 0
    (left,) = (tmp_path / run.name / "checkpoints").iterdir()
    assert printed.count("stopped by SIGTERM at step") == 2, printed
    job = launch(run)
    wait_until(lambda: noted(run)[-1]["step"] > int(left.name.removeprefix("step-")), job)
    job.send_signal(signal.SIGTERM)
    end(job)
    steps = [line["step"] for line in noted(run)]
    assert steps == sorted(set(steps))  # nothing was trained twice


def test_a_killed_worker_ends_the_job_and_what_it_had_kept_goes_on(tmp_path):
    run = config(tmp_path, epochs=60, resume="auto", checkpoint_every=1)
    job = launch(run)
    kept = tmp_path / run.name / "checkpoints"
    wait_until(lambda: len(list(kept.glob("step-*"))) > 1, job)
    workers = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    end(job)  # within this many seconds or not at all
    assert job.returncode != 0
    newest = max(kept.glob("step-*")).name
    job = launch(run)
    wait_until(lambda: max(path.name for path in kept.glob("step-*")) > newest, job)
    job.send_signal(signal.SIGTERM)
    end(job)
    assert max(line["step"] for line in noted(run)) > int(newest.removeprefix("step-"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_whose_partner_never_comes_heeds_signals(rank, number, tmp_path):
    with socket.socket() as address:
        address.bind(("127.0.0.1", 0))
        port = address.getsockname()[1]
        if rank:  # connects to the first one, which is this test and says nothing
            address.listen()
            address.settimeout(90)
        else:
            address.close()
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        job = start(sys.executable, "-m", "psd", *arguments(config(tmp_path)), **places, **own)
        with contextlib.closing(address.accept()[0]) if rank else contextlib.nullcontext():
            if not rank:
                wait_until(lambda: listens(port), job)
            job.send_signal(number)
            printed = end(job, 30)
    assert job.returncode == -number, printed
    assert "Traceback" not in printed


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_process_that_waits_for_no_other_keeps_its_handlers(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    before = signal.getsignal(signal.SIGINT)
    with ended_at_once():
        assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setenv("WORLD_SIZE", "2")
    with ended_at_once():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


# --- what is noted meanwhile


def test_metrics_hold_every_epoch_and_the_looks_between(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_EVERY", 2)
    run = config(tmp_path, model="resnet8", epochs=2, evaluate_every=2)
    made = psd.train(run)
    lines = noted(run)
    assert [line["step"] for line in lines] == [2, 4, 5, 7, 9, 10]
    whole = [line for line in lines if line["step"] % STEPS == 0]
    assert [{key: line[key] for key in line if key != "step"} for line in whole] == made.epochs
    assert all(line["images_per_second"] > 0 for line in lines if line not in whole)


def begun(folder: Path, step: int) -> MetricsLog:
    """The log of a run that goes on at a step."""
    log = MetricsLog(folder)
    log.begin(SimpleNamespace(step=step))
    return log


def test_lines_after_the_step_where_a_run_goes_on_are_dropped(tmp_path):
    log = begun(tmp_path, 0)
    for step in (5, 10, 15):
        log.add(step, {"loss": 1.0})
    log.path.write_text(log.path.read_text() + '{"step": 2')  # a process was killed while it wrote
    begun(tmp_path, 10).add(12, {"loss": 0.5})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [5, 10, 12]


def test_a_new_run_drops_the_lines_of_an_older_one_when_it_has_its_own(tmp_path):
    begun(tmp_path, 0).add(5, {"loss": 1.0})
    log = begun(tmp_path, 0)
    assert len(log.path.read_text().splitlines()) == 1
    log.add(3, {"loss": 2.0})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [3]
