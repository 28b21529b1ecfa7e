"""Weights of one task's network in another's."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from psd.checks import Refused
from psd.models.parameters import head_parameters

BODY = "backbone.body."  # where a network for segmentation or detection keeps its classification network


class Report(NamedTuple):
    """What `transfer` did, in names of parameters and buffers: those of `model` that were loaded; those of the source
    that were skipped; those of `model` that stay as they were."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            return f"{len(names)} ({shown})" if names else "0"

        return f"loaded {some(self.loaded)}, skipped {some(self.skipped)}, missing {some(self.missing)}"


def transfer(source: nn.Module | dict[str, Tensor] | str | os.PathLike[str], model: nn.Module) -> Report:
    """Move into `model` whatever of `source` has its name and shape, between networks of any two tasks: a
    classification network's weights into the backbone of another task's, and back.

    Args:
        source: a network, its state dict, a file of weights (safetensors, or of torch), or a finished run's folder.
        model: is changed.

    Raises:
        ValueError: nothing fits, or nothing but a head does; a file that cannot be read.

    >>> from psd import models
    >>> report = transfer(models.build("resnet8", 16), models.build("fcn@resnet8", 3))
    >>> sorted(report.skipped)
    ['fc.bias', 'fc.weight']
    """
    weights = _weights(source)
    own = model.state_dict()
    bare = {name.removeprefix(BODY): name for name in own}
    found: dict[str, Tensor] = {}
    skipped = []
    heads: set[int] = set()
    for name, value in weights.items():
        mine = bare.get(name.removeprefix(BODY))
        if mine is not None and own[mine].shape == value.shape:
            found[mine] = value
        else:
            skipped.append(name)
    with contextlib.suppress(Refused):  # of a network without a head that is known, all count
        heads = {id(parameter) for parameter in head_parameters(model)}
    if not any(name in found and id(parameter) not in heads for name, parameter in model.named_parameters()):
        raise Refused(
            f"nothing of {_describe(source)} fits {type(model).__name__}, apart from heads: it holds "
            f"{', '.join(list(weights)[:2])}, the network {', '.join(list(own)[:2])}; give the weights of its backbone"
        )
    model.load_state_dict({**own, **found})
    return Report(tuple(found), tuple(skipped), tuple(name for name in own if name not in found))


def _weights(source: Any) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return source.state_dict()
    if isinstance(source, dict):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise Refused(
            f"source must be a network, its state dict, a file or a run's folder, got {type(source).__name__}"
        )
    path = Path(source)
    return read(path / "model.safetensors" if path.is_dir() else path)


def read(path: Path) -> dict[str, Tensor]:
    """The weights in a file of safetensors, or of torch (.pt, .pth, .bin), of which nothing but tensors is loaded."""
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise Refused(f"model.weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, weights_only=True, map_location="cpu")
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # safetensors, pickle and zip each raise their own kinds
        raise Refused(f"model.weights: {path} is not readable as weights: {' '.join(str(error).split())}") from error


def _describe(source: Any) -> str:
    return (
        type(source).__name__
        if isinstance(source, nn.Module)
        else "these weights"
        if isinstance(source, dict)
        else str(source)
    )
