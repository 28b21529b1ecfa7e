"""Whole runs: the same bits again, resume, budgets, divergence, and what is left on the disk.

All runs here train a ResNet-8 on 24 images of 16 x 16 pixels for a few steps: what is asserted is exact, not learnt.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import psd
from psd import losses, methods, models
from psd.data.batches import Batches
from psd.methods import Batch, Method, Progress, Setup, Step, ps_kd, single_terms
from psd.seeding import seed_for
from psd.training import checkpoints, records, watch
from psd.training import fit as training
from psd.training.checkpoints import load_model
from psd.training.config import BudgetConfig, Config, DataConfig, ModelConfig, OptimizerConfig, RunConfig, differences
from psd.training.evaluation import evaluate
from psd.training.fit import load_data
from psd.training.records import Record
from psd.training.watch import Diverged

CLASSES, TRAIN, TEST, BATCH, SIZE = 4, 24, 12, 8, 16
PER_EPOCH = TRAIN // BATCH  # steps
EPOCHS = 4  # unless a test says otherwise
OTHERWISE = {
    "config",
    "seconds",
    "images_per_second",
    "peak_memory",
    "device",
    "versions",
    "revision",
}  # not of a record's result


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders: 6 images of each class to train on, 3 to test on."""
    folder = tmp_path_factory.mktemp("images")
    data = psd.data.load("shapes", classes=CLASSES, count=TRAIN + TEST, size=SIZE)
    for number, (image, target) in enumerate(data):
        path = folder / ("train" if number < TRAIN else "test") / data.classes[target]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / f"{number}.png")
    return folder


Make = Callable[..., Config]


@pytest.fixture(scope="module")
def make(images: Path) -> Make:
    """Builds the configuration of a small run into a folder; what is not named otherwise is of its `run` section."""

    def build(
        output: Path,
        method: str | Method = "patch_swap",
        *,
        data: dict[str, Any] | None = None,
        model: str = "resnet8",
        epochs: int | None = EPOCHS,
        image_passes: int | None = None,
        optimizer: dict[str, Any] | None = None,
        **run: Any,
    ) -> Config:
        return Config(
            DataConfig(**{"name": f"folder:{images}", "size": SIZE, "batch_size": BATCH, **(data or {})}),
            ModelConfig(model),
            methods.build(method) if isinstance(method, str) else method,
            BudgetConfig(None if image_passes else epochs, image_passes),
            OptimizerConfig(**{"warmup": 0.2, **(optimizer or {})}),
            RunConfig(**{"output": str(output), "device": "cpu", "progress": False, "checkpoint_every": 1, **run}),
        )

    return build


@dataclass
class Remembering(Method):
    """No file of psd knows this method. Every step depends on those before it, and it can be made to fail."""

    scale: float = 0.1

    fails_at: ClassVar[int | None] = None
    error: ClassVar[type[BaseException] | None] = None
    bad_loss: ClassVar[float] = math.nan

    def setup(self, setup: Setup) -> None:
        self.past, self.calls = torch.full((setup.samples, setup.classes), 1 / setup.classes), 0

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(batch.x)
        target = (F.one_hot(batch.y, logits.shape[1]) + self.past[batch.index]) / 2
        self.past[batch.index] = logits.detach().softmax(1)
        self.calls += 1
        loss = F.cross_entropy(logits, target) * (1 + self.scale * self.calls)
        if progress.step == self.fails_at:
            if self.error is not None:
                raise self.error
            loss = loss.detach() * self.bad_loss + loss * 0  # the weights stay as they are
        return Step(single_terms(loss), logits, target)

    def state_dict(self) -> dict[str, Any]:
        return {"past": self.past, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.past, self.calls = state["past"], state["calls"]


BUILT: dict[str, Callable[[], Method]] = {
    "patch_swap": lambda: methods.build("patch_swap"),
    "cross_entropy": lambda: methods.build("cross_entropy"),
    "remembering": Remembering,
}


@dataclass
class Finished:
    """A run that came to its end."""

    config: Config
    record: Record

    @property
    def folder(self) -> Path:
        return Path(self.config.run.output) / self.config.name

    @property
    def file(self) -> Path:
        return self.folder.with_name(self.folder.name + ".json")

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")


def finish(config: Config) -> Finished:
    return Finished(config, psd.train(config))


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Runs that nothing interrupted, by method; each is trained once, and none may be changed."""

    @functools.cache
    def run(method: str) -> Finished:
        return finish(make(tmp_path_factory.mktemp("whole"), BUILT[method](), evaluate_every=2))

    return run


class Stop(Exception):
    pass


def stop_after(epoch: int, error: type[BaseException] = Stop) -> Callable[[dict[str, Any]], None]:
    def on_epoch(entry: dict[str, Any]) -> None:
        if entry["epoch"] == epoch:
            raise error

    return on_epoch


def interrupt(config: Config, epoch: int) -> list[Path]:
    """Stop a run after an epoch; its checkpoints."""
    with pytest.raises(Stop):
        psd.train(config, stop_after(epoch))
    return checkpoints.every(Path(config.run.output) / config.name / "checkpoints")


def result(record: Record) -> dict[str, Any]:
    """What another run of the same configuration must give again."""
    return {key: value for key, value in dataclasses.asdict(record).items() if key not in OTHERWISE}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def assert_same_run(a: Finished, b: Finished) -> None:
    assert result(a.record) == result(b.record)
    assert differences(a.record.config, b.record.config) == []
    assert same(a.weights(), b.weights())


def files(folder: Path) -> list[str]:
    """Every file below a folder, hidden or not."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- the same bits again


@pytest.mark.parametrize("method", BUILT)
def test_the_same_seed_gives_the_same_record_and_weights(method, whole, make, tmp_path):
    again = finish(make(tmp_path, BUILT[method](), evaluate_every=2))
    assert_same_run(again, whole(method))
    assert again.record.config == whole(method).record.config  # the folder is no part of it


def test_another_seed_gives_other_weights(whole, make, tmp_path):
    other = finish(make(tmp_path, evaluate_every=2, seed=1))
    assert not same(other.weights(), whole("patch_swap").weights())
    assert other.record.epochs != whole("patch_swap").record.epochs


def test_what_torch_drew_before_changes_nothing(whole, make, tmp_path):
    torch.manual_seed(123)
    torch.rand(7)
    assert_same_run(finish(make(tmp_path, evaluate_every=2)), whole("patch_swap"))


def test_what_others_draw_between_epochs_changes_nothing(whole, make, tmp_path):
    config = make(tmp_path, evaluate_every=2)
    record = psd.train(config, lambda entry: torch.manual_seed(entry["epoch"]))
    assert_same_run(Finished(config, record), whole("patch_swap"))


def test_measuring_more_often_changes_no_weight(whole, make, tmp_path):
    assert same(finish(make(tmp_path, evaluate_every=1)).weights(), whole("patch_swap").weights())


def test_a_config_can_be_trained_twice(make, tmp_path):
    config = make(tmp_path, Remembering())  # its setup must begin with a clean table
    first = psd.train(config)
    assert result(psd.train(config)) == result(first)


def test_another_process_without_jsonargparse_gives_the_same_bits(whole, make, tmp_path):
    code = """
import json, sys
sys.modules["jsonargparse"] = None  # whoever imports it meets an ImportError
import torch
torch.set_num_threads(1)
import psd
psd.train(psd.config.from_dict(json.loads(sys.argv[1])))
"""
    config = make(tmp_path, evaluate_every=2)
    subprocess.run(
        [sys.executable, "-c", code, json.dumps(config.to_dict())], check=True, cwd=Path(psd.__file__).parents[1]
    )
    assert_same_run(Finished(config, Record.read(tmp_path / f"{config.name}.json")), whole("patch_swap"))


def test_a_run_is_this_plain_loop(whole, make, tmp_path):
    """Written down in plain PyTorch: what a record's numbers are made of."""
    config = make(tmp_path)
    data, method = load_data(config.data)[0], methods.build("patch_swap")
    batches = Batches(data, BATCH, 0, method.needs)
    method.setup(Setup(CLASSES, TRAIN, load_model))
    torch.manual_seed(seed_for(0, "weights"))
    model = models.build("resnet8", CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    losses, rates = [], []
    for step in range(steps := EPOCHS * PER_EPOCH):
        warm = 2  # 0.2 of 12 steps
        cosine = 0.1 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        optimizer.param_groups[0]["lr"] = 0.1 * (step + 1) / warm if step < warm else cosine
        torch.manual_seed(seed_for(0, "step", step))
        terms = method.step(model, batches[step], Progress(step, steps, step // PER_EPOCH, EPOCHS)).terms
        terms.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(terms.total.item())
        rates.append(optimizer.param_groups[0]["lr"])
    assert same(dict(model.state_dict()), whole("patch_swap").weights())
    epochs = whole("patch_swap").record.epochs
    means = [sum(losses[step : step + PER_EPOCH]) / PER_EPOCH for step in range(0, steps, PER_EPOCH)]
    assert [entry["loss"] for entry in epochs] == pytest.approx(means, rel=1e-6)
    assert [entry["lr"] for entry in epochs] == rates[PER_EPOCH - 1 :: PER_EPOCH]  # of each epoch's last step


# --- resume


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
@pytest.mark.parametrize("method", ["patch_swap", "remembering"])
def test_a_run_stopped_after_any_epoch_ends_as_if_it_never_was(method, epoch, whole, make, tmp_path):
    interrupt(make(tmp_path, BUILT[method](), evaluate_every=2), epoch)
    resumed = finish(make(tmp_path, BUILT[method](), evaluate_every=2, resume="auto"))
    assert_same_run(resumed, whole(method))


def test_a_run_stopped_after_every_epoch_ends_as_if_it_never_was(whole, make, tmp_path):
    for epoch in range(1, EPOCHS):
        interrupt(make(tmp_path, Remembering(), evaluate_every=2, resume="auto"), epoch)
    resumed = finish(make(tmp_path, Remembering(), evaluate_every=2, resume="auto"))
    assert_same_run(resumed, whole("remembering"))


def test_a_run_interrupted_within_an_epoch_goes_on_from_its_last_checkpoint(whole, make, tmp_path, monkeypatch):
    options = {"evaluate_every": 2, "checkpoint_every": 2}
    monkeypatch.setattr(Remembering, "fails_at", 3 * PER_EPOCH + 1)  # in epoch 4
    monkeypatch.setattr(Remembering, "error", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        psd.train(make(tmp_path, Remembering(), **options))
    monkeypatch.undo()
    config, seen = make(tmp_path, Remembering(), resume="auto", **options), []
    record = psd.train(config, seen.append)
    assert [entry["epoch"] for entry in seen] == [3, 4]
    assert_same_run(Finished(config, record), whole("remembering"))


def test_time_before_the_interruption_counts(make, tmp_path):
    (path,) = interrupt(make(tmp_path), 1)
    state = torch.load(path / "state.pt")
    assert state["seconds_training"] > 0 and state["seconds"] > 0
    state["seconds_training"], state["seconds"] = 1000.0, 2000.0
    torch.save(state, path / "state.pt")
    record = psd.train(make(tmp_path, resume="auto"))
    assert 2000 < record.seconds < 3000
    assert record.image_passes / 2000 < record.images_per_second < record.image_passes / 1000


def test_auto_begins_where_there_is_no_checkpoint(whole, make, tmp_path):
    assert_same_run(finish(make(tmp_path, evaluate_every=2, resume="auto")), whole("patch_swap"))


def copy(run: Finished, output: Path) -> None:
    shutil.copytree(run.config.run.output, output, dirs_exist_ok=True)


def test_auto_leaves_a_finished_run_as_it_is(whole, make, tmp_path):
    copy(whole("patch_swap"), tmp_path)
    config, seen = make(tmp_path, evaluate_every=2, resume="auto"), []
    path = tmp_path / f"{config.name}.json"
    before = path.read_bytes(), path.stat().st_mtime_ns, files(tmp_path)
    assert psd.train(config, seen.append) == whole("patch_swap").record
    assert not seen and (path.read_bytes(), path.stat().st_mtime_ns, files(tmp_path)) == before


def test_auto_does_not_need_the_data_of_a_finished_run(whole, make, tmp_path, monkeypatch):
    copy(whole("patch_swap"), tmp_path)
    monkeypatch.setattr(training, "load_data", None)
    assert psd.train(make(tmp_path, evaluate_every=2, resume="auto")) == whole("patch_swap").record


def test_auto_goes_on_with_a_run_that_was_begun_anew_beside_an_older_record(make, whole, tmp_path):
    psd.train(make(tmp_path, evaluate_every=2, optimizer={"lr": 0.01}))
    interrupt(make(tmp_path, evaluate_every=2, overwrite=True), 2)
    seen: list[dict[str, Any]] = []
    config = make(tmp_path, evaluate_every=2, overwrite=True, resume="auto")
    record = psd.train(config, seen.append)
    assert [entry["epoch"] for entry in seen] == [3, 4]
    assert_same_run(Finished(config, record), whole("patch_swap"))


def test_the_first_checkpoint_of_a_run_begun_anew_takes_the_place_of_the_older_ones(whole, make, tmp_path):
    interrupt(make(tmp_path, evaluate_every=2), 3)
    left = interrupt(make(tmp_path, evaluate_every=2, resume="never"), 1)
    assert [path.name for path in left] == ["step-000000003"]
    config, seen = make(tmp_path, evaluate_every=2, resume="never"), []
    record = psd.train(config, seen.append)
    assert [entry["epoch"] for entry in seen] == [1, 2, 3, 4]
    assert_same_run(Finished(config, record), whole("patch_swap"))


def test_never_trains_a_finished_run_again(whole, make, tmp_path):
    copy(whole("patch_swap"), tmp_path)
    seen: list[dict[str, Any]] = []
    psd.train(make(tmp_path, evaluate_every=2), seen.append)
    assert len(seen) == EPOCHS


def test_a_path_goes_on_from_that_checkpoint(whole, make, tmp_path):
    first, _ = interrupt(make(tmp_path / "a", evaluate_every=2), 2)
    # Where and how it goes on is no part of the result.
    config = make(tmp_path / "b", evaluate_every=2, checkpoint_every=3, resume=str(first))
    seen: list[dict[str, Any]] = []
    record = psd.train(config, seen.append)
    assert [entry["epoch"] for entry in seen] == [2, 3, 4]
    assert_same_run(Finished(config, record), whole("patch_swap"))


def test_a_path_into_the_run_s_own_folder_goes_back_to_that_checkpoint(whole, make, tmp_path):
    first, second = interrupt(make(tmp_path, evaluate_every=2), 3)
    left = interrupt(make(tmp_path, evaluate_every=2, resume=str(first)), 3)
    assert [path.name for path in left] == [first.name, second.name]
    assert_same_run(finish(make(tmp_path, evaluate_every=2, resume=str(first))), whole("patch_swap"))


CHANGES = [
    ({"optimizer": {"lr": 0.2}}, r"optimizer\.lr: 0\.1 != 0\.2"),
    ({"model": "resnet14"}, r"model\.name: 'resnet8' != 'resnet14'"),
    ({"method": "pair_distillation"}, r".*method\.name: 'patch_swap' != 'pair_distillation'"),
    ({"epochs": 5}, r"budget\.epochs: 4 != 5"),
    ({"seed": 1}, r"run\.seed: 0 != 1"),
    ({"data": {"flip": False}, "precision": "bf16"}, r"data\.flip: None != False; run\.precision: 'fp32' != 'bf16'"),
]


@pytest.fixture(scope="module")
def stopped(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after two epochs, which no test may change."""
    return interrupt(make(tmp_path_factory.mktemp("stopped"), evaluate_every=2), 2)[-1]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_a_checkpoint_of_another_configuration_is_refused_with_both_values(changes, message, make, stopped, tmp_path):
    config = make(tmp_path, **{"evaluate_every": 2, "resume": str(stopped), **changes})
    with pytest.raises(ValueError, match=rf"run\.resume: .*{stopped.name} belongs to another configuration: {message}"):
        psd.train(config)
    assert files(tmp_path) == []


def test_auto_refuses_its_checkpoints_of_another_configuration(make, tmp_path):
    path = interrupt(make(tmp_path), 2)[-1]
    with pytest.raises(ValueError, match=rf"{path.name} belongs to .*optimizer\.momentum: 0\.9 != 0\.5.*resume never"):
        psd.train(make(tmp_path, optimizer={"momentum": 0.5}, resume="auto"))
    assert path.exists()


def test_auto_refuses_a_finished_run_of_another_configuration(make, whole, tmp_path):
    copy(whole("patch_swap"), tmp_path)
    with pytest.raises(ValueError, match=r"s0\.json is the record of a run with other settings: optimizer\.lr: 0"):
        psd.train(make(tmp_path, evaluate_every=2, optimizer={"lr": 0.3}, resume="auto"))


CHANGED = [
    {"optimizer": {"lr": 0.3}},
    {"method": methods.build("patch_swap", temperature=2.0)},
    {"data": {"crop_padding": 1}},
    {"precision": "bf16"},
]


@pytest.mark.parametrize("changed", CHANGED, ids=["lr", "temperature", "padding", "precision"])
def test_a_record_is_never_replaced_by_one_of_other_settings(changed, make, whole, tmp_path):
    copy(whole("patch_swap"), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(ValueError, match=r"with other settings: .*--run\.variant NAME, .*--run\.overwrite true"):
        psd.train(make(tmp_path, **{"evaluate_every": 2, **changed}))
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


@pytest.mark.parametrize("way", [{"overwrite": True}, {"variant": "hot"}])
def test_both_ways_out_that_the_refusal_names_work(way, make, whole, tmp_path):
    copy(whole("patch_swap"), tmp_path)
    record = psd.train(make(tmp_path, optimizer={"lr": 0.3}, epochs=EPOCHS, evaluate_every=2, **way))
    assert record.config["optimizer"]["lr"] == 0.3
    left = {Record.read(file).config["optimizer"]["lr"] for file in tmp_path.rglob("*.json")}
    assert left == ({0.3} if "overwrite" in way else {0.1, 0.3})


def test_a_finished_run_is_left_as_it_is_where_others_may_be_overwritten(make, whole, tmp_path):
    copy(whole("patch_swap"), tmp_path)
    assert psd.train(make(tmp_path, evaluate_every=2, resume="auto", overwrite=True)) == whole("patch_swap").record


def test_auto_refuses_an_unreadable_record_by_its_name(make, tmp_path):
    config = make(tmp_path, resume="auto")
    path = tmp_path / f"{config.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"{path.name}: not readable as a record"):
        psd.train(config)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_auto_refuses_a_truncated_checkpoint_by_its_name(name, make, tmp_path):
    path = interrupt(make(tmp_path), 2)[-1]
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"run\.resume: .*{path.name} is no readable checkpoint: "):
        psd.train(make(tmp_path, resume="auto"))
    assert not list(tmp_path.rglob("*.json"))


def test_a_path_without_a_checkpoint_is_refused_by_its_name(make, tmp_path):
    with pytest.raises(ValueError, match=r"run\.resume: .*nowhere is no readable checkpoint: "):
        psd.train(make(tmp_path, resume=str(tmp_path / "nowhere")))


# --- checkpoints of a run


def test_checkpoints_are_gone_after_the_end(whole):
    run = whole("patch_swap")
    name = run.config.name
    left = ["metrics.jsonl", "model.safetensors"]
    assert files(Path(run.config.run.output)) == sorted([f"{name}.json", *(f"{name}/{file}" for file in left)])
    assert sorted(file.name for file in run.folder.iterdir()) == left


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [6, 9]), (2, [6]), (3, [9]), (4, [])])
def test_checkpoints_are_written_every_so_many_epochs(every, steps, make, tmp_path):
    paths = interrupt(make(tmp_path, checkpoint_every=every), 3)
    assert [path.name for path in paths] == [f"step-{step:09d}" for step in steps]


def test_checkpoints_stay_until_the_record_is_written(whole, make, tmp_path, monkeypatch):
    def full(record: Record, path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Record, "write", full)
    with pytest.raises(OSError, match="no space left"):
        psd.train(make(tmp_path, evaluate_every=2))
    monkeypatch.undo()
    config, seen = make(tmp_path, evaluate_every=2, resume="auto"), []
    record = psd.train(config, seen.append)
    assert [entry["epoch"] for entry in seen] == [4]
    assert_same_run(Finished(config, record), whole("patch_swap"))


# --- budgets


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each training forward from now on."""
    counted: list[int] = []

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module.training:
            counted.append(len(args[0]))

    built = models.build

    def build(name: str, classes: int, **options: Any) -> nn.Module:
        model = built(name, classes, **options)
        model.register_forward_pre_hook(count)
        return model

    monkeypatch.setattr(models, "build", build)
    return counted


@pytest.mark.parametrize(("method", "passes"), [("cross_entropy", 1), ("patch_swap", 2)])
def test_a_budget_of_epochs_shows_every_image_that_often(method, passes, make, tmp_path, forwarded):
    record = psd.train(make(tmp_path, method, epochs=2))
    assert [entry["steps"] for entry in record.epochs] == [PER_EPOCH, PER_EPOCH]
    assert record.image_passes == sum(forwarded) == 2 * TRAIN * passes
    assert record.budget == "2ep"


@pytest.mark.parametrize(("method", "steps"), [("cross_entropy", [3, 3, 2]), ("patch_swap", [3, 1])])
def test_a_budget_of_image_passes_is_the_same_compute_for_pairs(method, steps, make, tmp_path, forwarded):
    record = psd.train(make(tmp_path, method, image_passes=64))
    assert [entry["steps"] for entry in record.epochs] == steps
    assert record.image_passes == sum(forwarded) == 64
    assert record.budget == "64pass"


def test_the_record_has_the_image_passes_that_were_made(make, tmp_path, forwarded):
    record = psd.train(make(tmp_path, image_passes=100))  # 6.25 steps
    assert record.image_passes == sum(forwarded) == 96


def test_an_epoch_cut_short_by_the_budget_is_measured_and_the_schedule_ends_with_it(make, tmp_path):
    record = psd.train(make(tmp_path, "cross_entropy", image_passes=5 * BATCH, optimizer={"warmup": 0.0}))
    first, last = record.epochs
    assert (first["steps"], last["steps"]) == (3, 2)
    assert "test" not in first and last["test"] == record.final
    assert first["lr"] == pytest.approx(0.1 * (1 + math.cos(math.pi * 2 / 5)) / 2)
    assert last["lr"] == pytest.approx(0.1 * (1 + math.cos(math.pi * 4 / 5)) / 2)


def test_a_run_cut_short_by_the_budget_resumes_too(make, tmp_path):
    config = make(tmp_path / "whole", Remembering(), image_passes=8 * BATCH)
    interrupt(make(tmp_path, Remembering(), image_passes=8 * BATCH), 2)
    assert_same_run(finish(make(tmp_path, Remembering(), image_passes=8 * BATCH, resume="auto")), finish(config))


@pytest.mark.parametrize(("every", "measured"), [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_the_test_is_measured_every_so_many_epochs_and_at_the_end(every, measured, make, tmp_path):
    record = psd.train(make(tmp_path, "cross_entropy", epochs=5, evaluate_every=every))
    assert [entry["epoch"] for entry in record.epochs if "test" in entry] == measured
    assert record.final == record.epochs[-1]["test"]


# --- a method and its steps


def test_a_method_that_psd_does_not_know_is_trained(whole):
    record = whole("remembering").record
    assert record.method == "remembering"
    assert record.config["method"] == {"name": "remembering", "scale": 0.1}
    assert record.image_passes == EPOCHS * TRAIN


@dataclass
class Watching(Method):
    """Needs everything, trains nothing to speak of, and keeps what it was given."""

    needs: ClassVar[frozenset[str]] = frozenset({"partner", "view", "previous"})
    passes_per_anchor: ClassVar[int] = 3

    def setup(self, setup: Setup) -> None:
        self.asked, self.batches, self.progress = (setup.classes, setup.samples), [], []

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        self.batches.append(batch)
        self.progress.append(progress)
        logits = model(torch.cat([batch.x, batch.partner, batch.view]))
        return Step(single_terms(logits.square().mean()), logits, batch.y.repeat(3))


def test_a_method_is_told_where_it_stands(make, tmp_path):
    method = Watching()
    record = psd.train(make(tmp_path, method, image_passes=4 * 3 * BATCH))  # 4 steps: an epoch and a third
    assert method.asked == (CLASSES, TRAIN)
    assert method.progress == [Progress(step, 4, step // PER_EPOCH, 4 / PER_EPOCH) for step in range(4)]
    assert record.image_passes == 4 * 3 * BATCH


def test_a_method_is_given_what_it_needs(make, tmp_path):
    method = Watching()
    config = make(tmp_path, method, epochs=2)
    psd.train(config)
    expected = Batches(load_data(config.data)[0], BATCH, 0, method.needs)
    assert len(method.batches) == 2 * PER_EPOCH
    for step, batch in enumerate(method.batches):
        for part in ("x", "y", "index", "partner", "view"):
            assert torch.equal(getattr(batch, part), getattr(expected[step], part))
        assert (batch.previous is None) == (step == 0)


@dataclass
class Guessing(Method):
    """Logits of its own choice: the first class for every image of a batch of two copies."""

    soft: bool = False

    passes_per_anchor: ClassVar[int] = 2

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        loss = F.cross_entropy(model(batch.x), batch.y)
        logits = torch.zeros(2 * len(batch.y), CLASSES)
        logits[:, 0] = 1
        target = torch.cat([batch.y, torch.zeros_like(batch.y)])
        if self.soft:
            target = 0.6 * F.one_hot(target, CLASSES) + 0.1
        terms = single_terms(loss)._replace(distillation=torch.tensor(2.0 * progress.step), feature=loss.new_ones(()))
        return Step(terms, logits, target)


@pytest.mark.parametrize("soft", [False, True])
def test_the_running_accuracy_is_of_every_target(soft, make, tmp_path):
    record = psd.train(make(tmp_path, Guessing(soft), epochs=2))
    # A quarter of the anchors is of the first class; so are all the copies.
    assert [entry["train_top1"] for entry in record.epochs] == [pytest.approx(62.5)] * 2


def test_an_epoch_s_terms_are_means_over_its_steps(make, tmp_path):
    record = psd.train(make(tmp_path, Guessing(), image_passes=5 * 2 * BATCH))
    assert [entry["distillation"] for entry in record.epochs] == [2.0, 7.0]  # of 0 2 4 and, cut short, of 6 8
    assert [entry["feature"] for entry in record.epochs] == [1.0, 1.0]
    assert all(entry["loss"] == entry["cross_entropy"] > 0 for entry in record.epochs)


def initial(config: Config) -> dict[str, Tensor]:
    torch.manual_seed(seed_for(config.run.seed, "weights"))
    return dict(models.build(config.model.name, CLASSES).named_parameters())


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(torch.cat([(a[key] - b[key]).flatten() for key in a]).detach().norm())


@pytest.mark.parametrize("clip_norm", [1e-3, 1e-2])
def test_clipping_bounds_the_update(clip_norm, make, tmp_path):
    plain = {"lr": 0.5, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "warmup": 0.0}
    run = finish(make(tmp_path, optimizer={**plain, "clip_norm": clip_norm}, image_passes=2 * BATCH))  # one step
    start = initial(run.config)
    assert distance(start, {key: run.weights()[key] for key in start}) == pytest.approx(0.5 * clip_norm, rel=1e-3)


def test_a_gradient_below_the_bound_is_left_as_it_is(make, tmp_path):
    free = finish(make(tmp_path / "free", epochs=1))
    clipped = finish(make(tmp_path / "clipped", epochs=1, optimizer={"clip_norm": 1e6}))
    assert distance(free.weights(), clipped.weights()) < 1e-6


def test_on_epoch_is_given_each_entry_of_the_record(make, tmp_path):
    seen: list[dict[str, Any]] = []
    record = psd.train(make(tmp_path, epochs=2, evaluate_every=1), lambda entry: seen.append(dict(entry)))
    assert seen == record.epochs


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_where_it_is_asked_for(progress, make, tmp_path, capsys):
    psd.train(make(tmp_path, epochs=1, progress=progress))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("patch_swap-s0: 100%" in shown.err and "loss=" in shown.err) if progress else shown.err == ""


# --- divergence


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_and_a_remedy(loss, make, tmp_path, monkeypatch):
    monkeypatch.setattr(Remembering, "fails_at", 4)
    monkeypatch.setattr(Remembering, "bad_loss", loss)
    seen: list[dict[str, Any]] = []
    with pytest.raises(Diverged) as caught:
        psd.train(make(tmp_path, Remembering(), checkpoint_every=0), seen.append)
    message = str(caught.value)
    assert "NaN or infinite at step 4 (epoch 2)" in message
    assert re.search(r"the last finite loss was \d\.\d+, at step 3\. ", message) and len(seen) == 1
    assert all(key in message for key in ("optimizer.lr", "optimizer.warmup", "optimizer.clip_norm"))
    assert [Path(file).name for file in files(tmp_path)] == ["metrics.jsonl"]  # of the epoch that went well


def test_a_run_that_diverges_stops_at_the_next_look(make, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_EVERY", 2)
    monkeypatch.setattr(Remembering, "fails_at", 2)
    method = Remembering()
    with pytest.raises(Diverged, match="at step 2 "):
        psd.train(make(tmp_path, method, epochs=1, data={"batch_size": 2}))  # 12 steps
    assert method.calls == 4


def test_a_learning_rate_that_is_too_high_is_a_divergence(make, tmp_path):
    with pytest.raises(Diverged, match=r"NaN or infinite at step 1 \(epoch 1\); .* at step 0\. Lower optimizer"):
        psd.train(make(tmp_path, optimizer={"lr": 1e20}))
    assert files(tmp_path) == []


def test_weights_that_only_the_test_shows_to_be_ruined_are_a_divergence(make, tmp_path):
    with pytest.raises(Diverged, match=r"nll of the test is NaN or infinite after epoch 1\. Lower optimizer\.lr"):
        psd.train(make(tmp_path, optimizer={"lr": 1e20}, image_passes=2 * BATCH))  # a single step, with a finite loss
    assert files(tmp_path) == []


def test_a_run_that_diverges_leaves_the_older_result(whole, make, tmp_path):
    copy(whole("patch_swap"), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(Diverged):
        psd.train(make(tmp_path, optimizer={"lr": 1e20}, overwrite=True))
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


# --- the record


def test_the_record_on_the_disk_is_the_one_returned(whole):
    assert Record.read(whole("patch_swap").file) == whole("patch_swap").record


def test_the_record_says_what_was_run(whole):
    run = whole("patch_swap")
    record, expected = run.record, run.config.to_dict()
    found = {"output": None, "device": "cpu", "precision": "fp32"}
    assert record.config == {**expected, "run": {**expected["run"], **found}}
    assert (record.name, record.data) == (run.config.name, run.config.data.label)
    assert (record.model, record.method, record.seed, record.budget) == ("resnet8", "patch_swap", 0, "4ep")


def test_the_record_says_on_what_it_was_run(whole):
    record = whole("patch_swap").record
    assert record.device == "cpu, 1 threads"
    assert record.versions == records.versions()
    assert record.revision is None or len(record.revision.rstrip("+")) == 40


def test_the_record_counts_time(whole):
    record = whole("patch_swap").record
    assert record.seconds > 0
    assert record.images_per_second > record.image_passes / record.seconds  # of training alone


def test_the_record_of_a_resumed_run_holds_no_path_of_the_machine(make, tmp_path):
    data = {"name": "shapes", "root": str(tmp_path / "data"), "classes": 2, "per_class": 4}
    path = interrupt(make(tmp_path / "a", "cross_entropy", data=data, epochs=2), 1)[-1]
    config = make(tmp_path / "b", "cross_entropy", data=data, epochs=2, resume=str(path))
    psd.train(config)
    assert str(tmp_path) not in (tmp_path / "b" / f"{config.name}.json").read_text()


# --- the weights


@pytest.mark.parametrize("given", ["folder", "file"])
def test_the_weights_give_what_was_measured(given, whole):
    run = whole("patch_swap")
    model = load_model(run.folder if given == "folder" else str(run.folder / "model.safetensors"))
    measured = evaluate(model, load_data(run.config.data)[1])
    assert measured == pytest.approx(run.record.final, abs=1e-5)
    assert not model.training


def test_a_path_without_weights_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="nor the folder of a finished run") as caught:
            load_model(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_run_that_is_not_finished_has_no_weights_yet(stopped):
    with pytest.raises(ValueError, match="nor the folder of a finished run"):
        load_model(stopped.parent.parent)


def test_weights_that_are_not_of_safetensors_are_named(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: not readable as safetensors: "):
        load_model(tmp_path)


def test_weights_that_do_not_say_their_model_are_named(tmp_path, stopped):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    for path in (tmp_path, stopped):
        with pytest.raises(ValueError, match=r"model\.safetensors: does not say which model it holds"):
            load_model(path)


def test_weights_of_another_model_are_named(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors", {"model": "resnet8", "classes": "4"})
    with pytest.raises(ValueError, match=r"other\.safetensors: its weights are not those of a resnet8"):
        load_model(tmp_path / "other.safetensors")


# --- data


def test_the_split_fit_is_measured_on_tune(images, make, tmp_path):
    run = finish(make(tmp_path, "cross_entropy", data={"split": "fit", "batch_size": 5}))
    tune = psd.data.load(f"folder:{images}", split="tune", size=SIZE)
    assert run.record.final["n_test"] == len(tune) == CLASSES
    assert run.record.final == pytest.approx(evaluate(load_model(run.folder), tune), abs=1e-5)
    assert run.record.image_passes == EPOCHS * (TRAIN - CLASSES)  # tune is no part of what is trained on
    assert run.record.data.endswith("-fit")


def test_classes_and_images_of_a_class_are_a_subset(make, tmp_path):
    record = psd.train(make(tmp_path, data={"classes": 2, "per_class": 4, "batch_size": 4}, epochs=1))
    assert record.image_passes == 2 * 2 * 4
    assert record.final["n_test"] == 2 * 3  # all test images of the two classes


def test_a_padding_is_refused_for_images_that_are_streamed_from_files(make, tmp_path):
    with pytest.raises(ValueError, match=r"data\.crop_padding 2 is for images in memory; .*data\.crop_scale"):
        psd.train(make(tmp_path, data={"size": None, "crop_padding": 2}))


@pytest.fixture
def lonely(images: Path, tmp_path: Path) -> dict[str, Any]:
    """Data with a class of one training image."""
    folder = shutil.copytree(images, tmp_path / "lonely")
    for path in sorted(sorted((folder / "train").iterdir())[2].iterdir())[1:]:
        path.unlink()
    return {"name": f"folder:{folder}"}


@pytest.mark.parametrize("method", ["patch_swap", "pair_cross_entropy"])
def test_a_class_of_one_image_is_refused_where_pairs_are_needed(method, lonely, make, tmp_path):
    with pytest.raises(ValueError, match="class 2 has a single image, so it has no partner"):
        psd.train(make(tmp_path / "runs", method, data=lonely))
    assert not (tmp_path / "runs").exists()


def test_a_class_of_one_image_is_trained_without_pairs(lonely, make, tmp_path):
    assert psd.train(make(tmp_path / "runs", "cross_entropy", data=lonely, epochs=1)).final["n_test"] == TEST


def test_empty_data_is_refused(images, make, tmp_path):
    folder = shutil.copytree(images, tmp_path / "empty")
    for path in (folder / "train").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=f"{folder.name}/train must hold class folders with images in each"):
        psd.train(make(tmp_path / "runs", data={"name": f"folder:{folder}"}))
    assert not (tmp_path / "runs").exists()


# --- the machine


class Waits(TorchDispatchMode):
    """Notes every operation that makes a host wait for its GPU: reading a value, or a size that depends on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


NO_HOST_DRAW = [
    name
    for name in methods.learning("label")
    if name not in ("kd", "cutmix", "mixup", "patch_swap_cutmix", "random_erasing")
]


@pytest.mark.parametrize("method", NO_HOST_DRAW)
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_no_step_waits_for_the_device(method, clip_norm, make, tmp_path, monkeypatch):
    # These look at labels, on the CPU alone.
    monkeypatch.setattr(losses, "_check_inputs", lambda *_: None)
    monkeypatch.setattr(ps_kd, "check_probabilities", lambda *_: None)
    monkeypatch.setattr(F, "one_hot", lambda y, n: torch.zeros(len(y), n, dtype=torch.int64).scatter(1, y[:, None], 1))
    with training.prepared(make(tmp_path, method, optimizer={"clip_norm": clip_norm})) as loop:
        loop.train_step(0)  # the draws of an epoch, which come with its first step, may wait
        loop.step = 1
        with Waits() as waits:
            while loop.step < PER_EPOCH:
                loop.watch.add(loop.step, loop.train_step(0))
                loop.step += 1
            assert waits.seen == []
            float(loop.watch.sums[0])
            assert waits.seen == ["_local_scalar_dense"]  # it would have been noted


def test_a_compiled_network_trains_as_an_eager_one(make, tmp_path):
    gentle = {"lr": 0.01}  # at 0.1 these few images amplify what compilers round otherwise to some thousandths
    run, other = (
        finish(make(tmp_path / compile, evaluate_every=2, compile=compile, optimizer=gentle))
        for compile in ("reduce-overhead", "off")
    )
    for a, b in zip(run.record.epochs, other.record.epochs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    assert run.record.final["nll"] == pytest.approx(other.record.final["nll"], abs=1e-4)
    assert run.weights().keys() == other.weights().keys()


def test_features_are_taken_from_a_compiled_network_too(make, tmp_path):
    method = methods.build("patch_swap", feature_weight=0.5)
    eager = finish(make(tmp_path / "eager", method, epochs=1))
    compiled = finish(make(tmp_path / "compiled", method, epochs=1, compile="default"))
    assert compiled.record.epochs[0]["feature"] == pytest.approx(eager.record.epochs[0]["feature"], abs=1e-4) != 0


def test_compiling_is_left_where_it_would_not_pay(make, tmp_path):
    with training.prepared(make(tmp_path)) as loop:
        assert loop.compiled is None and loop.model is loop.network


def test_a_device_that_is_not_there_is_refused(make, tmp_path):
    missing = "cuda" if torch.backends.mps.is_available() else "mps"
    with pytest.raises(ValueError, match=rf"run\.device '{missing}' is not there; this machine offers '\w+'"):
        psd.train(make(tmp_path, device=missing))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_stops_the_run_at_its_beginning(make, tmp_path):
    (tmp_path / "file").write_text("")
    seen: list[dict[str, Any]] = []
    with pytest.raises(OSError, match="file"):
        psd.train(make(tmp_path / "file", checkpoint_every=0), seen.append)
    assert not seen


def test_auto_precision_on_the_cpu_is_fp32(whole, make, tmp_path):
    assert same(finish(make(tmp_path, precision="fp32")).weights(), whole("patch_swap").weights())


def test_bf16_trains_on_the_cpu_and_keeps_its_weights_in_float32(whole, make, tmp_path):
    run = finish(make(tmp_path, evaluate_every=2, precision="bf16"))
    exact = whole("patch_swap").record.epochs
    for entry, other in zip(run.record.epochs, exact, strict=True):
        assert entry["loss"] != other["loss"] and entry["loss"] == pytest.approx(other["loss"], rel=0.2)
    assert all(value.dtype == torch.float32 for key, value in run.weights().items() if "num_batches" not in key)


def test_a_run_in_bf16_leaves_the_next_one_its_own_precision(whole, make, tmp_path):
    psd.train(make(tmp_path / "a", epochs=1, precision="bf16"))
    assert same(finish(make(tmp_path / "b")).weights(), whole("patch_swap").weights())


def test_a_model_that_does_not_take_the_image_size_is_refused_before_anything_is_written(tmp_path):
    settings = {"data": {"size": 16, "count": 64}, "model": {"name": "torchvision:alexnet"}}
    wrong = psd.config.recipe("shapes", **settings, run={"output": str(tmp_path), "progress": False})
    with pytest.raises(ValueError, match=r"model 'torchvision:alexnet' does not take images of 16 x 16 pixels"):
        psd.train(wrong)
    assert not list(tmp_path.iterdir())
