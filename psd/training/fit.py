"""One training run: `fit` takes its pieces, `train` builds them from the names in a `Config`.

>>> import psd                                                                                  # doctest: +SKIP
>>> record = psd.train(psd.Config())                                                            # doctest: +SKIP
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psd import models, tasks
from psd.checks import Refused
from psd.data import TUNE_APART, ImageData, load
from psd.data.images import with_label_noise
from psd.data.normalisation import Normalisation
from psd.methods import Method
from psd.seeding import seed_for
from psd.tasks import Task
from psd.training import optim
from psd.training.callbacks import Callback, Entry, OnEpoch
from psd.training.config import BudgetConfig, Config, DataConfig, RunConfig
from psd.training.folder import RunFolder
from psd.training.given import Given, check_learns, classes_of
from psd.training.loop import Loop, Plan
from psd.training.place import Place
from psd.training.records import Record
from psd.training.trouble import ranks_in_words


def train(config: Config, on_epoch: Callable[[Entry], None] | None = None) -> Record:
    """Train as `config` says; write weights, checkpoints and the record under `config.run.output`.

    Args:
        config: see `psd.Config`.
        on_epoch: called after each epoch with that epoch's entry of the record.

    Returns:
        the record, also written to `<output>/<name>.json`; the weights lie in `<output>/<name>/model.safetensors`.

    Raises:
        ValueError: bad settings or data. OSError: a place that cannot be written. Diverged: a loss that is not finite.
        Interrupted: SIGTERM came, and a checkpoint was written.
    """
    if not isinstance(config, Config):
        raise Refused(f"config must be a psd.Config, such as psd.config.recipe('shapes'), got {config!r}")
    with ranks_in_words(), Place(config.run, RunFolder(config.run, config.name, {}).path) as place:
        settings = settings_of(config, place)
        done = place.processes.on_main(RunFolder(config.run, config.name, settings).finished)
        if done is not None:
            return done
        callbacks = [] if on_epoch is None else [OnEpoch(on_epoch)]
        return Loop(plan_of(config, settings), place, callbacks).run()


@contextmanager
def prepared(config: Config) -> Iterator[Loop]:
    """A run before its first step, with nothing written: to look at it, or to take steps of it by hand."""
    with Place(config.run) as place:
        loop = Loop(plan_of(config, settings_of(config, place)), place)
        with closing(loop.loader):
            yield loop


def fit(
    model: nn.Module,
    train: Any,
    test: Any = None,
    *,
    method: str | Method = "patch_swap",
    task: str | Task = "classification",
    budget: BudgetConfig | dict[str, int] | int,
    optimizer: optim.Given = None,
    schedule: optim.GivenSchedule = None,
    batch_size: int = 64,
    run: RunConfig | dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    tune: Any = None,
    logits: Callable[[Any], Tensor] | None = None,
    name: str | None = None,
    loading: dict[str, Any] | None = None,
) -> Record:
    """Train a network of your own on data of your own, with all that `psd.train` gives.

    Args:
        model: any network; it is trained in place. Its output is what the task takes for logits: a tensor (N, C), or
            what transformers' models return; of another one, `logits` makes them.
        train, test: any map-style data set of (image, target), or of mappings with an image and a label column:
            torchvision's, Hugging Face's, `psd.data.ImageData`, a list. Images are PIL images, arrays (H, W, C) or
            tensors (C, H, W) of one size. The data set's own transform augments them; of `ImageData` and of an
            ImageFolder without a transform psd cuts and flips. Without `test` nothing is measured.
        method: a name of `psd.methods`, or an instance, of a class of your own too.
        task: a name of `psd.tasks`, or a task of your own.
        budget: epochs as a number, or `{"image_passes": 200_000}`: images through a training forward.
        optimizer: a torch optimiser of the model's parameters; a function of the parameters that makes one; settings as
            in `psd.config.OptimizerConfig`, as a mapping too; None for its defaults.
        schedule: a name as in the settings; a function (step, steps) -> factor of the highest rate; a torch scheduler,
            stepped after every step. None: that of the settings or, with an optimiser of your own, cosine to 0.
        batch_size: anchors a step; a method of pairs forwards twice as many images.
        run: seed, output folder, device, precision and the rest of `psd.config.RunConfig`.
        callbacks: see `psd.training.callbacks.Callback`.
        tune: images that are neither trained nor tested on, for figures with a fitted temperature.
        logits: the network's output -> logits (N, C).
        name: of the data in the record; the data set's own if None.
        loading: options of `psd.data.loaders.loader`, such as {"workers": 4} or {"crop_padding": 4}.

    Returns:
        the record, written to `<output>/<data>/<model>/<budget>/<method>-s<seed>.json`, with weights beside it.

    Raises:
        ValueError: what does not fit together, by name. Others as in `psd.train`.

    What has no name stands in the record by its class and a fingerprint: of the shapes of the network's parameters, of
    the training labels. A resumed run is compared by these; that code and pixels are the same as before is not seen.

    >>> import psd
    >>> images = psd.data.load("shapes", count=32, classes=4)
    >>> record = psd.fit(psd.models.build("resnet8", 4), images, budget=1, batch_size=8,
    ...                  run={"output": tmp, "progress": False})                                # doctest: +SKIP
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise Refused(
                f"callbacks must be instances of psd.training.callbacks.Callback, got {callback!r}; OnEpoch makes one "
                "of a function"
            )
    pieces = Given(model, train, test, tune, method, task, budget, optimizer, schedule, batch_size, run, name, loading)
    with ranks_in_words(), Place(pieces.run, RunFolder(pieces.run, pieces.name, {}).path) as place:
        plan = pieces.plan(place, logits)
        done = place.processes.on_main(RunFolder(plan.run, plan.name, plan.settings).finished)
        if done is not None:
            return done
        if plan.run.resume != "never":
            warnings.warn(
                f"run.resume: that the code of {type(model).__name__}, the pixels of {plan.data} and what their "
                "transform does are those of before is not checked",
                stacklevel=2,
            )
        return Loop(plan, place, callbacks).run()


def plan_of(config: Config, settings: dict[str, Any]) -> Plan:
    """The pieces of a run, built from their names."""
    data, chosen = config.data, config.model
    train_data, test = load_data(data)
    task = tasks.find(config.task.name)
    check_learns(task, config.method)
    names = classes_of(train_data, task)
    classes = len(names)
    torch.manual_seed(seed_for(config.run.seed, "weights"))
    model = models.build(chosen.name, classes, weights=chosen.weights, **chosen.options)
    moved = getattr(model, "transferred", None)
    if moved is not None and config.run.progress:
        print(f"{chosen.weights}: {moved}", file=sys.stderr)
    statistics = models.normalisation(chosen.name, chosen.weights)
    normalisation = None if statistics is None else Normalisation(*statistics)
    if chosen.freeze_backbone:
        models.freeze_backbone(model)
    keys = ("crop_padding", "flip", "crop_size", "crop_scale", "workers", "skip_corrupt")
    loading = {key: getattr(data, key) for key in keys}
    return Plan(
        name=config.name,
        data=data.label,
        architecture=chosen.name,
        class_names=names,
        settings=settings,
        model=model,
        train=train_data,
        test=test,
        tune=load_tune(data),
        method=config.method,
        task=task,
        budget=config.budget,
        optimizer=config.optimizer,
        schedule=config.optimizer,
        clip_norm=config.optimizer.clip_norm,
        batch_size=data.batch_size,
        run=config.run,
        loading={**loading, "normalisation": normalisation},
        measuring={"crop_size": data.crop_size, "workers": data.workers, "normalisation": normalisation},
        train_mode=models.train_mode if chosen.freeze_backbone else nn.Module.train,
        metadata={"model": chosen.name, "classes": str(classes), "options": json.dumps(chosen.options)},
    )


def settings_of(config: Config, place: Place | None) -> dict[str, Any]:
    """What a record holds of a configuration: without a machine's paths, with the device and precision that it has."""
    settings = config.to_dict()
    settings["data"]["root"] = settings["run"]["output"] = None  # a machine's path is nobody's result
    if config.model.weights not in (None, "default"):
        settings["model"]["weights"] = Path(str(config.model.weights)).name
    if place is not None:
        settings["run"] |= place.resolved()
    return settings


def finished(config: Config) -> Record | None:
    """The record of a run that `run.resume` "auto" leaves as it is; None where there is something to do.

    Raises:
        ValueError: the record that stands there is of a run with other settings.
    """
    return RunFolder(config.run, config.name, settings_of(config, None)).finished()


def load_data(data: DataConfig) -> tuple[Any, Any]:
    """The images to train on and those to measure on, as a run's `data` section says: in memory, or as files."""

    def split(name: str, **subset: Any) -> Any:
        chosen = {key: value for key, value in subset.items() if value is not None}
        return load(data.name, data.root, name, seed=data.seed, verify=data.verify, **chosen)

    same = {"classes": data.classes, "size": data.size}
    measured = split({"train": "test", "fit": "tune"}[data.split], **same)
    train = split(data.split, per_class=data.per_class, count=data.count, **same)
    if data.label_noise:
        if not isinstance(train, ImageData):
            raise Refused(f"data.label_noise {data.label_noise} needs images in memory: set data.size")
        train = with_label_noise(train, data.label_noise, data.seed)
    return train, measured


def load_tune(data: DataConfig) -> ImageData | None:
    """The tune images of a run that neither trains on them nor is measured on them; None where there are none."""
    if data.split != "train" or data.name not in TUNE_APART:
        return None
    size = {} if data.size is None else {"size": data.size}  # which not every data set takes
    tune = load(data.name, data.root, "tune", classes=data.classes, seed=data.seed, verify=data.verify, **size)
    assert isinstance(tune, ImageData)  # all of TUNE_APART are
    return tune
