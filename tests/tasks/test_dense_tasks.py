"""Segmentation and detection: their figures against cases worked by hand, and trainings with all that a run has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import psd
from psd import cli, data, models, tasks
from psd.training.records import Record

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = {"device": "cpu", "progress": False, "checkpoint_every": 1}


# --- figures


def one_hot(labels: list[int], classes: int) -> Tensor:
    """Logits (1, C, 1, W) that predict these labels."""
    return F.one_hot(torch.tensor(labels), classes).T[None, :, None].float()


def test_mean_iou_of_a_case_by_hand():
    meter = tasks.find("segmentation").meter(4)
    meter.update(one_hot([0, 0, 1, 1, 2, 0], 4), torch.tensor([[[0, 0, 1, 2, 2, -100]]]))
    found = meter.compute()
    # background 2/2, class 1: 1/2, class 2: 1/2, class 3 is nowhere; the last pixel does not count
    assert found.iou == [100, 50, 50, None] and found.miou == pytest.approx(200 / 3)
    assert found.pixel_accuracy == pytest.approx(80) and found.n_test == 1
    nll = -torch.tensor([1.0, 0, 0, 0]).log_softmax(0)
    assert found.nll == pytest.approx(float(4 * nll[0] + nll[1]) / 5, abs=1e-6)


def test_mean_iou_is_torchmetrics_own():
    from torchmetrics.classification import MulticlassJaccardIndex

    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(6, 5, 9, 9, generator=generator), torch.randint(5, (6, 9, 9), generator=generator)
    y[torch.rand(y.shape, generator=generator) < 0.2] = -100
    whole, parts = tasks.find("segmentation").meter(5), [tasks.find("segmentation").meter(5) for _ in range(2)]
    whole.update(logits, y)
    for meter, rows in zip(parts, (slice(0, 2), slice(2, 6)), strict=True):
        meter.update(logits[rows], y[rows])
    parts[0].merge(parts[1])
    expected = MulticlassJaccardIndex(5, ignore_index=-100)(logits, y)
    assert whole.compute().miou == pytest.approx(100 * float(expected), abs=1e-4)
    a, b = parts[0].compute(), whole.compute()
    assert a.pop("iou") == b.pop("iou") and a == pytest.approx(b)


def box(*edges: float, label: int = 1, score: float | None = None) -> dict[str, Tensor]:
    found = {"boxes": torch.tensor([edges]), "labels": torch.tensor([label])}
    return found if score is None else {**found, "scores": torch.tensor([score])}


def test_average_precision_of_cases_by_hand():
    meter = tasks.find("detection").meter(4)
    meter.update([box(0, 0, 10, 10, score=0.9)], [box(0, 0, 10, 10)])  # exact: right at all ten thresholds
    meter.update(
        [box(0, 0, 10, 10, label=2, score=0.9)], [box(0, 0, 10, 8, label=2)]
    )  # IoU .8: at .50 ... .75, and .80
    found = meter.compute()
    assert found.ap[1] == pytest.approx(100) and found.ap[2] in (
        pytest.approx(70),
        pytest.approx(60),
    )  # .8 within rounding
    assert found.ap[0] is None and found.ap[3] is None and found.n_test == 2
    assert found.map == pytest.approx((found.ap[1] + found.ap[2]) / 2)
    assert found.map_50 == found.map_75 == pytest.approx(100)


def test_a_wrong_box_that_is_surer_halves_the_precision():
    meter = tasks.find("detection").meter(2)
    wrong, right = box(50, 50, 60, 60, score=0.9), box(0, 0, 10, 10, score=0.5)
    meter.update([{key: torch.cat([wrong[key], right[key]]) for key in wrong}], [box(0, 0, 10, 10)])
    assert meter.compute().map == pytest.approx(50)


@pytest.mark.filterwarnings("error")
def test_more_boxes_than_count_are_measured_without_a_warning():
    boxes = torch.tensor([[0.0, 0, 10, 10]]) + 20 * torch.arange(120)[:, None]
    found = {"boxes": boxes, "labels": torch.ones(120, dtype=torch.int64), "scores": torch.linspace(1, 0.1, 120)}
    meter = tasks.find("detection").meter(2)
    meter.update([found], [{"boxes": boxes[:1], "labels": torch.tensor([1])}])
    assert meter.compute().map == pytest.approx(100)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_an_output_of_another_kind_is_refused(task):
    with pytest.raises(ValueError, match="network"):
        tasks.find(task).logits(torch.zeros(2, 3))


# --- trainings


class Small(nn.Module):
    """For segmentation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, num_classes, 1)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(self.body(x)), scale_factor=2.0, mode="bilinear")


class OneBox(nn.Module):
    """A detector of one box an image, whose loss is the distance to the first box of its target."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 5, 4), nn.Linear(4, 4 + num_classes)
        self.num_classes = num_classes

    def forward(self, x: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        found = self.head(self.body(x).relu().mean((2, 3)))
        if targets is not None:
            boxes = torch.stack([t["boxes"][0] if len(t["boxes"]) else torch.zeros(4) for t in targets]) / x.shape[-1]
            labels = torch.stack([t["labels"][0] if len(t["labels"]) else torch.tensor(0) for t in targets])
            return {"box": F.smooth_l1_loss(found[:, :4], boxes), "class": F.cross_entropy(found[:, 4:], labels)}
        scores, labels = found[:, 5:].softmax(1).max(1)
        boxes = (found[:, :4] * x.shape[-1]).clamp(0, x.shape[-1])
        return [
            {"boxes": b[None], "scores": s[None], "labels": n[None] + 1}
            for b, s, n in zip(boxes, scores, labels, strict=True)
        ]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(models, "_REGISTERED", {})
    models.register("small", Small)
    models.register("one-box", OneBox)


def config(output: Path, task: str = "segmentation", **changes: Any) -> psd.Config:
    dense = {"segmentation": ("small", "swap_masks"), "detection": ("one-box", "own_loss")}[task]
    sections: dict[str, Any] = {
        "data": {"name": "shapes-scenes", "classes": 3, "size": 64, "count": 16, "batch_size": 4, "crop_scale": 0.5},
        "model": dense[0],
        "method": dense[1],
        "task": task,
        "budget": 3,
        "run": {**RUN, "output": str(output)},
    }
    for key, value in changes.items():
        sections[key] = {**sections[key], **value} if isinstance(sections[key], dict) else value
    return psd.Config(**sections)


@pytest.fixture(autouse=True)
def few_to_measure(monkeypatch):
    from psd.data import shapes_scenes

    draw = shapes_scenes.draw  # 500 pictures where nobody says how many
    monkeypatch.setattr(shapes_scenes, "draw", lambda count, **options: draw(24 if count == 500 else count, **options))


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_configuration_trains_measures_and_is_measured_again(task, tmp_path, capsys):
    record = psd.train(config(tmp_path, task))
    first = tasks.find(task).metrics[0]
    assert record.task == task and record.metrics[0]["name"] == first.name and 0 <= record.final[first.name] <= 100
    assert record.final["n_test"] == 24 and record.epochs[0]["loss"] > record.epochs[-1]["loss"]
    assert cli.main(["evaluate", str(tmp_path / record.name)]) == 0
    assert capsys.readouterr().out.startswith(f"{first.title} {record.final[first.name]:.2f} %")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert f"{first.title} %" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(task, tmp_path):
    whole = psd.train(config(tmp_path / "whole", task))

    def stop(entry: dict[str, Any]) -> None:
        if entry["epoch"] == 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        psd.train(config(tmp_path / "resumed", task), on_epoch=stop)
    resumed = psd.train(config(tmp_path / "resumed", task, run={"resume": "auto"}))
    assert resumed.final == whole.final
    a, b = (psd.load_model(tmp_path / name / whole.name).state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_batch_in_parts_is_the_whole_batch(tmp_path):
    losses = {}
    for accumulate in (1, 2):
        run = {"accumulate": accumulate, "variant": f"in{accumulate}"}
        record = psd.train(config(tmp_path, method="cross_entropy", budget=1, run=run))
        losses[accumulate] = record.epochs[0]["loss"]
    assert losses[2] == pytest.approx(losses[1], abs=0.05)  # BatchNorm sees other batches


def test_bf16_trains_too(tmp_path):
    record = psd.train(config(tmp_path, run={"precision": "bf16"}, budget=1))
    assert record.config["run"]["precision"] == "bf16" and record.final["miou"] >= 0


def test_fit_takes_a_data_set_of_one_s_own(tmp_path):
    drawn = data.load("shapes-scenes", classes=3, size=64, count=8)

    class Own:
        classes = drawn.classes

        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> Any:
            image, target = drawn[i]
            return image, target["mask"]

    given = {"task": "segmentation", "method": "swap_consistency", "budget": 1, "batch_size": 4}
    options = {"loading": {"crop_size": 64, "crop_scale": 0.5}, "run": {**RUN, "output": str(tmp_path)}}
    record = psd.fit(Small(4), Own(), Own(), **given, **options)
    assert record.data == "Own" and record.final["n_test"] == 8 and record.image_passes == 2 * 16


# --- what does not go together


def test_a_method_of_labels_is_refused_for_masks(tmp_path):
    with pytest.raises(
        ValueError, match=r"patch_swap learns label, the task segmentation has mask; .* learn it: cross_en"
    ):
        psd.train(config(tmp_path, method="patch_swap"))


def test_scenes_are_refused_for_classification(tmp_path):
    made = config(tmp_path, method="cross_entropy", model="resnet8")
    made.task.name = "classification"
    with pytest.raises(
        ValueError, match=r"'shapes-scenes' holds masks and boxes.*task\.name segmentation or detection"
    ):
        psd.train(made)


def test_labels_are_refused_for_segmentation(tmp_path):
    with pytest.raises(ValueError, match="one label an image, which the task classification learns"):
        psd.train(config(tmp_path, data={"name": "shapes", "size": 32}))


def test_logits_of_another_size_are_refused(tmp_path):
    drawn = data.load("shapes-scenes", classes=3, size=64, count=8)
    model = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    with pytest.raises(
        ValueError, match=r"gives logits at 32 x 32 places of an image of 64 x 64 pixels; .* logits=..."
    ):
        psd.fit(model, drawn, task="segmentation", method="cross_entropy", budget=1, batch_size=4)
    enlarged = psd.fit(
        model,
        drawn,
        task="segmentation",
        method="cross_entropy",
        budget=1,
        batch_size=4,
        logits=lambda z: F.interpolate(z, scale_factor=2.0),
        run={**RUN, "output": str(tmp_path)},
    )
    assert enlarged.epochs[0]["loss"] > 0


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_network_of_other_classes_is_refused(task, tmp_path):
    drawn = data.load("shapes-scenes", classes=3, size=64, count=8)
    model, method = (Small(3), "cross_entropy") if task == "segmentation" else (OneBox(3), "own_loss")
    with pytest.raises(ValueError, match="gives 3 logits, the data has 4 classes"):
        psd.fit(model, drawn, task=task, method=method, budget=1, batch_size=4)


@pytest.mark.parametrize("key", ["crop_padding", "skip_corrupt"])
def test_settings_of_other_data_are_refused(key, tmp_path):
    with pytest.raises(ValueError, match=r"data.crop_padding and data.skip_corrupt do not apply to scenes"):
        psd.train(config(tmp_path, data={key: 1 if key == "crop_padding" else True}))


def test_a_comparison_of_segmentations_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        "task: {name: segmentation}\ndata: {name: shapes-scenes, classes: 3, size: 64, count: 8, batch_size: 4}\n"
        "model: {name: small}\nbudget: {epochs: 1}\nrun: {progress: false, device: cpu}\n"
        "compare: {seeds: [0, 1], methods: [{name: cross_entropy}, {name: swap_masks, data.batch_size: 2}]}\n"
    )
    assert cli.main(["compare", "mine.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "| swap_masks" in printed and "mean IoU %" in printed and "Δ cross_entropy" in printed
    records = [Record.read(path) for path in Path("runs").rglob("*-s?.json")]
    assert len(records) == 4 and all(json.dumps(record.final) for record in records)


def test_a_run_of_a_comparison_side_by_side_says_the_task_s_figures():
    from psd.training.jobs import _result

    metrics = [metric._asdict() for metric in tasks.find("segmentation").metrics]
    final = {"miou": 12.3456, "pixel_accuracy": 90.0, "nll": 0.25, "iou": [None], "n_test": 3}
    record = Record("a", "b", "c", "d", 0, "e", {}, final=final, metrics=metrics, seconds=7.2)
    assert _result(record) == "a: mean IoU 12.35 %, pixels right 90.00 %, NLL a pixel 0.250, 7 s"


# `psd` with 61 pictures to measure in place of 500: their number is odd, so that the two processes have unequal shares.
FEW = """
import sys
from psd.cli import main
from psd.data import shapes_scenes

if __name__ == "__main__":
    draw = shapes_scenes.draw
    shapes_scenes.draw = lambda count, **options: draw(61 if count == 500 else count, **options)
    sys.exit(main())
"""


@pytest.mark.parametrize(
    ("task", "model", "method"),
    [("segmentation", "fcn@timm:test_convnext", "swap_masks"), ("detection", "ssdlite@timm:test_convnext", "own_loss")],
)
def test_two_processes_train_and_measure_together(task, model, method, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"task: {{name: {task}}}\nmodel: {{name: '{model}'}}\nmethod: {{name: {method}}}\nbudget: {{epochs: 1}}\n"
        "data: {name: shapes-scenes, classes: 3, size: 64, count: 16, batch_size: 8, crop_scale: 0.5}\n"
        "run: {progress: false, device: cpu}\n"
    )
    (tmp_path / "few.py").write_text(FEW)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = str(Path(psd.__file__).parents[1])
    done = subprocess.run(
        [*command, "few.py", "train", "run.yaml"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = Record.read(tmp_path / done.stdout.splitlines()[0])
    assert record.final["n_test"] == 61  # all pictures, each once
    network = psd.load_model(tmp_path / "runs" / record.name)
    pictures = data.load("shapes-scenes", split="test", classes=3, size=64, count=61)
    again = psd.evaluate(network, pictures, task=task)
    first = tasks.find(task).metrics[0].name
    assert again[first] == pytest.approx(record.final[first], abs=0.01)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_the_speed_of_a_run_is_measured(task, tmp_path):
    from psd.training import bench

    rates = bench.measure(config(tmp_path, task), seconds=0.3, turns=1)
    assert rates.step > 0 and rates.bare > 0 and rates.data > 0
