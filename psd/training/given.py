"""What a user brings to `psd.fit`, checked, and described for the record."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from psd import methods, tasks
from psd.checks import Refused, did_you_mean, refusing
from psd.data.items import class_names
from psd.data.loaders import loader
from psd.data.scenes import Scenes, as_scenes
from psd.methods import Method
from psd.pairs import labels_of
from psd.tasks import Task
from psd.training import optim
from psd.training.config import BudgetConfig, Config, OptimizerConfig, RunConfig, options_of, section
from psd.training.loop import Plan
from psd.training.place import Place

MEASURING = ("crop_size", "workers", "normalisation")  # of the options of loading, those of an evaluation too


class Given:
    """The arguments of `psd.fit`.

    Raises:
        ValueError: naming the argument and what to give instead.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        test: Any,
        tune: Any,
        method: str | Method,
        task: str | Task,
        budget: BudgetConfig | dict[str, int] | int,
        optimizer: optim.Given,
        schedule: optim.GivenSchedule,
        batch_size: int,
        run: RunConfig | dict[str, Any] | None,
        name: str | None,
        loading: dict[str, Any] | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise Refused(f"model must be an nn.Module, such as psd.models.build('resnet18', 10), got {model!r}")
        for what, data in (("train", train), ("test", test), ("tune", tune)):
            if isinstance(data, DataLoader):
                raise Refused(f"{what} must be a data set, got a DataLoader; give its `.dataset`, and batch_size here")
        self.model, self.train, self.test, self.tune = model, train, test, tune
        # The same checks, and the same that may stand for a section, as in a configuration.
        chosen = Config(
            method=method,  # type: ignore[arg-type]
            budget=budget,  # type: ignore[arg-type]
            run={} if run is None else run,  # type: ignore[arg-type]
            data={"batch_size": batch_size},  # type: ignore[arg-type]
        )
        self.method, self.budget, self.run = chosen.method, chosen.budget, chosen.run
        self.batch_size = chosen.data.batch_size
        self.task = tasks.find(task) if isinstance(task, str) else task
        self.optimizer = _optimizer(optimizer)
        self.schedule = _schedule(schedule, self.optimizer)
        self.loading = _loading(loading or {})
        check_learns(self.task, self.method)
        if self.task.learns != "label":  # read once, not by each who asks
            self.train, self.test, self.tune = (
                d if d is None else as_scenes(d, self.task.learns) for d in (train, test, tune)
            )
        self.classes = classes_of(self.train, self.task, self.test)
        self.data = name or getattr(train, "name", None) or type(train).__name__
        variant = f"-{self.run.variant}" if self.run.variant else ""
        folder = f"{self.data}/{type(model).__name__}/{self.budget.label}".replace(":", "-")
        self.name = f"{folder}/{self.method.name}{variant}-s{self.run.seed}"

    def plan(self, place: Place, logits: Callable[[Any], Tensor] | None) -> Plan:
        clip_norm = self.optimizer.clip_norm if isinstance(self.optimizer, OptimizerConfig) else None
        return Plan(
            name=self.name,
            data=self.data,
            architecture=type(self.model).__name__,
            class_names=self.classes,
            settings=self.settings(place),
            model=self.model,
            train=self.train,
            test=self.test,
            tune=self.tune,
            method=self.method,
            task=self.task,
            budget=self.budget,
            optimizer=self.optimizer,
            schedule=self.schedule,
            clip_norm=clip_norm,
            batch_size=self.batch_size,
            run=self.run,
            loading=self.loading,
            measuring={key: self.loading[key] for key in MEASURING if key in self.loading},
            logits=logits,
        )

    def settings(self, place: Place) -> dict[str, Any]:
        """For the record: what has no name by its class and a fingerprint."""
        optimizer = self.optimizer
        described = options_of(optimizer) if isinstance(optimizer, OptimizerConfig) else {"name": qualified(optimizer)}
        if not isinstance(self.schedule, OptimizerConfig):
            described["schedule"] = qualified(self.schedule)
        loading = {key: value for key, value in self.loading.items() if key not in ("workers", "normalisation")}
        return {
            "data": {"name": self.data, "batch_size": self.batch_size, "labels": of_targets(self.train), **loading},
            "model": {"name": qualified(self.model), "parameters": of_parameters(self.model)},
            "method": {"name": self.method.name, **options_of(self.method)},
            "budget": options_of(self.budget),
            "optimizer": described,
            "run": {**options_of(self.run), "output": None, **place.resolved()},
            "task": {"name": self.task.name},
        }


def qualified(thing: object) -> str:
    """A class's or function's full name; of an object, its class's.

    >>> qualified(nn.Linear(1, 1))
    'torch.nn.modules.linear.Linear'
    """
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def of_parameters(model: nn.Module) -> str:
    """A fingerprint of the names, shapes and types of a network's parameters and buffers."""
    shapes = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in model.state_dict().items()]
    return _digest("\n".join(shapes).encode())


def of_targets(train: Any) -> str:
    """A fingerprint of the training labels in their order; of scenes, of which classes each shows."""
    known = train.present if isinstance(train, Scenes) else labels_of(train)
    return _digest(known.cpu().numpy().tobytes())


def check_learns(task: Task, method: Method) -> None:
    """ValueError where the method's loss cannot take the task's targets."""
    if task.learns not in method.learns:
        able = ", ".join(methods.learning(task.learns)) or "none"
        raise Refused(
            f"method {method.name} learns {', '.join(sorted(method.learns))}, the task {task.name} has {task.learns}; "
            f"of psd's methods, these learn it: {able}"
        )


def classes_of(train: Any, task: Task, test: Any = None) -> tuple[str, ...]:
    """The classes' names; ValueError for data whose targets are not what the task learns."""
    dense = task.learns != "label"
    if isinstance(train, Scenes) or dense:
        if not dense:
            raise Refused(
                f"the data {train.name!r} holds masks and boxes, the task {task.name} learns one label an image; "
                "task.name segmentation or detection"
            )
        return as_scenes(train, task.learns).classes
    with refusing():
        known = labels_of(train) if test is None else torch.cat([labels_of(train), labels_of(test)])
    return class_names(train, known)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _optimizer(given: optim.Given) -> OptimizerConfig | Optimizer | Callable[..., Optimizer]:
    if given is None:
        return OptimizerConfig()
    if isinstance(given, dict):
        made: OptimizerConfig = section("optimizer", given)
        return made
    if isinstance(given, type) and issubclass(given, Optimizer):
        raise Refused(
            f"optimizer must be an instance, settings, or a function of the parameters, such as lambda p: "
            f"{given.__name__}(p, lr=0.01), got the class {given.__name__}"
        )
    if not isinstance(given, (OptimizerConfig, Optimizer)) and not callable(given):
        raise Refused(
            "optimizer must be an optimiser, settings such as {'name': 'adamw', 'lr': 0.001}, or a function of the "
            f"parameters, got {given!r}"
        )
    return given  # type: ignore[return-value]  # what is callable and no class, as was seen


def _schedule(given: optim.GivenSchedule, optimizer: Any) -> Any:
    """A schedule's settings, function or torch scheduler."""
    settings = optimizer if isinstance(optimizer, OptimizerConfig) else OptimizerConfig()
    if given is None:
        return settings
    if isinstance(given, str):
        return OptimizerConfig(**{**options_of(settings), "schedule": given})
    if isinstance(given, type) or not (isinstance(given, LRScheduler) or callable(given)):
        raise Refused(
            "schedule must be a name, a function (step, steps) -> factor, or a scheduler that was built of the "
            f"optimizer you give, got {given!r}"
        )
    if isinstance(given, LRScheduler) and given.optimizer is not optimizer:
        raise Refused(f"schedule {type(given).__name__} is of another optimiser than this run's: give optimizer=, too")
    return given


def _loading(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `psd.data.loaders.loader`, but for what a run decides."""
    parameters = inspect.signature(loader).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("device", "share", "learns")]
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) or "."
            raise Refused(f"loading has no option {key!r}{hint} Known: {', '.join(known)}")
    return options
