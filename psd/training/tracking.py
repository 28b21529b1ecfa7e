"""Trackers of experiments: TensorBoard, Weights & Biases, trackio and MLflow, as accelerate knows them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from psd.checks import Refused
from psd.training.callbacks import Callback, Entry

if TYPE_CHECKING:
    from psd.training.loop import Loop

PROJECT = "psd"
MLFLOW_URI = "MLFLOW_TRACKING_URI"


class Tracking(Callback):
    """The tracker of a run: open from its first step, or the first after a resume, until it ends, however it ends.

    It is given all settings as hyperparameters, the numbers of metrics.jsonl (see `MetricsLog`), and at the end the
    final figures as `final/...`. Where it fails after its start, a warning says so and the run goes on without it: what
    it would have been given stands in metrics.jsonl.

    Args:
        name: "tensorboard", "wandb", "trackio" or "mlflow".
        accelerator: an `accelerate.Accelerator` made with `log_with=name`.
    """

    def __init__(self, name: str, accelerator: Any) -> None:
        self.name, self.accelerator = name, accelerator
        self._open = contextlib.ExitStack()
        self._failed = False

    def begin(self, loop: Loop) -> None:
        """Open the tracker; a Refused with its own words where it does not open, as without a login."""
        project = "tensorboard" if self.name == "tensorboard" else PROJECT  # there it is the name of a folder
        try:
            with contextlib.ExitStack() as opening, _on_stderr():
                options = opening.enter_context(_options(self.name, loop))
                self.accelerator.init_trackers(project, init_kwargs={self.name: options})
                opening.callback(self._finish)
                for tracker in self.accelerator.trackers:
                    tracker.store_init_configuration(flat(loop.plan.settings))
                self._open = opening.pop_all()
        except Exception as error:  # each tracker fails in its own way
            raise Refused(f"run.track: {self.name} did not start: {_first_line(error)}") from error

    def add(self, step: int, values: Entry) -> None:
        """The numbers of a line of metrics.jsonl."""
        test = {f"test/{key}": value for key, value in values.get("test", {}).items()}
        self._log(step, {**values, **test})

    def epoch(self, loop: Loop, entry: Entry) -> None:
        if loop.step == loop.steps:
            self._log(loop.step, {f"final/{key}": value for key, value in entry.get("test", {}).items()})

    def end(self, loop: Loop) -> None:
        self._open.close()

    def _log(self, step: int, values: Entry) -> None:
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        if numbers and not self._failed:
            with self._warned():
                self.accelerator.log(numbers, step=step)

    def _finish(self) -> None:
        with self._warned(), _on_stderr():
            for tracker in self.accelerator.trackers:
                tracker.finish()

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a server that is away for a moment shall not cost a run of days
            self._failed = True
            warnings.warn(f"run.track: {self.name} failed: {_first_line(error)}", stacklevel=2)


def check_installed(name: str) -> None:
    """ValueError with what to install, where accelerate cannot use this tracker here."""
    import accelerate
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:  # the others are in every version that psd takes
        raise Refused(
            f"run.track: {name} needs accelerate 1.9 or newer, and this is {accelerate.__version__}: "
            "pip install --upgrade accelerate"
        )
    if name not in map(str, get_available_trackers()):
        package = '".[tensorboard]"' if name == "tensorboard" else name
        raise Refused(
            f"run.track: {name} needs the package {name}, which is missing: pip install {package} "
            "(and restart the kernel of a notebook)"
        )


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str | None]:
    """Nested settings with dotted keys and values that every tracker takes: lists as JSON.

    >>> flat({"run": {"seed": 0, "track": None}, "optimizer": {"milestones": [0.5]}})
    {'run.seed': 0, 'run.track': None, 'optimizer.milestones': '[0.5]'}
    """
    found: dict[str, bool | int | float | str | None] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, (bool, int, float, str)):
            found[prefix + key] = value
        else:
            found[prefix + key] = json.dumps(value, default=str)
    return found


def _on_stderr() -> contextlib.redirect_stdout[Any]:
    """What a tracker tells goes to stderr: on stdout stands what was asked for."""
    return contextlib.redirect_stdout(sys.stderr)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _options(name: str, loop: Loop) -> Iterator[dict[str, Any]]:
    """What a tracker is started with: the run's name, and its folder where it lets us choose."""
    folder = loop.folder.path.resolve()
    if name == "tensorboard":
        yield {"purge_step": loop.step + 1}  # what an older course of the run has left of later steps is not shown
    elif name == "wandb":
        yield {"name": loop.plan.name, "dir": str(folder)}
    elif name == "trackio":
        yield {"name": loop.plan.name}
    elif os.environ.get(MLFLOW_URI):
        yield {"run_name": loop.plan.name}
    else:
        os.environ[MLFLOW_URI] = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
        try:
            yield {"run_name": loop.plan.name, "logging_dir": (folder / "mlruns").as_uri()}
        finally:
            os.environ.pop(MLFLOW_URI, None)
