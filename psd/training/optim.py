"""Optimisers and schedules: those that settings name, and those that a user brings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from psd import models
from psd.checks import Refused
from psd.training.config import OptimizerConfig

Given = OptimizerConfig | Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | dict[str, Any] | None
GivenSchedule = LRScheduler | Callable[[int, int], float] | Literal["cosine", "constant", "multistep"] | None


def build(given: OptimizerConfig | Optimizer | Callable[..., Optimizer], model: nn.Module, on_gpu: bool) -> Optimizer:
    """An optimiser of a model's parameters; one that was given as such is taken as it is."""
    if isinstance(given, Optimizer):
        ours = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in ours for group in given.param_groups for parameter in group["params"]):
            raise Refused("optimizer holds none of the model's parameters; build it from model.parameters()")
        return given
    if not isinstance(given, OptimizerConfig):
        made = given([parameter for parameter in model.parameters() if parameter.requires_grad])
        if not isinstance(made, Optimizer):
            raise Refused(f"optimizer must return a torch.optim.Optimizer, got {type(made).__name__}")
        return made
    groups = models.parameter_groups(
        model,
        given.lr,
        given.weight_decay,
        head_lr=given.head_lr,
        decay_norms_and_biases=given.decay_norms,
    )
    fused = on_gpu  # one kernel for all weights; on a CPU it gains little and rounds otherwise
    if given.name == "adamw":
        return torch.optim.AdamW(groups, lr=given.lr, weight_decay=given.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=given.lr,
        momentum=given.momentum,
        nesterov=given.nesterov,
        weight_decay=given.weight_decay,
        fused=fused,
    )


class Schedule:
    """Sets the learning rate of every parameter group before each step.

    Args:
        optimizer: whose rates now are the highest ones.
        given: settings; a function (step, steps) -> factor of the highest rate; or a torch scheduler of this optimiser,
            which is stepped after every optimiser step.
        steps: of the whole run.
    """

    def __init__(
        self, optimizer: Optimizer, given: OptimizerConfig | LRScheduler | Callable[[int, int], float], steps: int
    ) -> None:
        self._optimizer, self._steps, self._given = optimizer, steps, given
        self._highest = [float(group["lr"]) for group in optimizer.param_groups]

    def before(self, step: int) -> None:
        if isinstance(self._given, LRScheduler):
            return
        for group, highest in zip(self._optimizer.param_groups, self._highest, strict=True):
            if isinstance(self._given, OptimizerConfig):
                group["lr"] = rate(self._given, highest, step, self._steps)
            else:
                group["lr"] = highest * self._given(step, self._steps)

    def after(self) -> None:
        if isinstance(self._given, LRScheduler):
            self._given.step()

    def state_dict(self) -> dict[str, Any]:
        return self._given.state_dict() if isinstance(self._given, LRScheduler) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self._given, LRScheduler):
            self._given.load_state_dict(state)


def rate(settings: OptimizerConfig, highest: float, step: int, steps: int) -> float:
    """The learning rate of a step in 0 ... steps - 1.

    >>> [rate(OptimizerConfig(schedule="multistep"), 1.0, step, 4) for step in range(4)]
    [1.0, 1.0, 0.1, 0.010000000000000002]
    """
    warm = round(settings.warmup * steps)
    if step < warm:
        return highest * (step + 1) / warm
    if settings.schedule == "constant":
        return highest
    if settings.schedule == "multistep":
        return highest * settings.gamma ** sum(step >= share * steps for share in settings.milestones)
    return highest * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def described(given: OptimizerConfig | Optimizer | Callable[..., Optimizer], optimizer: Optimizer) -> dict[str, Any]:
    """What a record says of an optimiser that was brought: its class, and its settings as far as they are plain."""
    kind = type(optimizer)
    plain = {key: value for key, value in optimizer.defaults.items() if isinstance(value, (bool, int, float, str))}
    return {"name": f"{kind.__module__}.{kind.__qualname__}", **plain}
