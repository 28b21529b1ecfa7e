"""The networks that are trained, by name: CIFAR and wide ResNets of our own, torchvision's, timm's and yours.

"ResNet-18" means two networks in this field. Ours is post-activation: torchvision's blocks behind the stem for
32 x 32 images (one 3 x 3 convolution of stride 1, no max-pool). CS-KD, PS-KD and BAKE use pre-activation
blocks, so their numbers are of another network.

torchvision and timm are imported on first use. Weights are drawn from torch's global generator, so that
`torch.manual_seed` before `build` fixes them; nothing is downloaded but where `weights` asks for it.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import re
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from psd.checks import Refused, taken
from psd.features import classifier, features_and_logits
from psd.models import detection, libraries, segmentation
from psd.models.backbone import Backbone
from psd.models.cifar import BUILT_IN, CifarResNet, WideResNet
from psd.models.parameters import freeze_backbone, parameter_groups, train_mode
from psd.models.transfer import Report, read, transfer

# Options of the libraries' constructors by which they read files, pickles too, or fetch them.
FETCHING = (
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "weights_backbone",
)
HEADS = {**segmentation.HEADS, **detection.HEADS}

__all__ = [
    "HEADS",
    "CifarResNet",
    "Report",
    "WideResNet",
    "build",
    "check_name",
    "classifier",
    "features_and_logits",
    "freeze_backbone",
    "names",
    "normalisation",
    "parameter_groups",
    "register",
    "train_mode",
    "transfer",
]


def build(name: str, num_classes: int, *, weights: str | os.PathLike[str] | None = None, **options: Any) -> nn.Module:
    """Build a network, (N, 3, H, W) -> logits (N, num_classes); for other tasks see HEAD@BACKBONE.

    Args:
        name: one of `names()`, of which psd's are made for 32 x 32 images, or "torchvision:NAME" (its classification
            models) or "timm:NAME", both as their authors made them, most for 224 x 224 images.
            Or "HEAD@NAME": a head of torchvision's on the feature maps of one of these, such as "fcn@resnet14". fcn,
            deeplabv3 and lraspp give logits (N, num_classes, H, W) at the size of the image; ssdlite, fcos, retinanet
            and fasterrcnn detect, see `psd.models.detection`. num_classes then counts the background, which is 0.
        num_classes: at least 2; kept as the attribute `num_classes` of the model.
        weights: None, fresh ones; "default", the library's pretrained ones, which it may download; or a file of
            safetensors or of torch, or the folder of a run for HEAD@NAME, whose backbone takes them by `transfer`. A
            classifier of other classes than num_classes is drawn afresh, as torch draws any
            linear layer.
        options: of torchvision's or timm's constructor, such as drop_path_rate=0.1 or img_size=64, or of the function
            that was registered; of the backbone's, such as output_stride=8 of timm, where there is a head.

    Raises:
        ValueError: unknown name (with the nearest known ones), timm not installed, `num_classes` not an
            int of at least 2, weights that do not fit, options that the network does not take.

    Sources: `CifarResNet`, `WideResNet`; resnet18/34/50: He et al., "Deep Residual Learning for Image
    Recognition", CVPR 2016, table 1; mobilenetv2: Sandler et al., "MobileNetV2", CVPR 2018, table 2.

    >>> import torch
    >>> build("resnet8", 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_name(name)
    if isinstance(num_classes, bool) or not isinstance(num_classes, Integral) or num_classes < 2:
        raise Refused(f"num_classes must be an int of at least 2, got {num_classes!r}")
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise Refused(f'weights must be None, "default" or the path of a file, got {weights!r}')
    for key in FETCHING:
        if key in options:
            raise Refused(f"model.options.{key} is not taken, as it loads files unchecked; weights go by model.weights")
    if "@" in name:
        return _with_head(name, int(num_classes), weights, options)
    source, _, bare = name.rpartition(":")
    count, pretrained = int(num_classes), weights == "default"
    if source:
        library = {"torchvision": libraries.torchvision, "timm": libraries.timm}[source]
        model: nn.Module = library(bare, count, pretrained, **options)
    elif name in _REGISTERED:
        model = _own(name, count, pretrained, options)
    else:
        if options or pretrained:
            given = "weights 'default'" if pretrained else f"option {sorted(options)[0]!r}"
            raise Refused(f"{given}: {name} is a network of psd, which has none; of torchvision:{name} there may be")
        model = BUILT_IN[name](count)
    model.num_classes = count
    if weights is not None and not pretrained:
        libraries.take(model, read(Path(weights)), os.fspath(weights))
    return model


def _with_head(name: str, count: int, weights: str | os.PathLike[str] | None, options: dict[str, Any]) -> nn.Module:
    """A network for segmentation or detection."""
    head, _, inner = name.partition("@")
    default = weights if weights == "default" else None
    backbone = Backbone(build(inner, count, weights=default, **options), inner)
    if head in detection.HEADS:
        detection.check_maps(backbone, name)
    model = HEADS[head](backbone, count)
    if weights is not None and default is None:
        model.transferred = transfer(weights, model)  # type: ignore[assignment]  # to be told, no part of it
    return model


_REGISTERED: dict[str, Callable[..., nn.Module]] = {}


def register(name: str, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make a network of your own known by its name: to `psd.models.build`, and as `model.name` of a configuration.

    Args:
        name: part of a record's path, so of letters, digits and .-_ alone.
        build: (num_classes, **options) -> a network with fresh weights; its class, too. options: `model.options`.

    Returns:
        build, as it is.

    Raises:
        ValueError: a name that is taken or cannot be part of a path, a function that does not take (num_classes).
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise Refused(f"model.name is part of a file name: letters, digits, '.-_' only, got {name!r}")
    if name in names() and taken(_REGISTERED, name, build):
        raise Refused(f"model.name {name!r} is taken; known: {', '.join(names())}")
    if isinstance(build, nn.Module):
        raise Refused(
            f"build of {name!r} must be a function build(num_classes, **options), got a network that is built"
        )
    try:
        inspect.signature(build).bind(2)
    except TypeError as error:
        raise Refused(f"build of {name!r} must be a function build(num_classes, **options): {error}") from None
    _REGISTERED[name] = build
    return build


def _own(name: str, num_classes: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """A network that was registered."""
    if pretrained:
        raise Refused(f"weights 'default': {name} is a network of your own, of which psd knows no weights but a file's")
    try:
        inspect.signature(_REGISTERED[name]).bind(num_classes, **options)
    except TypeError as error:
        raise Refused(f"model.options {options} do not fit the network {name!r}: {error}") from None
    model = _REGISTERED[name](num_classes, **options)
    if not isinstance(model, nn.Module):
        raise Refused(f"the function registered as {name!r} must build an nn.Module, got {type(model).__name__}")
    return model


def normalisation(name: str, weights: str | None) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and deviation of pixels / 255 that a pretrained network wants, one number per channel.

    None for fresh weights and for a network of psd, which are normalised as their data says. A file is taken to hold
    weights that were trained as the library's own were.
    """
    source, _, bare = name.partition("@")[2].rpartition(":") if "@" in name else name.rpartition(":")
    return None if weights is None or not source else libraries.statistics(source, bare)


def names() -> list[str]:
    """The names of psd's networks, in the order of a table of results, and what is registered.

    >>> names()[:4]
    ['resnet8', 'resnet14', 'resnet20', 'resnet56']
    """
    return [*BUILT_IN, *_REGISTERED]


def check_name(name: str) -> None:
    """Refuse a name that `build` does not know, without building anything.

    A built-in name costs nothing; the others import the library that they name.

    Raises:
        ValueError: with the name, the nearest known names and what else there is; with the remedy where timm
            is not installed.
    """
    if isinstance(name, str) and "@" in name:
        head, _, inner = name.partition("@")
        if head not in HEADS:
            raise Refused(f"model.name {name!r}: the head {head!r} is unknown. Known: {', '.join(HEADS)}")
        if "@" in inner:
            raise Refused(f"model.name {name!r} has two heads; write HEAD@BACKBONE, such as fcn@resnet14")
        return check_name(inner)
    if isinstance(name, str):
        source, _, bare = name.rpartition(":")
        if name in names() or (source == "torchvision" and bare in libraries.torchvision_names()):
            return
        if source == "timm" and (bare in libraries.timm_names() or bare in libraries.timm_weights()):
            return
    nearest = _nearest(name) if isinstance(name, str) else []
    hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else "."
    raise Refused(
        f"model.name {name!r} is unknown{hint} Known: {', '.join(names())}, torchvision:NAME and timm:NAME; "
        f"HEAD@ before any of them ({', '.join(HEADS)}) for other tasks"
    )


def _nearest(name: str) -> list[str]:
    """Up to three known names like this one, best first; a bare name is looked for in every library."""
    source, _, bare = name.rpartition(":")
    bare = bare.lower().partition(".")[0]  # timm's names of weights, "resnet18.a1_in1k", mean its "resnet18"
    full: dict[str, str] = {}
    if source != "torchvision":
        with contextlib.suppress(ValueError):  # timm is not installed: nothing to suggest from it
            full.update({known: f"timm:{known}" for known in libraries.timm_names()})
    if source != "timm":
        full.update({known: f"torchvision:{known}" for known in libraries.torchvision_names()})
    if source not in ("torchvision", "timm"):
        full.update({known: known for known in names()})  # ours wins where several have one name
    matches = difflib.get_close_matches(bare, full, n=3, cutoff=0.7)
    clear = bool(matches) and difflib.SequenceMatcher(None, bare, matches[0]).ratio() > 0.9
    return [full[match] for match in matches[: 1 if clear else 3]]
