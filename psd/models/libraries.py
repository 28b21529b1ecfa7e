"""Networks of torchvision and timm, with fresh weights or those that the libraries provide."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from psd.checks import Refused
from psd.features import classifier

AUXILIARY = ("googlenet", "inception_v3")  # with auxiliary heads they return a tuple while training


def torchvision(name: str, num_classes: int, pretrained: bool = False, **options: Any) -> nn.Module:
    """torchvision's model; a pretrained one has a fresh classifier, unless it has `num_classes` outputs already."""
    from torchvision.models import get_model

    if pretrained:
        model: nn.Module = _made(get_model, name, weights="DEFAULT", **options)
        fresh: nn.Module = _made(get_model, name, weights=None, num_classes=num_classes, **options)
        return take(fresh, model.state_dict(), f"torchvision's weights of {name}")
    if name in AUXILIARY:
        options = {"aux_logits": False, "init_weights": True, **options}
    made: nn.Module = _made(get_model, name, weights=None, num_classes=num_classes, **options)
    return made


def torchvision_names() -> list[str]:
    """Classification models alone; get_model also knows detection, segmentation, video and optical flow."""
    from torchvision import models

    known: list[str] = models.list_models(module=models)
    return known


def timm(name: str, num_classes: int, pretrained: bool = False, **options: Any) -> nn.Module:
    """timm's model; its name may end with that of its weights, as in resnet18.a1_in1k."""
    library = importlib.import_module("timm")
    made = _made(library.create_model, name, pretrained=pretrained, num_classes=num_classes, **options)
    if pretrained and made.pretrained_cfg["num_classes"] != num_classes:
        with suppress(Refused):  # one that classifies by a convolution keeps timm's draw
            classifier(made).reset_parameters()
    return made  # type: ignore[no-any-return]


def timm_names() -> list[str]:
    try:
        library = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise Refused('model.name timm:NAME needs timm, which is missing: pip install ".[timm]"') from error
    known: list[str] = library.list_models()
    return known


def timm_weights() -> list[str]:
    """timm's names with those of weights."""
    known: list[str] = importlib.import_module("timm").list_pretrained()
    return known


def statistics(source: str, name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the pixels / 255 for which the weights of a library's model were trained."""
    if source == "timm":
        config = importlib.import_module("timm").get_pretrained_cfg(name)
        return config.mean, config.std
    from torchvision.models import get_model_weights

    transform = get_model_weights(name).DEFAULT.transforms()
    return transform.mean, transform.std


def take(model: nn.Module, weights: dict[str, Any], where: str) -> nn.Module:
    """Load weights into a model of as many classes as it has; where theirs has others, its last layer is drawn afresh.

    It is drawn as torch draws any linear layer, within 1 / sqrt(features): the libraries' own draw of some networks
    (EfficientNets: within 1 / sqrt(classes)) makes for large logits, whose gradients spoil trained weights.

    Raises:
        ValueError: what is missing, left over or of another shape, apart from the classifier.
    """
    own = model.state_dict()
    linear = classifier(model)
    last = {id(value) for value in linear.state_dict(keep_vars=True).values()}
    head = {name for name, value in model.state_dict(keep_vars=True).items() if id(value) in last}
    kept = {
        name: value
        for name, value in weights.items()
        if name not in head or (name in own and value.shape == own[name].shape)
    }
    missing = [name for name in own if name not in kept and name not in head]
    foreign = [name for name in kept if name not in own]
    other = [name for name in kept if name in own and kept[name].shape != own[name].shape]
    for what, names in (("lacks", missing), ("has other shapes of", other), ("has besides", foreign)):
        if names:
            raise Refused(
                f"model.weights: {where} does not fit {type(model).__name__}: it {what} {', '.join(names[:3])}"
                f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            )
    model.load_state_dict({**own, **kept})
    if not head & kept.keys():
        linear.reset_parameters()
    return model


def _made(build: Any, name: str, **options: Any) -> Any:
    """What the library builds; an option that it does not take is the user's mistake."""
    try:
        return build(name, **options)
    except TypeError as error:
        raise Refused(f"model.options: {name} does not take them ({error})") from error
