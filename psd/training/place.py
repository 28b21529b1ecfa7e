"""Where a run computes: its device, its precision, the processes it shares the work with. Left as it was found."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

import torch

from psd.checks import Refused
from psd.training import records
from psd.training.config import RunConfig
from psd.training.processes import Processes, ended_at_once


class Place:
    """The device and processes of a run, while its context is open.

    Afterwards torch's random states, cudnn's flag and accelerate's state are what they were before.

    Attributes:
        device, processes; precision: "fp32" or "bf16"; accelerator: accelerate's, which prepares models for several
        processes and keeps trackers.

    Raises:
        ValueError: a device that is not there, sync_batchnorm without GPUs.
    """

    def __init__(self, run: RunConfig, project: Any = None) -> None:
        self._run, self._project = run, project

    def __enter__(self) -> Place:
        from accelerate import Accelerator

        self._kept = contextlib.ExitStack()
        self._kept.enter_context(_random_state())
        self._kept.enter_context(_accelerate_state())
        self._kept.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
        try:
            run = self._run
            with ended_at_once():
                self.accelerator = Accelerator(
                    cpu=run.device == "cpu",
                    mixed_precision="no",  # autocast is opened around a step, so that no network's forward is changed
                    log_with=run.track,
                    project_dir=self._project,
                )
            self.processes = Processes(self.accelerator)
            self.device: torch.device = self.accelerator.device
            self.precision = "bf16" if self._bf16() else "fp32"
            if run.device is not None and self.device.type != run.device:
                raise Refused(f"run.device {run.device!r} is not there; this machine offers {self.device.type!r}")
            if run.sync_batchnorm and self.device.type != "cuda":
                raise Refused("run.sync_batchnorm needs GPUs: PyTorch's SyncBatchNorm has no other implementation")
            if self.device.type == "cuda":
                torch.backends.cudnn.benchmark = True  # the shapes of a run do not change
        except BaseException:
            self._kept.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.close()

    @property
    def name(self) -> str:
        """Of the device, as records have it, with the number of processes where there are several."""
        world = self.processes.world
        return (f"{world} x " if world > 1 else "") + records.device_name(self.device)

    def resolved(self) -> dict[str, Any]:
        """Of a run's settings, those that its record holds otherwise: what was found here, and nothing of how the run
        came to its end, as one that was resumed is the same run."""
        return {"device": self.device.type, "precision": self.precision, "resume": "never", "overwrite": False}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _bf16(self) -> bool:
        precision = self._run.precision
        return precision == "bf16" or (
            precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )


@contextlib.contextmanager
def _random_state() -> Any:
    """torch's generators as they were: those of the CPU and of every GPU, without waking a GPU that nobody uses."""
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        yield


@contextlib.contextmanager
def _accelerate_state() -> Any:
    """Accelerate keeps one state per process; a run has its own, whatever was there before."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)
