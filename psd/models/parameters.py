"""Which parameters are trained, by which rate, and what stays as it is."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from psd.features import classifier


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    head_lr: float | None = None,
    decay_norms_and_biases: bool = True,
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, of the parameters that require gradients.

    Args:
        lr, weight_decay: of all parameters, but for what follows.
        head_lr: of the head: all but the `backbone` of a network that has one, else the classifier
            (`psd.models.classifier`); lr if None.
        decay_norms_and_biases: False takes weight decay from all parameters of one dimension or none, which are
            those of norm layers and biases.

    >>> layer = nn.Linear(2, 2)
    >>> [len(parameter_groups(layer, 0.1, 5e-4, decay_norms_and_biases=both)) for both in (True, False)]
    [1, 2]
    """
    head = set() if head_lr is None else {id(parameter) for parameter in head_parameters(model)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            rate = head_lr if head_lr is not None and id(parameter) in head else lr
            decay = weight_decay if decay_norms_and_biases or parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in groups.items()]


def freeze_backbone(model: nn.Module) -> None:
    """Let nothing but the head learn: the classifier, or all but the `backbone` of a network that has one; of a
    detector's, all but the `body`, as the pyramid is new. What BatchNorm keeps is moved by no gradient: see
    `train_mode`."""
    head = head_parameters(model)
    model.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those of the classifier, or of all but the classification network in a network for another task."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        return list(classifier(model).parameters())
    kept = {id(parameter) for parameter in getattr(backbone, "body", backbone).parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in kept]


def train_mode(model: nn.Module) -> None:
    """model.train(), but for BatchNorm layers whose parameters are frozen: their statistics stay as they are, too."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and own and not any(parameter.requires_grad for parameter in own):
            module.eval()
