"""One new thing of each kind, defined here and nowhere in psd, and trained with by `psd.fit` and by a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import psd
from psd import cli, data, methods, models, tasks
from psd.methods import Batch, Method, Progress, Step, single_terms
from psd.tasks import Metric, Metrics
from psd.training.callbacks import Callback
from psd.training.records import Record

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, SIZE, BATCH, PER_CLASS = 3, 16, 6, 4
STEPS = CLASSES * PER_CLASS // BATCH  # of an epoch
RUN = {"device": "cpu", "progress": False, "checkpoint_every": 0}


# --- one of each


@dataclass
class FocalLoss(Method):
    """A method: gamma turns the loss to the images that are still wrong."""

    gamma: float = 2.0

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(batch.x)
        each = F.cross_entropy(logits, batch.y, reduction="none")
        return Step(single_terms(((1 - (-each).exp()) ** self.gamma * each).mean()), logits, batch.y)


def load_squares(root: Path, split: str, *, size: int = SIZE, seed: int = 0) -> psd.data.ImageData:
    """A data set: squares whose grey tells the class."""
    count = {"train": PER_CLASS, "test": 2}[split] * CLASSES
    generator = torch.Generator().manual_seed(seed + len(split))
    images = torch.randint(0, 40, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    targets = torch.arange(count) % CLASSES
    images[:, :, 4:12, 4:12] += (60 * targets + 50).to(torch.uint8)[:, None, None, None]
    return data.ImageData(images, targets, ("dark", "grey", "light"), "squares", (0.3,) * 3, (0.3,) * 3, 0, True)


class TwoLayers(nn.Module):
    """A model."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, width, 3, stride=2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).relu().mean((2, 3)))
        return logits


class Agreement:
    """Cohen's kappa, of a matrix of counts."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        for y, guess in zip(targets.tolist(), logits.argmax(1).tolist(), strict=True):
            self.counts[y, guess] += 1

    def merge(self, other: Agreement) -> None:
        self.counts += other.counts

    def compute(self, tune: Agreement | None = None) -> Metrics:
        n = self.counts.sum()
        agreed, by_chance = self.counts.trace() / n, (self.counts.sum(0) @ self.counts.sum(1)) / n**2
        return Metrics(kappa=float((agreed - by_chance) / (1 - by_chance)), n_test=int(n))


class Agreeing:
    """A task, with a metric that psd does not have."""

    name = "agreeing"
    learns = "label"
    metrics = (Metric("kappa", "Cohen's kappa", "", "higher", 3),)

    def logits(self, output: Any) -> Tensor:
        assert isinstance(output, Tensor)
        return output

    def meter(self, classes: int) -> Agreement:
        return Agreement(classes)


class Ordering(Agreeing):
    """Another task, of targets that only a method of one's own learns."""

    name, learns = "ordering", "order"


class SignDescent(torch.optim.Optimizer):
    """An optimiser: steps of one length."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] * parameter.grad.sign()


def optimizer(parameters: Iterable[nn.Parameter]) -> SignDescent:
    return SignDescent(parameters, lr=0.01)


def halving(step: int, steps: int) -> float:
    """A schedule."""
    return 0.5**step


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of them that have a name in configurations; nothing is known any more after a test."""
    for module in (methods, data, models, tasks):
        monkeypatch.setattr(module, "_REGISTERED", {})
    methods.register(FocalLoss)
    data.register("squares", load_squares)
    models.register("two-layers", TwoLayers)
    tasks.register(Agreeing())
    yield


# --- by psd.fit


@pytest.fixture
def fitted(tmp_path: Path) -> tuple[Record, list[float]]:
    """All six of one's own at once, for two epochs; the learning rate of every step."""
    rates: list[float] = []

    class Watching(Callback):
        def step(self, loop: Any) -> None:
            rates.append(loop.lr)

    record = psd.fit(
        TwoLayers(CLASSES),
        load_squares(tmp_path, "train"),
        load_squares(tmp_path, "test"),
        method=FocalLoss(gamma=1.0),
        task=Agreeing(),
        budget=2,
        optimizer=optimizer,
        schedule=halving,
        batch_size=BATCH,
        run={**RUN, "output": str(tmp_path)},
        callbacks=[Watching()],
    )
    return record, rates


def test_six_of_one_s_own_are_trained_together(fitted, tmp_path):
    record, rates = fitted
    assert record.name == "squares/TwoLayers/2ep/focal_loss-s0"
    assert Record.read(tmp_path / f"{record.name}.json").final == record.final
    assert rates == [0.01, 0.005, 0.0025, 0.00125] and len(rates) == 2 * STEPS


def test_the_record_names_them(fitted):
    record, _ = fitted
    assert (record.data, record.model, record.method, record.task) == ("squares", "TwoLayers", "focal_loss", "agreeing")
    assert record.config["method"] == {"name": "focal_loss", "gamma": 1.0}
    assert record.config["model"]["name"] == f"{__name__}.TwoLayers"
    assert record.config["optimizer"] == {"name": f"{__name__}.optimizer", "schedule": f"{__name__}.halving"}
    assert record.config["task"] == {"name": "agreeing"}


def test_the_record_holds_the_task_s_figures_and_says_what_they_are(fitted):
    record, _ = fitted
    assert set(record.final) == {"kappa", "n_test"} and record.final["n_test"] == 2 * CLASSES
    assert -1 <= record.final["kappa"] <= 1
    (metric,) = record.metrics
    assert (metric["name"], metric["title"], metric["better"]) == ("kappa", "Cohen's kappa", "higher")


@pytest.mark.parametrize(
    "own",
    [
        {"method": "focal_loss"},
        {"task": "agreeing", "method": "cross_entropy"},
        {"optimizer": optimizer},
        {"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-3)},
        {"schedule": halving},
    ],
    ids=["method", "task", "optimizer", "function of the parameters", "schedule"],
)
def test_each_of_one_s_own_goes_with_what_psd_has(own, tmp_path):
    train = data.load("shapes", classes=CLASSES, count=12, size=SIZE)
    given = {"method": "patch_swap", "budget": 1, "batch_size": BATCH, "run": {**RUN, "output": str(tmp_path)}, **own}
    record = psd.fit(models.build("resnet8", CLASSES), train, train, **given)
    assert record.epochs[-1]["steps"] == STEPS and record.final["n_test"] == 12


def test_any_map_style_data_set_is_trained_on(tmp_path):
    pixels = load_squares(tmp_path, "train")
    train = [(image / 255, label) for image, label in pixels]  # a list of float images, which are taken as they are
    given = {"method": "cross_entropy", "budget": 1, "batch_size": BATCH, "run": {**RUN, "output": str(tmp_path)}}
    record = psd.fit(TwoLayers(CLASSES), train, **given)
    assert record.data == "list" and record.epochs[-1]["steps"] == STEPS and record.final == {}


def test_a_method_that_does_not_learn_what_the_task_has_is_refused(tmp_path):
    given = {"task": Ordering(), "method": "patch_swap", "budget": 1, "run": {**RUN, "output": str(tmp_path)}}
    with pytest.raises(ValueError, match=r"patch_swap learns label, the task ordering has order; .* learn it: none"):
        psd.fit(TwoLayers(CLASSES), load_squares(tmp_path, "train"), **given, batch_size=BATCH)


# --- by a configuration


def config(output: Path, **changes: Any) -> psd.Config:
    sections: dict[str, Any] = {
        "data": {"name": "squares", "batch_size": BATCH},
        "model": {"name": "two-layers", "options": {"width": 4}},
        "method": {"name": "focal_loss", "gamma": 1.0},
        "task": "agreeing",
        "budget": {"epochs": 1},
        "run": {**RUN, "output": str(output)},
    }
    return psd.Config(**{**sections, **changes})


def test_the_registered_are_trained_by_a_configuration(tmp_path):
    record = psd.train(config(tmp_path))
    assert record.name == "squares/two-layers/1ep/focal_loss-s0"
    assert (record.data, record.model, record.method, record.task) == (
        "squares",
        "two-layers",
        "focal_loss",
        "agreeing",
    )
    assert record.config["method"] == {"name": "focal_loss", "gamma": 1.0}
    assert record.config["model"]["options"] == {"width": 4}
    assert set(record.final) == {"kappa", "n_test"}


def test_a_configuration_with_the_registered_makes_the_round_trip(tmp_path):
    made = config(tmp_path)
    assert psd.config.from_dict(made.to_dict()) == made


def test_a_data_set_is_given_the_data_section_s_settings(tmp_path):
    record = psd.train(config(tmp_path, data={"name": "squares", "batch_size": BATCH, "size": 20, "seed": 1}))
    assert record.data == "squares-size20-seed1"
    with pytest.raises(ValueError, match="per_class=2 does not apply to the data set 'squares'"):
        psd.train(config(tmp_path, data={"name": "squares", "per_class": 2}))


def test_a_registered_network_is_loaded_again(tmp_path):
    record = psd.train(config(tmp_path))
    model = psd.load_model(tmp_path / record.name)
    assert isinstance(model, TwoLayers) and model.body.out_channels == 4
    measured = psd.evaluate(model, data.load("squares", split="test"), task="agreeing")
    assert measured == record.final


def test_a_recipe_file_names_the_registered(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {name: squares}\nmodel: {name: two-layers}\nmethod: {name: focal_loss, gamma: 3}\n")
    assert psd.config.recipe(str(path)).name == "squares/two-layers/80ep/focal_loss-s0"


def test_the_command_line_prints_the_task_s_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        "data: {name: squares, batch_size: 6}\nmodel: {name: two-layers}\nmethod: {name: focal_loss}\n"
        "task: {name: agreeing}\nbudget: {epochs: 1}\nrun: {progress: false, device: cpu}\n"
    )
    assert cli.main(["train", "mine.yaml"]) == 0
    name, printed = capsys.readouterr().out.splitlines()
    assert printed == f"Cohen's kappa {Record.read(name).final['kappa']:.3f}   n 6"
    assert cli.main(["evaluate", name]) == 0
    assert capsys.readouterr().out.splitlines() == [printed]


# --- networks by name


def test_an_option_that_a_registered_network_does_not_take_is_refused():
    with pytest.raises(ValueError, match=r"model.options .*'depth': 3.* do not fit the network 'two-layers': .*depth"):
        models.build("two-layers", CLASSES, depth=3)


def test_a_registered_network_has_no_default_weights():
    with pytest.raises(ValueError, match="weights 'default': two-layers is a network of your own"):
        models.build("two-layers", CLASSES, weights="default")


def test_a_mistyped_registered_network_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"model\.name 'two-layer' is unknown; did you mean 'two-layers'"):
        models.build("two-layer", CLASSES)


@pytest.mark.parametrize(
    ("name", "build", "message"),
    [
        ("resnet8", TwoLayers, "model.name 'resnet8' is taken; known: resnet8, .*two-layers"),
        ("two-layers", nn.Identity, "model.name 'two-layers' is taken"),
        ("timm:mine", TwoLayers, "model.name is part of a file name: .*got 'timm:mine'"),
        ("mine", TwoLayers(CLASSES), r"build of 'mine' must be a function build\(num_classes"),
        ("mine", lambda: TwoLayers(CLASSES), r"build of 'mine' must be a function build\(num_classes"),
    ],
)
def test_what_cannot_be_registered_as_a_network_is_refused(name, build, message):
    with pytest.raises(ValueError, match=message):
        models.register(name, build)


def test_what_builds_no_network_is_refused():
    models.register("none", lambda num_classes: None)
    with pytest.raises(ValueError, match=r"'none' must build an nn\.Module, got NoneType"):
        models.build("none", CLASSES)
