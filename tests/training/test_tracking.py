"""Trackers: they are given the numbers of metrics.jsonl, and closed however a run ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import tracking as accelerate_s
from accelerate.utils import LoggerType

import psd
from psd import methods
from psd.training import tracking, watch
from psd.training.callbacks import Callback
from psd.training.config import RunConfig
from psd.training.watch import Diverged

STEPS = 5  # an epoch
NAMES = [name for name in ("tensorboard", "wandb", "trackio", "mlflow") if name in accelerate_s.LOGGER_TYPE_TO_CLASS]

pytestmark = pytest.mark.usefixtures("one_thread")


class Noted(accelerate_s.GeneralTracker):
    """A tracker that notes what it is asked to do."""

    name, requires_logging_directory = "noted", False
    made: ClassVar[list[Noted]] = []

    def __init__(self, project: str, *folder: str, **options: Any) -> None:
        super().__init__()
        self.project, self.options = project, options
        self.settings: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = 0
        self.made.append(self)

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.closed += 1


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of each tracker, with another in its place that notes what it is given."""
    monkeypatch.setattr(accelerate_s, "_available_trackers", [LoggerType(name) for name in NAMES])
    monkeypatch.setitem(accelerate_s.LOGGER_TYPE_TO_CLASS, request.param, Noted)
    monkeypatch.setattr(Noted, "made", [])
    monkeypatch.setattr(watch, "LOOK_EVERY", 2)
    monkeypatch.delenv(tracking.MLFLOW_URI, raising=False)
    return request.param


def fit(output: Path, track: str, callbacks: tuple[Callback, ...] = (), lr: float = 0.1, **run: Any) -> Any:
    images = psd.data.load("shapes", count=80, classes=4, size=32)
    test = psd.data.load("shapes", count=20, classes=4, size=32, seed=1)
    run |= {"output": str(output), "device": "cpu", "progress": False, "track": track, "evaluate_every": 1}
    return psd.fit(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4)),
        images,
        test,
        method=methods.build("patch_swap", patch_size=4),
        budget=2,
        batch_size=16,
        optimizer={"lr": lr},
        run=run,
        callbacks=callbacks,
    )


class Fails(Callback):
    """Ends a run by an error after some steps."""

    def __init__(self, step: int) -> None:
        self.at = step

    def look(self, loop: Any, entry: dict[str, Any]) -> None:
        if loop.step >= self.at:
            raise RuntimeError("no more")


def numbers(line: dict[str, Any]) -> dict[str, float]:
    test = {f"test/{key}": value for key, value in line.get("test", {}).items()}
    return {k: v for k, v in {**line, **test}.items() if isinstance(v, (int, float)) and k != "step"}


def test_a_tracker_gets_settings_the_numbers_of_metrics_jsonl_and_the_final_figures_once(tmp_path, name):
    made = fit(tmp_path, name)
    [tracker] = Noted.made
    lines = [json.loads(line) for line in (tmp_path / made.name / "metrics.jsonl").read_text().splitlines()]
    final = [(step, values) for step, values in tracker.lines if any(key.startswith("final/") for key in values)]
    assert [line["step"] for line in lines] == [2, 4, 5, 7, 9, 10]
    assert [line for line in tracker.lines if line not in final] == [(line["step"], numbers(line)) for line in lines]
    assert final == [(2 * STEPS, {f"final/{k}": v for k, v in made.final.items() if isinstance(v, (int, float))})]
    assert tracker.settings == tracking.flat(made.config)
    assert tracker.settings["method.patch_size"] == 4 and tracker.settings["run.track"] == name
    assert tracker.closed == 1


def test_a_run_that_fails_and_goes_on_closes_its_tracker_each_time(tmp_path, name):
    with pytest.raises(RuntimeError, match="no more"):
        fit(tmp_path, name, (Fails(7),), checkpoint_every=1)
    with pytest.warns(UserWarning, match=r"run\.resume"):
        fit(tmp_path, name, resume="auto")
    assert [tracker.closed for tracker in Noted.made] == [1, 1]
    assert [step for step, _ in Noted.made[1].lines] == [7, 9, 10, 10]


def test_a_run_that_diverges_closes_its_tracker(tmp_path, name):
    with pytest.raises(Diverged):
        fit(tmp_path, name, lr=1e30)
    assert [tracker.closed for tracker in Noted.made] == [1]


@pytest.mark.parametrize("name", ["wandb"], indirect=True)
def test_a_tracker_that_fails_on_its_way_costs_a_warning_and_not_the_run(tmp_path, name, monkeypatch):
    def away(self: Noted, values: dict[str, float], step: int | None = None) -> None:
        raise OSError("the server is away")

    monkeypatch.setattr(Noted, "log", away)
    with pytest.warns(UserWarning, match=r"^run\.track: wandb failed: the server is away") as told:
        made = fit(tmp_path, name)
    assert made.final and len(told) == 1


@pytest.mark.parametrize("name", ["wandb"], indirect=True)
def test_a_tracker_that_does_not_start_refuses_the_run_in_one_line(tmp_path, name, monkeypatch):
    def refuse(self: Noted, values: dict[str, Any]) -> None:
        raise OSError("no key\nsee the manual")

    monkeypatch.setattr(Noted, "store_init_configuration", refuse)
    with pytest.raises(ValueError, match=r"^run\.track: wandb did not start: no key$"):
        fit(tmp_path, name)
    assert [tracker.closed for tracker in Noted.made] == [1]
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize("name", ["mlflow"], indirect=True)
@pytest.mark.parametrize("own", [None, "sqlite:///mine.db"])
def test_mlflow_writes_into_the_run_s_folder_unless_its_variable_names_a_place(tmp_path, name, own, monkeypatch):
    if own:
        monkeypatch.setenv(tracking.MLFLOW_URI, own)
    seen: list[str | None] = []
    monkeypatch.setattr(Noted, "store_init_configuration", lambda self, _: seen.append(os.environ[tracking.MLFLOW_URI]))
    made = fit(tmp_path, name)
    assert seen == [own or f"sqlite:///{(tmp_path / made.name / 'mlflow.db').as_posix()}"]
    assert os.environ.get(tracking.MLFLOW_URI) == own


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_missing_package_is_one_line_that_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr(accelerate_s, "_available_trackers", [])
    monkeypatch.setitem(accelerate_s.LOGGER_TYPE_TO_CLASS, name, Noted)
    package = r'"\.\[tensorboard\]"' if name == "tensorboard" else name
    with pytest.raises(ValueError, match=rf"^run\.track: {name} needs the package .*pip install {package} \("):
        RunConfig(track=name)


def test_trackio_names_the_accelerate_that_it_needs(monkeypatch):
    monkeypatch.delitem(accelerate_s.LOGGER_TYPE_TO_CLASS, "trackio", raising=False)
    with pytest.raises(ValueError, match=r"trackio needs accelerate 1\.9 or newer, and this is \d"):
        RunConfig(track="trackio")


def test_tensorboard_shows_one_course_of_a_run_that_went_on(tmp_path, monkeypatch):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(watch, "LOOK_EVERY", 2)
    with pytest.raises(RuntimeError, match="no more"):
        fit(tmp_path, "tensorboard", (Fails(7),), checkpoint_every=1)
    with pytest.warns(UserWarning, match=r"run\.resume"):
        made = fit(tmp_path, "tensorboard", resume="auto")
    events = reading.EventAccumulator(str(tmp_path / made.name / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 5, 7, 9, 10]
    expected = [entry["test"]["top1"] for entry in made.epochs]
    assert [event.value for event in events.Scalars("test/top1")] == pytest.approx(expected, rel=1e-6)
    assert [event.value for event in events.Scalars("final/top1")] == pytest.approx(expected[-1:], rel=1e-6)


def test_mlflow_for_real(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    made = fit(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / made.name / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("psd").experiment_id])
    found = client.get_metric_history(run.info.run_id, "loss")
    assert run.info.status == "FINISHED" and len(run.data.params) == len(tracking.flat(made.config))
    assert [(m.step, m.value) for m in found] == [(STEPS * e["epoch"], e["loss"]) for e in made.epochs]


def test_wandb_for_real(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = fit(tmp_path, "wandb")
    assert len(list((tmp_path / made.name / "wandb").glob("offline-run-*/*.wandb"))) == 1
